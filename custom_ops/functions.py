"""The layers of `numpy_ops` as `torch.autograd.Function`s with hand-derived derivatives.

The derivations are in `numpy_ops`, or here if there is more to derive; each Function names its
formulas. All bodies use differentiable operations on inputs or outputs, so derivatives of every
order are right, and they compute only the needed gradients. Half types are computed in float32 and
rounded at the end. Matrix products keep their dtype, because PyTorch accumulates them in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx
from torch.overrides import handle_torch_function, has_torch_function

from custom_ops.torch_seam import (
    forward_mode,
    scripted_as,
    transforming,
    transforms_active,
    unsafe_view,
)

_Functional = TypeVar("_Functional", bound=Callable[..., Tensor])


class Context(FunctionCtx):
    """The attributes of a context that PyTorch's annotations lack."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]  # a Tensor or None, as saved


class DerivedFunction(Function):
    """A Function for every transform of PyTorch: autograd, `torch.func` and `torch.compile`.

    Besides `forward`, `setup_context` and `backward`, a subclass implements `tangent`, its
    derivative in forward mode. Call it through `apply`, below, with all its inputs.
    """

    generate_vmap_rule = True
    transformed: ClassVar[type[Function]]  # with the `jvp` made from `tangent`
    eager: ClassVar[type[Function]]  # with `setup_context` in `forward`: half the overhead

    @staticmethod
    def tangent(ctx: Any, saved: tuple[Any, ...], *tangents: Any) -> Tensor:
        """Returns the directional derivative of the output.

        Args:
            ctx: context of the call.
            saved: the saved tensors; use them instead of `ctx.saved_tensors`.
            tangents: a direction for each input; any value for an input without derivative.
        """
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def jvp(ctx: Context, *tangents: Any) -> Tensor:
            # PyTorch turns forward mode off here, which loses the derivatives of an outer jvp.
            # With forward mode on again, only the tangents of this level must be removed.
            with forward_mode():
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
    transforms of any Function to wrong numbers. In these cases, PyTorch differentiates `forward`.
    """
    transforming = transforms_active()
    if torch.compiler.is_compiling():
        call = function.forward if transforming else function.apply
    else:
        call = (function.transformed if transforming else function.eager).apply
    return call(*inputs)  # type: ignore[no-any-return]


def overridable(function: _Functional) -> _Functional:
    """Lets types other than tensors override a function, as they can override PyTorch's functions.

    So `torch.fx` records a call as one node. TorchScript does not support a Function of Python and
    is refused in one line.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    def refuse() -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot take custom_ops.{function.__name__}: use torch.export or "
            "torch.compile"
        )

    scripted_as(call, refuse)
    return cast(_Functional, call)


