"""One command on one run: opened before anything trains, recorded, summarised at the end."""

import contextlib
import itertools
import logging
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.utilities.model_summary.model_summary import ModelSummary
from torch.distributed import DistError

from datamodules import CIFAR10DataModule
from experiments import plots
from experiments.callbacks import (
    EvaluationReport,
    PredictionWriter,
    RunStatus,
    wandb_logger,
)
from experiments.checkpoints import (
    ABANDONED,
    BEST,
    LAST,
    TrainingSettings,
    check_model,
    check_training,
    checkpoint_sha256,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    state_sha256,
    training_settings,
    weights_sha256,
)
from experiments.checks import (
    check_averaging,
    check_devices,
    check_fit,
    check_progress,
    check_space,
    check_validation,
    note_without_validation,
    read_back,
    take_precision,
    written_config,
)
from experiments.cluster import requeue
from experiments.errors import RunError, UsageError, is_of_user
from experiments.evaluations import (
    Evaluation,
    Stage,
    chosen_checkpoint,
    confirmed,
    differences,
    in_run,
    limit_of,
    set_aside,
    set_aside_others,
    weights_of,
)
from experiments.files import file_identity, is_in_folder, remove_folder, writing
from experiments.lightning_seam import leave_signals_to_us
from experiments.loggers import RecordLogger
from experiments.messages import one_line
from experiments.outcome import is_out_of_time, note_outcome
from experiments.processes import PARENT_VARIABLE
from experiments.progress import TrainMonitor
from experiments.record import CONFIG, RECORD, RunRecord, Status, run_folder
from experiments.resuming import (
    BestAnew,
    RunLock,
    changes_between,
    check_room,
    choose_run,
    config_before,
    go_back_to,
    is_best_anew,
    is_finished,
    limits_changed,
    make_room,
    note_changes,
)
from experiments.runs import flat
from experiments.saving import (
    AtomicCheckpointIO,
    LastCheckpoint,
    SettledProgress,
    entries_of,
    is_averaged,
)
from experiments.slim import skip_idle_hooks
from experiments.stopping import (
    StopBetweenBatches,
    Stopped,
    StopSignals,
    order_of,
    take_over_max_time,
)
from experiments.summary import program, show, summary_table
from experiments.trust import remember
from lightning_modules import Classifier

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from experiments.lightning_seam import CommandLine

# Not of the run: a later command that takes the run's configuration must not take these.
_OF_ONE_COMMAND = {
    "ckpt_path": None,
    "name": None,
    "overwrite": False,
    "resume": False,
    "trust_run": False,
}
_IS_OF_PROCESSES = re.compile("gloo|NCCL|EADDRINUSE|TCPStore|timed out", re.IGNORECASE)
_RUN_VARIABLE = "CIFAR10_LIGHTNING_RUN"  # tells the other processes of a run its name


