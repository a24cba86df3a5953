"""Winograd's convolution: its formula, its kernels, and where it is used."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from custom_ops import Conv2d, conv2d, conv2d_max_pool, cpu
from custom_ops.convolution import Geometry, kernels, winograd
from custom_ops.pooling import max_pool, unpool
from tests.custom_ops import cases

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
NHWC = torch.channels_last
ERRORS = {F32: 2e-6, BF16: 6e-3}  # relative, L2
forward = torch.ops.custom_ops.winograd.default
backward = torch.ops.custom_ops.winograd_backward.default
Shape = tuple[int, int, int, int, int]  # images, channels in and out, height, width
SHAPES: list[Shape] = [
    (3, 24, 64, 31, 31),
    (2, 64, 96, 15, 15),
    (5, 40, 33, 7, 6),
    (9, 70, 17, 3, 3),
    (2, 5, 7, 6, 9),
    (1, 1, 1, 1, 1),
    (1, 16, 32, 2, 1),
    (0, 8, 8, 4, 4),
    (70, 33, 40, 4, 5),
]
THREADED: list[Shape] = [(20, 40, 48, 9, 8), (40, 24, 32, 17, 16)]  # tiles in one share, in many
SUITS = Geometry(padding=(1, 1))


@pytest.fixture(scope="session")
def library() -> Path:
    try:
        return cpu.build("convolution")
    except cpu.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def loaded(library: Path) -> None:
    """With the kernels, whichever test is the first."""
    kernels.KERNELS.load("cpu")
    assert kernels.KERNELS.found == {"cpu": True}


needs_kernel = pytest.mark.usefixtures("loaded")
each_dtype = pytest.mark.parametrize("dtype", [F32, BF16], ids=str)


def inputs(shape: Shape, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, g, the bias and dL/dY."""
    n, c, k, h, w = shape
    x, dy = cases.normal(n, c, h, w, dtype=dtype), cases.normal(n, k, h, w, seed=1, dtype=dtype)
    weight = cases.normal(k, c, 3, 3, seed=2, dtype=dtype) / (3 * c**0.5)
    return x.contiguous(memory_format=NHWC), weight, cases.normal(k, seed=3, dtype=dtype), dy


