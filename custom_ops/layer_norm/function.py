"""Layer normalisation as a `torch.autograd.Function`, and its functional form.

The mathematics is in `formula`. PyTorch uses it in three ways:

- `LayerNormFunction`, eagerly: calls the fast operators of `kernels`. On the CPU, it is written a
  second time in C++, because Python around a small kernel takes longer than the kernel.
- `_TransformedLayerNorm`, under `torch.func` and forward-mode differentiation: has gradients and
  tangents in closed form, in elementary operations that can be transformed again.
- `formula.forward` itself, where no Function can be used, as in TorchScript.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling, is_exporting
from torch.overrides import handle_torch_function, has_torch_function

from custom_ops.functions import Context
from custom_ops.layer_norm import formula, kernels
from custom_ops.torch_seam import (
    BroadcastingList1,
    no_function_will_do,
    scripted_as,
    traces_gradients,
    transforming,
)

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]

# Looked up only once.
_layer_norm = torch.ops.custom_ops.layer_norm.default
_forward = torch.ops.custom_ops.layer_norm_forward.default
_backward = torch.ops.custom_ops.layer_norm_backward.default
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


class _LayerNormContext(Context):
    settings: tuple[float, int]  # eps and ndim, in one attribute because each attribute takes time


class LayerNormFunction(Function):
    """Layer normalisation over the last `ndim` dimensions with the backward pass of `formula`.

    It saves X, gamma and three numbers for each row, but only those that the needed gradients use.
    Its derivatives of every order are right in reverse mode; `layer_norm` handles all other cases.
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
        y, statistics = _forward(x, weight, bias, ndim, eps)
        needs = ctx.needs_input_grad
        if True in needs[:2]:
            saved = (x, weight if needs[0] else None, statistics)
            ctx.save_for_backward(*saved)  # type: ignore[arg-type]  # None may be saved, too
        ctx.settings = eps, ndim
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: _LayerNormContext, dy: Tensor) -> _Gradients:
        """Returns dL/dX, dL/dgamma, dL/dbeta; None where not needed.

        Gradients of half-precision parameters are float32 here: autograd rounds them.
        """
        needs_x, needs_weight, needs_bias = needs = (*ctx.needs_input_grad, False, False)[:3]
        eps, ndim = ctx.settings
        if not (needs_x or needs_weight):
            return None, None, formula.grad_bias(dy, ndim), None, None
        x, weight, statistics = ctx.saved_tensors
        if torch.is_grad_enabled() or transforming():  # create_graph, or a transform of backward
            return _differentiable_gradients(dy, x, weight, eps, ndim, needs)
        dx, dweight, dbias = _backward(dy, x, weight, statistics, ndim, needs)
        return (
            dx if needs_x else None,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            None,
            None,
        )


