# ruff: noqa: E501, RUF001 - a fault is a line, in the letters of its formula
"""Operators to be derived by hand: inputs, the right results, and what known faults give.

For `custom_ops.check`. Shapes: S samples, M inputs, N outputs; all in float64.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import Function

from custom_ops.convolution import Conv2dFunction, Geometry

Array = npt.NDArray[np.float64]
Arrays = dict[str, Array]
Results = Iterator[tuple[str, Any]]  # of which quantity, what came out
Faults = list[tuple[str, str, Array]]  # of which quantity, what is wrong, what one then gets

SAMPLES = 5
_S, _M, _N, _EPS = SAMPLES, 4, 3, 0.1  # samples, inputs, outputs, and an epsilon that is seen
_DX, _DW, _DB = "dL/dX", "dL/dW", "dL/db"


@dataclass(frozen=True)
class Exercise:
    """An operator with inputs, the right results and the results of known faults.

    Attributes:
        name: of the operator.
        names: of classes that are one.
        inputs: by name; ``dout`` is dL/dY.
        expected: the right results, by name.
        faults: wrong results that are recognised.
        of_layer: what a layer in NumPy gives, the forward pass first.
        of_function: the same of a `torch.autograd.Function`.
        more: what a class is run with if all is right so far.
    """

    name: str
    names: frozenset[str]
    inputs: Arrays
    expected: Arrays
    faults: Faults
    of_layer: Callable[[type, Arrays], Results]
    of_function: Callable[[type[Function], Arrays], Results]
    more: "tuple[Again, ...]" = ()


@dataclass(frozen=True)
class Again:
    """Other inputs for a class that is right on the first ones.

    Attributes:
        name: what is special, such as ``large X``.
        inputs: by name.
        expected: the right results, by name.
        reason: what is wrong if others come out.
        of_layer: as of `Exercise`; None: layers are not run with these inputs.
        of_function: the same for functions.
    """

    name: str
    inputs: Arrays
    expected: Arrays
    reason: str
    of_layer: Callable[[type, Arrays], Results] | None = None
    of_function: Callable[[type[Function], Arrays], Results] | None = None


class ChangedInputError(Exception):
    """A method changes an array that is not its own.

    Args:
        method: its name, or what it is.
        what: the array.
    """

    def __init__(
        self, method: str, what: str = "an array that it is given: work on a copy"
    ) -> None:
        super().__init__(f"{method} changes {what}")


def _names(*words: str) -> frozenset[str]:
    return frozenset(f"{word}{end}" for word in words for end in ("", "Module", "Function"))


def _drawn(**shapes: tuple[int, ...]) -> Arrays:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape) for name, shape in shapes.items()}


# ---- what a class gives --------------------------------------------------------------------------


def _layer(kind: type, parameters: Mapping[str, Array], *arguments: Any) -> tuple[Any, Arrays]:
    """A layer with these parameters, in whichever way it keeps them, and its arrays of them."""
    layer: Any = kind(*arguments)
    kept: Arrays = {}
    for name, value in parameters.items():
        if isinstance(getattr(layer, "params", None), dict | Mapping):
            kept[name] = layer.params[name] = _filled(layer.params.get(name), value)
        if isinstance(getattr(layer, name, None), np.ndarray):
            setattr(layer, name, _filled(getattr(layer, name), value))
            kept[name] = getattr(layer, name)
    return layer, kept


def _filled(known: Any, value: Array) -> Array:
    """The values, in the array that the layer has made for them if it can hold them."""
    if not isinstance(known, np.ndarray):
        return value.copy()
    if known.shape == value.T.shape:  # a layer may keep its weights transposed
        value = value.reshape(known.shape) if known.shape == value.shape else value.T
    filled = known if known.dtype == value.dtype and known.size == value.size else None
    if filled is None or not known.flags.writeable:
        return value.copy().reshape(np.shape(known))
    filled[...] = value.reshape(known.shape)
    return filled


def _call(method: Callable[..., Any], *arrays: Array) -> Any:
    """Calls a method, which must not change the arrays; the result is a copy, too."""
    copies = [array.copy() for array in arrays]
    result = copy.deepcopy(method(*copies))
    if any((a != b).any() for a, b in zip(arrays, copies, strict=True)):
        raise ChangedInputError(method.__name__)
    return result


def _gradient(layer: Any, name: str) -> Array:
    grads = getattr(layer, "grads", {})
    found = grads[name] if name in grads else getattr(layer, f"grad_{name}", None)
    if found is None:
        raise ValueError(f"backward sets neither grads[{name!r}] nor grad_{name}")
    array = np.asarray(found, dtype=np.float64)
    return array[0] if array.ndim == 2 and len(array) == 1 else array


def _with_parameters(*arguments: Any) -> Callable[[type, Arrays], Results]:
    def run(kind: type, given: Arrays) -> Results:
        parameters = {"weight": given["weight"], "bias": given["bias"]}
        layer, kept = _layer(kind, parameters, *arguments)
        if not kept:
            raise ValueError(
                "no parameters found: keep them in params['weight'] and params['bias'], or as "
                "weight and bias"
            )
        before = copy.deepcopy(kept)
        yield "forward", _call(layer.forward, given["x"])
        yield _DX, _call(layer.backward, given["dout"])
        if any((kept[name] != before[name]).any() for name in kept):
            raise ChangedInputError("backward", "the parameters: leave that to an optimiser")
        of_weight = _gradient(layer, "weight")
        is_turned = kept["weight"].shape == given["weight"].T.shape != given["weight"].shape
        yield _DW, of_weight.T if is_turned and of_weight.ndim == 2 else of_weight
        yield _DB, _gradient(layer, "bias")

    return run


def _without(kind: type, given: Arrays, *arguments: Any) -> Results:
    layer: Any = kind(*arguments)
    yield "forward", _call(layer.forward, given["x"])
    yield _DX, _call(layer.backward, given["dout"])


def _loss(kind: type, given: Arrays) -> Results:
    layer: Any = kind()
    yield "forward", _call(layer.forward, given["x"], given["t"])
    yield _DX, _call(layer.backward, given["x"], given["t"])


def _function(
    *names: str, extra: tuple[Any, ...] = ()
) -> Callable[[type[Function], Arrays], Results]:
    """Applies a Function to inputs of these names; their gradients go by `_GRADIENTS`."""

    def run(kind: type[Function], given: Arrays) -> Results:
        inputs = [torch.tensor(given[n]).requires_grad_(n != "t") for n in names]
        y: Any = kind.apply(*inputs, *extra)
        yield "forward", y.detach().numpy().copy()
        dout = torch.tensor(given["dout"]) if "dout" in given else torch.ones_like(y)
        asked = dout.clone()
        # Not torch.autograd.grad, which sums a gradient to the shape of its input without a word.
        with torch.no_grad():
            found = y.grad_fn.apply(dout)
        gradients = _checked(found, inputs, len(extra))
        given_again = zip(names, inputs, strict=True)
        if any((given[n] != tensor.detach().numpy()).any() for n, tensor in given_again):
            raise ChangedInputError("forward or backward")
        if (asked != dout).any():
            raise ChangedInputError("backward")
        for name, gradient in zip(names, gradients, strict=False):
            if name in _GRADIENTS:
                yield _GRADIENTS[name], gradient

    return run


def _checked(found: Any, inputs: list[torch.Tensor], others: int) -> list[torch.Tensor | None]:
    """What `backward` returns for the tensors, if PyTorch takes it; ones in a shape are left out."""
    if isinstance(found, list):
        raise ValueError("backward returns a list: return a tuple")
    gradients = found if isinstance(found, tuple) else (found,)
    count, wanted = len(gradients), len(inputs) + others
    if count < wanted or any(gradient is not None for gradient in gradients[wanted:]):
        raise ValueError(
            f"backward returns {count} values for {wanted} arguments of forward: None stands for "
            "those without a gradient"
        )
    if any(gradient is not None for gradient in gradients[len(inputs) :]):
        raise ValueError(
            "backward returns a gradient of an argument that is no tensor: return None"
        )
    checked: list[torch.Tensor | None] = []
    for tensor, gradient in zip(inputs, gradients, strict=False):
        if gradient is not None and not isinstance(gradient, torch.Tensor):
            raise ValueError(f"backward returns a {type(gradient).__name__}: return tensors")
        if gradient is None or gradient.squeeze().shape != tensor.squeeze().shape:
            checked.append(gradient)
        else:
            checked.append(gradient.reshape(tensor.shape))
    return checked


_GRADIENTS = {"x": _DX, "weight": _DW, "bias": _DB}


# ---- the exercises -------------------------------------------------------------------------------


def _linear() -> Exercise:
    given = _drawn(x=(_S, _M), weight=(_N, _M), bias=(_N,), dout=(_S, _N))
    x, w, b, dout = (given[name] for name in ("x", "weight", "bias", "dout"))
    expected = {"forward": x @ w.T + b, _DX: dout @ w, _DW: dout.T @ x, _DB: dout.sum(0)}
    faults = [
        ("forward", "b is not added", x @ w.T),
        (_DB, "the sum is over the outputs, not over the samples", dout.sum(1)),
        (_DB, "it is not summed over the samples", dout),
    ]
    return Exercise(
        "Linear",
        _names("Linear"),
        given,
        expected,
        faults,
        _with_parameters(_M, _N),
        _function("x", "weight", "bias"),
    )


def _elu() -> Exercise:
    given = _drawn(x=(_S, _M), dout=(_S, _M))
    x, dout = given["x"], given["dout"]
    y = np.where(x > 0, x, np.expm1(x))
    expected = {"forward": y, _DX: dout * np.where(x > 0, 1, np.exp(x))}
    faults = [
        ("forward", "it is ReLU: e^X - 1 is missing where X < 0", np.maximum(x, 0)),
        ("forward", "the - 1 is missing where X < 0", np.where(x > 0, x, np.exp(x))),
        (_DX, "it is the derivative of ReLU: e^X is missing where X < 0", dout * (x > 0)),
        (_DX, "the derivative is e^X for X > 0, too: there it is 1", dout * np.exp(x)),
        (_DX, "where X < 0 it is e^X - 1, the output: the derivative is e^X", dout * np.where(x > 0, 1, y)),
        (_DX, "the derivative is not multiplied with dL/dY", np.where(x > 0, 1, np.exp(x))),
        (_DX, "the derivative is left out: it is dL/dY", dout),
    ]  # fmt: skip
    far = {"x": np.full((1, 2), (-1e3, 1e3)), "dout": np.ones((1, 2))}
    limits = {"forward": np.array([[-1, 1e3]]), _DX: np.array([[0.0, 1]])}
    reason = "e^X is infinite for X = 1000: take it only where X < 0, as of min(X, 0)"
    runs = _elu_layer(1.0), _elu_function(1.0)
    twice = {
        "forward": np.where(x > 0, x, 2 * np.expm1(x)),
        _DX: dout * np.where(x > 0, 1, 2 * np.exp(x)),
    }
    more = (
        Again("large X", far, limits, reason, *runs),
        Again("α = 2", given, twice, "α is not in it everywhere: Y = α (e^X - 1) where X < 0", _elu_layer(2.0), _elu_function(2.0)),
    )  # fmt: skip
    return Exercise("ELU", _names("ELU"), given, expected, faults, *runs, more)


def _elu_layer(alpha: float) -> Callable[[type, Arrays], Results]:
    """With alpha, if `__init__` takes one."""

    def run(kind: type, given: Arrays) -> Results:
        takes_alpha = any(map(_is_alpha, inspect.signature(kind).parameters.values()))
        if takes_alpha or alpha == 1:
            yield from _without(kind, given, *([alpha] if takes_alpha else []))

    return run


def _elu_function(alpha: float) -> Callable[[type[Function], Arrays], Results]:
    """With alpha, if `forward` takes one."""

    def run(kind: type[Function], given: Arrays) -> Results:
        # Without setup_context, forward has a context in front.
        first = 1 + (kind.setup_context is Function.setup_context)
        others = [*inspect.signature(kind.forward).parameters.values()][first:]
        takes_alpha = any(map(_is_alpha, others))
        if takes_alpha or alpha == 1:
            yield from _function("x", extra=(alpha,) if takes_alpha else ())(kind, given)

    return run


def _is_alpha(argument: inspect.Parameter) -> bool:
    """Whether an argument is alpha: by its name, or because it must be given."""
    is_required = argument.default is argument.empty and argument.kind != argument.VAR_KEYWORD
    return "alpha" in argument.name.lower() or (
        is_required and argument.kind != argument.VAR_POSITIONAL
    )


def _softmax() -> Exercise:
    given = _drawn(x=(_S, _N), dout=(_S, _N))
    x, dout = given["x"], given["dout"]
    e = np.exp(x)
    y = e / e.sum(1, keepdims=True)
    inner = (dout * y).sum(1, keepdims=True)
    expected = {"forward": y, _DX: y * (dout - inner)}
    faults = [
        ("forward", "it is normalised over the samples, not over the classes", e / e.sum(0)),
        ("forward", "it is normalised over all, not over each row", e / e.sum()),
        ("forward", "it is not normalised", e),
        (_DX, "only the diagonal Y (1 - Y) is there: a class changes the others, too", dout * y * (1 - y)),
        (_DX, "the sum Σ_j dL/dY_j Y_j is missing", dout * y),
        (_DX, "the sum Σ_j dL/dY_j Y_j is over the samples, not over the classes", y * (dout - (dout * y).sum(0))),
        (_DX, "the factor Y in front is missing", dout - inner),
        (_DX, "the sum is Σ_j dL/dY_j: its factor Y_j is missing", y * (dout - dout.sum(1, keepdims=True))),
    ]  # fmt: skip
    names = _names("Softmax", "SoftMax")
    reason = "e^X is infinite for X = 1000: subtract the maximum of each row first"
    rows = {**given, "x": x + 1e3 * np.arange(_S)[:, None]}  # a maximum over all would not do
    runs = _without, _function("x")
    more = (Again("large X", rows, expected, reason, *runs),)
    return Exercise("Softmax", names, given, expected, faults, *runs, more)


def _cross_entropy() -> Exercise:
    given = _drawn(x=(_S, _N))
    p = np.exp(given["x"]) / np.exp(given["x"]).sum(1, keepdims=True)
    t = np.eye(_N)[np.arange(_S) % _N]
    given = {"x": p, "t": t}
    loss = -(t * np.log(p)).sum() / _S
    expected = {"forward": np.asarray(loss), _DX: -t / p / _S}
    faults = [
        ("forward", "log(1 - P) is in it: that is the loss of two classes",
         np.asarray(-(t * np.log(p) + (1 - t) * np.log(1 - p)).sum() / _S)),
        (_DX, "it is that of softmax and cross-entropy together", (p - t) / _S),
        (_DX, "1/P is missing", -t / _S),
        (_DX, "T is missing: only the true class has a gradient", -1 / p / _S),
    ]  # fmt: skip
    names = _names("CrossEntropy")
    twice = {**given, "dout": np.asarray(2.0)}
    doubled = {**expected, _DX: 2 * expected[_DX]}
    runs = _loss, _function("x", "t")
    more = (Again("dL/dY = 2", twice, doubled, "dL/dY is not a factor of dL/dX", None, runs[1]),)
    return Exercise("CrossEntropy", names, given, expected, faults, *runs, more)


def _layer_norm() -> Exercise:
    features = 6
    given = _drawn(x=(_S, features), weight=(features,), bias=(features,), dout=(_S, features))
    x, g, b, dout = (given[name] for name in ("x", "weight", "bias", "dout"))

    def mean(values: Array) -> Array:
        return np.asarray(values.mean(1, keepdims=True))

    def parts(eps: float = _EPS, ddof: int = 0) -> tuple[Array, Array]:
        rstd = 1 / np.sqrt(x.var(1, ddof=ddof, keepdims=True) + eps)
        return (x - mean(x)) * rstd, rstd

    xh, rstd = parts()
    dxh = dout * g
    term = mean(dxh * xh)

    def gradient(dxh: Array, xh: Array, rstd: Array) -> Array:
        return rstd * (dxh - mean(dxh) - xh * mean(dxh * xh))

    expected = {
        "forward": g * xh + b,
        _DX: gradient(dxh, xh, rstd),
        _DW: (dout * xh).sum(0),
        _DB: dout.sum(0),
    }
    without_eps, unbiased = parts(0.0), parts(_EPS, 1)
    over_samples = (x - x.mean(0)) / np.sqrt(x.var(0) + _EPS)
    outside = (x - mean(x)) / (x.std(1, keepdims=True) + _EPS)
    faults = [
        ("forward", "ε is missing", g * without_eps[0] + b),
        ("forward", "ε is added to the root, not under it", g * outside + b),
        ("forward", "the variance is divided by M - 1, not by M", g * unbiased[0] + b),
        ("forward", "mean and variance are of the columns (the batch), not of each row", g * over_samples + b),
        ("forward", "γ is missing", xh + b),
        ("forward", "β is missing", g * xh),
        ("forward", "the mean is not taken off", g * x * rstd + b),
        (_DX, "μ and σ are taken as constants: the terms with mean(dX̂) and X̂ mean(dX̂ X̂) are missing", rstd * dxh),
        (_DX, "the term X̂ mean(dX̂ X̂) is missing: σ depends on X, too", rstd * (dxh - mean(dxh))),
        (_DX, "the term mean(dX̂) is missing: μ depends on X, too", rstd * (dxh - xh * term)),
        (_DX, "the term X̂ mean(dX̂ X̂) is without its factor X̂", rstd * (dxh - mean(dxh) - term)),
        (_DX, "mean(dX̂) and mean(dX̂ X̂) are sums, not means", rstd * (dxh - features * (mean(dxh) + xh * term))),
        (_DX, "the sign of the term mean(dX̂) is wrong", rstd * (dxh + mean(dxh) - xh * term)),
        (_DX, "the sign of the term X̂ mean(dX̂ X̂) is wrong", rstd * (dxh - mean(dxh) + xh * term)),
        (_DX, "the signs of both means are wrong", rstd * (dxh + mean(dxh) + xh * term)),
        (_DX, "the means are divided by M - 1, not by M", rstd * (dxh - (mean(dxh) + xh * term) * features / (features - 1))),
        (_DX, "ε is missing in the factor 1/√(σ² + ε)", gradient(dxh, xh, without_eps[1])),
        (_DX, "γ is missing: dX̂ = γ dL/dY", gradient(dout, xh, rstd)),
        (_DX, "ε is missing", gradient(dxh, *without_eps)),
        (_DX, "the variance is divided by M - 1, not by M", gradient(dxh, *unbiased)),
        (_DX, "the factor 1/√(σ² + ε) is missing", gradient(dxh, xh, np.ones_like(rstd))),
        (_DX, "the factor is 1/(σ² + ε), not its root", rstd * gradient(dxh, xh, rstd)),
        (_DX, "the means are over the samples, not over the features", rstd * (dxh - dxh.mean(0) - xh * (dxh * xh).mean(0))),
        (_DW, "the factor X̂ is missing", dout.sum(0)),
        (_DW, "the factor is X, not X̂", (dout * x).sum(0)),
        (_DW, "it is not summed over the samples", dout * xh),
        (_DW, "the sum is over the features, not over the samples", (dout * xh).sum(1)),
        (_DB, "it is not summed over the samples", dout),
        (_DB, "γ is in it: β is added after γ", (dout * g).sum(0)),
    ]  # fmt: skip
    reason = "mean(X²) - μ² rounds the variance away for X = 1,000,000: take mean((X - μ)²)"
    runs = _with_parameters(features, _EPS), _function("x", "weight", "bias", extra=(_EPS,))
    more = (Again("large X", {**given, "x": x + 1e6}, expected, reason, *runs),)
    names = _names("LayerNorm") | {"CustomLayerNormManualFunction"}
    return Exercise("LayerNorm", names, given, expected, faults, *runs, more)


_KERNEL, _STRIDE, _ZEROS = 3, 2, 1


def _windows(x: Array, stride: int = _STRIDE, zeros: int = _ZEROS) -> Array:
    """What the kernel sees at each position (p, q): (S, C, P, Q, U, V)."""
    around = ((0, 0), (0, 0), (zeros, zeros), (zeros, zeros))
    views = np.lib.stride_tricks.sliding_window_view(np.pad(x, around), (_KERNEL, _KERNEL), (2, 3))
    return views[:, :, ::stride, ::stride]


def _added(windows: Array, size: tuple[int, int], stride: int = _STRIDE, add: bool = True) -> Array:
    """Adds windows up where they come from, in the padded image of this size."""
    padded = np.zeros((*windows.shape[:2], *size))
    for p, q in np.ndindex(windows.shape[2:4]):
        place = padded[:, :, stride * p :, stride * q :][..., :_KERNEL, :_KERNEL]
        place[...] = windows[:, :, p, q] + (place if add else 0)
    return padded


def _conv2d() -> Exercise:
    inputs, outputs, (height, width), (p, q) = 2, 3, (6, 7), (3, 4)
    given = _drawn(
        x=(_S, inputs, height, width),
        weight=(outputs, inputs, _KERNEL, _KERNEL),
        bias=(outputs,),
        dout=(_S, outputs, p, q),
    )
    x, w, b, dout = (given[name] for name in ("x", "weight", "bias", "dout"))
    padded = (height + 2 * _ZEROS, width + 2 * _ZEROS)
    inside = (..., slice(_ZEROS, -_ZEROS), slice(_ZEROS, -_ZEROS))
    flipped, swapped = w[..., ::-1, ::-1], w.swapaxes(2, 3)
    reshaped = w.reshape(inputs, outputs, _KERNEL, _KERNEL).swapaxes(0, 1)

    def forward(w: Array, stride: int = _STRIDE, zeros: int = _ZEROS) -> Array:
        y: Array = np.einsum("scpquv,ocuv->sopq", _windows(x, stride, zeros), w)
        return y + b[:, None, None]

    def spread(w: Array, dout: Array = dout, **options: Any) -> Array:
        return _added(np.einsum("ocuv,sopq->scpquv", w, dout), padded, **options)

    def product(windows: Array, to: str = "ocuv") -> Array:
        return np.asarray(np.einsum(f"sopq,scpquv->{to}", dout, windows))

    y, dx, dw = forward(w), spread(w), product(_windows(x))
    columns = _windows(x).transpose(0, 2, 3, 1, 4, 5).reshape(_S, p, q, -1)
    by_rows = (columns @ w.reshape(-1, outputs) + b).transpose(0, 3, 1, 2)
    expected = {"forward": y, _DX: dx[inside], _DW: dw, _DB: dout.sum((0, 2, 3))}
    faults = [
        ("forward", "b is not added", y - b[:, None, None]),
        ("forward", "the kernel is flipped: that is the convolution of mathematics, here W is laid on X as it is", forward(flipped)),
        ("forward", "rows and columns of the kernel are swapped", forward(swapped)),
        ("forward", "the padding is forgotten", forward(w, zeros=0)),
        ("forward", "the stride is ignored", forward(w, stride=1)),
        ("forward", "stride and padding are ignored", forward(w, stride=1, zeros=0)),
        ("forward", "W is reshaped to (C U V, O): reshape it to (O, C U V), then transpose", by_rows),
        ("forward", "the channels are last: transpose (S, P, Q, O) to (S, O, P, Q)", y.transpose(0, 2, 3, 1)),
        ("forward", "it is reshaped from (S, P, Q, O), which mixes channels and pixels: transpose", y.transpose(0, 2, 3, 1).reshape(y.shape)),
        ("forward", "samples and channels are swapped: transpose (O, S, P, Q) to (S, O, P, Q)", y.swapaxes(0, 1)),
        ("forward", "it is reshaped from (O, S, P, Q), which mixes samples and channels: transpose", y.swapaxes(0, 1).reshape(y.shape)),
        (_DX, "the kernel is the wrong way round: flip it where you convolve dL/dY with it, and not where you add windows up", spread(flipped)[inside]),
        (_DX, "rows and columns of the kernel are swapped", spread(swapped)[inside]),
        (_DX, "W is reshaped to (C, O, U, V), which mixes its channels: transpose", spread(reshaped)[inside]),
        (_DX, "windows overwrite each other: add what overlaps, with +=", spread(w, add=False)[inside]),
        (_DX, "only the last output channel is in it: add over o", spread(w[-1:], dout[:, -1:])[inside]),
        (_DX, "the gradient of the padding is not cut off", dx),
        (_DX, "the padding is forgotten, or cut off below and to the right alone: cut it off at all four sides", dx[..., : -2 * _ZEROS, : -2 * _ZEROS]),
        (_DX, "the padding is cut off above and to the left alone: cut it off at all four sides", dx[..., 2 * _ZEROS :, 2 * _ZEROS :]),
        (_DX, "the stride is ignored: the windows are one pixel apart", spread(w, stride=1)[inside]),
        (_DX, "the stride is ignored: put zeros between the elements of dL/dY", spread(w, stride=1)[..., 1 : p + 1, 1 : q + 1]),
        (_DW, "the kernel is flipped", dw[..., ::-1, ::-1]),
        (_DW, "rows and columns of the kernel are swapped", dw.swapaxes(2, 3)),
        (_DW, "its channels are swapped: transpose (C, O, U, V) to (O, C, U, V)", dw.swapaxes(0, 1)),
        (_DW, "it is reshaped from (C U V, O), which mixes its channels: transpose", dw.reshape(outputs, -1).T.reshape(dw.shape)),
        (_DW, "it is not summed over the samples", product(_windows(x), "socuv")),
        (_DW, "only the last sample is in it: add over s", np.einsum("opq,cpquv->ocuv", dout[-1], _windows(x)[-1])),
        (_DW, "only the last position is in it: add over p and q", np.einsum("so,scuv->ocuv", dout[..., -1, -1], _windows(x)[:, :, -1, -1])),
        (_DW, "the sum is over the kernel (u, v), not over the positions (p, q)", product(_windows(x), "ocpq")),
        (_DW, "the stride is ignored: the windows are one pixel apart", product(_windows(x, 1)[:, :, :p, :q])),
        (_DB, "it is not summed over samples and pixels", dout),
        (_DB, "it is not summed over the pixels", dout.sum(0)),
        (_DB, "it is not summed over the samples", dout.sum((2, 3))),
        (_DB, "the sum is over the channels, not over the samples", dout.sum((1, 2, 3))),
        (_DB, "the sum is over the channels, not over the pixels", dout.sum((0, 1))),
        (_DB, "it is a mean over samples and pixels, not a sum", dout.mean((0, 2, 3))),
    ]  # fmt: skip
    runs = (
        _with_parameters(inputs, outputs, _KERNEL, _STRIDE, _ZEROS),
        _conv2d_function(_STRIDE, _ZEROS),
    )
    names = _names("Conv2d", "Conv", "Convolution")
    return Exercise("Conv2d", names, given, expected, faults, *runs, (_unpadded(),))


def _unpadded() -> Again:
    """A convolution with stride 1 and without padding, of another kernel."""
    given = _drawn(x=(_S, 2, 5, 4), weight=(3, 2, 2, 2), bias=(3,), dout=(_S, 3, 4, 3))
    x, w, bias, dout = (given[name] for name in ("x", "weight", "bias", "dout"))
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))
    dx = np.zeros_like(x)
    for u, v in np.ndindex(2, 2):
        dx[:, :, u : u + 4, v : v + 3] += np.einsum("sopq,oc->scpq", dout, w[:, :, u, v])
    expected = {
        "forward": np.einsum("scpquv,ocuv->sopq", windows, w) + bias[:, None, None],
        _DX: dx,
        _DW: np.einsum("sopq,scpquv->ocuv", dout, windows),
        _DB: dout.sum((0, 2, 3)),
    }
    reason = "it is wrong for a kernel of 2 × 2, stride 1, padding 0: take size, stride and padding from the arguments, and cut nothing off for padding 0"
    runs = _with_parameters(2, 3, 2, 1, 0), _conv2d_function(1, 0)
    return Again("padding 0", given, expected, reason, *runs)


def _conv2d_function(stride: int, padding: int) -> Callable[[type[Function], Arrays], Results]:
    def run(kind: type[Function], given: Arrays) -> Results:
        extra: tuple[Any, ...] = (stride, padding)
        if issubclass(kind, Conv2dFunction):
            extra = (Geometry((stride, stride), (padding, padding)),)
        return _function("x", "weight", "bias", extra=extra)(kind, given)

    return run


EXERCISES = (_linear(), _elu(), _softmax(), _cross_entropy(), _layer_norm(), _conv2d())
