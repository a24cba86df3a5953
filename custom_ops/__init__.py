"""The mathematics by hand: layers, losses and layer normalisation with derived gradients.

`numpy_ops` derives every layer in NumPy; `functions` has the same layers as
`torch.autograd.Function`s; `convolution` and `layer_norm` have their own derivations. This package
uses only NumPy and PyTorch.
"""

from custom_ops import numpy_ops
from custom_ops.batch_norm import BatchNormGELUFunction, batch_norm_gelu
from custom_ops.convolution import (
    Conv2d,
    Conv2dFunction,
    PooledConv2dFunction,
    conv2d,
    conv2d_max_pool,
)
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
    "BatchNormGELUFunction",
    "Conv2d",
    "Conv2dFunction",
    "CrossEntropyFunction",
    "ELUFunction",
    "LayerNorm",
    "LayerNormFunction",
    "LinearFunction",
    "PooledConv2dFunction",
    "SoftmaxCrossEntropyFunction",
    "SoftmaxFunction",
    "batch_norm_gelu",
    "conv2d",
    "conv2d_max_pool",
    "cross_entropy",
    "elu",
    "layer_norm",
    "linear",
    "numpy_ops",
    "softmax",
    "softmax_cross_entropy",
]
