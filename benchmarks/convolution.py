"""Speed of 3x3 convolutions: PyTorch's and this project's, side by side.

    python -m benchmarks.convolution                       # about 15 minutes
    python -m benchmarks.convolution --shapes 500x64x256x15 --threads 2

Both run in this process in turn. A time is the median over the rounds; a ratio is the median of the
ratios within a round, above 1 where this project is faster. `forward` computes Y, `backward`
dL/dX and dL/dg. A shape that ends in p is a convolution and the maxima of its 2x2 squares: one
operator here, two of PyTorch. GFLOP/s count the operations of a direct convolution without its
border for both, and the share is that of this machine's product of matrices in the same type.

An error is relative, in the L2 norm, against float64. Images are channels-last, normal numbers.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reports import report_cases
from benchmarks.timing import measure, without_trimming
from custom_ops.convolution import Geometry, kernels
from custom_ops.pooling import max_pool
from experiments.command_line.config_files import expand_home
from experiments.records.machine import hardware, peak_gflops

RESULT = Path(__file__).resolve().parent / "results" / "convolution_cpu.json"
Shape = tuple[int, int, int, int, bool]  # images, channels in and out, side in pixels, maxima
FAST_CNN = ["500x24x64x31", "500x64x64x15", "500x64x256x15", "500x256x256x7", "500x256x256x3"]
FAST_CNN += ["500x64x256x11", "500x256x256x5"]
POOLED = ["500x24x64x31p", "500x64x256x15p", "500x256x256x7p", "500x64x256x11p", "500x256x256x5p"]
CNN = ["32x64x64x32", "32x128x128x16", "32x256x256x8", "32x512x512x4"]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_PAD = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)  # stride, padding, dilation, ...


def inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """X, g and dL/dY."""
    images, channels, outputs, side, pooled = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, side, side, generator=random)
    left = side // 2 if pooled else side
    dy = torch.randn(images, outputs, left, left, generator=random)
    weight = torch.randn(outputs, channels, 3, 3, generator=random) / (3 * channels**0.5)
    x, dy, weight = (t.to(dtype, memory_format=torch.channels_last) for t in (x, dy, weight))
    return x, weight, dy


Call = tuple[str, str, Callable[[], tuple[Tensor, ...]]]


def calls(x: Tensor, weight: Tensor, dy: Tensor) -> list[Call]:
    """The measured calls: pass, implementation, and a call without arguments."""
    ours, back = torch.ops.custom_ops.winograd, torch.ops.custom_ops.winograd_backward
    native = torch.ops.aten.convolution_backward
    return [
        ("forward", "native", lambda: (F.conv2d(x, weight, padding=1),)),
        ("forward", "ours", lambda: (ours(x, weight, None),)),
        ("backward", "native", lambda: native(dy, x, weight, None, *_PAD, [True, True, False])[:2]),
        ("backward", "ours", lambda: back(dy, x, weight, [True, True])),
    ]


def pooled_calls(x: Tensor, weight: Tensor, dy: Tensor) -> list[Call]:
    """The same of a convolution and the maxima of its squares."""
    ours, back = torch.ops.custom_ops.winograd_pool, torch.ops.custom_ops.winograd_pool_backward
    native, aten = torch.ops.aten.convolution_backward, torch.ops.aten
    whole = F.conv2d(x, weight, padding=1)
    indices = F.max_pool2d(whole, 2, return_indices=True)[1]
    squares = ([2, 2], [2, 2], [0, 0], [1, 1], False)

    def native_backward() -> tuple[Tensor, ...]:
        full = aten.max_pool2d_with_indices_backward(dy, whole, *squares, indices)
        return tuple(native(full, x, weight, None, *_PAD, [True, True, False])[:2])

    places = max_pool(whole)[1]
    return [
        ("forward", "native", lambda: (F.max_pool2d(F.conv2d(x, weight, padding=1), 2),)),
        ("forward", "ours", lambda: (ours(x, weight, None)[0],)),
        ("backward", "native", native_backward),
        ("backward", "ours", lambda: back(dy, places, x, weight, [True, True])),
    ]


def measured_calls(shape: Shape, x: Tensor, weight: Tensor, dy: Tensor) -> list[Call]:
    """The calls of a shape."""
    return pooled_calls(x, weight, dy) if shape[4] else calls(x, weight, dy)


def errors(shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """The relative errors of Y, dL/dX and dL/dg for at most 20 of the images, by implementation."""
    x, weight, dy = inputs((min(shape[0], 20), *shape[1:]), dtype)
    exact = measured_calls(shape, *(t.double() for t in (x, weight, dy)))
    truth = [*exact[0][2](), *exact[2][2]()]
    found: dict[str, list[Tensor]] = {}
    for _, name, call in measured_calls(shape, x, weight, dy):
        found.setdefault(name, []).extend(call())
    return {name: relative_errors(("y", "dx", "dg"), got, truth) for name, got in found.items()}


def relative_errors(
    names: Sequence[str], found: Sequence[Tensor], truth: Sequence[Tensor]
) -> dict[str, float]:
    """The error of each tensor relative to the true one, in the L2 norm, with two digits."""
    pairs = zip(names, found, truth, strict=True)
    return {
        name: float(f"{((one.double() - true).norm() / true.norm()).item():.1e}")
        for name, one, true in pairs
    }


def operations(shape: Shape) -> int:
    """Of a direct forward pass, without those on the zeros around an image."""
    images, channels, outputs, side, _ = shape
    return 2 * images * channels * outputs * (3 * side - 2) ** 2


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures every case and yields it with its settings."""
    shapes = options.shapes or [shape_of(text) for text in (*FAST_CNN, *POOLED, *CNN)]
    machines: dict[int, dict[str, Any]] = {}  # by number of threads
    for threads, name, shape in itertools.product(options.threads, options.dtypes, shapes):
        torch.set_num_threads(threads)
        if threads not in machines:
            machines[threads] = hardware(again=True)
        peak = peak_gflops(machines[threads], DTYPES[name], on_gpu=False)
        x, weight, dy = inputs(shape, DTYPES[name])
        found = measure(measured_calls(shape, x, weight, dy), "cpu", options.rounds)
        for kind, times in (("forward", 1), ("backward", 2)):
            for figures in found[kind].values():
                figures["gflops"] = round(times * operations(shape) / figures["us"] / 1e3, 1)
                if peak:
                    figures["share of peak"] = round(figures["gflops"] / peak, 3)
        used = kernels.suits(x, weight, Geometry(padding=(1, 1)))
        used = kernels.suits_pooled(x, weight) if shape[4] else used
        case = {
            "shape": shape[:4],
            "pooled": shape[4],
            "dtype": name,
            "threads": threads,
            "used": used,
        }
        yield {**case, **found, "errors": errors(shape, DTYPES[name])}


