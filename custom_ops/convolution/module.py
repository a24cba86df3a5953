"""Convolution as a module."""

from torch import Tensor, nn

from custom_ops.convolution import kernels
from custom_ops.convolution.formula import Geometry
from custom_ops.convolution.function import conv2d


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
        if self._is_plain() and kernels.suits(input, self.weight, self._geometry()):
            return conv2d(input, self.weight, self.bias, padding=1)
        return super().forward(input)

    def _is_plain(self) -> bool:
        return self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def _geometry(self) -> Geometry:
        stride, dilation = self.stride, self.dilation
        padding = (int(self.padding[0]), int(self.padding[1]))
        return Geometry((stride[0], stride[1]), padding, (dilation[0], dilation[1]), self.groups)
