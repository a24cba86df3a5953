"""Loads the checkpoints of a run: finds them by name, refuses damaged ones and other models."""

import contextlib
import hashlib
import logging
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from datamodules import CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule
from experiments.errors import RunError
from lightning_modules import Classifier

_log = logging.getLogger(__name__)

BEST = "best"
LAST = "last"
PREVIOUS = "previous"  # the one before last
ABANDONED = "abandoned"  # the best one of steps that a run went back from
# The data modules of this project by the key of their state in a checkpoint.
DATA_MODULES: Mapping[str, type[CIFAR10DataModule]] = {
    kind.__qualname__: kind
    for kind in (CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule)
}
_STATE_OF_DATA = {"normalization": str, "label_names": list, "statistics": dict}
# The used content of a checkpoint, which may come from anywhere: types or required keys.
_CONTENT: dict[str, Any] = {
    "state_dict": dict,
    "global_step": int,
    "model_class": str,
    "training": {"optimizer": str, "settings": dict, "schedule": str},
    "measured": {"noted": Tensor, "confusion": dict},
    "precision": str,
    **dict.fromkeys(DATA_MODULES, _STATE_OF_DATA),
}
_REQUIRED = ("state_dict", "global_step")


def find_checkpoint(run: Path, which: str) -> Path:
    """Returns the best or last checkpoint of a run.

    Args:
        run: the run's folder.
        which: ``best`` or ``last``.

    Raises:
        RunError: if the run has no such checkpoint.
    """
    path = run / f"{which}.ckpt"
    if not path.is_file():
        others = sorted(found.stem for found in run.glob("*.ckpt"))
        other = LAST if LAST in others else others[-1] if others else ""
        by_word = f"pass --ckpt_path {other}, or " if other in {BEST, LAST} else ""
        remedy = f"{by_word}name {run / other}.ckpt"
        known = f"it has {', '.join(others)}: {remedy}" if others else "it has none"
        raise RunError(f"{run} has no checkpoint {path.name}: {known}")
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """Returns the checkpoint to resume: the last one, or the one before if that is damaged.

    Returns:
        None if there is none yet.

    Raises:
        RunError: if none of them can be read.
    """
    errors = []
    for path in (run / f"{LAST}.ckpt", run / f"{PREVIOUS}.ckpt"):
        if not path.is_file():
            continue
        try:
            load_checkpoint(path)
        except RunError as error:
            errors.append(error)
            continue
        if errors:
            _log.info(f"{errors[0]}: resuming from {path.name}")
        return path
    if errors:
        raise RunError(f"{errors[0]}; start the run again with --overwrite true")
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running code from it.

    Raises:
        RunError: if the file is missing, truncated, corrupted, or no checkpoint of Lightning.
    """
    if not path.is_file():
        raise RunError(f"no checkpoint {path}; check --ckpt_path, or name the run with --name")
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()  # torch.load does not check the checksums
        if broken is not None:
            raise RunError(f"the checkpoint {path} is corrupted (in {broken})")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} is refused: it holds more than weights, and loading that could run code"
        ) from error
    except Exception as error:
        size = path.stat().st_size
        raise RunError(
            f"{path} ({size:,} bytes) is truncated or no checkpoint: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is no checkpoint of Lightning: {_kind(content)}, not a dict")
    for key in _REQUIRED:
        if key not in content:
            raise RunError(f"{path} is no checkpoint of Lightning: it has no {key}")
    if wrong := _wrong(content, {key: _CONTENT[key] for key in _CONTENT.keys() & content.keys()}):
        raise RunError(f"{path} is no checkpoint of this project: {wrong}; name another")
    return content


def state_of_data(path: Path, checkpoint: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class name and the state of the data module that a checkpoint was trained with.

    Raises:
        RunError: if it has none.
    """
    for name, state in checkpoint.items():
        if isinstance(state, dict) and {"normalization", "label_names"} <= {*state}:
            return name, state
    raise RunError(f"{path} holds no state of a CIFAR10DataModule: train with one")


