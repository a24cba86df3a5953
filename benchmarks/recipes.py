"""Changes of the recipe of fast94 that were tried on validation: a network with their options.

    python cli.py fit --config configs/fast94.yaml --model benchmarks.recipes.Variant
        --data.val_size 5000 --trainer.max_steps 450 --trainer.check_val_every_n_epoch 5
        --trainer.precision 32-true --model.jitter 0.13

The results are in ``benchmarks/results/fast94_search.json``, and in docs/fast94.md.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from lightning_modules import FastCNN
from lightning_modules.fast_cnn import SIDES


class Variant(FastCNN):
    """FastCNN with other sizes of its images in training, and jitter.

    Args:
        sizes: ``[until, side, cropped]`` in turn: up to this fraction of training, images have this
            side in pixels, by interpolation, or as the centre of the image if ``cropped``. After
            the last, images have their full size. By default as in `FastCNN`.
        jitter: greatest change of an image's brightness, in units of the normalised pixels, and
            greatest relative change of its contrast; both are drawn evenly for each image.
        **kwargs: see `FastCNN`.
    """

    def __init__(
        self,
        sizes: list[tuple[float, int, bool]] | None = None,
        jitter: float = 0.0,
        **kwargs: Any,
    ) -> None:
        _check(sizes or [], jitter)
        self.sizes = sizes
        self.jitter = jitter
        super().__init__(**kwargs)

    def _size_at(self, progress: float, full: int) -> int:
        if self.sizes is None:
            return super()._size_at(progress, full)
        return self._stage(progress, full)[0]

    def _stage(self, progress: float, full: int) -> tuple[int, bool]:
        """The side of images, and whether it is cropped."""
        stages = ((side, cropped) for until, side, cropped in self.sizes or () if progress < until)
        return next(stages, (full, False))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the loss of a batch, a scalar, after the changes of its images."""
        images, labels = batch
        if self.jitter:
            images = _jittered(images, self.jitter)
        _, cropped = self._stage(self._progress(), images.shape[3])
        if cropped:
            images = center_crop(images, [self._size])
        return super().training_step((images, labels), batch_idx)


def _check(sizes: list[tuple[float, int, bool]], jitter: float) -> None:
    parts = [until for until, _, _ in sizes]
    if parts != sorted(set(parts)) or not all(0 < part <= 1 for part in parts):
        raise ValueError(f"model.sizes must have increasing parts of training, 0 to 1, got {parts}")
    if not all(side in SIDES for _, side, _ in sizes):
        raise ValueError(f"model.sizes must have sides of 16 to 32 pixels, got {sizes}")
    if not jitter >= 0:
        raise ValueError(f"model.jitter must not be negative, got {jitter}")


def _jittered(images: Tensor, jitter: float) -> Tensor:
    drawn = jitter * (2 * torch.rand(2, len(images), 1, 1, 1, device=images.device) - 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (1 + drawn[0]) + mean + drawn[1]
