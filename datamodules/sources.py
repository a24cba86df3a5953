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
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.files import CIFAR10, MANIFEST, DatasetError, OfficialSet, sha256_of
from datamodules.synthetic import VERSION, write_synthetic

_log = logging.getLogger(__name__)

_TIMEOUT_S = 15.0
_ATTEMPTS = 2
_LOCK_TIMEOUT_S = 3600.0
_CHUNK = 1 << 16
_JUDGE_AFTER_S = 5.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def find_data(
    data_dir: Path,
    source: str,
    download: bool,
    synthetic_images: int,
    official: OfficialSet = CIFAR10,
) -> Path:
    """Finds, downloads or generates the data; resolves ``source: auto``.

    Args:
        data_dir: see `CIFAR10DataModule`, also for the other arguments.
        source: that of the official set, ``synthetic`` or ``auto``.
        download: whether the official set may be downloaded.
        synthetic_images: images in the synthetic set's test file.
        official: the official set.

    Returns:
        The folder with the batch files.

    Raises:
        DatasetError: if there is no data; the message names the remedy.
    """
    if source == "synthetic":
        return _synthetic(data_dir, synthetic_images, official)
    try:
        # With "auto", a quick start is more important than the real data from a slow server.
        return _official(data_dir, official, download, 60.0 if source == "auto" else math.inf)
    except DatasetError as error:
        if source != "auto":
            raise DatasetError(f"{error}. {_remedy(official)}") from error
        _log.warning(
            f"{error}. USING THE SYNTHETIC STAND-IN: its accuracies say nothing about "
            f"{official.name}"
        )
        return _synthetic(data_dir, synthetic_images, official)


def _remedy(official: OfficialSet) -> str:
    return (
        f"Copy the official {official.folder} folder there, name the folder it lies in with "
        f"--data.data_dir or {official.variable}, run where it can be downloaded, or add "
        "--data.source synthetic to use generated images instead"
    )


def _synthetic(data_dir: Path, images: int, official: OfficialSet) -> Path:
    is_new = not synthetic_folder(data_dir, images, official).exists()
    folder = make_synthetic(data_dir, images, official)
    if is_new:
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        _log.info(f"made the synthetic set in {folder}, {size:,.0f} MB")
    return folder


def _official(data_dir: Path, official: OfficialSet, download: bool, patience_s: float) -> Path:
    """Finds, unpacks or downloads a data set; an error names all attempts."""
    attempts: list[Callable[[], Path | None]] = [
        lambda: find_official(data_dir, official),
        lambda: unpack_official(data_dir, official),
    ]
    if download:
        attempts.append(lambda: download_official(data_dir, official, patience_s))
    failed: list[str] = []
    for attempt in attempts:
        try:
            if folder := attempt():
                return folder
        except DatasetError as error:
            failed.append(str(error))
    raise DatasetError("; ".join(failed))


def find_official(data_dir: Path, official: OfficialSet = CIFAR10) -> Path:
    """Returns the folder of a complete data set, without reading the files.

    Args:
        data_dir: the folder that holds its folder, such as ``cifar-10-batches-py``; or that folder
            itself, with any name.
        official: the data set.

    Raises:
        DatasetError: naming every file that is missing.
    """
    folder = official_folder(data_dir, official)
    if missing := _missing(folder, official):
        found = "no such folder" if not folder.is_dir() else f"missing {', '.join(missing)}"
        if data_dir.is_file():
            found = f"{data_dir} is a file, name the folder that it lies in"
        raise DatasetError(f"{official.name} not found in {folder}: {found}")
    return folder


def official_folder(data_dir: Path, official: OfficialSet = CIFAR10) -> Path:
    """The folder of a data set's files, even if it is missing: ``data_dir`` or one below."""
    below = data_dir / official.folder
    missing = _missing(data_dir, official)
    # One file is not enough: any folder may have a file named test, which is not to be replaced.
    is_itself = data_dir.name == official.folder or 2 * len(missing) < len(official.sha256)
    return data_dir if not missing or (is_itself and not below.is_dir()) else below


def _missing(folder: Path, official: OfficialSet) -> list[str]:
    return [name for name in official.sha256 if not (folder / name).is_file()]


def unpack_official(data_dir: Path, official: OfficialSet = CIFAR10) -> Path | None:
    """Unpacks the official archive if it is in ``data_dir``, like a download.

    Returns:
        The folder with the batch files; None if there is no archive.

    Raises:
        DatasetError: naming a damaged or wrong archive, or a folder that can't be written.
    """
    folder = official_folder(data_dir, official)
    found = (place / official.archive for place in (data_dir, folder.parent))
    archive = next((path for path in found if path.is_file()), None)
    if archive is None:
        return None
    if damage := _damage_of_archive(archive, official):
        raise DatasetError(f"{archive} {damage}")
    return _put_in_place(data_dir, official, lambda _: archive)


def _damage_of_archive(archive: Path, official: OfficialSet) -> str:
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        size = archive.stat().st_size
    except OSError as error:
        return f"can't be read ({error.strerror})"
    expected, whole = official.archive_sha256, official.archive_bytes
    if actual == expected:
        return ""
    if size < whole:
        return f"is cut short, or another file ({size:,} of {whole:,} bytes)"
    return f"is not the official archive (its SHA-256 is {actual}, expected {expected})"


