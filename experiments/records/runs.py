"""Reads runs from disk: complete, running, damaged or foreign ones; none is dropped."""

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.identity import MAX_TIME
from experiments.records.curves import best_step, curve_of
from experiments.records.files import reason_of
from experiments.records.log import METRICS
from experiments.records.reader import MOST_ENTRIES, is_number, read_config, read_log, read_record
from experiments.records.record import CONFIG, RECORD
from experiments.texts import shortened

_LONGEST_NOTE = 1_000  # characters
_UNFINISHED = {"running", "failed", "crashed", "interrupted", "preempted", "killed", "pending"}
STALE_S = 600  # a run without a write in this time is not running


_OF_IMAGES = re.compile(r"/(acc\w*|loss)$")


@dataclass
class Run:
    """A run as read from disk.

    Attributes:
        name: the name of its folder, or its name in another tool.
        path: its folder.
        status: ``finished``, ``running``, ``failed``, ``interrupted``; ``crashed`` if the record
            says ``running`` but nothing was written for ten minutes; ``unreadable``.
        fields: its ``record.json``.
        config: the resolved configuration, flat (see `flat`).
        entries: the log entries, each with its ``step``, oldest first.
        note: the problem of the run in one line; empty if there is none.
        source: ``record``, or another tool, such as ``wandb``.
    """

    name: str
    path: Path
    status: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    source: str = "record"

    @property
    def summary(self) -> dict[str, Any]:
        """Final values by metric."""
        found: dict[str, Any] = self.fields.get("summary", {})
        return found

    @property
    def seed(self) -> int | None:
        """The seed of everything."""
        seed: int | None = self.fields.get("seed")
        return seed

    @property
    def is_unfinished(self) -> bool:
        """Whether its figures are not those of a complete training.

        A time limit makes another experiment, whose runs are complete in their way.
        """
        at_limit = str(self.fields.get("stopped_by") or "").startswith(MAX_TIME)
        # A test that failed leaves the figures of the training, which are noted when it ends.
        trained = "train/steps" in self.summary and not self.fields.get("resumed")
        only_later = self.status == "failed" and trained
        return self.status in _UNFINISHED and not at_limit and not only_later

    def curve(self, metric: str) -> dict[int, float]:
        """Values of a metric by step, see `experiments.records.curves.curve_of`."""
        return curve_of(self.entries, metric)

    def best_step(self, metric: str) -> int | None:
        """The step of the best value of a metric; None if no value counts."""
        since = self.fields.get("best_since")
        return best_step(self.curve(metric), metric, since if isinstance(since, int) else None)

    def part_of_images(self, stage: str) -> str:
        """The number of images behind a stage's figures: ``20 of 200``; empty for all images."""
        counted = self.summary.get(f"{stage}/images")
        there = self.fields.get("images") or {}
        whole = there.get({"validate": "val"}.get(stage, stage))
        if counted is None or whole is None or not counted < whole:
            return ""
        return f"{counted:,} of {whole:,}"

    def value(self, metric: str) -> float | None:
        """A final value, or a value at a step: ``test/acc``, ``test_curve/acc@2000``.

        Returns:
            The value; None if there is none, if it is not finite, or if it is an accuracy or a loss
            of only some of the images, because such a value is not comparable.
        """
        name, at, step = metric.partition("@")
        if _OF_IMAGES.search(name) and self.part_of_images(name.partition("/")[0]):
            return None
        if at:
            return self.curve(name).get(int(step)) if step.isdecimal() else None
        found = self.summary.get(name)
        return float(found) if found is not None and is_number(found) else None


def read_run(path: Path, now: float | None = None) -> Run:
    """Reads the record in a folder; status and note of the run name a problem.

    Args:
        path: the run's folder.
        now: seconds since 1970, to tell a crashed run from a running one.
    """
    try:
        fields = read_record(path / RECORD)
    except (OSError, ValueError) as error:
        return Run(path.name, path, "unreadable", note=_cannot_read(RECORD, error))
    note = shortened(fields.get("error") or "", _LONGEST_NOTE)
    run = Run(path.name, path, shortened(fields.get("status") or "unknown", 20), fields, note=note)
    if run.status == "running" and _last_write(path) < (now or time.time()) - STALE_S:
        run.status = "crashed"
        run.note = "says it is running, but has written nothing for ten minutes"
    _read_config(run)
    _read_metrics(run)
    return run


def _read_config(run: Run) -> None:
    try:
        run.config = flat_config(run.path)
    except (OSError, ValueError) as error:
        run.note = run.note or _cannot_read(CONFIG, error)


def flat_config(path: Path) -> dict[str, Any]:
    """Reads the resolved configuration in a run's folder, flat (see `flat`).

    Raises:
        OSError: if it can't be read.
        ValueError: if it is none.
    """
    return flat(read_config(path / CONFIG))


def _read_metrics(run: Run) -> None:
    """Reads the complete lines; the last line of a killed run may be incomplete."""
    lines = 0
    try:
        for lines, (_, entry) in enumerate(read_log(run.path / METRICS), 1):
            if lines > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES:,} lines")
            run.entries += [entry] if entry is not None else []
    except FileNotFoundError:
        return  # nothing was logged yet
    except (OSError, ValueError) as error:
        run.entries = []
        run.note = run.note or f"{_cannot_read(METRICS, error)}; its curves are left out"
        return
    if broken := lines - len(run.entries):
        run.note = run.note or f"{broken} of {lines} lines of {METRICS} can't be read"


def _cannot_read(name: str, error: Exception) -> str:
    return shortened(f"{name} can't be read: {reason_of(error)}", _LONGEST_NOTE)


def _last_write(path: Path) -> float:
    written = [0.0]
    for name in (RECORD, METRICS):
        with contextlib.suppress(OSError):
            written.append((path / name).stat().st_mtime)
    return max(written)


_KNOWN_CLASS = re.compile(
    r"(lightning_modules|datamodules|experiments|torch|pytorch_lightning|lightning_fabric)\..*"
)


def class_name(path: str) -> str:
    """The name of a class of this project, torch or Lightning; the import path of any other."""
    return path.rpartition(".")[2] if _KNOWN_CLASS.fullmatch(path) else path


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested keys with dots; a class path becomes its class name, with the arguments below.

    ``{"model": {"class_path": "lightning_modules.MLP", "init_args": {"norm": "none"}}}`` becomes
    ``{"model": "MLP", "model.norm": "none"}``.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            found[name] = class_name(str(value["class_path"]))
            arguments = value.get("init_args") or {}
            known = isinstance(arguments, Mapping)
            found |= flat(arguments if known else {"init_args": arguments}, f"{name}.")
        elif isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found
