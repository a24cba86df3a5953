"""Verifies the batch files of CIFAR-10 and CIFAR-100 and reads them into arrays.

Nothing is unpickled before its SHA-256 is verified. The reader unpickles only NumPy arrays, lists,
numbers and strings, and refuses every other object.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class OfficialSet:
    """What CIFAR-10 and CIFAR-100 differ in: their files and what is in them.

    Attributes:
        name: as a text shows it.
        source: its name in ``source`` and in records.
        stand_in: that of its synthetic stand-in, and the first part of the stand-in's folder.
        classes: how many there are.
        folder: the folder in the archive.
        train_files: the batch files to train on, in their order.
        test_file: the batch file to test on.
        meta_file: the file with the names of the classes.
        label_key: the key of the labels in a batch file.
        names_key: the key of the names in the meta file.
        sha256: of each file.
        sizes: of each file, in bytes; they only word an error.
        url: where the archive is, by https.
        archive: its file name.
        archive_sha256: its SHA-256.
        archive_bytes: its size.
        variable: the environment variable that names the folder of the data.
    """

    name: str
    source: str
    stand_in: str
    classes: int
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    label_key: bytes
    names_key: bytes
    sha256: Mapping[str, str]
    sizes: Mapping[str, int]
    url: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    variable: str


# The page of the data sets, https://www.cs.toronto.edu/~kriz/cifar.html, and torchvision list MD5s
# of the same archives and files. Keras lists the SHA-256 of CIFAR-100's archive.
CIFAR10 = OfficialSet(
    name="CIFAR-10",
    source="cifar10",
    stand_in="synthetic",
    classes=10,
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_file="test_batch",
    meta_file="batches.meta",
    label_key=b"labels",
    names_key=b"label_names",
    sha256={
        "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    },
    sizes={
        "data_batch_1": 31_035_704,
        "data_batch_2": 31_035_320,
        "data_batch_3": 31_035_999,
        "data_batch_4": 31_035_696,
        "data_batch_5": 31_035_623,
        "test_batch": 31_035_526,
        "batches.meta": 158,
    },
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive="cifar-10-python.tar.gz",
    archive_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    archive_bytes=170_498_071,
    variable="CIFAR10_DIR",
)
CIFAR100 = OfficialSet(
    name="CIFAR-100",
    source="cifar100",
    stand_in="synthetic100",
    classes=100,
    folder="cifar-100-python",
    train_files=("train",),
    test_file="test",
    meta_file="meta",
    label_key=b"fine_labels",
    names_key=b"fine_label_names",
    sha256={
        "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
        "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
    },
    sizes={"train": 155_249_918, "test": 31_049_707, "meta": 1_473},
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive="cifar-100-python.tar.gz",
    archive_sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    archive_bytes=169_001_437,
    variable="CIFAR100_DIR",
)

MANIFEST = "sha256.json"
_MOST_BYTES = 2**31 - 1  # of a batch file; the largest official one has 155 million
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
    """Images and labels as on disk.

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


def is_synthetic(folder: Path) -> bool:
    """Whether a folder of batch files is a synthetic set, with its own checksums."""
    return re.fullmatch(r"synthetic\d*-v\d+-\d+", folder.name) is not None


def read_train(folder: Path, official: OfficialSet = CIFAR10) -> ImageSet:
    """Reads the training files of a data set, or of its stand-in, in their order.

    Raises:
        DatasetError: for a file that is missing, corrupted or no batch of the data set.
    """
    parts = [_read_batch(folder, name, official) for name in official.train_files]
    return ImageSet(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.names],
    )


def read_test(folder: Path, official: OfficialSet = CIFAR10) -> ImageSet:
    """Reads the test file of a data set, or of its stand-in.

    Raises:
        DatasetError: for a file that is missing, corrupted or no batch of the data set.
    """
    return _read_batch(folder, official.test_file, official)


