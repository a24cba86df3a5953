"""The record of a run: text files that any tool can read.

``runs/<name>/`` holds ``config.yaml`` (resolved), ``record.json`` (command, hardware, end and
summary), ``metrics.jsonl`` (a line per entry), the checkpoints, the plots and W&B's files.
"""

import contextlib
import copy
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.errors import RunError
from experiments.records.curves import summarize
from experiments.records.environment import git_state, versions
from experiments.records.files import (
    LOCK,
    PARTIAL,
    RECORD_LOCK,
    check_folder,
    held,
    reason_of,
    replace_file,
    writing,
)
from experiments.records.log import (
    add_entry,
    entries_in,
    is_evaluation_entry,
    is_fit_entry,
    to_json_values,
    write_entries,
)
from experiments.records.machine import hardware
from experiments.records.reader import FORMAT, read_record

Status = Literal["running", "finished", "failed", "interrupted", "preempted"]

RECORD = "record.json"
CONFIG = "config.yaml"

_RESULT_FILES = (
    "curves.png",
    "confusion_*.png",
    "confusion_*.json",
    "mistakes_*.png",
    "predictions*.csv",
)
_END_FIELDS = (
    "error",
    "fitted",
    "ended",
    "seconds",
    "stopped_by",
    "evaluations",
    "weights",
    "chosen",
)
_WRITE_REMEDY = "name another with --runs_dir, make room or fix its permissions"
_LONGEST_NAME = 128  # W&B's limit for the name of a run; file systems allow about 255


class RunRecord:
    """The folder of one run and its record.

    A fit and evaluations of its checkpoints may work on a run at the same time. Each writes only
    its own changes: `save` reads the changes of other processes first and keeps them.

    Args:
        path: the run's folder, ``runs/<name>``.
        fields: the content of ``record.json``.

    Attributes:
        is_owner: whether this process has begun or resumed the run, and holds its lock.
    """

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.path = path
        self.fields = fields
        self._file = _RecordFile(path, fields)
        self.is_owner = False
        self._opened = time.perf_counter()
        self._before = 0.0  # seconds of work by earlier processes
        self.entries = 0  # entries of the fit in the log

    @classmethod
    def create(
        cls, path: Path, config: str, facts: Mapping[str, Any], command: str = ""
    ) -> "RunRecord":
        """Starts the record of a new run, which this process has locked.

        Args:
            path: the run's folder; created if it is missing.
            config: the resolved configuration, YAML.
            facts: more fields for ``record.json``.
            command: what was typed.

        Raises:
            RunError: if the folder can't be written.
        """
        fields = {
            "format": FORMAT,
            "name": path.name,
            "status": "running",
            "command": command,
            "started": _now(),
            **facts,
            "git": git_state(),
            "versions": versions(),
            "hardware": hardware(),
            "summary": {},
        }
        record = cls(path, {})
        record.fields = fields
        record.is_owner = True
        with writing(path, _WRITE_REMEDY):
            path.mkdir(parents=True, exist_ok=True)
            with record._file.alone():
                (path / RECORD).unlink(missing_ok=True)  # of an evaluation of a run that is gone
                record.save()
            replace_file(path / CONFIG, config)
        return record

    @classmethod
    def open(cls, path: Path) -> "RunRecord":
        """Opens the record of an existing run.

        Raises:
            RunError: if there is none, or it can't be read.
        """
        check_folder(path)
        try:
            fields = read_record(path / RECORD)
        except FileNotFoundError as error:
            raise RunError(f"no run {path}: {_known_runs(path.parent)}") from error
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path / RECORD} can't be read: {reason_of(error)}; start another run from a "
                "checkpoint there with --ckpt_path"
            ) from error
        return cls(path, fields)

    def resume(
        self,
        config: str,
        facts: Mapping[str, Any],
        step: int,
        command: str = "",
        changes: Mapping[str, Any] | None = None,
        best_anew: bool = False,
        entries: int | None = None,
    ) -> None:
        """Takes the record back to a step, and marks the run as running, locked by this process.

        Entries after that step are removed. Figures, pictures and predictions of weights that will
        be trained further are removed too, as if the run had never gone beyond the step.

        Args:
            config: the new resolved configuration, YAML.
            facts: more fields for ``record.json``.
            step: optimiser steps of the checkpoint that is resumed; 0 to start again.
            command: what was typed.
            changes: changed settings by key, each as ``[before, now]``.
            best_anew: whether only validations from now on count for the best.
            entries: number of log entries at the checkpoint, if it is known; the log may have
                later entries of the same step.

        Raises:
            RunError: if the folder can't be written.
        """
        with writing(self.path), self._file.alone():
            self.fields = self._file.read(self.fields)
            self.is_owner = True
            kept = [entry for entry in entries_in(self.path) if is_fit_entry(entry, step)][:entries]
            self.entries = len(kept)
            replace_file(self.path / CONFIG, config)
            write_entries(self.path, kept)
            again = {"command": command, "started": _now(), "step": step, "git": git_state()}
            again |= {"changes": dict(changes)} if changes else {}
            self.fields.setdefault("resumed", []).append(again)
            for key in _END_FIELDS:
                self.fields.pop(key, None)
            self.fields.update(facts, status="running", summary={})
            self.fields |= {"best_since": step} if best_anew else {}
            for entry in kept:
                summarize(entry, self.summary, self.fields.get("best_since", -1))
            self._before = (kept[-1].get("seconds") or 0.0) if kept else 0.0
            for pattern in _RESULT_FILES:
                for file in self.path.glob(pattern):
                    file.unlink()
            self.save()

    @property
    def name(self) -> str:
        """The name of the run and of its folder."""
        return self.path.name

    @property
    def summary(self) -> dict[str, Any]:
        """Final and best values by metric, kept in ``record.json``."""
        summary: dict[str, Any] = self.fields["summary"]
        return summary

    @property
    def evaluations(self) -> dict[str, Any]:
        """The evaluations with their weights and settings, see `checkpoints.evaluations`."""
        found: dict[str, Any] = self.fields.setdefault("evaluations", {})
        return found

    def note_evaluation(self, key: str, facts: dict[str, Any], summary: Mapping[str, Any]) -> None:
        """Adds the results of an evaluation; `save` then writes them, even if they are unchanged.

        Args:
            key: a key of `evaluations`.
            facts: the entry.
            summary: final values by metric.
        """
        self.evaluations[key] = facts
        self.summary.update(summary)
        self._file.count_as_changed("evaluations", [key])
        self._file.count_as_changed("summary", summary)

    def save(self) -> None:
        """Writes the changes of this process in one step: readers never see half of them.

        Raises:
            RunError: if the record can't be written; the old one stays.
        """
        self.fields = self._file.write(to_json_values(self.fields))

    @property
    def seconds(self) -> float:
        """The total time of all processes on the run so far."""
        return round(self._before + time.perf_counter() - self._opened, 3)

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Appends one entry to ``metrics.jsonl`` and updates the summary.

        Args:
            metrics: floats by name; values that aren't finite are written as null.
            step: optimiser steps done.

        Raises:
            RunError: if it can't be written.
        """
        entry = {"step": step, "seconds": self.seconds, **to_json_values(metrics)}
        # Only a fit rewrites the file, and only at its start: no line of this process gets lost.
        with nullcontext() if self.is_owner else self._file.alone():
            add_entry(self.path, entry)
        self.entries += not is_evaluation_entry(entry)
        summarize(entry, self.summary, self.fields.get("best_since", -1))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yields the entries of the log, see `experiments.records.log.entries_in`."""
        return entries_in(self.path)

    def finish(self, status: Status) -> None:
        """Writes the end of the run and the working time of this process."""
        self.fields["status"] = status
        self.fields["ended"] = _now()
        self.fields["seconds"] = self.seconds
        self.save()


