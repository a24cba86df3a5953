"""Bytes on disk to arrays: find, download, verify and read CIFAR-10's own batch files.

Nothing is unpickled before its SHA-256 is right, and then only NumPy arrays, lists, numbers and
strings are: the reader refuses every other pickled object.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import re
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.synthetic import VERSION, write_synthetic

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_BYTES = 170_498_071
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
META_FILE = "batches.meta"
# Of the official archive's members, whose MD5s the dataset's page and torchvision list.
CIFAR10_SHA256: Mapping[str, str] = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
}
CIFAR10_BYTES: Mapping[str, int] = {
    "data_batch_1": 31_035_704,
    "data_batch_2": 31_035_320,
    "data_batch_3": 31_035_999,
    "data_batch_4": 31_035_696,
    "data_batch_5": 31_035_623,
    "test_batch": 31_035_526,
    "batches.meta": 158,
}

_MANIFEST = "sha256.json"
_MOST_BYTES = 2**31 - 1  # of a batch file; an official one has 31 million
_PARTIAL = ".download-"
_TIMEOUT_S = 15.0
_ATTEMPTS = 2
_LOCK_TIMEOUT_S = 3600.0
_CHUNK = 1 << 16
_JUDGE_AFTER_S = 5.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PICKLED_TYPES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class DatasetError(RuntimeError):
    """The data set is missing, incomplete or corrupted; the message names the remedy."""


@dataclass(frozen=True)
class ImageSet:
    """Images and labels as they lie on disk.

    Attributes:
        images: uint8, ``(N, 3, 32, 32)``, values 0 to 255, channels in the order red, green, blue.
        labels: int64, ``(N,)``.
        names: the original file name of each image.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: list[str]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and built-in containers and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED_TYPES:
            raise pickle.UnpicklingError(f"refused to unpickle {module}.{name}")
        return super().find_class(module, name)


def find_cifar10(data_dir: Path) -> Path:
    """Returns the folder of a complete CIFAR-10, without reading the files.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-py``, or that folder itself, whatever it
            is called.

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
    """Where the batch files of CIFAR-10 lie, or would: below ``data_dir`` or in it."""
    below = data_dir / FOLDER
    missing = _missing(data_dir)
    is_itself = data_dir.name == FOLDER or len(missing) < len(CIFAR10_SHA256)
    return data_dir if not missing or (is_itself and not below.is_dir()) else below


def _missing(folder: Path) -> list[str]:
    return [name for name in CIFAR10_SHA256 if not (folder / name).is_file()]


def unpack_cifar10(data_dir: Path) -> Path | None:
    """Unpacks the official archive where it lies in ``data_dir``, as a download would be.

    Returns:
        The folder with the batch files; None if there is no archive.

    Raises:
        DatasetError: naming an archive that is damaged or another, or a folder that can't be
            written.
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

    One process downloads while others wait for it; the batch files appear under their names only
    when whole and verified.

    Args:
        data_dir: where the folder ``cifar-10-batches-py`` is made, or that folder.
        url: an https address of the original archive (http is accepted from this machine only).
        patience_s: give up once the download looks like taking longer than this.

    Returns:
        The folder with the batch files.

    Raises:
        DatasetError: no connection, a stalled or lying server, or a folder that can't be written.
    """

    def download(scratch: Path) -> Path:
        archive = scratch / ARCHIVE
        _download(url, archive, patience_s)
        return archive

    return _put_in_place(data_dir, download)


def _put_in_place(data_dir: Path, bring: Callable[[Path], Path]) -> Path:
    """Extracts the archive that ``bring`` returns, which may use the folder that it is given."""
    is_new = not data_dir.exists()
    lock = data_dir / f".{FOLDER}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            try:
                return find_cifar10(data_dir)
            except DatasetError:
                for stale in data_dir.glob(f"{_PARTIAL}*"):  # of a process that was killed
                    shutil.rmtree(stale, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=data_dir) as temporary:
                    scratch = Path(temporary)
                    return _extract(bring(scratch), cifar10_folder(data_dir), scratch)
    except DatasetError:
        if is_new:  # perhaps a mistyped name: no folder is to be left behind
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
    """Downloads ``url`` to ``target`` and returns the SHA-256 of what came."""
    digest = hashlib.sha256()
    received = 0  # the bar counts nothing where TQDM_DISABLE is set
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
    if size is not None and received < size:  # urllib takes it for the end
        raise ConnectionError(f"the connection ended after {received:,} of {size:,} bytes")
    return digest.hexdigest()


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses a redirect to plain http before anything is asked there."""

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
            if _sha256(content) != sha256:
                raise DatasetError(f"the archive of CIFAR-10 has another file for {name}")
            partial = scratch / name
            partial.write_bytes(content)
            partial.replace(folder / name)
    return folder


def synthetic_folder(data_dir: Path, images_per_batch: int) -> Path:
    """Where a synthetic set lies, or would: the name holds its version and size."""
    return data_dir / f"synthetic-v{VERSION}-{images_per_batch}"


def is_synthetic(folder: Path) -> bool:
    """Whether a folder of batch files is a synthetic set, with checksums of its own."""
    return re.fullmatch(r"synthetic-v\d+-\d+", folder.name) is not None


