"""Trainings that are killed, filled up and broken, and one of each kind that was left alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import BaseFinetuning

from tests.chaos import Ended, Place, Zygote, fingerprint

# Epochs of 22 batches, a validation every 7 and an entry of the log every 4 steps: none falls
# together with another but by chance.
LONG = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=48",
    "--trainer.val_check_interval=7",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.log_every_n_steps=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--test_after_fit",
]
HALF = "--data.batch_size=25"  # in each of two processes: 50 in all
AUGMENTED = ["--data.flip=random", "--data.crop=2"]
MODELS = {
    "MLP": ["--model=MLP", "--model.hidden_units=[20]", *AUGMENTED],
    "deep": ["--config=configs/mlp_deep.yaml", "--model.hidden_units=[20, 20]"],
    "LayerNorm": ["--model=MLP", "--model.hidden_units=[20]", "--model.norm=layer"],
    "NumPyMLP": ["--model=NumPyMLP", "--model.hidden_units=[20]"],
    "FastCNN": [
        "--config=configs/fast94.yaml",
        "--model.widths=[8, 8, 8]",
        "--trainer.precision=32-true",
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.9",
    ],
    "dropout": [
        "--config=configs/finetune.yaml",
        "--model.architecture=squeezenet1_1",
        "--model.image_size=32",
        "--trainer.precision=32-true",
    ],
}

# What Lightning's callbacks do with a training; tests/test_lightning.py has more of them.
WITH_CALLBACKS = {
    "accumulation": [
        *MODELS["MLP"],
        "--trainer.callbacks=GradientAccumulationScheduler",
        "--trainer.callbacks.scheduling={0: 4, 1: 2, 2: 1}",
        "--trainer.max_epochs=-1",
    ],
    "averaging": [
        *MODELS["MLP"],
        "--trainer.callbacks=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.callbacks.swa_epoch_start=2",
        "--trainer.max_epochs=-1",
    ],
    "time": [*MODELS["MLP"], "--trainer.max_time=00:01:00:00"],
}


def children_of(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in found]


def stand_in_for_scontrol(folder: Path) -> str:
    """Writes a ``scontrol`` that notes in ``asked`` beside it what it is asked, and may refuse.

    Returns:
        The ``PATH`` on which it is found.
    """
    script = folder / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit ${{REFUSES:-0}}\n')
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@dataclass(frozen=True)
class Lab:
    """Where runs are killed.

    Attributes:
        zygote: runs the commands.
        root: holds the runs.
        options: what all commands share.
    """

    zygote: Zygote
    root: Path
    options: list[str]

    def fit(self, name: str, *args: str, at: Place | None = None, **kwargs: Any) -> Ended:
        """Runs ``fit`` under a name."""
        places = [f"--runs_dir={self.root}", f"--name={name}"]
        return self.zygote.run(["fit", *self.options, *places, *args], at, **kwargs)

    def fit_two(self, name: str, *args: str, at: Place | None = None, **kwargs: Any) -> list[Ended]:
        """Runs ``fit`` in two processes; the second sends itself a signal."""
        places = [f"--runs_dir={self.root}", f"--name={name}"]
        shared = ["--trainer.devices=2", "--trainer.strategy=ddp"]
        return self.zygote.run_two(["fit", *self.options, *places, *shared, *args], at, **kwargs)

    def two(self) -> dict[str, Any]:
        """All that two processes come to that nobody disturbs; they run when first asked for."""
        if not (self.root / "two").exists():
            ended = self.fit_two("two", HALF)
            assert [process.code for process in ended] == [0, 0], ended
        return self.result("two")

    def result(self, name: str) -> dict[str, Any]:
        """All that a run has come to."""
        return fingerprint(self.root / name)


class OfEpochs(Callback):
    """Changes what is trained, and how, when an epoch begins, and keeps none of it.

    Each change is of a kind of its own: an attribute of the model, a weight that is frozen, a rate
    that is multiplied, weights that are scaled, momentum that is forgotten, an entry of the log.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the changes."""
        epoch = trainer.current_epoch
        cast(Any, pl_module).label_smoothing = 0.1 * epoch
        frozen = next(pl_module.parameters())
        frozen.requires_grad_(epoch != 1)
        with torch.no_grad():
            frozen.mul_(1.1)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.5
        trainer.optimizers[0].state.clear()
        for logger in trainer.loggers:
            logger.log_metrics({"epoch_begins": epoch}, trainer.global_step)


class OfBatches(Callback):
    """Multiplies the rate at the start of a batch, and writes an entry of the log."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Makes the changes."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.99
        for logger in trainer.loggers:
            logger.log_metrics({"batch_begins": batch_idx}, trainer.global_step)


class FrozenOnce(Callback):
    """Freezes a weight in the middle of the first epoch, for good, and stops a fit at its 40th."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Freezes and stops."""
        if trainer.global_step == 10:
            next(pl_module.parameters()).requires_grad_(False)
        trainer.should_stop = trainer.global_step == 40


def smooth(trainer: Trainer, pl_module: LightningModule) -> None:
    """Stands for a function that a `LambdaCallback` is given by its import path."""
    cast(Any, pl_module).label_smoothing = 0.1 * trainer.current_epoch


class OfAnObject(Callback):
    """Has an argument that no configuration can hold."""

    def __init__(self, thing: Any = object()) -> None:  # noqa: B008 - the very point
        self.thing = thing


class HeadFirst(BaseFinetuning):
    """Trains the last layer, and all of them from the second epoch on."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freezes the first layer."""
        self.freeze(pl_module.get_submodule("layers.1"))

    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Trains it, too."""
        if epoch == 1:
            self.make_trainable(pl_module.get_submodule("layers.1"))
