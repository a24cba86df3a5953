"""Normalisation of uint8 images on the device, with statistics of the training images."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.files import DatasetError

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
        trained_on = state_dict["normalization"]
        if trained_on != self.kind:
            raise ValueError(
                f"the checkpoint was trained with normalization {trained_on}, but "
                f"{self.kind} is asked for; set --data.normalization {trained_on}"
            )
        self.statistics = {k: v.float() for k, v in state_dict["statistics"].items()}


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
