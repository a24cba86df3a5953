"""The end of a command and its reason: an error, a signal, a limit, an early stop."""

import contextlib
import logging
import signal
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from experiments.checkpoints.evaluations import weights_of
from experiments.checkpoints.loading import LAST, load_checkpoint, weights_sha256
from experiments.checkpoints.saving import is_averaged
from experiments.errors import RunError
from experiments.identity import MAX_TIME
from experiments.monitoring.loggers import run_loggers
from experiments.monitoring.progress import TrainMonitor
from experiments.process.signals import Stopped
from experiments.records.record import RunRecord, Status
from experiments.session.stopping import time_limit

_log = logging.getLogger(__name__)


def note_fit(
    record: RunRecord, trainer: Trainer, model: LightningModule, monitor: TrainMonitor
) -> None:
    """Writes the results of a fit, and the checkpoint for its tests, into a record.

    Args:
        record: of the run; not saved here.
        trainer: the trainer of the fit.
        model: the trained model.
        monitor: the monitor of the fit.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
    last = record.path / f"{LAST}.ckpt"
    if averaging and last.is_file() and is_averaged(load_checkpoint(last)):
        record.fields["chosen"] = LAST
        _log.info(f"{LAST}.ckpt has the averaged weights: it is what tests take")
    summary = record.summary
    summary["train/steps"] = trainer.global_step
    summary.update(monitor.figures)
    summary["train/seconds"] = round(monitor.seconds, 3)
    summary["train/weights_sha256"] = weights_sha256(model)
    if monitor.seconds:
        summary["train/images_per_s"] = round(monitor.images / monitor.seconds, 1)
    if monitor.compute.flops is not None:
        summary["train/flops"] = monitor.compute.flops
    if monitor.peak_gpu_bytes is not None:
        summary["train/peak_gpu_mib"] = round(monitor.peak_gpu_bytes / 2**20)


def note_outcome(trainer: Trainer, record: RunRecord) -> Status:
    """Writes the reason into a record if a fit ended before its limit of steps or epochs.

    Args:
        trainer: the trainer of the fit.
        record: gets the field ``stopped_by``; none if the fit reached its limit.

    Returns:
        The status of the run: ``interrupted`` after a time limit, since the fit can be resumed.
    """
    limit = time_limit(trainer)
    if limit is not None and limit.is_over:
        record.fields["stopped_by"] = f"{MAX_TIME} {timedelta(seconds=limit.seconds)} is used up"
        return "interrupted"
    if trainer.should_stop:
        record.fields["stopped_by"] = reason = _who_stopped(trainer)
        _log.info(f"stopped early after step {trainer.global_step:,}: {reason}")
    return "finished"


def is_out_of_time(record: RunRecord, before: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a resumed run has used up its time and gets no more.

    Args:
        record: the run's record.
        before: the old configuration, flat.
        config: the new configuration, flat.
    """
    reason = str(record.fields.get("stopped_by"))
    limits = [key for key in {*before, *config} if key.startswith(MAX_TIME)]
    changed = any(before.get(key) != config.get(key) for key in limits)
    if changed or not reason.startswith(MAX_TIME):
        return False
    _log.info(
        f"{reason} by run {record.name}: raise --{MAX_TIME}, or end it with --{MAX_TIME} null"
    )
    return True


def _who_stopped(trainer: Trainer) -> str:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and (reason := _reason(callback)):
            return f"{type(callback).__name__}: {callback.monitor} {reason}"
    return "a callback has set trainer.should_stop"


def _reason(callback: EarlyStopping) -> str:
    best = f"{float(callback.best_score):.4f}"
    return {
        EarlyStoppingReason.NOT_STOPPED: "",
        EarlyStoppingReason.PATIENCE_EXHAUSTED: f"has not been better than {best} in "
        f"{callback.wait_count} checks (patience {callback.patience})",
        EarlyStoppingReason.STOPPING_THRESHOLD: "has come to stopping_threshold "
        f"{callback.stopping_threshold}",
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: "is worse than divergence_threshold "
        f"{callback.divergence_threshold}",
        EarlyStoppingReason.NON_FINITE_METRIC: "is not finite",
    }[callback.stopping_reason]


class RunStatus(Callback):
    """Writes into the record, and tells W&B, when a run fails or is interrupted.

    Args:
        record: the run's record.
        changes_status: whether the run itself fails, not only an evaluation of it.
    """

    def __init__(self, record: RunRecord, changes_status: bool = True) -> None:
        self.record = record
        self.changes_status = changes_status
        self._is_marked = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Marks the run."""
        self.ended_by(exception, trainer)

    def ended_by(self, exception: BaseException, trainer: Trainer) -> None:
        """Marks the run, unless it is marked already; also for errors outside the trainer.

        Args:
            exception: the error or signal.
            trainer: the trainer, for its loggers.
        """
        if not trainer.is_global_zero or self._is_marked:
            return
        self._is_marked = True
        status, code = _how_it_ended(exception)
        if self.changes_status and self.record.fields["status"] == "running":
            self.record.fields["error"] = repr(exception)
            with contextlib.suppress(Exception):  # a damaged record, perhaps the cause of the error
                self.record.fields["weights"] = weights_of(self.record.path)
            with contextlib.suppress(OSError, RunError):  # a full disk, perhaps the cause
                self.record.finish(status)
        for logger in run_loggers(trainer):
            logger.close(exit_code=code, preempted=status == "preempted")


def _how_it_ended(exception: BaseException) -> tuple[Status, int]:
    if isinstance(exception, Stopped):
        return ("preempted" if exception.preempts else "interrupted"), exception.status
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    return "failed", 1