class RunSession:
    """One command (fit, validate, test or predict) on one run.

    Everything that can be wrong with the input is found by `open`, before the run has a folder.

    Args:
        cli: the parsed command line with its data, model and trainer.
        subcommand: the command.
        experiment: what runs of it are called.
        checkpoint: the weights to start from or to evaluate, if any.

    Attributes:
        record: the run's record; ``None`` for Lightning's ``fast_dev_run``, which keeps nothing.
    """

    def __init__(
        self,
        cli: "CommandLine",
        subcommand: str,
        experiment: str,
        checkpoint: Path | None,
    ) -> None:
        self.subcommand = subcommand
        self.experiment = experiment
        self.checkpoint = checkpoint
        self.record: RunRecord | None = None
        self.config = cli.config[subcommand]
        self.trainer: Trainer = cli.trainer
        self.model: Classifier = cli.model
        self.data: CIFAR10DataModule = cli.datamodule
        self.monitor = TrainMonitor()
        self.steps_of_checkpoint = 0
        self.entries_of_checkpoint: int | None = None
        self.steps_of_weights: int | None = None
        self.changes_status = True
        self.is_over = False
        self.command: str = getattr(cli, "command_line", "")
        self.evaluation: Evaluation | None = None
        self._report: EvaluationReport | None = None
        self._status: RunStatus | None = None
        self._outcome: Status = "finished"
        self._lock: RunLock | None = None
        self._owned: Path | None = None  # a folder in which there is nothing of before
        self._best_anew = BestAnew()
        self._weights_sha256 = ""
        self._file_of_weights: tuple[int, ...] = ()
        self._signals = StopSignals()

    # ---- before -------------------------------------------------------------------------------

    @classmethod
    def open(cls, cli: "CommandLine", subcommand: str, experiment: str) -> "RunSession":
        """Checks data and checkpoint, then opens the run's folder, record and W&B run.

        Raises:
            DatasetError: if the data is missing or corrupted.
            RunError: if the run or the checkpoint can't be used as asked.
            ValueError: if data, model and checkpoint do not fit together.
        """
        config = cli.config[subcommand]
        if subcommand == "fit" and config.resume:
            checkpoint = _checkpoint_to_resume(config, experiment)
        else:
            checkpoint = _checkpoint(config, subcommand)
        session = cls(cli, subcommand, experiment, checkpoint)
        leave_signals_to_us(session.trainer)
        take_over_max_time(session.trainer)
        check_devices(session.trainer)
        take_precision(session.trainer, session.model)
        session.model.check_trainer(session.trainer)
        if subcommand == "fit":
            check_fit(session.trainer, session.config.test_after_fit)
            session.model.prepare_fit(goes_on=checkpoint is not None)
            if config.save_every_min <= 0:
                raise ValueError(f"save_every_min must be positive, got {config.save_every_min}")
        settings = training_settings(session.model)  # a bad learning rate is an error here
        if subcommand == "predict" and session.data.predict_dir is not None:
            session.data.images_to_predict  # noqa: B018 - an unreadable one is an error here
        else:
            session.data.prepare_data()
            session.data.setup()
        _keep_no_best_without_validation(session.trainer, session.data)
        if subcommand == "fit":
            check_validation(session.trainer, session.data, session.model)
            check_averaging(session.trainer, session.model, session.data)
        if checkpoint is not None:
            session._file_of_weights = file_identity(checkpoint)
            content = load_checkpoint(checkpoint)
            check_model(checkpoint, content, session.model)
            session._weights_sha256 = state_sha256(content["state_dict"])
            session.steps_of_checkpoint = int(content["global_step"])
            session.entries_of_checkpoint = entries_of(content)
            if subcommand == "fit":
                check_training(checkpoint, content, settings)
            else:
                session.steps_of_weights = session.steps_of_checkpoint
            if (name := type(session.data).__qualname__) in content:
                session.data.load_state_dict(content[name])
            if subcommand == "fit" and not session.config.resume:
                check_progress(checkpoint, content, session.trainer, session.data)
        session._check_classes()
        if subcommand == "fit":
            session.trainer.callbacks.append(TrainingSettings(settings))  # type: ignore[attr-defined]
        if not session.trainer.fast_dev_run:  # type: ignore[attr-defined]
            session._signals.take("the start")  # from here on there is a record to be marked
            try:
                session._open_record(cli.command_parser(subcommand))
            except BaseException:
                session._abandon()
                session._signals.give_back()
                raise
        return session

    def _check_classes(self) -> None:
        ours, theirs = int(self.model.hparams["num_classes"]), len(self.data.label_names)
        if ours != theirs:
            raise ValueError(f"model.num_classes is {ours}, but the data has {theirs} classes")

    def _open_record(self, parser: Any) -> None:
        kept = self.config.clone()
        for key, value in _OF_ONE_COMMAND.items():
            kept[key] = value
        dumped = written_config(parser, kept)
        resolved = read_back(parser, dumped)
        facts = self._facts(resolved)
        path = self._run_folder()
        if not self.trainer.is_global_zero:  # the first process writes the record
            self._attach(RunRecord(path, {"summary": {}}), resolved)
            return
        if self.trainer.world_size > 1 and not self._is_started_from_outside:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
        open_it = self._open_fit if self.subcommand == "fit" else self._open_evaluation
        record = open_it(path, dumped, resolved, facts)
        if self.subcommand == "fit" or self.changes_status or self.config.trust_run:
            remember(path / CONFIG)
        if not self.is_over:
            changed = [again for again in record.fields.get("resumed", []) if again.get("changes")]
            run = {**facts, "resumed": changed} if changed else facts
            self._attach(record, {**resolved, "run": run})

    def _open_fit(
        self, path: Path, dumped: str, resolved: dict[str, Any], facts: dict[str, Any]
    ) -> RunRecord:
        # Weights of another run only start a new one: they must not overwrite the run named.
        inside = self._is_inside(path)
        resuming = inside or self._begins_again(path)
        check_space(path, self.model, resuming)
        if not resuming:
            check_room(path, self.config.overwrite)
        self._take_lock(path)
        self._check_checkpoint_is_the_same(path)
        if self.checkpoint is not None and not (inside and (path / RECORD).is_file()):
            facts["started_from"] = {
                "checkpoint": str(self.checkpoint),
                "step": self.steps_of_checkpoint,
                "weights_sha256": self._weights_sha256,
            }
        if resuming and (path / RECORD).is_file():
            return self._go_on(RunRecord.open(path), dumped, resolved, facts)
        if not resuming:
            make_room(path, self.config.overwrite)
            self._owned = path
        return RunRecord.create(path, dumped, facts, self.command)

    def _is_inside(self, run: Path) -> bool:
        """Whether the checkpoint is one of this run."""
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.stem == ABANDONED:  # that way begins another run
            return False
        return is_in_folder(checkpoint, run)

    def _go_on(
        self, record: RunRecord, dumped: str, resolved: dict[str, Any], facts: dict[str, Any]
    ) -> RunRecord:
        self._check_data(record, facts)
        before, asked = config_before(record), flat(resolved)
        if self.config.resume:
            over = is_finished(record, before, asked) or is_out_of_time(record, before, asked)
            self.is_over, self.record = over, record
            if over:
                return record
        changes = changes_between(before, asked)
        note_changes(changes)
        start = self.steps_of_checkpoint
        anew = is_best_anew(record.path, start, changes, limits_changed(before, asked))
        entries = self.entries_of_checkpoint if self._is_inside(record.path) else 0
        record.resume(dumped, facts, start, self.command, changes, anew, entries)
        go_back_to(self.checkpoint, record.path, anew)
        if anew:
            self._best_anew.is_anew = True
        return record

    def _open_evaluation(
        self, path: Path, dumped: str, resolved: dict[str, Any], facts: dict[str, Any]
    ) -> RunRecord:
        stage = cast("Stage", self.subcommand)
        if getattr(self.trainer, limit_of(stage)) == 0:
            raise ValueError(f"trainer.{limit_of(stage)} must be positive, got 0")
        is_new = self.changes_status = not (path / RECORD).is_file()
        if is_new:
            self._take_lock(path)
            record = RunRecord.create(path, dumped, facts, self.command)
        else:
            record = RunRecord.open(path)
            self._check_data(record, facts)
        assert self.checkpoint is not None
        ours, runs = flat(resolved), {} if is_new else config_before(record)
        differs: dict[str, Any] = {}
        if not is_new:
            limit = limit_of(stage)
            ours = {**ours, f"trainer.{limit}": getattr(self.trainer, limit)}
            differs = differences(stage, ours, runs, self._batches())
        folder = Path(self.data.predict_dir).resolve() if self.data.predict_dir else None
        self.evaluation = Evaluation(
            stage,
            self.checkpoint,
            self._weights_sha256,
            self.steps_of_checkpoint,
            differs,
            folder if stage == "predict" else None,
            () if is_new else self._file_of_weights,
        )
        if not is_new:
            self.evaluation = in_run(record, self.evaluation)
        return record

    def _batches(self) -> int:
        """How many batches there are to evaluate, without a limit."""
        data = self.data
        loader = {
            "validate": data.val_dataloader,
            "test": data.test_dataloader,
            "predict": data.predict_dataloader,
        }[self.subcommand]
        return len(loader())

    def _take_lock(self, path: Path) -> None:
        was_there = path.exists()
        self._lock = RunLock(path)
        self._lock.acquire()
        if not was_there:
            self._owned = path

    def _check_checkpoint_is_the_same(self, path: Path) -> None:
        """Refuses to go on from what another process has replaced before this one had the lock."""
        if self.checkpoint is None:
            same = not self._begins_again(path) or newest_checkpoint(path) is None
        else:
            same = file_identity(self.checkpoint) == self._file_of_weights
        if not same:
            raise RunError(f"another process has just trained run {path.name}: try again")

    def _begins_again(self, path: Path) -> bool:
        """Whether a run is to go on that was left before its first checkpoint."""
        return bool(self.config.resume) and (path / RECORD).is_file()

    def _abandon(self) -> None:
        """Removes the folder of a run in which nothing ran, its name stays free; lets it go."""
        if self._owned is not None:
            with contextlib.suppress(OSError):
                remove_folder(self._owned)
        if self._lock is not None:
            self._lock.release()

    def _announce(self, record: RunRecord) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        device = self.trainer.strategy.root_device
        print(
            f"{self.subcommand} {record.name}: {type(self.model).__name__}, {parameters:,} "
            f"parameters, on {device} in {self.trainer.precision}, "
            f"seed {int(self.config.seed_everything)}",
            file=sys.stderr,
        )

    def _run_folder(self) -> Path:
        root = Path(self.config.runs_dir)
        name: str | None = self.config.name
        beside = self.checkpoint.parent if self.checkpoint else None
        if name is not None:
            return run_folder(root, name)
        if beside is not None and (beside / RECORD).is_file():
            return beside
        several = self._is_started_from_outside and self.trainer.world_size > 1
        if several and _RUN_VARIABLE not in os.environ:  # nor by Lightning
            raise RunError("several processes must share one run: name it with --name")
        name = os.environ.get(_RUN_VARIABLE) if self.trainer.global_rank else None
        os.environ[_RUN_VARIABLE] = name = name or self._reserve_name(root)
        return root / name

    @property
    def _is_started_from_outside(self) -> bool:
        """Whether the processes of this run are started by another program, such as torchrun."""
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        return environment is not None and environment.creates_processes_externally

    def _reserve_name(self, root: Path) -> str:
        """Names the run after what it is and makes its folder: no other process gets that name."""
        parts = [self.experiment]
        if self.data.resolved_source == "synthetic":
            parts.append("synthetic")
        parts += [f"s{self.config.seed_everything}", time.strftime("%Y%m%d-%H%M%S")]
        stem = "-".join(parts)
        for count in itertools.count(1):
            name = f"{stem}-{count}" if count > 1 else stem
            try:
                with writing(root, "name another with --runs_dir, or mend its permissions"):
                    root.mkdir(parents=True, exist_ok=True)
                    (root / name).mkdir()
            except RunError as error:
                if isinstance(error.__cause__, FileExistsError) and (root / name).is_dir():
                    continue
                raise
            self._owned = root / name
            return name
        raise AssertionError("unreachable")

    def _facts(self, resolved: dict[str, Any]) -> dict[str, Any]:
        optimizer = resolved["model"].get("init_args", {}).get("optimizer") or {}
        facts: dict[str, Any] = {
            "job_type": self.subcommand,
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "optimizer": str(optimizer.get("class_path", "")).rpartition(".")[2],
            "lr": optimizer.get("init_args", {}).get("lr"),
            "seed": int(self.config.seed_everything),  # W&B would make a string of a `Seed`
            "data": self.data.resolved_source,
        }
        if self.data.is_set_up:
            sets = {"train": self.data.train_set, "val": self.data.val_set}
            sets["test"] = self.data.test_set
            facts["images"] = {name: len(images.labels) for name, images in sets.items()}
        return facts

    def _check_data(self, record: RunRecord, facts: dict[str, Any]) -> None:
        theirs, ours = record.fields.get("data"), facts["data"]
        if self.subcommand != "predict" and theirs != ours:
            raise RunError(f"run {record.name} is on {theirs} data, but {ours} data is asked for")

    def _attach(self, record: RunRecord, config: dict[str, Any]) -> None:
        """Gives the trainer its loggers, callbacks and the places they write to."""
        trainer, self.record = self.trainer, record
        self._status = RunStatus(record, self.changes_status)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(record.path.resolve())
        self._report = EvaluationReport(record, self._step, self.evaluation)
        added: list[Callback] = [self.monitor, self._report]
        added += [self._status, StopBetweenBatches(self._signals)]
        if self.subcommand == "fit":
            added += [SettledProgress(), self._best_anew]
        if self.subcommand == "predict" and self.evaluation is not None:
            added.append(PredictionWriter(record, self._report))
        if trainer.checkpoint_callbacks:
            added.append(LastCheckpoint(record, 60 * self.config.save_every_min))
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(record.path)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks += added
        callbacks.sort(key=order_of)
        logger = RecordLogger(record, self._step, is_silent=self.evaluation is not None)
        trainer.loggers = [logger, *trainer.loggers]
        if self.evaluation is not None and not self.evaluation.is_of_run:
            trainer.loggers = [logger]  # its figures are kept aside
        if trainer.is_global_zero and (wandb := wandb_logger(trainer)):
            kept = {key: value for key, value in config.items() if key not in _OF_ONE_COMMAND}
            wandb.start(record, kept, self._step)
            wandb.summarize({"model_summary": str(ModelSummary(self.model))})
            record.save()  # with W&B's name of the run

    def _step(self) -> int:
        """Optimiser steps behind the weights that are trained or evaluated."""
        if self.steps_of_weights is not None:
            return self.steps_of_weights
        return self.trainer.global_step

    # ---- the command --------------------------------------------------------------------------

    def run(self, arguments: dict[str, Any]) -> None:
        """Runs the command and ends with a summary.

        Args:
            arguments: keyword arguments for the trainer's method.

        Raises:
            Stopped: if a signal ended it; how to go on has been said.
        """
        if self.is_over:
            self._signals.give_back()
            if self._lock is not None:
                self._lock.release()
            return
        try:
            with warnings.catch_warnings(), self._signals:
                _silence_expected_warnings()
                self._signals.check()
                if self.record is not None and self.trainer.is_global_zero:
                    self._announce(self.record)
                if self.subcommand == "fit":
                    note_without_validation(self.trainer, self.data)
                self._run(arguments)
        except BaseException as error:
            if self._status is not None:
                self._status.ended_by(error, self.trainer)
            if isinstance(error, Stopped):
                self._say_how_to_go_on(f"stopped by {error}")
                if error.requeues and self.trainer.is_global_zero and (outcome := requeue()):
                    _log.info(outcome)
            elif isinstance(error, RunError | OSError) and self.monitor.started:
                self._say_how_to_go_on("stopped")
            raise
        finally:
            if self._lock is not None:
                self._lock.release()

    def _run(self, arguments: dict[str, Any]) -> None:
        started = time.perf_counter()
        arguments["ckpt_path"] = str(self.checkpoint) if self.checkpoint else None
        arguments["weights_only"] = True  # a checkpoint must not be able to run code
        if self.subcommand in {"validate", "test"}:
            arguments["verbose"] = False
        if self.subcommand == "predict":
            arguments["return_predictions"] = False
        self._run_trainer(arguments)
        if self.subcommand == "fit" and self.record is not None:
            self._note_fit()
            self._outcome = note_outcome(self.trainer, self.record)
            if self._outcome == "interrupted":
                reason = self.record.fields["stopped_by"]
                self._say_how_to_go_on(f"stopped: {reason}", " --trainer.max_time null")
            if self.config.test_after_fit:
                self._signals.waits_for = ""
                self._signals.check()
                self._test_after_fit()
        self._signals.check()
        self._signals.waits_for = "the summary"  # all is done but for a second or so
        if self.record is not None and self.trainer.is_global_zero:
            self._close(time.perf_counter() - started)

    def _say_how_to_go_on(self, what: str, more: str = "") -> None:
        if self.record is None or self.subcommand != "fit":
            _log.info(what)
            return
        places = {"--runs_dir": self.record.path.parent, "--name": self.record.name}
        if self.config.runs_dir == "runs":
            del places["--runs_dir"]
        flags = shlex.join(str(word) for place in places.items() for word in place)
        _log.info(
            f"{what} after step {self.trainer.global_step:,}; go on with: "
            f"{program()} fit {flags} --resume{more}"
        )

    def _run_trainer(self, arguments: dict[str, Any]) -> None:
        """Runs the trainer; what it refuses to start is the user's to know, and leaves no run."""
        skip_idle_hooks(self.trainer, self.model)
        try:
            with self._other_processes():
                getattr(self.trainer, self.subcommand)(**arguments)
        except Exception as error:
            of_lightning = isinstance(error, MisconfigurationException)
            has_begun = self.monitor.started if self.subcommand == "fit" else not of_lightning
            if not is_of_user(error) or isinstance(error, RunError) or has_begun:
                raise
            if self.record is not None:
                self._abandon()
            raise UsageError(one_line(str(error))) from error

    @contextlib.contextmanager
    def _other_processes(self) -> Iterator[None]:
        """Says in a line that another process is gone, instead of what gloo and NCCL say."""
        try:
            yield
        except RuntimeError as error:
            of_processes = isinstance(error, DistError) or _IS_OF_PROCESSES.search(str(error))
            if self.trainer.world_size == 1 or not of_processes or isinstance(error, RunError):
                raise
            if self.subcommand == "fit" and not self.monitor.started and self.record is not None:
                self._abandon()
            raise RunError(_of_processes(error)) from error

    def _note_fit(self) -> None:
        assert self.record is not None
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        averaging = (c for c in callbacks if isinstance(c, StochasticWeightAveraging))
        last = self.record.path / f"{LAST}.ckpt"
        if any(averaging) and last.is_file() and is_averaged(load_checkpoint(last)):
            self.record.fields["chosen"] = LAST
            _log.info(f"{LAST}.ckpt has the averaged weights: it is what tests take")
        self.record.summary["train/steps"] = self.trainer.global_step
        self.record.summary.update(self.monitor.figures)
        self.record.summary["train/seconds"] = round(self.monitor.seconds, 3)
        self.record.summary["train/weights_sha256"] = weights_sha256(self.model)
        if self.monitor.seconds:
            rate = self.monitor.images / self.monitor.seconds
            self.record.summary["train/images_per_s"] = round(rate, 1)
        if self.monitor.peak_gpu_bytes is not None:
            self.record.summary["train/peak_gpu_mib"] = round(self.monitor.peak_gpu_bytes / 2**20)

    def _test_after_fit(self) -> None:
        assert self.record is not None and self._report is not None
        has_best = (self.record.path / f"{BEST}.ckpt").is_file()
        which = chosen_checkpoint(self.record) if has_best else LAST
        checkpoint = find_checkpoint(self.record.path, which)
        content = load_checkpoint(checkpoint)
        self.steps_of_weights = int(content["global_step"])
        self._report.evaluation = Evaluation(
            "test", checkpoint, state_sha256(content["state_dict"]), self.steps_of_weights
        )
        # After a fit, Lightning's weight averaging would put back the weights that aren't averaged.
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, WeightAveraging)]
        with self._other_processes():
            self.trainer.test(
                self.model,
                datamodule=self.data,
                ckpt_path=str(checkpoint),
                verbose=False,
                weights_only=True,
            )

    def _close(self, seconds: float) -> None:
        record = self.record
        assert record is not None
        if self.evaluation is not None:
            self._save_evaluation(record)
        if self.subcommand != "predict":
            plots.curves(record.metrics(), record.path / "curves.png", title=record.name)
        if self.subcommand == "fit":
            record.fields["weights"] = weights_of(record.path)
            record.save()  # takes in what has been evaluated meanwhile
            set_aside_others(record)
        if self.changes_status:
            record.finish(self._outcome)
        if logger := wandb_logger(self.trainer):
            best = {k: v for k, v in record.summary.items() if k.startswith(("best/", "train/"))}
            logger.summarize(best)
            logger.close(exit_code=0)
        show(summary_table(record, self.subcommand, seconds, self.evaluation))

    def _save_evaluation(self, record: RunRecord) -> None:
        """Saves what was evaluated; aside, if a fit has replaced the weights meanwhile."""
        assert self.evaluation and self._report is not None and self._report.evaluation
        opened, evaluation = self.evaluation, self._report.evaluation
        self.evaluation = confirmed(record, evaluation)
        if self.evaluation is not evaluation:
            set_aside(record, evaluation.key(record))
        if opened.is_of_run and not self.evaluation.is_of_run:
            _log.info(f"a fit of {record.name} has replaced these weights meanwhile: kept aside")
        record.save()
        if self.evaluation.is_of_run:
            self.evaluation.log(record)


