"""The autograd Functions: every order and transform, agreement with PyTorch, edges."""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import custom_ops
from custom_ops import conv2d, cross_entropy, elu, linear, softmax, softmax_cross_entropy
from tests.conftest import mark_slow

# PyTorch says so where its own convolution copies; ours pads, too.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

CLASSES = torch.tensor([0, 3, 1, 1])
ONE_HOT = torch.eye(5, dtype=torch.float64)[CLASSES]
Function = Callable[..., Tensor]
Case = tuple[Function, Function, tuple[Tensor, ...]]


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def plain_cross_entropy(p: Tensor, t: Tensor) -> Tensor:
    return -(t * p.log()).sum(-1).mean()


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """The loss of CLASSES with class 0 ignored and a label smoothing of 0.2, written down."""
    kept = CLASSES != 0
    costs = (0.8 * ONE_HOT + 0.2 / 5) * weight
    losses = -(costs * x.log_softmax(-1)).sum(-1)
    return losses[kept].sum() / weight[CLASSES[kept]].sum()


CLASS_WEIGHT = torch.tensor([0.3, 2.0, 0.0, 1.0, 0.7], dtype=torch.float64)
EVERYTHING: dict[str, Any] = {"weight": CLASS_WEIGHT, "ignore_index": 0, "label_smoothing": 0.2}
P = (normal(4, 5).detach().softmax(-1) + 0.05).requires_grad_()
SOFT_TARGETS = normal(4, 5).detach().softmax(-1).requires_grad_()
CASES: dict[str, Case] = {
    "linear": (linear, F.linear, (normal(4, 5), normal(3, 5), normal(3))),
    "linear_no_bias": (linear, F.linear, (normal(4, 5), normal(3, 5))),
    "linear_vector": (linear, F.linear, (normal(5), normal(3, 5), normal(3))),
    "linear_3d": (linear, F.linear, (normal(2, 2, 5), normal(3, 5), normal(3))),
    "elu": (elu, F.elu, (normal(4, 5),)),
    "elu_alpha": (lambda x: elu(x, 0.5), lambda x: F.elu(x, 0.5), (normal(4, 5),)),
    "softmax": (softmax, lambda x: F.softmax(x, -1), (normal(4, 5),)),
    "cross_entropy": (
        lambda p: cross_entropy(p, ONE_HOT),
        lambda p: F.nll_loss(p.log(), CLASSES),
        (P,),
    ),
    "cross_entropy_soft": (cross_entropy, plain_cross_entropy, (P, SOFT_TARGETS)),
    "cross_entropy_one_hot": (
        cross_entropy,
        plain_cross_entropy,
        (P, ONE_HOT.clone().requires_grad_()),
    ),
    "softmax_cross_entropy": (
        lambda x: softmax_cross_entropy(x, CLASSES),
        lambda x: F.cross_entropy(x, CLASSES),
        (normal(4, 5),),
    ),
    "loss_all": (
        partial(softmax_cross_entropy, targets=CLASSES, **EVERYTHING),
        partial(F.cross_entropy, target=CLASSES, **EVERYTHING),
        (normal(4, 5),),
    ),
    "loss_sum": (
        lambda x: softmax_cross_entropy(x, CLASSES, CLASS_WEIGHT, 3, "sum"),
        lambda x: F.cross_entropy(x, CLASSES, CLASS_WEIGHT, ignore_index=3, reduction="sum"),
        (normal(4, 5),),
    ),
    "loss_each": (
        lambda x: softmax_cross_entropy(x, CLASSES, ignore_index=0, reduction="none"),
        lambda x: F.cross_entropy(x, CLASSES, ignore_index=0, reduction="none"),
        (normal(4, 5),),
    ),
    "loss_soft": (
        partial(softmax_cross_entropy, weight=CLASS_WEIGHT, label_smoothing=0.2),
        partial(F.cross_entropy, weight=CLASS_WEIGHT, label_smoothing=0.2),
        (normal(4, 5), SOFT_TARGETS),
    ),
    "loss_of_weights": (  # which PyTorch's own differentiates for probabilities alone
        lambda x, w: softmax_cross_entropy(x, CLASSES, w, ignore_index=0, label_smoothing=0.2),
        weighted_mean,
        (normal(4, 5), CLASS_WEIGHT.clone().requires_grad_()),
    ),
    "conv2d": (
        lambda x, weight, bias: conv2d(x, weight, bias, stride=(2, 1), padding=1, groups=2),
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride=(2, 1), padding=1, groups=2),
        (normal(2, 2, 3, 2), normal(2, 1, 2, 2), normal(2)),
    ),
    "conv2d_same": (
        partial(conv2d, padding="same", dilation=(1, 3)),
        partial(F.conv2d, padding="same", dilation=(1, 3)),
        (normal(1, 2, 2, 3), normal(1, 2, 2, 2), normal(1)),
    ),
}
FEW = ["linear", "elu_alpha", "softmax", "cross_entropy_soft", "loss_of_weights", "conv2d"]

