"""Saves checkpoints completely or not at all, so that a run resumes exactly.

A run resumes exactly for two reasons. Everything random in a training is a function of the seed and
the position in the training (`datamodules.BatchSource`, `lightning_modules.Classifier`). And a
checkpoint holds this position between two batches, so that Lightning's loops neither repeat nor
skip work (`settle`).
"""

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers.logger import DummyLogger

from experiments.checkpoints.loading import ABANDONED, BEST, LAST, PREVIOUS, steps_behind
from experiments.errors import RunError
from experiments.lightning_seam import allow_validation, note_steps, postpone_validation
from experiments.records.curves import CHOSEN_BY, direction
from experiments.records.files import is_in_folder, replacing, synced
from experiments.records.log import sync_log
from experiments.records.record import RunRecord
from lightning_modules.measures import DIVERGED


def best_checkpoint() -> ModelCheckpoint:
    """Keeps the checkpoint with the best validation accuracy as ``best.ckpt``."""
    return ModelCheckpoint(
        filename=BEST,
        monitor=CHOSEN_BY,
        mode=direction(CHOSEN_BY),
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=False,  # at each validation
    )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file on the disk, then moves it to its name in one step.

    At any moment, the file of that name is the complete old one or the complete new one. The newest
    checkpoint of a run, ``last.ckpt``, becomes ``previous.ckpt`` when the next one is safe.

    Args:
        run: the run's folder; files outside it are never removed, whatever a checkpoint names.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint of the run."""
        if is_in_folder(path, self.run):
            super().remove_checkpoint(path)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: its content.
            path: the file.
            storage_options: not used.

        Raises:
            RunError: if it can't be written, or can't be loaded again without running code.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                _write(checkpoint, partial)
                if path.stem == LAST and path.exists():
                    path.replace(path.with_name(f"{PREVIOUS}.ckpt"))
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            kept = f"; the one before is safe in {path}" if path.exists() else ""
            raise RunError(f"cannot write the checkpoint {path}: {_reason(error)}{kept}") from error


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with synced(path, "wb") as file:
        torch.save(checkpoint, file)
    try:
        torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:
        raise RuntimeError(f"it would not load again: {str(error).splitlines()[0]}") from error


def _sync_folder(folder: Path) -> None:
    """Syncs a renaming to the disk, on systems that can open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    """The message of the system: torch reports an error of the disk as its own error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0]


def settle(
    checkpoint: dict[str, Any], batches: int, epoch: int, batch: int, is_begun: bool
) -> None:
    """Sets the progress of Lightning's loops to a position between two batches.

    From its counters, Lightning guesses in which hook a checkpoint was taken and which work to
    repeat. A checkpoint after one complete batch (with validation, schedules and callbacks) and
    before the next needs no guess.

    Args:
        checkpoint: the checkpoint to save; its ``loops`` are changed.
        batches: completed training batches, over all epochs.
        epoch: the current or next epoch.
        batch: completed training batches of this epoch.
        is_begun: whether callbacks have already seen the start of this epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    begun = epoch + is_begun
    for counters in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counters.update(ready=begun, started=begun, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    progress.update(
        total=dict.fromkeys(progress["total"], batches),
        current=dict.fromkeys(progress["current"], batch),
        is_last_batch=False,
    )
    evaluated = loops["epoch_loop.val_loop.batch_progress"]
    for name in ("total", "current"):
        evaluated[name] = dict.fromkeys(evaluated[name], evaluated[name]["ready"])
    note_steps(loops, checkpoint["global_step"])
    for state in loops["state_dict"].get("combined_loader", []):
        state["batches"] = batch
    checkpoint["epoch"] = epoch


def place_of(trainer: Trainer) -> tuple[int, int, bool]:
    """The position of a fit: epoch, completed batches of it, and whether the epoch has started.

    Epochs may have different lengths, and a limit of steps may cut the last one short.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    is_open, is_full = epochs.started > epochs.processed, done >= trainer.num_training_batches
    if is_open and not is_full:
        return epochs.processed, done, True
    if not is_open and done and not is_full:  # ended before its last batch
        return epochs.processed - 1, done, True
    return epochs.processed + is_open, 0, False


def entries_of(checkpoint: dict[str, Any]) -> int | None:
    """The number of log entries of a fit at a checkpoint; None if unknown.

    Args:
        checkpoint: its content.
    """
    state = checkpoint.get("callbacks", {}).get(LastCheckpoint.__qualname__, {})
    entries: int | None = state.get("entries")
    return entries