def true(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Y, dL/dX and dL/dg in float64."""
    x, weight = (t.double().requires_grad_() for t in (x, weight))
    y = F.conv2d(x, weight, bias.double(), padding=1)
    return (y.detach(), *torch.autograd.grad(y, (x, weight), dy.double()))


def error(found: Tensor, expected: Tensor) -> float:
    norm = expected.norm().item()
    return (found.double() - expected).norm().item() / norm if norm else 0.0


# ---- the formula --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula_is_a_convolution(shape: Shape) -> None:
    x, weight, bias, dy = inputs(shape)
    y, dx, dweight = true(x, weight, bias, dy)
    torch.testing.assert_close(winograd.forward(x, weight, bias), y)
    torch.testing.assert_close(winograd.backward(dy, x, weight), (dx, dweight))


def test_the_gradients_are_those_of_the_forward_pass() -> None:
    x, weight, _, dy = inputs((2, 3, 4, 5, 4))
    x.requires_grad_()
    weight.requires_grad_()
    found = torch.autograd.grad(winograd.forward(x, weight), (x, weight), dy)
    torch.testing.assert_close(winograd.backward(dy, x, weight), found)


def test_four_products_make_two_outputs() -> None:
    d, g = cases.normal(4), cases.normal(3, seed=1)
    m = [(d[0] - d[2]) * g[0], (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2]
    m += [(d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]]
    y = torch.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]])
    torch.testing.assert_close(y, F.conv1d(d[None], g[None, None])[0])


# ---- the kernels --------------------------------------------------------------------------------


@needs_kernel
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_agree_with_the_truth(shape: Shape, dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs(shape, dtype)
    found = (forward(x, weight, bias), *backward(dy, x, weight, [True, True]))
    for ours, expected in zip(found, true(x, weight, bias, dy), strict=True):
        assert (ours.dtype, ours.shape) == (dtype, expected.shape)
        assert error(ours, expected) < ERRORS[dtype]


@needs_kernel
@each_dtype
def test_a_large_output_that_goes_past_the_cache(dtype: torch.dtype) -> None:
    x, weight, _, _ = inputs((64, 16, 64, 33, 32), dtype)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert error(forward(x, weight, None), expected) < ERRORS[dtype]


@needs_kernel
@each_dtype
def test_more_tiles_than_a_chunk_holds(dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs((40, 64, 64, 16, 16), dtype)
    dweight = backward(dy, x, weight, [False, True])[1]
    assert error(dweight, true(x, weight, bias, dy)[2]) < ERRORS[dtype]


@needs_kernel
@each_dtype
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_the_number_of_threads_changes_no_digit(shape: Shape, dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs(shape, dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((forward(x, weight, bias), *backward(dy, x, weight, [True, True])))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@needs_kernel
@each_dtype
def test_any_layout_is_taken(dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs((3, 8, 16, 6, 6), dtype)
    expected = (forward(x, weight, bias), *backward(dy, x, weight, [True, True]))
    x, dy = x.contiguous(), dy.contiguous(memory_format=NHWC)[:, :, :, ::1]
    weight = weight.contiguous(memory_format=NHWC)
    found = (forward(x, weight, bias), *backward(dy, x, weight, [True, True]))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@needs_kernel
def test_only_what_is_needed_is_computed() -> None:
    x, weight, _, dy = inputs((2, 4, 4, 4, 4), F32)
    assert [t.numel() for t in backward(dy, x, weight, [True, False])] == [x.numel(), 0]
    assert [t.numel() for t in backward(dy, x, weight, [False, True])] == [0, weight.numel()]


@needs_kernel
@each_dtype
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    x, weight, _, _ = inputs((1, 8, 8, 6, 6), dtype)
    x[0, 3, 2, 2] = float("nan")
    y = forward(x, weight, None)
    assert y[0, :, 1:4, 1:4].isnan().all()
    assert y[0, :, 4:, 4:].isfinite().all()  # only the tiles that see it


@needs_kernel
def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, _, _ = inputs((1, 8, 8, 6, 6), F32)
    with pytest.raises(ValueError, match="convolution expected 8 channels, got 7"):
        forward(x[:, :7], weight, None)
    with pytest.raises(ValueError, match="kernels \\(K, C, 3, 3\\), got"):
        forward(x, weight[..., :2], None)
    for wrong in (weight.int(), weight * 1j):
        with pytest.raises(TypeError, match="expected floating kernels"):
            forward(x, wrong, None)
    with pytest.raises(ValueError, match="kernels \\(K, C, 3, 3\\), got"):
        forward(x.double(), torch.zeros(8, 8, 5, 5).double(), None)
    for zero in ((x[:, :0], weight[:, :0]), (x, weight[:0])):
        with pytest.raises(ValueError, match="convolution expected channels"):
            forward(*zero, None)


@needs_kernel
def test_gradients_of_another_shape_are_refused() -> None:
    x, weight, _, dy = inputs((2, 8, 8, 6, 6), F32)
    for cut in (dy[:1], dy[:, :7], dy[:, :, :5], dy[..., :5], dy[0], dy[:, :, :, :, None]):
        with pytest.raises(ValueError, match=r"gradients of shape \[2, 8, 6, 6\], got"):
            backward(cut, x, weight, [True, True])
    for wrong in (dy.int(), dy * 1j):
        with pytest.raises(TypeError, match="expected floating gradients"):
            backward(wrong, x, weight, [True, True])


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["-mavx2 -mfma -mf16c", "-mavx2", "-msse2", "-mavx512f -mfma"])
def test_other_instruction_sets_compute_the_same(isa: str, tmp_path: Path) -> None:
    same = ("agree_with_the_truth", "past_the_cache", "a_chunk_holds", "no_digit", "any_layout")
    tests = (*same, "the_maxima_are")
    cases.run_with_instructions(isa, __file__, tests, tmp_path)


# ---- where it is used ---------------------------------------------------------------------------


def fitting(dtype: torch.dtype = F32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs that suit the kernels."""
    x, weight, bias, dy = inputs((16, 64, 64, 8, 8), dtype)
    assert kernels.suits(x, weight, SUITS)
    return x, weight, bias, dy


def test_where_it_is_used() -> None:
    x, weight, _, _ = fitting()
    assert kernels.suits(x.bfloat16(), weight.bfloat16(), SUITS)
    assert not kernels.suits(x.double(), weight.double(), SUITS)
    assert not kernels.suits(x.contiguous(), weight, SUITS)
    assert not kernels.suits(x[:15], weight, SUITS)  # fewer than 256 tiles
    assert not kernels.suits(x[:, :24].contiguous(memory_format=NHWC), weight[:, :24], SUITS)
    assert not kernels.suits(x, weight[..., :1], SUITS)
    assert not kernels.suits(x.to("meta"), weight.to("meta"), SUITS)
    for other in (
        Geometry(),
        Geometry((2, 2), (1, 1)),
        Geometry((1, 1), (1, 1), (2, 2)),
        Geometry(padding=(1, 1), groups=2),
        Geometry(padding=(1, 1), extra=(1, 0)),
    ):
        assert not kernels.suits(x, weight, other)


@each_dtype
def test_conv2d_and_the_module_use_it(dtype: torch.dtype) -> None:
    x, _, _, dy = fitting(dtype)
    module = Conv2d(64, 64, 3, padding=1, dtype=dtype)
    native = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype)
    module.load_state_dict(native.state_dict())
    assert str(module) == str(native)
    assert native.bias is not None
    leaves = [t.detach().clone().requires_grad_() for t in (x, native.weight, native.bias)]
    y = conv2d(leaves[0], leaves[1], leaves[2], padding=1)
    gradients = torch.autograd.grad(y, leaves, dy)
    x.requires_grad_()
    module(x).backward(dy)
    assert x.grad is not None
    found = (module(x), x.grad, module.weight.grad, module.bias.grad)  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip((y, *gradients), found, strict=True))
    assert error(y.detach(), native.double()(x.detach().double())) < ERRORS[dtype]


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((3, 8, 3), (2, 3, 8, 8)),
        ((64, 64, 1), (16, 64, 8, 8)),
        ((64, 64, 3, 2, 1), (16, 64, 8, 8)),
        ((64, 64, 3, 1, "same"), (16, 64, 8, 8)),
        ((64, 64, 3, 1, 1, 1, 1, True, "reflect"), (16, 64, 8, 8)),
        ((64, 64, 3, 1, 1), (64, 8, 8)),
    ],
)
def test_elsewhere_the_module_is_pytorchs(arguments: Any, shape: tuple[int, ...]) -> None:
    x = cases.normal(*shape, dtype=F32)
    module, native = Conv2d(*arguments), nn.Conv2d(*arguments)
    native.load_state_dict(module.state_dict())
    assert torch.equal(module(x), native(x))