def _of_processes(error: Exception) -> str:
    if "EADDRINUSE" in str(error):
        port = os.environ.get("MASTER_PORT")
        return f"port {port} is taken: leave MASTER_PORT out, or set it to a free port"
    # Of gloo's message: without the place in its source, and what follows the first sentence.
    reason = re.sub(r"\[/[^\]]*\]:? ?|\. .*", "", str(error).splitlines()[0])
    if "connectFullMesh" in reason:
        return (
            "the processes cannot reach each other: on several machines, set GLOO_SOCKET_IFNAME to "
            f"the network interface between them ({reason})"
        )
    return f"another process of the run ended, or cannot be reached: {reason}"


def _checkpoint(config: Any, subcommand: str) -> Path | None:
    """The checkpoint that ``--ckpt_path`` and ``--name`` mean; evaluations must have one."""
    asked = config.ckpt_path
    if asked is None and subcommand == "fit":
        return None
    if config.overwrite:
        raise RunError("--overwrite replaces a run, --ckpt_path starts from one: leave one out")
    if asked is None and config.name is None:
        raise RunError(
            f"{subcommand} of which weights? Name a run with --name (its best checkpoint is "
            "taken) or a file with --ckpt_path; random weights are never evaluated"
        )
    if asked not in {None, BEST, LAST}:
        return Path(asked)
    if config.name is None:
        raise RunError(f"--ckpt_path {asked} of which run? Name it with --name")
    record = RunRecord.open(run_folder(Path(config.runs_dir), config.name))
    return find_checkpoint(record.path, asked or chosen_checkpoint(record))


