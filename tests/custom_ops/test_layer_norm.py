"""LayerNorm: agreement with PyTorch, numerics, interface. Transforms have a file of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F

from custom_ops import LayerNorm, LayerNormFunction, layer_norm
from custom_ops.layer_norm import formula, function, kernels
from tests.custom_ops.cases import VARIANTS, each_variant, normal, plain

F64 = torch.float64
Norm = Callable[..., Tensor]


def by_function(
    x: Tensor, row: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return LayerNormFunction.apply(x, weight, bias, 1e-5, len(row))  # type: ignore[no-any-return]


def by_formula(
    x: Tensor, row: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return formula.forward(x, weight, bias, len(row), 1e-5)


@pytest.fixture(params=["as_called", "without_a_kernel", "transformed", "formula"])
def norm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Norm:
    """All that may answer, each of which has to be exact.

    What a call finds here, a kernel where there is a compiler; the operators without one; the
    closed forms under `torch.func`; and the formula differentiated by autograd, as in compilers.
    """
    if request.param == "without_a_kernel":
        monkeypatch.setattr(function, "_forward", kernels.forward)
        monkeypatch.setattr(function, "_backward", kernels.backward)
        return by_function
    if request.param == "transformed":
        monkeypatch.setattr(function, "transforming", lambda: True)
    return by_formula if request.param == "formula" else layer_norm


def case(
    variant: str, shape: tuple[int, ...], ndim: int = 1, dtype: torch.dtype = F64
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]:
    """Our function, PyTorch's and the inputs, of which absent parameters are left out."""
    row, present = shape[-ndim:], VARIANTS[variant]
    drawn = (normal(*shape, dtype=dtype), *(normal(*row, seed=i, dtype=dtype) for i in (1, 2)))
    inputs = [t.requires_grad_() for t, use in zip(drawn, (True, *present), strict=True) if use]

    def bind(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def bound(x: Tensor, *parameters: Tensor) -> Tensor:
            given = iter(parameters)
            weight, bias = (next(given) if use else None for use in present)
            return function(x, row, weight, bias)

        return bound

    return bind(layer_norm), bind(F.layer_norm), inputs


@each_variant
@pytest.mark.parametrize(("shape", "ndim"), [((2, 2, 3), 2), ((5,), 1)])
def test_first_and_second_derivatives_for_rows_of_any_shape(
    variant: str, shape: tuple[int, ...], ndim: int
) -> None:
    function, _, inputs = case(variant, shape, ndim)
    assert gradcheck(function, inputs, atol=1e-8, rtol=1e-6)
    assert gradgradcheck(function, inputs, atol=1e-8, rtol=1e-6)


@each_variant
@pytest.mark.parametrize(
    ("shape", "ndim"),
    [((200, 100), 1), ((2, 3, 5, 4), 3), ((3, 4, 8), 1), ((12,), 1), ((4, 6), 2)],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_agrees_with_pytorch(
    variant: str, shape: tuple[int, ...], ndim: int, dtype: torch.dtype
) -> None:
    function, reference, inputs = case(variant, shape, ndim, dtype)
    ours, theirs = function(*inputs), reference(*inputs)
    dy = normal(*shape, seed=3, dtype=dtype)
    grads = torch.autograd.grad(ours, inputs, dy)
    expected = torch.autograd.grad(theirs, inputs, dy)
    tolerance = 1e-12 if dtype is F64 else 1e-5
    torch.testing.assert_close((ours, *grads), (theirs, *expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameter_dtype", ["same", "float32"])
def test_half_types_are_rounded_once(norm: Norm, dtype: torch.dtype, parameter_dtype: str) -> None:
    """Relative L2 error against the truth of the same rounded inputs; 1.2 times one rounding."""
    parameters = dtype if parameter_dtype == "same" else torch.float32
    inputs = [normal(512, 96, dtype=dtype)]
    inputs += [normal(96, seed=i, dtype=parameters) for i in (1, 2)]
    dy = normal(512, 96, seed=3, dtype=dtype)
    ours = with_gradients(norm, inputs, dy)
    assert [t.dtype for t in ours] == [dtype, dtype, parameters, parameters]
    bounds = {torch.bfloat16: 2.0e-3, torch.float16: 2.6e-4, torch.float32: 1e-6}
    for mine, exact in zip(ours, truth(inputs, dy), strict=True):
        assert (mine.double() - exact).norm() <= bounds[mine.dtype] * exact.norm()


def with_gradients(norm: Norm, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Y of x, weight and bias, those that are given, and its gradients along dL/dY."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = norm(leaves[0], dy.shape[-1:], *leaves[1:])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def truth(inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    return with_gradients(plain, [t.double() for t in inputs], dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_bias_gradient_counts_all_rows(norm: Norm, dtype: torch.dtype) -> None:
    bias = torch.zeros(16, dtype=dtype, requires_grad=True)
    x = normal(8192, 16, dtype=dtype)
    (dbias,) = torch.autograd.grad(norm(x, (16,), None, bias), bias, torch.ones_like(x))
    assert (dbias == 8192).all()


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
def test_large_mean_loses_no_digits(norm: Norm, mean: float) -> None:
    inputs = [(normal(4, 1024) + mean).float(), normal(1024, seed=2).float()]
    dy = normal(4, 1024, seed=1).float()
    for ours, exact in zip(with_gradients(norm, inputs, dy), truth(inputs, dy), strict=True):
        assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("operator", [kernels.forward, torch.ops.custom_ops.layer_norm_forward])
def test_statistics_are_the_mean_in_two_parts_and_the_inverse_spread(
    operator: Callable[..., tuple[Tensor, Tensor]], mean: float
) -> None:
    x = (normal(4, 1024) + mean).float()
    hi, lo, rstd = operator(x, None, None, 1, 1e-5)[1]
    exact = x.double()
    torch.testing.assert_close(hi.double() + lo, exact.mean(-1), rtol=0, atol=1e-7)
    spread = (exact.var(-1, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), spread, rtol=1e-6, atol=0)


@pytest.mark.parametrize("constant", [3.3, 1e3 + 0.1, 1e4 + 0.3, 1e6 + 0.7])
@pytest.mark.parametrize("m", [100, 512, 1000, 1024])
def test_constant_row_is_exactly_the_bias(norm: Norm, constant: float, m: int) -> None:
    x = torch.full((3, m), constant)
    weight = normal(m, seed=1, dtype=torch.float32).requires_grad_()
    bias = normal(m, seed=2, dtype=torch.float32)
    y = norm(x, (m,), weight, bias)
    (dweight,) = torch.autograd.grad(y, weight, normal(3, m, seed=3, dtype=torch.float32))
    assert torch.equal(y, bias.expand(3, m))
    assert not dweight.any()


def test_almost_constant_row_stays_finite(norm: Norm) -> None:
    x = torch.full((1, 1000), 1e9)
    x[0, 0] += 64  # one unit in the last place
    exact = plain(x.double(), (1000,))
    assert (norm(x, (1000,)) - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_rows_of_one_element_have_zero_gradients(norm: Norm) -> None:
    x, weight = (normal(*s, dtype=torch.float32).requires_grad_() for s in ((64, 1), (1,)))
    dy = normal(64, 1, seed=1, dtype=torch.float32)
    dx, dweight = torch.autograd.grad(norm(x, (1,), weight), (x, weight), dy)
    assert not dx.any()
    assert not dweight.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_row_leaves_its_neighbours_clean(norm: Norm, bad: float) -> None:
    x = normal(4, 8)
    x[2, 3] = bad
    leaf = x.requires_grad_()
    y = norm(leaf, (8,))
    (grad,) = torch.autograd.grad(y, leaf, normal(4, 8, seed=1))
    bad_rows = [False, False, True, False]
    assert y.isnan().any(-1).tolist() == grad.isnan().any(-1).tolist() == bad_rows


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_empty_batch(shape: tuple[int, ...]) -> None:
    function, _, inputs = case("affine", shape)
    y = function(*inputs)
    grads = torch.autograd.grad(y.sum(), inputs)
    assert [t.shape for t in (y, *grads)] == [shape, shape, (5,), (5,)]
    assert not any(g.any() for g in grads)


def test_non_contiguous_tensors() -> None:
    x, dy = normal(6, 3, 4).permute(1, 2, 0), normal(4, 3, 6, seed=1).transpose(0, 1)
    results = []
    for copy in (False, True):
        leaf = (x.contiguous() if copy else x).detach().requires_grad_()
        y = layer_norm(leaf, (4, 6))
        results.append((y, *torch.autograd.grad(y, leaf, dy.contiguous() if copy else dy)))
    torch.testing.assert_close(*results)
    assert results[0][0].is_contiguous()


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("norm", [layer_norm, by_function])
def test_frozen_inputs_get_no_gradient(norm: Norm, frozen: int) -> None:
    inputs = [normal(4, 5), normal(5), normal(5)]
    for i, t in enumerate(inputs):
        t.requires_grad_(i != frozen)
    y = norm(inputs[0], (5,), inputs[1], inputs[2])  # kept: torch 2.11 frees with it
    node: Any = y.grad_fn
    grads = (node.apply if norm is by_function else node)(torch.ones(4, 5, dtype=F64))
    assert [grad is None for grad in grads[:3]] == [i == frozen for i in range(3)]


@pytest.mark.parametrize("norm", [layer_norm, by_function])
def test_only_what_is_needed_is_saved(norm: Norm) -> None:
    x, weight, bias = normal(4, 5), normal(5), normal(5)
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    def elements(*needs: bool) -> int:
        saved.clear()
        inputs = [
            t.detach().requires_grad_(n) for t, n in zip((x, weight, bias), needs, strict=True)
        ]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            norm(inputs[0], (5,), inputs[1], inputs[2])
        return sum(t.numel() for t in saved)

    assert elements(True, True, True) == 20 + 5 + 3 * 4
    assert elements(False, True, True) == 20 + 3 * 4
    assert elements(False, False, True) == 0


NEEDS = [[bool(a), bool(b), bool(c)] for a in (0, 1) for b in (0, 1) for c in (0, 1)]


@pytest.mark.parametrize("needs", NEEDS)
def test_operators_without_a_kernel_compute_what_is_needed(needs: list[bool]) -> None:
    """In the dtypes of the kernels: outputs in that of x, sums in at least float32."""
    half, single = torch.bfloat16, torch.float32
    x, dy, weight = normal(6, 5, dtype=half), normal(6, 5, seed=1, dtype=half), normal(5, seed=2)
    y, statistics = kernels.forward(x, weight, weight, 1, 1e-5)
    assert (y.dtype, statistics.dtype, statistics.shape) == (half, single, (3, 6))
    exact = truth([x, weight, weight], dy)
    gradients = kernels.backward(dy, x, weight, statistics, 1, needs)
    dtypes = (half, single, single)
    for need, found, right, dtype in zip(needs, gradients, exact[1:], dtypes, strict=True):
        assert found.dtype == (dtype if need else single)
        assert found.shape == (right.shape if need else (0,))
        if need:
            assert (found.double() - right).norm() <= 5e-3 * right.norm()
    assert kernels.backward(dy.float(), x.double(), weight, statistics, 1, needs)[2].dtype == F64


def test_operators_without_a_kernel_refuse_what_does_not_fit() -> None:
    x, five, four = torch.ones(2, 4), torch.ones(5), torch.ones(4)
    for name, parameters in {"weight": (five, four), "bias": (four, five)}.items():
        with pytest.raises(ValueError, match=f"expected {name} of shape"):
            kernels.forward(x, *parameters, 1, 1e-5)
    for ndim in (0, 3):
        with pytest.raises(ValueError, match=f"ndim from 1 to 2, the dimensions of x, got {ndim}"):
            kernels.forward(x, None, None, ndim, 1e-5)


def test_forward_mode_takes_the_closed_form() -> None:
    """Which the formula left to autograd would equal, only slower."""
    x = normal(4, 5).requires_grad_()
    with forward_ad.dual_level():
        y = layer_norm(x, 5)
    assert type(y.grad_fn).__name__ == "_TransformedLayerNormBackward"


@each_variant
def test_backward_changes_none_of_its_inputs(variant: str) -> None:
    function, _, inputs = case(variant, (4, 5), dtype=torch.float32)
    dy = normal(4, 5, seed=3, dtype=torch.float32)
    before = [t.detach().clone() for t in (dy, *inputs)]
    y = function(*inputs)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(before, (dy, *inputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("needs", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
@pytest.mark.parametrize("given", [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_function_and_its_double_in_cpp_agree(
    needs: tuple[int, ...], given: tuple[int, ...]
) -> None:
    """`layer_norm` runs the C++ one: same bits in values, gradients and gradients of gradients."""
    drawn = [normal(6, 5, dtype=torch.float32), *(normal(5, dtype=torch.float32) for _ in given)]
    present = (True, *given)
    inputs = [
        t.requires_grad_(bool(need)) if there else None
        for t, need, there in zip(drawn, needs, present, strict=True)
    ]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    if not wanted:
        return
    x, weight, bias = inputs
    assert x is not None
    dy = normal(6, 5, seed=9, dtype=torch.float32)
    results = []
    for y in (layer_norm(x, 5, weight, bias), LayerNormFunction.apply(x, weight, bias, 1e-5, 1)):
        first = torch.autograd.grad(y, wanted, dy, retain_graph=True)
        again = torch.autograd.grad(y, wanted, dy.requires_grad_(), create_graph=True)
        second = torch.autograd.grad(
            [g.square().sum() for g in again], [*wanted, dy], allow_unused=True
        )
        results.append([y, *first, *again, *second])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_function_takes_parameters_alone() -> None:
    x, weight, bias = normal(4, 5).requires_grad_(), normal(5), normal(5)
    for parameters in ((), (weight,), (weight, bias)):
        y = LayerNormFunction.apply(x, *parameters)
        expected = F.layer_norm(x, (5,), *parameters)
        dy = normal(4, 5, seed=1)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy)
        )


def test_wrong_shapes_dtypes_and_devices_are_named() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"x of shape \(\.\.\., 3\), got \(2, 4\)"):
        layer_norm(x, 3)
    with pytest.raises(ValueError, match=r"x of shape \(\.\.\., 5, 2, 4\), got \(2, 4\)"):
        LayerNorm((5, 2, 4))(x)
    with pytest.raises(ValueError, match="one at least"):
        layer_norm(x, ())
    with pytest.raises(ValueError, match=r"weight of shape .4,?., got .1,?.: reshape weight"):
        layer_norm(x, 4, torch.ones(1))
    with pytest.raises(ValueError, match=r"bias of shape .4,?., got .2, 4.: reshape bias"):
        layer_norm(x, 4, None, x)
    with pytest.raises(ValueError, match=r"bias on cpu, where x is, got meta: call bias\.to"):
        layer_norm(x, 4, None, torch.ones(4, device="meta"))
    with pytest.raises(TypeError, match=r"(torch\.int64|Long): call x\.float\(\)"):
        layer_norm(x.long(), 4)
    with pytest.raises(TypeError, match=r"[Cc]omplex(64|Float): normalise x\.real and x\.imag"):
        layer_norm(x.to(torch.complex64), 4)
    with pytest.raises(
        TypeError, match=r"weight .*(torch\.int64|long.*): call weight\.to\(x\.dtype\)"
    ):
        layer_norm(x, 4, torch.ones(4).long())


def test_one_tensor_may_be_both_parameters() -> None:
    weight = normal(5).requires_grad_()
    results = [
        torch.autograd.grad(function(normal(4, 5), (5,), weight, weight).sin().sum(), weight)
        for function in (layer_norm, F.layer_norm)
    ]
    torch.testing.assert_close(*results)


class Labelled(Tensor):
    """A subclass as anyone may write one."""


@pytest.mark.parametrize("labelled", [0, 1])
def test_subclasses_of_tensor_stay_what_they_are(labelled: int) -> None:
    inputs = [normal(4, 5), normal(5, seed=1)]
    expected = F.layer_norm(inputs[0], (5,), inputs[1])
    leaves = [t.requires_grad_() for t in inputs]
    given = [t.as_subclass(Labelled) if i == labelled else t for i, t in enumerate(leaves)]
    y = layer_norm(given[0], (5,), given[1])
    assert type(y) is Labelled
    torch.testing.assert_close(y.as_subclass(Tensor), expected)
    grads = torch.autograd.grad(y.sin().sum(), leaves)
    reference = torch.autograd.grad(F.layer_norm(leaves[0], (5,), leaves[1]).sin().sum(), leaves)
    torch.testing.assert_close(tuple(g.as_subclass(Tensor) for g in grads), reference)


def test_x_may_be_a_parameter() -> None:
    x = nn.Parameter(normal(4, 5))
    y = layer_norm(x, 5)
    assert type(y) is Tensor
    assert y.grad_fn is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_tracked_where_gradients_are_off(context: Callable[[], Any]) -> None:
    function, reference, inputs = case("affine", (4, 5))
    with context():
        y = function(*inputs)
    assert not y.requires_grad
    torch.testing.assert_close(y, reference(*inputs).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_on_the_cpu_changes_nothing(dtype: torch.dtype) -> None:
    x, weight = normal(4, 5, dtype=dtype), normal(5, dtype=dtype).requires_grad_()
    outside = layer_norm(x, 5, weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer_norm(x, 5, weight)
        (dweight,) = torch.autograd.grad(inside.float().sum(), weight)
    assert inside.dtype is dtype
    assert torch.equal(inside, outside)
    assert dweight.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_autocast_on_cuda_gives_float32(dtype: torch.dtype) -> None:
    """On fake tensors, which need no GPU; nor does switching autocast on."""
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            x, weight = (torch.empty(s, device="cuda", dtype=dtype) for s in ((4, 5), 5))
            y, expected = (f(x, (5,), weight) for f in (layer_norm, F.layer_norm))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert y.dtype is expected.dtype


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"elementwise_affine": False}])
@pytest.mark.parametrize("row", [6, (3, 6), [6], torch.Size((3, 6))])
def test_module_is_a_drop_in(settings: dict[str, bool], row: int | list[int]) -> None:
    ours = LayerNorm(row, eps=1e-3, dtype=F64, **settings)
    theirs = nn.LayerNorm(row, eps=1e-3, dtype=F64, **settings)
    for seed, parameter in enumerate(theirs.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, 3, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)


def test_module_starts_as_the_identity_affine() -> None:
    state = LayerNorm(3, dtype=torch.bfloat16).state_dict()
    assert {k: (v.tolist(), v.dtype) for k, v in state.items()} == {
        "weight": ([1, 1, 1], torch.bfloat16),
        "bias": ([0, 0, 0], torch.bfloat16),
    }
    assert LayerNorm(3, device="meta").weight.is_meta


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_dtypes_that_are_not_real_are_named_with_a_remedy(which: int, dtype: torch.dtype) -> None:
    inputs = [torch.ones(3, 4), torch.ones(4), torch.ones(4)]
    inputs[which] = inputs[which].to(dtype)
    name = ("x", "weight", "bias")[which]
    remedy = f"call {name}.to(x.dtype)"
    if which == 0:
        remedy = "normalise x.real and x.imag" if dtype.is_complex else "call x.float()"
    with pytest.raises(TypeError) as failed:
        kernels.check(inputs[0], inputs[1], inputs[2], 1)  # where no kernel was compiled
    message = f"layer_norm expected {name} of a floating dtype, got {dtype}: {remedy}"
    assert str(failed.value) == message