Transform = Callable[[Function], Callable[..., Any]]


def to_all(transform: Callable[..., Any], times: int = 1) -> Transform:
    """Repeats a transform, each time with respect to all inputs."""

    def apply(function: Function) -> Callable[..., Any]:
        def transformed(*inputs: Tensor) -> Any:
            result: Any = function
            for _ in range(times):
                result = transform(result, argnums=tuple(range(len(inputs))))
            return result(*inputs)

        return transformed

    return apply


def third(derivative: Callable[..., Any]) -> Transform:
    """The third derivative along the first input."""
    return lambda f: (
        lambda x, *rest: derivative(derivative(derivative(lambda scale: f(scale * x, *rest))))(
            torch.ones((), dtype=x.dtype)
        )
    )


TRANSFORMS: dict[str, Transform] = {
    "grad": to_all(grad),
    "jvp": lambda f: lambda *inputs: jvp(f, inputs, inputs),
    "linearize": lambda f: lambda *inputs: linearize(f, *inputs)[1](*inputs),
    "vmap": lambda f: lambda *inputs: vmap(f)(*(torch.stack([t, t + 0]) for t in inputs)),
    "vmap_grad": lambda f: (
        lambda x, *rest: vmap(to_all(grad)(f), in_dims=(0, *(None for _ in rest)))(
            torch.stack([x, x / 2]), *rest
        )
    ),
    "jacrev_jacrev": to_all(jacrev, 2),
    "jacfwd_jacfwd": to_all(jacfwd, 2),
    "hessian": to_all(hessian),
    "jacrev_jacfwd": lambda f: to_all(jacrev)(
        lambda *inputs: torch.stack([g.sum() for g in to_all(jacfwd)(f)(*inputs)])
    ),
    "third_reverse": third(grad),
    "third_forward": third(jacfwd),
}


def scalar(function: Function) -> Function:
    """A loss that is linear in none of the inputs, nor in the output of the function."""
    return lambda *inputs: (
        (function(*inputs) ** 3).sum() * reduce(operator.add, (t.sum() for t in inputs))
    )


def detached(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in inputs)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str) -> None:
    function, _, inputs = CASES[name]
    tight: dict[str, Any] = {"atol": 1e-8, "rtol": 1e-6, "check_batched_grad": True}
    assert gradcheck(
        function, inputs, check_forward_ad=True, check_batched_forward_grad=True, **tight
    )
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, **tight)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name: str) -> None:
    function, reference, inputs = CASES[name]
    ours, theirs = function(*inputs), reference(*inputs)
    torch.testing.assert_close(ours, theirs)
    dout = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    grads = torch.autograd.grad(ours, inputs, dout)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, inputs, dout))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # by linearize itself
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FEW)
def test_transforms(name: str, transform: str) -> None:
    function, reference, inputs = CASES[name]
    inputs = detached(inputs)
    ours = TRANSFORMS[transform](scalar(function))(*inputs)
    torch.testing.assert_close(ours, TRANSFORMS[transform](scalar(reference))(*inputs))


