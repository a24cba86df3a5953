"""Checks of a command, made before the run has a folder."""

import copy
import inspect
import itertools
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import Tensor, nn

from datamodules import CIFAR10DataModule
from experiments.checkpoints.loading import schedule_of
from experiments.errors import RunError
from experiments.lightning_seam import averaging_start, checks_at_epoch_end
from experiments.session.stopping import time_limit
from lightning_modules import Classifier
from lightning_modules.schedules import steps_of_fit

_log = logging.getLogger(__name__)

# Logged by `lightning_modules.Classifier` and `experiments.monitoring.progress.TrainMonitor`.
_TRAIN_METRICS = ("train/loss", "train/acc", "lr", "images_per_s")
_VAL_METRICS = ("val/loss", "val/acc")
# Smaller values are accepted by Lightning, which then fails or ignores them later.
_MINIMA = {
    "log_every_n_steps": 1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
}


def check_devices(trainer: Trainer) -> None:
    """Refuses settings that would wait for ever: too many processes, machines without a launcher.

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
    """Refuses a restart in which processes would wait for addresses of dead processes."""
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
    """Refuses settings with which the trainer would train, log or keep nothing.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    settings: Any = trainer
    if not hasattr(settings, "val_check_interval"):  # Lightning stores a duration elsewhere
        raise ValueError(
            "trainer.val_check_interval must be batches or a part of an epoch: a validation by "
            "the clock could not be repeated"
        )
    for name in ("max_steps", "max_epochs", "limit_train_batches", "val_check_interval"):
        if getattr(settings, name) == 0:
            hint = "; data.val_size 0 trains without validation" if "val" in name else ""
            raise ValueError(f"trainer.{name} must be positive, got 0{hint}")
    for name, least in _MINIMA.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"trainer.{name} must be at least {least}, got {value}")
    if (limit := time_limit(trainer)) is not None and limit.seconds <= 0:
        raise ValueError("trainer.max_time must be positive, such as 00:01:30:00 for 90 minutes")
    if (settings.gradient_clip_val or 0) < 0:
        raise ValueError(
            f"trainer.gradient_clip_val must not be negative, got {settings.gradient_clip_val}"
        )
    if test_after_fit and settings.fast_dev_run:
        _log.info("fast_dev_run keeps nothing: there is no test after it")
    if test_after_fit and not trainer.checkpoint_callbacks:
        raise ValueError("test_after_fit tests a checkpoint: leave trainer.enable_checkpointing on")


