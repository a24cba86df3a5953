"""Convolution: formulas, `torch.autograd.Function`s, functional forms and module."""

from custom_ops.convolution.formula import Geometry
from custom_ops.convolution.function import Conv2dFunction, conv2d
from custom_ops.convolution.module import Conv2d
from custom_ops.convolution.pooled import PooledConv2dFunction, conv2d_max_pool

__all__ = [
    "Conv2d",
    "Conv2dFunction",
    "Geometry",
    "PooledConv2dFunction",
    "conv2d",
    "conv2d_max_pool",
]
