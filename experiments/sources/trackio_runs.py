"""Reads runs of trackio, which keeps a SQLite file for each project, without trackio.

The project is the setting ``trackio.project``, the group ``trackio.group``. Measurements of the
hardware are left out. A run has no status there.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.identity import file_word
from experiments.records.files import reason_of
from experiments.records.reader import parse_json
from experiments.records.runs import Run, flat
from experiments.sources.databases import Database
from experiments.sources.foreign import FACTS, Log, broken, labels, run_of, step_of, time_of

SOURCE = "trackio"
_OWN = ("_Username", "_Created", "_Group")  # settings of trackio's own


def is_trackio(database: Database) -> bool:
    """Whether a database has the tables of trackio."""
    return database.has("metrics", "run_name", "step", "metrics")


def read_tables(path: Path, database: Database) -> list[Run]:
    """Reads the runs of a database of trackio.

    Raises:
        ValueError: if there are too many values.
    """
    settings = {
        _key(run, name): (name, _object(config) or {})
        for run, name, config in database.rows("configs", "run_id", "run_name", "config")
    }
    begun = {key: time_of(_started(config)) for key, (_, config) in settings.items()}
    logs, names, bad = _logs(database, {k: at for k, at in begun.items() if at is not None})
    found = []
    for number, key in enumerate(dict.fromkeys([*names, *settings])):
        name, config = settings.get(key, (names.get(key, key), {}))
        place = path / (file_word(str(key)) or f"run{number}")
        note = f"{bad[key]} of its entries can't be read" if bad[key] else ""
        try:
            found.append(_run(str(name), place, path.stem, config, logs[key], note))
        except (ValueError, TypeError) as error:
            found.append(broken(place, f"it can't be read: {reason_of(error)}", SOURCE, str(name)))
    return found


def _key(run: Any, name: Any) -> Any:
    return name if run is None else run  # old files have names alone


def _run(name: str, place: Path, project: str, config: dict[str, Any], log: Log, note: str) -> Run:
    created, group = config.get("_Created"), config.get("_Group")
    shown = {key: value for key, value in config.items() if key not in _OWN}
    shown |= labels(SOURCE, shown, project=project, group=group)
    return run_of(
        name,
        place,
        SOURCE,
        shown,
        log.entries(),
        note=note,
        group=group if isinstance(group, str) else None,
        started=_started(config) or (created if isinstance(created, str) else None),
    )


def _started(config: Mapping[str, Any]) -> Any:
    """The start of a run that was exported: trackio's own is the time of the export."""
    facts = config.get(FACTS)
    started = facts.get("started") if isinstance(facts, Mapping) else None
    return started if time_of(started) is not None else None


def _logs(
    database: Database, begun: Mapping[Any, float]
) -> tuple[Mapping[Any, Log], dict[Any, Any], dict[Any, int]]:
    """The log of each run, its name, and how many of its entries can't be read."""
    logs: dict[Any, Log] = defaultdict(Log)
    names: dict[Any, Any] = {}
    began: dict[Any, float] = {}
    bad: dict[Any, int] = defaultdict(int)
    columns = ("run_id", "run_name", "timestamp", "step", "metrics")
    for run, name, timestamp, step, metrics in database.rows("metrics", *columns, order="id"):
        key = _key(run, name)
        names.setdefault(key, name)
        entry = _object(metrics)
        bad[key] += entry is None
        at = time_of(timestamp)
        if at is not None:
            began.setdefault(key, begun.get(key, at))
        for metric, value in flat(entry or {}).items():
            logs[key].add(metric, step_of(step), value, None if at is None else at - began[key])
    return logs, names, bad


def _object(content: Any) -> dict[str, Any] | None:
    """The object in a cell, which is JSON as text or as bytes; None if it is none."""
    try:
        text = content.decode() if isinstance(content, bytes) else str(content)
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