def check_validation(trainer: Trainer, data: CIFAR10DataModule, model: LightningModule) -> None:
    """Refuses a validation interval longer than an epoch, and metrics that are not logged.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    _check_overfit(trainer, data)
    settings: Any = trainer
    every, batches = settings.val_check_interval, _batches_of_an_epoch(trainer, data)
    by_epoch = data.val_size and settings.check_val_every_n_epoch is not None
    if by_epoch and isinstance(every, int) and every > batches:
        raise ValueError(
            f"trainer.val_check_interval {every} is more than the {batches} batches of an "
            "epoch; count over epochs with --trainer.check_val_every_n_epoch null"
        )
    metrics = _TRAIN_METRICS + (_VAL_METRICS if data.val_size else ())
    first = _first_validation(trainer, batches) if data.val_size else batches
    for callback in settings.callbacks:
        asks = batches if _checks_at_epoch_end(callback, trainer) else first
        _check_monitor(callback, getattr(callback, "monitor", None), metrics, asks, trainer, first)
    schedule, interval = schedule_of(model)
    asks = batches if interval == "epoch" else trainer.accumulate_grad_batches
    _check_monitor(schedule, getattr(schedule, "monitor", None), metrics, asks, trainer, first)


def _checks_at_epoch_end(callback: Any, trainer: Trainer) -> bool:
    """Whether a callback reads its metric at the end of an epoch, not after a validation."""
    if not isinstance(callback, EarlyStopping) or not callback.strict:
        return False
    settings: Any = trainer
    by_epoch = settings.val_check_interval == 1.0 and settings.check_val_every_n_epoch == 1
    asked = checks_at_epoch_end(callback)
    return by_epoch if asked is None else asked


def _check_monitor(
    who: Any, metric: str | None, metrics: tuple[str, ...], asks: int, trainer: Trainer, first: int
) -> None:
    """Refuses a metric that is not logged, or not yet logged at its first use.

    Args:
        who: the callback or schedule that uses it.
        metric: its name, if any.
        metrics: the logged metrics.
        asks: number of batches before its first use.
        trainer: with its other settings.
        first: number of batches before the first validation.
    """
    name, settings = type(who).__name__, cast(Any, trainer)
    if metric is None:
        return
    if metric not in metrics:
        raise ValueError(
            f"{name} monitors {metric}, which is not logged here: take one of {', '.join(metrics)}"
        )
    logged = settings.log_every_n_steps * trainer.accumulate_grad_batches
    known = first if metric in _VAL_METRICS else logged
    if known > asks:
        remedy = "trainer.val_check_interval" if metric in _VAL_METRICS else _LOG_EVERY
        raise ValueError(
            f"{name} asks for {metric} after {asks} batches, but it is first known after {known}: "
            f"lower --{remedy}, or let it ask later"
        )


_LOG_EVERY = "trainer.log_every_n_steps"


def _check_overfit(trainer: Trainer, data: CIFAR10DataModule) -> None:
    """Refuses an `overfit_batches` that leaves no batch for training or validation."""
    part: Any = trainer.overfit_batches  # type: ignore[attr-defined]
    if not part or isinstance(part, int):
        return
    sources = {"training": data.train_dataloader(), "validation": data.val_dataloader()}
    for name, source in sources.items():
        if len(source) and part * len(source) < 1:
            raise ValueError(
                f"trainer.overfit_batches {part} leaves none of {len(source)} batches of {name}: "
                "take a number of batches, such as 1"
            )


def note_without_validation(trainer: Trainer, data: CIFAR10DataModule) -> None:
    """Prints a note if a fit will end before its first validation, without a best checkpoint."""
    settings: Any = trainer
    if settings.fast_dev_run or not data.val_size or not settings.limit_val_batches:
        return
    if too_short := ends_before_validation(trainer, data):
        _log.info(
            f"{too_short}: it will have no best.ckpt; for one, lower --trainer.val_check_interval"
        )


def ends_before_validation(trainer: Trainer, data: CIFAR10DataModule) -> str:
    """Tells that a fit will end before its first validation; empty if it will not."""
    epoch = _batches_of_an_epoch(trainer, data)
    first = _first_validation(trainer, epoch)
    total = _batches_of_fit(trainer, epoch)
    if first <= total:
        return ""
    return f"this fit ends after {total:,} batches, its first validation would come after {first:,}"


def _first_validation(trainer: Trainer, epoch: int) -> int:
    """Number of batches before the first validation, for epochs of ``batches`` batches."""
    settings: Any = trainer
    every, epochs = settings.val_check_interval, settings.check_val_every_n_epoch
    first: int = every if isinstance(every, int) else max(1, int(epoch * every))
    return first if epochs is None else first + (epochs - 1) * epoch


def _batches_of_fit(trainer: Trainer, epoch: int) -> float:
    """Number of batches of a whole fit, with the gradient accumulation of its start."""
    epochs = trainer.max_epochs or -1
    by_epochs = epoch * epochs if epochs > 0 else math.inf
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches
    return min(by_epochs, by_steps) if trainer.max_steps > 0 else by_epochs


def check_averaging(trainer: Trainer, model: nn.Module, data: CIFAR10DataModule) -> None:
    """Refuses `StochasticWeightAveraging` if a fit would not end with averaged weights.

    Lightning sets the averaged weights after the last epoch. With batch normalisation, it then
    damages them by a step with gradients of the epoch before.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = [c for c in callbacks if isinstance(c, StochasticWeightAveraging)]
    if not averaging:
        return
    problem = ""
    if StochasticWeightAveraging.pl_module_contains_batch_norm(cast(LightningModule, model)):
        problem = "spoils the weights of a model with batch normalisation; take EMAWeightAveraging"
    epochs, epoch = trainer.max_epochs or -1, _batches_of_an_epoch(trainer, data)
    start = averaging_start(averaging[0])
    if epochs > 0 and 0 <= trainer.max_steps < steps_of_fit(trainer, epoch, ignore_max_steps=True):
        problem = (
            f"averages when the last epoch is over, but trainer.max_steps {trainer.max_steps} "
            "comes first; set --trainer.max_steps -1 and --trainer.max_epochs"
        )
    elif epochs > 0 and isinstance(start, int) and start > epochs:
        problem = f"begins in epoch {start}, but there are {epochs}; set swa_epoch_start lower"
    elif any(isinstance(callback, EarlyStopping) for callback in callbacks):
        problem = "averages when the last epoch is over; leave EarlyStopping out"
    if problem:
        raise ValueError(f"trainer.callbacks: StochasticWeightAveraging {problem}")


def is_of_project(part: Callable[..., Any]) -> bool:
    """Whether the class or the method of a model is of this project, not a user's own."""
    return part.__module__.partition(".")[0] == Classifier.__module__.partition(".")[0]


def check_is_built(model: Classifier) -> None:
    """Refuses a model whose ``__init__`` does not call that of `Classifier`.

    Raises:
        ValueError: naming the call.
    """
    if "num_classes" not in vars(model):
        raise ValueError(f"{type(model).__name__}.__init__: call super().__init__(**kwargs) first")


def check_own_model(model: Classifier, trainer: Trainer) -> None:
    """Refuses a user's own model that does not return logits, or evaluates itself.

    Args:
        model: the model.
        trainer: of the fit; a forward pass in training may ask it.

    Raises:
        ValueError: naming the method and the remedy.
    """
    kind = type(model)
    if is_of_project(kind):
        return
    for step in ("validation_step", "test_step"):
        if getattr(kind, step) is not getattr(Classifier, step):
            raise ValueError(f"{kind.__name__}.{step}: leave it out, or override evaluate: "
                             "Classifier evaluates the logits of forward")  # fmt: skip
    try:
        inspect.signature(model.training_step).bind("batch", "batch_idx")
    except TypeError as error:
        reason = f"does not take batch, batch_idx: {error}"
        raise ValueError(f"{kind.__name__}.training_step {reason}") from error
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _logits(model.eval(), "evaluation")
    for module, mode in modes.items():  # a part may be frozen
        module.training = mode
    if type(model).training_step is Classifier.training_step:
        _check_in_training(model, trainer)


