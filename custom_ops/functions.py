"""The layers of `numpy_ops` as `torch.autograd.Function`s with hand-derived backward passes.

The derivations stand in `numpy_ops`. Each backward is written in differentiable operations on
saved inputs or outputs, so that second and higher derivatives are right as well, and computes
only the gradients that are asked for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """What PyTorch's own annotations leave out of a context."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]  # a Tensor or None, as saved


class LinearFunction(Function):
    """Y = X Wᵀ + b for X (..., M), W (N, M) and b (N,) or None. See `numpy_ops.Linear`."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns Y, (..., N)."""
        ctx.save_for_backward(x, weight)
        y = x @ weight.t()
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX = dL/dY W, dL/dW = (dL/dY)ᵀ X and dL/db = 1ᵀ dL/dY."""
        x, weight = ctx.saved_tensors
        rows = dout.reshape(-1, dout.shape[-1])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dout @ weight
        if ctx.needs_input_grad[1]:
            dweight = rows.t() @ x.reshape(-1, x.shape[-1])
        if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
        return dx, dweight, dbias


class ELUFunction(Function):
    """Y = X where X > 0, alpha (e^X - 1) elsewhere. See `numpy_ops.ELU`."""

    @staticmethod
    def forward(ctx: "_ELUContext", x: Tensor, alpha: float = 1.0) -> Tensor:
        """Returns Y in the shape of X; expm1 keeps the digits that e^X - 1 loses near 0."""
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return torch.where(x > 0, x, alpha * torch.expm1(x))

    @staticmethod
    def backward(ctx: "_ELUContext", dout: Tensor) -> tuple[Tensor, None]:
        """Returns dL/dX = dL/dY where X > 0, dL/dY alpha e^X elsewhere."""
        (x,) = ctx.saved_tensors
        # Without the clamp e^x overflows where it is not wanted, and its derivative is 0 · inf.
        return torch.where(x > 0, dout, dout * (ctx.alpha * x.clamp(max=0).exp())), None


class _ELUContext(Context):
    alpha: float


class SoftmaxFunction(Function):
    """Y_sc = e^{X_sc} / Σ_k e^{X_sk} over the last dimension. See `numpy_ops.Softmax`."""

    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        """Returns Y in the shape of X; the row maximum keeps the exponentials in range."""
        y = (x - x.amax(-1, keepdim=True)).exp_()
        y /= y.sum(-1, keepdim=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> Tensor:
        """Returns dL/dX = Y ∘ (dL/dY - Σ_j dL/dY_j Y_j)."""
        y: Tensor = ctx.saved_tensors[0]  # an output: tracked, its derivative is this backward
        return y * (dout - (dout * y).sum(-1, keepdim=True))


class CrossEntropyFunction(Function):
    """L = -1/S Σ_sc T_sc log P_sc for P and T of shape (S, C). See `numpy_ops.CrossEntropy`."""

    @staticmethod
    def forward(ctx: Context, p: Tensor, t: Tensor) -> Tensor:
        """Returns the scalar L; xlogy makes T = 0 count as 0 even where P is 0."""
        ctx.save_for_backward(p, t)
        return torch.xlogy(t, p).sum() / -len(p)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dP = -1/S T ∘ 1/P and dL/dT = -1/S log P."""
        p, t = ctx.saved_tensors
        scale = dout / -len(p)
        dp = dt = None
        if ctx.needs_input_grad[0]:
            dp = scale * t / p.masked_fill(t == 0, 1)  # 0, not 0 / 0, off the true class
        if ctx.needs_input_grad[1]:
            dt = scale * p.log()
        return dp, dt


class SoftmaxCrossEntropyFunction(Function):
    """L = 1/S Σ_s (log Σ_k e^{X_sk} - X_st) for logits X, (S, C), and classes t, (S,).

    See `numpy_ops.SoftmaxCrossEntropy`.
    """

    @staticmethod
    def forward(ctx: Context, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the scalar L."""
        ctx.save_for_backward(logits, targets)
        z = logits - logits.amax(-1, keepdim=True)
        true = z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (z.exp_().sum(-1).log_() - true).mean()

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor, None]:
        """Returns dL/dX = 1/S (softmax(X) - T), T the one-hot rows of t."""
        logits, targets = ctx.saved_tensors
        index = targets.unsqueeze(-1)
        minus_one = logits.new_full((), -1).expand(index.shape)
        return softmax(logits).scatter_add(-1, index, minus_one) * (dout / len(targets)), None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, as `torch.nn.functional.linear`.

    Args:
        x: X, (..., in_features).
        weight: W, (out_features, in_features).
        bias: b, (out_features,), or None.

    Raises:
        ValueError: the shapes do not fit.
    """
    if x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = [None if t is None else tuple(t.shape) for t in (x, weight, bias)]
        raise ValueError(
            "linear expected x (..., in), weight (out, in) and bias (out,), got "
            f"{shapes}: `in` is the last dimension of both x and weight"
        )
    return LinearFunction.apply(x, weight, bias)  # type: ignore[no-any-return]


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit, element by element: x where x > 0, alpha (e^x - 1) elsewhere."""
    return ELUFunction.apply(x, alpha)  # type: ignore[no-any-return]


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension: same shape, every row positive and of sum 1."""
    return SoftmaxFunction.apply(x)  # type: ignore[no-any-return]


def cross_entropy(p: Tensor, t: Tensor) -> Tensor:
    """Mean cross entropy of probabilities against one-hot rows.

    Infinite where a true class has probability 0; `softmax_cross_entropy` stays finite.

    Args:
        p: probabilities, (samples, classes).
        t: one-hot rows (or any distribution), (samples, classes).

    Raises:
        ValueError: p and t differ in shape.
    """
    if p.shape != t.shape:
        raise ValueError(
            f"cross_entropy expected one-hot targets of shape {tuple(p.shape)}, got "
            f"{tuple(t.shape)}: turn class indices into rows with torch.eye(classes)[indices]"
        )
    return CrossEntropyFunction.apply(p, t)  # type: ignore[no-any-return]


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the softmax of logits against class indices.

    Args:
        logits: (samples, classes).
        targets: class of each sample, (samples,), int64.

    Raises:
        ValueError: logits are not a matrix, or targets not one class for each of its rows.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "softmax_cross_entropy expected logits (samples, classes) and targets (samples,), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}: pass class indices, not one-hot"
        )
    return SoftmaxCrossEntropyFunction.apply(logits, targets)  # type: ignore[no-any-return]