def line(case: dict[str, Any]) -> str:
    """A case as a line of the printed table."""
    shape = "x".join(map(str, case["shape"])) + ("p" if case["pooled"] else "")
    parts = [
        f"{case['threads']} {shape:>16} {case['dtype']:>8} {'' if case['used'] else 'unused':6}"
    ]
    for kind in ("forward", "backward"):
        native, ours = case[kind]["native"], case[kind]["ours"]
        share = ours.get("share of peak")
        parts.append(
            f"{kind} {native['us'] / 1e3:8.2f} / {ours['us'] / 1e3:8.2f} ms = {ours['ratio']:.2f}"
            + (f" ({share:.0%} of peak)" if share else "")
        )
    return " | ".join(parts)


def shape_of(text: str) -> Shape:
    """Parses ``500x64x256x15``, or ``500x64x256x15p`` with maxima."""
    images, channels, outputs, side = map(int, text.removesuffix("p").split("x"))
    return images, channels, outputs, side, text.endswith("p")


def main(args: list[str] | None = None) -> None:
    """Measures, prints a table, and writes it with date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", type=shape_of, nargs="+", help="these only: 500x64x256x15")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=[*DTYPES])
    parser.add_argument("--output", type=expand_home, default=RESULT)
    options = parser.parse_args(args)
    report_cases(options.output, run(options), line)


if __name__ == "__main__":
    without_trimming("benchmarks.convolution")
    main()