def test_autocast_is_followed() -> None:
    x, _, _, _ = fitting()
    module = Conv2d(64, 64, 3, padding=1)
    with torch.autocast("cpu", BF16):
        y = module(x)
    y.sum().backward()
    assert (y.dtype, module.weight.grad.dtype) == (BF16, F32)  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.float16):  # which the kernels do not know
        assert error(module(x).detach(), y.detach().double()) < 1e-2


def test_second_derivatives_are_those_of_the_formula() -> None:
    x, weight, bias, _ = fitting()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    found = []
    for tensors in (leaves, wide):
        y = conv2d(tensors[0], tensors[1], tensors[2], padding=1)
        gradients = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        total = sum(gradient.square().sum() for gradient in gradients)
        assert isinstance(total, Tensor)
        found.append(torch.autograd.grad(total, tensors))
    assert all(error(a, b) < 1e-5 for a, b in zip(*found, strict=True))


def test_every_order_of_derivative() -> None:
    x, weight, bias, _ = inputs((1, 2, 2, 3, 3))
    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    module = Conv2d(2, 2, 3, padding=1, dtype=F64)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert gradcheck(call, tensors, check_forward_ad=True)
    assert gradgradcheck(call, tensors)


def test_the_module_under_transforms() -> None:
    x, _, _, _ = fitting()
    module = Conv2d(64, 64, 3, padding=1)
    several = torch.stack([x, 2 * x])
    found = torch.vmap(module)(several)
    torch.testing.assert_close(found[1], module(2 * x), atol=1e-4, rtol=1e-4)
    functional = torch.func.functionalize(module)(x)
    torch.testing.assert_close(functional, module(x), atol=1e-4, rtol=1e-4)


