"""Finds the data on disk, unpacks it, downloads it or generates it."""

import contextlib
import hashlib
import http.client
import json
import logging
import math
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.files import CIFAR10_SHA256, FOLDER, MANIFEST, DatasetError, sha256_of
from datamodules.synthetic import VERSION, write_synthetic

_log = logging.getLogger(__name__)

Source = Literal["cifar10", "synthetic", "auto"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_BYTES = 170_498_071
_PARTIAL = ".download-"
_TIMEOUT_S = 15.0
_ATTEMPTS = 2
_LOCK_TIMEOUT_S = 3600.0
_CHUNK = 1 << 16
_JUDGE_AFTER_S = 5.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_REMEDY = (
    "Copy the official cifar-10-batches-py folder there, name the folder it lies in with "
    "--data.data_dir or CIFAR10_DIR, run where it can be downloaded, or add "
    "--config configs/data/synthetic.yaml to use generated images instead"
)


def find_data(data_dir: Path, source: Source, download: bool, synthetic_images: int) -> Path:
    """Finds, downloads or generates the data; resolves ``source: auto``.

    Args:
        data_dir: see `CIFAR10DataModule`, also for the other arguments.
        source: ``cifar10``, ``synthetic`` or ``auto``.
        download: whether CIFAR-10 may be downloaded.
        synthetic_images: images in each of the synthetic set's six files.

    Returns:
        The folder with the batch files.

    Raises:
        DatasetError: if there is no data; the message names the remedy.
    """
    if source == "synthetic":
        return _synthetic(data_dir, synthetic_images)
    try:
        # With "auto", a quick start is more important than the real data from a slow server.
        return _cifar10(data_dir, download, 60.0 if source == "auto" else math.inf)
    except DatasetError as error:
        if source != "auto":
            raise DatasetError(f"{error}. {_REMEDY}") from error
        _log.warning(
            f"{error}. USING THE SYNTHETIC STAND-IN: its accuracies say nothing about CIFAR-10"
        )
        return _synthetic(data_dir, synthetic_images)


def _synthetic(data_dir: Path, images: int) -> Path:
    is_new = not synthetic_folder(data_dir, images).exists()
    folder = make_synthetic(data_dir, images)
    if is_new:
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        _log.info(f"made the synthetic set in {folder}, {size:,.0f} MB")
    return folder


def _cifar10(data_dir: Path, download: bool, patience_s: float) -> Path:
    """Finds, unpacks or downloads CIFAR-10; an error names all attempts."""
    attempts: list[Callable[[Path], Path | None]] = [find_cifar10, unpack_cifar10]
    if download:
        attempts.append(lambda folder: download_cifar10(folder, patience_s=patience_s))
    failed: list[str] = []
    for attempt in attempts:
        try:
            if folder := attempt(data_dir):
                return folder
        except DatasetError as error:
            failed.append(str(error))
    raise DatasetError("; ".join(failed))


def find_cifar10(data_dir: Path) -> Path:
    """Returns the folder of a complete CIFAR-10, without reading the files.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-py``; or that folder itself, with any
            name.

    Raises:
        DatasetError: naming every file that is missing.
    """
    folder = cifar10_folder(data_dir)
    if missing := _missing(folder):
        found = "no such folder" if not folder.is_dir() else f"missing {', '.join(missing)}"
        if data_dir.is_file():
            found = f"{data_dir} is a file, name the folder that it lies in"
        raise DatasetError(f"CIFAR-10 not found in {folder}: {found}")
    return folder


def cifar10_folder(data_dir: Path) -> Path:
    """The folder of CIFAR-10's batch files, even if it is missing: ``data_dir`` or one below."""
    below = data_dir / FOLDER
    missing = _missing(data_dir)
    is_itself = data_dir.name == FOLDER or len(missing) < len(CIFAR10_SHA256)
    return data_dir if not missing or (is_itself and not below.is_dir()) else below


def _missing(folder: Path) -> list[str]:
    return [name for name in CIFAR10_SHA256 if not (folder / name).is_file()]


def unpack_cifar10(data_dir: Path) -> Path | None:
    """Unpacks the official archive if it is in ``data_dir``, like a download.

    Returns:
        The folder with the batch files; None if there is no archive.

    Raises:
        DatasetError: naming a damaged or wrong archive, or a folder that can't be written.
    """
    folder = cifar10_folder(data_dir)
    found = (place / ARCHIVE for place in (data_dir, folder.parent))
    archive = next((path for path in found if path.is_file()), None)
    if archive is None:
        return None
    if damage := _damage_of_archive(archive):
        raise DatasetError(f"{archive} {damage}")
    return _put_in_place(data_dir, lambda _: archive)


def _damage_of_archive(archive: Path) -> str:
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        size = archive.stat().st_size
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if actual == ARCHIVE_SHA256:
        return ""
    if size < ARCHIVE_BYTES:
        return f"is cut short, or another file ({size:,} of {ARCHIVE_BYTES:,} bytes)"
    return f"is not the official archive (its SHA-256 is {actual}, expected {ARCHIVE_SHA256})"


def download_cifar10(data_dir: Path, url: str = URL, patience_s: float = math.inf) -> Path:
    """Downloads CIFAR-10 (170 MB) into ``data_dir`` unless it is there already.

    One process downloads while others wait. The batch files get their names only when they are
    complete and verified.

    Args:
        data_dir: where the folder ``cifar-10-batches-py`` is made, or that folder.
        url: an https address of the original archive (http is accepted from this machine only).
        patience_s: give up if the download is estimated to take longer.

    Returns:
        The folder with the batch files.

    Raises:
        DatasetError: no connection, a stalled server, wrong data, or an unwritable folder.
    """

    def download(scratch: Path) -> Path:
        archive = scratch / ARCHIVE
        _download(url, archive, patience_s)
        return archive

    return _put_in_place(data_dir, download)


def _put_in_place(data_dir: Path, bring: Callable[[Path], Path]) -> Path:
    """Extracts the archive from ``bring``, which may use the given folder."""
    is_new = not data_dir.exists()
    lock = data_dir / f".{FOLDER}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            try:
                return find_cifar10(data_dir)
            except DatasetError:
                for stale in data_dir.glob(f"{_PARTIAL}*"):  # left by a killed process
                    shutil.rmtree(stale, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=data_dir) as temporary:
                    scratch = Path(temporary)
                    return _extract(bring(scratch), cifar10_folder(data_dir), scratch)
    except DatasetError:
        if is_new:  # the name may be a typo, so leave no folder
            lock.unlink(missing_ok=True)
            _remove_if_empty(data_dir)
        raise
    except Timeout as error:
        raise DatasetError(f"another process holds {error.lock_file} for an hour") from error
    except OSError as error:
        raise DatasetError(f"cannot write CIFAR-10 to {data_dir}: {error}") from error


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _download(url: str, target: Path, patience_s: float) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            actual = _fetch(url, target, patience_s)
            break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
        ) as error:
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise DatasetError(f"cannot download CIFAR-10 from {url}: {reason}") from error
    if actual != ARCHIVE_SHA256:
        raise DatasetError(
            f"{url} did not serve CIFAR-10: its SHA-256 is {actual}, expected {ARCHIVE_SHA256}"
        )


