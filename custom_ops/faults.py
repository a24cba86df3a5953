# ruff: noqa: E501, RUF001 - a fault is a line, in the letters of its formula
"""Operators to be derived by hand: inputs, the right results, and what known faults give.

For `custom_ops.check`. Shapes: S samples, M inputs, N outputs; all in float64.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import Function

Array = npt.NDArray[np.float64]
Arrays = dict[str, Array]
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
        of_layer: what a layer in NumPy gives.
        of_function: what a `torch.autograd.Function` gives; None where there is none.
    """

    name: str
    names: frozenset[str]
    inputs: Arrays
    expected: Arrays
    faults: Faults
    of_layer: Callable[[type, Arrays], Arrays]
    of_function: Callable[[type[Function], Arrays], Arrays]


def _names(*words: str) -> frozenset[str]:
    return frozenset(f"{word}{end}" for word in words for end in ("", "Module", "Function"))


def _drawn(**shapes: tuple[int, ...]) -> Arrays:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape) for name, shape in shapes.items()}


# ---- what a class gives --------------------------------------------------------------------------


def _layer(kind: type, parameters: Mapping[str, Array], *arguments: Any) -> Any:
    """A layer with these parameters, in whichever way it keeps them."""
    layer: Any = kind(*arguments)
    for name, value in parameters.items():
        if isinstance(getattr(layer, "params", None), dict | Mapping):
            known = layer.params.get(name)
            layer.params[name] = value.reshape(np.shape(known)) if known is not None else value
        if isinstance(getattr(layer, name, None), np.ndarray):
            setattr(layer, name, value.copy())
    return layer


def _gradient(layer: Any, name: str) -> Array:
    grads = getattr(layer, "grads", {})
    found = grads[name] if name in grads else getattr(layer, f"grad_{name}", None)
    if found is None:
        raise ValueError(f"backward sets neither grads[{name!r}] nor grad_{name}")
    array = np.asarray(found, dtype=np.float64)
    return array[0] if name == "bias" and array.ndim == 2 and len(array) == 1 else array


def _with_parameters(*arguments: Any) -> Callable[[type, Arrays], Arrays]:
    def run(kind: type, given: Arrays) -> Arrays:
        parameters = {"weight": given["weight"], "bias": given["bias"]}
        layer = _layer(kind, parameters, *arguments)
        y = copy.deepcopy(layer.forward(given["x"].copy()))
        dx = layer.backward(given["dout"].copy())
        return {
            "forward": y,
            _DX: dx,
            _DW: _gradient(layer, "weight"),
            _DB: _gradient(layer, "bias"),
        }

    return run


def _without(kind: type, given: Arrays) -> Arrays:
    layer: Any = kind()
    y = copy.deepcopy(layer.forward(given["x"].copy()))
    return {"forward": y, _DX: layer.backward(given["dout"].copy())}


def _loss(kind: type, given: Arrays) -> Arrays:
    layer: Any = kind()
    y, t = given["x"].copy(), given["t"].copy()
    return {"forward": layer.forward(y, t), _DX: layer.backward(y, t)}


def _function(*names: str, extra: tuple[Any, ...] = ()) -> Callable[..., Arrays]:
    """Applies a Function to inputs of these names; their gradients go by `_GRADIENTS`."""

    def run(kind: type[Function], given: Arrays) -> Arrays:
        inputs = [torch.tensor(given[n]).requires_grad_(n != "t") for n in names]
        y: Any = kind.apply(*inputs, *extra)
        dout = torch.tensor(given["dout"]) if "dout" in given else torch.ones_like(y)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad(y, wanted, dout)
        gradients = zip([n for n in names if n != "t"], found, strict=True)
        results = {"forward": y.detach().numpy()}
        return results | {_GRADIENTS[n]: gradient.numpy() for n, gradient in gradients}

    return run


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
    return Exercise("ELU", _names("ELU"), given, expected, faults, _without, _function_of_elu)


def _function_of_elu(kind: type[Function], given: Arrays) -> Arrays:
    try:
        return _function("x")(kind, given)
    except TypeError:  # with alpha
        return _function("x", extra=(1.0,))(kind, given)


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
    return Exercise("Softmax", names, given, expected, faults, _without, _function("x"))


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
    return Exercise("CrossEntropy", names, given, expected, faults, _loss, _function("x", "t"))


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
    return Exercise(
        "LayerNorm",
        _names("LayerNorm") | {"CustomLayerNormManualFunction"},
        given,
        expected,
        faults,
        _with_parameters(features, _EPS),
        _function("x", "weight", "bias", extra=(_EPS,)),
    )


EXERCISES = (_linear(), _elu(), _softmax(), _cross_entropy(), _layer_norm())
