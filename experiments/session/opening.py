"""Finds or creates the run of a command: its name, lock and record."""

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Trainer

from datamodules.files import CIFAR10
from experiments.checkpoints.evaluations import (
    Evaluation,
    Stage,
    check_drawn,
    differences,
    in_run,
    limit_of,
)
from experiments.checkpoints.loading import ABANDONED, newest_checkpoint
from experiments.errors import RunError
from experiments.identity import changes_between, file_word
from experiments.process.processes import PARENT_VARIABLE
from experiments.records.files import file_identity, is_in_folder, remove_folder, writing
from experiments.records.record import CONFIG, RECORD, RunRecord, run_folder
from experiments.records.runs import flat
from experiments.records.trust import remember
from experiments.session.checks import check_space
from experiments.session.outcome import is_out_of_time
from experiments.session.preparation import Prepared
from experiments.session.resuming import (
    RunLock,
    check_room,
    config_before,
    go_back_to,
    is_best_anew,
    is_finished,
    limits_changed,
    make_room,
    note_changes,
    note_unused,
)

_OWN_INPUTS = ("model_code", "pictures")  # fields of a record, see `own_inputs`
_RUN_VARIABLE = "CIFAR10_LIGHTNING_RUN"  # passes the name of a run to its other processes


class OpenRun:
    """The open run of one command, until `release`.

    Args:
        prepared: the command, checked.

    Attributes:
        record: the record of the run.
        evaluation: the evaluation of the command; None for a fit.
        is_over: whether nothing is left to do.
        is_best_anew: whether only validations from now on count for the best.
        changes_status: whether the end of the command is the end of the run, not only of an
            evaluation.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.evaluation: Evaluation | None = None
        self.is_over = False
        self.is_best_anew = False
        self.changes_status = True
        self._facts = prepared.facts()
        self._lock: RunLock | None = None
        self._owned: Path | None = None  # a folder without earlier files
        try:
            self.record = self._open()
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> RunRecord:
        prepared, trainer = self.prepared, self.prepared.trainer
        path, is_new = _place_of(prepared)
        self._owned = path if is_new else None
        if not trainer.is_global_zero:  # the first process writes the record
            return RunRecord(path, {"summary": {}})
        if trainer.world_size > 1 and not _is_started_from_outside(trainer):
            os.environ[PARENT_VARIABLE] = str(os.getpid())
        record = self._open_fit(path) if prepared.is_fit else self._open_evaluation(path)
        if prepared.is_fit or self.changes_status or prepared.config.trust_run:
            remember(path / CONFIG)
        return record

    def config(self) -> dict[str, Any]:
        """The configuration for W&B, with the fields of the record."""
        changed = [again for again in self.record.fields.get("resumed", []) if again.get("changes")]
        run = {**self._facts, "resumed": changed} if changed else self._facts
        first = self.prepared.trainer.is_global_zero
        return {**self.prepared.resolved, "run": run} if first else self.prepared.resolved

    def abandon(self) -> None:
        """Removes the folder of a run that never started, so that its name stays free."""
        if self._owned is not None:
            with contextlib.suppress(OSError):
                remove_folder(self._owned)
        self.release()

    def release(self) -> None:
        """Lets other processes train the run."""
        if self._lock is not None:
            self._lock.release()

    # ---- a fit ------------------------------------------------------------------------------

    def _open_fit(self, path: Path) -> RunRecord:
        prepared, overwrite = self.prepared, self.prepared.config.overwrite
        # Weights of another run may only start a new run, not overwrite the named run.
        inside = self._is_inside(path)
        resuming = inside or self._begins_again(path)
        check_space(path, prepared.model, resuming)
        if not resuming:
            check_room(path, overwrite)
        self._take_lock(path)
        self._check_weights_are_the_same(path)
        start = prepared.weights or prepared.initial
        if start is not None and not (inside and (path / RECORD).is_file()):
            self._facts["started_from"] = {
                "checkpoint": str(start.path),
                "step": start.step,
                "weights_sha256": start.sha256,
                "weights_only": prepared.initial is not None,
            }
        if resuming and (path / RECORD).is_file():
            return self._go_on(RunRecord.open(path))
        if not resuming:
            make_room(path, overwrite)
            self._owned = path
        return RunRecord.create(path, prepared.written, self._facts, prepared.typed)

    def _go_on(self, record: RunRecord) -> RunRecord:
        prepared, weights = self.prepared, self.prepared.weights
        self._check_data(record)
        before, asked = config_before(record), flat(prepared.resolved)
        if prepared.config.resume:
            self.is_over = is_finished(record, before, asked) or is_out_of_time(
                record, before, asked
            )
            if self.is_over:
                note_unused(changes_between(before, asked))
                return record
        changes = changes_between(before, asked) | self._changed_inputs(record)
        note_changes(changes)
        step = weights.step if weights else 0
        anew = is_best_anew(record.path, step, changes, limits_changed(before, asked))
        entries = weights.entries if weights and self._is_inside(record.path) else 0
        record.resume(prepared.written, self._facts, step, prepared.typed, changes, anew, entries)
        go_back_to(weights.path if weights else None, record.path, anew)
        self.is_best_anew = anew
        return record

    def _is_inside(self, run: Path) -> bool:
        """Whether the checkpoint belongs to this run."""
        weights = self.prepared.weights
        if weights is None or weights.path.stem == ABANDONED:  # this starts another run
            return False
        return is_in_folder(weights.path, run)

    def _begins_again(self, path: Path) -> bool:
        """Whether the command resumes a run that stopped before its first checkpoint."""
        return bool(self.prepared.config.resume) and (path / RECORD).is_file()

    def _take_lock(self, path: Path) -> None:
        was_there = path.exists()
        self._lock = RunLock(path)
        self._lock.acquire()
        if not was_there:
            self._owned = path

    def _check_weights_are_the_same(self, path: Path) -> None:
        """Refuses a checkpoint that another process replaced before this process had the lock."""
        weights = self.prepared.weights
        if weights is None:
            same = not self._begins_again(path) or newest_checkpoint(path) is None
        else:
            same = file_identity(weights.path) == weights.identity
        if not same:
            raise RunError(f"another process has just trained run {path.name}: try again")

    def _check_data(self, record: RunRecord) -> None:
        theirs, ours = record.fields.get("data"), self._facts["data"]
        if self.prepared.command != "predict" and theirs != ours:
            raise RunError(f"run {record.name} is on {theirs} data, but {ours} data is asked for")

    # ---- an evaluation ----------------------------------------------------------------------

    def _open_evaluation(self, path: Path) -> RunRecord:
        prepared, weights = self.prepared, self.prepared.weights
        assert weights is not None
        stage = cast("Stage", prepared.command)
        limit = limit_of(stage)
        if getattr(prepared.trainer, limit) == 0:
            raise ValueError(f"trainer.{limit} must be positive, got 0")
        is_new = self.changes_status = not (path / RECORD).is_file()
        if is_new:
            self._take_lock(path)
            record = RunRecord.create(path, prepared.written, self._facts, prepared.typed)
        else:
            record = RunRecord.open(path)
            self._check_data(record)
        predict_dir = prepared.data.predict_dir
        found = Evaluation(
            stage,
            weights.path,
            weights.sha256,
            weights.step,
            {} if is_new else self._differences(record, stage),
            Path(predict_dir).resolve() if predict_dir and stage == "predict" else None,
            () if is_new else weights.identity,
        )
        self.evaluation = found if is_new else in_run(record, found)
        return record

    def _differences(self, record: RunRecord, stage: Stage) -> dict[str, Any]:
        """The settings of an evaluation that differ from the run's and change its figures."""
        trainer, data, limit = self.prepared.trainer, self.prepared.data, limit_of(stage)
        loader = {
            "validate": data.val_dataloader,
            "test": data.test_dataloader,
            "predict": data.predict_dataloader,
        }[stage]
        ours = {**flat(self.prepared.resolved), f"trainer.{limit}": getattr(trainer, limit)}
        found = differences(stage, ours, config_before(record), len(loader()))
        changed = self._changed_inputs(record)
        if "pictures" in changed and (stage != "predict" or data.predict_dir is None):
            check_drawn(data, "val" if stage == "validate" else "test")
        return found | changed

    def _changed_inputs(self, record: RunRecord) -> dict[str, Any]:
        """Code of a user's own model and own pictures that are not the run's, by their hashes."""
        known = {key: record.fields.get(key) for key in _OWN_INPUTS}
        return {
            key: [before, self._facts[key]]
            for key, before in known.items()
            if before is not None and self._facts.get(key, before) != before
        }


