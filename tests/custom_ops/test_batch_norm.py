"""Pooling, batch normalisation and GELU in one: formula, kernels, and where they are used."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from custom_ops import BatchNormGELUFunction, batch_norm_gelu, cpu
from custom_ops.batch_norm import formula, kernels
from tests.custom_ops import cases

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
NHWC = torch.channels_last
EPS = 1e-5
ERRORS = {F32: 3e-6, BF16: 4e-3}  # relative, L2
forward = torch.ops.custom_ops.batch_norm_gelu.default
backward = torch.ops.custom_ops.batch_norm_gelu_backward.default
SHAPES = [
    (3, 5, 6, 4),
    (2, 16, 9, 7),
    (2, 70, 3, 3),
    (2, 33, 3, 5),
    (4, 128, 5, 8),
    (1, 1, 5, 7),
    (130, 64, 12, 11),  # more than one chunk
]


@pytest.fixture
def loaded() -> None:
    """With the kernels, whichever test is the first."""
    try:
        cpu.build("batch_norm")
    except cpu.BuildError as error:
        pytest.skip(str(error))
    assert kernels.KERNELS.found_for("cpu")


needs_kernel = pytest.mark.usefixtures("loaded")
each_dtype = pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
each_pool = pytest.mark.parametrize("pool", [True, False], ids=["pooled", "plain"])


def inputs(
    shape: tuple[int, ...], pool: bool, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, gamma, beta and dL/dY."""
    n, c, h, w = shape
    x = (1.5 * cases.normal(*shape) + 0.5).to(dtype).contiguous(memory_format=NHWC)
    side = 2 if pool else 1
    dy = cases.normal(n, c, h // side, w // side, seed=1, dtype=dtype)
    return x, cases.normal(c, seed=2) + 1, cases.normal(c, seed=3), dy


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, pool: bool) -> Tensor:
    """As one would write it down with PyTorch."""
    p = F.max_pool2d(x, 2) if pool else x
    return F.gelu(F.batch_norm(p, None, None, weight, bias, training=True, eps=EPS))


def gradients(function: Callable[..., Tensor], leaves: Any, dy: Tensor) -> tuple[Tensor, ...]:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# ---- the formula --------------------------------------------------------------------------------


@each_pool
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula_and_its_gradients_are_pytorchs(shape: tuple[int, ...], pool: bool) -> None:
    x, weight, bias, dy = inputs(shape, pool)
    y, pooled, places, statistics = kernels.forward(x, weight, bias, EPS, pool)
    found = (y, *kernels.backward(dy, x, pooled, places, weight, bias, statistics))
    expected = gradients(functools.partial(plain, pool=pool), (x, weight, bias), dy)
    torch.testing.assert_close(found, expected)


def test_gelu_is_exact_far_out() -> None:
    z = torch.tensor([-8.0, -1.0, 0.0, 1.0, 8.0], dtype=F64)
    expected = [math.erfc(-v / math.sqrt(2)) / 2 for v in z.tolist()]
    torch.testing.assert_close(formula.below(z), torch.tensor(expected, dtype=F64))
    bell = [math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in z.tolist()]
    torch.testing.assert_close(formula.density(z), torch.tensor(bell, dtype=F64))


@each_pool
@pytest.mark.parametrize("parameters", [True, False])
def test_every_order_of_derivative(pool: bool, parameters: bool) -> None:
    x, weight, bias, _ = inputs((2, 2, 4, 3), pool)
    tensors = [t.requires_grad_() for t in ((x, weight, bias) if parameters else (x,))]

    def call(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return BatchNormGELUFunction.apply(x, weight, bias, EPS, pool)[0]  # type: ignore[no-any-return]

    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors)


# ---- the kernels --------------------------------------------------------------------------------


@needs_kernel
@each_dtype
@each_pool
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_agree_with_the_truth(
    shape: tuple[int, ...], pool: bool, dtype: torch.dtype
) -> None:
    x, weight, bias, dy = inputs(shape, pool, dtype)
    y, pooled, places, statistics = forward(x, weight, bias, EPS, pool)
    found = (y, *backward(dy, x, pooled, places, weight, bias, statistics))
    true = gradients(functools.partial(plain, pool=pool), (x.double(), weight, bias), dy.double())
    for ours, expected, kind in zip(found, true, (dtype, dtype, F32, F32), strict=True):
        assert (ours.dtype, ours.shape) == (kind, expected.shape)
        assert error(ours, expected) < ERRORS[dtype]
    if pool:
        assert torch.equal(pooled, F.max_pool2d(x, 2))


