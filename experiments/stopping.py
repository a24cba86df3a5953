"""Signals: the training stops between two batches, saved, and says so when it ends."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from experiments.saving import LastCheckpoint, agreed

# SIGUSR1 is what batch systems send before a job's time is over; Windows has none.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class Stopped(BaseException):
    """A signal ends the command.

    Attributes:
        signum: the signal.
        status: what the command exits with, as a shell expects: 130, 143 or 138.
        preempts: whether a system asked for it, and not a person at the keyboard.
        requeues: whether the job is to be run again; SIGTERM may come of ``scancel``.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.status = 128 + signum
        self.preempts = signum != signal.SIGINT
        self.requeues = self.preempts and signum != signal.SIGTERM


class StopSignals:
    """Takes SIGINT, SIGTERM and SIGUSR1 while its context lasts.

    Attributes:
        received: the signal that came, if any.
        waits: whether a first signal waits for the batch to end; else it raises `Stopped` at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            _set_handler(signum, handler)

    def install(self) -> None:
        """Takes the signals, also from who has taken them meanwhile."""
        for signum in _SIGNALS:
            _set_handler(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None or not self.waits:
            raise Stopped(signum)
        self.received = signum
        with contextlib.suppress(OSError):  # not print: the signal may have come within one
            os.write(2, b"\nstopping after this batch; once more to stop at once\n")


def _set_handler(signum: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


class StopBetweenBatches(Callback):
    """Ends a fit by `Stopped` between two batches, when all is saved.

    With several processes, one that is told to stop stops all, at the next entry of the log.

    Args:
        signals: what came.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning, which would end with status 0."""
        self.signals.install()
        self.signals.waits = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops, unless gradients are half accumulated."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: Trainer) -> None:
        signum = agreed(trainer, self.signals.received or 0)
        if not signum:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
        raise Stopped(signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets a signal stop at once what comes after the training."""
        self.signals.waits = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops where the signal came with the last batch, which is saved by now."""
        if self.signals.received is not None:
            raise Stopped(self.signals.received)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lets a signal stop at once what comes after a failure."""
        self.signals.waits = False
