"""CIFAR-10 and CIFAR-100 as LightningDataModules: uint8 in memory, normalised on the device."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import BatchSource, DeviceDataModule, Splits, check_classes, check_splits
from datamodules.files import (
    CIFAR10,
    CIFAR100,
    ImageSet,
    OfficialSet,
    is_synthetic,
    read_label_names,
    read_test,
    read_train,
)
from datamodules.pictures import read_images
from datamodules.sources import find_data
from datamodules.transforms import AugmentedImages, Flip, Normalization, check_augmentation


class CIFAR10DataModule(DeviceDataModule):
    """CIFAR-10 [1]_, or a synthetic stand-in in the same file format.

    Batches are ``(images, labels)``: float32 ``(B, 3, 32, 32)`` and int64 ``(B,)``. All images are
    on the trainer's device as uint8. They are augmented and normalised there, a batch at a time,
    with statistics of the training split, computed in float64. The official 10,000 test images are
    the test set. The validation set is a stratified part of the 50,000 training images, and is
    never augmented.

    Args:
        data_dir: the folder that holds (or will hold) ``cifar-10-batches-py``, or its archive
            ``cifar-10-python.tar.gz``; or ``cifar-10-batches-py`` itself. ``~`` is the user's home.
            Default: the environment variable ``CIFAR10_DIR``, or ``data``.
        source: ``cifar10``: the real data or an error. ``synthetic``: ten generated classes.
            ``auto``: CIFAR-10 if it is on disk or can be downloaded within a minute, otherwise
            synthetic.
        batch_size: training images in a batch, on each device.
        eval_batch_size: images in a batch of validation, test and prediction.
        val_size: images taken from the 50,000 for validation; 0 for none.
        split_seed: seed of the validation split. It differs from ``seed``, so that runs with
            different seeds are selected on the same images.
        normalization: ``mean_image`` subtracts the mean image and does not scale (the course's
            preprocessing, about -140 to 155); ``mean_image_std`` also divides by the standard
            deviation of each channel; ``channel`` uses mean and standard deviation per channel;
            ``imagenet`` uses those of ImageNet, which networks trained on it expect.
        crop: shift training images by up to this number of pixels, see `AugmentedImages`.
        flip: mirror training images, see `AugmentedImages`.
        cutout: side in pixels of a square in the mean colour, painted into training images.
        seed: seed of batch order and augmentation; default: the seed of ``seed_everything``.
        download: download CIFAR-10 if it is missing.
        synthetic_images: images in the synthetic set's test file; five times as many are for
            training.
        predict_dir: a folder of images to predict instead of the test set (PNG, JPEG, WebP, AVIF,
            BMP, GIF, TIFF, PPM, QOI); they are rotated by their EXIF orientation, converted to RGB
            and resized to 32x32.

    Raises:
        ValueError: for a number out of range.

    Attributes:
        official: the files of the official set.

    .. [1] A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    official: ClassVar[OfficialSet] = CIFAR10

    def __init__(
        self,
        data_dir: str | None = None,
        source: Literal["cifar10", "synthetic", "auto"] = "cifar10",
        batch_size: int = 200,
        eval_batch_size: int = 1000,
        val_size: int = 5000,
        split_seed: int = 0,
        normalization: Normalization = "mean_image",
        crop: int = 0,
        flip: Flip = "none",
        cutout: int = 0,
        seed: int | None = None,
        download: bool = True,
        synthetic_images: int = 10_000,
        predict_dir: str | None = None,
    ) -> None:
        super().__init__(normalization)
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _at_least(0, val_size=val_size, split_seed=split_seed, seed=seed or 0)
        check_augmentation(crop, flip, cutout)
        place = data_dir or os.environ.get(self.official.variable) or "data"
        self.data_dir = Path(place).expanduser()
        self.source: str = source
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.split_seed = val_size, split_seed
        self.normalization = normalization
        self.crop, self.flip, self.cutout = crop, flip, cutout
        self.seed = torch.initial_seed() if seed is None else seed
        self.download = download
        self.synthetic_images = synthetic_images
        self.predict_dir = predict_dir
        self._folder: Path | None = None

    @classmethod
    def count_classes(cls, **settings: Any) -> int | None:
        """The number of classes of a data set, known without its images.

        A model gets as many, unless a flag or a config file names another number. A data set of
        your own may override this.

        Args:
            **settings: the arguments of the class.

        Returns:
            None if it is not known: a class with a `read` of its own reads other data.

        Raises:
            DatasetError: if the data is looked at and is missing.
        """
        return cls.official.classes if cls.read is CIFAR10DataModule.read else None

    def prepare_data(self) -> None:
        """Finds, downloads or generates the data; resolves ``source: auto``.

        Raises:
            DatasetError: if there is no data; the message names the remedy.
        """
        if self._folder is None and not self._predicts_folder:
            self._folder = find_data(
                self.data_dir, self.source, self.download, self.synthetic_images, self.official
            )

    @property
    def _predicts_folder(self) -> bool:
        """Whether only ``predict_dir`` is used: statistics and names come from a checkpoint."""
        return self.predict_dir is not None and bool(self.trainer and self.trainer.predicting)

    @property
    def resolved_source(self) -> str:
        """The resolved ``source``, after the data was found: the data's name in records."""
        is_made = is_synthetic(self._folder) if self._folder else self.source == "synthetic"
        return self.official.stand_in if is_made else self.official.source

    def setup(self, stage: str | None = None) -> None:
        """Reads and verifies the files, splits off the validation set, computes statistics.

        Raises:
            DatasetError: for a missing or corrupted file, or unreadable images to predict.
            ValueError: if ``val_size`` or ``batch_size`` leaves nothing to train on.
        """
        if self.predict_dir is not None and stage in {"predict", None}:
            self.images_to_predict  # noqa: B018 - reads the names now
        if self.is_set_up or self._predicts_folder:
            return
        self.prepare_data()
        place = f"{type(self).__name__}.read"
        train, val, self.test_set, names = check_splits(self.read(), place)
        if val is None:
            parts = stratified_split(train.labels, self.val_size, self.split_seed)
            train, val = (subset(train, part) for part in parts)
        self.val_size = len(val.labels)  # a folder of validation images has its own number
        self.take(train, val, names)
        self.train_dataloader()  # raises if the batch size leaves no batch

    def read(self) -> Splits:
        """Reads the images; a data set of your own overrides this and `prepare_data`.

        Raises:
            DatasetError: for a missing or corrupted file.
        """
        assert self._folder is not None
        found = (self._folder, self.official)
        return Splits(read_train(*found), None, read_test(*found), read_label_names(*found))

    def read_test_set(self, label_names: Sequence[str]) -> ImageSet:
        """Finds the data and reads its test images, without a split or statistics.

        Args:
            label_names: the classes that the data must have.

        Raises:
            DatasetError: for a missing or corrupted file, or for other classes.
        """
        self.prepare_data()
        found = self.read()
        check_classes(label_names, found.label_names, self.data_dir)
        return found.test

    # ---- batches ----------------------------------------------------------------------------

    def train_dataloader(self) -> BatchSource:
        """Shuffled training batches; an incomplete last batch is left out.

        With ``trainer.overfit_batches``, every epoch has the same batches.
        """
        source = _batches(self, self.train_set, self.batch_size, self.seed)
        source.repeats = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        return source

    def val_dataloader(self) -> BatchSource | list[BatchSource]:
        """Validation batches in their order; none with ``val_size=0``."""
        return (
            _batches(self, self.val_set, self.eval_batch_size) if len(self.val_set.labels) else []
        )

    def test_dataloader(self) -> BatchSource:
        """Test batches in their order."""
        return _batches(self, self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> BatchSource:
        """Batches of the images to predict, without labels."""
        images = torch.from_numpy(self.images_to_predict.images)
        return BatchSource(images, batch_size=self.eval_batch_size)

    @functools.cached_property
    def images_to_predict(self) -> ImageSet:
        """The images of ``predict_dir`` (labels -1), else the test set."""
        if self.predict_dir is None:
            return self.test_set
        return read_images(Path(self.predict_dir).expanduser())


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 [1]_ with its 100 fine labels, or a synthetic stand-in in the same file format.

    Everything else is as in `CIFAR10DataModule`: 50,000 images, 500 of each class, of which
    ``val_size`` are for validation, and the official 10,000 test images.

    Args:
        data_dir: the folder that holds (or will hold) ``cifar-100-python``, or its archive
            ``cifar-100-python.tar.gz``; or ``cifar-100-python`` itself. Default: the environment
            variable ``CIFAR100_DIR``, or ``data``.
        source: ``cifar100``: the real data or an error. ``synthetic``: a hundred generated classes.
            ``auto``: CIFAR-100 if it is on disk or can be downloaded within a minute, otherwise
            synthetic.
        **kwargs: see `CIFAR10DataModule`.

    Raises:
        ValueError: for a number out of range.

    .. [1] A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    official = CIFAR100

    def __init__(
        self,
        data_dir: str | None = None,
        source: Literal["cifar100", "synthetic", "auto"] = "cifar100",
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, source, **kwargs)  # type: ignore[arg-type]


def _batches(
    data: CIFAR10DataModule, images: ImageSet, batch_size: int, seed: int | None = None
) -> BatchSource:
    """Batches on the trainer's device; with a seed they are shuffled, augmented and complete."""
    trainer = data.trainer
    pixels, labels = data.on_device(images)
    augments = seed is not None and (data.crop or data.flip != "none" or data.cutout)
    return BatchSource(
        _augmented(data, pixels) if augments else pixels,
        labels,
        batch_size=batch_size,
        shuffle_seed=seed,
        drop_last=seed is not None,
        rank=trainer.global_rank if trainer else 0,
        world_size=trainer.world_size if trainer else 1,
    )


def _augmented(data: CIFAR10DataModule, pixels: Tensor) -> AugmentedImages:
    fill = data.normalizer.mean_colour().to(pixels.device)
    return AugmentedImages(pixels, data.crop, data.flip, data.cutout, fill, data.seed)


def stratified_split(
    labels: np.ndarray[Any, np.dtype[np.int64]], val_size: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Splits indices into train and validation with equal class shares in both.

    Args:
        labels: int64 ``(N,)``.
        val_size: number of indices for validation.
        seed: the seed of the selection.

    Returns:
        Sorted indices of the training and of the validation samples.

    Raises:
        ValueError: if ``val_size`` leaves no training samples.
    """
    total = len(labels)
    if not 0 <= val_size < total:
        raise ValueError(
            f"data.val_size must be 0 to {total - 1}, got {val_size}: pass --data.val_size "
            f"{total // 10}"
        )
    order = np.random.default_rng(seed).permutation(total)
    # Sorted by class, every class is one block; evenly spaced picks take the same share of each.
    by_class = order[np.argsort(labels[order], kind="stable")]
    picks = ((np.arange(val_size) + 0.5) * total / max(val_size, 1)).astype(np.int64)
    val = by_class[picks]
    return np.setdiff1d(np.arange(total), val), np.sort(val)


def subset(images: ImageSet, indices: np.ndarray[Any, Any]) -> ImageSet:
    """The images of some indices."""
    names = [images.names[i] for i in indices]
    return ImageSet(images.images[indices], images.labels[indices], names)


def _at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"data.{name} must be at least {minimum}, got {value}")
