"""The batch order of the course, and the evaluation that the report called a test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.batches import BatchSource
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.transforms import AugmentedImages

_EVALUATED = (100, 100)  # batches in an evaluation, and images in a batch

Indices = npt.NDArray[np.int64]


class CourseSampler:
    """Draws batches like ``next_batch`` of the course's ``cifar10_utils``.

    The first pass is in file order. If the rest of a pass is smaller than a batch, it is dropped,
    and a new pass begins in a new order.

    Args:
        images: number of images.
        seed: seed of NumPy's legacy generator, as ``np.random.seed`` in the course.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._random = np.random.RandomState(seed)
        self._order = np.arange(images)
        self._next = 0

    def next_batch(self, size: int) -> Indices:
        """Draws the indices of a batch.

        Raises:
            ValueError: if there are fewer images than the batch needs.
        """
        if size > len(self._order):
            raise ValueError(f"a batch of {size} out of {len(self._order)} images")
        if self._next + size > len(self._order):
            self._order = self._order[self._random.permutation(len(self._order))]
            self._next = 0
        self._next += size
        return self._order[self._next - size : self._next]


@dataclass(frozen=True)
class CourseOrder:
    """The images of training and evaluation in the report's script, as training indices.

    Attributes:
        trained: int64 ``(steps, batch_size)``.
        evaluated: int64 ``(evaluations, images)``, after every ``every`` steps.
        every: steps between evaluations.
    """

    trained: Indices
    evaluated: Indices
    every: int

    @classmethod
    def draw(cls, images: int, batch_size: int, steps: int, every: int, seed: int) -> "CourseOrder":
        """Replays the script: evaluations draw 100 batches of 100 from the training stream.

        Args:
            images: number of training images.
            batch_size: training images in a step.
            steps: training steps.
            every: steps between evaluations.
            seed: of the sampler.
        """
        sampler = CourseSampler(images, seed)
        trained, evaluated = [], []
        count, size = _EVALUATED
        for step in range(1, steps + 1):
            trained.append(sampler.next_batch(batch_size))
            if step % every == 0:
                evaluated.append(np.concatenate([sampler.next_batch(size) for _ in range(count)]))
        shape = (len(evaluated), count * size)
        return cls(np.stack(trained), np.array(evaluated, dtype=np.int64).reshape(shape), every)

    def seen(self) -> list[float]:
        """For each evaluation, the share of its images that were trained before."""
        return [
            float(np.isin(images, self.trained[: self.every * count]).mean())
            for count, images in enumerate(self.evaluated, 1)
        ]


class CourseStream(CIFAR10DataModule):
    """CIFAR-10 in the order of the course's script, with the evaluation of the report's CNN.

    The report's script for the CNN evaluates 100 batches of 100 images from the training stream,
    and calls the result accuracy on the test set. Here this accuracy is ``val/acc``. The network
    has been trained on more and more of these images (`CourseOrder.seen`). So nothing can be
    selected by
    it: ``val_size`` must be 0, and a fit keeps no best checkpoint. The test set is the official
    one.

    The order covers ``trainer.max_steps``, with an evaluation every ``trainer.val_check_interval``
    steps; without a trainer, the first pass and one evaluation.

    Args:
        **kwargs: see `CIFAR10DataModule`.

    Raises:
        ValueError: for a validation split or augmentation, which the course's script lacks; for an
            interval that isn't a number of steps; or for several processes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.val_size:
            raise ValueError(
                "CourseStream evaluates on images that it trains on, nothing can be held out: "
                f"set data.val_size to 0, got {self.val_size}"
            )
        if self.crop or self.cutout or self.flip != "none":
            raise ValueError("CourseStream does not augment: leave data.crop, flip and cutout out")

    def order(self) -> CourseOrder:
        """The indices of the whole fit."""
        images, trainer = len(self.train_set.labels), self.trainer
        steps = every = images // self.batch_size
        if trainer is not None:
            if trainer.world_size > 1:
                raise ValueError("CourseStream is one stream: run it with --trainer.devices 1")
            steps = trainer.max_steps if trainer.max_steps > 0 else steps
            interval = trainer.val_check_interval
            if not isinstance(interval, int):
                raise ValueError(f"trainer.val_check_interval must be in steps, got {interval}")
            every = interval
        return CourseOrder.draw(images, self.batch_size, steps, every, self.seed)

    def train_dataloader(self) -> BatchSource:
        """Training batches in the course's order, all steps of the fit in one epoch."""
        order = self.order().trained
        return self._ordered(order.ravel, order.size, self.batch_size)

    def val_dataloader(self) -> BatchSource:
        """The training images of the next evaluation, from the stream."""
        order = self.order()
        if not len(order.evaluated):
            raise ValueError("trainer.val_check_interval is more than trainer.max_steps")

        def images_of_evaluation() -> Indices:
            done = self.trainer.global_step if self.trainer else 0
            images: Indices = order.evaluated[done // order.every - 1]  # step 0: the last one
            return images

        return self._ordered(images_of_evaluation, order.evaluated.shape[1], self.eval_batch_size)

    def _ordered(self, order: Callable[[], Indices], length: int, batch_size: int) -> BatchSource:
        images, labels = self.on_device(self.train_set)
        return _OrderedSource(images, labels, order=order, length=length, batch_size=batch_size)


class _OrderedSource(BatchSource):
    """Batches in an order that may name an image twice or not at all."""

    def __init__(
        self,
        *tensors: Tensor | AugmentedImages,
        order: Callable[[], Indices],
        length: int,
        batch_size: int,
    ) -> None:
        self._indices = order
        self._length = length
        super().__init__(*tensors, batch_size=batch_size)

    def _share(self) -> int:
        return self._length

    def _order(self) -> Tensor:
        return torch.from_numpy(self._indices())
