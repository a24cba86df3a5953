"""The C++ kernels of LayerNorm: their numbers against the formula, and how they are built."""

import functools
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from custom_ops import cpu
from custom_ops.layer_norm import kernels
from tests.custom_ops import cases

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
ROUNDING = {F32: 0.0, F64: 0.0, BF16: 2**-8, F16: 2**-11}  # of one rounding to the dtype
SUMS = {F32: 2e-6, F64: 1e-14, BF16: 2e-6, F16: 2e-6}  # of statistics and sums
EPS = 1e-5
ALL = [True, True, True]

forward = torch.ops.custom_ops.layer_norm_forward.default
backward = torch.ops.custom_ops.layer_norm_backward.default
each_dtype = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
each_half = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
each_layout = pytest.mark.parametrize(
    ("shape", "ndim"),
    [
        ((7, 1), 1),
        ((9, 5), 1),
        ((33, 8), 1),
        ((6, 15), 1),
        ((10, 16), 1),
        ((200, 100), 1),
        ((2, 3, 5, 4), 3),
        ((64,), 1),
        ((150, 300), 1),  # two blocks of rows
        ((700, 1200), 1),  # many, out of the second cache
        ((3, 5000), 1),  # rows in pieces
        ((2, 20001), 1),  # rows one by one
        ((0, 5), 1),
        ((2, 0, 5), 1),
        ((4, 3, 0), 1),
    ],
    ids=str,
)


@pytest.fixture(scope="session")
def library() -> Path:
    try:
        return cpu.build("layer_norm")
    except cpu.BuildError as error:
        pytest.skip(str(error))


needs_kernel = pytest.mark.usefixtures("library")


normal = functools.partial(cases.normal, dtype=F32)