def save(ctx: Context, *tensors: Tensor) -> None:
    """Saves tensors for `backward` and for `tangent`."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


class LinearFunction(DerivedFunction):
    """Y = X Wᵀ + b for X (..., M), W (N, M) and b (N,) or None.

    Backward: dL/dX = dL/dY W, dL/dW = (dL/dY)ᵀ X and dL/db = 1ᵀ dL/dY, the leading dimensions of
    X flattened to one. Forward mode: dY = dX Wᵀ + X dWᵀ + db. Derived in `numpy_ops.Linear`.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns Y, (..., N)."""
        if bias is None:
            return x @ weight.t()
        # One rounding; in half types, adding b to a rounded product would round twice.
        return unsafe_view(torch.addmm(bias, _matrix(x), weight.t()), [*x.shape[:-1], len(weight)])

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
    def forward(x: Tensor, alpha: float) -> Tensor:
        """Returns Y in the shape of X; expm1 is exact near 0, where e^X - 1 loses digits."""
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
        # Σ_j Y_j is 1 up to rounding, which would leave an error for a large offset of dX.
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
    """L = 1/N Σ_s m_s L_s with L_s = Σ_c A_sc (log Σ_k e^{X_sk} - X_sc), for logits X, (S, C).

    A, (S, C), is the cost of each class for a sample: w_c T_sc for class weights w and targets T.
    m_s is 0 for an ignored sample and 1 for others, and N is any number. Without the sum over s,
    there is a loss for each sample.

    **Gradients.** With P = softmax(X), ∂ log Σ_k e^{X_sk} / ∂X_sc = P_sc; with a_s = Σ_c A_sc,

        ∂L_s/∂X_sc = Σ_j A_sj (P_sc - δ_jc) = a_s P_sc - A_sc.

    L is linear in A and in 1/N: with D_sc = log Σ_k e^{X_sk} - X_sc = -log P_sc it is
    ∂L_s/∂A_sc = D_sc and ∂L/∂N = -L/N. So

        dL/dX_sc = m_s/N (a_s P_sc - A_sc)     dL/dA_sc = m_s/N D_sc     dL/dN = -L/N,

    and without the sum, the gradient of the loss of sample s replaces 1. An ignored sample has the
    gradient 0 for every N. For one-hot rows A, m = 1 and N = S, this is dL/dX = 1/S (P - A), as in
    `numpy_ops.SoftmaxCrossEntropy`.

    With label smoothing e, A_sc = w_c ((1 - e) T_sc + e / C), and the weighted mean has
    N = Σ_s m_s Σ_c w_c T_sc. So (the last term is only for this mean)

        dL/dT_sc = (1 - e) w_c dL/dA_sc
        dL/dw_c = Σ_s ((1 - e) T_sc + e / C) dL/dA_sc + dL/dN Σ_s m_s T_sc.

    Forward mode: dL = 1/N (Σ_s m_s Σ_c ((a_s P_sc - A_sc) dX_sc + D_sc dA_sc) - L dN).
    """

    @staticmethod
    def forward(
        logits: Tensor, rows: Tensor, ignored: Tensor, total: Tensor, summed: bool
    ) -> Tensor:
        """Returns L, (), or the loss of each sample, (S,), if it is not summed.

        Args:
            logits: X.
            rows: A, in at least float32.
            ignored: where m is 0, (S,).
            total: N, (), in the dtype of A.
            summed: whether to sum over samples.
        """
        losses = _losses(logits, rows).masked_fill(ignored, 0)
        return narrow((losses.sum() if summed else losses) / total, logits)

    @staticmethod
    def setup_context(ctx: "_SummedContext", inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves all inputs."""
        *tensors, ctx.summed = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: "_SummedContext", dout: Tensor) -> tuple[Tensor | None, ...]:
        """Returns dL/dX, dL/dA and dL/dN."""
        logits, rows, ignored, total = ctx.saved_tensors
        v = (wide(dout) / total).expand(ignored.shape).masked_fill(ignored, 0)
        dx = drows = dtotal = None
        if ctx.needs_input_grad[0]:
            dx = narrow(v.unsqueeze(-1) * _slope(logits, rows), logits)
        if ctx.needs_input_grad[1]:
            drows = v.unsqueeze(-1) * _surprise(logits)
        if ctx.needs_input_grad[3]:
            dtotal = (v * _losses(logits, rows)).sum() / -total
        return dx, drows, None, dtotal, None

    @staticmethod
    def tangent(
        ctx: "_SummedContext", saved: tuple[Any, ...], dx: Tensor, drows: Tensor, *others: Any
    ) -> Tensor:
        """Returns dL, or the change of each loss."""
        (logits, rows, ignored, total), dtotal = saved, others[1]
        moved = (_slope(logits, rows) * dx).sum(-1) + _losses(logits, drows)
        moved = moved - _losses(logits, rows) * (dtotal / total)
        moved = moved.masked_fill(ignored, 0)
        return narrow((moved.sum() if ctx.summed else moved) / total, logits)


class _SummedContext(Context):
    summed: bool


def _matrix(x: Tensor) -> Tensor:
    """X with its leading dimensions as one, also if there are none or they are empty."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _primal(x: Tensor) -> Tensor:
    """X without its tangent of the innermost level of forward mode."""
    return forward_ad.unpack_dual(x, level=0).primal  # type: ignore[no-any-return, no-untyped-call]


def is_eager(x: Tensor) -> bool:
    """Whether a kernel without a formula can take X: nothing transforms, compiles or records it."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not (recorded or transforming() or has_torch_function((x,)))


