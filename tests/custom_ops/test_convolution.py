"""The convolution by hand: the assignment's exercise, the formula, and PyTorch's convolution.

What it shares with the other Functions (transforms, compilation, dtypes) is in `test_functions`.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from custom_ops import conv2d

# PyTorch says so where its own convolution copies; ours pads, too.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

# Shape of x, shape of the weight, settings.
Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "plain": ((2, 2, 5, 4), (3, 2, 3, 2), {}),
    "one_pixel": ((2, 3, 3, 3), (2, 3, 1, 1), {"stride": 2}),
    "whole_image": ((2, 2, 3, 4), (3, 2, 3, 4), {}),
    "stride_leaves_a_rest": ((1, 2, 6, 5), (2, 2, 2, 3), {"stride": (3, 2)}),
    "padding": ((1, 2, 3, 3), (2, 2, 3, 3), {"padding": (1, 2)}),
    "dilation": ((1, 2, 6, 4), (2, 2, 3, 2), {"dilation": (2, 3)}),
    "all": ((2, 2, 5, 6), (2, 2, 2, 3), {"stride": (3, 2), "padding": (2, 1), "dilation": (2, 1)}),
    "groups": ((2, 4, 3, 3), (6, 2, 2, 2), {"groups": 2, "padding": 1}),
    "depthwise": ((1, 3, 4, 3), (6, 1, 2, 2), {"groups": 3}),
    "valid": ((1, 2, 4, 3), (2, 2, 2, 3), {"padding": "valid", "stride": 2}),
    "same": ((2, 2, 4, 3), (3, 2, 3, 3), {"padding": "same"}),
    "same_even": ((1, 2, 4, 3), (3, 2, 4, 2), {"padding": "same"}),
    "same_dilated": (
        (1, 2, 3, 4),
        (2, 1, 2, 3),
        {"padding": "same", "dilation": (3, 2), "groups": 2},
    ),
    "same_one_pixel": ((2, 3, 4, 3), (2, 3, 1, 1), {"padding": "same"}),
    "same_one_image": ((2, 3, 3), (3, 2, 2, 5), {"padding": "same"}),
    "one_image": ((2, 4, 4), (3, 2, 3, 3), {"padding": 1}),
}


def case(name: str, bias: bool = True) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shape, kernel, settings = CASES[name]
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, kernel, kernel[:1]) if bias else (shape, kernel)
    tensors = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    return tuple(t.requires_grad_() for t in tensors), settings


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name: str, bias: bool) -> None:
    inputs, settings = case(name, bias)
    ours, theirs = conv2d(*inputs, **settings), F.conv2d(*inputs, **settings)
    torch.testing.assert_close(ours, theirs)
    dout = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    grads = torch.autograd.grad(ours, inputs, dout)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, inputs, dout))


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, fast: bool) -> None:
    inputs, settings = case(name)

    def function(*inputs: Any) -> Tensor:
        return conv2d(*inputs, **settings)

    assert gradcheck(function, inputs, atol=1e-8, rtol=1e-6, check_forward_ad=True)
    assert gradgradcheck(
        function,
        inputs,
        atol=1e-8,
        rtol=1e-6,
        check_fwd_over_rev=True,
        fast_mode=fast and name != "all",
    )


def test_is_the_formula() -> None:
    """Y_sopq = b_o + Σ_cuv K_ocuv X_{s, c, i(p, u), j(q, v)}, element by element."""
    (x, weight, bias), settings = case("all")
    padding, dilation, stride = (settings[key] for key in ("padding", "dilation", "stride"))
    y = conv2d(x, weight, bias, **settings)
    for s, o, p, q in itertools.product(*map(range, y.shape)):
        expected = bias[o].clone()
        for c, u, v in itertools.product(*map(range, weight.shape[1:])):
            i = stride[0] * p + dilation[0] * u - padding[0]
            j = stride[1] * q + dilation[1] * v - padding[1]
            if 0 <= i < x.shape[2] and 0 <= j < x.shape[3]:
                expected = expected + weight[o, c, u, v] * x[s, c, i, j]
        torch.testing.assert_close(y[s, o, p, q], expected)


def test_exercise_of_the_assignment() -> None:
    """One 3 x 3 image and a 2 x 2 kernel, as written out in `custom_ops.convolution`."""
    x = torch.arange(1.0, 10).reshape(3, 3).requires_grad_()
    k = torch.tensor([[1.0, -2], [3, 5]], requires_grad=True)
    dy = torch.tensor([[2.0, -1], [4, 3]])
    y = conv2d(x[None], k[None, None])[0]
    dx, dk = torch.autograd.grad(y, (x, k), dy)
    assert y[1, 0] == k[0, 0] * x[1, 0] + k[0, 1] * x[1, 1] + k[1, 0] * x[2, 0] + k[1, 1] * x[2, 1]
    assert dk[0, 0] == (dy * x[:2, :2]).sum()
    assert dx[0, 1] == dy[0, 0] * k[0, 1] + dy[0, 1] * k[0, 0]


@pytest.mark.parametrize(
    ("x", "weight", "settings", "message"),
    [
        ((1, 3, 4, 4), (2, 2, 2, 2), {}, r"\[\(1, 3, 4, 4\), \(2, 2, 2, 2\), None\].* groups=1"),
        ((1, 2, 4, 4), (3, 1, 2, 2), {"groups": 2}, "multiples of groups=2"),
        ((2, 4), (3, 2, 2, 2), {}, r"expected x \(\[samples,\] in, height, width\)"),
        ((1, 2, 4, 4), (3, 2, 5, 2), {}, "no larger than the padded image.*: pad the image"),
        ((1, 2, 4, 4), (3, 2, 2, 2), {"stride": 0}, "stride to be an integer of at least 1"),
        ((1, 2, 4, 4), (3, 2, 2, 2), {"padding": "full"}, '"same" or "valid", got \'full\''),
        ((1, 2, 4, 4), (3, 2, 2, 2), {"padding": ("same", 1)}, "padding to be .* got .'same', 1"),
        ((1, 2, 4, 4), (3, 2, 2, 2), {"padding": 1.0}, "padding to be .*, got 1.0"),
        ((1, 2, 4, 4), (3, 2, 2, 2), {"padding": -1}, "padding to be .*, got -1"),
        (
            (1, 2, 4, 4),
            (3, 2, 1, 1),
            {"padding": "same", "stride": (1, 2)},
            r"stride 1 with padding=\"same\", got \(1, 2\): pass padding as numbers",
        ),
        ((1, 2, 4, 4), (3,), {"padding": "same"}, r"weight \(out, in / groups, height, width\)"),
    ],
)
def test_what_does_not_fit_is_named(
    x: tuple[int, ...], weight: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conv2d(torch.ones(x), torch.ones(weight), **settings)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_result_may_be_changed_in_place(groups: int) -> None:
    x, weight = torch.randn(2, 2, 3, 3), torch.randn(2, 2 // groups, 2, 2, requires_grad=True)
    (ours,) = torch.autograd.grad(conv2d(x, weight, groups=groups).relu_().sum(), weight)
    theirs = torch.autograd.grad(F.conv2d(x, weight, groups=groups).relu_().sum(), weight)[0]
    torch.testing.assert_close(ours, theirs)


def test_no_groups_are_an_error() -> None:
    with pytest.raises(ValueError, match="groups to be an integer of at least 1, got 0"):
        conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), groups=0)
