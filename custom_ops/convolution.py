"""Two-dimensional convolution as a `torch.autograd.Function` with hand-derived gradients.

For X (S, C, H, W), a weight K (O, C, U, V) and a bias b (O,),

    Y_sopq = b_o + Σ_cuv K_ocuv X_{s, c, i(p, u), j(q, v)}

where i(p, u) = stride p + dilation u - padding is the row of the image under row u of the kernel at
position p, counted from 0. j(q, v) is the column, defined in the same way. X outside the image is
0. As in every deep learning library, this is a cross-correlation: the kernel isn't flipped.

**As a matrix product.** `unfold` writes the elements under the kernel at (p, q) into a column,

    A_{s, cuv, pq} = X_{s, c, i(p, u), j(q, v)},

so that Y_s = K A_s + b with K as a matrix of O rows and C U V columns.

**Gradients.** Y is linear in each of b, K and A, with ∂Y_sopq/∂b_o = 1,
∂Y_sopq/∂K_ocuv = A_{s, cuv, pq} and ∂Y_sopq/∂A_{s, cuv, pq} = K_ocuv. The chain rule sums over
all elements of Y that depend on one of them:

    dL/db_o = Σ_spq dL/dY_sopq
    dL/dK_ocuv = Σ_spq dL/dY_sopq A_{s, cuv, pq}          dL/dK = Σ_s dL/dY_s A_sᵀ
    dL/dA_{s, cuv, pq} = Σ_o K_ocuv dL/dY_sopq            dL/dA_s = Kᵀ dL/dY_s

An element X_scij occurs in A once for every (u, p) and (v, q) that reach it. So its gradient is the
sum over these positions. `fold`, the transpose of `unfold`, computes it:

    dL/dX_scij = Σ_{u, p: i(p, u) = i} Σ_{v, q: j(q, v) = j} dL/dA_{s, cuv, pq}

Together with Kᵀ this is the transposed convolution. For one 3 x 3 image and a 2 x 2 kernel, counted
from 1, examples of these sums are

    Y_21 = K_11 X_21 + K_12 X_22 + K_21 X_31 + K_22 X_32
    dL/dK_11 = dL/dY_11 X_11 + dL/dY_12 X_12 + dL/dY_21 X_21 + dL/dY_22 X_22
    dL/dX_12 = dL/dY_11 K_12 + dL/dY_12 K_11.

**Padding "same".** Y is as large as X for stride 1 if dilation (U - 1) rows of zeros are added, and
columns in the same way. Half of them are the padding above; if their number is odd, one more is
below the image, and to its right. The zeros do not depend on X, so dL/dX is the gradient of the
padded image without the zeros.

**Groups.** With G groups, the channels of X and Y are divided into G blocks. Each block is a
separate convolution with its O/G rows of K.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), chapter 4.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from custom_ops.functions import (
    Context,
    DerivedFunction,
    alike,
    apply,
    narrow,
    overridable,
    save,
    wide,
)
from custom_ops.torch_seam import unsafe_view

_Pair = tuple[int, int]


@dataclass(frozen=True)  # not a tuple, which torch.vmap would treat as several inputs
class Geometry:
    """The positions of the kernel on the image, with (height, width) for each value."""

    stride: _Pair = (1, 1)
    padding: _Pair = (0, 0)
    dilation: _Pair = (1, 1)
    groups: int = 1
    extra: _Pair = (0, 0)  # zeros below and to the right, besides the padding

    def output_size(self, image: torch.Size, kernel: torch.Size) -> list[int]:
        """Size of the output: the number of positions of the kernel on the padded image."""
        return [
            (size + 2 * padding + extra - dilation * (width - 1) - 1) // stride + 1
            for size, width, stride, padding, extra, dilation in zip(
                image[-2:],
                kernel[-2:],
                self.stride,
                self.padding,
                self.extra,
                self.dilation,
                strict=True,
            )
        ]


class Conv2dFunction(DerivedFunction):
    """Y_s = K A_s + b for X (S, C, H, W), unfolded to A, K (O, C/G, U, V) and b (O,) or None.

    Backward: dL/dX = fold(Kᵀ dL/dY), dL/dK = Σ_s dL/dY_s A_sᵀ and dL/db = Σ_spq dL/dY_sopq.
    Forward mode: dY = K dA + dK A + db. Derived at the top of this file.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Returns Y, (S, O, P, Q)."""
        y = _matrix(weight, geometry) @ _unfold(x, weight, geometry)
        size = geometry.output_size(x.shape, weight.shape)
        y = unsafe_view(y.contiguous(), [len(x), len(weight), *size])
        return narrow(y if bias is None else y + bias[:, None, None], x)

    @staticmethod
    def setup_context(ctx: "_Context", inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves X, K and the geometry, but not A, which is up to U V times as large as X."""
        x, weight, _, ctx.geometry = inputs
        save(ctx, x, weight)

    @staticmethod
    def backward(ctx: "_Context", dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX, dL/dK and dL/db."""
        x, weight = ctx.saved_tensors
        matrix = _matrix(weight, ctx.geometry)
        rows = wide(dout).reshape(len(x), *matrix.shape[:2], dout.shape[-2:].numel())
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = narrow(_fold(matrix.mT @ rows, x.shape, weight, ctx.geometry), x)
        if ctx.needs_input_grad[1]:
            columns = _unfold(x, weight, ctx.geometry)
            dmatrix = _samples_last(rows) @ _samples_last(columns).mT
            dweight = narrow(dmatrix.reshape(weight.shape), weight)
        if ctx.needs_input_grad[2]:
            dbias = dout.sum((0, 2, 3))
        return dx, dweight, dbias, None

    @staticmethod
    def tangent(
        ctx: "_Context",
        saved: tuple[Any, ...],
        dx: Tensor,
        dweight: Tensor,
        dbias: Tensor | None,
        *_: None,
    ) -> Tensor:
        """Returns dY."""
        x, weight = saved
        convolve = Conv2dFunction.forward
        return convolve(dx, weight, dbias, ctx.geometry) + convolve(x, dweight, None, ctx.geometry)


class _Context(Context):
    geometry: Geometry


def _matrix(weight: Tensor, geometry: Geometry) -> Tensor:
    """K as one matrix a group, (G, O/G, C/G U V), in at least float32."""
    rows = len(weight) // geometry.groups
    return wide(weight).reshape(geometry.groups, rows, weight.shape[1:].numel())


def _unfold(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A, (S, G, C/G U V, P Q), in at least float32."""
    g, (below, right) = geometry, geometry.extra
    x = F.pad(x, (0, right, 0, below)) if below or right else x
    columns = F.unfold(wide(x), weight.shape[2:], g.dilation, g.padding, g.stride)
    return columns.reshape(len(x), g.groups, weight.shape[1:].numel(), columns.shape[-1])


def _fold(columns: Tensor, image: torch.Size, weight: Tensor, geometry: Geometry) -> Tensor:
    """Sums the elements of `columns`, in the shape of A, at their positions in the image."""
    g, (samples, groups, rows, places) = geometry, columns.shape
    columns = columns.reshape(samples, groups * rows, places)
    below, right = g.extra
    size = (image[-2] + below, image[-1] + right)
    folded = F.fold(columns, size, weight.shape[2:], g.dilation, g.padding, g.stride)
    return F.pad(folded, (0, -right, 0, -below)) if below or right else folded


def _samples_last(columns: Tensor) -> Tensor:
    """(S, G, N, L) as (G, N, S L), so that one product also sums over samples."""
    samples, groups, rows, places = columns.shape
    return columns.permute(1, 2, 0, 3).reshape(groups, rows, samples * places)


@overridable
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | _Pair = 1,
    padding: int | _Pair | Literal["same", "valid"] = 0,
    dilation: int | _Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves images with a kernel, as `torch.nn.functional.conv2d`, also under autocast.

    Args:
        x: X, (samples, in_channels, height, width), or one image without the first dimension.
        weight: K, (out_channels, in_channels / groups, kernel height, kernel width).
        bias: b, (out_channels,), or None.
        stride: distance between the positions of the kernel.
        padding: number of zeros around the image, in pixels. "valid" is 0; "same" makes Y as large
            as X and needs stride 1.
        dilation: distance between the elements of the kernel, in pixels.
        groups: number of blocks of channels.

    Returns:
        Y, (..., out_channels, P, Q), (height + 2 padding - dilation (kernel height - 1) - 1)
        // stride + 1 high, and wide in the same way.

    Raises:
        TypeError: the tensors are not of one real floating dtype on one device.
        ValueError: the shapes do not fit, or a number is too small.
    """
    _check_shapes(x, weight, bias, groups)
    steps, spread = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    zeros, extra = _padding(padding, weight, steps, spread)
    geometry = Geometry(steps, zeros, spread, groups, extra)
    if min(geometry.output_size(x.shape, weight.shape)) < 1:
        raise ValueError(
            f"conv2d expected a kernel no larger than the padded image, got {tuple(weight.shape)} "
            f"on {tuple(x.shape)} with padding={padding!r} and dilation={dilation}: pad the image"
        )
    x, weight, bias = alike("conv2d", x, weight, bias)
    if x.ndim == 3:
        return apply(Conv2dFunction, x[None], weight, bias, geometry)[0]
    return apply(Conv2dFunction, x, weight, bias, geometry)


def _padding(
    padding: int | _Pair | str, weight: Tensor, stride: _Pair, dilation: _Pair
) -> tuple[_Pair, _Pair]:
    """The zeros on every side, and the additional zeros below and to the right."""
    if padding != "same":
        return _pair("padding", 0 if padding == "valid" else padding, 0), (0, 0)
    if stride != (1, 1):
        raise ValueError(
            f'conv2d expected stride 1 with padding="same", got {stride}: pass padding as numbers'
        )
    height, width = (
        step * max(0, int(size) - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)
    )
    return (height // 2, width // 2), (height % 2, width % 2)


def _pair(name: str, value: Any, least: int) -> _Pair:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(part, int) and part >= least for part in pair):
        words = ', "same" or "valid"' if name == "padding" else ""
        raise ValueError(
            f"conv2d expected {name} to be an integer of at least {least}, two for height and "
            f"width{words}, got {value!r}"
        )
    return pair


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    shapes = [None if t is None else tuple(t.shape) for t in (x, weight, bias)]
    if groups < 1:
        raise ValueError(f"conv2d expected groups to be an integer of at least 1, got {groups!r}")
    if (
        x.ndim not in (3, 4)
        or weight.ndim != 4
        or x.shape[-3] != weight.shape[1] * groups
        or len(weight) % groups
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise ValueError(
            "conv2d expected x ([samples,] in, height, width), weight (out, in / groups, height, "
            f"width) and bias (out,), got {shapes}: `in` and `out` are multiples of groups={groups}"
        )