@pytest.mark.parametrize("name", mark_slow(FEW, except_for={"cross_entropy_soft"}))
def test_compiles_in_one_graph(name: str) -> None:
    function, reference, inputs = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(scalar(function), backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(*inputs), scalar(reference)(*inputs)
    torch.testing.assert_close(ours, theirs)
    grads = torch.autograd.grad(ours, inputs)
    torch.testing.assert_close(grads, torch.autograd.grad(theirs, inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "transform"),
    [("linear", "vmap_grad"), ("linear", "jvp"), ("elu_alpha", "jacrev_jacrev")],
)
def test_compiles_with_transforms_inside(name: str, transform: str) -> None:
    function, reference, inputs = CASES[name]
    inputs = detached(inputs)
    torch._dynamo.reset()
    ours = TRANSFORMS[transform](scalar(function))
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    theirs = TRANSFORMS[transform](scalar(reference))(*inputs)
    torch.testing.assert_close(compiled(*inputs), theirs)


@pytest.mark.parametrize("name", FEW)
def test_symbolic_traces_record_one_node(name: str) -> None:
    function, _, inputs = CASES[name]
    graph = torch.fx.symbolic_trace(function)
    targets = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert name == "linear" or len(targets) == 1
    torch.testing.assert_close(graph(*inputs), function(*inputs))


TRACED: dict[str, tuple[Function, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda x: linear(x, torch.ones(3, 5), torch.ones(3)), (2, 4, 5), (3, 9, 5)),
    "conv2d": (
        lambda x: conv2d(x, torch.ones(2, 2, 2, 3), padding="same"),
        (1, 2, 4, 4),
        (3, 2, 5, 6),
    ),
    "elu": (elu, (4, 5), (9, 5)),
    "softmax": (softmax, (4, 5), (9, 3, 5)),
    "cross_entropy": (lambda x: cross_entropy(x.exp(), x.cos()), (4, 5), (9, 5)),
    "loss": (lambda x: softmax_cross_entropy(x, x.argmax(-1)), (4, 5), (9, 5)),
    "loss_soft": (lambda x: softmax_cross_entropy(x, x.cos()), (4, 5), (9, 5)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TRACED)
def test_traces_are_right_for_other_shapes(name: str) -> None:
    function, shape, other = TRACED[name]
    traced = torch.jit.trace(function, torch.ones(shape))  # type: ignore[no-untyped-call]
    x = normal(*other).detach().float()
    torch.testing.assert_close(traced(x), function(x))


def calls_elu(x: Tensor) -> Tensor:
    return elu(x)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_is_refused_in_one_line() -> None:
    named = (linear, elu, softmax, cross_entropy, softmax_cross_entropy, conv2d)
    for function in (*named, calls_elu):
        name = "elu" if function is calls_elu else function.__name__
        with pytest.raises(
            RuntimeError, match=rf"\A.* custom_ops.{name}: use torch.export or torch.compile\Z"
        ):
            torch.jit.script(function)


class Labelled(Tensor):
    """A subclass as anyone may write one."""


@pytest.mark.parametrize("name", FEW)
def test_subclasses_of_tensor_stay_what_they_are(name: str) -> None:
    function, _, (x, *rest) = CASES[name]
    y = function(x.as_subclass(Labelled), *rest)
    assert type(y) is Labelled
    torch.testing.assert_close(y.as_subclass(Tensor), function(x, *rest))


@pytest.mark.parametrize("name", FEW)
def test_checkpointing(name: str) -> None:
    function, reference, inputs = CASES[name]
    y = checkpoint(function, *inputs, use_reentrant=False)
    grads = torch.autograd.grad(y.sum(), inputs)
    torch.testing.assert_close(grads, torch.autograd.grad(reference(*inputs).sum(), inputs))


@pytest.mark.parametrize("name", ["linear", "elu", "softmax", "conv2d"])
def test_strided_inputs_and_gradients(name: str) -> None:
    function, reference, inputs = CASES[name]
    strided = tuple(t.mT.contiguous().mT if t.ndim > 1 else t for t in inputs)
    grads = []
    for f in (function, reference):
        y = f(*strided)
        dout = torch.ones_like(y.mT).cumsum(-1).mT
        grads.append((y, *torch.autograd.grad(y, inputs, dout)))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_frozen_inputs_get_no_gradient(name: str, frozen: int) -> None:
    function, _, inputs = CASES[name]
    inputs = tuple(t.detach() if i == frozen else t for i, t in enumerate(inputs))
    y = function(*inputs)  # kept: torch 2.11 frees what is saved with the output
    assert y.grad_fn is not None
    grads = y.grad_fn.apply(torch.ones_like(y))  # type: ignore[attr-defined]
    assert [grad is None for grad in grads[:3]] == [i == frozen for i in range(3)]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 3e-3), (torch.float16, 4e-4), (torch.float32, 1e-6)]
)
@pytest.mark.parametrize("name", FEW)
def test_lower_precision_costs_a_rounding(name: str, dtype: torch.dtype, bound: float) -> None:
    function, reference, inputs = CASES[name]
    low = tuple(t.detach().to(dtype).requires_grad_() for t in inputs)
    exact = tuple(t.detach().double().requires_grad_() for t in low)
    results = []
    for f, arguments in ((function, low), (reference, exact)):
        y = f(*arguments)
        dout = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape) + 1
        results.append((y, *torch.autograd.grad(y, arguments, dout)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() / theirs.norm() < bound


def test_half_bias_gradients_add_up() -> None:
    bias = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    y = linear(bias.new_zeros(8192, 5), bias.new_zeros(3, 5), bias)
    (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert dbias.tolist() == [8192] * 3


def test_autocast() -> None:
    x, weight, bias = (t.detach().float().requires_grad_() for t in CASES["linear"][2])
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight, bias)
        torch.testing.assert_close(y, F.linear(x, weight, bias))
        loss = softmax_cross_entropy(y, torch.tensor([0, 2, 1, 1]))
        assert linear(x.double(), weight.double()).dtype == torch.float64
    assert (y.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    grads = torch.autograd.grad(loss, (x, weight, bias))
    assert {t.dtype for t in grads} == {torch.float32}


@pytest.mark.parametrize("name", ["linear", "elu", "softmax", "conv2d"])
def test_empty_batch(name: str) -> None:
    function, reference, (x, *parameters) = CASES[name]
    x = x[:0].detach().requires_grad_()
    y = function(x, *parameters)
    grads = torch.autograd.grad(y.sum(), (x, *parameters))
    assert y.shape == reference(x, *parameters).shape
    assert [g.shape for g in grads] == [t.shape for t in (x, *parameters)]
    assert all((g == 0).all() for g in grads)


def test_huge_logits_stay_finite() -> None:
    x = torch.tensor([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    torch.testing.assert_close(softmax(x), torch.tensor([[1.0, 0, 0], [1 / 3] * 3]))
    loss = softmax_cross_entropy(x, torch.tensor([1, 2]))
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx((1e4 + 1.0986123) / 2)
    torch.testing.assert_close(dx, torch.tensor([[0.5, -0.5, 0], [1 / 6, 1 / 6, -1 / 3]]))


@pytest.mark.parametrize("other", [torch.inf, -torch.inf, torch.nan, 3e38, -3e38])
@pytest.mark.parametrize("target", [0, 1])
def test_infinite_logits_are_pytorchs(other: float, target: int) -> None:
    x = torch.tensor([[0.0, other]], requires_grad=True)
    results = []
    for f, g in ((softmax_cross_entropy, softmax), (F.cross_entropy, lambda x: F.softmax(x, -1))):
        loss, y = f(x, torch.tensor([target])), g(x)
        grads = [torch.autograd.grad(out, x)[0] for out in (loss, y[0, target])]
        results.append([loss, y, *grads])
    torch.testing.assert_close(*results, equal_nan=True)


def test_probabilities_of_zero_that_are_no_target_have_no_gradient_of_the_target() -> None:
    p, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]], requires_grad=True)
    (dt,) = torch.autograd.grad(cross_entropy(p, t), t)
    assert dt.tolist() == [[0, 0]]
    ones = torch.ones_like(p)
    assert jvp(cross_entropy, (p, t.detach()), (ones, ones))[1].item() == -1


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_probabilities_and_targets_get_no_gradient(frozen: int) -> None:
    inputs = [t.detach().requires_grad_(i != frozen) for i, t in enumerate((P, SOFT_TARGETS))]
    loss = cross_entropy(*inputs)
    node: Any = loss.grad_fn
    grads = node.apply(torch.ones_like(loss))
    assert [grad is None for grad in grads] == [i == frozen for i in range(2)]


def test_impossible_classes_that_are_no_target_cost_nothing_in_any_mode() -> None:
    x = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.float64)
    dx, target = torch.tensor([[0.3, -2.0, 0.7]], dtype=x.dtype), torch.tensor([1])
    results = [
        (*jvp(loss, (x,), (dx,)), grad(loss)(x))
        for loss in (
            lambda x: softmax_cross_entropy(x, target),
            lambda x: F.cross_entropy(x, target),
        )
    ]
    torch.testing.assert_close(*results)


def test_underflowed_wrong_class_costs_nothing() -> None:
    p = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = cross_entropy(p, torch.tensor([[1.0, 0.0]]))
    (dp,) = torch.autograd.grad(loss, p, create_graph=True)
    (second,) = torch.autograd.grad(dp.sum(), p)
    assert loss.item() == 0
    assert dp.tolist() == [[-1, 0]]
    assert second.tolist() == [[1, 0]]


def test_elu_keeps_digits_near_zero_and_large_inputs_their_derivatives() -> None:
    x = torch.tensor([-1e-8, 1e4, -1e4], requires_grad=True)
    y = elu(x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x, create_graph=True)
    (third_order,) = torch.autograd.grad(second.sum(), x)
    assert y.tolist() == torch.tensor([-1e-8, 1e4, -1]).tolist()
    torch.testing.assert_close(dx, torch.tensor([1.0, 1, 0]))
    for higher in (second, third_order):
        torch.testing.assert_close(higher, torch.tensor([1.0, 0, 0]))


@pytest.mark.parametrize("function", [elu, softmax, lambda x: linear(x, torch.ones(2, 5))])
def test_nan_stays_in_its_row(function: Callable[[Tensor], Tensor]) -> None:
    x = normal(4, 5).detach().float()
    x[2] = torch.nan
    x.requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad((y * y).sum(), x)
    assert y.isnan().any(-1).tolist() == dx.isnan().any(-1).tolist() == [False, False, True, False]


NAMED = {
    "elu": (torch.ones(2),),
    "softmax": (torch.ones(2),),
    "linear": (torch.ones(2, 2), torch.ones(2, 2)),
    "cross_entropy": (torch.ones(2, 2), torch.ones(2, 2)),
    "softmax_cross_entropy": (torch.ones(2, 2), torch.ones(2)),
    "conv2d": (torch.ones(1, 2, 2), torch.ones(1, 1, 1, 1)),
}


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[\(4, 5\), \(3, 4\), None\]"):
        linear(torch.ones(4, 5), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"bias \(out,\), got .* \(1,\)\]"):
        linear(torch.ones(4, 5), torch.ones(3, 5), torch.ones(1))
    with pytest.raises(ValueError, match=r"got \(4, 5\) and \(4,\): turn class indices into rows"):
        cross_entropy(torch.ones(4, 5), CLASSES)
    with pytest.raises(ValueError, match=r"\(samples, classes\), got \(5,\) and \(5,\)"):
        cross_entropy(torch.ones(5), torch.ones(5))
    for targets in (torch.ones(4, 4), torch.ones(4, 1).long(), torch.ones(5).long()):
        with pytest.raises(ValueError, match=r"got \(4, 5\) and .*: reshape to one row for each"):
            softmax_cross_entropy(torch.ones(4, 5), targets)
    for weight in (torch.ones(4), torch.ones(1, 5), torch.ones(())):
        with pytest.raises(ValueError, match=r"weight of shape \(5,\), one for each class, got "):
            softmax_cross_entropy(torch.ones(4, 5), CLASSES, weight)


def test_wrong_dtypes_and_classes_are_named() -> None:
    for name, arguments in NAMED.items():
        message = rf"\A{name} expected a floating dtype, got torch.int64: call \.float\(\)\Z"
        with pytest.raises(TypeError, match=message):
            getattr(custom_ops, name)(*(t.long() for t in arguments))
    with pytest.raises(TypeError, match=r"got torch.float32 on cpu, torch.float64 on cpu: conv"):
        linear(torch.ones(4, 5), torch.ones(3, 5).double())
    with pytest.raises(TypeError, match=r"got torch.int32: call targets.long\(\)"):
        softmax_cross_entropy(torch.ones(4, 5), CLASSES.int())
    with pytest.raises(TypeError, match=r"probabilities .*, got torch.int64: pass class indices"):
        softmax_cross_entropy(torch.ones(4, 5), ONE_HOT.long())
    for other in ((ONE_HOT,), (CLASSES, torch.ones(5).double()), (CLASSES, torch.ones(5).long())):
        with pytest.raises(TypeError, match=r"got torch.float32 on cpu, torch.*: convert all to"):
            softmax_cross_entropy(torch.ones(4, 5), *other)
    for outside, ignored in ((-1, -100), (5, -100), (-100, 1), (5, -1)):
        with pytest.raises(IndexError, match=f"from 0 to 4, .* {outside} is out of bounds"):
            softmax_cross_entropy(torch.ones(1, 5), torch.tensor([outside]), None, ignored)
    with pytest.raises(IndexError, match="from 0 to -1"):
        softmax_cross_entropy(torch.ones(4, 0), CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "average"}, 'reduction "mean", "sum" or "none", got \'average\''),
        ({"reduction": None}, 'or "none", got None'),
        ({"label_smoothing": 1.5}, "label_smoothing from 0 to 1, got 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing from 0 to 1, got -0.1"),
        ({"label_smoothing": float("nan")}, "label_smoothing from 0 to 1, got nan"),
        ({"targets": ONE_HOT, "ignore_index": 3}, "no ignore_index with probabilities, got 3: lea"),
        ({"targets": ONE_HOT, "ignore_index": 0}, "no ignore_index with probabilities, got 0: lea"),
    ],
)
def test_settings_of_the_loss_that_are_none_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        softmax_cross_entropy(normal(4, 5), **{"targets": CLASSES, **settings})


