"""The in-memory batch source: uint8 images in memory, and whole batches by index."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.files import DatasetError, ImageSet
from datamodules.transforms import AugmentedImages, Normalization, Normalizer

Batch = tuple[Tensor, ...]


class BatchSource:
    """Serves whole batches of tensors in memory, without a ``DataLoader``.

    A ``DataLoader`` fetches samples one by one and collates them. For CIFAR-10, this takes longer
    than the training step of an MLP; indexing a whole batch at once does not. The order is a
    function of only (seed, epoch), so it does not depend on earlier batches.

    Lightning sets the epoch by ``source.sampler.set_epoch(epoch)``, as for samplers of a
    ``DataLoader``.

    Args:
        tensors: tensors of one length N along their first axis on one device, for example images
            and labels; or augmented images.
        batch_size: samples in a batch, on each device.
        shuffle_seed: the seed of the order; ``None`` keeps the order of the tensors.
        drop_last: leave out the last batch if it is smaller than the others.
        rank: the index of this process; each process serves its own share.
        world_size: the number of processes that share the data.

    Attributes:
        repeats: whether every epoch has the order of the first one, with the same first batches.

    Raises:
        ValueError: if the lengths differ, ``batch_size`` is not positive, or no batch remains.
    """

    def __init__(
        self,
        *tensors: Tensor | AugmentedImages,
        batch_size: int,
        shuffle_seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"tensors must have one common length, got {sorted(lengths)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.repeats = False
        self.epoch = 0
        self._served = 0
        self._first = 0
        if drop_last and len(self) == 0:
            raise ValueError(
                f"batch_size must be at most {self._share()}, the training images that a process "
                f"has, got {batch_size}"
            )

    batch_sampler = None  # Lightning reads it from every source with a sampler

    @property
    def sampler(self) -> "BatchSource":
        """The source itself: Lightning calls ``set_epoch`` of the sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the order of the next iteration, and the augmentation of its images."""
        self.epoch = epoch
        for tensor in self.tensors:
            if isinstance(tensor, AugmentedImages):
                tensor.set_epoch(epoch)

    def _share(self) -> int:
        total = len(self.tensors[0])
        if self.drop_last:
            return total // self.world_size
        return len(range(self.rank, total, self.world_size))

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        full, rest = divmod(self._share(), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        """Yields one epoch of batches, or the rest of it after a restored state."""
        order = self._order()[self.rank :: self.world_size].to(self.tensors[-1].device)
        chunks = torch.split(order, self.batch_size)[: len(self)]
        self._served, self._first = self._first, 0
        for chunk in chunks[self._served :]:
            self._served += 1
            yield tuple(tensor[chunk] for tensor in self.tensors)

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch; Lightning keeps it in checkpoints."""
        return {"batches": self._served % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next iteration begin at the position of the state."""
        self._first = state_dict["batches"]

    def _order(self) -> Tensor:
        total = len(self.tensors[0])
        if self.shuffle_seed is None:
            return torch.arange(total)
        # NumPy's seed sequence mixes two numbers well; torch's generator takes only one.
        epoch = 0 if self.repeats else self.epoch
        generator = np.random.default_rng((self.shuffle_seed, epoch))
        return torch.from_numpy(generator.permutation(total))


class Splits(NamedTuple):
    """What a data set holds.

    Attributes:
        train: the images to train on.
        val: the images to validate on; None to split them off ``train``.
        test: the images to test on.
        label_names: the names of the classes, in the order of the labels.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    label_names: list[str]


class DeviceDataModule(LightningDataModule):
    """A data module that keeps its images on the trainer's device and normalises them there.

    Its batches are tuples that start with uint8 images.

    Args:
        normalization: see `CIFAR10DataModule`.
    """

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalizer = Normalizer(normalization)
        self._train: ImageSet | None = None
        self._val: ImageSet | None = None
        self._label_names: list[str] = []

    def take(self, train: ImageSet, val: ImageSet, label_names: list[str]) -> None:
        """Keeps the images and the names of the classes, and learns the statistics of training.

        Args:
            train: the images to train on.
            val: the images to validate on; may be empty.
            label_names: in the order of the labels.
        """
        self._train, self._val, self._label_names = train, val, label_names
        self.normalizer.learn(train.images)

    def fingerprint(self) -> str | None:
        """A hash of images and labels, if they are not verified files; after `setup`."""
        return None

    @property
    def is_set_up(self) -> bool:
        """Whether the data set has been read."""
        return self._train is not None

    def draws(self, part: Literal["val", "test"]) -> bool:
        """Whether images are drawn from a set that can change: then others may be drawn later.

        Args:
            part: the validation or the test images.
        """
        return False

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
        """The training split, after ``setup``."""
        if self._train is None:
            raise DatasetError("call setup() first")
        return self._train

    @property
    def val_set(self) -> ImageSet:
        """The validation split, after ``setup``; empty with ``val_size=0``."""
        if self._val is None:
            raise DatasetError("call setup() first")
        return self._val

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises uint8 images ``(B, 3, 32, 32)`` to float32 with the training statistics."""
        return self.normalizer(images)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, to predict without the training data."""
        return {**self.normalizer.state_dict(), "label_names": list(self.label_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the statistics and class names of a checkpoint.

        Raises:
            DatasetError: if the data was read and has other classes.
            ValueError: if the checkpoint's model was trained with another normalisation, or the
                state is malformed.
        """
        self.normalizer.load_state_dict(state_dict)
        known = list(state_dict["label_names"])
        if self.is_set_up:
            check_classes(known, self.label_names, "the data")
        self._label_names = known

    def training_sample(self, count: int) -> Tensor:
        """The first training images, normalised but not augmented: float32 (count, 3, 32, 32)."""
        return self.normalize(torch.from_numpy(self.train_set.images[:count]))

    def on_device(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Images, uint8, and labels on the trainer's device, or on the CPU without a trainer."""
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)
        return pixels.to(device), labels.to(device)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Returns a batch unchanged if it is on the device, as all batches of `BatchSource` are."""
        tensors = batch if isinstance(batch, tuple | list) else [batch]
        if all(isinstance(t, Tensor) and t.device == device for t in tensors):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises the images of a batch on the device they are on.

        Args:
            batch: a tuple that starts with uint8 images ``(B, 3, 32, 32)``; anything else, such as
                the model's ``example_input_array``, stays unchanged.
            dataloader_idx: not used.

        Returns:
            The batch with images of the same shape, float32 unless ``trainer.precision`` is one
            of the ``-true`` types.
        """
        if isinstance(batch, Tensor):
            return batch
        images, *rest = batch
        images = self.normalize(images)
        if self.trainer:  # if weights are not float32, images must have the type of the weights
            images = self.trainer.precision_plugin.convert_input(images)
        return images, *rest


def check_classes(known: Sequence[str], found: Sequence[str], place: object) -> None:
    """Refuses data whose classes, or their order, are not those that a model was trained on.

    Args:
        known: the classes of the model.
        found: the classes of the data.
        place: where the data is, for the message.

    Raises:
        DatasetError: naming both.
    """
    if [*known] != [*found]:
        theirs, ours = ", ".join(found), ", ".join(known)
        raise DatasetError(f"{place} has the classes {theirs}; the model knows {ours}")


def check_splits(found: object, place: str) -> Splits:
    """Refuses what a `read` returned if a model can't train on it.

    Args:
        found: what it returned.
        place: the name of the method, for the message.

    Raises:
        DatasetError: naming the part, its fault and what is expected.
    """
    if not isinstance(found, tuple) or len(found) != 4:  # as Splits
        raise DatasetError(
            f"{place} returns {type(found).__name__}: return Splits(train, val, test, label_names) "
            "of datamodules.batches"
        )
    splits = Splits(*found)
    if not isinstance(splits.label_names, list | tuple):
        raise DatasetError(f"{place} returns no list of label_names: {splits.label_names!r:.40}")
    for part, images in zip(("train", "val", "test"), splits, strict=False):
        is_optional = part == "val" and images is None
        if not is_optional and (fault := _fault(images, len(splits.label_names))):
            raise DatasetError(f"{place}: {part} {fault}")
    if not len(splits.train.images):
        raise DatasetError(f"{place}: train has no images")
    return splits


def _fault(images: Any, classes: int) -> str:
    """What is wrong with a set of images; empty if nothing is."""
    pixels, labels = getattr(images, "images", None), getattr(images, "labels", None)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, np.ndarray):
        return (
            "holds no NumPy arrays: make a datamodules.files.ImageSet of images, labels and names"
        )
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32):
        return f"has images {pixels.dtype} {pixels.shape}: expected uint8 (N, 3, 32, 32)"
    if labels.dtype != np.int64 or labels.shape != (len(pixels),):
        return f"has labels {labels.dtype} {labels.shape}: expected int64 ({len(pixels)},)"
    if len(images.names or ()) != len(pixels):
        return f"has {len(images.names or ())} names of {len(pixels)} images"
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        return f"has the label {wrong}: expected 0 to {classes - 1}, the places in label_names"
    return ""