class _TransformedLayerNorm(Function):
    """Layer normalisation whose derivatives can be transformed again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ndim: int
    ) -> Tensor:
        return formula.forward(x, weight, bias, ndim, eps)

    @staticmethod
    def setup_context(ctx: _LayerNormContext, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, eps, ndim = inputs
        ctx.settings = eps, ndim
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: _LayerNormContext, dy: Tensor) -> _Gradients:
        x, weight = ctx.saved_tensors
        return _differentiable_gradients(dy, x, weight, *ctx.settings, ctx.needs_input_grad)

    @staticmethod
    def jvp(
        ctx: _LayerNormContext, dx: Tensor, dweight: Tensor | None, dbias: Tensor | None, *_: None
    ) -> Tensor:
        x, weight = ctx.saved_tensors
        eps, ndim = ctx.settings
        x_hat, rstd = formula.standardise(x, ndim, eps)
        return formula.tangent(dx, dweight, dbias, x_hat, rstd, weight, ndim).to(x.dtype)


@torch.library.impl(kernels.LIBRARY, "layer_norm", "CompositeImplicitAutograd")
def _apply(x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float) -> Tensor:
    """The operator `layer_norm` without its C++ version."""
    if kernels.KERNELS.load(x.device.type):
        return _layer_norm(x, weight, bias, ndim, eps)  # type: ignore[no-any-return]
    return LayerNormFunction.apply(x, weight, bias, eps, ndim)  # type: ignore[no-any-return]


@torch.library.impl(kernels.LIBRARY, "layer_norm", "Tracer")
def _traced(x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float) -> Tensor:
    """The version for `torch.jit.trace`: a traced model loads without this project."""
    kernels.check(x, weight, bias, ndim)
    return formula.forward(x, weight, bias, ndim, eps)


def _gradients(
    dy: Tensor, x: Tensor | None, weight: Tensor | None, ndim: int, eps: float, needs: list[bool]
) -> list[Tensor]:
    """The needed gradients in order, differentiable; X is None if only beta needs one."""
    if x is None:
        return [formula.grad_bias(dy, ndim)]
    gradients = _differentiable_gradients(dy, x, weight, eps, ndim, tuple(needs))
    return [gradient for gradient in gradients if gradient is not None]


# Otherwise vmap would search a rule of the operator instead of transforming its parts.
for _key in ("CompositeImplicitAutograd", "FuncTorchBatched", "Batched"):
    kernels.LIBRARY.impl("layer_norm_gradients", _gradients, _key)


def _differentiable_gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, ndim: int, needs: tuple[bool, ...]
) -> _Gradients:
    """The gradients as functions of dL/dY, X and gamma, not of saved (constant) statistics."""
    x_hat, rstd = formula.standardise(x, ndim, eps)
    dx = formula.grad_input(dy, x_hat, rstd, weight, ndim).to(x.dtype) if needs[0] else None
    dweight = formula.grad_weight(dy, x_hat, ndim) if needs[1] else None
    dbias = formula.grad_bias(dy, ndim) if needs[2] else None
    return dx, dweight, dbias, None, None


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises the last dimensions of x, as `torch.nn.functional.layer_norm`.

    A row is the elements of the last `len(normalized_shape)` dimensions. Every row is normalised to
    mean 0 and biased variance 1, then scaled by weight and shifted by bias. Derivatives of every
    order are right, in reverse and in forward mode, under `torch.func`, `torch.compile` and
    `torch.export`. As in PyTorch, autocast affects only CUDA: float32 in and out.

    Args:
        x: (..., *normalized_shape), of any floating dtype; half types are computed in float32.
        normalized_shape: shape of a row; an int n means (n,).
        weight: scale, normalized_shape, or None for 1; its dtype may differ from that of x.
        bias: shift, normalized_shape, or None for 0; its dtype may differ from that of x.
        eps: added to the variance.

    Returns:
        The normalised tensor, in the shape and dtype of x.

    Raises:
        TypeError: x, weight or bias is not of a real floating dtype.
        ValueError: x does not end in normalized_shape; or weight or bias is of another shape, or
            on another device than x.
    """
    plain = type(x) in _PLAIN_TYPES
    if not plain and has_torch_function((x, weight, bias)):  # torch.fx records one node
        given = (x, weight, bias)
        return handle_torch_function(
            layer_norm, given, x, normalized_shape, weight=weight, bias=bias, eps=eps
        )
    row = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not row or x.shape[-len(row) :] != row:
        raise ValueError(
            f"layer_norm expected x of shape ({', '.join(['...', *map(str, row)])}), got "
            f"{tuple(x.shape)}: normalized_shape must be the last dimensions of x, one at least"
        )
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        x = _float(x)
        weight, bias = (None if p is None else _float(p) for p in (weight, bias))
    if is_compiling() or transforming() or not plain:
        kernels.check(x, weight, bias, len(row))  # the operators check for themselves
        return _layer_norm_anywhere(x, weight, bias, eps, len(row))
    if x.is_cpu or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _layer_norm(x, weight, bias, len(row), eps)  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():
        return _forward(x, weight, bias, len(row), eps)[0]  # type: ignore[no-any-return]
    return LayerNormFunction.apply(x, weight, bias, eps, len(row))  # type: ignore[no-any-return]


def _scripted(
    x: Tensor,
    normalized_shape: BroadcastingList1[int],  # type: ignore[valid-type]
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`layer_norm` for `torch.jit.script`: the formula, which loads without this project."""
    row: list[int] = normalized_shape
    if len(row) == 0 or list(x.shape[-len(row) :]) != row:
        raise ValueError("layer_norm expected x to end in normalized_shape, of one number at least")
    for parameter in (weight, bias):
        if parameter is not None and list(parameter.shape) != row:
            raise ValueError("layer_norm expected weight and bias of shape normalized_shape")
    if not x.is_floating_point():
        raise TypeError("layer_norm expected x of a floating dtype: call x.float()")
    return formula.forward(x, weight, bias, len(row), eps)


scripted_as(layer_norm, lambda: _scripted)


def _float(t: Tensor) -> Tensor:
    """Casts an argument as CUDA autocast does: float64 stays."""
    return t if t.dtype is torch.float64 else t.float()


def _layer_norm_anywhere(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ndim: int
) -> Tensor:
    """Layer normalisation under a compiler or a transform, or for a tensor subclass."""
    function: type[Function] | None = None
    if not is_compiling():
        function = None if no_function_will_do() else _TransformedLayerNorm
    elif x.is_cpu and type(x) in _PLAIN_TYPES and not is_exporting():
        # A compiler can fuse elementary operations; on the CPU, this is slower than the kernel.
        # But a compiled kernel has no second derivatives, and takes no tensor twice.
        first_order = not (transforming() or traces_gradients())
        twice = x is weight or x is bias or (weight is bias and bias is not None)
        function = LayerNormFunction if first_order and not twice else None
    if function is None:
        return formula.forward(x, weight, bias, ndim, eps)
    return function.apply(x, weight, bias, eps, ndim)  # type: ignore[no-any-return]
