"""The layers of `numpy_ops` as `torch.autograd.Function`s with hand-derived derivatives.

The derivations stand in `numpy_ops`; each Function names what it takes from them. All bodies are
written in differentiable operations on inputs or outputs, so that derivatives of every order are
right, and compute only the gradients that are asked for. Half types are computed in float32 and
rounded at the end; matrix products keep their dtype, as PyTorch accumulates them in float32.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """What PyTorch's own annotations leave out of a context."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]  # a Tensor or None, as saved


class DerivedFunction(Function):
    """A Function for every transform of PyTorch: autograd, `torch.func` and `torch.compile`.

    Besides `forward`, `setup_context` and `backward` a subclass writes `tangent`, its derivative
    in forward mode. It is called through `apply`, below, with all of its inputs.
    """

    generate_vmap_rule = True
    transformed: ClassVar[type[Function]]  # with the `jvp` made from `tangent`
    eager: ClassVar[type[Function]]  # with `setup_context` in `forward`: half the overhead

    @staticmethod
    def tangent(ctx: Any, saved: tuple[Any, ...], *tangents: Any) -> Tensor:
        """Returns the directional derivative of the output.

        Args:
            ctx: context of the call.
            saved: the saved tensors, to be used instead of `ctx.saved_tensors`.
            tangents: a direction for each input; anything where that is not differentiable.
        """
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def jvp(ctx: Context, *tangents: Any) -> Tensor:
            # PyTorch switches forward mode off in here, which loses the derivatives of an outer
            # jvp. Switched on again, only this level's own tangents must be taken off.
            with forward_ad._set_fwd_grad_enabled(True):
                return cls.tangent(ctx, tuple(map(_primal, ctx.saved_tensors)), *tangents)

        def forward(ctx: Context, *inputs: Any) -> Tensor:
            output: Tensor = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        if "tangent" in vars(cls):
            body: dict[str, Any] = {"jvp": staticmethod(jvp)}
            cls.transformed = type(cls.__name__, (cls,), body)
            body |= {
                "forward": staticmethod(forward),
                "setup_context": staticmethod(Function.setup_context),
            }
            cls.eager = type(cls.__name__, (cls,), body)


def apply(function: type[DerivedFunction], *inputs: Any) -> Tensor:
    """Calls a Function in the form that the surrounding transform can take.

    torch.compile refuses a Function with a `jvp`, and torch 2.15 compiles nested `torch.func`
    transforms of any Function to wrong numbers; there PyTorch differentiates `forward` itself.
    """
    transforming = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling():
        call = function.forward if transforming else function.apply
    else:
        call = (function.transformed if transforming else function.eager).apply
    return call(*inputs)  # type: ignore[no-any-return]


