"""Convolution: formulas, `torch.autograd.Function`, functional form and module."""

from custom_ops.convolution.formula import Geometry
from custom_ops.convolution.function import Conv2dFunction, conv2d
from custom_ops.convolution.module import Conv2d

__all__ = ["Conv2d", "Conv2dFunction", "Geometry", "conv2d"]
