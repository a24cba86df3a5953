"""The operators of `kernels` on a GPU, in Triton.

Each computes what `formula` defines: statistics with the mean in two parts, products and sums in
float32 (float64 for X of float64), one rounding to the dtype of X at the end. Rows of up to
`max_block` elements stay in registers between the steps, several rows to a tile if they are
short. Longer rows are read again for each step, from the cache if they fit.

**Exactness.** A quotient is rounded to nearest (`_divide`; the `/` of float32 is less exact on a
GPU). So on a constant row, lo is X - hi and Y is beta, for any order of the sums: X - hi is k units
in the last place, and all sums of up to M such terms are exact while M k < 2^24. A compiler must
not simplify (X - hi) - lo either. This would need permission to reorder, which Triton never gives
(the tests check it).

**Order of sums.** No atomics: every program adds up the rows of its tiles, and a second kernel
adds up the programs, each in a fixed order. So two runs give the same bits. The bits may differ
between shapes, dtypes and alignments of the same row. For dL/dgamma and dL/dbeta, they may also
differ between GPUs with different numbers of multiprocessors.

Importing this module raises ImportError where Triton isn't installed.
"""

# mypy: allow-untyped-decorators

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from custom_ops.layer_norm import kernels

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_LONE_PROGRAM = 2**15  # elements that one program finishes before a second kernel could start


