"""Augmentation of uint8 images in memory: crop, flip and cutout of a whole batch at once."""

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Flip = Literal["none", "random", "alternating"]


class AugmentedImages:
    """Images that are augmented when a batch is indexed.

    The augmentation of an image is a function of only (seed, epoch, index). It does not depend on
    the batch size, the number of processes or earlier random numbers.

    Args:
        images: uint8 ``(N, C, S, S)``, on any device; augmented there.
        crop: largest shift in pixels, up, down, left and right; the new pixels are a reflection
            at the border.
        flip: mirror images left to right. ``random``: each image with probability 1/2 in every
            epoch. ``alternating``: half of the images in the first epoch and then, in turn, the
            others [1]_, so that two epochs show every image both ways. Or ``none``.
        cutout: side in pixels of a square that is painted over in every image [2]_; its centre is
            anywhere in the image. 0 for none.
        fill: the colour of this square, uint8 ``(C, 1, 1)``, usually the mean; black by default.
        seed: at least 0.

    Raises:
        ValueError: if a size is out of range or the flip unknown.

    .. [1] K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, arXiv:2404.00498.
    .. [2] T. DeVries, G. Taylor, Improved Regularization of Convolutional Neural Networks with
       Cutout, 2017, arXiv:1708.04552.
    """

    def __init__(
        self,
        images: Tensor,
        crop: int = 0,
        flip: Flip = "none",
        cutout: int = 0,
        fill: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.size = images.shape[-1]
        check_augmentation(crop, flip, cutout, self.size)
        self.crop = crop
        self.flip = flip
        self.cutout = cutout
        self.fill = images.new_zeros(1) if fill is None else fill
        self.seed = seed
        self.images = images
        self.device = images.device
        self.set_epoch(0)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Draws the augmentation of the images of an epoch."""
        rng = np.random.default_rng((self.seed, epoch, 1))  # the order has another generator
        count = len(self)
        shifts = rng.integers(0, 2 * self.crop + 1, (2, count))
        self._shifts = torch.from_numpy(shifts).to(self.device)
        mirrored = rng.random(count) < 0.5
        if self.flip == "alternating":
            first = np.random.default_rng((self.seed, 2)).random(count) < 0.5
            mirrored = first ^ bool(epoch % 2)
        self._mirrored = torch.from_numpy(mirrored).to(self.device)
        self._centres = torch.from_numpy(rng.integers(0, self.size, (2, count))).to(self.device)

    @functools.cached_property
    def _windows(self) -> Tensor:
        """All crops, (N, C, shift down, shift right, S, S): a view of the padded images."""
        padding = [self.crop] * 4
        padded = F.pad(self.images, padding, mode="reflect") if self.crop else self.images
        return padded.unfold(2, self.size, 1).unfold(3, self.size, 1)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Augments the images of a batch.

        Args:
            indices: int64 ``(B,)``, on the device of the images.

        Returns:
            uint8 ``(B, C, S, S)``, contiguous.
        """
        down, right = self._shifts[:, indices]
        images: Tensor = self._windows[indices, :, down, right]
        if self.flip != "none":
            mirrored = self._mirrored[indices][:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        if self.cutout:
            images = torch.where(self._inside(indices), self.fill, images)
        return images

    def _inside(self, indices: Tensor) -> Tensor:
        """The squares to paint over, bool (B, 1, S, S)."""
        start = self._centres[:, indices, None] - self.cutout // 2  # (2, B, 1)
        position = torch.arange(self.size, device=self.device)
        rows, columns = (position >= start) & (position < start + self.cutout)
        inside: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
        return inside


def check_augmentation(crop: int, flip: str, cutout: int, size: int = 32) -> None:
    """Raises ValueError if a setting is invalid for images of ``size`` x ``size`` pixels."""
    if not 0 <= crop < size:
        raise ValueError(f"data.crop must be 0 to {size - 1} pixels, got {crop}")
    if flip not in {"none", "random", "alternating"}:
        raise ValueError(f"data.flip must be none, random or alternating, got {flip}")
    if not 0 <= cutout <= size:
        raise ValueError(f"data.cutout must be 0 to {size} pixels, got {cutout}")
