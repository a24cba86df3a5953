"""Speed of layer normalisation: PyTorch's, composed, compiled and this project's, side by side.

    python -m benchmarks.layer_norm                   # CPU, 1 and 2 threads, about 10 minutes
    python -m benchmarks.layer_norm --device cuda
    python -m benchmarks.layer_norm --errors          # of float32, against float64

All implementations run in this process in turn, in batches of calls of at least 2 ms. A time is the
median over the rounds. A ratio is the median of the ratios within a round: PyTorch's time divided
by the other time, so above 1 is faster than PyTorch. `forward` saves tensors for a backward pass;
`both` is forward and backward.

- native: `torch.nn.functional.layer_norm`.
- composed: `custom_ops.layer_norm.formula` in elementary operations, differentiated by autograd.
- compiled: the same through `torch.compile`.
- ours: `custom_ops.layer_norm`.
- copy: a copy of x into allocated memory, the least that a forward pass can take.

glibc returns large blocks of memory to the system and gets them back page by page, which takes
longer than the measured work. So on the CPU, the process restarts itself with this turned off.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reports import report_cases
from benchmarks.timing import measure, without_trimming
from custom_ops import layer_norm
from custom_ops.layer_norm import formula
from experiments.command_line.config_files import expand_home

RESULTS = Path(__file__).resolve().parent / "results"
# (shape of x, dimensions of a row), from the report's networks, transformers and a CNN.
TABLE = [
    ((200, 100), 1),
    ((128, 512), 1),
    ((4096, 1024), 1),
    ((32768, 256), 1),
    ((64, 512, 4, 4), 3),
]
SWEEP = [((rows, row), 1) for row in (64, 1024) for rows in (8, 32, 128, 512, 2048, 8192, 32768)]
LARGE = [((32768, 4096), 1), ((4096, 8192), 1), ((4096, 16384), 1), ((32768, 32768), 1)]  # of GPUs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Way = Callable[..., Tensor]


def composed(x: Tensor, row: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formula in elementary operations, without a hand-derived backward pass."""
    centred, _, _, rstd = formula.statistics(formula.widen(x), len(row), 1e-5)
    return formula.affine(centred * rstd, weight, bias).to(x.dtype)


def ways(compiled: bool) -> dict[str, Way]:
    """The implementations to compare, by name."""
    found: dict[str, Way] = {"native": F.layer_norm, "composed": composed, "ours": layer_norm}
    if compiled:
        torch.compiler.reset()  # otherwise it stops compiling after a few shapes
        found["compiled"] = torch.compile(composed, fullgraph=True, dynamic=False)
    return found


def calls(
    shape: tuple[int, ...], ndim: int, dtype: torch.dtype, affine: bool, device: str, compiled: bool
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yields the measurements: pass, implementation, and a call without arguments."""
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    row, dy, target = shape[-ndim:], torch.randn_like(x), torch.empty_like(x)
    parameters = [torch.rand(row, device=device).to(dtype).requires_grad_() for _ in range(2)]
    weight, bias = parameters if affine else (None, None)
    inputs = [x, *parameters] if affine else [x]

    def both(way: Way) -> object:
        return torch.autograd.grad(way(x, row, weight, bias), inputs, dy)

    source = x.detach()
    yield "forward", "copy", lambda: target.detach().copy_(source)
    for name, way in ways(compiled).items():
        yield "forward", name, functools.partial(way, x, row, weight, bias)
        yield "both", name, functools.partial(both, way)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures every case and yields it with its settings."""
    cuda = options.device == "cuda"
    threads = [torch.get_num_threads()] if cuda else options.threads
    table = options.shapes or TABLE
    rest = [] if options.shapes else [s for s in SWEEP + (LARGE if cuda else []) if s not in TABLE]
    for count, name, affine in itertools.product(threads, DTYPES, (True, False)):
        torch.set_num_threads(count)
        for shape, ndim in [*table, *(rest if affine else [])]:
            # Compiling takes seconds for each shape: only the affine cases in the table.
            compiled = affine and (shape, ndim) in table and not options.no_compile
            cases = list(calls(shape, ndim, DTYPES[name], affine, options.device, compiled))
            case = {"shape": shape, "ndim": ndim, "dtype": name, "affine": affine, "threads": count}
            yield {**case, **measure(cases, options.device, options.rounds)}


def errors() -> list[dict[str, Any]]:
    """Largest errors against float64, relative to the largest value, over the mean of a row.

    Returns:
        For each mean, of rows of 1024 with standard deviation 1, in float32: the errors of y and
        dx, native and ours.
    """
    rows = []
    for mean in (0.0, 1e2, 1e4, 1e6):
        x = (torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) + mean).float()
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        exact = _value_and_gradient(F.layer_norm, x.double(), dy.double())
        row: dict[str, Any] = {"mean": mean}
        for name, way in (("native", F.layer_norm), ("ours", layer_norm)):
            for what, found, right in zip(
                ("y", "dx"), _value_and_gradient(way, x, dy), exact, strict=True
            ):
                error = (found.double() - right).abs().max() / right.abs().max()
                row[f"{name} {what}"] = float(f"{error:.1e}")
        rows.append(row)
    return rows