def test_the_module_refuses_what_pytorchs_does() -> None:
    x, _, _, _ = fitting()
    with pytest.raises(RuntimeError):
        Conv2d(64, 64, 3, padding=1)(x.bfloat16())


def test_vmap_over_images_and_kernels() -> None:
    x, weight, _, _ = fitting()
    kernel = torch.stack([weight, 2 * weight])
    found = torch.vmap(lambda w: conv2d(x, w, padding=1))(kernel)
    torch.testing.assert_close(found[1], conv2d(x, 2 * weight, padding=1), atol=1e-4, rtol=1e-4)


@needs_kernel
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_operators_keep_pytorchs_contract(dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs((2, 8, 4, 5, 4), dtype)
    if dtype == F64:
        x = x.contiguous()
    torch.library.opcheck(forward, (x, weight, bias))
    torch.library.opcheck(forward, (x, weight, None))
    for needs in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(backward, (dy, x, weight, needs))


@needs_kernel
def test_compiles_in_one_graph() -> None:
    x, _, _, dy = fitting()
    module = Conv2d(64, 64, 3, padding=1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    expected = torch.autograd.grad(module(x), [x, module.weight], dy)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), [x, module.weight], dy), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("way", ["export", "trace", "script", "fx"])
def test_what_is_recorded_needs_no_kernel_of_this_project(way: str) -> None:
    x, _, _, _ = fitting()
    module = Conv2d(64, 64, 3, padding=1)
    recorded: Any
    if way == "export":
        program = torch.export.export(module, (x,))
        assert "custom_ops." not in str(program.graph)
        recorded = program.module()
    elif way == "trace":
        recorded = torch.jit.trace(module, x)  # type: ignore[no-untyped-call]
        assert "custom_ops::" not in str(recorded.inlined_graph)
    elif way == "script":
        recorded = torch.jit.script(module)
    else:
        recorded = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(recorded(x), module(x), atol=1e-5, rtol=1e-4)


SCRIPT = """
import torch
from custom_ops import Conv2d
from custom_ops.convolution import kernels
assert not kernels.KERNELS.found  # importing loads nothing
torch.manual_seed(0)
x = torch.randn(16, 64, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
ours = Conv2d(64, 64, 3, padding=1)
native = torch.nn.Conv2d(64, 64, 3, padding=1)
native.load_state_dict(ours.state_dict())
for module in (ours, native):
    module(x).square().sum().backward()
torch.testing.assert_close(ours.weight.grad, native.weight.grad, atol=1e-2, rtol=1e-4)
print(kernels.KERNELS.found)
"""


def test_without_a_compiler_pytorch_computes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "CXX": "unknown-compiler", "XDG_CACHE_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "{'cpu': False}"
    assert done.stderr.count("convolution goes without its CPU kernel, slower") == 1


# ---- with the maxima of squares -----------------------------------------------------------------

pool_forward = torch.ops.custom_ops.winograd_pool.default
pool_backward = torch.ops.custom_ops.winograd_pool_backward.default
POOLED = [shape for shape in SHAPES if min(shape[3:]) > 1]