@needs_kernel
def test_gelu_keeps_its_digits_far_out() -> None:
    # Two pixels of -1 and 1 in each channel: gamma and beta choose z.
    z = torch.linspace(-9, 9, 4001, dtype=F64)
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, len(z), 1, 1)
    y, _, _, statistics = forward(x, torch.zeros(len(z)), z.float(), 0.0, False)
    expected = z.float().double() * formula.below(z.float().double())
    torch.testing.assert_close(y[0].flatten().double(), expected, rtol=3e-6, atol=1e-37)
    dy = torch.ones(2, len(z), 1, 1)
    dbias = backward(
        dy,
        x,
        x.new_empty(0),
        torch.empty(0, dtype=torch.uint8),
        None,
        z.float(),
        torch.stack([torch.zeros(len(z)), torch.ones(len(z)), torch.zeros(len(z))]),
    )[2]
    slope = formula.below(z.float().double()) + z.float().double() * formula.density(z.float())
    torch.testing.assert_close(dbias.double(), 2 * slope, rtol=3e-6, atol=3e-7)
    assert statistics.tolist() == [[0.0] * len(z), [1.0] * len(z), [1.0] * len(z)]


@needs_kernel
def test_a_large_mean_leaves_the_variance_right() -> None:
    x = (cases.normal(40, 20, 9, 8) + 4096).float().contiguous(memory_format=NHWC)
    _, _, _, statistics = forward(x, None, None, 0.0, False)
    true = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[:2].double(), torch.stack(true[::-1]), rtol=5e-6, atol=0)


@needs_kernel
@each_dtype
@each_pool
def test_the_number_of_threads_changes_no_digit(pool: bool, dtype: torch.dtype) -> None:
    x, weight, bias, dy = inputs((130, 64, 12, 11), pool, dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, pooled, places, statistics = forward(x, weight, bias, EPS, pool)
            slopes = backward(dy, x, pooled, places, weight, bias, statistics)
            found.append((y, pooled, places, statistics, *slopes))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@needs_kernel
@each_dtype
def test_equal_maxima_and_what_is_no_number_are_treated_as_by_pytorch(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, -0.0, 2, 2, 1], [0, 0, 2, 2, 1], [1, 3, -9, -9, 1], [3, 3, -9, -8, 1]])
    x = x.expand(1, 20, 4, 5).to(dtype).contiguous(memory_format=NHWC).requires_grad_()
    indices = F.max_pool2d(x, 2, return_indices=True)[1]
    _, _, places, _ = forward(x, None, None, EPS, True)
    row, column = indices // 5 % 2, indices % 5 % 2
    assert torch.equal(places, (2 * row + column).byte())
    nan = x.detach().clone()
    nan[0, 3, 1, 1] = float("nan")
    y = forward(nan, None, None, EPS, True)[0]
    assert y[:, 3].isnan().all()
    assert y[:, :3].isfinite().all()


@needs_kernel
def test_any_layout_is_taken() -> None:
    x, weight, bias, dy = inputs((3, 20, 6, 6), True, F32)
    found = []
    for given, slope in ((x, dy), (x.contiguous(), dy.contiguous(memory_format=NHWC))):
        y, pooled, places, statistics = forward(given, weight, bias, EPS, True)
        found.append((y, *backward(slope, given, pooled, places, weight, bias, statistics)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_kernel
def test_what_does_not_fit_is_refused() -> None:
    x, weight, _, _ = inputs((2, 4, 4, 4), False, F32)
    with pytest.raises(ValueError, match=r"weight of shape \[4\], got \[3\]"):
        forward(x, weight[:3], None, EPS, False)
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\), got \[4, 4\]"):
        forward(x[0, 0], None, None, EPS, False)
    with pytest.raises(ValueError, match="expected pixels"):
        forward(x[:, :, :1], None, None, EPS, True)
    with pytest.raises(ValueError, match="expected pixels"):
        forward(x[:, :0], None, None, EPS, False)
    with pytest.raises(TypeError, match="kernels for float32 and bfloat16, got Double"):
        forward(x.double(), None, None, EPS, False)


@needs_kernel
@each_pool
def test_gradients_of_another_call_are_refused(pool: bool) -> None:
    x, weight, bias, dy = inputs((2, 4, 6, 4), pool, F32)
    _, pooled, places, statistics = forward(x, weight, bias, EPS, pool)
    given = {"dy": dy, "x": x, "pooled": pooled, "places": places, "statistics": statistics}
    smaller = {name: [tensor[:1], tensor[..., :1]] for name, tensor in given.items()}
    if not pool:
        del smaller["pooled"], smaller["places"]
    for name, cut in smaller.items():
        for tensor in (*cut, given[name].flatten(), given[name][None]):
            changed = {"weight": weight, "bias": bias, **given, name: tensor}
            with pytest.raises(ValueError, match=r"expected .*, got"):
                torch.ops.custom_ops.batch_norm_gelu_backward(**changed)


@needs_kernel
@each_pool
def test_the_operators_keep_pytorchs_contract(pool: bool) -> None:
    x, weight, bias, dy = inputs((2, 8, 5, 4), pool, F32)
    _, pooled, places, statistics = forward(x, weight, None, EPS, pool)
    torch.library.opcheck(forward, (x, weight, None, EPS, pool))
    torch.library.opcheck(forward, (x, None, bias, EPS, pool))
    torch.library.opcheck(backward, (dy, x, pooled, places, weight, None, statistics))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["-mavx2 -mfma -mf16c", "-mavx2", "-msse2", "-mavx512f -mfma"])
