"""Time of a small training step: a loop by hand, this project's command line, and usual Lightning.

    python -m benchmarks.step_overhead --data_dir data

All three train configs/mlp.yaml in this process, in turn:

- loop: only the arithmetic.
- ours: ``cli.py fit``, with the record, W&B (offline), a progress bar and checkpoints.
- usual: a LightningModule and a Trainer as in the first pages of Lightning's documentation: a
  ``DataLoader`` over the normalised images, ``self.log`` of loss and accuracy in every step,
  Lightning's own bar, checkpoint and W&B logger (offline).

All figures are without validation (the loop has none). The time of whole processes, with imports
and start, is measured separately.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.reports import write_report
from cli import main as cli_main
from datamodules import CIFAR10DataModule
from experiments.command_line.config_files import expand_home
from experiments.records.record import RunRecord

PROJECT = Path(__file__).resolve().parent.parent
RESULT = PROJECT / "benchmarks" / "results" / "step_overhead.json"
RUN = "benchmark"
CONFIG = PROJECT / "configs" / "mlp.yaml"
BATCH = 200


class Terminal(io.StringIO):
    """A stream that behaves like a terminal, so that bars are drawn."""

    def isatty(self) -> bool:
        """True."""
        return True


def layers() -> nn.Sequential:
    """The default MLP."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 100), nn.ELU(), nn.Linear(100, 10))


def plain_loop(data: CIFAR10DataModule, steps: int) -> float:
    """Trains the default MLP by hand and returns the seconds per step."""
    images = torch.from_numpy(data.train_set.images)
    labels = torch.from_numpy(data.train_set.labels)
    mean = images.double().mean(0).float()
    network = layers()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    batches: list[Tensor] = []
    started = time.perf_counter()
    for _ in range(steps):
        if not batches:
            order = torch.randperm(len(images))
            batches = list(order.split(BATCH))[: len(images) // BATCH]  # type: ignore[no-untyped-call]
        chosen = batches.pop()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images[chosen].float() - mean), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.perf_counter() - started) / steps


def command_line(data: dict[str, Any], steps: int, runs: Path) -> float:
    """Trains the same through ``cli.py fit`` and returns the seconds per step."""
    cli_main(_fit_arguments(data, steps, runs))
    return float(RunRecord.open(runs / RUN).summary["train/seconds"]) / steps


class Usual(LightningModule):
    """The default MLP as a usual LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the loss and logs it with the accuracy."""
        images, labels = batch
        logits = self.layers(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def usual_lightning(data: CIFAR10DataModule, steps: int, folder: Path) -> float:
    """Trains the same in the usual way of Lightning and returns the seconds per step."""
    images = data.normalize(torch.from_numpy(data.train_set.images))
    labels = torch.from_numpy(data.train_set.labels)
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True, drop_last=True)
    timer = Timer()
    logger = WandbLogger(project="benchmark", save_dir=str(folder), mode="offline")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[timer],
        logger=logger,
        default_root_dir=folder,
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(Terminal()):
        warnings.simplefilter("ignore")  # of workers and of the missing validation
        trainer.fit(Usual(), loader)
    logger.experiment.finish()
    return timer.time_elapsed("train") / steps


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


def interleaved(ways: dict[str, Callable[[], float]], repeats: int) -> list[dict[str, float]]:
    """Measures several functions in turn, so that a change of the machine's speed affects all.

    Returns:
        The seconds of each function in each repeat, without the first repeat.
    """
    return [{name: way() for name, way in ways.items()} for _ in range(repeats + 1)][1:]


def measure(data: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    """Measures steps and whole processes.

    Args:
        data: arguments of the data module.
        steps: optimiser steps in each repeat.
        repeats: number of repeats.

    Returns:
        Medians, and the ratios to the loop of the same repeat.
    """
    module = CIFAR10DataModule(**data)
    module.setup()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(Terminal()):
        folder = Path(name)
        rounds = interleaved(
            {
                "ours": lambda: command_line(data, steps, folder),
                "loop": lambda: plain_loop(module, steps),
                "usual": lambda: usual_lightning(module, steps, folder),
            },
            repeats,
        )
        plain = ["-m", "benchmarks.step_overhead", "--loop_only", f"--steps={steps}"]
        plain += [f"--{key}={value}" for key, value in data.items()]
        ours = ["cli.py", *_fit_arguments(data, steps, folder)]
        processes = {"ours": lambda: process_seconds(ours), "loop": lambda: process_seconds(plain)}
        (wholes,) = interleaved(processes, 1)
    ratios = {
        name: [round(times[name] / times["loop"], 3) for times in rounds]
        for name in ("ours", "usual")
    }
    return {
        "steps": steps,
        "ms_per_step": {
            name: round(1e3 * statistics.median(times[name] for times in rounds), 4)
            for name in rounds[0]
        },
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "ratios": ratios,
        "process_s": {name: round(seconds, 2) for name, seconds in wholes.items()},
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
    parser.add_argument("--output", type=expand_home, default=RESULT)
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
    print(json.dumps(result, indent=2))
    write_report(options.output, result)


if __name__ == "__main__":
    main()
