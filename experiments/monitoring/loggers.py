"""Loggers for metrics: the run's record and W&B."""

import logging
import os
import shlex
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning import Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from experiments.errors import RunError
from experiments.identity import run_labels
from experiments.lightning_seam import OpenWandbLogger
from experiments.monitoring.summary import python, upload_command
from experiments.records.curves import direction
from experiments.records.record import RunRecord

_log = logging.getLogger(__name__)

_START_S = _FINISH_S = 30  # limit of a wait for W&B's server

WandbMode = Literal["offline", "online", "disabled"]

PROJECT = "cifar10-lightning"
_CLASS_PATHS = ("experiments.WandbLogger", "experiments.monitoring.loggers.WandbLogger")
# The environment variable of W&B for each argument.
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
}
# Variables that are not used, so that the run's folder and its W&B run have the same name.
_IGNORED_VARIABLES = {"WANDB_NAME": "--name", "WANDB_DIR": "--runs_dir"}


class RunLogger:
    """What a run gives its loggers besides metrics; a logger leaves out what it can't hold."""

    def start(self, record: RunRecord, config: Mapping[str, Any], step: Callable[[], int]) -> None:
        """Opens the log of a record, or continues it; only in the first process.

        Args:
            record: the run.
            config: the resolved configuration.
            step: as for `RecordLogger`, so that all log the same steps.
        """

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Logs a PNG.

        Args:
            key: such as ``test/confusion_matrix``.
            path: the file.
            step: optimiser steps of the weights that it shows.
        """

    def log_per_class(self, stage: str, accuracies: Mapping[str, float], step: int) -> None:
        """Logs the accuracy of each class.

        Args:
            stage: ``val``, ``validate`` or ``test``.
            accuracies: by class.
            step: optimiser steps of the evaluated weights.
        """

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Logs final values: numbers or texts by name."""

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """Ends the log.

        Args:
            exit_code: 0 for a command that finished, anything else for one that failed.
            preempted: whether a system stopped the command, which will be resumed.
        """


class RecordLogger(Logger):
    """Writes metrics into a run's record.

    Args:
        record: the run's record.
        step: returns the optimiser steps of the weights (Lightning's own count starts at 0, also
            in a test of a checkpoint).
        is_silent: writes nothing. An evaluation sets it, because only its end shows whether its
            figures belong to the run (`experiments.checkpoints.evaluations`).
    """

    def __init__(self, record: RunRecord, step: Callable[[], int], is_silent: bool = False) -> None:
        super().__init__()
        self.record = record
        self.is_silent = is_silent
        self._step = step

    @property
    def name(self) -> str:
        """The run's name."""
        return self.record.name

    @property
    def version(self) -> str:
        """Empty: a run has one record."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.record.path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends an entry to the record."""
        if not self.is_silent:
            self.record.log(without_epoch_of_evaluation(metrics), self._step())

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Does nothing: the record holds the whole configuration already."""


class WandbLogger(OpenWandbLogger, RunLogger):
    """Lightning's W&B logger: offline by default, with time limits, and never fatal to training.

    W&B's files are in the run's folder, and the W&B run has the name of the run. Every process that
    works on the run (fit, then test) logs to the same W&B run.

    Missing arguments are taken from the environment, as W&B does: ``WANDB_MODE``,
    ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_RUN_GROUP``, ``WANDB_JOB_TYPE``, ``WANDB_TAGS``
    (with commas) and ``WANDB_NOTES``.

    Args:
        project: the W&B project; default: cifar10-lightning.
        mode: ``offline`` needs no account; ``online`` needs one; ``disabled`` writes nothing.
            Default: offline; online for a run of ``wandb agent``.
        entity: the W&B user or team, for ``online``.
        group: groups runs on the project page; default: the run's name without its seed.
        job_type: kind of run within a group; default: the command that started the run.
        tags: labels for filters, besides model, optimiser, data and seed.
        notes: a description.

    Raises:
        ValueError: for an unknown mode, or for ``online`` without an account.
    """

    def __init__(
        self,
        project: str | None = None,
        mode: WandbMode | None = None,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
    ) -> None:
        in_sweep = "WANDB_SWEEP_ID" in os.environ  # set by ``wandb agent``
        self.mode = mode or os.environ.get("WANDB_MODE") or ("online" if in_sweep else "offline")
        if self.mode not in {"offline", "online", "disabled"}:
            raise ValueError(f"WANDB_MODE must be offline, online or disabled, got {self.mode!r}")
        if self.mode == "online":
            _check_account()
        given = {
            "project": project,
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "tags": tags,
            "notes": notes,
        }
        super().__init__(
            **with_environment(given),
            mode=self.mode,
            # W&B flushes every 15 s and waits 90 s for a server by default.
            settings={
                "x_transaction_log_flush_interval": 1,
                "init_timeout": _START_S,
                "finish_timeout": _FINISH_S,
                "console": "off",
                "silent": True,
            },
        )
        self.init_arguments.pop("anonymous", None)  # Lightning's; W&B warns that it has no effect
        self._broken = False
        self._count_steps: Callable[[], int] | None = None

    @rank_zero_only
    def start(self, record: RunRecord, config: Mapping[str, Any], step: Callable[[], int]) -> None:
        """Opens the W&B run of a record, or continues it.

        Args:
            record: the run; W&B uses its name and folder.
            config: the resolved configuration, logged as keys for filters.
            step: as for `RecordLogger`, so that both log the same steps.

        Raises:
            RunError: if W&B can't start; the message names the remedy.
        """
        self._count_steps = step
        for variable, flag in _IGNORED_VARIABLES.items():
            if self.mode != "disabled" and os.environ.get(variable):
                _log.warning(
                    f"{variable} is not used: W&B's name and folder are the run's, see {flag}"
                )
        self.keep_in(str(record.path))
        arguments = self.init_arguments
        arguments.update(name=record.name, id=record.fields.get("wandb_id"))
        labels = run_labels(record.name, record.fields)
        labels["tags"] += arguments.pop("tags", None) or []
        for key, value in labels.items():
            arguments[key] = arguments.get(key) or value
        os.environ.setdefault("WANDB_DATA_DIR", str(record.path / "wandb"))
        try:
            self._open(config)
        except wandb.errors.CommError as error:
            if self.mode != "online":
                raise _cannot_start(self.mode, error) from error
            self._go_offline(record, config, error)
        except Exception as error:
            raise _cannot_start(self.mode, error) from error
        record.fields["wandb_id"] = self.experiment.id
        for metric in ("val/acc", "val/loss"):
            self.experiment.define_metric(metric, summary=direction(metric))

    def _open(self, config: Mapping[str, Any]) -> None:
        self.experiment.config.update(dict(config), allow_val_change=True)

    def _go_offline(self, record: RunRecord, config: Mapping[str, Any], error: Exception) -> None:
        """Continues offline, in files, so that no training waits for the server."""
        self.mode = "offline"
        self.begin_offline()
        _log.warning(
            f"W&B's server does not answer ({_one_line(error)}): logging offline; upload with: "
            f"{upload_command(record)}"
        )
        try:
            self._open(config)
        except Exception as again:
            raise _cannot_start("offline", again) from again

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics; after an error of W&B, prints one message and logs no more."""
        step = self._count_steps() if self._count_steps else step
        self._try(super().log_metrics, without_epoch_of_evaluation(metrics), step)

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Logs a PNG; never fatal, like `log_metrics`."""
        self._try(self.log_image, key, [str(path)])

    def log_per_class(self, stage: str, accuracies: Mapping[str, float], step: int) -> None:
        """Logs a table and final values; never fatal, like `log_metrics`."""
        rows = [[name, accuracy] for name, accuracy in accuracies.items()]
        self._try(self.log_table, f"{stage}/per_class", ["class", "accuracy"], rows)
        self.summarize({f"{stage}/acc/{name}": value for name, value in accuracies.items()})

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Writes final values into the W&B run's summary; never fatal, like `log_metrics`."""
        self._try(lambda: self.experiment.summary.update(dict(values)))

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """Ends the W&B run, within `_FINISH_S` seconds.

        Args:
            exit_code: marks the run finished (0) or failed (anything else).
            preempted: marks a run as preempted that a system stopped and that will be resumed.
        """
        if not self.is_open:
            return
        warned, self._broken = self._broken, False  # also ends a run that failed before
        started = time.monotonic()
        with warnings.catch_warnings():
            if warned:
                warnings.simplefilter("ignore")
            if preempted:
                self._try(self.experiment.mark_preempting)
            self._try(lambda: self.experiment.finish(exit_code=exit_code))
        late = time.monotonic() - started >= _FINISH_S
        if self.mode == "online" and (warned or self._broken or late):
            _log.warning(
                f"W&B's server may lack the end of this run; upload it with: {self._sync_command}"
            )
        self.forget()

    @property
    def _sync_command(self) -> str:
        folder = Path(self.experiment.dir).parent
        return f"{python()} -m wandb sync --include-online {shlex.quote(str(folder))}"

    def _try(self, action: Callable[..., Any], *args: Any, **kw: Any) -> None:
        if self._broken:
            return
        try:
            action(*args, **kw)
        except Exception as error:
            self._broken = True
            warnings.warn(
                f"W&B stopped logging ({error!r}); training and the run's own record go on",
                stacklevel=3,
            )


