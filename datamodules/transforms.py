"""Transforms of uint8 images in memory, a whole batch at once: normalise, crop, flip, cutout."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.files import DatasetError

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


Normalization = Literal["mean_image", "mean_image_std", "channel", "imagenet"]

_IMAGE_SIZE = 32
# Mean and standard deviation of red, green and blue for the weights of torchvision.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalizer:
    """Normalises uint8 images ``(B, 3, 32, 32)`` to float32.

    Args:
        kind: see `CIFAR10DataModule`.

    Attributes:
        statistics: by name, see `statistics`; empty before they are computed or loaded.
    """

    def __init__(self, kind: Normalization) -> None:
        self.kind = kind
        self.statistics: dict[str, Tensor] = {}

    def learn(self, images: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Computes the statistics of training images, unless they are known."""
        if not self.statistics:
            self.statistics = statistics(images, self.kind)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalises images on their device.

        Raises:
            DatasetError: if there are no statistics.
        """
        if not self.statistics:
            raise DatasetError(
                "no statistics to normalise with: predict a folder with a checkpoint (ckpt_path)"
            )
        if self.statistics["mean"].device != images.device:
            self.statistics = {k: v.to(images.device) for k, v in self.statistics.items()}
        normalized = images.to(torch.float32).sub_(self.statistics["mean"])
        if "std" in self.statistics:
            normalized.div_(self.statistics["std"])
        return normalized

    def mean_colour(self) -> Tensor:
        """The mean of each channel, uint8 ``(3, 1, 1)``."""
        return self.statistics["mean"].mean((1, 2), keepdim=True).round().to(torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, to normalise without the training images."""
        found = {name: value.cpu() for name, value in self.statistics.items()}
        return {"normalization": self.kind, "statistics": found}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the statistics of a checkpoint.

        Raises:
            ValueError: if the checkpoint's model was trained with another normalisation, or the
                state is malformed.
        """
        if wrong := _malformed(state_dict):
            raise ValueError(
                f"the checkpoint's state of a CIFAR10DataModule {wrong}: it is damaged or not of "
                "this project, take another checkpoint"
            )
        check_normalization(state_dict["normalization"], self.kind)
        self.statistics = {k: v.float() for k, v in state_dict["statistics"].items()}


def check_normalization(trained_on: str, asked: str) -> None:
    """Refuses images on another scale than a model was trained on.

    Raises:
        ValueError: naming the flag.
    """
    if trained_on != asked:
        raise ValueError(
            f"the checkpoint was trained with normalization {trained_on}, but {asked} is asked "
            f"for; set --data.normalization {trained_on}"
        )


def statistics(
    images: np.ndarray[Any, np.dtype[np.uint8]], normalization: Normalization
) -> dict[str, Tensor]:
    """Mean of uint8 images and, if the normalisation scales, their standard deviation.

    Sums of uint8 are exact integers, so mean and variance are exact up to float64 rounding.

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


_IMAGE, _CHANNEL = (3, _IMAGE_SIZE, _IMAGE_SIZE), (3, 1, 1)
# Names and shapes of the values of `statistics`, by normalisation.
_SHAPES: dict[Any, dict[str, tuple[int, ...]]] = {
    "mean_image": {"mean": _IMAGE},
    "mean_image_std": {"mean": _IMAGE, "std": _CHANNEL},
    "channel": {"mean": _CHANNEL, "std": _CHANNEL},
    "imagenet": {"mean": _CHANNEL, "std": _CHANNEL},
}


def _malformed(state: Any) -> str:
    """The problem of a checkpoint's state; empty if there is none."""
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
    """Whether a value is a dense tensor of floats with data."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized
