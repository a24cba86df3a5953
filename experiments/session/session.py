"""Executes one command on one run and ends with a summary."""

import logging
import time
import warnings
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.utilities.model_summary.model_summary import ModelSummary

from experiments.checkpoints.evaluations import Evaluation, chosen_checkpoint
from experiments.checkpoints.loading import (
    BEST,
    LAST,
    find_checkpoint,
    load_checkpoint,
    state_sha256,
)
from experiments.checkpoints.saving import AtomicCheckpointIO, LastCheckpoint, SettledProgress
from experiments.errors import RunError, UsageError, is_user_error, place_in_own_code
from experiments.monitoring.callbacks import EvaluationReport, PredictionWriter
from experiments.monitoring.loggers import RecordLogger, run_loggers
from experiments.monitoring.progress import TrainMonitor
from experiments.process.cluster import requeue
from experiments.process.processes import LostProcessError, other_processes
from experiments.process.signals import Phase, Stopped, StopSignals
from experiments.records.record import RunRecord, Status
from experiments.session.closing import announce, close, say_how_to_go_on
from experiments.session.opening import OpenRun
from experiments.session.outcome import RunStatus, note_fit, note_outcome
from experiments.session.preparation import ONE_COMMAND_OPTIONS, Prepared
from experiments.session.quiet import silence_expected_warnings, skip_idle_hooks
from experiments.session.resuming import BestAnew
from experiments.session.stopping import StopBetweenBatches, callback_order

_log = logging.getLogger(__name__)