def _value_and_gradient(way: Way, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = way(x, x.shape[-1:])
    return y.detach(), torch.autograd.grad(y, x, dy)[0]


def line(case: dict[str, Any]) -> str:
    """A case as a line of the printed table."""
    shape = "x".join(map(str, case["shape"]))
    place = f"{shape:>14} {case['dtype']:>8} {'affine' if case['affine'] else 'plain':>6}"
    parts = []
    for kind in ("forward", "both"):
        native = case[kind]["native"]["us"]
        others = {k: v["ratio"] for k, v in case[kind].items() if k not in {"native"}}
        parts.append(f"{native:9.1f} us " + " ".join(f"{k} {v:5.2f}" for k, v in others.items()))
    return f"{case['threads']} {place} | {' | '.join(parts)}"


def plot(cases: list[dict[str, Any]], path: Path) -> None:
    """Draws the ratio to PyTorch for the shapes of the sweep, over the elements of x."""
    from experiments.analysis import plots  # noqa: PLC0415 - not needed to measure

    figure, axes = plots.panels(
        2, "LayerNorm: PyTorch's time divided by ours (above 1: ours is faster)"
    )
    axes[1].sharey(axes[0])
    lines: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for case in cases:
        if case["affine"] and (tuple(case["shape"]), case["ndim"]) in SWEEP:
            key = (case["dtype"], case["shape"][-1], case["threads"])
            lines.setdefault(key, []).append(case)
    for ax, kind in zip(axes, ("forward", "both"), strict=True):
        for (dtype, row, threads), found in sorted(lines.items()):
            elements = [case["shape"][0] * row for case in found]
            ratios = [case[kind]["ours"]["ratio"] for case in found]
            label = f"{dtype}, rows of {row}, {threads} thread{'s'[: threads > 1]}"
            color = sorted({(d, r) for d, r, _ in lines}).index((dtype, row))
            style = plots.STYLES[color] | {"ls": "-" if threads > 1 else "--"}
            ax.plot(elements, ratios, **style, marker="o", markersize=3, label=label)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="elements of x")
        ax.set_title({"forward": "forward", "both": "forward and backward"}[kind])
        ax.grid(alpha=0.3, which="both")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    axes[0].set_ylabel("PyTorch's time / ours")
    plots.legend(figure)
    plots.save(figure, path)


def shape_of(text: str) -> tuple[tuple[int, ...], int]:
    """Parses ``4096x1024`` or, with more than one dimension in a row, ``64x512x4x4:3``."""
    sizes, _, ndim = text.partition(":")
    return tuple(int(size) for size in sizes.split("x")), int(ndim or 1)


def main(args: list[str] | None = None) -> None:
    """Measures, prints a table, and writes it with date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--shapes", type=shape_of, nargs="+", help="these only, such as 200x100")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=expand_home, help="default: benchmarks/results/")
    parser.add_argument("--plot", type=expand_home, help="draw the sweep as PNG")
    parser.add_argument("--errors", action="store_true", help="print errors in float32, not speed")
    parser.add_argument("--plot_only", action="store_true", help="draw what is in --output")
    options = parser.parse_args(args)
    output = options.output or RESULTS / f"layer_norm_{options.device}.json"
    if options.errors:
        print("\n".join(str(row) for row in errors()))
        return
    if options.plot_only:
        plot(json.loads(output.read_text(encoding="utf-8"))["cases"], options.plot)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here; run with --device cpu")
    cases = report_cases(output, run(options), line, errors=errors())
    if options.plot:
        plot(cases, options.plot)


if __name__ == "__main__":
    if "cuda" not in sys.argv:
        without_trimming("benchmarks.layer_norm")
    main()
