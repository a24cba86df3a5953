"""The output of a command at its start and its end, and the final state of the run."""

import contextlib
import logging
import shlex
import sys

from experiments.analysis import plots
from experiments.checkpoints.evaluations import confirmed, set_aside, set_aside_others, weights_of
from experiments.monitoring.callbacks import EvaluationReport
from experiments.monitoring.file_loggers import FileLogger
from experiments.monitoring.loggers import run_loggers
from experiments.monitoring.summary import program, show, summary_table
from experiments.records.record import Status
from experiments.session.checks import is_of_project, note_without_validation
from experiments.session.opening import OpenRun
from experiments.session.preparation import Prepared
from lightning_modules import Classifier

_log = logging.getLogger(__name__)


def announce(prepared: Prepared, run: OpenRun | None) -> None:
    """Prints the command, and a note if a fit will have no best checkpoint."""
    trainer, model = prepared.trainer, prepared.model
    if run is not None and trainer.is_global_zero:
        parameters = sum(p.numel() for p in model.parameters())
        line = (
            f"{prepared.command} {run.record.name}: {type(model).__name__}, {parameters:,} "
            f"parameters, on {trainer.strategy.root_device} in {trainer.precision}, "
            f"seed {int(prepared.config.seed_everything)}"
        )
        with contextlib.suppress(OSError):  # nobody may be listening
            print(line, file=sys.stderr)
    if prepared.is_fit:
        note_without_validation(trainer, prepared.data)


def say_how_to_go_on(
    prepared: Prepared, run: OpenRun | None, what: str, more_flags: str = ""
) -> None:
    """Prints that a command stopped, and for a fit the command that resumes it."""
    if run is None or not prepared.is_fit:
        _log.info(what)
        return
    places = {"--runs_dir": run.record.path.parent, "--name": run.record.name}
    if prepared.config.runs_dir == "runs":
        del places["--runs_dir"]
    flags = shlex.join(str(word) for place in places.items() for word in place)
    _log.info(
        f"{what} after step {prepared.trainer.global_step:,}; resume with: "
        f"{program()} fit {flags} --resume{more_flags}"
    )


def _training_loss(model: Classifier) -> str:
    """What the training loss is, if it is not the cross-entropy of an evaluation."""
    if not is_of_project(type(model).training_step):
        return f"that of {type(model).__name__}.training_step"
    smoothing = model.label_smoothing
    return f"cross-entropy (nats),\nlabel smoothing {smoothing:g}" if smoothing else ""


def close(
    prepared: Prepared,
    run: OpenRun,
    report: EvaluationReport | None,
    outcome: Status,
    seconds: float,
) -> None:
    """Writes the end of a command into the run's record and W&B, and prints its summary.

    Args:
        prepared: the command.
        run: the run of the command.
        report: holds the evaluations.
        outcome: the status of the run, if the run ends with the command.
        seconds: how long the command's main part took.
    """
    record = run.record
    if run.evaluation is not None and report is not None:
        _save_evaluation(run, report)
    if prepared.command != "predict":
        title = f"Loss and accuracy of {record.name}"
        loss = _training_loss(prepared.model)
        plots.curves(record.metrics(), record.path / "curves.png", title, loss)
    if prepared.is_fit:
        record.fields["weights"] = weights_of(record.path)
        record.save()  # reads the evaluations of other processes
        set_aside_others(record)
    if run.changes_status:
        record.finish(outcome)
    best = {k: v for k, v in record.summary.items() if k.startswith(("best/", "train/"))}
    loggers = run_loggers(prepared.trainer)
    for logger in loggers:
        logger.summarize(best)
        logger.close(exit_code=0)
    logs = [record.path / one.folder for one in loggers if isinstance(one, FileLogger)]
    show(summary_table(record, prepared.command, seconds, run.evaluation, logs))


def _save_evaluation(run: OpenRun, report: EvaluationReport) -> None:
    """Saves an evaluation; separately, if a fit replaced the weights in the meantime."""
    opened, measured, record = run.evaluation, report.evaluation, run.record
    assert opened is not None and measured is not None
    run.evaluation = found = confirmed(record, measured)
    if found is not measured:
        set_aside(record, measured.key(record))
    if opened.belongs_to_run and not found.belongs_to_run:
        _log.info(f"a fit of {record.name} has replaced these weights: kept separately")
    record.save()
    if found.belongs_to_run:
        found.log(record)