def was_never_begun(path: Path) -> bool:
    """Whether a folder holds at most the files of a process that was killed before its record."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else ["a file"]
    locks = {LOCK, RECORD_LOCK}
    return all(name in locks or re.fullmatch(rf"\..*\{PARTIAL}", name) for name in names)


class _RecordFile:
    """``record.json``, which several processes write at the same time.

    Args:
        run: the run's folder.
        fields: its content when this process last read or wrote it.
    """

    def __init__(self, run: Path, fields: dict[str, Any]) -> None:
        self.run = run
        self._known = copy.deepcopy(fields)
        self._lock = FileLock(run / RECORD_LOCK)

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other processes from writing; calls may be nested."""
        return held(self._lock, f"the record of run {self.run.name}")

    def read(self, otherwise: dict[str, Any]) -> dict[str, Any]:
        """Loads the changes of other processes; drops unsaved changes if there is a file."""
        if (theirs := self._on_disk()) is None:
            return otherwise
        self._known = copy.deepcopy(theirs)
        return theirs

    def count_as_changed(self, field: str, keys: Iterable[str]) -> None:
        """Makes `write` write entries of a field even if they are unchanged."""
        for key in keys:
            self._known.get(field, {}).pop(key, None)

    def write(self, mine: dict[str, Any]) -> dict[str, Any]:
        """Writes the changes of this process, and returns the content with those of others.

        Raises:
            RunError: if the record can't be written; the old one stays.
        """
        with writing(self.run), self.alone():
            theirs = self._on_disk()
            merged = with_changes(self._known, mine, self._known if theirs is None else theirs)
            replace_file(self.run / RECORD, json.dumps(merged, indent=2, allow_nan=False) + "\n")
            self._known = copy.deepcopy(merged)
        return merged

    def _on_disk(self) -> dict[str, Any] | None:
        """The present content of the file; None if it is missing or damaged."""
        try:
            return read_record(self.run / RECORD)
        except (OSError, ValueError):
            return None


_MISSING = object()


def with_changes(
    before: Mapping[str, Any], mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Applies the changes of one version of a record to another version.

    Args:
        before: the common ancestor.
        mine: the version with the changes: new, different or missing keys.
        theirs: the version to change; its own changes stay.
    """
    merged = {}
    for key in dict.fromkeys([*mine, *theirs]):
        was, ours, other = (tree.get(key, _MISSING) for tree in (before, mine, theirs))
        if isinstance(ours, Mapping) and isinstance(other, Mapping):
            was = was if isinstance(was, Mapping) else {}
            merged[key] = with_changes(was, ours, other)
        elif (found := other if ours == was else ours) is not _MISSING:
            merged[key] = found
    return merged


def run_folder(root: Path, name: str) -> Path:
    """Returns the folder of the run of this name.

    Raises:
        RunError: for a name that is not a simple folder name and could lead elsewhere.
    """
    if name in {"", ".", ".."} or Path(name).name != name:
        raise RunError(
            f"--name must be a plain folder name, got {name!r}; name its place with --runs_dir"
        )
    if name.startswith("-") or not name.isprintable():
        raise RunError(f"--name must be printable and not begin with -, got {name!r}")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise RunError(f"--name is {len(os.fsencode(name))} bytes long; {_LONGEST_NAME} at most")
    return root / name


def _known_runs(root: Path) -> str:
    found: list[tuple[float, str]] = []
    for path in root.glob(f"*/{RECORD}"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path.parent.name))
    names = [name for _, name in sorted(found, reverse=True)[:5]]
    return f"latest runs in {root}: {', '.join(names)}" if names else f"no runs in {root} yet"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