def both(
    x: Tensor, dy: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Y, dL/dX, dL/dgamma and dL/dbeta: of the kernels, and of the formula in float64."""
    y, statistics = forward(x, weight, bias, ndim, EPS)
    ours = (y, *backward(dy, x, weight, statistics, ndim, ALL))
    x, dy = x.double(), dy.double()
    weight, bias = (p if p is None else p.double() for p in (weight, bias))
    y, statistics = kernels.forward(x, weight, bias, ndim, EPS)
    return zip(ours, (y, *kernels.backward(dy, x, weight, statistics, ndim, ALL)), strict=True)


@needs_kernel
@each_dtype
@each_layout
@pytest.mark.parametrize("present", [(1, 1), (1, 0), (0, 1), (0, 0)], ids=str)
def test_agrees_with_the_formula(
    dtype: torch.dtype, shape: tuple[int, ...], ndim: int, present: tuple[int, int]
) -> None:
    row = shape[len(shape) - ndim :]
    x, dy = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    weight, bias = (
        normal(*row, seed=2 + i, dtype=dtype) if use else None for i, use in enumerate(present)
    )
    for ours, exact in both(x, dy, weight, bias, ndim):
        assert ours.shape == exact.shape
        assert ours.is_contiguous()
        if exact.numel():
            bound = SUMS[dtype] * exact.abs().max() + ROUNDING[ours.dtype] * exact.abs()
            assert ((ours.double() - exact).abs() <= bound).all()


@needs_kernel
@each_half
@pytest.mark.parametrize("parameters", ["same", "float32"])
def test_half_types_are_rounded_once(dtype: torch.dtype, parameters: str) -> None:
    parameter_dtype = dtype if parameters == "same" else F32
    x, dy = normal(512, 96, dtype=dtype), normal(512, 96, seed=1, dtype=dtype)
    weight, bias = (normal(96, seed=i, dtype=parameter_dtype) for i in (2, 3))
    for ours, exact in both(x, dy, weight, bias):
        bound = {BF16: 2.0e-3, F16: 2.6e-4}[dtype]
        assert (ours.to(dtype).double() - exact).norm() <= bound * exact.norm()


@needs_kernel
@each_half
def test_half_bias_gradient_counts_all_rows(dtype: torch.dtype) -> None:
    x = normal(8192, 16, dtype=dtype)
    statistics = forward(x, None, None, 1, EPS)[1]
    dbias = backward(torch.ones_like(x), x, None, statistics, 1, [False, False, True])[2]
    assert (dbias == 8192).all()


@needs_kernel
@each_half
def test_values_at_the_ends_of_half_types(dtype: torch.dtype) -> None:
    bias = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.nan, torch.inf, -torch.inf, 1e-40] * 3)
    y = forward(torch.zeros(5, 24, dtype=dtype), None, bias, 1, EPS)[0]
    torch.testing.assert_close(y, bias.to(dtype).expand(5, 24), rtol=0, atol=0, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
def test_large_mean_loses_no_digits(mean: float) -> None:
    x = (normal(6, 1024, dtype=F64) + mean).float()
    for ours, exact in both(x, normal(6, 1024, seed=1), None, None):
        assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()


@needs_kernel
@pytest.mark.parametrize("constant", [3.3, 1e3 + 0.1, 1e4 + 0.3, 1e6 + 0.7])
@pytest.mark.parametrize("m", [1, 3, 100, 512, 1000, 1024, 20000])
def test_constant_row_is_exactly_the_bias(constant: float, m: int) -> None:
    x, weight, bias = torch.full((5, m), constant), normal(m, seed=1), normal(m, seed=2)
    y, statistics = forward(x, weight, bias, 1, EPS)
    dweight = backward(normal(5, m, seed=3), x, weight, statistics, 1, ALL)[1]
    assert torch.equal(y, bias.expand(5, m))
    assert not dweight.any()


@needs_kernel
@each_dtype
def test_rows_of_one_element_have_no_gradient(dtype: torch.dtype) -> None:
    x, dy = normal(65, 1, dtype=dtype), normal(65, 1, seed=1, dtype=dtype)
    weight = normal(1, seed=2, dtype=dtype)
    statistics = forward(x, weight, None, 1, EPS)[1]
    dx, dweight, _ = backward(dy, x, weight, statistics, 1, ALL)
    assert not dx.any()
    assert not dweight.any()


@needs_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_row_leaves_its_neighbours_clean(bad: float) -> None:
    x = normal(6, 20)
    x[2, 3] = bad
    y, statistics = forward(x, None, None, 1, EPS)
    dx = backward(normal(6, 20, seed=1), x, None, statistics, 1, ALL)[0]
    assert y.isnan().any(-1).tolist() == dx.isnan().any(-1).tolist() == [r == 2 for r in range(6)]


@needs_kernel
@each_dtype
@pytest.mark.parametrize(("rows", "m"), [(7, 100), (2200, 1024), (5, 20000)])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, rows: int, m: int) -> None:
    """Not on how many there are either, although large tensors take other ways."""
    x, dy, weight = (normal(*s, dtype=dtype) for s in ((rows, m), (rows, m), (m,)))
    y, statistics = forward(x, weight, None, 1, EPS)
    dx = backward(dy, x, weight, statistics, 1, ALL)[0]
    for row in (0, rows - 2):
        some = slice(row, row + 2)
        alone, its_statistics = forward(x[some], weight, None, 1, EPS)
        assert torch.equal(y[some], alone)
        assert torch.equal(statistics[:, some], its_statistics)
        alone = backward(dy[some], x[some], weight, its_statistics, 1, ALL)[0]
        assert torch.equal(dx[some], alone)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("library", "threads")
@each_dtype
@pytest.mark.parametrize("shape", [(300, 1000), (4099, 24), (37, 9000), (5, 100_000)])
def test_bits_do_not_depend_on_the_number_of_threads(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    x, dy, weight = (normal(*s, dtype=dtype) for s in (shape, shape, shape[1:]))
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        y, statistics = forward(x, weight, weight, 1, EPS)
        results.append((y, statistics, *backward(dy, x, weight, statistics, 1, ALL)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_kernel
def test_any_strides_and_dtypes_and_inputs_unchanged() -> None:
    x, dy = normal(6, 3, 4).permute(1, 2, 0), normal(4, 3, 6, seed=1, dtype=BF16).transpose(0, 1)
    weight, bias = normal(6, 4, seed=2, dtype=F64).t(), normal(4, 1, seed=3, dtype=F16).expand(4, 6)
    inputs = (x, dy, weight, bias)
    before = [t.clone() for t in inputs]
    for ours, exact in both(x, dy, weight, bias, 2):
        assert (ours - exact).abs().max() <= 2e-6 * exact.abs().max()
    assert all(torch.equal(t, old) for t, old in zip(inputs, before, strict=True))


@needs_kernel
@pytest.mark.parametrize("needs", [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_only_what_is_needed_is_computed(needs: list[int]) -> None:
    x, dy, weight = normal(150, 300), normal(150, 300, seed=1), normal(300, seed=2)
    statistics = forward(x, weight, None, 1, EPS)[1]
    full = backward(dy, x, weight, statistics, 1, ALL)
    some = backward(dy, x, weight, statistics, 1, [bool(n) for n in needs])
    for need, ours, gradient in zip(needs, some, full, strict=True):
        assert torch.equal(ours, gradient) if need else ours.shape == (0,)


@needs_kernel
@each_dtype
@pytest.mark.parametrize("affine", [True, False])
def test_operators_are_what_their_schema_says(dtype: torch.dtype, affine: bool) -> None:
    x = normal(2, 3, 4, dtype=dtype)
    weight = normal(3, 4, seed=1, dtype=dtype) if affine else None
    torch.library.opcheck(forward, (x, weight, weight, 2, EPS))
    statistics = forward(x, weight, weight, 2, EPS)[1]
    for needs in (ALL, [True, False, False], [False, True, True]):
        torch.library.opcheck(backward, (x, x, weight, statistics, 2, needs))


@needs_kernel
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.ones(3)}, "weight of shape"),
        ({"dy": torch.ones(2, 3)}, "dy of shape"),
        ({"statistics": torch.ones(3, 1)}, "statistics"),
        ({"ndim": 3}, "ndim from 1 to 2"),
        ({"ndim": 0}, "ndim from 1 to 2"),
    ],
)
def test_what_would_read_outside_a_tensor_is_an_error(
    change: dict[str, object], words: str
) -> None:
    x = torch.ones(2, 4)
    good = {"dy": x, "x": x, "weight": torch.ones(4), "statistics": torch.ones(3, 2), "ndim": 1}
    with pytest.raises(ValueError, match=words):
        backward(*{**good, **change}.values(), ALL)


# How the kernels are built. A script stands in for the compiler: it copies the real library.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUSTOM_OPS_NO_KERNEL", raising=False)
    return tmp_path / "cache" / "cifar10-lightning"


@pytest.fixture
def built(library: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for every time that the stand-in compiled."""
    assert library.parent != cache
    script, log = tmp_path / "compiler", tmp_path / "log"
    script.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\nsleep 0.2; echo >> '{log}'\n"
        f"while [ $1 != -o ]; do shift; done\ncp '{library}' \"$2\"\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log


def times(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_a_library_is_built_once_for_all_processes(
    built: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor() as pool:  # a file lock keeps threads apart as it does processes
        paths = {job.result() for job in [pool.submit(cpu.build, "layer_norm") for _ in range(3)]}
    assert paths == {cpu.build("layer_norm")}
    assert paths.pop().parent == cache
    assert times(built) == 1
    assert capfd.readouterr().err.count("Building the CPU kernel") == 1


def test_a_damaged_library_is_built_again(built: Path) -> None:
    path = cpu.build("layer_norm")
    whole = path.read_bytes()
    for damaged in (b"", whole[:5000], whole[:-1] + b"?"):
        path.write_bytes(damaged)
        assert cpu.build("layer_norm").read_bytes() == whole
    assert times(built) == 4


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file or folder another user's; where only root may, makes us another user."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1, follow_symlinks=False)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)


def test_the_cache_is_private(
    built: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        library = cpu.build("layer_norm")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    cache.chmod(0o755)  # as releases made it before; others only read
    assert cpu.build("layer_norm") == library
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cpu.build("layer_norm").parent == tmp_path / "elsewhere" / "cifar10-lightning"
    assert times(built) == 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720, 0o1777])
@pytest.mark.parametrize("holds_a_library", [False, True])
def test_a_cache_that_others_may_write_is_not_loaded(
    mode: int, holds_a_library: bool, built: Path, cache: Path
) -> None:
    if holds_a_library:
        cpu.build("layer_norm")
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(mode)
    with pytest.warns(UserWarning, match=rf"\A.*{cache} is another user's, or .*: delete it.*\Z"):
        assert not cpu.load("layer_norm")
    assert len([*cache.glob("*.so")]) == times(built) if holds_a_library else not built.exists()


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_cache_of_another_user_is_not_loaded(
    through_a_link: bool, built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu.build("layer_norm")
    if through_a_link:
        cache.rename(cache.with_name("theirs"))
        cache.symlink_to("theirs")
    give_away(cache.resolve(), monkeypatch)
    with pytest.warns(UserWarning, match="is another user's, or others may write to it: delete"):
        assert not cpu.load("layer_norm")
    assert times(built) == 1


@pytest.mark.parametrize("planted", ["writable", "link", "another_users", "links"])
def test_a_library_that_others_left_is_built_again(
    planted: str, built: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is private now: it may have been open to others when they wrote."""
    library, elsewhere = cpu.build("layer_norm"), tmp_path / "elsewhere"
    if planted == "writable":
        library.chmod(0o777)
    elif planted == "link":
        library.rename(elsewhere)
        library.symlink_to(elsewhere)
    elif planted == "another_users":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        give_away(library, monkeypatch)
    else:
        library.unlink()
        elsewhere.write_text("precious")
        for suffix in (".draft", ".log", ".sha256"):
            library.with_suffix(suffix).unlink(missing_ok=True)
            library.with_suffix(suffix).symlink_to(elsewhere)
    assert cpu.build("layer_norm") == library
    assert times(built) == 2
    assert not library.is_symlink()
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert library.stat().st_uid == os.geteuid()
    if planted == "links":
        assert elsewhere.read_text() == "precious"


def test_other_flags_are_another_library(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = cpu.build("layer_norm")
    monkeypatch.setenv("CUSTOM_OPS_ISA", "-mavx2 -mfma")
    assert cpu.build("layer_norm") != native
    assert {"-mavx2", "-mfma"} < set(cpu.compiler_flags())
    assert times(built) == 2


def test_a_failing_compiler_is_reported_in_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\necho 'error: no such thing'; exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.warns(UserWarning, match=r"\Alayer_norm goes without its CPU kernel.*\Z") as caught:
        assert not cpu.load("layer_norm")
    (log,) = cache.glob("*.log")
    assert str(log) in str(caught[0].message)
    assert "no such thing" in log.read_text()


def test_a_cache_that_cannot_be_written_is_reported_in_one_line(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match=r"\Alayer_norm goes without .*blocked.*\Z"):
        assert not cpu.load("layer_norm")
    assert not built.exists()


def test_the_kernel_can_be_switched_off(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOM_OPS_NO_KERNEL", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu.load("layer_norm")
    assert not built.exists()


@pytest.mark.parametrize("value", ["", "0"])
def test_the_kernel_is_not_switched_off_by_nothing(
    value: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def stop(name: str) -> Path:
        looked.append(True)
        raise RuntimeError("stop here")

    monkeypatch.setattr(cpu, "build", stop)
    monkeypatch.setenv("CUSTOM_OPS_NO_KERNEL", value)
    words = r"slower: stop here \(CUSTOM_OPS_NO_KERNEL=1 does so silently\)\Z"
    with pytest.warns(UserWarning, match=words):
        assert not cpu.load("layer_norm")
    assert looked


def test_building_ahead_says_where_and_how(
    built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUSTOM_OPS_ISA", "-mavx2 -mfma")
    monkeypatch.setattr(cpu, "SOURCES", {"layer_norm": cpu.SOURCES["layer_norm"]})
    cpu.main()
    path, flags = capsys.readouterr().out.splitlines()
    assert Path(path) == cpu.build("layer_norm")
    assert flags.startswith("Flags: -O3 -mavx2 -mfma -std=c++20 ")
    monkeypatch.setenv("CXX", "unknown-compiler")
    with pytest.raises(SystemExit, match=r"\Aerror: CXX=unknown-compiler is not found: .*\Z"):
        cpu.main()


def test_compilers_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = r"\Ano C\+\+ compiler is found: install g\+\+ or clang\+\+, or set CXX\Z"
    with pytest.raises(cpu.BuildError, match=words):
        cpu.build("layer_norm")
    monkeypatch.setenv("CXX", "unknown-compiler -v")
    with pytest.raises(cpu.BuildError, match="CXX=unknown-compiler -v is not found"):
        cpu.build("layer_norm")


def test_a_kernel_is_looked_for_once_and_never_for_fake_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []

    def load(name: str) -> bool:
        looked.append(True)
        return False

    monkeypatch.setattr(kernels.KERNELS, "found", {})
    monkeypatch.setattr(cpu, "load", load)
    with FakeTensorMode():
        x = torch.empty(2, 4)
        statistics = forward(x, None, None, 1, EPS)[1]
        backward(x, x, None, statistics, 1, ALL)
    forward(torch.empty(2, 4, device="meta"), None, None, 1, EPS)
    assert not looked
    assert not kernels.KERNELS.load("cpu")
    assert not kernels.KERNELS.load("cpu")
    assert looked == [True]


SCRIPT = """
import torch
from custom_ops import layer_norm
from custom_ops.layer_norm import kernels
assert not kernels.KERNELS.found  # importing loads nothing
x, dy, weight, bias = (torch.randn(*s) for s in ((33, 40), (33, 40), (40,), (40,)))
results = []
for function in (layer_norm, torch.nn.functional.layer_norm) * 2:
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = function(leaves[0], (40,), leaves[1], leaves[2])
    results.append((y, *torch.autograd.grad(y, leaves, dy)))
torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)
assert all(torch.equal(a, b) for a, b in zip(results[0], results[2]))  # first call as the others
print(kernels.KERNELS.found)
"""


def run(**environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_without_a_compiler_the_formula_answers(cache: Path) -> None:
    out, err = run(CXX="unknown-compiler")
    assert out == "{'cpu': False}"
    assert err.count("layer_norm goes without its CPU kernel") == 1
    assert not cache.exists()


@needs_kernel
@pytest.mark.slow
def test_the_first_call_loads_the_kernel() -> None:
    out, err = run()
    assert out == "{'cpu': True}"
    assert not err


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["-mavx2 -mfma -mf16c", "-mavx2", "-msse2"])
def test_other_instruction_sets_give_the_same_numbers(isa: str, tmp_path: Path) -> None:
    tests = ("agrees_with_the_formula", "constant_row", "values_at_the_ends", "on_the_others")
    cases.run_with_instructions(isa, __file__, tests, tmp_path)


@pytest.mark.parametrize(
    "error", [RuntimeError("no home directory"), ValueError("no closing quote")]
)
def test_whatever_stops_the_build_the_formula_can_do_without(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> Path:
        raise error

    monkeypatch.delenv("CUSTOM_OPS_NO_KERNEL", raising=False)
    monkeypatch.setattr(cpu, "build", fail)
    with pytest.warns(UserWarning, match=f"goes without its CPU kernel, slower: {error}"):
        assert not cpu.load("layer_norm")