def _check_in_training(model: Classifier, trainer: Trainer) -> None:
    """Tries the forward pass of a copy in training mode, which may change buffers."""
    try:
        trial = copy.deepcopy(model)
    except Exception:  # whatever can't be copied is tried by the training itself
        return
    trial.trainer = trainer
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logits = _logits(trial, "training")
        except ValueError as error:
            if isinstance(error.__cause__, MisconfigurationException):
                return  # it logs, for which the trainer must run
            raise
    if not logits.requires_grad:
        raise ValueError(
            f"{type(model).__name__}.forward returns logits without a gradient: leave out detach, "
            "no_grad"
        )


def _logits(model: Classifier, mode: str) -> Tensor:
    """The logits of two images, checked."""
    kind = type(model)
    try:
        logits = model(model.example_input_array)
    except Exception as error:  # whatever a user's model raises
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{kind.__name__}.forward fails in {mode} on (2, 3, 32, 32): {reason}"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, model.num_classes):
        raise ValueError(
            f"{kind.__name__}.forward returns {found} for two images: let it return logits "
            f"(B, {model.num_classes})"
        )
    return cast(Tensor, logits)


def apply_precision(trainer: Trainer, model: LightningModule) -> None:
    """Converts the weights to the trainer's precision before a checkpoint is loaded.

    Lightning converts them later: 64-bit weights would be rounded to 32 bits.
    """
    plugin = trainer.precision_plugin
    plugin.convert_module(model)
    model.example_input_array = plugin.convert_input(model.example_input_array)


def written_config(parser: Any, config: Any) -> str:
    """Serialises a parsed configuration for the run's ``config.yaml``.

    Args:
        parser: the command's parser.
        config: the configuration; the parser has checked it.

    Returns:
        YAML.

    Raises:
        ValueError: naming a value that can't be written: the run could not go on.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Unable to serialize")
        try:
            written: str = parser.dump(config, skip_none=False, skip_validation=True)
        except (yaml.YAMLError, TypeError) as error:  # for an object in the defaults
            raise ValueError(f"{error.args[-1]!r} {_NOT_SERIALIZABLE}") from error
    if lost := _UNSERIALIZED.search(written):
        raise ValueError(f"{lost[1]}: {lost[2]} {_NOT_SERIALIZABLE}")
    return written


def read_back(parser: Any, written: str) -> dict[str, Any]:
    """Reads a serialised configuration; if it names classes, the parser checks it again.

    Args:
        parser: the command's parser.
        written: YAML, from `written_config`.
    """
    config: dict[str, Any] = yaml.safe_load(written)
    trainer = config.get("trainer") or {}
    if not all(isinstance(trainer.get(key), _SCALAR_TYPES) for key in _CLASS_OPTIONS):
        parser.parse_string(written)
    return config


_NOT_SERIALIZABLE = (
    "is a value that the run's config.yaml can't hold, so that the run could not go on: give "
    "another in its place"
)
_SCALAR_TYPES = (str, int, float, type(None))
_CLASS_OPTIONS = ("callbacks", "plugins", "profiler", "strategy")
# The text that jsonargparse writes for an object.
_UNSERIALIZED = re.compile(r"(\w+): '?Unable to serialize instance (.+?)'?$", re.MULTILINE)


def _batches_of_an_epoch(trainer: Trainer, data: CIFAR10DataModule) -> int:
    batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
    limited = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if limited == 0:
        raise ValueError(f"trainer.limit_train_batches {limit} leaves none of {batches} batches")
    return limited


# Best, last and previous checkpoint, and the next one during its write.
_CHECKPOINTS = 4
# Weights and the two moments of Adam.
_COPIES = 3


def check_space(folder: Path, model: nn.Module, goes_on: bool) -> None:
    """Refuses a disk without enough room for the checkpoints of a fit.

    Args:
        folder: the run's folder.
        model: the model whose checkpoints are kept.
        goes_on: whether the run has checkpoints already, which it will replace.

    Raises:
        RunError: naming the free and the needed space.
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
    """Refuses a checkpoint that has already reached the limits of the training.

    Raises:
        RunError: naming the limit to raise.
    """
    steps = int(checkpoint["global_step"])
    if 0 <= trainer.max_steps <= steps:
        raise RunError(
            f"{path} has {steps:,} steps behind it: raise --trainer.max_steps above, or start a "
            "new run from its weights with --init_from"
        )
    epochs = int(checkpoint["epoch"])
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        raise RunError(f"{path} has {epochs} epochs behind it: raise --trainer.max_epochs above")
