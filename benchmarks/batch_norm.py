"""Speed of pooling, batch norm and GELU: PyTorch's operators in turn, and this project's fused one.

    python -m benchmarks.batch_norm                       # about a minute
    python -m benchmarks.batch_norm --shapes 500x64x31p --threads 2    # p: pooled first

Both run in this process in turn, in training mode. A time is the median over the rounds; a ratio is
the median of the ratios within a round, above 1 where this project is faster. `forward` computes Y
and the statistics, `backward` dL/dX and dL/dbeta, from what was kept.

An error is relative, in the L2 norm, against float64. Images are channels-last, normal numbers.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.convolution import DTYPES, relative_errors
from benchmarks.reports import report_cases
from benchmarks.timing import measure, without_trimming
from custom_ops import batch_norm_gelu
from experiments.command_line.config_files import expand_home

RESULT = Path(__file__).resolve().parent / "results" / "batch_norm_cpu.json"
Shape = tuple[int, int, int, bool]  # images, channels, side in pixels, whether pooled first
FAST_CNN = [(500, 64, 31, True), (500, 64, 15, False), (500, 256, 15, True), (500, 256, 7, False)]
FAST_CNN += [(500, 256, 7, True), (500, 256, 3, False)]
EPS = 1e-12


def native(x: Tensor, bias: Tensor, pool: bool) -> Tensor:
    """PyTorch's operators, one after the other."""
    p = F.max_pool2d(x, 2) if pool else x
    return F.gelu(F.batch_norm(p, None, None, None, bias, training=True, eps=EPS))


def fused(x: Tensor, bias: Tensor, pool: bool) -> Tensor:
    """This project's operator."""
    return batch_norm_gelu(x, None, None, None, bias, training=True, eps=EPS, pool=pool)


def inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """X, beta in float32 and dL/dY."""
    images, channels, side, pool = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, side, side, generator=random)
    side = side // 2 if pool else side
    dy = torch.randn(images, channels, side, side, generator=random)
    x, dy = (t.to(dtype, memory_format=torch.channels_last) for t in (x, dy))
    return x, torch.randn(channels, generator=random), dy


def calls(
    x: Tensor, bias: Tensor, dy: Tensor, pool: bool
) -> list[tuple[str, str, Callable[[], tuple[Tensor, ...]]]]:
    """The measured calls: pass, implementation, and a call without arguments."""
    x.requires_grad_()
    bias.requires_grad_()
    outputs = {"native": native(x, bias, pool), "ours": fused(x, bias, pool)}

    def forward(function: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (function(x, bias, pool).detach(),)

    def backward(y: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(y, (x, bias), dy, retain_graph=True)

    return [
        ("forward", "native", forward(native)),
        ("forward", "ours", forward(fused)),
        ("backward", "native", backward(outputs["native"])),
        ("backward", "ours", backward(outputs["ours"])),
    ]


def errors(shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """The relative errors of Y, dL/dX and dL/dbeta for at most 20 images, by implementation."""
    x, bias, dy = inputs((min(shape[0], 20), *shape[1:]), dtype)
    exact = calls(x.double(), bias.double(), dy.double(), shape[3])
    truth = [*exact[0][2](), *exact[2][2]()]
    found: dict[str, list[Tensor]] = {}
    for _, name, call in calls(x, bias, dy, shape[3]):
        found.setdefault(name, []).extend(call())
    return {name: relative_errors(("y", "dx", "dbeta"), got, truth) for name, got in found.items()}


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures every case and yields it with its settings."""
    for threads, name, shape in itertools.product(
        options.threads, DTYPES, options.shapes or FAST_CNN
    ):
        torch.set_num_threads(threads)
        found = measure(calls(*inputs(shape, DTYPES[name]), shape[3]), "cpu", options.rounds)
        case = {"shape": shape[:3], "pooled": shape[3], "dtype": name, "threads": threads}
        yield {**case, **found, "errors": errors(shape, DTYPES[name])}


def line(case: dict[str, Any]) -> str:
    """A case as a line of the printed table."""
    shape = "x".join(map(str, case["shape"])) + ("p" if case["pooled"] else "")
    parts = [f"{case['threads']} {shape:>12} {case['dtype']:>8}"]
    for kind in ("forward", "backward"):
        theirs, ours = case[kind]["native"], case[kind]["ours"]
        times = f"{theirs['us'] / 1e3:7.2f} / {ours['us'] / 1e3:7.2f} ms"
        parts.append(f"{kind} {times} = {ours['ratio']:.2f}")
    return " | ".join(parts)


def shape_of(text: str) -> Shape:
    """Parses ``500x64x31p``."""
    images, channels, side = map(int, text.removesuffix("p").split("x"))
    return images, channels, side, text.endswith("p")


def main(args: list[str] | None = None) -> None:
    """Measures, prints a table, and writes it with date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", type=shape_of, nargs="+", help="these only: 500x64x31p")
    parser.add_argument("--output", type=expand_home, default=RESULT)
    options = parser.parse_args(args)
    report_cases(options.output, run(options), line)


if __name__ == "__main__":
    without_trimming("benchmarks.batch_norm")
    main()