LOSSES: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "all_ignored": (torch.full((4,), -100), {}),
    "all_ignored_smooth": (torch.full((4,), 2), {"ignore_index": 2, "label_smoothing": 0.1}),
    "one_is_left": (torch.tensor([-100, -100, 4, -100]), {"label_smoothing": 1.0}),
    "ignored_beyond_the_classes": (torch.tensor([7, 0, 7, 3]), {"ignore_index": 7}),
    "only_classes_of_no_weight": (CLASSES, {"weight": torch.zeros(5, dtype=torch.float64)}),
    "only_smooth_classes_of_no_weight": (
        torch.tensor([2, 2, -100, 2]),
        {"weight": CLASS_WEIGHT, "label_smoothing": 0.1},
    ),
    "weights_below_zero": (CLASSES, {"weight": -CLASS_WEIGHT}),
    "all_smooth": (CLASSES, {"label_smoothing": 1.0, "weight": CLASS_WEIGHT}),
    "no_sample": (CLASSES[:0], {}),
    "no_sample_of_probabilities": (ONE_HOT[:0], {}),
    "rows_of_any_sum": (3 * ONE_HOT - 1, {"weight": CLASS_WEIGHT}),
    "ignoring_below_zero": (ONE_HOT, {"ignore_index": -1}),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_at_the_edges_are_pytorchs(name: str, reduction: str) -> None:
    """Also NaN for the mean of nothing, whose gradient is 0 where samples are ignored."""
    targets, settings = LOSSES[name]
    x = normal(4, 5).detach()[: len(targets)].requires_grad_()
    results = []
    for function in (softmax_cross_entropy, F.cross_entropy):
        loss = function(x, targets, reduction=reduction, **settings)
        results.append((loss, *torch.autograd.grad(loss.sum(), x)))
    torch.testing.assert_close(*results, equal_nan=True)