def wide(x: Tensor) -> Tensor:
    """X in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(y: Tensor, x: Tensor) -> Tensor:
    """Y in the dtype of X."""
    # Compiled by torch 2.11, an output that `to` returns unchanged has no gradient.
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _negative(x: Tensor) -> Tensor:
    """X with 0 for positive elements, where e^X would overflow and its derivative be 0 · inf."""
    return wide(x).clamp(max=0)


def _below_maximum(x: Tensor) -> Tensor:
    """X minus the maximum of its row: exponentials stay finite, and the results are unchanged."""
    x = wide(x)
    return x if 0 in x.shape[-1:] else x - x.detach().amax(-1, keepdim=True)


def _softmax(x: Tensor) -> Tensor:
    y = _below_maximum(x).exp()
    return y / y.sum(-1, keepdim=True)


def _needed(p: Tensor, t: Tensor) -> Tensor:
    """P, with 1 where P and T are 0, because 0 log 0 counts as 0."""
    return wide(p).masked_fill((p == 0) & (t == 0), 1)


def _surprise(logits: Tensor) -> Tensor:
    """D = -log softmax(X)."""
    z = _below_maximum(logits)
    return z.exp().sum(-1, keepdim=True).log() - z


def _losses(logits: Tensor, rows: Tensor) -> Tensor:
    """L_s = Σ_c A_sc D_sc; a class with A_sc = 0 costs nothing even if D is infinite."""
    surprise = _surprise(logits)
    return (rows * surprise.masked_fill((rows == 0) & surprise.isinf(), 0)).sum(-1)


def _slope(logits: Tensor, rows: Tensor) -> Tensor:
    """∂L_s/∂X_sc = a_s P_sc - A_sc."""
    return rows.sum(-1, keepdim=True) * _softmax(logits) - rows


@overridable
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


@overridable
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit, element by element: x where x > 0, alpha (e^x - 1) elsewhere.

    Raises:
        TypeError: x is not of a real floating dtype.
    """
    _check_floating("elu", x)
    return apply(ELUFunction, x, alpha)


@overridable
def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension: same shape, every row positive and of sum 1.

    Keeps the dtype, but gives at least float32 under autocast, as PyTorch does on GPUs.

    Raises:
        TypeError: x is not of a real floating dtype.
    """
    _check_floating("softmax", x)
    return apply(SoftmaxFunction, _full(x))


@overridable
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


@overridable
def softmax_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of the softmax of logits, as `torch.nn.functional.cross_entropy`.

    With T the one-hot rows of the classes, or the given probabilities, e the label smoothing and
    w the class weights, a sample costs

        L_s = -Σ_c w_c ((1 - e) T_sc + e / C) log softmax(X)_sc.

    For probabilities, the mean divides by the number of samples. For classes, it divides by the sum
    of the weights of the samples' classes, so it is a weighted mean. Ignored samples count as 0 in
    both sums. `SoftmaxCrossEntropyFunction` derives the gradients, also for targets and weights.

    Args:
        logits: (samples, classes), of any floating dtype.
        targets: class of each sample, (samples,), int64; or probabilities, (samples, classes).
        weight: weight of each class, (classes,), or None for 1.
        ignore_index: class of the samples to ignore; not for probabilities.
        reduction: "mean", "sum", or "none" for the loss of each sample.
        label_smoothing: share of each target that is spread over all classes, 0 to 1.

    Returns:
        The loss, () or (samples,), in the dtype of logits, or at least float32 under autocast;
        NaN for the mean of no samples, or of samples without weight.

    Raises:
        IndexError: a target is no class (checked only on the CPU).
        TypeError: targets are neither int64 nor probabilities; or logits, probabilities and
            weight are not of one real floating dtype on one device.
        ValueError: the shapes do not fit, or a setting is invalid.
    """
    _check_floating("softmax_cross_entropy", logits)
    _check_targets(logits, targets, weight, ignore_index)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f'softmax_cross_entropy expected reduction "mean", "sum" or "none", got {reduction!r}'
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"softmax_cross_entropy expected label_smoothing from 0 to 1, got {label_smoothing}"
        )
    logits = _full(logits)
    if weight is not None:
        _check_alike("softmax_cross_entropy", logits, _full(weight))
        weight = wide(weight)
    if targets.is_floating_point():
        _check_alike("softmax_cross_entropy", logits, _full(targets))
        rows, ignored = wide(targets), targets.new_zeros(targets.shape[:1], dtype=torch.bool)
        total = (~ignored).sum(dtype=rows.dtype)  # not a number, which torch.jit.trace would keep
    else:
        rows, ignored = _one_hot(logits, targets, ignore_index)
        counts = rows if weight is None else rows * weight
        total = counts.sum(-1).masked_fill(ignored, 0).sum()
    if label_smoothing:
        rows = rows * (1 - label_smoothing) + label_smoothing / max(1, rows.shape[-1])
    if weight is not None:
        rows = rows * weight
    if reduction == "mean":
        total = total.masked_fill(total == 0, torch.nan)
    else:
        total = torch.ones_like(total)
    return apply(SoftmaxCrossEntropyFunction, logits, rows, ignored, total, reduction != "none")


