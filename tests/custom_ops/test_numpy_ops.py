"""NumPy layers against PyTorch's autograd, and their behaviour at the edges."""

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import custom_ops
from custom_ops import numpy_ops as ops
from custom_ops.numpy_ops import Array

Reference = Callable[..., torch.Tensor]


class Layer(Protocol):
    def forward(self, x: Array) -> Array: ...

    def backward(self, dout: Array) -> Array: ...


RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5)) * 3
DOUT = RNG.normal(size=(7, 5))
CLASSES = RNG.integers(5, size=7)
ONE_HOT = np.eye(5)[CLASSES]

ACTIVATIONS: dict[str, tuple[Layer, Reference]] = {
    "elu": (ops.ELU(), F.elu),
    "elu_half": (ops.ELU(0.5), lambda x: F.elu(x, 0.5)),
    "relu": (ops.ReLU(), F.relu),
    "tanh": (ops.Tanh(), torch.tanh),
    "softmax": (ops.Softmax(), lambda x: F.softmax(x, -1)),
    "elu_function": (ops.ELU(0.5), lambda x: custom_ops.elu(x, 0.5)),
    "softmax_function": (ops.Softmax(), custom_ops.softmax),
}


def leaf(array: Array) -> torch.Tensor:
    return torch.tensor(array, requires_grad=True)


