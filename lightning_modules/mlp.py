"""The report's multi-layer perceptron (section 2), with the options in the report."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from custom_ops import LayerNorm
from lightning_modules.classifier import Classifier

Activation = Literal["elu", "relu", "tanh"]
Norm = Literal["none", "batch", "layer", "layer_native"]

IMAGE_SHAPE = (3, 32, 32)
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
_NORMS: dict[Norm, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm1d,
    "layer": LayerNorm,
    "layer_native": nn.LayerNorm,
}


class MLP(Classifier):
    """A multi-layer perceptron: (linear, normalisation, activation) per hidden layer, linear.

    The defaults are the report's: one hidden layer of 100 ELU units, every weight drawn from
    N(0, 1e-4^2), biases 0; 308,310 parameters.

    Args:
        hidden_units: width of each hidden layer; an empty list is logistic regression.
        activation: the function after every hidden linear layer.
        norm: the layer between linear layer and activation: none, batch normalisation, this
            project's `custom_ops.LayerNorm`, or ``torch.nn.LayerNorm`` (``layer_native``).
        weight_std: standard deviation of the initial weights; null for PyTorch's default.
        **kwargs: see `Classifier`.

    Raises:
        ValueError: for a width below 1, an unknown activation or norm, or a negative std.
    """

    def __init__(
        self,
        hidden_units: list[int] = [100],  # noqa: B006 - never changed; a CLI default must be a list
        activation: Activation = "elu",
        norm: Norm = "none",
        weight_std: float | None = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_hidden_units(hidden_units)
        widths = [int(np.prod(IMAGE_SHAPE)), *hidden_units]
        activate, normalize = _choose(_ACTIVATIONS, activation), _choose(_NORMS, norm)
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out))
            if normalize is not None:
                layers.append(normalize(fan_out))
            layers.append(activate())
        layers.append(nn.Linear(widths[-1], self.num_classes))
        self.layers = nn.Sequential(*layers)
        if weight_std is not None:
            _init_normal(self.layers, weight_std)

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``."""
        logits: Tensor = self.layers(images)
        return logits


def check_hidden_units(hidden_units: Sequence[int]) -> None:
    """Raises ValueError unless every hidden layer has at least one unit."""
    if any(width < 1 for width in hidden_units):
        raise ValueError(
            f"model.hidden_units must be positive widths, got {list(hidden_units)}; "
            "[] is a model without hidden layers"
        )


def _choose(options: dict[Any, Any], name: str) -> Any:
    if name not in options:
        raise ValueError(f"unknown option {name!r}, choose from {', '.join(options)}")
    return options[name]


def _init_normal(module: nn.Module, std: float) -> None:
    if std < 0:
        raise ValueError(f"model.weight_std must not be negative, got {std}")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
