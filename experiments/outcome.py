"""How a fit ended that no error ended: at its limit of steps, or before it, and why."""

import logging
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from experiments.identity import MAX_TIME
from experiments.record import RunRecord, Status
from experiments.stopping import time_limit

_log = logging.getLogger(__name__)


def note_outcome(trainer: Trainer, record: RunRecord) -> Status:
    """Writes into a record why a fit ended before its limit of steps or epochs, if it did.

    Args:
        trainer: whose fit is over.
        record: gets the field ``stopped_by``; none if the fit came to its limit.

    Returns:
        The status of the run: a fit whose time was over is interrupted, since it can go on.
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
    """Whether a run is to go on that had used up its time, and gets no more.

    Args:
        record: the run's record.
        before: the configuration that it had, flat.
        config: the one asked for, flat.
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