def _wrong(found: Any, asked: Any, name: str = "") -> str:
    """Describes the first missing or wrong part of a checkpoint, if any."""
    if not isinstance(asked, dict):
        fits = isinstance(found, asked) and not isinstance(found, bool)
        return "" if fits else f"its {name} is of type {_kind(found)}"
    if not isinstance(found, dict):
        return f"its {name} is of type {_kind(found)}"
    for key, kind in asked.items():
        if key not in found:
            return f"its {name} has no {key}"
        if wrong := _wrong(found[key], kind, f"{name}.{key}" if name else key):
            return wrong
    return ""


def _kind(value: Any) -> str:
    return type(value).__name__


def check_model(
    path: Path, checkpoint: dict[str, Any], model: nn.Module, new_head: bool = False
) -> None:
    """Refuses a checkpoint of another model, or with unusable weights.

    Args:
        path: the checkpoint's file.
        checkpoint: its content.
        model: the model that is to get the weights.
        new_head: whether the last layer is that of the model already, see `with_new_head`.

    Raises:
        RunError: naming the difference: the class, the first weight with another name or shape,
            or the first weight that is no tensor of finite numbers.
    """
    theirs, ours = checkpoint.get("model_class"), type(model).__qualname__
    if theirs is not None and theirs != ours:
        raise RunError(f"{path} holds a model of class {theirs}, but {ours} is asked for")
    state, own = checkpoint["state_dict"], model.state_dict()
    found = {name: _shape(value) for name, value in state.items()}
    asked = {name: _shape(value) for name, value in own.items()}
    for name in [*asked, *found]:
        if found.get(name) != asked.get(name):
            raise RunError(
                ("" if new_head else _other_classes(path, checkpoint, model))
                or f"{path} holds another {ours}: {name} is {found.get(name, 'missing')} there and "
                f"{asked.get(name, 'missing')} in the model asked for; use the run's own config"
            )
    for name, value in state.items():
        if wrong := _unusable(value, own[name]):
            raise RunError(f"{path} is of no use: {name} {wrong}; take another with --ckpt_path")


def with_new_head(
    path: Path, checkpoint: dict[str, Any], model: Classifier
) -> tuple[dict[str, Any], list[str]]:
    """Adapts a checkpoint to a model of another number of classes: its last layer begins anew.

    Args:
        path: the checkpoint's file.
        checkpoint: its content.
        model: with the weights that its last layer begins with.

    Returns:
        The content with these weights, and their names: all whose shapes differ in nothing but
        that number. For the same number of classes, the content itself.
    """
    own, state = model.state_dict(), checkpoint["state_dict"]
    classes = len(state_of_data(path, checkpoint)[1]["label_names"])
    anew = {
        name: value
        for name, value in own.items()
        if classes != model.num_classes
        and _shape(value)[:1] == (model.num_classes,)
        and _shape(state.get(name)) == (classes, *value.shape[1:])
    }
    return {**checkpoint, "state_dict": {**state, **anew}}, [*anew]


def _other_classes(path: Path, checkpoint: dict[str, Any], model: nn.Module) -> str:
    """The message for a checkpoint with another number of classes; empty for the same number."""
    with contextlib.suppress(RunError):
        _, trained_on = state_of_data(path, checkpoint)
        theirs, ours = len(trained_on["label_names"]), getattr(model, "num_classes", None)
        if theirs != ours:
            return (
                f"{path} is for {theirs} classes, but the model asked for has {ours}: take data "
                f"with {theirs} classes, or start a new run from it with --init_from: its last "
                "layer begins anew"
            )
    return ""


