"""The fast recipes through the command line: accuracy over seeds, and speed beside a plain script.

    python -m benchmarks.fast94 accuracy --data_dir data            # fast94, five seeds
    python -m benchmarks.fast94 accuracy --data_dir data --config configs/cnn_5k.yaml --seeds 0 1 2
    python -m benchmarks.fast94 accuracy --data_dir data --seeds {0..24}    # on a GPU: 25 runs
    python -m benchmarks.fast94 speed --data_dir data
    python -m benchmarks.fast94 step            # no data: the kernels alone, about 2 minutes
    python -m benchmarks.fast94 gradient --data_dir data    # rounding, half a minute

``accuracy`` runs ``cli.py fit --test_after_fit true`` for each seed, with the record, W&B (offline)
and checkpoints, and collects the records; it does not repeat a seed whose run exists.

``speed`` trains one epoch of the same network on the same batches, in turn: through the command
line, by a loop in this process, and through the command line with PyTorch's convolution, pooling,
batch norm and GELU. Seconds are training time, with the whitening, but without building the
network, loading the data or the test.

``step`` times a whole step of that network with PyTorch's convolutions, with Winograd's, and with
the fused batch norm and pooling, too, for each size of images.

``gradient`` compares the gradients of a batch, of each 3x3 convolution, with those by PyTorch in
float64: the relative error in the norm, and how far the gradient of another batch is from them.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import seed_everything
from torch.nn import functional as F

from benchmarks.reports import write_report
from benchmarks.timing import measure, without_trimming
from cli import main as cli_main
from datamodules import CIFAR10DataModule
from experiments.analysis.costs import share_of_peak
from experiments.command_line.config_files import expand_home
from experiments.records.environment import fast_precision
from experiments.records.record import RECORD, RunRecord
from experiments.records.runs import read_run
from lightning_modules import FastCNN, LinearSchedule, Muon
from lightning_modules.fast_cnn import WHITENING_IMAGES

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
CONFIG = PROJECT / "configs" / "fast94.yaml"
_KEPT = (
    "test/acc",
    "test/acc_one_view",
    "test/loss",
    "val/acc",
    "train/acc",
    "train/seconds",
    "train/images_per_s",
    "train/steps",
    "train/peak_gpu_mib",
    "train/flops",
)


_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}


def run_seed(config: Path, seed: int, data: list[str], runs: Path) -> dict[str, Any]:
    """Trains and tests with a seed, unless that run exists, and returns its record."""
    path = runs / f"{config.stem}-s{seed}"
    if not (path / RECORD).is_file() or RunRecord.open(path).fields["status"] != "finished":
        arguments = [f"--seed_everything={seed}", f"--name={path.name}", f"--runs_dir={runs}"]
        flags = ["--test_after_fit=true", "--overwrite=true"]
        cli_main(["fit", f"--config={config}", *arguments, *flags, *data])
    record = RunRecord.open(path)
    found = {key: record.summary[key] for key in _KEPT if key in record.summary}
    share = share_of_peak(read_run(path))
    found |= {} if share is None else {"share of peak": round(share, 4)}
    return {"seed": seed, "git": record.fields["git"], **found}


def accuracy(options: argparse.Namespace, data: list[str]) -> dict[str, Any]:
    """Runs all seeds and summarises their records."""
    runs = [run_seed(options.config, seed, data, options.runs_dir) for seed in options.seeds]
    means = {}
    for key in ("test/acc", "test/acc_one_view", "train/seconds", "share of peak"):
        values = [run[key] for run in runs if key in run]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            means[key] = {"mean": statistics.mean(values), "sd": spread, "n": len(values)}
    return {"config": options.config.name, "means": means, "runs": runs}


def plain_epoch(config: dict[str, Any], data: CIFAR10DataModule) -> float:
    """Trains an epoch of a recipe by hand and returns the seconds."""
    model, optimizer, schedule = _by_hand(config["model"]["init_args"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = _HALF[fast_precision("auto")]
    model.to(device).train()
    source = data.train_dataloader()
    schedule.total_steps = len(source)
    frozen_at = model.whiten_bias_until * len(source)
    started = time.perf_counter()
    model.whiten_with(data.training_sample(WHITENING_IMAGES).to(device))
    for step, (pixels, classes) in enumerate(source):
        if step >= frozen_at:
            model.whiten.bias.requires_grad_(False)  # type: ignore[union-attr]
        images, labels = data.normalize(pixels.to(device)), classes.to(device)
        images = model.reduce(images, step / len(source))
        with torch.autocast(device, half, enabled=half is not None):
            loss = F.cross_entropy(model(images), labels, label_smoothing=model.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    loss.item()  # waits for the device
    return time.perf_counter() - started


def _by_hand(options: dict[str, Any]) -> tuple[FastCNN, Muon, LinearSchedule]:
    arguments = {k: v for k, v in options.items() if k not in {"optimizer", "lr_scheduler"}}
    model = FastCNN(**arguments)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Muon(trained, **options["optimizer"]["init_args"])
    return model, optimizer, LinearSchedule(optimizer)


def command_line_epoch(options: argparse.Namespace, data: list[str], runs: Path) -> float:
    """Trains an epoch of a recipe through ``cli.py fit`` and returns the seconds."""
    places = [f"--runs_dir={runs}", "--name=speed", "--overwrite=true"]
    limits = ["--trainer.max_epochs=1", "--trainer.max_steps=-1"]
    cli_main(["fit", f"--config={options.config}", *places, *limits, *data])
    return float(RunRecord.open(runs / "speed").summary["train/seconds"])


def speed(options: argparse.Namespace, data: list[str]) -> dict[str, Any]:
    """Measures an epoch in each way, in turn; a ratio above 1 is slower than the command line."""
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    module = _module(config, data)
    native = [f"--model.{key}={value}" for key, value in _KERNELS["native"].items()]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats + 1):
            ours = command_line_epoch(options, data, Path(folder))
            plain = plain_epoch(config, module)
            rounds.append(
                (ours, plain, command_line_epoch(options, [*data, *native], Path(folder)))
            )
    images = len(module.train_dataloader()) * module.batch_size
    found: dict[str, Any] = {"config": options.config.name, "images": images}
    columns = list(zip(*rounds[1:], strict=True))  # the first warms up
    for name, seconds in zip(("ours", "plain", "native kernels"), columns, strict=True):
        ratios = [round(b / a, 4) for a, b in zip(columns[0], seconds, strict=True)]
        found[name] = {
            "images_per_s": round(images / statistics.median(seconds), 1),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return found


_KERNELS = {
    "native": {"convolution": "native", "fused": False},
    "winograd": {"convolution": "winograd", "fused": False},
    "winograd, fused": {"convolution": "winograd", "fused": True},
}


def _step(
    config: dict[str, Any], kernels: dict[str, Any], size: int, half: torch.dtype | None
) -> Callable[[], None]:
    """A step of a recipe on random images of a size, without the reduction to it."""
    model, optimizer, _ = _by_hand({**config["model"]["init_args"], **kernels})
    model.train()
    batch = config["data"]["init_args"]["batch_size"]
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % model.num_classes

    def call() -> None:
        with torch.autocast("cpu", half, enabled=half is not None):
            loss = F.cross_entropy(model(images), labels, label_smoothing=model.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Measures a step with each choice of kernels, side by side, on the CPU."""
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    precision = options.precision or fast_precision("cpu")
    found: dict[str, Any] = {}
    for size in options.sizes:
        calls = [
            (f"{size} pixels", name, _step(config, kernels, size, _HALF[precision]))
            for name, kernels in _KERNELS.items()
        ]
        found |= measure(calls, "cpu", options.repeats)
    return {"config": options.config.name, "precision": precision, "steps": found}


