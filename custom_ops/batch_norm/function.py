"""Pooling, batch normalisation and GELU as a `torch.autograd.Function`, and functional."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from custom_ops.batch_norm import formula, kernels
from custom_ops.functions import Context, is_eager
from custom_ops.pooling import unpool
from custom_ops.torch_seam import transforming

# Looked up only once.
_forward = torch.ops.custom_ops.batch_norm_gelu.default
_backward = torch.ops.custom_ops.batch_norm_gelu_backward.default

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


class BatchNormGELUFunction(Function):
    """Y = GELU(gamma X̂ + beta) of images or of their 2x2 maxima, as `formula` derives.

    In reverse mode, derivatives of every order are right; `batch_norm_gelu` handles forward mode
    and the transforms of `torch.func`.
    """

    @staticmethod
    def forward(
        ctx: "_Context",
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        pool: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns Y, and mean, var (biased) and r of each channel, (3, C), without derivatives.

        Args:
            ctx: context of the call.
            x: X, (N, C, H, W), of any floating dtype.
            weight: gamma, (C,), or None for 1.
            bias: beta, (C,), or None for 0.
            eps: added to the variance.
            pool: whether to take the maxima of 2x2 squares first.
        """
        compute = _forward if x.dtype in kernels.DTYPES else kernels.forward
        y, pooled, places, statistics = compute(x, weight, bias, eps, pool)
        saved: tuple[Any, ...] = (x, pooled, places, weight, bias, statistics)
        ctx.save_for_backward(*saved)
        ctx.eps = eps
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: "_Context", dy: Tensor, _: Tensor) -> _Gradients:
        """Returns dL/dX, dL/dgamma and dL/dbeta."""
        x, pooled, places, weight, bias, statistics = ctx.saved_tensors
        if torch.is_grad_enabled() or transforming():  # create_graph, or a transform of backward
            dx, dweight, dbias = _differentiable_gradients(dy, x, places, weight, bias, ctx.eps)
        else:
            compute = _backward if x.dtype in kernels.DTYPES else kernels.backward
            dx, dweight, dbias = compute(dy, x, pooled, places, weight, bias, statistics)
        needs = ctx.needs_input_grad
        return (
            dx if needs[0] else None,
            dweight.to(weight.dtype) if weight is not None and needs[1] else None,
            dbias.to(bias.dtype) if bias is not None and needs[2] else None,
            None,
            None,
        )


class _Context(Context):
    eps: float


def _differentiable_gradients(
    dy: Tensor, x: Tensor, places: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as functions of dL/dY, X, gamma and beta, not of saved statistics."""
    pool = places.numel() > 0
    x_hat, statistics = formula.standardise(F.max_pool2d(x, 2) if pool else x, eps)
    dp, dweight, dbias = formula.gradients(dy, x_hat, statistics[2], weight, bias)
    dx = unpool(dp, places, x.shape) if pool else dp
    return dx.to(x.dtype), dweight, dbias


def _are_of(x: Tensor, tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether PyTorch takes these statistics and parameters; it refuses others."""
    given = [t for t in tensors if t is not None]
    return (tensors[0] is None) == (tensors[1] is None) and all(
        t.shape == x.shape[1:2] and t.device == x.device and t.dtype in (torch.float32, x.dtype)
        for t in given
    )


def batch_norm_gelu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    pool: bool = False,
) -> Tensor:
    """Computes ``gelu(batch_norm(x, ...))``, or ``gelu(batch_norm(max_pool2d(x, 2), ...))``.

    The arguments are those of `torch.nn.functional.batch_norm`. In training on the CPU, for
    channels-last images, fused kernels compute it in fewer passes over memory. Elsewhere, and
    where a graph is recorded or transformed, PyTorch's operators do.

    Args:
        x: images, (N, C, H, W), of any floating dtype; half types are computed in float32.
        running_mean: (C,), updated in training, used otherwise; or None.
        running_var: (C,), in the same way, by the unbiased variance.
        weight: scale, (C,), or None for 1.
        bias: shift, (C,), or None for 0.
        training: whether to normalise with the statistics of this batch.
        momentum: the share of this batch in the running statistics.
        eps: added to the variance.
        pool: whether to take the maxima of 2x2 squares first; an odd last row or column is left
            out.

    Returns:
        Activations in the dtype of x, (N, C, H, W), or (N, C, H // 2, W // 2) with pooling.

    Raises:
        RuntimeError, ValueError: the shapes do not fit, or a channel has a single pixel.
    """
    fits = eps > 0 and _are_of(x, (running_mean, running_var, weight, bias))
    if not (training and fits and is_eager(x) and kernels.suits(x, pool)):
        x = F.max_pool2d(x, 2) if pool else x
        normalised = F.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )
        return F.gelu(normalised)
    outputs: tuple[Tensor, Tensor] = BatchNormGELUFunction.apply(x, weight, bias, eps, pool)
    y, statistics = outputs
    if running_mean is not None and running_var is not None:
        mean, variance, _ = statistics
        pixels = y.numel() // y.shape[1]
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (pixels / (pixels - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return y
