"""The in-memory batch source: uint8 images in memory, and whole batches by index."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.augment import AugmentedImages
from datamodules.files import ImageSet

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


class DeviceDataModule(LightningDataModule, ABC):
    """A data module that keeps its images on the trainer's device and normalises them there.

    Its batches are tuples that start with images, of a type for `normalize`.
    """

    @abstractmethod
    def normalize(self, images: Tensor) -> Tensor:
        """Converts the images of a batch to the float32 input of a network."""

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
