"""Layer normalisation as a `torch.autograd.Function`, and its functional form."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from custom_ops.functions import Context
from custom_ops.layer_norm import formula


class _LayerNormContext(Context):
    eps: float
    ndim: int
    parameter_dtypes: list[torch.dtype | None]


class LayerNormFunction(Function):
    """Layer normalisation over the last `ndim` dimensions with the backward pass of `formula`.

    Keeps X, gamma and three numbers a row, and of these only what the wanted gradients need.
    """

    @staticmethod
    def forward(
        ctx: _LayerNormContext,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        ndim: int = 1,
    ) -> Tensor:
        """Returns Y in the shape and dtype of X.

        Args:
            ctx: context of the call.
            x: X, (..., *row) with `ndim` dimensions in a row.
            weight: gamma, in the shape of a row, or None for 1.
            bias: beta, in the shape of a row, or None for 0.
            eps: added to the variance.
            ndim: number of dimensions of a row.
        """
        centred, hi, lo, rstd = formula.statistics(formula.widen(x), ndim, eps)
        if any(ctx.needs_input_grad[:2]):
            saved = (x, weight if ctx.needs_input_grad[0] else None, hi, lo, rstd)
            ctx.save_for_backward(*saved)  # type: ignore[arg-type]  # None may be saved, too
        ctx.eps, ctx.ndim = eps, ndim
        ctx.parameter_dtypes = [None if p is None else p.dtype for p in (weight, bias)]
        return formula.affine(centred.mul_(rstd), weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: _LayerNormContext, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX, dL/dgamma, dL/dbeta, each in its tensor's dtype; None where not needed."""
        needs_x, needs_weight, needs_bias = (*ctx.needs_input_grad, False, False)[:3]
        dx = dweight = dbias = None
        if needs_x or needs_weight:
            x, weight, hi, lo, rstd = ctx.saved_tensors
            wide = formula.widen(x)
            if torch.is_grad_enabled():  # create_graph: the saved statistics would be constants
                centred, _, _, rstd = formula.statistics(wide, ctx.ndim, ctx.eps)
                x_hat = centred * rstd
            else:
                x_hat = (wide - hi).sub_(lo).mul_(rstd)
            if needs_x:
                dx = formula.grad_input(dy, x_hat, rstd, weight, ctx.ndim).to(x.dtype)
            if needs_weight:
                dweight = formula.grad_weight(dy, x_hat, ctx.ndim).to(ctx.parameter_dtypes[0])
        if needs_bias:
            dbias = formula.grad_bias(dy, ctx.ndim).to(ctx.parameter_dtypes[1])
        return dx, dweight, dbias, None, None


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises the last dimensions of x, as `torch.nn.functional.layer_norm`.

    Every row, the elements of the last `len(normalized_shape)` dimensions, is brought to mean 0
    and biased variance 1, then scaled by weight and shifted by bias.

    Args:
        x: (..., *normalized_shape), of any floating dtype; half types are computed in float32.
        normalized_shape: shape of a row; an int n means (n,).
        weight: scale, normalized_shape, or None for 1; its dtype may differ from that of x.
        bias: shift, normalized_shape, or None for 0; its dtype may differ from that of x.
        eps: added to the variance.

    Returns:
        The normalised tensor, in the shape and dtype of x.

    Raises:
        TypeError: x is not of a real floating dtype.
        ValueError: x does not end in normalized_shape, or weight or bias is of another shape.
    """
    row = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not row or x.shape[-len(row) :] != row:
        raise ValueError(
            f"layer_norm expected x of shape (..., {', '.join(map(str, row))}), got "
            f"{tuple(x.shape)}: normalized_shape must be the last dimensions of x, one at least"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != row:
            raise ValueError(
                f"layer_norm expected {name} of shape {row}, got {tuple(parameter.shape)}: "
                f"reshape {name} to normalized_shape or change normalized_shape"
            )
    if not x.is_floating_point():
        raise TypeError(f"layer_norm expected a floating dtype, got {x.dtype}: call x.float()")
    return LayerNormFunction.apply(x, weight, bias, eps, len(row))  # type: ignore[no-any-return]