def is_averaged(checkpoint: dict[str, Any]) -> bool:
    """Whether `StochasticWeightAveraging` has averaged the weights of a checkpoint.

    Args:
        checkpoint: its content.
    """
    state = checkpoint.get("callbacks", {}).get(StochasticWeightAveraging.__qualname__)
    if not state or not state["n_averaged"]:
        return False
    weights, averages = checkpoint["state_dict"], state["average_model_state"]
    return all(torch.equal(weights[name], averages[name]) for name in weights)


def agreed(trainer: Trainer, value: int) -> int:
    """The largest value of all processes; several processes agree only at log entries."""
    if trainer.world_size == 1:
        return value
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if trainer.global_step % every:
        return 0
    values = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(values, reduce_op="max"))


def check_finite(trainer: Trainer) -> None:
    """Refuses weights that are not finite.

    Raises:
        FloatingPointError: naming the first such weight.
    """
    for name, weight in trainer.lightning_module.named_parameters():
        if not weight.isfinite().all():
            raise FloatingPointError(
                f"the weights {name} are not finite after step {trainer.global_step}: {DIVERGED}"
            )


def _batches_done(trainer: Trainer) -> int:
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.completed)


def _limits(trainer: Trainer) -> list[int | None]:
    return [trainer.max_steps, trainer.max_epochs]


