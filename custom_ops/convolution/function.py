"""Two-dimensional convolution as a `torch.autograd.Function`, and its functional form."""

from typing import Any, Literal

import torch
from torch import Tensor

from custom_ops.convolution import formula, kernels
from custom_ops.convolution.formula import Geometry, Pair
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
from custom_ops.torch_seam import transforming, transforms_active, unsafe_view

# Looked up only once.
_forward = torch.ops.custom_ops.winograd.default
_backward = torch.ops.custom_ops.winograd_backward.default


class Conv2dFunction(DerivedFunction):
    """Y_s = K A_s + b for X (S, C, H, W), unfolded to A, K (O, C/G, U, V) and b (O,) or None.

    Backward: dL/dX = fold(Kᵀ dL/dY), dL/dK = Σ_s dL/dY_s A_sᵀ and dL/db = Σ_spq dL/dY_sopq.
    Forward mode: dY = K dA + dK A + db. Derived in `formula`; 3x3 kernels that
    `kernels.suits` are computed as `winograd` derives.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Returns Y, (S, O, P, Q)."""
        if not transforms_active() and kernels.suits(x, weight, geometry):
            return _forward(x, weight, bias)  # type: ignore[no-any-return]
        y = formula.matrix(weight, geometry) @ formula.unfold(x, weight, geometry)
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
        differentiated = torch.is_grad_enabled() or transforming()  # create_graph, or a transform
        if not differentiated and kernels.suits(x, weight, ctx.geometry):
            return *_fast_gradients(ctx, dout, x, weight), None
        matrix = formula.matrix(weight, ctx.geometry)
        rows = wide(dout).reshape(len(x), *matrix.shape[:2], dout.shape[-2:].numel())
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = narrow(formula.fold(matrix.mT @ rows, x.shape, weight, ctx.geometry), x)
        if ctx.needs_input_grad[1]:
            columns = formula.unfold(x, weight, ctx.geometry)
            dmatrix = formula.samples_last(rows) @ formula.samples_last(columns).mT
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


def _fast_gradients(
    ctx: "_Context", dout: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    dx, dweight = _backward(dout, x, weight, [*needs[:2]])
    dbias = dout.sum((0, 2, 3)) if needs[2] else None
    return dx if needs[0] else None, dweight if needs[1] else None, dbias


class _Context(Context):
    geometry: Geometry


@overridable
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | Literal["same", "valid"] = 0,
    dilation: int | Pair = 1,
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
    padding: int | Pair | str, weight: Tensor, stride: Pair, dilation: Pair
) -> tuple[Pair, Pair]:
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


def _pair(name: str, value: Any, least: int) -> Pair:
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