def test_a_single_class_may_be_ignored() -> None:
    x = normal(2, 1).detach().requires_grad_()
    loss = softmax_cross_entropy(x, torch.tensor([0, -100]), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.tolist() == [0, 0]
    assert gradient.tolist() == [[0], [0]]


def test_an_ignored_sample_may_be_anything() -> None:
    x = torch.tensor([[torch.nan, torch.inf], [0.0, 0.0]])
    loss = softmax_cross_entropy(x, torch.tensor([-100, 1]))
    assert loss.item() == pytest.approx(math.log(2))


def test_softmax_is_over_the_last_dimension() -> None:
    x = normal(2, 3, 4)
    results = []
    for y in (softmax(x), F.softmax(x, -1)):
        dout = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
        results.append((y, *torch.autograd.grad(y, x, dout)))
    torch.testing.assert_close(*results)


def test_softmax_of_no_classes_is_empty() -> None:
    for shape in ((3, 0), (0,), (2, 0, 0)):
        x = torch.ones(shape, requires_grad=True)
        y = softmax(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.shape == dx.shape == shape
    assert softmax(torch.tensor(3.0)).item() == 1


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_elu_on_both_sides_of_zero(alpha: float) -> None:
    """1 right of 0, however near; alpha e^x at 0 and left of it."""
    steps = torch.logspace(-12, 0, 49, dtype=torch.float64)
    x = torch.cat([-steps, steps.new_zeros(1), steps]).requires_grad_()
    y = elu(x, alpha)
    dx, *tangent = (
        *torch.autograd.grad(y.sum(), x),
        jvp(lambda x: elu(x, alpha), (x.detach(),), (torch.ones_like(x),))[1],
    )
    exact = torch.where(x > 0, 1, alpha * x.exp())
    assert torch.equal(y[x > 0], x[x > 0])
    torch.testing.assert_close(y, torch.where(x > 0, x, alpha * x.expm1()), rtol=1e-15, atol=0)
    torch.testing.assert_close([dx, *tangent], [exact, exact], rtol=1e-15, atol=0)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_result_may_be_changed_in_place(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(4, 5, requires_grad=True)
    bias = torch.randn(4) if with_bias else None
    (ours,) = torch.autograd.grad(linear(x, weight, bias).relu_().sum(), weight)
    (theirs,) = torch.autograd.grad(F.linear(x, weight, bias).relu_().sum(), weight)
    torch.testing.assert_close(ours, theirs)