class SettledProgress(Callback):
    """Writes the position between two batches into checkpoints, and resumes a fit from there.

    A checkpoint also gets values that callbacks use and Lightning does not save: the newest figures
    and the frozen weights. Callbacks such as `GradientAccumulationScheduler` change settings at the
    start of an epoch; they change them again in a fit that resumes within the epoch.
    """

    def __init__(self) -> None:
        self._trained: dict[str, bool] = {}  # whether a weight was trainable when the fit began
        self._patience: dict[EarlyStopping, int] = {}
        self._restored: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stores the settings of this command before the state of a checkpoint replaces them."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        self._patience = {callback: callback.patience for callback in stopping}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores which weights are trained."""
        for callback, patience in self._patience.items():
            callback.patience = patience
        self._trained = {name: p.requires_grad for name, p in pl_module.named_parameters()}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Settles the progress of a checkpoint, unless it is taken within a batch."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        if trainer.state.fn != "fit":
            return
        if progress.processed == progress.completed:
            settle(checkpoint, progress.completed, *place_of(trainer))
        checkpoint["figures"] = {
            name: value.cpu()
            for name, value in trainer.callback_metrics.items()
            if name != "images_per_s"  # differs from run to run
        }
        checkpoint["frozen_or_not"] = {
            name: p.requires_grad
            for name, p in pl_module.named_parameters()
            if p.requires_grad != self._trained.get(name)
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the values of `on_save_checkpoint`, which older checkpoints lack."""
        self._restored = {k: checkpoint.get(k, {}) for k in ("figures", "frozen_or_not")}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes a resumed fit begin with the next batch, not with a validation."""
        restored, self._restored = self._restored, {}
        loop: Any = trainer.fit_loop.epoch_loop
        if loop.restarting:
            postpone_validation(trainer)
            # Lightning does not restore this if a schedule has already read the number of steps.
            done = loop.batch_progress.current.completed
            source: Any = trainer.train_dataloader
            source.load_state_dict({"batches": done})
        if _is_within_an_epoch(trainer):
            _begin_epoch_again(trainer)
        for name, is_trained in restored.get("frozen_or_not", {}).items():
            pl_module.get_parameter(name).requires_grad_(is_trained)
        trainer.callback_metrics.update(restored.get("figures", {}))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Allows validations again."""
        allow_validation(trainer)


def _is_within_an_epoch(trainer: Trainer) -> bool:
    """Whether a fit resumes in an epoch that an earlier process started."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(trainer.fit_loop.restarting and epochs.started > epochs.processed)


def _begin_epoch_again(trainer: Trainer) -> None:
    """Calls the hooks for the start of an epoch again, so that they repeat their settings.

    Values from the checkpoint stay unchanged (weights, optimiser, schedules, states of callbacks),
    and nothing is logged a second time.
    """
    model = trainer.lightning_module
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    told = [callback for callback in callbacks if _has_epoch_start_hook(callback, Callback)]
    if not told and not _has_epoch_start_hook(model, LightningModule):
        return
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    holders: list[Any] = [*told, *trainer.optimizers, *schedules, model]
    states = [copy.deepcopy(holder.state_dict()) for holder in holders]
    loggers, trainer.loggers = trainer.loggers, [DummyLogger()]
    try:
        for callback in told:
            callback.on_train_epoch_start(trainer, model)
        model.on_train_epoch_start()
    finally:
        trainer.loggers = loggers
    for holder, state in zip(holders, states, strict=True):
        if state:
            holder.load_state_dict(state)


def _has_epoch_start_hook(owner: Any, base: type) -> bool:
    hook = "on_train_epoch_start"
    return hook in vars(owner) or getattr(type(owner), hook) is not getattr(base, hook)


def _known(checkpoint: dict[str, Any]) -> set[str]:
    """The names of the files in the states of a checkpoint's callbacks."""
    states = checkpoint["callbacks"].values()
    paths = [state[key] for state in states for key in _PATHS if state.get(key)]
    listed = [path for state in states for path in state.get("best_k_models", {})]
    return {Path(path).name for path in (*paths, *listed)}


_PATHS = ("best_model_path", "last_model_path")  # of a ModelCheckpoint


def _remove_later(run: Path, step: int, known: set[str]) -> None:
    """Removes files that other callbacks saved between a checkpoint and the end of the process.

    The callbacks will save them again, under other names if the first files still exist.

    Args:
        run: the run's folder.
        step: the step of the checkpoint.
        known: files of this step that are older than the checkpoint.
    """
    for path in run.glob("*.ckpt"):
        if path.stem in {BEST, LAST, PREVIOUS, ABANDONED}:
            continue
        try:
            later = steps_behind(path) - step
        except Exception:  # not a checkpoint of this project
            continue
        if later > 0 or (later == 0 and path.name not in known):
            path.unlink()


class LastCheckpoint(Checkpoint):
    """Keeps the newest state as ``last.ckpt``, from which a run resumes exactly.

    It is saved after each validation, every ``every_s`` seconds and at the end of the fit, always
    between two batches.

    Args:
        record: the run's record.
        every_s: seconds between saves without a validation.
    """

    def __init__(self, record: RunRecord, every_s: float = 300.0) -> None:
        self.record = record
        self.path = record.path / f"{LAST}.ckpt"
        self.every_s = every_s
        self._saved_at = time.monotonic()
        self._batches: int | None = None  # number of batches at the last save
        self._due = False
        self._entries: int | None = None  # number of log entries at the last save
        self._stopped = False
        self._limits: list[int | None] = []

    def state_dict(self) -> dict[str, Any]:
        """Whether the fit was stopped early, its limits, and its number of log entries."""
        return {"stopped": self._stopped, "limits": self._limits, "entries": self._entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        self._stopped, self._limits = state_dict["stopped"], state_dict["limits"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes a resumed run forget checkpoints of later steps."""
        goes_on = Path(str(trainer.ckpt_path)).resolve().parent == self.path.resolve().parent
        if trainer.state.fn == "fit" and goes_on and trainer.is_global_zero:
            _remove_later(self.record.path, int(checkpoint["global_step"]), _known(checkpoint))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps a fit stopped if it was stopped early, unless this command makes it longer."""
        if not trainer.ckpt_path and trainer.is_global_zero:
            _remove_later(self.record.path, 0, set())
        trainer.should_stop = self._stopped and self._limits == _limits(trainer)
        self._stopped, self._limits = False, _limits(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer."""
        self._saved_at = time.monotonic()
        self._batches = _batches_done(trainer) or None

    def save_if_due(self, trainer: Trainer) -> None:
        """Saves after a validation or ``every_s``; called by `StopBetweenBatches`."""
        late = time.monotonic() - self._saved_at > self.every_s
        if self._due or agreed(trainer, int(late)):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Requests a save, which follows after the schedules have used the validation."""
        self._due = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        self._stopped = trainer.should_stop
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves, unless this state is already saved.

        Raises:
            FloatingPointError: if the weights are not finite; the last good checkpoint stays.
            RunError: if it can't be written.
        """
        self._due = False
        self._saved_at = time.monotonic()
        if self._batches != _batches_done(trainer):
            self._batches = _batches_done(trainer)
            check_finite(trainer)
            if trainer.is_global_zero:
                sync_log(self.record.path)
            self._entries = self.record.entries
            self._stopped = trainer.should_stop  # perhaps by a callback before min_steps
            trainer.save_checkpoint(self.path, weights_only=False)
            self._entries = None