def download_official(
    data_dir: Path, official: OfficialSet = CIFAR10, patience_s: float = math.inf
) -> Path:
    """Downloads a data set (170 MB) into ``data_dir`` unless it is there already.

    One process downloads while others wait. The batch files get their names only when they are
    complete and verified.

    Args:
        data_dir: where the folder of the data set is made, or that folder.
        official: the data set; its address is https (http is accepted from this machine only).
        patience_s: give up if the download is estimated to take longer.

    Returns:
        The folder with the batch files.

    Raises:
        DatasetError: no connection, a stalled server, wrong data, or an unwritable folder.
    """

    def download(scratch: Path) -> Path:
        archive = scratch / official.archive
        _download(official, archive, patience_s)
        return archive

    return _put_in_place(data_dir, official, download)


def _put_in_place(data_dir: Path, official: OfficialSet, bring: Callable[[Path], Path]) -> Path:
    """Extracts the archive from ``bring``, which may use the given folder."""
    is_new = not data_dir.exists()
    lock = data_dir / f".{official.folder}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            try:
                return find_official(data_dir, official)
            except DatasetError:
                for stale in data_dir.glob(f"{_partial(official)}*"):  # left by a killed process
                    shutil.rmtree(stale, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_partial(official), dir=data_dir) as made:
                    scratch = Path(made)
                    return _extract(bring(scratch), official, data_dir, scratch)
    except DatasetError:
        if is_new:  # the name may be a typo, so leave no folder
            lock.unlink(missing_ok=True)
            _remove_if_empty(data_dir)
        raise
    except Timeout as error:
        raise DatasetError(f"another process holds {error.lock_file} for an hour") from error
    except OSError as error:
        raise DatasetError(f"cannot write {official.name} to {data_dir}: {error}") from error


def _partial(official: OfficialSet) -> str:
    """The first part of the name of a download's folder: no other data set's lock guards it."""
    return f".download-{official.folder}-"


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _download(official: OfficialSet, target: Path, patience_s: float) -> None:
    url = official.url
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            actual = _fetch(official, target, patience_s)
            break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
        ) as error:
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise DatasetError(
                    f"cannot download {official.name} from {url}: {reason}"
                ) from error
    if actual != official.archive_sha256:
        raise DatasetError(
            f"{url} did not serve {official.name}: its SHA-256 is {actual}, expected "
            f"{official.archive_sha256}"
        )


def _fetch(official: OfficialSet, target: Path, patience_s: float) -> str:
    """Downloads the archive to ``target`` and returns its SHA-256."""
    url = official.url
    digest = hashlib.sha256()
    received = 0  # the bar does not count if TQDM_DISABLE is set
    started = time.monotonic()
    opener = urllib.request.build_opener(_SecureRedirects)
    with opener.open(_secure(url), timeout=_TIMEOUT_S) as response:
        size = int(response.headers.get("Content-Length", 0)) or None
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"Downloading {official.name}")
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
        raise DatasetError(f"data is downloaded over https only, not from {url}")
    return url


def _extract(archive: Path, official: OfficialSet, data_dir: Path, scratch: Path) -> Path:
    """Moves the verified batch files into place, each by an atomic rename."""
    folder = official_folder(data_dir, official)
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for name, sha256 in official.sha256.items():
            member = tar.extractfile(f"{official.folder}/{name}")
            if member is None:
                raise DatasetError(f"the archive of {official.name} has no file {name}")
            content = member.read()
            if sha256_of(content) != sha256:
                raise DatasetError(f"the archive of {official.name} has another file for {name}")
            partial = scratch / name
            partial.write_bytes(content)
            partial.replace(folder / name)
    return folder


def synthetic_folder(
    data_dir: Path, images_per_batch: int, official: OfficialSet = CIFAR10
) -> Path:
    """The folder of a synthetic set, even if it is missing: its name has version and size."""
    return data_dir / f"{official.stand_in}-v{VERSION}-{images_per_batch}"


def is_made(data_dir: Path, images_per_batch: int, official: OfficialSet = CIFAR10) -> bool:
    """Whether a complete synthetic set exists."""
    return (synthetic_folder(data_dir, images_per_batch, official) / MANIFEST).is_file()


def make_synthetic(data_dir: Path, images_per_batch: int, official: OfficialSet = CIFAR10) -> Path:
    """Generates the synthetic stand-in below ``data_dir`` unless it is there already.

    Args:
        data_dir: where the folder is made, see `synthetic_folder`.
        images_per_batch: see `write_synthetic`.
        official: the data set to stand in for.

    Returns:
        The folder with the batch files and their checksums.

    Raises:
        DatasetError: if the folder can't be written.
        ValueError: if ``images_per_batch`` is too small.
    """
    folder = synthetic_folder(data_dir, images_per_batch, official)
    if is_made(data_dir, images_per_batch, official):
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / ".synthetic.lock", timeout=_LOCK_TIMEOUT_S):
            if not (folder / MANIFEST).is_file():
                _build_atomically(
                    folder, lambda path: write_synthetic(path, images_per_batch, official=official)
                )
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