class RunSession:
    """A checked command, from its first file to its summary.

    Args:
        prepared: the command.

    Attributes:
        run: the run of the command; None for Lightning's ``fast_dev_run``, which keeps nothing.

    Raises:
        RunError: if the run can't be opened for this command; it leaves no files.
        ValueError: if settings do not fit the run.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.run: OpenRun | None = None
        self._monitor = TrainMonitor()
        self._report: EvaluationReport | None = None
        self._status: RunStatus | None = None
        self._outcome: Status = "finished"
        self._signals = StopSignals()
        self._step_of_weights: int | None = None
        if prepared.weights is not None and not prepared.is_fit:
            self._step_of_weights = prepared.weights.step
        if not prepared.keeps_nothing:
            self._signals.take(Phase.START)  # from now on there is a record to mark
            try:
                self.run = OpenRun(prepared)
                if not self.run.is_over:
                    self._attach(self.run)
            except BaseException:
                self._abandon()
                self._signals.give_back()
                raise

    def _attach(self, run: OpenRun) -> None:
        """Gives the trainer its loggers and callbacks, and their folders."""
        trainer, record = self.prepared.trainer, run.record
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(record.path.resolve())
        if trainer.checkpoint_callbacks:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(record.path)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks += self._callbacks(run)
        callbacks.sort(key=callback_order)
        logger = RecordLogger(record, self._step, is_silent=run.evaluation is not None)
        trainer.loggers = [logger, *trainer.loggers]
        if run.evaluation is not None and not run.evaluation.belongs_to_run:
            trainer.loggers = [logger]  # its figures are kept separately
        kept = {k: value for k, value in run.config().items() if k not in ONE_COMMAND_OPTIONS}
        for taking in run_loggers(trainer) if trainer.is_global_zero else []:
            taking.start(record, kept, self._step)
            taking.summarize({"model_summary": str(ModelSummary(self.prepared.model))})
            record.save()  # with the W&B id of the run

    def _callbacks(self, run: OpenRun) -> list[Callback]:
        self._status = RunStatus(run.record, run.changes_status)
        self._report = EvaluationReport(run.record, self._step, run.evaluation)
        added: list[Callback] = [self._monitor, self._report, self._status]
        added.append(StopBetweenBatches(self._signals))
        if self.prepared.is_fit:
            added += [SettledProgress(), BestAnew(run.is_best_anew)]
        if self.prepared.command == "predict" and run.evaluation is not None:
            added.append(PredictionWriter(run.record, self._report))
        if self.prepared.trainer.checkpoint_callbacks:
            added.append(LastCheckpoint(run.record, 60 * self.prepared.config.save_every_min))
        return added

    def _step(self) -> int:
        """Optimiser steps of the weights that are trained or evaluated."""
        if self._step_of_weights is not None:
            return self._step_of_weights
        return self.prepared.trainer.global_step

    # ---- the command ------------------------------------------------------------------------

    def execute(self, arguments: dict[str, Any]) -> None:
        """Runs the command and ends with a summary.

        Args:
            arguments: keyword arguments for the trainer's method.

        Raises:
            Stopped: if a signal ended it; the command that resumes it is already printed.
        """
        try:
            if self.run is not None and self.run.is_over:
                self._signals.give_back()
                return
            with warnings.catch_warnings(), self._signals:
                silence_expected_warnings()
                self._signals.check()
                announce(self.prepared, self.run)
                self._execute(arguments)
        except BaseException as error:
            self._ended_by(error)
            raise
        finally:
            if self.run is not None:
                self.run.release()

    def _execute(self, arguments: dict[str, Any]) -> None:
        prepared, run = self.prepared, self.run
        started = time.perf_counter()
        arguments["ckpt_path"] = str(prepared.weights.path) if prepared.weights else None
        arguments["weights_only"] = True  # a checkpoint must not be able to run code
        if prepared.command in {"validate", "test"}:
            arguments["verbose"] = False
        if prepared.command == "predict":
            arguments["return_predictions"] = False
        self._run_trainer(arguments)
        if prepared.is_fit and run is not None:
            note_fit(run.record, prepared.trainer, prepared.model, self._monitor)
            self._outcome = note_outcome(prepared.trainer, run.record)
            if self._outcome == "interrupted":
                reason = run.record.fields["stopped_by"]
                say_how_to_go_on(prepared, run, f"stopped: {reason}", " --trainer.max_time null")
            if prepared.config.test_after_fit:
                self._signals.phase = None
                self._signals.check()
                self._test_after_fit(run.record)
        self._signals.check()
        self._signals.phase = Phase.SUMMARY  # only about a second of work is left
        if run is not None and prepared.trainer.is_global_zero:
            seconds = time.perf_counter() - started
            close(prepared, run, self._report, self._outcome, seconds)

    def _run_trainer(self, arguments: dict[str, Any]) -> None:
        """Runs the trainer; if it refuses to start, this is a usage error and leaves no run."""
        trainer, command = self.prepared.trainer, self.prepared.command
        skip_idle_hooks(trainer, self.prepared.model)
        try:
            with other_processes(trainer):
                getattr(trainer, command)(**arguments)
        except LostProcessError:
            if self.prepared.is_fit and not self._monitor.started:
                self._abandon()
            raise
        except Exception as error:
            of_lightning = isinstance(error, MisconfigurationException)
            has_begun = self._monitor.started if self.prepared.is_fit else not of_lightning
            of_user = is_user_error(error) or bool(place_in_own_code(error))
            if not of_user or isinstance(error, RunError) or has_begun:
                raise
            self._abandon()
            raise UsageError(str(error)) from error

    def _abandon(self) -> None:
        if self.run is not None:
            self.run.abandon()

    def _ended_by(self, error: BaseException) -> None:
        """Marks the run, and prints how to resume it."""
        if self._status is not None:
            self._status.ended_by(error, self.prepared.trainer)
        if isinstance(error, Stopped):
            say_how_to_go_on(self.prepared, self.run, f"stopped by {error}")
            if error.requeues and self.prepared.trainer.is_global_zero and (said := requeue()):
                _log.info(said)
        elif isinstance(error, RunError | OSError) and self._monitor.started:
            say_how_to_go_on(self.prepared, self.run, "stopped")

    # ---- its end ----------------------------------------------------------------------------

    def _test_after_fit(self, record: RunRecord) -> None:
        assert self._report is not None
        trainer = self.prepared.trainer
        has_best = (record.path / f"{BEST}.ckpt").is_file()
        checkpoint = find_checkpoint(record.path, chosen_checkpoint(record) if has_best else LAST)
        content = load_checkpoint(checkpoint)
        self._step_of_weights = step = int(content["global_step"])
        sha256 = state_sha256(content["state_dict"])
        self._report.evaluation = Evaluation("test", checkpoint, sha256, step)
        # After a fit, Lightning's weight averaging would restore the weights before averaging.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, WeightAveraging)]
        with other_processes(trainer):
            trainer.test(
                self.prepared.model,
                datamodule=self.prepared.data,
                ckpt_path=str(checkpoint),
                verbose=False,
                weights_only=True,
            )
