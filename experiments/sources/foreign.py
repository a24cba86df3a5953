"""What the readers of other tools share: they make a `Run` of settings and measured values.

Metrics keep the names that they have there. The configuration is flat; a seed under one of its
usual names is the seed of the run. Keys that begin with ``run.`` hold fields of a record, as
`experiments.WandbLogger` and `experiments.export_runs` write them.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.identity import SEEDS
from experiments.records.reader import check_record, parse_json
from experiments.records.runs import Run, flat
from experiments.texts import shortened

MOST_POINTS = 1_000_000  # values of one run
FACTS = "run"  # the key of a configuration under which fields of a record are kept
KEPT_FACTS = (
    *("status", "note", "data", "job_type", "group", "notes", "tags", "started", "seconds"),
    *("git", "versions", "images", "started_from", "resumed", "stopped_by", "best_since"),
    *("hardware", "model", "optimizer", "parameters"),
)
_LONGEST_NOTE = 1_000  # characters
_LONGEST_NAME = 250
_MOST_SETTINGS = 10_000
_LARGEST_INTEGER = 2**63
_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}  # in JSON, as W&B and trackio write it
_WORDS = {"True": True, "False": False, "None": None}  # as Python prints them


class Point(NamedTuple):
    """A measured value.

    Attributes:
        metric: its name.
        step: of the training; None if it is not known.
        value: a number; other values are left out.
        seconds: since the start of the run; None if it is not known.
    """

    metric: str
    step: int | None
    value: Any
    seconds: float | None = None


class Log:
    """Collects measured values as log entries, one for each step."""

    def __init__(self) -> None:
        self._entries: dict[int | None, dict[str, Any]] = {}
        self._count = 0

    def add(self, metric: str, step: int | None, value: Any, seconds: float | None = None) -> None:
        """Adds a `Point`; of two values of a metric at one step, the later counts.

        Raises:
            ValueError: if there are too many.
        """
        self._count += 1
        if self._count > MOST_POINTS:
            raise ValueError(f"it has more than {MOST_POINTS:,} values")
        if is_value(value):
            entry = self._entries.setdefault(step, {"step": step})
            entry[metric] = finite(value)
            if seconds is not None and math.isfinite(seconds):
                entry.setdefault("seconds", round(seconds, 3))

    def entries(self) -> list[dict[str, Any]]:
        """The entries in the order of their steps; first the one without a step."""
        known = sorted(step for step in self._entries if step is not None)
        without = [None] if None in self._entries else []
        return [self._entries[step] for step in [*without, *known]]


def entries_of(points: Iterable[Point]) -> list[dict[str, Any]]:
    """Log entries of measured values, see `Log`.

    Raises:
        ValueError: if there are too many.
    """
    log = Log()
    for point in points:
        log.add(*point)
    return log.entries()


def is_value(value: Any) -> bool:
    """Whether a value is a number, also one that is not finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and value in _NOT_FINITE)


def finite(value: Any) -> float | int | None:
    """A number; None if it is not finite, as in a log of this project, or too large for one."""
    if isinstance(value, int):
        return value if abs(value) < _LARGEST_INTEGER else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def step_of(value: Any) -> int | None:
    """A step as an integer; None if it is none, or larger than any training."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value) if value == int(value) else None


def setting_of(text: str) -> Any:
    """The value of a setting that is kept as text: ``0.1``, ``True``, ``[1, 2]``, ``sgd``."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return parse_json(text)
    except ValueError:
        return text


def as_text(value: Any) -> str:
    """A setting as text, of which `setting_of` makes the same value again."""
    if isinstance(value, str) and setting_of(value) == value:
        return value
    return json.dumps(value, default=str)


def date_of(seconds: float) -> str | None:
    """A time as in a record; None if it is none.

    Args:
        seconds: since 1970.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, TypeError, ValueError):
        return None


def time_of(date: Any) -> float | None:
    """The seconds since 1970 of a date as text; None if it is none."""
    try:
        return datetime.fromisoformat(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def broken(path: Path, note: str, source: str, name: str = "") -> Run:
    """A run that can't be read."""
    shown = shortened(name or path.name, _LONGEST_NAME)
    return Run(shown, path, "unreadable", note=shortened(note, _LONGEST_NOTE), source=source)


def run_of(
    name: str,
    path: Path,
    source: str,
    settings: Mapping[str, Any],
    entries: list[dict[str, Any]],
    status: str = "unknown",
    note: str = "",
    **fields: Any,
) -> Run:
    """A run of another tool.

    Args:
        name: its name there.
        path: its file or folder; two runs must not share it.
        source: the tool.
        settings: its configuration, possibly nested.
        entries: its log.
        status: as in a record, if it is known.
        note: a problem, in one line.
        fields: more fields of a record; `summary` is completed by the last values of the log.

    Raises:
        ValueError: if the types are not those of a record, or if there are too many settings.
    """
    config = flat(settings)
    if len(config) > _MOST_SETTINGS:
        raise ValueError(f"it has more than {_MOST_SETTINGS:,} settings")
    facts = _facts(config)
    status, note = facts.pop("status", status), facts.pop("note", note)
    known = {
        **facts,
        "seed": _take_seed(config),
        **{key: value for key, value in fields.items() if value is not None},
        "summary": _last_values(entries) | _figures(fields.get("summary") or {}),
    }
    name, note = shortened(str(name), _LONGEST_NAME), shortened(str(note), _LONGEST_NOTE)
    check_record({**known, "name": name})
    return Run(name, path, shortened(str(status), 20), known, config, entries, note, source)


def labels(source: str, settings: Mapping[str, Any], **found: Any) -> dict[str, str]:
    """Settings for what a tool says beside them, such as the group: ``wandb.group``.

    This project writes there what the name and the command say already; such labels are left out.
    """
    if any(key == FACTS or key.startswith(f"{FACTS}.") for key in settings):
        return {}
    texts = {key: label for key, label in found.items() if isinstance(label, str) and label}
    return {f"{source}.{key}": label for key, label in texts.items()}


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record in a configuration; others may mean anything by ``run``."""
    tree: dict[str, Any] = {}
    for key, value in config.items():
        first, *above, last = key.split(".") if "." in key else ("", "")
        if first != FACTS or [*above, last][0] not in KEPT_FACTS:
            continue
        place: Any = tree
        for name in above:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return {field: value for field, value in tree.items() if _fits(field, value)}


def _fits(field: str, value: Any) -> bool:
    if field in {"status", "note", "group", "notes"}:
        return isinstance(value, str)
    try:
        check_record({"summary": {}, field: value})
    except ValueError:
        return False
    return value is not None


def _take_seed(config: dict[str, Any]) -> int | None:
    """The seed; one under a nested key gets its usual name, so that it separates no runs."""
    nested = [key for key in config if key.rpartition(".")[2] in SEEDS and key != "data.seed"]
    found = next((key for key in SEEDS if key in config), nested[0] if len(nested) == 1 else None)
    seed = config.get(found) if found else None
    if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= _LARGEST_INTEGER:
        return None
    if found not in SEEDS:
        config[str(found).rpartition(".")[2]] = config.pop(str(found))
    return seed


def _last_values(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for entry in entries:
        last.update(entry)
    return {key: value for key, value in last.items() if key not in {"step", "seconds", "epoch"}}


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary, flat, in which what is no finite number of a figure is missing."""
    return {k: finite(v) if is_value(v) else v for k, v in flat(summary).items()}
