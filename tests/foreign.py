"""Writes small runs with the real libraries: ``python -m tests.foreign KIND FOLDER``.

The folders in tests/fixtures/foreign were written by this program, with the versions in their
names. A slow test writes new ones. Each holds two runs, with the seeds 0 and 1.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

STEPS = (10, 20, 30)
SETTINGS = {"lr": 0.1, "batch_size": 32, "model": {"width": 3, "norm": "none"}}
DISTRIBUTIONS = {
    "tensorboard": "tensorboard",
    "csv": "pytorch-lightning",
    "mlflow-sqlite": "mlflow-skinny",
    "mlflow-folder": "mlflow-skinny",
    "trackio": "trackio",
    "wandb": "wandb",
    "parquet": "pyarrow",
}


def accuracy(seed: int, step: int) -> float:
    """Of a run at a step; 0.53 at the end of seed 0."""
    return 0.5 + step / 1000 + seed / 100


def values(seed: int, step: int) -> dict[str, float]:
    """What a run logs at a step; the loss of its last step is no number."""
    loss = float("nan") if step == STEPS[-1] else 1 / step
    return {"train/loss": loss, "val_acc": accuracy(seed, step)}


def write_tensorboard(folder: Path, seed: int) -> None:
    """As a training loop with PyTorch's writer does."""
    from torch.utils.tensorboard import SummaryWriter

    settings = {"lr": 0.1, "batch_size": 32, "norm": "none", "seed": seed}
    with SummaryWriter(str(folder / f"run-s{seed}")) as writer:
        for step in STEPS:
            for name, value in values(seed, step).items():
                writer.add_scalar(name, value, step)
        writer.add_scalar("epochs", 3, 0, new_style=True)
        writer.add_text("text", "hello")
        writer.add_hparams(settings, {"hparam/final": accuracy(seed, STEPS[-1])})


def write_csv(folder: Path, seed: int) -> None:
    """As Lightning's Trainer does."""
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(folder, name="lightning_logs")
    logger.log_hyperparams({**SETTINGS, "seed": seed})
    for step in STEPS:
        for name, value in values(seed, step).items():  # an entry for training, one for validation
            logger.log_metrics({name: value, "epoch": step // 10}, step)
    logger.finalize("success")


def write_mlflow(address: str, seed: int) -> None:
    """As ``mlflow.start_run()`` does."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    import mlflow

    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("digits")
    tags = {"group": "baseline"}
    with mlflow.start_run(run_name=f"run-s{seed}", tags=tags, description="small"):
        mlflow.log_params({"lr": 0.1, "batch_size": 32, "model.norm": "none", "seed": seed})
        for step in STEPS:
            mlflow.log_metrics(values(seed, step), step)
        mlflow.log_metric("big", float("inf"), 1)
    with mlflow.start_run(run_name="deleted") as run:
        pass
    mlflow.delete_run(run.info.run_id)


def write_trackio(folder: Path, seed: int) -> None:
    """As a training loop does."""
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    import trackio

    config = {**SETTINGS, "seed": seed}
    trackio.init(project="digits", name=f"run-s{seed}", group="baseline", config=config)
    for step in STEPS:
        trackio.log(values(seed, step), step=step)
    trackio.log_system({"gpu": 1})
    trackio.finish()


def write_wandb(folder: Path, seed: int) -> None:
    """As a training loop does, without an account."""
    import wandb

    run = wandb.init(
        project="digits",
        name=f"run-s{seed}",
        group="baseline",
        job_type="train" if seed == 0 else "sweep",
        tags=["small"],
        dir=folder,
        mode="offline",
        config={**SETTINGS, "seed": seed},
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
    )
    for step in STEPS:
        run.log(values(seed, step), step=step)
    run.finish(exit_code=seed)


def write_parquet(folder: Path, seed: int) -> None:
    """As ``python -m experiments.export_runs`` does; each call writes the runs so far."""
    from experiments.export_runs.program import main

    with tempfile.TemporaryDirectory() as aside:
        for number in range(seed + 1):
            write_csv(Path(aside), number)
        main([aside, "--to=parquet", f"--output={folder}", "--overwrite"])


def write(kind: str, folder: Path) -> None:
    """Writes both runs of a kind.

    Args:
        kind: a key of `DISTRIBUTIONS`.
        folder: an empty one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {
        "mlflow-sqlite": f"sqlite:///{folder}/mlflow.db",
        "mlflow-folder": f"file://{folder}/mlruns",
    }
    writers: dict[str, Callable[[Any, int], None]] = {
        "tensorboard": write_tensorboard,
        "csv": write_csv,
        "trackio": write_trackio,
        "wandb": write_wandb,
        "parquet": write_parquet,
        **dict.fromkeys(addresses, write_mlflow),
    }
    for seed in range(2):
        writers[kind](addresses.get(kind, folder), seed)


if __name__ == "__main__":
    written = Path(sys.argv[2]).absolute()
    write(sys.argv[1], written)
    print(DISTRIBUTIONS[sys.argv[1]], version(DISTRIBUTIONS[sys.argv[1]]))
