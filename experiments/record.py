"""The project's own record of a run: plain files that any tool can read.

``runs/<name>/`` holds ``config.yaml`` (resolved), ``record.json`` (what ran, where, how it ended,
the summary), ``metrics.jsonl`` (a line per entry), the checkpoints, the plots and W&B's files.
"""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from experiments.environment import git_state, hardware, versions
from experiments.errors import RunError
from experiments.files import (
    LOCK,
    PARTIAL,
    appending,
    check_folder,
    reason_of,
    replace_file,
    synced,
    writing,
)
from experiments.reader import LARGEST_OWN_LOG, read_log, read_record

Status = Literal["running", "finished", "failed", "interrupted", "preempted"]

RECORD = "record.json"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"

# What names of runs end in: a seed, a time, a count of the same time.
_SEED_AND_TIME = re.compile(r"(-s\d+)?(-\d{8}-\d{6}(-\d+)?)?$")
_OF_WEIGHTS = ("*_test.png", "*_validate.png", "predictions*.csv")
_ELSEWHERE = "name another with --runs_dir, make room or mend its permissions"
_LONGEST_NAME = 128  # W&B's limit for the name of a run; file systems allow about 255


class RunRecord:
    """The folder of one run and what is written about it.

    Args:
        path: the run's folder, ``runs/<name>``.
        fields: the content of ``record.json``.
    """

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self.path = path
        self.fields = fields
        self._opened = time.perf_counter()
        self._before = 0.0  # seconds that earlier processes worked on the run

    @classmethod
    def create(cls, path: Path, config: str, facts: Mapping[str, Any]) -> "RunRecord":
        """Starts the record of a new run.

        Args:
            path: the run's folder; made here.
            config: the resolved configuration, YAML.
            facts: more fields for ``record.json``.

        Raises:
            RunError: if the folder can't be written.
        """
        fields = {
            "name": path.name,
            "status": "running",
            "command": shlex.join(sys.argv),
            "started": _now(),
            **facts,
            "git": git_state(),
            "versions": versions(),
            "hardware": hardware(),
            "summary": {},
        }
        record = cls(path, fields)
        is_new = not path.exists()
        try:
            with writing(path, _ELSEWHERE):
                path.mkdir(parents=True, exist_ok=True)
                record.save()
                replace_file(path / CONFIG, config)
        except RunError:
            if is_new:
                shutil.rmtree(path, ignore_errors=True)
            raise
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

    def resume(self, config: str, facts: Mapping[str, Any], step: int) -> None:
        """Takes the record back to a step, and marks the run as running.

        What was measured after that step, or measured, drawn or predicted with weights that will be
        trained on, is removed: the run goes on as if it had never got further.

        Args:
            config: the resolved configuration that it goes on with, YAML.
            facts: more fields for ``record.json``.
            step: optimiser steps behind the checkpoint that it goes on from; 0 to begin anew.

        Raises:
            RunError: if the folder can't be written.
        """
        kept = [entry for entry in self.metrics() if _is_of_fit(entry, step)]
        with writing(self.path):
            replace_file(self.path / CONFIG, config)
            replace_file(self.path / METRICS, "".join(json.dumps(entry) + "\n" for entry in kept))
        again = {"command": shlex.join(sys.argv), "started": _now(), "step": step}
        self.fields.setdefault("resumed", []).append({**again, "git": git_state()})
        self.fields.update(facts, status="running", summary={})
        for entry in kept:
            self._summarize(entry)
        self._before = kept[-1]["seconds"] if kept else 0.0
        for pattern in _OF_WEIGHTS:
            for file in self.path.glob(pattern):
                file.unlink()
        for key in ("error", "fitted", "ended", "seconds"):
            self.fields.pop(key, None)
        self.save()

    @property
    def name(self) -> str:
        """The run's name, its folder's."""
        return self.path.name

    @property
    def summary(self) -> dict[str, Any]:
        """Final and best values by metric, kept in ``record.json``."""
        summary: dict[str, Any] = self.fields["summary"]
        return summary

    def save(self) -> None:
        """Writes ``record.json`` in one step, so that readers never see half of it.

        Raises:
            RunError: if it can't be written; the old one is left.
        """
        content = json.dumps(_plain(self.fields), indent=2, allow_nan=False) + "\n"
        with writing(self.path):
            replace_file(self.path / RECORD, content)

    def sync(self) -> None:
        """Has the metrics written to the disk itself, as a checkpoint of the same step is."""
        if (self.path / METRICS).is_file():
            with synced(self.path / METRICS, "rb+"):
                pass

    @property
    def seconds(self) -> float:
        """How long processes have worked on the run so far."""
        return round(self._before + time.perf_counter() - self._opened, 3)

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Appends one entry to ``metrics.jsonl`` and updates the summary.

        Args:
            metrics: floats by name; values that aren't finite are written as null.
            step: optimiser steps done.

        Raises:
            RunError: if it can't be written.
        """
        entry = {"step": step, "seconds": self.seconds, **_plain(metrics)}
        with writing(self.path), appending(self.path / METRICS) as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._summarize(entry)

    def _summarize(self, entry: Mapping[str, Any]) -> None:
        for key, value in entry.items():
            if key in {"step", "seconds", "epoch"}:
                continue
            self.summary[key] = value
            if key == "val/acc" and value is not None and value > self._best():
                self.summary["best/val/acc"] = value
                self.summary["best/step"] = entry["step"]

    def _best(self) -> float:
        return float(self.summary.get("best/val/acc", -math.inf))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yields the entries of ``metrics.jsonl``, oldest first.

        A last line that a killed process left unfinished is passed over.

        Raises:
            RunError: for another line that is no entry.
        """
        path = self.path / METRICS
        lines = read_log(path, LARGEST_OWN_LOG)
        try:
            for number, (line, entry) in enumerate(lines, 1):
                if entry is not None:
                    seconds = entry.get("seconds") or 0.0
                    yield {**entry, "step": entry.get("step"), "seconds": seconds}
                elif line.endswith("\n"):
                    raise RunError(f"{path}, line {number}: no entry of a log; remove the line")
        except FileNotFoundError:
            return  # nothing was logged yet
        except OSError as error:
            raise RunError(f"{path} can't be read: {reason_of(error)}; remove it") from error

    def finish(self, status: Status) -> None:
        """Writes how the run ended and how long this process worked on it."""
        self.fields["status"] = status
        self.fields["ended"] = _now()
        self.fields["seconds"] = self.seconds
        self.save()


