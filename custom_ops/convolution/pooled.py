"""A 3x3 convolution and the maxima of its 2x2 squares, as a `torch.autograd.Function`."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from custom_ops.convolution import kernels
from custom_ops.functions import Context, alike, is_eager
from custom_ops.pooling import unpool
from custom_ops.torch_seam import transforming

# Looked up only once.
_forward = torch.ops.custom_ops.winograd_pool.default
_backward = torch.ops.custom_ops.winograd_pool_backward.default


class PooledConv2dFunction(Function):
    """P_m = max of the square m of Y, the convolution of X with g, with padding 1.

    A tile of `winograd` is a square. So Y is never written to memory. dL/dY is 0 except at the
    maxima; only these are read. Tiles that make no square are left out: 15 of 64 tiles of an image
    of 15 x 15 pixels.

    In reverse mode, derivatives of every order are right; `conv2d_max_pool` handles forward mode
    and the transforms of `torch.func`.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns P.

        Args:
            ctx: context of the call.
            x: X, (N, C, H, W), in float32 or bfloat16.
            weight: g, (K, C, 3, 3), of the dtype of X.
            bias: (K,), of the dtype of X, or None.
        """
        y, places = _forward(x, weight, bias)
        ctx.save_for_backward(x, weight, places)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX, dL/dg and the gradient of the bias."""
        x, weight, places = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforming():  # create_graph, or a transform of backward
            whole = unpool(dy, places, x.shape)
            dx, dweight = kernels.native_gradients(whole, x, weight, [*needs[:2]])
        else:
            dx, dweight = _backward(dy, places, x, weight, [*needs[:2]])
        dbias = dy.sum((0, 2, 3)) if needs[2] else None
        return dx if needs[0] else None, dweight if needs[1] else None, dbias


def conv2d_max_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``max_pool2d(conv2d(x, weight, bias, padding=1), 2)``, also under autocast.

    On the CPU, one kernel computes both, where `kernels.suits_pooled` says so.
    Elsewhere, and where a graph is recorded or transformed, PyTorch's operators do.

    Args:
        x: X, (N, C, H, W), of any floating dtype.
        weight: g, (K, C, 3, 3).
        bias: (K,), or None.

    Returns:
        The maxima of 2x2 squares, (N, K, H // 2, W // 2); an odd last row or column is left out.

    Raises:
        RuntimeError, ValueError: the shapes do not fit.
        TypeError: the tensors are not of one real floating dtype on one device.
    """
    if not is_fused(x, weight):
        return F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    tensors = alike("conv2d_max_pool", x, weight, bias)
    return PooledConv2dFunction.apply(*tensors)  # type: ignore[no-any-return]


def is_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv2d_max_pool` computes this call by one kernel."""
    return is_eager(x) and kernels.suits_pooled(x, weight)