def pooled_inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, g, the bias and dL/dY of the maxima."""
    x, weight, bias, dy = inputs(shape, dtype)
    return x, weight, bias, F.max_pool2d(dy, 2)


def true_pooled(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The maxima, dL/dX and dL/dg in float64."""
    x, weight = (t.double().requires_grad_() for t in (x, weight))
    y = F.max_pool2d(F.conv2d(x, weight, bias.double(), padding=1), 2)
    return (y.detach(), *torch.autograd.grad(y, (x, weight), dy.double()))


@needs_kernel
@each_dtype
@pytest.mark.parametrize("shape", POOLED, ids=str)
def test_the_maxima_and_their_gradients(shape: Shape, dtype: torch.dtype) -> None:
    x, weight, bias, dy = pooled_inputs(shape, dtype)
    y, places = pool_forward(x, weight, bias)
    found = (y, *pool_backward(dy, places, x, weight, [True, True]))
    for ours, expected in zip(found, true_pooled(x, weight, bias, dy), strict=True):
        assert (ours.dtype, ours.shape) == (dtype, expected.shape)
        # Of two nearly equal pixels, rounding may choose the other one.
        assert error(ours, expected) < {F32: 2e-5, BF16: 1e-1}[dtype]


@needs_kernel
@each_dtype
@pytest.mark.parametrize("shape", POOLED, ids=str)
def test_the_maxima_are_those_of_the_convolution(shape: Shape, dtype: torch.dtype) -> None:
    x, weight, bias, dy = pooled_inputs(shape, dtype)
    whole = forward(x, weight, bias)
    y, places = pool_forward(x, weight, bias)
    torch.testing.assert_close(y, F.max_pool2d(whole, 2), rtol=0, atol=0)
    if dtype == F32:  # bfloat16 is rounded after the choice
        torch.testing.assert_close(places, max_pool(whole)[1])
    unpooled = unpool(dy, places, whole.shape)
    ours = pool_backward(dy, places, x, weight, [True, True])
    theirs = backward(unpooled, x, weight, [True, True])
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-2, atol=1e-4 if dtype == F32 else 1e-2)


@needs_kernel
@each_dtype
@pytest.mark.parametrize("shape", THREADED, ids=str)
def test_the_number_of_threads_changes_no_digit_of_maxima(shape: Shape, dtype: torch.dtype) -> None:
    x, weight, bias, dy = pooled_inputs(shape, dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, places = pool_forward(x, weight, bias)
            found.append((y, places, *pool_backward(dy, places, x, weight, [True, True])))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@needs_kernel
def test_the_first_of_equal_maxima_and_nan_are_chosen_as_by_pytorch() -> None:
    x = torch.ones(1, 1, 6, 6).contiguous(memory_format=NHWC)
    x[0, 0, 3, 3] = float("nan")
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    y, places = pool_forward(x, weight, None)
    expected = max_pool(forward(x, weight, None))
    torch.testing.assert_close((y, places), expected, equal_nan=True)
    assert y[0, 0, 1, 1].isnan()
    assert places[0, 0, 0, 0] == 0


@needs_kernel
def test_maxima_that_do_not_fit_are_refused() -> None:
    x, weight, bias, dy = pooled_inputs((2, 8, 8, 6, 6), F32)
    y, places = pool_forward(x, weight, bias)
    for cut in (dy[:1], dy[:, :7], dy[:, :, :2], dy[..., :2], dy[0]):
        with pytest.raises(ValueError, match=r"gradients of shape \[2, 8, 3, 3\], got"):
            pool_backward(cut, places, x, weight, [True, True])
    with pytest.raises(ValueError, match=r"places of shape \[2, 8, 3, 3\], got"):
        pool_backward(dy, places[:, :, :2], x, weight, [True, True])
    with pytest.raises(TypeError, match="expected float32 or bfloat16, got Double"):
        pool_forward(x.double(), weight.double(), None)
    assert y.shape == dy.shape


@needs_kernel
@pytest.mark.parametrize("shape", [(1,), (39,), (41,), (40, 1)], ids=str)
def test_a_bias_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    x, weight, _, _ = inputs((4, 32, 40, 17, 18), F32)
    for compute in (forward, pool_forward, conv2d_max_pool):
        with pytest.raises(ValueError, match=r"a bias of shape \[40\], got"):
            compute(x, weight, torch.ones(64)[:1] if shape == (1,) else torch.ones(shape))


def test_conv2d_max_pool_uses_it_where_it_suits() -> None:
    x, weight, bias, _ = fitting()
    dy = cases.normal(16, 64, 4, 4, dtype=F32)
    found = []

    def separately(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(conv2d(x, weight, bias, padding=1), 2)

    for compute in (conv2d_max_pool, separately):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = compute(*leaves)
        found.append((y, *torch.autograd.grad(y, leaves, dy)))
    fused = type(found[0][0].grad_fn).__name__
    assert fused == "PooledConv2dFunctionBackward" or not kernels.KERNELS.found_for("cpu")
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((3, 8, 3), (2, 3, 8, 8)),
        ((64, 64, 3, 2, 1), (16, 64, 8, 8)),
        ((64, 64, 3, 1, 1, 1, 1, True, "reflect"), (16, 64, 8, 8)),
        ((64, 64, 3, 1, 1), (16, 64, 8, 8)),
    ],
)
def test_the_module_takes_maxima_of_any_geometry(arguments: Any, shape: tuple[int, ...]) -> None:
    x = cases.normal(*shape, dtype=F32).contiguous(memory_format=NHWC)
    module = Conv2d(*arguments)
    torch.testing.assert_close(
        module.max_pooled(x), F.max_pool2d(module(x), 2), rtol=1e-4, atol=1e-5
    )