def register(library: torch.library.Library, device: str = "cuda") -> bool:
    """Registers `forward` and `backward` for CUDA tensors in the operators of a library.

    It warns instead if Triton cannot run, for example without a C compiler or on an old GPU.

    Args:
        library: where the operators are defined.
        device: the device for a test of a kernel.

    Returns:
        Whether they are registered.
    """
    try:
        forward(torch.ones(1, 1, device=device), None, None, 1, 1e-5)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"layer_norm goes without its GPU kernels, slower: {reason}", stacklevel=2)
        return False
    library.impl("layer_norm_forward", forward, "CUDA")  # type: ignore[no-untyped-call]
    library.impl("layer_norm_backward", backward, "CUDA")  # type: ignore[no-untyped-call]
    return True


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    ndim: int,
    eps: float,
    *,
    max_block: int = 32768,
) -> tuple[Tensor, Tensor]:
    """Normalises the rows of X as `kernels.forward` does, in one kernel.

    Args:
        x: X, as there.
        weight: gamma, as there.
        bias: beta, as there.
        ndim: number of dimensions of a row.
        eps: added to the variance; a kernel is compiled for every value.
        max_block: longest row that is kept in registers, a power of two; half that for float64.

    Returns:
        Y and the statistics, as there.
    """
    kernels.check(x, weight, bias, ndim)
    if not (x.numel() and _supported(x, weight, bias)):
        return kernels.forward(x, weight, bias, ndim, eps)
    x, weight, bias = x.contiguous(), _contiguous(weight), _contiguous(bias)
    m = x.shape[x.ndim - ndim :].numel()
    rows = x.numel() // m
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    y, statistics = torch.empty_like(x), x.new_empty((3, rows), dtype=dtype)
    plan = _plan_forward(m, rows, x.itemsize, max_block)
    _launch(
        _forward_tile if plan.whole else _forward_loop,
        (plan.programs, 1, 1),
        (x, weight, bias, y, statistics),
        (rows, plan.units),
        (eps, plan.align, plan.rows, plan.block),
        plan.warps,
    )
    return y, statistics


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ndim: int,
    needs: list[bool],
    *,
    max_block: int = 8192,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients as `kernels.backward` does, in one kernel or two.

    Args:
        dy: dL/dY, as there.
        x: X, as there.
        weight: gamma, as there.
        statistics: as there.
        ndim: number of dimensions of a row.
        needs: which of the gradients of X, gamma and beta to compute.
        max_block: longest row that is kept in registers, a power of two; half that for float64.

    Returns:
        dL/dX, dL/dgamma and dL/dbeta, as there.
    """
    if not (x.numel() and (needs[0] or needs[1]) and _supported(dy, x, weight)):
        return kernels.backward(dy, x, weight, statistics, ndim, needs)
    dy, x, weight = dy.contiguous(), x.contiguous(), _contiguous(weight)
    statistics = statistics.contiguous()
    row = x.shape[x.ndim - ndim :]
    m, sums = row.numel(), needs[1] or needs[2]
    rows = x.numel() // m
    plan = _plan_backward(m, rows, x.itemsize, max_block, sums, _multiprocessors(x.device))
    parts = (plan.programs, m) if sums and plan.programs > 1 else None
    dx = torch.empty_like(x) if needs[0] else None
    dweight, dbias = (statistics.new_empty(parts or row) if n else None for n in needs[1:])
    _launch(
        _backward_tile if plan.whole else _backward_loop,
        (plan.programs, 1, 1),
        (x, dy, weight, statistics, dx, dweight, dbias),
        (rows, plan.units),
        (plan.align, plan.rows, plan.block, plan.stages),
        plan.warps,
    )
    if parts:
        dweight, dbias = _sum_parts(dweight, dbias, row)
    return tuple(statistics.new_empty(0) if g is None else g for g in (dx, dweight, dbias))  # type: ignore[return-value]


def _sum_parts(
    weight_parts: Tensor | None, bias_parts: Tensor | None, row: torch.Size
) -> list[Tensor | None]:
    """The sums of the parts, (programs, M), each in the shape of a row."""
    parts = (weight_parts, bias_parts)
    sums = [None if t is None else t.new_empty(row) for t in parts]
    programs, m = next(t.shape for t in parts if t is not None)
    grid = (triton.cdiv(m, 32), 2, 1)
    _launch(_sum_programs, grid, (*parts, *sums), (programs, m), (32,), 4)
    return sums


_compiled: dict[tuple[Any, ...], Any] = {}


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Any, ...],
    sizes: tuple[int, int],
    constants: tuple[float, ...],
    warps: int,
) -> None:
    """Launches a kernel.

    `key` holds everything that Triton compiles the kernel for. A cached kernel starts without
    Triton's inspection of the arguments, which takes several times as long as the launch.
    """
    some = next(t for t in tensors if t is not None)
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    long = [size >= 2**31 for size in sizes]
    key = (kernel.__name__, some.device, constants, warps, *long, *kinds)
    compiled = _compiled.get(key)
    with torch.cuda.device_of(some):  # type: ignore[no-untyped-call]
        if compiled is not None:
            compiled[grid](*tensors, *sizes, *constants)
            return
        # With fusion, g - mean would be the rounding error of g, not 0, on a row of one element.
        options = {"num_warps": warps, "enable_fp_fusion": False}
        compiled = kernel[grid](*tensors, *sizes, *constants, **options)
    if not torch.version.hip:  # AMD's compiler also uses the size of a tensor
        _compiled[key] = compiled


class _Plan(NamedTuple):
    """The division of (rows, M) into tiles; the product of units and align is M."""

    whole: bool  # whether a row fits in a block
    programs: int
    units: int
    align: int  # a power of two: the width of a load for the compiler
    rows: int  # of a tile
    block: int  # columns of a tile
    warps: int
    stages: int  # of a loop: one more than the steps by which loads are early


# A thread gets 8 or 16 elements of a tile: enough parallel loads to hide their latency, few enough
# to stay in registers (see the tests). Not measured on a GPU yet.


@functools.lru_cache(maxsize=4096)
def _plan_forward(m: int, rows: int, itemsize: int, max_block: int) -> _Plan:
    block, whole = _block(m, itemsize, max_block)
    tile_rows = max(1, 2048 // block) if whole else 1
    block = block if whole else min(block, 8192)
    warps = min(max(tile_rows * block // 512, 4), 32)
    align, programs = math.gcd(m, 16), triton.cdiv(rows, tile_rows)
    return _Plan(whole, programs, m // align, align, tile_rows, block, warps, 2)


@functools.lru_cache(maxsize=4096)
def _plan_backward(
    m: int, rows: int, itemsize: int, max_block: int, sums: bool, multiprocessors: int
) -> _Plan:
    """With sums over rows, uses few programs: each writes one more row of parts to read."""
    block, whole = _block(m, itemsize, max_block)
    lone = sums and whole and m * rows <= _LONE_PROGRAM
    if whole:
        tile_rows = max(1, (4096 if lone else 1024) // block)
    else:  # its rows are read twice: they should still be in the cache the second time
        tile_rows = next((n for n in (4, 2) if n * m * itemsize <= 2**17), 1)
        block = min(block, 4096 // tile_rows)
    warps = min(max(tile_rows * block // 256, 4), 16)
    programs = triton.cdiv(rows, tile_rows)
    if sums:
        programs = 1 if lone else min(triton.cdiv(programs, 4), multiprocessors * 16 // warps)
    stages = 3 if tile_rows * block * itemsize <= 2**14 else 2  # fits in 99 KiB of shared memory
    align = math.gcd(m, 16)
    stages = stages if sums or not whole else 1  # a loop of one step
    return _Plan(whole, programs, m // align, align, tile_rows, block, warps, stages)


def _block(m: int, itemsize: int, max_block: int) -> tuple[int, bool]:
    """Columns of a block, at most those of a row and `max_block`; and whether it holds the row."""
    if itemsize == 8:
        max_block //= 2  # a float64 takes two registers
    return min(triton.next_power_of_2(m), max_block), m <= max_block


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # Triton's interpreter
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _supported(*tensors: Tensor | None) -> bool:
    return all(t is None or t.dtype in _DTYPES for t in tensors)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


# The kernels. A tile has the shape (rows, columns): `row` is (rows, 1) and int64, so that it may
# be multiplied by M, and `col` is (1, columns).


@triton.jit(do_not_specialize=["rows", "units"])
def _forward_tile(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    statistics: tl.tensor,
    rows: tl.tensor,
    units: tl.tensor,
    EPS: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Y and the statistics of a tile of whole rows."""
    m, rows = units * ALIGN, rows.to(tl.int64)
    row, in_batch = _rows(tl.program_id(0).to(tl.int64), rows, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    mask = in_batch & (col < m)
    wide = tl.load(x + row * m + col, mask, other=0).to(statistics.dtype.element_ty)
    hi = _mean(wide, m)
    centred = tl.where(mask, wide - hi, 0)
    lo = _mean(centred, m)
    centred = tl.where(mask, centred - lo, 0)
    rstd = _rsqrt(_mean(centred * centred, m) + EPS)
    _store_affine(y, centred * rstd, weight, bias, row, col, m, mask)
    _store_statistics(statistics, hi, lo, rstd, row, rows, in_batch)


@triton.jit(do_not_specialize=["rows", "units"])
def _forward_loop(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    statistics: tl.tensor,
    rows: tl.tensor,
    units: tl.tensor,
    EPS: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Y and the statistics of a tile of rows, block by block."""
    m, rows = units.to(tl.int64) * ALIGN, rows.to(tl.int64)
    row, in_batch = _rows(tl.program_id(0).to(tl.int64), rows, ROWS)
    zero = tl.zeros([ROWS, 1], statistics.dtype.element_ty)
    hi = _mean_of_blocks(x, zero, zero, row, m, in_batch, False, BLOCK)
    lo = _mean_of_blocks(x, hi, zero, row, m, in_batch, False, BLOCK)
    rstd = _rsqrt(_mean_of_blocks(x, hi, lo, row, m, in_batch, True, BLOCK) + EPS)
    for start in tl.range(0, m, BLOCK):
        col = start + tl.arange(0, BLOCK)[None, :]
        mask = in_batch & (col < m)
        x_hat = _centred(x, hi, lo, row, col, m, mask) * rstd
        _store_affine(y, x_hat, weight, bias, row, col, m, mask)
    _store_statistics(statistics, hi, lo, rstd, row, rows, in_batch)


@triton.jit(do_not_specialize=["rows", "units"])
def _backward_tile(
    x: tl.tensor,
    dy: tl.tensor,
    weight: tl.tensor,
    statistics: tl.tensor,
    dx: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    rows: tl.tensor,
    units: tl.tensor,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """dL/dX of every n-th tile, for n programs; dL/dgamma and dL/dbeta summed over these tiles."""
    m, rows = units * ALIGN, rows.to(tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    sum_weight = tl.zeros([ROWS, BLOCK], statistics.dtype.element_ty)
    sum_bias = tl.zeros([ROWS, BLOCK], statistics.dtype.element_ty)
    gamma = _row_like(sum_weight, weight, col, m, 1)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES
    ):
        row, in_batch = _rows(tile, rows, ROWS)
        mask = in_batch & (col < m)
        hi, lo, rstd = _load_statistics(statistics, row, rows, in_batch)
        g = tl.load(dy + row * m + col, mask, other=0).to(rstd.dtype)
        x_hat = _centred(x, hi, lo, row, col, m, mask) * rstd
        if dweight is not None:
            sum_weight += g * x_hat
        if dbias is not None:
            sum_bias += g
        if dx is not None:
            g *= gamma
            mean, slope = _mean(g, m), _mean(g * x_hat, m)
            grad = (g - mean - x_hat * slope) * rstd
            tl.store(dx + row * m + col, grad.to(dx.dtype.element_ty), mask)
    part = tl.program_id(0).to(tl.int64) * m + col
    if dweight is not None:
        tl.store(dweight + part, tl.sum(sum_weight, 0, keep_dims=True), col < m)
    if dbias is not None:
        tl.store(dbias + part, tl.sum(sum_bias, 0, keep_dims=True), col < m)


@triton.jit(do_not_specialize=["rows", "units"])
def _backward_loop(
    x: tl.tensor,
    dy: tl.tensor,
    weight: tl.tensor,
    statistics: tl.tensor,
    dx: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    rows: tl.tensor,
    units: tl.tensor,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """The same, block by block; dweight and dbias in memory accumulate the sums over tiles."""
    m, rows = units.to(tl.int64) * ALIGN, rows.to(tl.int64)
    part = tl.program_id(0) * m
    zero = tl.zeros([ROWS, BLOCK], statistics.dtype.element_ty)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row, in_batch = _rows(tile, rows, ROWS)
        hi, lo, rstd = _load_statistics(statistics, row, rows, in_batch)
        if dx is not None:
            sum_g = zero
            sum_slope = zero
            for start in tl.range(0, m, BLOCK, num_stages=STAGES):
                col = start + tl.arange(0, BLOCK)[None, :]
                mask = in_batch & (col < m)
                g = tl.load(dy + row * m + col, mask, other=0).to(rstd.dtype)
                g *= _row_like(zero, weight, col, m, 1)
                sum_g += g
                sum_slope += g * (_centred(x, hi, lo, row, col, m, mask) * rstd)
            mean, slope = _mean(sum_g, m), _mean(sum_slope, m)
        summed = tl.where(tile == tl.program_id(0), 0, m)  # columns that hold a sum already
        for start in tl.range(0, m, BLOCK):  # never two stages: it reads what it writes
            col = start + tl.arange(0, BLOCK)[None, :]
            mask = in_batch & (col < m)
            g = tl.load(dy + row * m + col, mask, other=0).to(rstd.dtype)
            x_hat = _centred(x, hi, lo, row, col, m, mask) * rstd
            if dweight is not None:
                at = dweight + part + col
                total = tl.load(at, col < summed, other=0) + tl.sum(g * x_hat, 0, keep_dims=True)
                tl.store(at, total, col < m)
            if dbias is not None:
                at = dbias + part + col
                total = tl.load(at, col < summed, other=0) + tl.sum(g, 0, keep_dims=True)
                tl.store(at, total, col < m)
            if dx is not None:
                g *= _row_like(zero, weight, col, m, 1)
                grad = (g - mean - x_hat * slope) * rstd
                tl.store(dx + row * m + col, grad.to(dx.dtype.element_ty), mask)
        tl.debug_barrier()  # the reader of a sum may be another thread than its writer


@triton.jit(do_not_specialize=["programs", "m"])
def _sum_programs(
    weight_parts: tl.tensor,
    bias_parts: tl.tensor,
    dweight: tl.tensor,
    dbias: tl.tensor,
    programs: tl.tensor,
    m: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adds up the parts of dweight and dbias, (programs, M)."""
    if tl.program_id(1) == 0:
        if dweight is not None:
            _sum_rows(dweight, weight_parts, programs, m, BLOCK)
    elif dbias is not None:
        _sum_rows(dbias, bias_parts, programs, m, BLOCK)


@triton.jit
def _sum_rows(
    out: tl.tensor, parts: tl.tensor, rows: tl.tensor, m: tl.tensor, BLOCK: tl.constexpr
) -> None:
    col = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([64, BLOCK], out.dtype.element_ty)
    for tile in range(tl.cdiv(rows, 64)):
        row, in_batch = _rows(tile, rows, 64)
        total += tl.load(parts + row * m + col, in_batch & (col < m), other=0)
    tl.store(out + col, tl.sum(total, 0, keep_dims=True), col < m)


@triton.jit
def _rows(tile: tl.tensor, rows: tl.tensor, ROWS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The rows of a tile, and whether the batch has them."""
    row = tile * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    return row, row < rows


@triton.jit
def _divide(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The quotient a / b, rounded to nearest."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _mean(t: tl.tensor, m: tl.tensor) -> tl.tensor:
    return _divide(tl.sum(t, 1, keep_dims=True), m.to(t.dtype))


@triton.jit
def _rsqrt(t: tl.tensor) -> tl.tensor:
    """t^(-1/2), rounded twice."""
    root = tl.sqrt(t) if t.dtype == tl.float64 else tl.sqrt_rn(t)
    return _divide(tl.full(t.shape, 1, t.dtype), root)


@triton.jit
def _centred(
    x: tl.tensor,
    hi: tl.tensor,
    lo: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    m: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:
    """(X - hi) - lo, and 0 outside of X."""
    wide = tl.load(x + row * m + col, mask, other=0).to(hi.dtype)
    return tl.where(mask, (wide - hi) - lo, 0)


@triton.jit
def _mean_of_blocks(
    x: tl.tensor,
    hi: tl.tensor,
    lo: tl.tensor,
    row: tl.tensor,
    m: tl.tensor,
    in_batch: tl.tensor,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The mean of (X - hi) - lo over each row, or of its square."""
    total = tl.zeros([hi.shape[0], BLOCK], hi.dtype)
    for start in tl.range(0, m, BLOCK, num_stages=2):
        col = start + tl.arange(0, BLOCK)[None, :]
        part = _centred(x, hi, lo, row, col, m, in_batch & (col < m))
        if SQUARE:
            part *= part
        total += part
    return _mean(total, m)


@triton.jit
def _row_like(
    like: tl.tensor, values: tl.tensor, col: tl.tensor, m: tl.tensor, DEFAULT: tl.constexpr
) -> tl.tensor:
    """A row of values in each row of a tile; DEFAULT without values.

    It is loaded as a whole tile, because a single row would change the layout of the tiles.
    """
    if values is None:
        return tl.full(like.shape, DEFAULT, like.dtype)
    else:
        at = tl.broadcast_to(col, like.shape)
        return tl.load(values + at, at < m, other=0).to(like.dtype)


@triton.jit
def _store_affine(
    y: tl.tensor,
    x_hat: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    m: tl.tensor,
    mask: tl.tensor,
) -> None:
    """Y = gamma ∘ X̂ + beta."""
    out = x_hat * _row_like(x_hat, weight, col, m, 1)
    if bias is not None:
        out += _row_like(x_hat, bias, col, m, 0)
    tl.store(y + row * m + col, out.to(y.dtype.element_ty), mask)


@triton.jit
def _load_statistics(
    statistics: tl.tensor, row: tl.tensor, rows: tl.tensor, in_batch: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    at = statistics + row
    hi = tl.load(at, in_batch, other=0)
    lo = tl.load(at + rows, in_batch, other=0)
    rstd = tl.load(at + 2 * rows, in_batch, other=0)
    return hi, lo, rstd


@triton.jit
def _store_statistics(
    statistics: tl.tensor,
    hi: tl.tensor,
    lo: tl.tensor,
    rstd: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    in_batch: tl.tensor,
) -> None:
    at = statistics + row
    tl.store(at, hi, in_batch)
    tl.store(at + rows, lo, in_batch)
    tl.store(at + 2 * rows, rstd, in_batch)