def test_other_instruction_sets_compute_the_same(isa: str, tmp_path: Path) -> None:
    tests = ("agree_with_the_truth", "far_out", "no_digit", "no_number")
    cases.run_with_instructions(isa, __file__, tests, tmp_path)


# ---- where it is used ---------------------------------------------------------------------------


class Twin(nn.Module):
    """The modules that `batch_norm_gelu` replaces, and the function beside them."""

    def __init__(self, channels: int, pool: bool) -> None:
        super().__init__()
        self.pool, self.norm = pool, nn.BatchNorm2d(channels, eps=EPS, momentum=0.3)

    def native(self, x: Tensor) -> Tensor:
        y: Tensor = F.gelu(self.norm(F.max_pool2d(x, 2) if self.pool else x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        statistics = norm.running_mean, norm.running_var
        return batch_norm_gelu(
            x, *statistics, norm.weight, norm.bias, self.training, 0.3, EPS, self.pool
        )


@each_pool
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_the_function_is_the_three_modules(pool: bool, training: bool, dtype: torch.dtype) -> None:
    x, _, _, dy = inputs((4, 24, 7, 6), pool, dtype)
    kind = F64 if dtype == F64 else F32
    ours, native = (Twin(24, pool).to(kind).train(training) for _ in range(2))
    found = gradients(ours, (x,), dy)
    expected = gradients(native.native, (x,), dy)
    for one, other in zip(found, expected, strict=True):
        assert error(one, other.double()) < (1e-2 if dtype == BF16 else 1e-6)
    for name, buffer in ours.norm.named_buffers():
        if name != "num_batches_tracked":
            torch.testing.assert_close(buffer, native.norm.get_buffer(name))


@needs_kernel
@each_pool
def test_second_derivatives_are_those_of_the_formula(pool: bool) -> None:
    x, weight, bias, _ = inputs((3, 4, 5, 4), pool, F32)
    found = []
    for dtype in (F32, F64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = batch_norm_gelu(leaves[0], None, None, leaves[1], leaves[2], True, pool=pool)
        slopes = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        total = torch.stack([slope.square().sum() for slope in slopes]).sum()
        found.append(torch.autograd.grad(total, leaves))
    assert all(error(a, b) < 1e-4 for a, b in zip(*found, strict=True))


@each_pool
def test_transforms_take_it(pool: bool) -> None:
    x, weight, bias, _ = inputs((2, 3, 4, 5), pool, F32)

    def call(x: Tensor) -> Tensor:
        return batch_norm_gelu(x, None, None, weight.float(), bias.float(), True, pool=pool)

    stacked = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(call)(stacked)[1], call(2 * x))
    tangent = torch.func.jvp(call, (x,), (torch.ones_like(x),))[1]
    assert tangent.shape == call(x).shape


@each_pool
def test_compiles_in_one_graph(pool: bool) -> None:
    x, _, _, dy = inputs((4, 8, 6, 6), pool, F32)
    module = Twin(8, pool)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, (x,), dy), gradients(module, (x,), dy))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@each_pool
def test_what_is_recorded_needs_no_kernel_of_this_project(pool: bool) -> None:
    x = inputs((4, 8, 6, 6), pool, F32)[0]
    module = Twin(8, pool)
    exported = torch.export.export(module, (x,))
    assert "custom_ops" not in str(exported.graph)
    traced = torch.jit.trace(module, x)  # type: ignore[no-untyped-call]
    assert "custom_ops::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"running_mean": torch.zeros(4)},
        {"running_mean": torch.zeros(4), "running_var": torch.ones(5)},
        {"running_mean": torch.zeros(4, 4), "running_var": torch.ones(4, 4)},
        {"weight": torch.ones(4, device="meta")},
        {"weight": torch.ones(4).double()},
        {"weight": torch.ones(4) * 1j},
        {"eps": -10.0},
    ],
    ids=str,
)
def test_what_pytorch_refuses_is_refused_before_anything_changes(arguments: dict[str, Any]) -> None:
    x = torch.randn(2, 4, 4, 4).to(memory_format=NHWC)
    given = {"running_mean": None, "running_var": None, **arguments}
    mean = given["running_mean"]
    for function in (F.batch_norm, batch_norm_gelu):
        with pytest.raises((RuntimeError, ValueError)):
            function(x, **given, training=True)
    assert mean is None or not mean.any()


def test_images_without_channels_are_computed_by_pytorch() -> None:
    x = torch.zeros(2, 0, 4, 4).to(memory_format=NHWC)
    assert batch_norm_gelu(x, None, None, training=True).shape == x.shape


def test_a_single_pixel_is_refused_as_by_pytorch() -> None:
    x = torch.zeros(1, 4, 3, 3).to(memory_format=NHWC)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        batch_norm_gelu(x, None, None, training=True, pool=True)