def save(ctx: Context, *tensors: Tensor) -> None:
    """Saves tensors for `backward` and for `tangent`."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


class LinearFunction(DerivedFunction):
    """Y = X Wᵀ + b for X (..., M), W (N, M) and b (N,) or None.

    Backward: dL/dX = dL/dY W, dL/dW = (dL/dY)ᵀ X and dL/db = 1ᵀ dL/dY, the leading dimensions of
    X taken as one. Forward mode: dY = dX Wᵀ + X dWᵀ + db. Derived in `numpy_ops.Linear`.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns Y, (..., N)."""
        if bias is None:
            return x @ weight.t()
        # One rounding; in half types the sum of a rounded product and b would be a second one.
        return reshaped(torch.addmm(bias, _matrix(x), weight.t()), [*x.shape[:-1], len(weight)])

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves X and W."""
        save(ctx, inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX, dL/dW and dL/db."""
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dout @ weight
        if ctx.needs_input_grad[1]:
            dweight = _matrix(dout).t() @ _matrix(x)
        if ctx.needs_input_grad[2]:
            dbias = _matrix(dout).sum(0)
        return dx, dweight, dbias

    @staticmethod
    def tangent(
        ctx: Context, saved: tuple[Any, ...], dx: Tensor, dweight: Tensor, dbias: Tensor | None
    ) -> Tensor:
        """Returns dY."""
        x, weight = saved
        dy: Tensor = dx @ weight.t() + x @ dweight.t()
        return dy if dbias is None else dy + dbias


class ELUFunction(DerivedFunction):
    """Y = X where X > 0, alpha (e^X - 1) elsewhere.

    Backward: dL/dX = dL/dY ∘ h'(X), h' = 1 where X > 0 and alpha e^X elsewhere. Forward mode:
    dY = dX ∘ h'(X). Derived in `numpy_ops.ELU`.
    """

    @staticmethod
    def forward(x: Tensor, alpha: float = 1.0) -> Tensor:
        """Returns Y in the shape of X; expm1 keeps the digits that e^X - 1 loses near 0."""
        return narrow(torch.where(x > 0, x, alpha * _negative(x).expm1()), x)

    @staticmethod
    def setup_context(ctx: "_ELUContext", inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves X and alpha."""
        x, ctx.alpha = inputs
        save(ctx, x)

    @staticmethod
    def backward(ctx: "_ELUContext", dout: Tensor) -> tuple[Tensor, None]:
        """Returns dL/dX."""
        return ELUFunction.tangent(ctx, ctx.saved_tensors, dout), None

    @staticmethod
    def tangent(ctx: "_ELUContext", saved: tuple[Any, ...], dx: Tensor, *_: None) -> Tensor:
        """Returns dX ∘ h'(X)."""
        x: Tensor = saved[0]
        return torch.where(x > 0, dx, narrow(dx * (ctx.alpha * _negative(x).exp()), dx))


class _ELUContext(Context):
    alpha: float


class SoftmaxFunction(DerivedFunction):
    """Y_sc = e^{X_sc} / Σ_k e^{X_sk} over the last dimension.

    Backward: dL/dX = Y ∘ (dL/dY - Σ_j dL/dY_j Y_j). Forward mode: the same of dX, as the Jacobian
    is symmetric. Derived in `numpy_ops.Softmax`.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Returns Y in the shape of X."""
        return narrow(_softmax(x), x)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves Y; as an output it is tracked, and its derivative is this Function's."""
        save(ctx, output)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> Tensor:
        """Returns dL/dX."""
        return SoftmaxFunction.tangent(ctx, ctx.saved_tensors, dout)

    @staticmethod
    def tangent(ctx: Context, saved: tuple[Any, ...], dx: Tensor) -> Tensor:
        """Returns Y ∘ (dX - Σ_j dX_j Y_j)."""
        y = wide(saved[0])
        # Σ_j Y_j is 1 but for rounding, which would leave a part of a large offset of dX.
        mean = (dx * y).sum(-1, keepdim=True) / y.sum(-1, keepdim=True)
        return narrow(y * (dx - mean), dx)


class CrossEntropyFunction(DerivedFunction):
    """L = -1/S Σ_sc T_sc log P_sc for P and T of shape (S, C).

    Backward: dL/dP = -1/S T ∘ 1/P and dL/dT = -1/S log P. Forward mode: the sum of their products
    with dP and dT. Derived in `numpy_ops.CrossEntropy`.
    """

    @staticmethod
    def forward(p: Tensor, t: Tensor) -> Tensor:
        """Returns the scalar L."""
        return narrow((t * _needed(p, t).log()).sum() / -len(p), p)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves P and T."""
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dP and dL/dT."""
        p, t = ctx.saved_tensors
        needed, scale = _needed(p, t), dout / -len(p)
        dp = narrow(scale * t / needed, p) if ctx.needs_input_grad[0] else None
        dt = narrow(scale * needed.log(), t) if ctx.needs_input_grad[1] else None
        return dp, dt

    @staticmethod
    def tangent(ctx: Context, saved: tuple[Any, ...], dp: Tensor, dt: Tensor) -> Tensor:
        """Returns dL."""
        p, t = saved
        needed = _needed(p, t)
        return narrow((t / needed * dp + needed.log() * dt).sum() / -len(p), p)


class SoftmaxCrossEntropyFunction(DerivedFunction):
    """L = 1/S Σ_s (log Σ_k e^{X_sk} - X_st) for logits X, (S, C), and classes t, (S,).

    Backward: dL/dX = 1/S (softmax(X) - T), T the one-hot rows of t. Forward mode: the sum of its
    products with dX. Derived in `numpy_ops.SoftmaxCrossEntropy`.
    """

    @staticmethod
    def forward(logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the scalar L."""
        z = _below_maximum(logits)
        true = z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return narrow((z.exp().sum(-1).log() - true).mean(), logits)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves X and t."""
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor, None]:
        """Returns dL/dX."""
        logits, targets = ctx.saved_tensors
        return narrow(_gradient(logits, targets) * dout, logits), None

    @staticmethod
    def tangent(ctx: Context, saved: tuple[Any, ...], dx: Tensor, *_: Any) -> Tensor:
        """Returns dL."""
        return narrow((_gradient(*saved) * dx).sum(), dx)


def _matrix(x: Tensor) -> Tensor:
    """X with its leading dimensions as one, also where they are none or empty."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def reshaped(y: Tensor, shape: list[int]) -> Tensor:
    """Y, contiguous, in another shape, and no view: those of a Function resist in-place changes."""
    return torch.ops.aten._unsafe_view(y, shape)  # type: ignore[no-any-return]


def _primal(x: Tensor) -> Tensor:
    """X without its tangent of the innermost level of forward mode."""
    return forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-any-return, no-untyped-call]


def wide(x: Tensor) -> Tensor:
    """X in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(y: Tensor, x: Tensor) -> Tensor:
    """Y in the dtype of X."""
    # Compiled by torch 2.11, an output that `to` returns unchanged has no gradient.
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _negative(x: Tensor) -> Tensor:
    """X with 0 where it is positive: e^X would overflow there, and its derivative be 0 · inf."""
    return wide(x).clamp(max=0)


def _below_maximum(x: Tensor) -> Tensor:
    """X less the maximum of its row, which keeps exponentials in range and drops out of them."""
    x = wide(x)
    return x - x.detach().amax(-1, keepdim=True)


def _softmax(x: Tensor) -> Tensor:
    y = _below_maximum(x).exp()
    return y / y.sum(-1, keepdim=True)


def _needed(p: Tensor, t: Tensor) -> Tensor:
    """P, with 1 where P and T are 0, which costs nothing: 0 log 0 counts as 0."""
    return wide(p).masked_fill((p == 0) & (t == 0), 1)


def _gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """1/S (softmax(X) - T)."""
    p, index = _softmax(logits), targets.unsqueeze(-1)
    return p.scatter_add(-1, index, p.new_full((), -1).expand(index.shape)) / len(logits)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, as `torch.nn.functional.linear`, also under autocast.

    Args:
        x: X, (..., in_features).
        weight: W, (out_features, in_features).
        bias: b, (out_features,), or None.

    Raises:
        TypeError: the tensors are not of one real floating dtype on one device.
        ValueError: the shapes do not fit.
    """
    if x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = [None if t is None else tuple(t.shape) for t in (x, weight, bias)]
        raise ValueError(
            "linear expected x (..., in), weight (out, in) and bias (out,), got "
            f"{shapes}: `in` is the last dimension of both x and weight"
        )
    return apply(LinearFunction, *alike("linear", x, weight, bias))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit, element by element: x where x > 0, alpha (e^x - 1) elsewhere.

    Raises:
        TypeError: x is not of a real floating dtype.
    """
    _check_floating("elu", x)
    return apply(ELUFunction, x, alpha)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension: same shape, every row positive and of sum 1.

    Keeps the dtype, but gives at least float32 under autocast, as PyTorch does on GPUs.

    Raises:
        TypeError: x is not of a real floating dtype.
    """
    _check_floating("softmax", x)
    return apply(SoftmaxFunction, _full(x))


def cross_entropy(p: Tensor, t: Tensor) -> Tensor:
    """Mean cross entropy of probabilities against one-hot rows.

    Infinite where a true class has probability 0; `softmax_cross_entropy` stays finite.

    Args:
        p: probabilities, (samples, classes), of any floating dtype.
        t: one-hot rows (or any distribution), (samples, classes), of any real dtype.

    Returns:
        The loss, (), in the dtype of p, or at least float32 under autocast.

    Raises:
        TypeError: p is not of a real floating dtype.
        ValueError: p and t are not two matrices of one shape.
    """
    _check_floating("cross_entropy", p)
    if p.ndim != 2 or p.shape != t.shape:
        raise ValueError(
            "cross_entropy expected probabilities and one-hot targets of one shape "
            f"(samples, classes), got {tuple(p.shape)} and {tuple(t.shape)}: turn class indices "
            "into rows with torch.eye(classes)[indices]"
        )
    return apply(CrossEntropyFunction, _full(p), t)


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the softmax of logits against class indices.

    Args:
        logits: (samples, classes), of any floating dtype.
        targets: class of each sample, (samples,), int64.

    Returns:
        The loss, (), in the dtype of logits, or at least float32 under autocast.

    Raises:
        IndexError: a target is no class, found on the CPU only.
        TypeError: logits are not of a real floating dtype, or targets not int64.
        ValueError: logits are not a matrix, or targets not one class for each of its rows.
    """
    _check_floating("softmax_cross_entropy", logits)
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            "softmax_cross_entropy expected logits (samples, classes) and targets (samples,), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}: pass class indices, not one-hot"
        )
    if targets.dtype != torch.int64:
        raise TypeError(
            f"softmax_cross_entropy expected int64 targets, got {targets.dtype}: "
            "call targets.long()"
        )
    try:
        return apply(SoftmaxCrossEntropyFunction, _full(logits), targets)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(
            f"softmax_cross_entropy expected targets from 0 to {logits.shape[1] - 1}, the classes "
            f"of logits {tuple(logits.shape)}: {error}"
        ) from None


def alike(name: str, x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """The tensors for a matrix product, cast as autocast would.

    Raises:
        TypeError: they are not of one real floating dtype on one device.
    """
    _check_floating(name, x)
    tensors: tuple[Tensor | None, ...] = (x, *parameters)
    if _autocast(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = tuple(
            t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in tensors
        )
    kinds = [(t.dtype, t.device) for t in tensors if t is not None]
    if any(kind != kinds[0] for kind in kinds):
        raise TypeError(
            f"{name} expected one dtype on one device, got "
            f"{', '.join(f'{dtype} on {device}' for dtype, device in kinds)}: "
            "convert the parameters with .to(x)"
        )
    return tensors


def _autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _full(x: Tensor) -> Tensor:
    """X in at least float32 under autocast, as PyTorch casts for losses."""
    return wide(x) if _autocast(x) else x


def _check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} expected a floating dtype, got {x.dtype}: call .float()")