def was_never_begun(path: Path) -> bool:
    """Whether a folder holds at most what a process killed before its record leaves."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else ["a file"]
    return all(name == LOCK or re.fullmatch(rf"\..*\{PARTIAL}", name) for name in names)


def _is_of_fit(entry: Mapping[str, Any], step: int) -> bool:
    """Whether an entry belongs to a fit of so many steps, and not to an evaluation by itself."""
    evaluated = any(key.startswith(("test/", "validate/")) for key in entry)
    return not evaluated and (entry["step"] or 0) <= step and step > 0


def run_folder(root: Path, name: str) -> Path:
    """Returns the folder of the run of this name.

    Raises:
        RunError: for a name that isn't a plain folder name and could lead elsewhere.
    """
    if name in {"", ".", ".."} or Path(name).name != name:
        raise RunError(
            f"--name must be a plain folder name, got {name!r}; its place is --runs_dir's to say"
        )
    if name.startswith("-") or not name.isprintable():
        raise RunError(f"--name must be printable and not begin with -, got {name!r}")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise RunError(f"--name is {len(os.fsencode(name))} bytes long; {_LONGEST_NAME} at most")
    return root / name


def experiment_name(name: str) -> str:
    """The name that runs of one experiment share: a run's name without seed and time."""
    return _SEED_AND_TIME.sub("", name) or name


def _known_runs(root: Path) -> str:
    found: list[tuple[float, str]] = []
    for path in root.glob(f"*/{RECORD}"):
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime, path.parent.name))
    names = [name for _, name in sorted(found, reverse=True)[:5]]
    return f"latest runs in {root}: {', '.join(names)}" if names else f"no runs in {root} yet"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """Makes a value JSON: numbers that aren't finite become null, scalars of tensors floats."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
