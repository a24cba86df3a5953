"""The project's own record of a run: plain files that any tool can read.

``runs/<name>/`` holds ``config.yaml`` (resolved), ``record.json`` (what ran, where, how it ended,
the summary), ``metrics.jsonl`` (a line per entry), the checkpoints, the plots and W&B's files.
"""

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from experiments.environment import git_state, hardware, versions

Status = Literal["running", "finished", "failed", "interrupted"]

RECORD = "record.json"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"

# What names of runs end in: a seed, a time, a count of the same time.
_SEED_AND_TIME = re.compile(r"(-s\d+)?(-\d{8}-\d{6}(-\d+)?)?$")
_OF_WEIGHTS = ("*_test.png", "*_validate.png", "predictions*.csv")
_LONGEST_NAME = 128  # W&B's limit for the name of a run; file systems allow about 255


class RunError(RuntimeError):
    """A run or its files can't be used as asked; the message names the remedy."""


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
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / CONFIG).write_text(config)
            record.save()
        except OSError as error:
            raise RunError(
                f"cannot write to the run's folder {path}: {error.strerror}; "
                "name a writable one with --runs_dir"
            ) from error
        return record

    @classmethod
    def open(cls, path: Path) -> "RunRecord":
        """Opens the record of an existing run.

        Raises:
            RunError: if there is none, or it can't be read.
        """
        try:
            return cls(path, json.loads((path / RECORD).read_text()))
        except FileNotFoundError as error:
            raise RunError(f"no run {path}: {_known_runs(path.parent)}") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path / RECORD} can't be read: {error}") from error

    def resume(self, config: str, facts: Mapping[str, Any]) -> None:
        """Marks a run that goes on as running, with the configuration it goes on with.

        What was measured, drawn or predicted with weights that will be trained on is removed.
        """
        (self.path / CONFIG).write_text(config)
        again = {"command": shlex.join(sys.argv), "started": _now(), "git": git_state()}
        self.fields.setdefault("resumed", []).append(again)
        self.fields.update(facts, status="running")
        for pattern in _OF_WEIGHTS:
            for file in self.path.glob(pattern):
                file.unlink()
        for key in [key for key in self.summary if key.startswith(("test/", "validate/"))]:
            del self.summary[key]  # of weights that will be trained on
        self.fields.pop("error", None)
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
        """Writes ``record.json`` in one step, so that readers never see half of it."""
        partial = self.path / f".{RECORD}.{os.getpid()}"
        partial.write_text(json.dumps(_plain(self.fields), indent=2, allow_nan=False) + "\n")
        partial.replace(self.path / RECORD)

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Appends one entry to ``metrics.jsonl`` and updates the summary.

        Args:
            metrics: floats by name; values that aren't finite are written as null.
            step: optimiser steps done.
        """
        seconds = round(time.perf_counter() - self._opened, 3)
        entry = {"step": step, "seconds": seconds, **_plain(metrics)}
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        for key, value in entry.items():
            if key in {"step", "seconds", "epoch"}:
                continue
            self.summary[key] = value
            if key == "val/acc" and value is not None and value > self._best():
                self.summary["best/val/acc"] = value
                self.summary["best/step"] = step

    def _best(self) -> float:
        return float(self.summary.get("best/val/acc", -math.inf))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yields the entries of ``metrics.jsonl``, oldest first."""
        path = self.path / METRICS
        if path.is_file():
            for line in path.read_text().splitlines():
                yield json.loads(line)

    def finish(self, status: Status) -> None:
        """Writes how the run ended and how long this process worked on it."""
        self.fields["status"] = status
        self.fields["ended"] = _now()
        self.fields["seconds"] = round(time.perf_counter() - self._opened, 3)
        self.save()


def run_folder(root: Path, name: str) -> Path:
    """Returns the folder of the run of this name.

    Raises:
        RunError: for a name that isn't a plain folder name and could lead elsewhere.
    """
    if name in {"", ".", ".."} or Path(name).name != name:
        raise RunError(
            f"--name must be a plain folder name, got {name!r}; its place is --runs_dir's to say"
        )
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise RunError(f"--name is {len(os.fsencode(name))} bytes long; {_LONGEST_NAME} at most")
    return root / name


def experiment_name(name: str) -> str:
    """The name that runs of one experiment share: a run's name without seed and time."""
    return _SEED_AND_TIME.sub("", name) or name


def _known_runs(root: Path) -> str:
    found = sorted(root.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    names = [path.parent.name for path in found[:5]]
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