def _place_of(prepared: Prepared) -> tuple[Path, bool]:
    """The folder of the run of a command, and whether this call created it."""
    config, trainer, weights = prepared.config, prepared.trainer, prepared.weights
    root = Path(config.runs_dir)
    if config.name is not None:
        return run_folder(root, config.name), False
    if weights is not None and (weights.path.parent / RECORD).is_file():
        return weights.path.parent, False
    several = _is_started_from_outside(trainer) and trainer.world_size > 1
    if several and _RUN_VARIABLE not in os.environ:  # nor started by Lightning
        raise RunError("several processes must share one run: name it with --name")
    if trainer.global_rank and (name := os.environ.get(_RUN_VARIABLE)):
        return root / name, False
    path = _new_folder(root, prepared)
    os.environ[_RUN_VARIABLE] = path.name
    return path, True


def _is_started_from_outside(trainer: Trainer) -> bool:
    """Whether another program, such as torchrun, starts the processes of a run."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


def _new_folder(root: Path, prepared: Prepared) -> Path:
    """Creates a folder with a name that no other process gets."""
    parts = [prepared.experiment]
    if prepared.data.resolved_source != CIFAR10.source:
        parts.append(file_word(prepared.data.resolved_source))
    parts += [f"s{prepared.config.seed_everything}", time.strftime("%Y%m%d-%H%M%S")]
    stem = "-".join(parts)
    for count in itertools.count(1):
        path = root / (f"{stem}-{count}" if count > 1 else stem)
        try:
            with writing(root, "name another with --runs_dir, or fix its permissions"):
                root.mkdir(parents=True, exist_ok=True)
                path.mkdir()
        except RunError as error:
            if not (isinstance(error.__cause__, FileExistsError) and path.is_dir()):
                raise
        else:
            return path
    raise AssertionError("unreachable")
