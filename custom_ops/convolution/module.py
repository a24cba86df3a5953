"""Convolution as a module."""

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F
from torch.overrides import has_torch_function

from custom_ops.convolution import kernels
from custom_ops.convolution.formula import Geometry
from custom_ops.convolution.function import conv2d
from custom_ops.convolution.pooled import conv2d_max_pool, is_fused
from custom_ops.torch_seam import transforms_active


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with the fast 3x3 convolution of this package: same arguments, state dict, repr.

    Where `kernels.suits` says so, `custom_ops.conv2d` computes it, by Winograd's algorithm on the
    CPU; elsewhere, PyTorch does. It is a subclass, so code that searches for `nn.Conv2d` finds it.

        Y_sopq = b_o + Σ_cuv K_ocuv X_{s, c, p + u - 1, q + v - 1}       (3x3, padding 1, stride 1)

    Shapes:
        X is (N, in_channels, H, W) and Y (N, out_channels, P, Q); weight is
        (out_channels, in_channels / groups, U, V), bias (out_channels,).

    Raises:
        RuntimeError, ValueError: by `forward`, if X does not fit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns Y."""
        if self._suits(input):
            return conv2d(input, self.weight, self.bias, padding=1)
        return super().forward(input)

    def max_pooled(self, input: Tensor) -> Tensor:
        """Returns the maxima of 2x2 squares of Y; if one kernel computes both, Y is not stored."""
        one = (1, 1)
        geometry = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if geometry == (one, one, one, 1, "zeros") and is_fused(input, self.weight):
            return conv2d_max_pool(input, self.weight, self.bias)
        return F.max_pool2d(self(input), 2)

    def __prepare_scriptable__(self) -> nn.Conv2d:
        """What TorchScript compiles instead: PyTorch's convolution, with the same parameters."""
        native = nn.Conv2d.__new__(nn.Conv2d)
        native.__dict__.update(self.__dict__)
        return native

    def _suits(self, x: Tensor) -> bool:
        # A model that is recorded, for a file or by `torch.fx`, must run without this project.
        recorded = torch.jit.is_tracing() or is_exporting()  # type: ignore[attr-defined, no-untyped-call]
        if recorded or transforms_active() or has_torch_function((x,)):
            return False
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        stride, padding, dilation = (
            (int(pair[0]), int(pair[1])) for pair in (self.stride, self.padding, self.dilation)
        )
        geometry = Geometry(stride, padding, dilation, self.groups)
        return kernels.suits(x, self.weight, geometry)
