"""Exercises: forward and backward of each operator, by hand. Fill in what raises.

    python -m custom_ops.check --write my_ops.py    # a copy of this file to work in
    python -m custom_ops.check my_ops.py            # what is right, and which term is wrong

S samples (rows), M inputs, N outputs, C classes. ``dout`` is dL/dY: the gradient of the loss with
respect to the output, in the shape of the output. Leave out what you do not want checked.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import Function

Array = npt.NDArray[np.floating[Any]]


class LinearModule:
    """Y = X Wᵀ + b, with X (S, M), W (N, M), b (N,)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        self.params: dict[str, Array] = {
            "weight": np.zeros((out_features, in_features)),
            "bias": np.zeros(out_features),
        }
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array) -> Array:
        """Returns Y, (S, N)."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Sets grads["weight"] (N, M) and grads["bias"] (N,); returns dL/dX, (S, M)."""
        raise NotImplementedError


class ELUModule:
    """Y = X where X > 0, e^X - 1 elsewhere."""

    def forward(self, x: Array) -> Array:
        """Returns Y in the shape of X."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX in the shape of X."""
        raise NotImplementedError


class SoftMaxModule:
    """Y_sc = e^{X_sc} / Σ_k e^{X_sk}."""

    def forward(self, x: Array) -> Array:
        """Returns Y, (S, C); finite for large X, too."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX, (S, C)."""
        raise NotImplementedError


class CrossEntropyModule:
    """L = -1/S Σ_sc T_sc log P_sc, with probabilities P and one-hot T, both (S, C)."""

    def forward(self, p: Array, t: Array) -> float:
        """Returns L."""
        raise NotImplementedError

    def backward(self, p: Array, t: Array) -> Array:
        """Returns dL/dP, (S, C)."""
        raise NotImplementedError


class LayerNormModule:
    """Y = gamma ∘ X̂ + beta, X̂ = (X - mu) / √(sigma² + eps), mu and sigma² of each row of X."""

    def __init__(self, features: int, eps: float) -> None:
        self.eps = eps
        self.params: dict[str, Array] = {"weight": np.ones(features), "bias": np.zeros(features)}
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array) -> Array:
        """Returns Y, (S, M)."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Sets grads["weight"], of gamma, and grads["bias"], of beta; returns dL/dX, (S, M)."""
        raise NotImplementedError


class LayerNormFunction(Function):
    """The same for PyTorch: ``LayerNormFunction.apply(x, gamma, beta, eps)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        """Returns Y; ``ctx.save_for_backward(...)`` keeps tensors for `backward`."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Returns dL/dX, dL/dgamma, dL/dbeta, and None for eps."""
        raise NotImplementedError


class Conv2dModule:
    """Y_sopq = b_o + Σ_cuv W_ocuv X_{s, c, tp + u - z, tq + v - z}, the kernel is not flipped.

    X is (S, C, height, width), W (O, C, U, U), b (O,), Y (S, O, P, Q). t is the stride, and X is 0
    in the z pixels around the image.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        self.stride, self.padding = stride, padding
        self.params: dict[str, Array] = {
            "weight": np.zeros((out_channels, in_channels, kernel_size, kernel_size)),
            "bias": np.zeros(out_channels),
        }
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array) -> Array:
        """Returns Y, (S, O, P, Q)."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:
        """Sets grads["weight"] and grads["bias"]; returns dL/dX, (S, C, height, width)."""
        raise NotImplementedError


class Conv2dFunction(Function):
    """The same for PyTorch: ``Conv2dFunction.apply(x, weight, bias, stride, padding)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        """Returns Y; ``ctx.stride = stride`` keeps a number for `backward`."""
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Returns dL/dX, dL/dW, dL/db, and None for stride and padding."""
        raise NotImplementedError


_ = torch  # you will need it
