"""CIFAR-10 as a LightningDataModule: uint8 in memory, normalised on the device."""

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.augment import AugmentedImages, Flip, check_augmentation
from datamodules.batches import BatchSource
from datamodules.files import (
    DatasetError,
    ImageSet,
    download_cifar10,
    find_cifar10,
    is_synthetic,
    make_synthetic,
    read_label_names,
    read_test,
    read_train,
    synthetic_folder,
    unpack_cifar10,
)
from datamodules.pictures import read_images

_log = logging.getLogger(__name__)

Source = Literal["cifar10", "synthetic", "auto"]
Normalization = Literal["mean_image", "mean_image_std", "channel", "imagenet"]

_IMAGE_SIZE = 32
# Mean and standard deviation of red, green and blue, as torchvision's weights were trained with.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_REMEDY = (
    "Copy the official cifar-10-batches-py folder there, name the folder it lies in with "
    "--data.data_dir or CIFAR10_DIR, run where it can be downloaded, or add "
    "--config configs/data/synthetic.yaml to use generated images instead"
)


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10 [1]_, or a synthetic stand-in in the same file format.

    Batches are ``(images, labels)``: float32 ``(B, 3, 32, 32)`` and int64 ``(B,)``. The images
    lie on the trainer's device as uint8, whole, and are augmented and normalised there, a batch at
    a time, with statistics of the training split, computed in float64. The official 10,000 test
    images are the test set; the validation set is a stratified part of the 50,000 training images,
    never augmented.

    Args:
        data_dir: the folder that holds (or will hold) ``cifar-10-batches-py``, or its archive
            ``cifar-10-python.tar.gz``; or that folder itself. ``~`` is the user's home. Default:
            the environment variable ``CIFAR10_DIR``, else ``data``.
        source: ``cifar10`` is strict: the real data or an error. ``synthetic`` is ten generated
            classes. ``auto`` is CIFAR-10 if it is on disk or can be downloaded within a minute,
            else synthetic.
        batch_size: training images in a batch, on each device.
        eval_batch_size: images in a batch of validation, test and prediction.
        val_size: images taken from the 50,000 for validation; 0 for none.
        split_seed: seed of the validation split, apart from ``seed`` so that runs with different
            seeds are selected on the same images.
        normalization: ``mean_image`` subtracts the mean image and does not scale (the course's
            preprocessing, about -140 to 155); ``mean_image_std`` also divides by the standard
            deviation of each channel; ``channel`` uses mean and standard deviation per channel;
            ``imagenet`` uses those of ImageNet, which networks trained on it expect.
        crop: shift training images by up to so many pixels, see `AugmentedImages`.
        flip: mirror training images, see `AugmentedImages`.
        cutout: paint a square of so many pixels' side in training images, in the mean colour.
        seed: seed of batch order and augmentation; default: the seed of ``seed_everything``.
        download: download CIFAR-10 if it is missing.
        synthetic_images: images in each of the synthetic set's six files.
        predict_dir: a folder of images to predict instead of the test set (PNG, JPEG, WebP, AVIF,
            BMP, GIF, TIFF, PPM, QOI); they are turned as their EXIF says, converted to RGB and
            resized to 32x32.

    Raises:
        ValueError: for a number out of range.

    .. [1] A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        source: Source = "cifar10",
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
        super().__init__()
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _at_least(0, val_size=val_size, split_seed=split_seed, seed=seed or 0)
        check_augmentation(crop, flip, cutout)
        self.data_dir = Path(data_dir or os.environ.get("CIFAR10_DIR") or "data").expanduser()
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.normalization = normalization
        self.crop = crop
        self.flip = flip
        self.cutout = cutout
        self.seed = torch.initial_seed() if seed is None else seed
        self.download = download
        self.synthetic_images = synthetic_images
        self.predict_dir = predict_dir
        self._folder: Path | None = None
        self._train: ImageSet | None = None
        self._predict_set: ImageSet | None = None
        self._statistics: dict[str, Tensor] = {}
        self._label_names: list[str] = []

    # ---- where the data is ------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Finds, downloads or generates the data; decides what ``source: auto`` means here.

        Raises:
            DatasetError: if there is no data; the message names the remedy.
        """
        if self._folder is not None or self._predicts_folder:
            return
        if self.source == "synthetic":
            self._make_synthetic()
            return
        try:
            # Whoever says "auto" wants to see something run, not to wait for a slow server.
            self._folder = self._locate_cifar10(60.0 if self.source == "auto" else math.inf)
        except DatasetError as error:
            if self.source != "auto":
                raise DatasetError(f"{error}. {_REMEDY}") from error
            _log.warning(
                f"{error}. USING THE SYNTHETIC STAND-IN: its accuracies say nothing about CIFAR-10"
            )
            self._make_synthetic()

    def _make_synthetic(self) -> None:
        is_new = not synthetic_folder(self.data_dir, self.synthetic_images).exists()
        self._folder = make_synthetic(self.data_dir, self.synthetic_images)
        if is_new:
            size = sum(file.stat().st_size for file in self._folder.iterdir()) / 1e6
            _log.info(f"made the synthetic set in {self._folder}, {size:,.0f} MB")

    def _locate_cifar10(self, patience_s: float) -> Path:
        """Finds, unpacks or downloads CIFAR-10; an error tells of all that was tried."""
        attempts: list[Callable[[Path], Path | None]] = [find_cifar10, unpack_cifar10]
        if self.download:
            attempts.append(lambda folder: download_cifar10(folder, patience_s=patience_s))
        failed: list[str] = []
        for attempt in attempts:
            try:
                if folder := attempt(self.data_dir):
                    return folder
            except DatasetError as error:
                failed.append(str(error))
        raise DatasetError("; ".join(failed))

    @property
    def _predicts_folder(self) -> bool:
        """Whether only ``predict_dir`` is wanted: a checkpoint brings what CIFAR-10 would tell."""
        return self.predict_dir is not None and bool(self.trainer and self.trainer.predicting)

    @property
    def resolved_source(self) -> Literal["cifar10", "synthetic"]:
        """What ``source`` turned out to be, once the data was found."""
        if self._folder is None:
            return "synthetic" if self.source == "synthetic" else "cifar10"
        return "synthetic" if is_synthetic(self._folder) else "cifar10"

    # ---- reading, splitting, normalising ----------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Reads and verifies the files, splits off the validation set, computes statistics.

        Raises:
            DatasetError: for a missing or corrupted file, or unreadable images to predict.
            ValueError: if ``val_size`` or ``batch_size`` leaves nothing to train on.
        """
        if self.predict_dir is not None and stage in {"predict", None}:
            self.images_to_predict  # noqa: B018 - read now
        if self._train is not None or self._predicts_folder:
            return
        self.prepare_data()
        assert self._folder is not None
        whole = read_train(self._folder)
        train, val = stratified_split(whole.labels, self.val_size, self.split_seed)
        self._train, self._val = _subset(whole, train), _subset(whole, val)
        self.test_set = read_test(self._folder)
        self._label_names = read_label_names(self._folder)
        if not self._statistics:
            self._statistics = statistics(self._train.images, self.normalization)
        self.train_dataloader()  # a batch size that leaves no batch is an error here

    @property
    def is_set_up(self) -> bool:
        """Whether the data set has been read."""
        return self._train is not None

    @property
    def label_names(self) -> list[str]:
        """The names of the classes, from the data or, to predict a folder, from a checkpoint."""
        if not self._label_names:
            raise DatasetError(
                "the names of the classes are not known: the checkpoint holds no state of a "
                "CIFAR10DataModule; take one of a run of this project (ckpt_path)"
            )
        return self._label_names

    @property
    def train_set(self) -> ImageSet:
        """The training split, once ``setup`` has run."""
        if self._train is None:
            raise DatasetError("call setup() first")
        return self._train

    @property
    def val_set(self) -> ImageSet:
        """The validation split, once ``setup`` has run; empty with ``val_size=0``."""
        self.train_set  # noqa: B018 - raises before setup
        return self._val

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leaves a batch alone that is on the device already, as all of `BatchSource` are."""
        tensors = batch if isinstance(batch, tuple | list) else [batch]
        if all(isinstance(t, Tensor) and t.device == device for t in tensors):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises the images of a batch on the device they are on.

        Args:
            batch: a tuple that starts with uint8 images ``(B, 3, 32, 32)``; anything else, as the
                model's ``example_input_array``, is left alone.
            dataloader_idx: not used.

        Returns:
            The batch with images of the same shape, float32 unless ``trainer.precision`` is one
            of the ``-true`` types.
        """
        if isinstance(batch, Tensor):
            return batch
        images, *rest = batch
        images = self.normalize(images)
        if self.trainer:  # where weights are of another type than float32, so must be the images
            images = self.trainer.precision_plugin.convert_input(images)
        return images, *rest

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises uint8 images ``(B, 3, 32, 32)`` to float32 with the training statistics."""
        if not self._statistics:
            raise DatasetError(
                "no statistics to normalise with: predict a folder with a checkpoint (ckpt_path)"
            )
        if self._statistics["mean"].device != images.device:
            self._statistics = {k: v.to(images.device) for k, v in self._statistics.items()}
        normalized = images.to(torch.float32).sub_(self._statistics["mean"])
        if "std" in self._statistics:
            normalized.div_(self._statistics["std"])
        return normalized

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to predict without the training data."""
        return {
            "normalization": self.normalization,
            "label_names": list(self.label_names),
            "statistics": {name: value.cpu() for name, value in self._statistics.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the statistics and class names of a checkpoint.

        Raises:
            ValueError: if the checkpoint's model was trained on another normalisation, or what it
                holds is nothing that this class writes.
        """
        if wrong := _malformed(state_dict):
            raise ValueError(
                f"the checkpoint's state of a CIFAR10DataModule {wrong}: it is damaged or not of "
                "this project, take another checkpoint"
            )
        trained_on = state_dict["normalization"]
        if trained_on != self.normalization:
            raise ValueError(
                f"the checkpoint was trained with normalization {trained_on}, but "
                f"{self.normalization} is asked for; set --data.normalization {trained_on}"
            )
        self._label_names = list(state_dict["label_names"])
        self._statistics = {k: v.float() for k, v in state_dict["statistics"].items()}

    # ---- batches ----------------------------------------------------------------------------

    def train_dataloader(self) -> BatchSource:
        """Shuffled training batches; the last one is left out if it is not full.

        With ``trainer.overfit_batches``, every epoch has the same.
        """
        source = self._source(self.train_set, self.batch_size, self.seed)
        source.repeats = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        return source

    def val_dataloader(self) -> BatchSource | list[BatchSource]:
        """Validation batches in their order; none with ``val_size=0``."""
        return self._source(self.val_set, self.eval_batch_size) if len(self._val.labels) else []

    def test_dataloader(self) -> BatchSource:
        """Test batches in their order."""
        return self._source(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> BatchSource:
        """Batches of the images to predict, without labels."""
        images = torch.from_numpy(self.images_to_predict.images)
        return BatchSource(images, batch_size=self.eval_batch_size)

    @property
    def images_to_predict(self) -> ImageSet:
        """The images of ``predict_dir`` (labels -1), else the test set."""
        if self.predict_dir is None:
            return self.test_set
        if self._predict_set is None:
            self._predict_set = read_images(Path(self.predict_dir).expanduser())
        return self._predict_set

    def _source(self, images: ImageSet, batch_size: int, seed: int | None = None) -> BatchSource:
        trainer = self.trainer
        pixels, labels = self._on_device(images)
        return BatchSource(
            pixels if seed is None else self._augmented(pixels, seed),
            labels,
            batch_size=batch_size,
            shuffle_seed=seed,
            drop_last=seed is not None,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def _on_device(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)
        return pixels.to(device), labels.to(device)

    def _augmented(self, images: Tensor, seed: int) -> Tensor | AugmentedImages:
        if not self.crop and self.flip == "none" and not self.cutout:
            return images
        mean = self._statistics["mean"].mean((1, 2), keepdim=True)
        fill = mean.round().to(images.device, torch.uint8)
        return AugmentedImages(images, self.crop, self.flip, self.cutout, fill, seed)

    def training_sample(self, count: int) -> Tensor:
        """The first training images, normalised but not augmented: float32 (count, 3, 32, 32)."""
        return self.normalize(torch.from_numpy(self.train_set.images[:count]))


_IMAGE, _CHANNEL = (3, _IMAGE_SIZE, _IMAGE_SIZE), (3, 1, 1)
# What `statistics` returns, by normalisation: names and shapes.
_SHAPES: dict[Any, dict[str, tuple[int, ...]]] = {
    "mean_image": {"mean": _IMAGE},
    "mean_image_std": {"mean": _IMAGE, "std": _CHANNEL},
    "channel": {"mean": _CHANNEL, "std": _CHANNEL},
    "imagenet": {"mean": _CHANNEL, "std": _CHANNEL},
}


def _malformed(state: Any) -> str:
    """What is wrong with a state that a checkpoint brings; empty if nothing is."""
    if not isinstance(state, dict):
        return f"is a {type(state).__name__}"
    for key in ("normalization", "label_names", "statistics"):
        if key not in state:
            return f"has no {key}"
    normalization, names, found = (
        state[key] for key in ("normalization", "label_names", "statistics")
    )
    if not isinstance(normalization, str) or normalization not in _SHAPES:
        return f"has the normalization {normalization!r:.40}"
    if not isinstance(names, list | tuple) or not names:
        return "has no list of label_names"
    for name in names:
        if not isinstance(name, str) or not name.isprintable():
            return f"has {name!r:.40} among its label_names"
    asked = _SHAPES[normalization]
    if not isinstance(found, dict) or found.keys() != asked.keys():
        return f"has no statistics {' and '.join(asked)}"
    for name, shape in asked.items():
        if not _is_plain(found[name]) or found[name].shape != shape:
            return f"has statistics whose {name} is no tensor of shape {shape}"
        if not found[name].isfinite().all() or (name == "std" and (found[name] <= 0).any()):
            return f"has statistics whose {name} is not finite, or not positive"
    return ""


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of floats, dense, whose numbers are there."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


def stratified_split(
    labels: np.ndarray[Any, np.dtype[np.int64]], val_size: int, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Splits indices into train and validation with equal class shares in both.

    Args:
        labels: int64 ``(N,)``.
        val_size: how many indices go to validation.
        seed: the seed of the choice.

    Returns:
        Sorted indices of the training and of the validation samples.

    Raises:
        ValueError: if ``val_size`` leaves no training samples.
    """
    total = len(labels)
    if not 0 <= val_size < total:
        raise ValueError(f"val_size must be 0 to {total - 1}, got {val_size}")
    order = np.random.default_rng(seed).permutation(total)
    # Sorted by class (stable), every class is one run; evenly spaced picks hit each in proportion.
    by_class = order[np.argsort(labels[order], kind="stable")]
    picks = ((np.arange(val_size) + 0.5) * total / max(val_size, 1)).astype(np.int64)
    val = by_class[picks]
    return np.setdiff1d(np.arange(total), val), np.sort(val)


def statistics(
    images: np.ndarray[Any, np.dtype[np.uint8]], normalization: Normalization
) -> dict[str, Tensor]:
    """Mean and, where the normalisation scales, standard deviation of uint8 images.

    Sums of uint8 are exact integers, so mean and variance are right to float64 rounding.

    Args:
        images: uint8 ``(N, 3, 32, 32)``.
        normalization: see `CIFAR10DataModule`.

    Returns:
        ``mean`` of shape (3, 32, 32) or (3, 1, 1), and perhaps ``std`` of shape (3, 1, 1); float32.
    """
    if normalization == "imagenet":
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in _IMAGENET)
        return {"mean": mean, "std": std}
    count = len(images)
    mean_image = images.sum(0, dtype=np.int64) / count
    channel_mean = mean_image.mean((1, 2), keepdims=True)
    mean = channel_mean if normalization == "channel" else mean_image
    result = {"mean": torch.from_numpy(mean).float()}
    if normalization != "mean_image":
        squares = np.zeros(mean_image.shape, dtype=np.int64)
        for chunk in np.array_split(images, max(1, count // 5000)):
            squares += np.square(chunk, dtype=np.int32).sum(0, dtype=np.int64)
        variance = (squares / count - 2 * mean * mean_image + mean**2).mean((1, 2), keepdims=True)
        result["std"] = torch.from_numpy(np.sqrt(variance)).float()
    return result


def _subset(images: ImageSet, indices: np.ndarray[Any, Any]) -> ImageSet:
    names = [images.names[i] for i in indices]
    return ImageSet(images.images[indices], images.labels[indices], names)


def _at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"data.{name} must be at least {minimum}, got {value}")