def _module(config: dict[str, Any], data: list[str]) -> CIFAR10DataModule:
    """The data of a recipe, with the flags of the command line."""
    given = {flag.partition("=")[0]: flag.partition("=")[2] for flag in data}
    overrides = {key.removeprefix("--data."): yaml.safe_load(v) for key, v in given.items()}
    module = CIFAR10DataModule(**{**config["data"]["init_args"], **overrides})
    module.setup()
    return module


def gradient(options: argparse.Namespace, data: list[str]) -> dict[str, Any]:
    """Measures the error of a gradient, at the start or with the weights of a checkpoint."""
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    seed_everything(options.seeds[0], verbose=False)
    module = _module(config, data)
    batches = [(module.normalize(x), y) for x, y in itertools.islice(module.train_dataloader(), 2)]
    start, _, _ = _by_hand(config["model"]["init_args"])
    start.whiten_with(module.training_sample(WHITENING_IMAGES))
    if options.weights:
        start.load_state_dict(torch.load(options.weights, weights_only=True)["state_dict"])

    def gradients(kind: str, precision: str, batch: int = 0) -> list[torch.Tensor]:
        dtype = torch.float64 if precision == "64-true" else torch.float32
        half = _HALF.get(precision)
        model, _, _ = _by_hand({**config["model"]["init_args"], **_KERNELS[kind]})
        model.load_state_dict(start.state_dict())
        images, labels = batches[batch]
        with torch.autocast("cpu", half, enabled=half is not None):
            logits = model.to(dtype).train()(images.to(dtype))
            loss = F.cross_entropy(logits, labels, label_smoothing=model.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad.double() for p in model.parameters() if p.grad is not None and p.ndim == 4]

    exact, ours = gradients("native", "64-true"), "winograd, fused"
    compared = {
        "32-true, native": gradients("native", "32-true"),
        "32-true, ours": gradients(ours, "32-true"),
        "bf16-mixed, native": gradients("native", "bf16-mixed"),
        "bf16-mixed, ours": gradients(ours, "bf16-mixed"),
        "another batch": gradients("native", "64-true", 1),
    }
    return {
        "config": options.config.name,
        "weights": "a checkpoint" if options.weights else "the first step",
        "relative error of each convolution": {
            name: [
                float(f"{(found - right).norm() / right.norm():.2e}")
                for found, right in zip(gradient, exact, strict=True)
            ]
            for name, gradient in compared.items()
        },
    }


def main(args: list[str] | None = None) -> None:
    """Measures and writes the result with its date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["accuracy", "speed", "step", "gradient"])
    parser.add_argument("--config", type=expand_home, default=CONFIG)
    parser.add_argument("--data_dir", default="data", help="where cifar-10-batches-py lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[24, 28, 32], help="of a step")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help="of a step")
    parser.add_argument("--weights", type=expand_home, help="a checkpoint, for gradient")
    parser.add_argument("--output", type=expand_home, help="default: benchmarks/results/")
    options, more = parser.parse_known_args(args)  # `more`: flags of data and trainer
    if any(not flag.startswith("--") or "=" not in flag for flag in more):
        sys.exit(f"error: expected flags of cli.py as --name=value, got {' '.join(more)}")
    data = [f"--data.data_dir={options.data_dir}", *more]
    if options.what == "step":
        measured = step(options)
    else:
        measure_it = {"accuracy": accuracy, "speed": speed, "gradient": gradient}[options.what]
        measured = measure_it(options, data)
    name = f"{options.config.stem}_{options.what}.json"
    print(json.dumps(measured, indent=2))
    write_report(options.output or RESULTS / name, measured)


if __name__ == "__main__":
    if "step" in sys.argv:
        without_trimming("benchmarks.fast94")
    main()