def is_made(data_dir: Path, images_per_batch: int) -> bool:
    """Whether a synthetic set is there, whole."""
    return (synthetic_folder(data_dir, images_per_batch) / _MANIFEST).is_file()


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
            if not (folder / _MANIFEST).is_file():
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
        sums = {path.name: _sha256(path.read_bytes()) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's is private to its user
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_train(folder: Path) -> ImageSet:
    """Reads the five training files in their order.

    Raises:
        DatasetError: for a file that is missing, corrupted or no batch of CIFAR-10.
    """
    parts = [_read_batch(folder, name) for name in TRAIN_FILES]
    return ImageSet(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.names],
    )


def read_test(folder: Path) -> ImageSet:
    """Reads the test file.

    Raises:
        DatasetError: for a file that is missing, corrupted or no batch of CIFAR-10.
    """
    return _read_batch(folder, TEST_FILE)


def read_label_names(folder: Path) -> list[str]:
    """Reads the names of the classes, in the order of their labels.

    Raises:
        DatasetError: for a file that is missing or corrupted.
    """
    names = _load(folder, META_FILE).get(b"label_names")
    if not isinstance(names, list) or not names or not all(map(_is_text, names)):
        raise DatasetError(f"{folder / META_FILE} has no names of classes")
    return [_text(name) for name in names]


def _is_text(value: Any) -> bool:
    """Whether a value is a name that can be shown: no control characters."""
    try:
        return isinstance(value, str | bytes) and _text(value).isprintable()
    except UnicodeDecodeError:
        return False


def _read_batch(folder: Path, name: str) -> ImageSet:
    batch = _load(folder, name)
    try:
        images = _exactly(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = _exactly(batch[b"labels"], np.int64)
        names = [_text(entry) for entry in batch[b"filenames"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{folder / name} is no batch of CIFAR-10: {error!r}") from error
    if not len(images) == len(labels) == len(names):
        raise DatasetError(
            f"{folder / name} holds {len(images)} images, {len(labels)} labels, {len(names)} names"
        )
    classes = len(read_label_names(folder))
    if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise DatasetError(
            f"{folder / name} is no batch of CIFAR-10: its labels are {found}, and there are "
            f"{classes} classes, 0 to {classes - 1}"
        )
    return ImageSet(images, labels, names)


def _exactly(values: Any, dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
    """Converts integers, where none changes: NumPy cuts off fractions and wraps large numbers."""
    given = np.asarray(values)
    if given.dtype.kind not in "iu" or not np.array_equal(given, given.astype(dtype)):
        raise ValueError(f"expected integers of {np.dtype(dtype).name}, got {given.dtype.name}")
    return given.astype(dtype)


def _load(folder: Path, name: str) -> dict[bytes, Any]:
    path = folder / name
    content = _bytes_of(path)
    if isinstance(content, OSError) or _sha256(content) != _checksums(folder).get(name):
        raise DatasetError(_damage(folder))
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:
        raise DatasetError(f"{path} is no batch of CIFAR-10: {error}") from error
    if not isinstance(loaded, dict):
        raise DatasetError(f"{path} is no batch of CIFAR-10: it holds a {type(loaded).__name__}")
    return loaded


def _bytes_of(path: Path) -> bytes | OSError:
    try:
        if stat.S_ISREG((status := path.stat()).st_mode) and status.st_size > _MOST_BYTES:
            return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            return OSError(errno.EINVAL, "no regular file")  # a pipe would never end
        return path.read_bytes()
    except OSError as error:
        return error


def _checksums(folder: Path) -> Mapping[str, str]:
    if not is_synthetic(folder):
        return CIFAR10_SHA256
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return {name: str(sums[name]) for name in CIFAR10_SHA256}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{folder / _MANIFEST} can't be read: {error!r}; delete the folder and run again"
        ) from error


def _damage(folder: Path) -> str:
    """What is wrong with a folder, file by file: who has to replace one wants to know of all."""
    found = {
        name: _damage_of(folder / name, sha256, {} if is_synthetic(folder) else CIFAR10_BYTES)
        for name, sha256 in _checksums(folder).items()
    }
    listed = "; ".join(f"{name} {damage}" for name, damage in found.items() if damage)
    official = "delete what is named and run again, or copy good files there"
    remedy = "delete the folder and run again" if is_synthetic(folder) else official
    return f"the data in {folder} is damaged: {listed}; {remedy}"


def _damage_of(path: Path, sha256: str, sizes: Mapping[str, int]) -> str:
    content = _bytes_of(path)
    if isinstance(content, FileNotFoundError):
        return "is missing"
    if isinstance(content, OSError):
        return f"can't be read ({content.strerror})"
    actual, size = _sha256(content), sizes.get(path.name, 0)
    if actual == sha256:
        return ""
    if len(content) < size or not content:
        return f"is cut short ({len(content):,} of {size:,} bytes)" if size else "is empty"
    return (
        f"is corrupted ({len(content):,} bytes with SHA-256 {actual[:12]}…, expected "
        f"{sha256[:12]}…)"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