def _fetch(url: str, target: Path, patience_s: float) -> str:
    """Downloads ``url`` to ``target`` and returns the SHA-256 of the file."""
    digest = hashlib.sha256()
    received = 0  # the bar does not count if TQDM_DISABLE is set
    started = time.monotonic()
    opener = urllib.request.build_opener(_SecureRedirects)
    with opener.open(_secure(url), timeout=_TIMEOUT_S) as response:
        size = int(response.headers.get("Content-Length", 0)) or None
        bar = tqdm(total=size, unit="B", unit_scale=True, desc="Downloading CIFAR-10")
        with target.open("wb") as file, bar:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
                received += len(chunk)
                elapsed = time.monotonic() - started
                expected = elapsed * (size or received) / received
                if elapsed > _JUDGE_AFTER_S and expected > patience_s:
                    raise DatasetError(
                        f"{url} is slow: {received / elapsed / 1e3:,.0f} kB/s, "
                        f"{expected / 60:,.0f} minutes in all"
                    )
    if size is not None and received < size:  # urllib does not report it
        raise ConnectionError(f"the connection ended after {received:,} of {size:,} bytes")
    return digest.hexdigest()


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses a redirect to plain http before any request there."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        return super().redirect_request(req, fp, code, msg, headers, _secure(newurl))


def _secure(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise DatasetError(f"CIFAR-10 is downloaded over https only, not from {url}")
    return url


def _extract(archive: Path, folder: Path, scratch: Path) -> Path:
    """Moves the verified batch files into place, each by an atomic rename."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for name, sha256 in CIFAR10_SHA256.items():
            member = tar.extractfile(f"{FOLDER}/{name}")
            if member is None:
                raise DatasetError(f"the archive of CIFAR-10 has no file {name}")
            content = member.read()
            if sha256_of(content) != sha256:
                raise DatasetError(f"the archive of CIFAR-10 has another file for {name}")
            partial = scratch / name
            partial.write_bytes(content)
            partial.replace(folder / name)
    return folder


def synthetic_folder(data_dir: Path, images_per_batch: int) -> Path:
    """The folder of a synthetic set, even if it is missing: its name has version and size."""
    return data_dir / f"synthetic-v{VERSION}-{images_per_batch}"


def is_made(data_dir: Path, images_per_batch: int) -> bool:
    """Whether a complete synthetic set exists."""
    return (synthetic_folder(data_dir, images_per_batch) / MANIFEST).is_file()


def make_synthetic(data_dir: Path, images_per_batch: int) -> Path:
    """Generates the synthetic stand-in below ``data_dir`` unless it is there already.

    Args:
        data_dir: where the folder is made, see `synthetic_folder`.
        images_per_batch: images in each of the five training files and in the test file.

    Returns:
        The folder with the batch files and their checksums.

    Raises:
        DatasetError: if the folder can't be written.
        ValueError: if ``images_per_batch`` is too small.
    """
    folder = synthetic_folder(data_dir, images_per_batch)
    if is_made(data_dir, images_per_batch):
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".synthetic.lock", timeout=_LOCK_TIMEOUT_S):
            if not (folder / MANIFEST).is_file():
                _build_atomically(folder, lambda path: write_synthetic(path, images_per_batch))
    except OSError as error:
        raise DatasetError(
            f"cannot write the synthetic set to {data_dir}: {error}; "
            "name a writable folder with --data.data_dir"
        ) from error
    return folder


def _build_atomically(folder: Path, build: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    partial = Path(tempfile.mkdtemp(prefix=".synthetic-", dir=folder.parent))
    try:
        build(partial)
        sums = {path.name: sha256_of(path.read_bytes()) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's is private to its user
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