def _shape(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return f"no tensor but a {_kind(value)}"
    return "nested" if value.is_nested else tuple(value.shape)


def _unusable(found: Tensor, ours: Tensor) -> str:
    """The reason why a weight of the right shape is unusable; empty if it is usable."""
    if _type(found) != _type(ours):
        return f"is a tensor of another kind ({found.dtype}, {found.layout}, {found.device})"
    return "" if found.isfinite().all() else "holds numbers that are not finite (NaN or infinite)"


def _type(t: Tensor) -> tuple[Any, ...]:
    return t.is_floating_point(), t.is_complex(), t.is_quantized, t.is_meta, t.layout


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of a model's weights and running statistics; equal after equal trainings."""
    return state_sha256(model.state_dict())


def checkpoint_sha256(path: Path) -> str:
    """The SHA-256 of the weights in a checkpoint file; reads nothing else."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return state_sha256(content["state_dict"])


def steps_behind(path: Path) -> int:
    """Optimiser steps of the weights in a checkpoint."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return int(content["global_step"])


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of weights and running statistics by name, in their order."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_settings(model: LightningModule) -> dict[str, Any]:
    """Describes the optimiser and the schedule of a model, in the form kept in checkpoints.

    Returns:
        The optimiser's class and its settings by name, and the schedule in words.

    Raises:
        ValueError: for a setting that the optimiser refuses, or a learning rate that is not finite.
    """
    try:
        made: Any = model.configure_optimizers()
    except ValueError as error:  # torch names no key
        raise ValueError(f"model.optimizer: {error}") from error
    plan = made if isinstance(made, dict) else {"optimizer": made}
    if not isinstance(plan.get("optimizer"), Optimizer):
        raise ValueError(
            "configure_optimizers must return one optimizer, or a dict with it as 'optimizer' and "
            "a schedule as 'lr_scheduler': change it, or leave it out"
        )
    optimizer, schedule = plan["optimizer"], plan.get("lr_scheduler")
    if not math.isfinite(optimizer.defaults.get("lr", 0.0)):
        raise ValueError(f"model.lr must be finite, got {optimizer.defaults['lr']}")
    return {
        "optimizer": type(optimizer).__name__,
        "settings": dict(optimizer.defaults),
        "schedule": _describe(schedule["scheduler"]) if schedule else "none",
    }


def schedule_of(model: LightningModule) -> tuple[Any, str]:
    """The learning-rate schedule of a model, if any, and its unit."""
    made: Any = model.configure_optimizers()
    schedule = made.get("lr_scheduler") if isinstance(made, dict) else None
    return (schedule["scheduler"], schedule["interval"]) if schedule else (None, "")


def _describe(scheduler: Any) -> str:
    settings = {
        name: value
        for name, value in sorted(scheduler.state_dict().items())
        if not name.startswith("_") and name not in {"base_lrs", "last_epoch"}
    }
    shown = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{type(scheduler).__name__}({shown})"


def check_training(path: Path, checkpoint: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuses to resume a checkpoint with another optimiser or schedule, whose state it holds.

    Args:
        path: the checkpoint's file.
        checkpoint: its content.
        ours: the `training_settings` of this command.

    Raises:
        RunError: naming the difference.
    """
    theirs = checkpoint.get("training")
    for key in ("optimizer", "schedule"):
        if theirs is not None and theirs[key] != ours[key]:
            raise RunError(
                f"{path} goes on with {key} {theirs[key]}, but {ours[key]} is asked for; "
                "take the run's own config, or start a new run from its weights with --init_from"
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class TrainingSettings(Callback):
    """Makes the optimiser's settings of this command override those of a resumed checkpoint.

    A restored optimiser has the settings of the checkpoint, with its learning rate. This callback
    sets the changed settings again; a schedule continues from the new learning rate.

    Args:
        ours: the `training_settings` of this run.
    """

    def __init__(self, ours: dict[str, Any]) -> None:
        self.ours = ours
        self._theirs: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the settings into the checkpoint."""
        checkpoint["training"] = self.ours

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the checkpoint's settings."""
        self._theirs = checkpoint.get("training")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the settings that differ from the checkpoint."""
        if self._theirs is None:
            return
        ours, theirs = self.ours["settings"], self._theirs["settings"]
        changed = {name: value for name, value in ours.items() if value != theirs.get(name)}
        factor = 1.0
        if "lr" in changed and theirs["lr"]:
            factor = changed.pop("lr") / theirs["lr"]
        for group in trainer.optimizers[0].param_groups:
            group.update(changed)
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [lr * factor for lr in config.scheduler.base_lrs]
