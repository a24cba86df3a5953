"""A fit stops between two batches, saved: at a signal, or when its time is over."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, Timer
from pytorch_lightning.trainer.states import TrainerFn

from experiments.checkpoints.saving import LastCheckpoint, agreed
from experiments.process.signals import Phase, Stopped, StopSignals


class TimeLimit(Timer):
    """What ``trainer.max_time`` stands for: a `Timer` that leaves it to others to stop the fit.

    Lightning's own stops after any batch, with a validation that would else not have been, from
    where a fit does not go on as if it had been left alone (see `StopBetweenBatches`).

    Args:
        seconds: how long the fit may take, over all processes that go on with it.

    Attributes:
        is_over: whether the fit has been stopped by it.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(timedelta(seconds=seconds))
        self.seconds = seconds
        self.is_over = False

    @property
    def state_key(self) -> str:
        """That of the timer whose place it takes."""
        return Timer.__qualname__

    @property
    def is_used_up(self) -> bool:
        """Whether no time is left."""
        return (self.time_remaining() or 0) <= 0

    def state_dict(self) -> dict[str, Any]:
        """The seconds that the fit has taken."""
        return {"seconds": self.time_elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counts on from those of a checkpoint, of this class or of Lightning's."""
        if "seconds" in state_dict:
            state_dict = {"time_elapsed": {"train": state_dict["seconds"]}}
        super().load_state_dict(state_dict)

    # In these a `Timer` stops the fit.
    on_fit_start = Callback.on_fit_start
    on_train_batch_end = Callback.on_train_batch_end
    on_train_epoch_end = Callback.on_train_epoch_end


def replace_max_time_timer(trainer: Trainer) -> None:
    """Puts a `TimeLimit` in place of the timer that ``trainer.max_time`` has made."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) is Timer and (seconds := callback.time_remaining()) is not None:
            callbacks[place] = TimeLimit(seconds)


def time_limit(trainer: Trainer) -> TimeLimit | None:
    """The limit of time that a fit has, if any."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, TimeLimit)), None)


class StopBetweenBatches(Callback):
    """Saves a fit between two batches, and ends it there when it is told to or its time is over.

    Ends a command by `Stopped`; a fit whose time is over ends without an error. With several
    processes, one that is told to stop stops all, at the next entry of the log.

    It must be the first of all callbacks: what others do at the start of a batch comes after the
    checkpoint, and will come again when the fit goes on from there (see `callback_order`).

    Args:
        signals: what came.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the batch is awaited."""
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
            raise StopIteration  # ends the epoch, as Lightning has it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is no batch to be awaited."""
        self.signals.phase = Phase.FIT

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops where the signal came with the last batch, which is saved by now."""
        self.signals.check()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a test, that of a fit too."""
        self.signals.check()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a prediction."""
        self.signals.check()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Stops a validation, but not one of a fit, which goes on to the next batch."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.signals.check()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lets a signal stop at once what comes after a failure."""
        self.signals.phase = None


def _may_stop(trainer: Trainer) -> bool:
    """Whether the least steps and epochs that were asked for are over."""
    steps, epochs = trainer.min_steps or 0, trainer.min_epochs or 0
    progress: Any = trainer.fit_loop.epoch_progress.current
    return trainer.global_step >= steps and progress.processed >= epochs


def _last_checkpoints(trainer: Trainer) -> Iterator[LastCheckpoint]:
    return (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))


def callback_order(callback: Callback) -> int:
    """Sorts callbacks: what saves between batches first, then others, then checkpoints.

    The newest state comes last of all, after the best, so that it knows of that.
    """
    if isinstance(callback, StopBetweenBatches):
        return -1
    return isinstance(callback, Checkpoint) + isinstance(callback, LastCheckpoint)