def _one_hot(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """T, in at least float32, and which samples are ignored."""
    ignored = targets == ignore_index
    index = targets.masked_fill(ignored, 0).unsqueeze(-1)
    try:
        return torch.zeros_like(wide(logits)).scatter(-1, index, 1), ignored
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(
            f"softmax_cross_entropy expected targets from 0 to {logits.shape[1] - 1}, the classes "
            f"of logits {tuple(logits.shape)}, or ignore_index={ignore_index}: {error}"
        ) from None


def _check_targets(
    logits: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int
) -> None:
    if logits.ndim != 2 or targets.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            "softmax_cross_entropy expected logits (samples, classes) and targets (samples,), or "
            f"probabilities (samples, classes), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}: reshape to one row for each sample"
        )
    if targets.ndim == 1 and targets.dtype != torch.int64:
        raise TypeError(
            f"softmax_cross_entropy expected int64 targets, got {targets.dtype}: "
            "call targets.long()"
        )
    if targets.ndim == 2 and not targets.is_floating_point():
        raise TypeError(
            "softmax_cross_entropy expected probabilities of a floating dtype, got "
            f"{targets.dtype}: pass class indices, or call targets.to(logits.dtype)"
        )
    if targets.ndim == 2 and ignore_index >= 0:
        raise ValueError(
            f"softmax_cross_entropy expected no ignore_index with probabilities, got "
            f"{ignore_index}: leave out the samples to ignore"
        )
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(
            f"softmax_cross_entropy expected weight of shape {tuple(logits.shape[1:])}, one for "
            f"each class, got {tuple(weight.shape)}"
        )


def alike(name: str, x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """The tensors for a matrix product, cast as autocast would.

    Raises:
        TypeError: they are not of one real floating dtype on one device.
    """
    _check_floating(name, x)
    tensors: tuple[Tensor | None, ...] = (x, *parameters)
    if _autocast(x):
        tensors = tuple(None if t is None else t.to(product_dtype(t)) for t in tensors)
    _check_alike(name, *tensors)
    return tensors


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which autocast converts X for a product; it leaves float64."""
    if x.dtype == torch.float64 or not _autocast(x):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def _check_alike(name: str, *tensors: Tensor | None) -> None:
    kinds = [(t.dtype, t.device) for t in tensors if t is not None]
    if any(kind != kinds[0] for kind in kinds):
        raise TypeError(
            f"{name} expected one dtype on one device, got "
            f"{', '.join(f'{dtype} on {device}' for dtype, device in kinds)}: "
            "convert all to the first"
        )


def _autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _full(x: Tensor) -> Tensor:
    """X in at least float32 under autocast, as PyTorch casts for losses."""
    return wide(x) if _autocast(x) else x


def _check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} expected a floating dtype, got {x.dtype}: call .float()")
