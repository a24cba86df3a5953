"""Time of a training step through the command line, against a loop written by hand.

    python -m benchmarks.step_time --data_dir data

Both train configs/mlp.yaml in this process, in turn, with the same arithmetic on the same batches:
the loop does nothing else; the command line logs to the record and to W&B (offline), shows its
progress and saves checkpoints. Validation is left out of both figures (the loop does none). The
time of whole processes, which import and start everything, is measured apart.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cli import main as cli_main
from datamodules import CIFAR10DataModule
from experiments.environment import circumstances
from experiments.record import RunRecord

PROJECT = Path(__file__).resolve().parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "step_time.json"
RUN = "benchmark"
CONFIG = PROJECT / "configs" / "mlp.yaml"


def plain_loop(data: CIFAR10DataModule, steps: int) -> float:
    """Trains the default MLP by hand and returns the seconds per step."""
    images = torch.from_numpy(data.train_set.images)
    labels = torch.from_numpy(data.train_set.labels)
    mean = images.double().mean(0).float()
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 100), nn.ELU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(layers.parameters(), lr=1e-3)
    batches: list[Tensor] = []
    started = time.perf_counter()
    for _ in range(steps):
        if not batches:
            order = torch.randperm(len(images))
            batches = list(order.split(200))[: len(images) // 200]  # type: ignore[no-untyped-call]
        chosen = batches.pop()
        optimizer.zero_grad()
        loss = F.cross_entropy(layers(images[chosen].float() - mean), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.perf_counter() - started) / steps


def command_line(data: dict[str, Any], steps: int, runs: Path) -> float:
    """Trains the same through ``cli.py fit`` and returns the seconds per step."""
    cli_main(_fit_arguments(data, steps, runs))
    return float(RunRecord.open(runs / RUN).summary["train/seconds"]) / steps


def _fit_arguments(data: dict[str, Any], steps: int, runs: Path) -> list[str]:
    return [
        "fit",
        f"--config={CONFIG}",
        *(f"--data.{key}={value}" for key, value in data.items()),
        f"--trainer.max_steps={steps}",
        "--trainer.accelerator=cpu",
        f"--runs_dir={runs}",
        f"--name={RUN}",
        "--overwrite=true",
    ]


def process_seconds(command: list[str]) -> float:
    """Runs a Python command as a process of its own and returns its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=PROJECT)
    return time.perf_counter() - started


def interleaved(first: Callable[[], float], second: Callable[[], float], repeats: int) -> list[Any]:
    """Measures two things in turn, so that a change of the machine's speed hits both.

    Returns:
        A list of pairs, after one pair that is not counted.
    """
    return [(first(), second()) for _ in range(repeats + 1)][1:]


def measure(data: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    """Measures steps and whole processes.

    Args:
        data: arguments of the data module.
        steps: optimiser steps in each repeat.
        repeats: how many pairs to measure.

    Returns:
        Medians, the median ratio of pairs, and all ratios.
    """
    module = CIFAR10DataModule(**data)
    module.setup()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        pairs = interleaved(
            lambda: command_line(data, steps, runs), lambda: plain_loop(module, steps), repeats
        )
        plain = ["-m", "benchmarks.step_time", "--loop_only", f"--steps={steps}"]
        plain += [f"--{key}={value}" for key, value in data.items()]
        ours = ["cli.py", *_fit_arguments(data, steps, runs)]
        wholes = interleaved(lambda: process_seconds(ours), lambda: process_seconds(plain), 1)
    return {
        "steps": steps,
        "ours_ms_per_step": round(1e3 * statistics.median(a for a, _ in pairs), 4),
        "loop_ms_per_step": round(1e3 * statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "ratios": [round(a / b, 3) for a, b in pairs],
        "ours_process_s": round(wholes[0][0], 2),
        "loop_process_s": round(wholes[0][1], 2),
    }


def main(args: list[str] | None = None) -> None:
    """Measures and writes the result with its date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data_dir", default="data", help="where cifar-10-batches-py lies")
    parser.add_argument("--source", default="cifar10", choices=["cifar10", "synthetic"])
    parser.add_argument("--synthetic_images", type=int, default=10_000)
    parser.add_argument("--val_size", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument(
        "--loop_only", action="store_true", help="run the loop once, print its time"
    )
    options = parser.parse_args(args)
    keys = ("data_dir", "source", "synthetic_images", "val_size")
    data = {key: getattr(options, key) for key in keys}
    if options.loop_only:
        module = CIFAR10DataModule(**data)
        module.setup()
        print(f"{1e3 * plain_loop(module, options.steps):.4f} ms per step")
        return
    result = measure(data, options.steps, options.repeats)
    report = {**circumstances(), **result}
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
