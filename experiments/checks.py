"""What can be wrong with a command as asked for, found before a run has a folder."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from torch import nn

from datamodules import CIFAR10DataModule
from experiments.errors import RunError

# Logged by `lightning_modules.Classifier` and `experiments.progress.TrainMonitor`.
_TRAIN_METRICS = ("train/loss", "train/acc", "lr", "images_per_s")
_VAL_METRICS = ("val/loss", "val/acc")
# What Lightning takes without a word, and fails of, or ignores, later.
_LEAST = {
    "log_every_n_steps": 1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
}


def check_devices(trainer: Trainer) -> None:
    """Refuses what would wait for ever: processes without cores, machines that nothing starts.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    cores = max(os.cpu_count() or 1, 2)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise ValueError(
            f"trainer.devices must be at most {cores} on the CPU, which has {os.cpu_count()} "
            f"cores, got {trainer.num_devices}"
        )
    _check_restart()
    _check_port()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    starts_itself = environment is None or not environment.creates_processes_externally
    if trainer.num_nodes > 1 and starts_itself and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes must be 1 here, got {trainer.num_nodes}: several machines need a "
            "launcher, such as torchrun or srun"
        )


def _check_restart() -> None:
    """Refuses to start again where torch's processes would wait for addresses of the dead."""
    known = os.environ
    again = known.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and known.get("WORLD_SIZE") != "1"
    if again and known.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "torchrun can't start processes again with the store that it shares with them (pytorch "
            "#135712): set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it, and --rdzv_backend c10d"
        )


def _check_port() -> None:
    port = os.environ.get("MASTER_PORT", "1")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"MASTER_PORT must be a port, 1 to 65535, got {port!r}")


def check_fit(trainer: Trainer, test_after_fit: bool) -> None:
    """Refuses settings of the trainer under which nothing would be trained, logged or kept.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    settings: Any = trainer
    if not hasattr(settings, "val_check_interval"):  # Lightning keeps a duration elsewhere
        raise ValueError(
            "trainer.val_check_interval must be batches or a part of an epoch: a validation by "
            "the clock could not be repeated"
        )
    for name in ("max_steps", "max_epochs", "limit_train_batches", "val_check_interval"):
        if getattr(settings, name) == 0:
            hint = "; data.val_size 0 trains without validation" if "val" in name else ""
            raise ValueError(f"trainer.{name} must be positive, got 0{hint}")
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"trainer.{name} must be at least {least}, got {value}")
    if (settings.gradient_clip_val or 0) < 0:
        raise ValueError(
            f"trainer.gradient_clip_val must not be negative, got {settings.gradient_clip_val}"
        )
    if test_after_fit and not trainer.checkpoint_callbacks:
        raise ValueError("test_after_fit tests a checkpoint: leave trainer.enable_checkpointing on")


def check_validation(trainer: Trainer, data: CIFAR10DataModule) -> None:
    """Refuses a validation interval that an epoch never reaches, and monitors of no metric.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    settings: Any = trainer
    every, batches = settings.val_check_interval, _batches_of_an_epoch(trainer, data)
    by_epoch = data.val_size and settings.check_val_every_n_epoch is not None
    if by_epoch and isinstance(every, int) and every > batches:
        raise ValueError(
            f"trainer.val_check_interval {every} is more than the {batches} batches of an "
            "epoch; count over epochs with --trainer.check_val_every_n_epoch null"
        )
    metrics = _TRAIN_METRICS + (_VAL_METRICS if data.val_size else ())
    for callback in settings.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in metrics:
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor}, which is not logged here: "
                f"take one of {', '.join(metrics)}"
            )


def _batches_of_an_epoch(trainer: Trainer, data: CIFAR10DataModule) -> int:
    batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
    limited = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if limited == 0:
        raise ValueError(f"trainer.limit_train_batches {limit} leaves none of {batches} batches")
    return limited


# Best, newest and the one before it, and the next while it is written.
_CHECKPOINTS = 4
# Weights and Adam's two moments.
_COPIES = 3


def check_space(folder: Path, model: nn.Module, goes_on: bool) -> None:
    """Refuses a disk that has no room for the checkpoints of a fit.

    Args:
        folder: the run's folder.
        model: what is to be kept.
        goes_on: whether the run has checkpoints there that it will replace.

    Raises:
        RunError: naming what is free and what is needed.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    tensors = itertools.chain(model.parameters(), model.buffers())
    largest = _COPIES * sum(tensor.nbytes for tensor in tensors)
    kept = [path.stat().st_size for path in folder.glob("*.ckpt")] if goes_on else []
    needed = max(_CHECKPOINTS - len(kept), 1) * max(kept, default=largest)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"{place.resolve()} has {free / 2**20:,.1f} MiB free, and the run's checkpoints need "
            f"up to {needed / 2**20:,.1f}: make room, or name another disk with --runs_dir"
        )


def check_progress(
    path: Path, checkpoint: dict[str, Any], trainer: Trainer, data: CIFAR10DataModule
) -> None:
    """Refuses to go on from a checkpoint that is as far already as the training asked for.

    Raises:
        RunError: naming the limit to raise.
    """
    steps = int(checkpoint["global_step"])
    if 0 <= trainer.max_steps <= steps:
        raise RunError(f"{path} has {steps:,} steps behind it: raise --trainer.max_steps above")
    # The checkpoint's own count lacks an epoch whose validation is not over.
    epochs = steps * trainer.accumulate_grad_batches // _batches_of_an_epoch(trainer, data)
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        raise RunError(f"{path} has {epochs} epochs behind it: raise --trainer.max_epochs above")