def close(ours: Array | float, reference: torch.Tensor) -> None:
    np.testing.assert_allclose(ours, reference.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_matches_autograd(name: str) -> None:
    layer, reference = ACTIVATIONS[name]
    x = leaf(X)
    y = reference(x)
    (dx,) = torch.autograd.grad(y, x, torch.tensor(DOUT))
    close(layer.forward(X), y)
    close(layer.backward(DOUT), dx)


@pytest.mark.parametrize("reference", [F.linear, custom_ops.linear])
def test_linear_matches_autograd(reference: Reference) -> None:
    layer = ops.Linear(5, 4, weight_std=1.0, rng=np.random.default_rng(1), dtype=np.float64)
    layer.bias += np.arange(4)
    inputs = (leaf(X), leaf(layer.weight), leaf(layer.bias))
    y = reference(*inputs)
    dx, dweight, dbias = torch.autograd.grad(y, inputs, torch.tensor(DOUT[:, :4]))
    close(layer.forward(X), y)
    close(layer.backward(DOUT[:, :4]), dx)
    close(layer.grad_weight, dweight)
    close(layer.grad_bias, dbias)


@pytest.mark.parametrize(
    "reference", [lambda p, t: -(t * p.log()).sum(-1).mean(), custom_ops.cross_entropy]
)
def test_cross_entropy_matches_autograd(reference: Reference) -> None:
    probabilities = ops.Softmax().forward(X)
    p = leaf(probabilities)
    loss = reference(p, torch.tensor(ONE_HOT))
    close(ops.CrossEntropy().forward(probabilities, ONE_HOT), loss)
    (dp,) = torch.autograd.grad(loss, p)
    close(ops.CrossEntropy().backward(probabilities, ONE_HOT), dp)


@pytest.mark.parametrize("reference", [F.cross_entropy, custom_ops.softmax_cross_entropy])
def test_softmax_cross_entropy_matches_autograd(reference: Reference) -> None:
    logits = leaf(X)
    loss = reference(logits, torch.tensor(CLASSES))
    close(ops.SoftmaxCrossEntropy().forward(X, ONE_HOT), loss)
    (dlogits,) = torch.autograd.grad(loss, logits)
    close(ops.SoftmaxCrossEntropy().backward(X, ONE_HOT), dlogits)


def test_fused_gradient_is_the_product_of_its_parts() -> None:
    softmax = ops.Softmax()
    dp = ops.CrossEntropy().backward(softmax.forward(X), ONE_HOT)
    fused = ops.SoftmaxCrossEntropy().backward(X, ONE_HOT)
    np.testing.assert_allclose(softmax.backward(dp), fused, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype: type[np.floating[Any]]) -> None:
    x, dout = X.astype(dtype), DOUT.astype(dtype)
    linear = ops.Linear(5, 5, dtype=dtype)
    layers: list[Layer] = [linear, ops.ELU(np.float64(0.5)), ops.ReLU(), ops.Tanh(), ops.Softmax()]
    for layer in layers:
        assert layer.forward(x).dtype == dtype
        assert layer.backward(dout).dtype == dtype
    assert linear.grad_weight.dtype == linear.grad_bias.dtype == dtype
    for loss in (ops.CrossEntropy(), ops.SoftmaxCrossEntropy()):  # the one-hot rows are float64
        assert loss.backward(np.abs(x), ONE_HOT).dtype == dtype


def test_huge_logits_stay_finite() -> None:
    x = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    t = np.eye(3)[[1, 2]]
    expected = np.array([[1, 0, 0], [1 / 3] * 3])
    np.testing.assert_allclose(ops.Softmax().forward(x), expected, rtol=1e-6)
    assert ops.SoftmaxCrossEntropy().forward(x, t) == pytest.approx((1e4 + np.log(3)) / 2)
    expected = np.array([[0.5, -0.5, 0], [1 / 6, 1 / 6, -1 / 3]])
    np.testing.assert_allclose(ops.SoftmaxCrossEntropy().backward(x, t), expected, rtol=1e-6)


def test_impossible_wrong_class_costs_nothing() -> None:
    x, t = np.array([[0.0, 0.0, -np.inf]]), np.array([[1, 0, 0]])
    assert ops.SoftmaxCrossEntropy().forward(x, t) == pytest.approx(np.log(2))
    np.testing.assert_array_equal(ops.SoftmaxCrossEntropy().backward(x, t), [[-0.5, 0.5, 0]])


def test_underflowed_wrong_class_costs_nothing() -> None:
    p, t = np.array([[1.0, 0.0]]), np.array([[1, 0]])
    assert ops.CrossEntropy().forward(p, t) == 0
    np.testing.assert_array_equal(ops.CrossEntropy().backward(p, t), [[-1, 0]])


def test_elu_keeps_digits_near_zero_and_does_not_overflow() -> None:
    x = np.array([[-1e-8, 1e4, -1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(
            ops.ELU().forward(x), np.array([[-1e-8, 1e4, -1]], np.float32)
        )


@pytest.mark.parametrize(
    "layer", [ops.Linear(5, 5), ops.ELU(), ops.ReLU(), ops.Softmax()], ids=repr
)
def test_nan_stays_in_its_row(layer: Layer) -> None:
    x = X.copy()
    x[2] = np.nan
    clean = layer.forward(np.delete(x, 2, axis=0))
    y = layer.forward(x)
    assert np.isnan(y[2]).all()
    np.testing.assert_allclose(np.delete(y, 2, axis=0), clean)


@pytest.mark.parametrize(
    "layer", [ops.Linear(3, 2), ops.ELU(), ops.ReLU(), ops.Tanh(), ops.Softmax()], ids=repr
)
def test_backward_before_forward_is_an_error(layer: Layer) -> None:
    with pytest.raises(RuntimeError, match=r"call forward\(x\) first"):
        layer.backward(np.zeros((1, 2)))


def test_linear_draws_from_the_given_generator() -> None:
    first, second = (ops.Linear(300, 200, rng=np.random.default_rng(3)).weight for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.std() == pytest.approx(1e-4, rel=0.02)
    assert abs(first.mean()) < 2e-6


def test_wrong_shapes_are_named() -> None:
    message = r"x of shape \(samples, 3\), got \(2, 4\): flatten each sample to one row\Z"
    with pytest.raises(ValueError, match=message):
        ops.Linear(3, 2).forward(np.zeros((2, 4)))
    for loss in (ops.CrossEntropy(), ops.SoftmaxCrossEntropy()):
        start = rf"\A{type(loss).__name__}\(\) expected scores \(samples, classes\) and .*, got "
        misfits: list[Any] = [
            CLASSES * 1.0,
            CLASSES > 0,
            CLASSES[:6],
            ONE_HOT[:, :4],
            CLASSES[None],
        ]
        for t in misfits:
            end = rf"\(7, 5\) and {re.escape(str(t.shape))} of {t.dtype}\Z"
            for call in (loss.forward, loss.backward):
                with pytest.raises(ValueError, match=start + end):
                    call(X, t)
        flat: list[Any] = [X[0], np.float64(1)]
        for scores in flat:
            with pytest.raises(ValueError, match=start):
                loss.forward(scores, ONE_HOT[0])


@pytest.mark.parametrize("loss", [ops.CrossEntropy(), ops.SoftmaxCrossEntropy()], ids=repr)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_targets_may_be_class_indices(
    loss: ops.CrossEntropy | ops.SoftmaxCrossEntropy, dtype: type[np.integer[Any]]
) -> None:
    p, indices = ops.Softmax().forward(X).astype(np.float32), CLASSES.astype(dtype)
    assert loss.forward(p, indices) == loss.forward(p, ONE_HOT.astype(np.float32))
    np.testing.assert_array_equal(loss.backward(p, indices), loss.backward(p, ONE_HOT))
    assert loss.backward(p, indices).dtype == np.float32
    for bad in (-1, 5):
        indices = CLASSES.copy()
        indices[3] = bad
        with pytest.raises(
            IndexError, match=rf"\A{type(loss).__name__}.* from 0 to 4, got .*{bad}"
        ):
            loss.forward(p, indices)


def test_arrays_by_name_are_the_layers_own() -> None:
    layer = ops.Linear(3, 2)
    layer.weight = np.ones((2, 3))  # a new array is found, too
    layer.forward(np.ones((4, 3)))
    layer.backward(np.ones((4, 2)))
    assert layer.params["weight"] is layer.weight
    assert layer.params["bias"] is layer.bias
    assert layer.grads["weight"] is layer.grad_weight
    assert layer.grads["bias"] is layer.grad_bias
    layer.params["weight"] -= 0.5 * layer.grads["weight"]
    layer.params["bias"] = layer.params["bias"] - layer.grads["bias"]
    assert layer.weight.tolist() == [[-1] * 3] * 2
    assert layer.bias.tolist() == [-4, -4]
    layer.params.update(weight=np.full((2, 3), 7.0))
    assert layer.weight.tolist() == [[7] * 3] * 2
    with pytest.raises(KeyError):
        layer.params["wieght"] = layer.weight
    assert list(layer.params) == list(layer.grads) == ["weight", "bias"]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_elu_on_both_sides_of_zero(alpha: float) -> None:
    """1 right of 0, however near; alpha e^x at 0 and left of it."""
    steps = np.logspace(-12, 0, 49)
    x = np.concatenate([-steps, [0.0], steps])
    layer = ops.ELU(alpha)
    np.testing.assert_allclose(layer.forward(x), np.where(x > 0, x, alpha * np.expm1(x)), 1e-15)
    dx = layer.backward(np.ones_like(x))
    np.testing.assert_allclose(dx, np.where(x > 0, 1, alpha * np.exp(x)), 1e-15)


def test_relu_at_zero_and_near_it() -> None:
    layer, x = ops.ReLU(), np.array([-1e-12, 0.0, 1e-12])
    assert layer.forward(x).tolist() == [0, 0, 1e-12]
    assert layer.backward(np.ones(3)).tolist() == [0, 0, 1]


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (3, 0), (0, 3)])
def test_softmax_is_over_the_last_axis(shape: tuple[int, ...]) -> None:
    x, dout = RNG.normal(size=shape), RNG.normal(size=shape)
    layer, tensor = ops.Softmax(), leaf(x)
    y = F.softmax(tensor, -1)
    close(layer.forward(x), y)
    close(layer.backward(dout), torch.autograd.grad(y, tensor, torch.tensor(dout))[0])


def test_repr_names_the_settings() -> None:
    layers = [
        ops.Linear(3, 2),
        ops.ELU(0.5),
        ops.Tanh(),
        ops.CrossEntropy(),
        ops.SoftmaxCrossEntropy(),
    ]
    assert [repr(layer) for layer in layers] == [
        "Linear(in_features=3, out_features=2)",
        "ELU(alpha=0.5)",
        "Tanh()",
        "CrossEntropy()",
        "SoftmaxCrossEntropy()",
    ]
