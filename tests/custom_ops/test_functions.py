"""The autograd Functions: first and second derivatives, agreement with PyTorch, edges."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from custom_ops import cross_entropy, elu, linear, softmax, softmax_cross_entropy

CLASSES = torch.tensor([0, 3, 1, 1])
ONE_HOT = torch.eye(5, dtype=torch.float64)[CLASSES]
Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


P = (normal(4, 5).detach().softmax(-1) + 0.05).requires_grad_()
SOFT_TARGETS = normal(4, 5).detach().softmax(-1).requires_grad_()
CASES: dict[str, Case] = {
    "linear": (linear, F.linear, (normal(4, 5), normal(3, 5), normal(3))),
    "linear_no_bias": (linear, F.linear, (normal(4, 5), normal(3, 5))),
    "linear_vector": (linear, F.linear, (normal(5), normal(3, 5), normal(3))),
    "linear_3d": (linear, F.linear, (normal(2, 4, 5), normal(3, 5), normal(3))),
    "elu": (elu, F.elu, (normal(4, 5),)),
    "elu_alpha": (lambda x: elu(x, 0.5), lambda x: F.elu(x, 0.5), (normal(4, 5),)),
    "softmax": (softmax, lambda x: F.softmax(x, -1), (normal(4, 5),)),
    "cross_entropy": (
        lambda p: cross_entropy(p, ONE_HOT),
        lambda p: F.nll_loss(p.log(), CLASSES),
        (P,),
    ),
    "cross_entropy_soft": (
        cross_entropy,
        lambda p, t: -(t * p.log()).sum(-1).mean(),
        (P, SOFT_TARGETS),
    ),
    "softmax_cross_entropy": (
        lambda x: softmax_cross_entropy(x, CLASSES),
        lambda x: F.cross_entropy(x, CLASSES),
        (normal(4, 5),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str) -> None:
    function, _, inputs = CASES[name]
    assert gradcheck(function, inputs, atol=1e-8, rtol=1e-6)
    assert gradgradcheck(function, inputs, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name: str) -> None:
    function, reference, inputs = CASES[name]
    ours, theirs = function(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    dout = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    grads = torch.autograd.grad(ours, inputs, dout)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, inputs, dout))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    inputs = [normal(4, 5), normal(3, 5), normal(3)]
    inputs[frozen] = inputs[frozen].detach()
    y = linear(*inputs)  # kept: torch 2.11 frees what is saved with the output
    assert y.grad_fn is not None
    grads = y.grad_fn.apply(torch.ones(4, 3, dtype=torch.float64))  # type: ignore[attr-defined]
    assert [grad is None for grad in grads] == [i == frozen for i in range(3)]


@pytest.mark.parametrize("name", ["linear", "elu", "softmax", "softmax_cross_entropy"])
def test_float32_is_kept(name: str) -> None:
    function, _, inputs = CASES[name]
    inputs = tuple(t.detach().float().requires_grad_() for t in inputs)
    y = function(*inputs)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert {t.dtype for t in (y, *grads)} == {torch.float32}


def test_huge_logits_stay_finite() -> None:
    x = torch.tensor([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    torch.testing.assert_close(softmax(x), torch.tensor([[1.0, 0, 0], [1 / 3] * 3]))
    loss = softmax_cross_entropy(x, torch.tensor([1, 2]))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx((1e4 + 1.0986123) / 2)
    torch.testing.assert_close(grad, torch.tensor([[0.5, -0.5, 0], [1 / 6, 1 / 6, -1 / 3]]))


def test_underflowed_wrong_class_costs_nothing() -> None:
    p = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = cross_entropy(p, torch.tensor([[1.0, 0.0]]))
    (grad,) = torch.autograd.grad(loss, p, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), p)
    assert loss.item() == 0
    assert grad.tolist() == [[-1, 0]]
    assert second.tolist() == [[1, 0]]


def test_elu_keeps_digits_near_zero_and_large_inputs_their_derivatives() -> None:
    x = torch.tensor([-1e-8, 1e4, -1e4], requires_grad=True)
    y = elu(x)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert y.tolist() == torch.tensor([-1e-8, 1e4, -1]).tolist()
    torch.testing.assert_close(grad, torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(second, torch.tensor([1.0, 0, 0]))


@pytest.mark.parametrize("function", [elu, softmax, lambda x: linear(x, torch.ones(2, 5))])
def test_nan_stays_in_its_row(function: Callable[[Tensor], Tensor]) -> None:
    x = normal(4, 5).detach().float()
    x[2] = torch.nan
    x.requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad((y * y).sum(), x)
    assert (
        y.isnan().any(-1).tolist() == grad.isnan().any(-1).tolist() == [False] * 2 + [True, False]
    )


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[\(4, 5\), \(3, 4\), None\]"):
        linear(torch.ones(4, 5), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"bias \(out,\), got .* \(1,\)\]"):
        linear(torch.ones(4, 5), torch.ones(3, 5), torch.ones(1))
    with pytest.raises(ValueError, match=r"shape \(4, 5\), got \(4,\)"):
        cross_entropy(torch.ones(4, 5), CLASSES)
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(4, 5\)"):
        softmax_cross_entropy(torch.ones(4, 5), ONE_HOT)
