"""The mathematics by hand: layers, losses and layer normalisation with derived gradients.

`numpy_ops` states and derives every layer in NumPy; `functions` holds the same as
`torch.autograd.Function`s; `layer_norm` is layer normalisation. Knows NumPy and PyTorch only.
"""

from custom_ops import numpy_ops
from custom_ops.functions import (
    CrossEntropyFunction,
    ELUFunction,
    LinearFunction,
    SoftmaxCrossEntropyFunction,
    SoftmaxFunction,
    cross_entropy,
    elu,
    linear,
    softmax,
    softmax_cross_entropy,
)
from custom_ops.layer_norm import LayerNorm, LayerNormFunction, layer_norm

__all__ = [
    "CrossEntropyFunction",
    "ELUFunction",
    "LayerNorm",
    "LayerNormFunction",
    "LinearFunction",
    "SoftmaxCrossEntropyFunction",
    "SoftmaxFunction",
    "cross_entropy",
    "elu",
    "layer_norm",
    "linear",
    "numpy_ops",
    "softmax",
    "softmax_cross_entropy",
]