def with_environment(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fills missing arguments of a W&B logger from the environment, and the default project.

    Args:
        given: arguments of `WandbLogger`; None for missing ones.
    """
    found = {**given}
    for name, variable in _VARIABLES.items():
        if found.get(name) is None and (value := os.environ.get(variable)):
            words = [word.strip() for word in value.split(",") if word.strip()]
            found[name] = words if name == "tags" else value
    return {**found, "project": found.get("project") or PROJECT}


def keep_environment(logger: Any) -> None:
    """Writes values from the environment into the configuration of W&B's logger, in place.

    The run's own configuration then has them, so a later command uses the same project.

    Args:
        logger: the configuration ``trainer.logger``: one, a list, or none.
    """
    for config in logger if isinstance(logger, list) else [logger]:
        if getattr(config, "class_path", None) in _CLASS_PATHS:
            vars(config.init_args).update(with_environment(vars(config.init_args)))


def without_epoch_of_evaluation(metrics: Mapping[str, float]) -> dict[str, float]:
    """Removes the epoch that Lightning adds to a test: it is not the epoch of the weights."""
    evaluated = any(key.startswith(("test/", "validate/")) for key in metrics)
    return {key: value for key, value in metrics.items() if not (evaluated and key == "epoch")}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _cannot_start(mode: str, error: Exception) -> RunError:
    return RunError(
        f"W&B can't start in {mode} mode: {_one_line(error)}; "
        "run without its server with --trainer.logger.mode offline"
    )


def _check_account() -> None:
    """Refuses online mode without an API key: W&B would ask for the key and wait."""
    try:
        reason = "" if wandb.login(prompt=False, verify=False) else "no API key configured"
    except wandb.Error as error:
        reason = " ".join(str(error).split())
    if reason:
        raise ValueError(
            f"W&B needs an account to log online: {reason}; set WANDB_API_KEY, run wandb login, "
            "or log offline with --trainer.logger.mode offline"
        )


def run_loggers(trainer: Trainer) -> list[RunLogger]:
    """The trainer's loggers that take more than metrics."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
