"""The operators of the fused batch normalisation, and the rule that says where they are used.

``torch.ops.custom_ops.batch_norm_gelu`` and ``..._backward`` are dispatcher operators without
derivatives; `function` defines the derivatives, and `formula` what they compute.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from custom_ops.batch_norm import formula
from custom_ops.operators import Kernels, load_on_cpu
from custom_ops.pooling import max_pool, unpool

_LIBRARY: Any = torch.library.Library("custom_ops", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "batch_norm_gelu(Tensor x, Tensor? weight, Tensor? bias, float eps, bool pool)"
    " -> (Tensor y, Tensor pooled, Tensor places, Tensor statistics)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "batch_norm_gelu_backward(Tensor dy, Tensor x, Tensor pooled, Tensor places, Tensor? weight,"
    " Tensor? bias, Tensor statistics) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
DTYPES = (torch.float32, torch.bfloat16)  # of the kernels
_NHWC = torch.channels_last


def suits(x: Tensor, pool: bool) -> bool:
    """Whether the kernels can compute this.

    Args:
        x: X, (N, C, H, W).
        pool: whether to take the maxima of 2x2 squares first.
    """
    side = 2 if pool else 1
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.ndim == 4
        and x.shape[1] > 0
        and len(x) * (x.shape[2] // side) * (x.shape[3] // side) > 1  # or PyTorch refuses it
        and x.is_contiguous(memory_format=_NHWC)
        and KERNELS.found_for("cpu")
    )


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator without a kernel.

    Args:
        x: X, (N, C, H, W).
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        eps: added to the variance.
        pool: whether to take the maxima of 2x2 squares first.

    Returns:
        Y in the dtype of X, channels-last; P and, as uint8, the places of its pixels in their
        squares, row by row from 0 to 3, both of shape (0,) without pooling; and mean, var (biased)
        and r of each channel, (3, C), at least float32.
    """
    y, statistics = formula.forward(x, weight, bias, eps, pool)
    pooled, places = x.new_empty(0), x.new_empty(0, dtype=torch.uint8)
    if pool:
        pooled, places = max_pool(x)
    return y.contiguous(memory_format=_NHWC), pooled, places, statistics


def backward(
    dy: Tensor,
    x: Tensor,
    pooled: Tensor,
    places: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator without a kernel: computes the gradients of `forward`.

    Args:
        dy: dL/dY, in the shape of Y.
        x: X, as given to `forward`.
        pooled: as returned by `forward`.
        places: as returned by `forward`.
        weight: as given to `forward`.
        bias: as given to `forward`.
        statistics: as returned by `forward`.

    Returns:
        dL/dX in the shape and dtype of X, channels-last; dL/dgamma and dL/dbeta, (C,), in the dtype
        of `statistics`.
    """
    mean, _, rstd = statistics
    pool = places.numel() > 0
    p = (pooled if pool else x).to(mean.dtype)
    x_hat = (p - formula.over_pixels(mean)) * formula.over_pixels(rstd)
    dp, dweight, dbias = formula.gradients(dy, x_hat, rstd, weight, bias)
    dx = unpool(dp, places, x.shape) if pool else dp
    return dx.to(x.dtype).contiguous(memory_format=_NHWC), dweight, dbias


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    y = x.new_empty((n, c, h // 2, w // 2) if pool else x.shape).to(memory_format=_NHWC)
    pooled = torch.empty_like(y) if pool else x.new_empty(0)
    statistics = x.new_empty((3, c), dtype=torch.promote_types(x.dtype, torch.float32))
    return y, pooled, torch.empty_like(pooled, dtype=torch.uint8), statistics


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    pooled: Tensor,
    places: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=_NHWC)
    return dx, statistics.new_empty(x.shape[1]), statistics.new_empty(x.shape[1])


KERNELS = Kernels(functools.partial(load_on_cpu, "batch_norm"))
KERNELS.register(_LIBRARY, "batch_norm_gelu", forward, _fake_forward)
KERNELS.register(_LIBRARY, "batch_norm_gelu_backward", backward, _fake_backward)
