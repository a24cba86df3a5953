"""Saves and stops a fit between two batches, at a signal or a time limit."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, Timer
from pytorch_lightning.trainer.states import TrainerFn

from experiments.checkpoints.saving import LastCheckpoint, agreed
from experiments.process.signals import Phase, Stopped, StopSignals


class TimeLimit(Timer):
    """The timer of ``trainer.max_time``; `StopBetweenBatches` stops the fit for it.

    Lightning's own timer stops after any batch and adds a validation, so a resumed fit would differ
    from an uninterrupted one.

    Args:
        seconds: limit of the fit, over all processes that work on it.

    Attributes:
        is_over: whether the limit has stopped the fit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timedelta(seconds=seconds))
        self.seconds = seconds
        self.is_over = False

    @property
    def state_key(self) -> str:
        """The key of the timer that it replaces."""
        return Timer.__qualname__

    @property
    def is_used_up(self) -> bool:
        """Whether no time is left."""
        return (self.time_remaining() or 0) <= 0

    def state_dict(self) -> dict[str, Any]:
        """The seconds of the fit so far."""
        return {"seconds": self.time_elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the seconds of a checkpoint, of this class or of Lightning's timer."""
        if "seconds" in state_dict:
            state_dict = {"time_elapsed": {"train": state_dict["seconds"]}}
        super().load_state_dict(state_dict)

    # In these hooks, a `Timer` stops the fit.
    on_fit_start = Callback.on_fit_start
    on_train_batch_end = Callback.on_train_batch_end
    on_train_epoch_end = Callback.on_train_epoch_end


def replace_max_time_timer(trainer: Trainer) -> None:
    """Replaces the timer of ``trainer.max_time`` by a `TimeLimit`."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) is Timer and (seconds := callback.time_remaining()) is not None:
            callbacks[place] = TimeLimit(seconds)


def time_limit(trainer: Trainer) -> TimeLimit | None:
    """The time limit of a fit, if any."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, TimeLimit)), None)


class StopBetweenBatches(Callback):
    """Saves a fit between two batches, and ends it there at a signal or a time limit.

    A signal ends a command by `Stopped`; a time limit ends a fit without an error. With several
    processes, a signal to one process stops all of them at the next log entry.

    It must be the first of all callbacks (see `callback_order`). At the start of a batch, other
    callbacks then act after the checkpoint, and act again when the fit is resumed.

    Args:
        signals: the received signals.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, a signal waits for the end of the batch."""
        self.signals.check()
        self.signals.phase = Phase.BATCH

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops, unless gradients are half accumulated."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        for callback in _last_checkpoints(trainer):
            callback.save_if_due(trainer)
        self._stop_if_told(trainer)
        self._stop_if_time_is_over(trainer)

    def _stop_if_told(self, trainer: Trainer) -> None:
        signum = agreed(trainer, self.signals.received or 0)
        if not signum:
            return
        for callback in _last_checkpoints(trainer):
            callback.save(trainer)
        raise Stopped(signum)

    def _stop_if_time_is_over(self, trainer: Trainer) -> None:
        limit = time_limit(trainer)
        if limit is None or not agreed(trainer, int(limit.is_used_up)):
            return
        if _may_stop(trainer):
            for callback in _last_checkpoints(trainer):
                callback.save(trainer)
            limit.is_over = trainer.should_stop = True
            raise StopIteration  # ends the epoch, as Lightning does

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, a signal waits for no batch."""
        self.signals.phase = Phase.FIT

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops if the signal came during the last batch, which is now saved."""
        self.signals.check()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a test, also the test after a fit."""
        self.signals.check()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a prediction."""
        self.signals.check()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a validation, but not during a fit, which continues to the next batch."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.signals.check()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """After a failure, lets a signal stop the command at once."""
        self.signals.phase = None


def _may_stop(trainer: Trainer) -> bool:
    """Whether ``min_steps`` and ``min_epochs`` are reached."""
    steps, epochs = trainer.min_steps or 0, trainer.min_epochs or 0
    progress: Any = trainer.fit_loop.epoch_progress.current
    return trainer.global_step >= steps and progress.processed >= epochs


def _last_checkpoints(trainer: Trainer) -> Iterator[LastCheckpoint]:
    return (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))


def callback_order(callback: Callback) -> int:
    """Sort key of callbacks: `StopBetweenBatches`, then others, then checkpoints.

    `LastCheckpoint` comes last, so that its state includes the best checkpoint.
    """
    if isinstance(callback, StopBetweenBatches):
        return -1
    return isinstance(callback, Checkpoint) + isinstance(callback, LastCheckpoint)
