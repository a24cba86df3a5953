"""Runs as they are found on disk: whole, going on, broken or foreign, none dropped."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.record import CONFIG, METRICS, RECORD

# What may differ without another experiment: where a run lies, how it is started and watched.
CIRCUMSTANCES = (
    r"name|config|overwrite|resume|trust_run|save_every_min|ckpt_path|runs_dir|test_after_fit|data\.data_dir"
    r"|trainer\.logger.*"
)
STALE_S = 600  # a run that has not written for so long is not running
# The C parser reads a config in 3 ms, the one in Python in 30.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        name: its folder's name, or W&B's.
        path: its folder.
        status: ``finished``, ``running``, ``failed``, ``interrupted``; ``crashed`` for one that
            says it is running but has not written for ten minutes; ``unreadable``.
        fields: its ``record.json``.
        config: the resolved configuration, flat (see `flat`).
        entries: what was logged, each with its ``step``, oldest first.
        note: what is wrong with it, in a line; empty if nothing is.
        source: ``record`` or ``wandb``.
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

    def curve(self, metric: str) -> dict[int, float]:
        """Values of a metric by step, in the order of the steps; the latest where one has two."""
        points = {
            int(entry["step"]): float(entry[metric])
            for entry in self.entries
            if _is_number(entry.get(metric)) and _is_number(entry.get("step"))
        }
        return dict(sorted(points.items()))

    def value(self, metric: str) -> float | None:
        """A final value, or one of a step: ``test/acc``, ``test_curve/acc@2000``.

        Returns:
            The value; None where there is none, or one that isn't finite.
        """
        name, at, step = metric.partition("@")
        if at:
            return self.curve(name).get(int(step)) if step.isdecimal() else None
        found = self.summary.get(name)
        return float(found) if found is not None and _is_number(found) else None


_LARGEST = 2**63  # a larger integer is no metric, and may be more than a float holds
_KINDS = {
    "git": dict,
    "versions": dict,
    "images": dict,
    "seed": int,
    **dict.fromkeys(("name", "error", "wandb_id", "data", "status", "commit"), str),
}


def read_run(path: Path, now: float | None = None) -> Run:
    """Reads the record in a folder; what is wrong with it is in its status and note.

    Args:
        path: the run's folder.
        now: seconds since 1970, to tell a crashed run from a running one.
    """
    try:
        fields = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Run(path.name, path, "unreadable", note=f"{RECORD} can't be read: {_reason(error)}")
    if not isinstance(fields, dict) or not isinstance(fields.get("summary"), dict):
        note = f"{RECORD} is not of this project: it has no summary"
        return Run(path.name, path, "unreadable", note=note)
    git = fields.get("git")
    known = {**fields, "commit": git.get("commit") if isinstance(git, dict) else None}
    for key, kind in _KINDS.items():
        if known.get(key) is not None and not isinstance(known[key], kind):
            note = f"{RECORD} is not of this project: its {key} is {known[key]!r:.40}"
            return Run(path.name, path, "unreadable", note=note)
    run = Run(path.name, path, str(fields.get("status")), fields, note=fields.get("error", ""))
    if run.status == "running" and _last_write(path) < (now or time.time()) - STALE_S:
        run.status = "crashed"
        run.note = "says it is running, but has written nothing for ten minutes"
    _read_config(run)
    _read_metrics(run)
    return run


def _read_config(run: Run) -> None:
    try:
        run.config = flat_config(run.path)
    except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError) as error:
        run.note = run.note or f"{CONFIG} can't be read: {_reason(error)}"


def flat_config(path: Path) -> dict[str, Any]:
    """Reads the resolved configuration in a run's folder, flat (see `flat`)."""
    return flat(yaml.load((path / CONFIG).read_text(encoding="utf-8"), Loader=_YAML))


def _read_metrics(run: Run) -> None:
    """Reads the lines that are whole; the last one of a killed run may not be."""
    path = run.path / METRICS
    lines = (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    )
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(entry := json.loads(line), dict):
                run.entries.append(entry)
    if broken := len(lines) - len(run.entries):
        run.note = run.note or f"{broken} of {len(lines)} lines of {METRICS} can't be read"


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join((reason or type(error).__name__).split())


def _last_write(path: Path) -> float:
    files = (path / RECORD, path / METRICS)
    return max(file.stat().st_mtime for file in files if file.is_file())


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested keys with dots; class paths stand for their class, arguments under it.

    ``{"model": {"class_path": "lightning_modules.MLP", "init_args": {"norm": "none"}}}`` becomes
    ``{"model": "MLP", "model.norm": "none"}``.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            found[name] = str(value["class_path"]).rpartition(".")[2]
            arguments = value.get("init_args") or {}
            found |= flat(arguments, f"{name}.")
        elif isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < _LARGEST
