"""The unit tests that come with the course assignment, in our own words, on our classes.

Sizes, tolerances and the error measure are the assignment's: gradients against central
differences of step 1e-5, seed 42. It checks no gradient of a bias, no forward value, no
stability and no wrong shape; the other test files do.
"""

import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from custom_ops import LayerNorm, LayerNormFunction
from custom_ops import numpy_ops as ops
from custom_ops.numpy_ops import Array

SEED = 42


def relative_error(a: Array, b: Array) -> float:
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b))))


def numeric_gradient(f: Callable[[], Array | float], x: Array, dout: Array | float) -> Array:
    """Central differences of sum(f() * dout) as f sees x change in place, element by element."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        value, sides = x[index], []
        for step in (1e-5, -1e-5):
            x[index] = value + step
            sides.append(np.array(f()))
        x[index] = value
        gradient[index] = np.sum((sides[0] - sides[1]) * dout) / 2e-5
    return gradient


def sizes(cases: int, *ranges: tuple[int, int]) -> Iterator[tuple[np.random.Generator, list[int]]]:
    """A generator seeded as the course seeds, and `cases` draws from the half-open ranges."""
    rng = np.random.default_rng(SEED)
    for _ in range(cases):
        yield rng, [int(rng.integers(*bounds)) for bounds in ranges]


def test_cross_entropy_backward() -> None:
    for rng, (n, c) in sizes(10, (1, 100), (1, 10)):
        p = ops.Softmax().forward(rng.normal(size=(n, c)))
        t = np.eye(c)[rng.integers(c, size=n)]
        loss = ops.CrossEntropy()
        numeric = numeric_gradient(partial(loss.forward, p, t), p, 1.0)
        assert relative_error(loss.backward(p, t), numeric) < 1e-5


def test_linear_backward() -> None:
    for rng, (n, d, c) in sizes(10, (1, 20), (1, 100), (1, 10)):
        layer = ops.Linear(d, c, rng=rng, dtype=np.float64)
        x, dout = rng.normal(size=(n, d)), rng.normal(size=(n, c))
        layer.forward(x)
        dx = layer.backward(dout)
        dweight = layer.grad_weight.copy()
        forward = partial(layer.forward, x)
        assert relative_error(dx, numeric_gradient(forward, x, dout)) < 1e-5
        assert relative_error(dweight, numeric_gradient(forward, layer.weight, dout)) < 1e-5


@pytest.mark.parametrize(("layer", "tolerance"), [(ops.ELU(), 1e-6), (ops.Softmax(), 1e-5)])
def test_activation_backward(layer: ops.ELU | ops.Softmax, tolerance: float) -> None:
    for rng, (n, d) in sizes(10, (1, 20), (1, 100)):
        x, dout = rng.normal(size=(n, d)), rng.normal(size=(n, d))
        layer.forward(x)
        dx = layer.backward(dout)
        assert relative_error(dx, numeric_gradient(partial(layer.forward, x), x, dout)) < tolerance


def test_in_the_names_of_the_course() -> None:
    """What the docstring of `numpy_ops` shows is run, and then the course's tests by its names."""
    assert ops.__doc__ is not None
    lines = re.findall(r"(?:^    .*\n)(?:^(?:    .*)?\n)+", ops.__doc__, re.MULTILINE)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(lines[0]), names)
    for rng, (n, d, c) in sizes(3, (1, 20), (1, 20), (1, 10)):
        x, dout = rng.normal(size=(n, d)), rng.normal(size=(n, c))
        layer = names["LinearModule"](d, c)
        assert layer.forward(x).dtype == np.float64
        dx, forward = layer.backward(dout), partial(layer.forward, x)
        found, weight = layer.grads["weight"].copy(), layer.params["weight"]
        assert relative_error(dx, numeric_gradient(forward, x, dout)) < 1e-5
        assert relative_error(found, numeric_gradient(forward, weight, dout)) < 1e-5
        for name in ("ELUModule", "SoftMaxModule"):
            layer = names[name]()
            layer.forward(dout)
            numeric = numeric_gradient(partial(layer.forward, dout), dout, dout.copy())
            layer.forward(dout)
            assert relative_error(layer.backward(dout), numeric) < 1e-5
        p, indices = names["SoftMaxModule"]().forward(dout), rng.integers(c, size=n)
        for y in (indices, np.eye(c)[indices]):
            loss = names["CrossEntropyModule"]()
            numeric = numeric_gradient(partial(loss.forward, p, y), p, 1.0)
            assert relative_error(loss.backward(p, y), numeric) < 1e-5


@pytest.mark.parametrize("batches", [(16, 32), (8, 32)])
def test_layer_norm_module_normalises_rows(batches: tuple[int, int]) -> None:
    torch.manual_seed(SEED)
    for _, (n, m) in sizes(10, batches, (64, 256)):
        y = LayerNorm(m)(2 * torch.randn(n, m) + 10)
        assert y.mean(1).abs().max() < 1e-5
        assert (y.var(1) - 1).abs().max() < 0.1


@pytest.mark.parametrize("gamma", ["ones", "ramp"])
@pytest.mark.parametrize(
    ("batches", "features"),
    [((2, 8), (32, 64)), pytest.param((8, 32), (128, 256), marks=pytest.mark.slow, id="course")],
)
def test_layer_norm_function(
    gamma: str, batches: tuple[int, int], features: tuple[int, int]
) -> None:
    """PyTorch's default gradcheck, by default on at most 7 x 63.

    At the course's own sizes, marked slow, a Jacobian has up to 4650² elements.
    """
    torch.manual_seed(SEED)
    for _, (n, m) in sizes(5, batches, features):
        x = (2 * torch.randn(n, m, dtype=torch.float64) + 10).requires_grad_()
        ramp = torch.arange(m, dtype=torch.float64)
        weight = torch.ones_like(ramp) if gamma == "ones" else (10 * ramp).sqrt()
        inputs = (x, weight.requires_grad_(), (100 * ramp).requires_grad_())
        if gamma == "ones":
            y = LayerNormFunction.apply(*inputs)
            assert (y.mean(1) - inputs[2].mean()).abs().max() < 1e-5
        assert torch.autograd.gradcheck(LayerNormFunction.apply, inputs)