def test_derivatives_of_maxima_of_every_order() -> None:
    x, weight, bias, _ = fitting()
    double = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    single = [t.clone().requires_grad_() for t in (x, weight, bias)]
    found = []
    for tensors in (single, double):
        y = conv2d_max_pool(*tensors)
        gradients = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        total = sum(gradient.square().sum() for gradient in gradients)
        assert isinstance(total, Tensor)
        found.append(torch.autograd.grad(total, tensors))
    assert all(error(a, b) < 1e-4 for a, b in zip(*found, strict=True))
    small = [t.requires_grad_() for t in inputs((1, 2, 2, 4, 5))[:3]]
    assert gradcheck(conv2d_max_pool, small, check_forward_ad=True)
    assert gradgradcheck(conv2d_max_pool, small)


def test_transforms_and_compilers_of_maxima() -> None:
    x, weight, _, _ = fitting()
    expected = conv2d_max_pool(x, weight)
    kernel = torch.stack([weight, 2 * weight])
    found = torch.vmap(lambda w: conv2d_max_pool(x, w))(kernel)
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
    compiled = torch.compile(conv2d_max_pool, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", BF16):
        assert error(conv2d_max_pool(x, weight), expected.double()) < 2e-2
        double = conv2d_max_pool(x.double(), weight.double())  # which autocast leaves
    assert double.dtype == F64
    assert error(double, expected.double()) < 1e-5


def test_many_gradients_of_one_graph_of_maxima() -> None:
    x, weight, _, _ = fitting()
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    y = conv2d_max_pool(*leaves)
    several = cases.normal(3, *y.shape, dtype=F32)
    found = torch.vmap(lambda dy: torch.autograd.grad(y, leaves, dy, retain_graph=True))(several)
    expected = torch.autograd.grad(y, leaves, several[1])
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[1], right, rtol=1e-3, atol=1e-3)


@needs_kernel
def test_the_operators_of_maxima_keep_pytorchs_contract() -> None:
    x, weight, bias, dy = pooled_inputs((2, 8, 4, 5, 4), F32)
    torch.library.opcheck(pool_forward, (x, weight, bias))
    _, places = pool_forward(x, weight, None)
    for needs in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(pool_backward, (dy, places, x, weight, needs))
