"""Images of your own: a folder with a folder for each class."""

import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.batches import Splits
from datamodules.cifar10 import CIFAR10DataModule, stratified_split, subset
from datamodules.files import DatasetError, ImageSet
from datamodules.pictures import read_images

_log = logging.getLogger(__name__)


class ImageFolderDataModule(CIFAR10DataModule):
    """Pictures of any size in a folder for each class, as 32x32 RGB.

    ``data_dir`` holds ``train/CLASS/`` and ``test/CLASS/``, and perhaps ``val/CLASS/``; without
    ``val``, ``val_size`` images are split off the training images. Or it holds the folders of the
    classes alone: then ``test_share`` of the images of each class is the test set. The pictures are
    decoded once, resized, and kept in memory. Formats are those of `pictures.FORMATS`.

    Args:
        data_dir: the folder.
        test_share: part of the images of each class that is the test set if there is no ``test``.
        **kwargs: see `CIFAR10DataModule`; ``source``, ``download`` and ``synthetic_images`` have
            no effect.

    Raises:
        ValueError: for a number out of range, or without ``data_dir``.
    """

    resolved_source = "image_folder"

    def __init__(self, data_dir: str | None = None, test_share: float = 0.2, **kwargs: Any) -> None:
        super().__init__(data_dir, **kwargs)
        if data_dir is None:
            raise ValueError("data.data_dir: name the folder that has a folder for each class")
        if not 0 < test_share < 1:
            raise ValueError(f"data.test_share must be between 0 and 1, got {test_share}")
        self.test_share = test_share

    @classmethod
    def count_classes(cls, data_dir: str | None = None, **settings: Any) -> int | None:
        """The number of folders that are classes; see `CIFAR10DataModule.count_classes`."""
        return None if data_dir is None else len(class_names(Path(data_dir).expanduser()))

    def prepare_data(self) -> None:
        """Checks that the folder is there.

        Raises:
            DatasetError: if it is not.
        """
        if not self._predicts_folder:
            class_names(self.data_dir)

    def read(self) -> Splits:
        """Reads the pictures.

        Raises:
            DatasetError: if a folder is missing or empty, or a picture can't be read.
        """
        names = class_names(self.data_dir)
        if not self.has_test:
            whole = _read(self.data_dir, names)
            size = max(1, round(self.test_share * len(whole.labels)))
            rest, test = stratified_split(whole.labels, size, self.split_seed)
            return Splits(subset(whole, rest), None, subset(whole, test), names)
        train, test_set = (_read(self.data_dir / part, names) for part in ("train", "test"))
        folder = self.data_dir / "val"
        return Splits(train, _read(folder, names) if folder.is_dir() else None, test_set, names)

    def setup(self, stage: str | None = None) -> None:
        """Reads the pictures; a note names classes without images for validation or test.

        Raises:
            DatasetError: also if a class has no training image.
            ValueError: if ``val_size`` or ``batch_size`` leaves nothing to train on.
        """
        was_set_up = self.is_set_up
        super().setup(stage)
        if was_set_up or not self.is_set_up:
            return
        parts = {"training": self.train_set, "validation": self.val_set, "test": self.test_set}
        for part, images in parts.items():
            counts = np.bincount(images.labels, minlength=len(self.label_names))
            absent = ", ".join(np.array(self.label_names)[counts == 0])
            if absent and part == "training":
                raise DatasetError(
                    f"{self.data_dir} leaves no training image of {absent}: add pictures, or "
                    "remove the folder of the class"
                )
            if absent and len(images.labels):
                _log.info(f"no {part} image of {absent}: its accuracy is not measured")

    def fingerprint(self) -> str | None:
        """The SHA-256 of all images and labels."""
        digest = hashlib.sha256()
        for part in (self.train_set, self.val_set, self.test_set):
            digest.update(part.images.tobytes() + part.labels.tobytes())
        return digest.hexdigest()

    @property
    def has_test(self) -> bool:
        """Whether the test images have a folder of their own."""
        return (self.data_dir / "train").is_dir()

    def draws(self, part: Literal["val", "test"]) -> bool:
        """Whether these images are drawn from the others; see `DeviceDataModule.draws`."""
        return not self.has_test or (part == "val" and not (self.data_dir / "val").is_dir())


def class_names(data_dir: Path) -> list[str]:
    """The names of the classes, sorted: the folders in ``train``, or in ``data_dir`` itself.

    Raises:
        DatasetError: if there are fewer than two.
    """
    folder = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    if strange := [name for name in names if not name.isprintable()]:
        raise DatasetError(f"{folder} has a class {strange[0]!r}: rename it, with letters alone")
    if len(names) < 2:
        found = f"has the folders {', '.join(names) or 'none'}" if folder.is_dir() else "is missing"
        raise DatasetError(
            f"{folder} {found}: expected a folder for each of two or more classes; check "
            "--data.data_dir"
        )
    return names


def _read(folder: Path, names: list[str]) -> ImageSet:
    """The pictures of a folder that has a folder for each class."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is missing: expected a folder for each class in it")
    there = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    if there != set(names):
        missing, more = sorted(set(names) - there), sorted(there - set(names))
        reason = f"no {', '.join(missing)}" if missing else f"also {', '.join(more)}"
        raise DatasetError(f"{folder} has {reason}: expected the classes {', '.join(names)}")
    parts = [read_images(folder / name, "fill the folder, or remove it") for name in names]
    labels = np.repeat(np.arange(len(names)), [len(part.names) for part in parts])
    files = [
        f"{name}/{file}" for name, part in zip(names, parts, strict=True) for file in part.names
    ]
    return ImageSet(np.concatenate([part.images for part in parts]), labels, files)