def read_label_names(folder: Path, official: OfficialSet = CIFAR10) -> list[str]:
    """Reads the names of the classes, in the order of their labels.

    Raises:
        DatasetError: for a file that is missing or corrupted.
    """
    names = _load(folder, official.meta_file, official).get(official.names_key)
    if not isinstance(names, list) or not names or not all(map(_is_text, names)):
        raise DatasetError(f"{folder / official.meta_file} has no names of classes")
    return [_text(name) for name in names]


def _is_text(value: Any) -> bool:
    """Whether a value is a name that can be shown: no control characters."""
    try:
        return isinstance(value, str | bytes) and _text(value).isprintable()
    except UnicodeDecodeError:
        return False


def _read_batch(folder: Path, name: str, official: OfficialSet) -> ImageSet:
    batch = _load(folder, name, official)
    try:
        images = _exactly(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = _exactly(batch[official.label_key], np.int64)
        names = [_text(entry) for entry in batch[b"filenames"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{folder / name} is no batch of {official.name}: {error!r}") from error
    if not len(images) == len(labels) == len(names):
        raise DatasetError(
            f"{folder / name} holds {len(images)} images, {len(labels)} labels, {len(names)} names"
        )
    classes = len(read_label_names(folder, official))
    if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.min()} to {labels.max()}" if labels.size else "none"
        raise DatasetError(
            f"{folder / name} is no batch of {official.name}: its labels are {found}, and there "
            f"are {classes} classes, 0 to {classes - 1}"
        )
    return ImageSet(images, labels, names)


def _exactly(values: Any, dtype: type[np.integer[Any]]) -> npt.NDArray[Any]:
    """Converts integers if no value changes: NumPy drops fractions and wraps large numbers."""
    given = np.asarray(values)
    if given.dtype.kind not in "iu" or not np.array_equal(given, given.astype(dtype)):
        raise ValueError(f"expected integers of {np.dtype(dtype).name}, got {given.dtype.name}")
    return given.astype(dtype)


def _load(folder: Path, name: str, official: OfficialSet) -> dict[bytes, Any]:
    path = folder / name
    content = _bytes_of(path)
    if isinstance(content, OSError) or sha256_of(content) != _checksums(folder, official)[name]:
        raise DatasetError(_damage(folder, official))
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:
        raise DatasetError(f"{path} is no batch of {official.name}: {error}") from error
    if not isinstance(loaded, dict):
        raise DatasetError(
            f"{path} is no batch of {official.name}: it holds a {type(loaded).__name__}"
        )
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


def _checksums(folder: Path, official: OfficialSet) -> Mapping[str, str]:
    if not is_synthetic(folder):
        return official.sha256
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {name: str(sums[name]) for name in official.sha256}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{folder / MANIFEST} can't be read: {error!r}; delete the folder and run again"
        ) from error


def _damage(folder: Path, official: OfficialSet) -> str:
    """The problems of all files of a folder, so that the user can replace all at once."""
    sizes = {} if is_synthetic(folder) else official.sizes
    found = {
        name: _damage_of(folder / name, sha256, sizes)
        for name, sha256 in _checksums(folder, official).items()
    }
    listed = "; ".join(f"{name} {damage}" for name, damage in found.items() if damage)
    remedy = "delete what is named and run again, or copy good files there"
    if is_synthetic(folder):
        remedy = "delete the folder and run again"
    return f"the data in {folder} is damaged: {listed}; {remedy}"


def _damage_of(path: Path, sha256: str, sizes: Mapping[str, int]) -> str:
    content = _bytes_of(path)
    if isinstance(content, FileNotFoundError):
        return "is missing"
    if isinstance(content, OSError):
        return f"can't be read ({content.strerror})"
    actual, size = sha256_of(content), sizes.get(path.name, 0)
    if actual == sha256:
        return ""
    if len(content) < size or not content:
        return f"is cut short ({len(content):,} of {size:,} bytes)" if size else "is empty"
    return (
        f"is corrupted ({len(content):,} bytes with SHA-256 {actual[:12]}…, expected "
        f"{sha256[:12]}…)"
    )


def sha256_of(content: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