def _checkpoint_to_resume(config: Any, experiment: str) -> Path | None:
    """The newest checkpoint of the run that ``--resume`` means, or what it is to start from."""
    if config.overwrite:
        raise RunError("--overwrite replaces a run, --resume goes on with it: leave one out")
    root = Path(config.runs_dir)
    config.name = config.name or choose_run(root, experiment, int(config.seed_everything))
    if config.name is not None:
        run = run_folder(root, config.name)
        if (run / RECORD).is_file():
            return newest_checkpoint(run) or _start_of(RunRecord.open(run), config.ckpt_path)
    return Path(config.ckpt_path) if config.ckpt_path else None


def _start_of(record: RunRecord, asked: str | None) -> Path | None:
    """The checkpoint that a run began with, which was killed before its first own one."""
    began = record.fields.get("started_from")
    if asked or began is None:
        return Path(asked) if asked else None
    path = Path(str(began.get("checkpoint")))
    if not path.is_file() or checkpoint_sha256(path) != began.get("weights_sha256"):
        raise RunError(
            f"run {record.name} began with the weights of {path}, which are not there any more: "
            "name where they are with --ckpt_path, or begin anew with --overwrite true"
        )
    return path


def _keep_no_best_without_validation(trainer: Trainer, data: CIFAR10DataModule) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and not data.val_size:
            callback.monitor, callback.save_top_k = None, 0


# Tips; and devices and seed, which the run's first line and its record name.
_ADVERTISED = ("💡", "TPU available", "GPU available", "HPU available", "Seed set to")


def quiet_lightning() -> None:
    """Keeps Lightning's advertisements, and what this project says itself, out of the output."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(
            lambda record: not record.getMessage().startswith(_ADVERTISED)
        )


def _silence_expected_warnings() -> None:
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # frozen layers
        "Checkpoint directory .* exists and is not empty",  # the run's folder holds its record
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
        "The dirpath has changed from",  # a new run that starts from another's checkpoint
        "Total length of `list` across ranks is zero",  # data.val_size 0
        "It is recommended to use .*sync_dist=True",  # torchmetrics has synchronised them
        "The number of training batches .* is smaller than the logging interval",
        "You requested to overfit but enabled",  # `CIFAR10DataModule` shuffles no more then
    ):
        warnings.filterwarnings("ignore", message)
