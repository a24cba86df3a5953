"""Reads runs of MLflow: the folder ``mlruns`` and the database ``mlflow.db``, without MLflow.

Parameters are settings; text that means a number or a list becomes one. The name of the experiment
is the setting ``mlflow.experiment``, the tag ``group`` is ``mlflow.group``. Deleted runs and
experiments are left out.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.identity import file_word
from experiments.records.files import read_lines, read_text, reason_of
from experiments.records.reader import LARGEST_CONFIG, LARGEST_LOG, read_config
from experiments.records.runs import Run
from experiments.sources.databases import Database
from experiments.sources.foreign import (
    FACTS,
    Log,
    Point,
    broken,
    date_of,
    entries_of,
    labels,
    run_of,
    setting_of,
    step_of,
)

SOURCE = "mlflow"
META = "meta.yaml"
STATUSES = {
    **{"RUNNING": "running", "SCHEDULED": "scheduled"},
    **{"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"},
}
_NUMBERED = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}  # in a folder
_TAGS = {"mlflow.source.git.commit": "commit", "mlflow.note.content": "notes"}
_NAME = "mlflow.runName"
_LARGEST_FLOAT = 1.7e308  # MLflow writes infinity as the largest float
_MOST_FILES = 10_000  # of one run


def read_folder(folder: Path) -> list[Run] | None:
    """Reads a folder in ``mlruns`` with a ``meta.yaml``, of a run or of an experiment.

    Returns:
        The run, or nothing if it or the experiment is deleted; None if there may be runs below.
    """
    try:
        about = read_config(folder / META)
        if not is_active(about):
            return []
        if not {"run_id", "run_uuid"} & about.keys():
            return None
        return [_read_folder(folder, about)] if is_active(_experiment_of(folder)) else []
    except (OSError, ValueError, TypeError) as error:
        is_run = any((folder / part).is_dir() for part in ("metrics", "params", "tags"))
        note = f"it can't be read: {reason_of(error)}"
        return [broken(folder, note, SOURCE)] if is_run else None


def is_active(about: Mapping[str, Any]) -> bool:
    """Whether a run or an experiment is not deleted, by the content of its ``meta.yaml``."""
    return about.get("lifecycle_stage") != "deleted"


def _experiment_of(folder: Path) -> Mapping[str, Any]:
    try:
        found: dict[str, Any] = read_config(folder.parent / META)
        return found
    except (OSError, ValueError):
        return {}


def _read_folder(folder: Path, about: Mapping[str, Any]) -> Run:
    tags = {key: read_text(path, LARGEST_CONFIG) for key, path in _files(folder / "tags")}
    parameters = {key: read_text(path, LARGEST_CONFIG) for key, path in _files(folder / "params")}
    started = about.get("start_time")
    began = started if isinstance(started, int) and abs(started) < 2**63 else None
    notes: list[str] = []
    points = (
        point
        for key, path in _files(folder / "metrics")
        for point in _points_in(key, path, began, notes)
    )
    entries = entries_of(points)
    status = _NUMBERED.get(about.get("status"), about.get("status"))  # type: ignore[arg-type]
    name = about.get("run_name") or tags.get(_NAME) or folder.name
    experiment = _experiment_of(folder).get("name")
    note = "; ".join(notes)
    return _made(name, folder, experiment, parameters, tags, entries, status, began, note)


def _files(folder: Path, above: str = "", depth: int = 10) -> list[tuple[str, Path]]:
    """The files of a folder with their names; a ``/`` in a name of MLflow makes a subfolder."""
    if not folder.is_dir() or depth < 0:
        return []
    found: list[tuple[str, Path]] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{above}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            found += _files(Path(entry.path), f"{name}/", depth - 1)
        elif not entry.is_symlink():
            found.append((name, Path(entry.path)))
        if len(found) > _MOST_FILES:
            raise ValueError(f"it has more than {_MOST_FILES:,} files")
    return found


def _points_in(key: str, path: Path, began: int | None, notes: list[str]) -> Iterator[Point]:
    """Yields the values of a file with a line for each: time in ms, value, and perhaps step."""
    lines = bad = 0
    for line in read_lines(path, LARGEST_LOG):
        lines += 1
        words = line.split()
        try:
            at, value = float(words[0]), float(words[1])
            step = int(words[2]) if len(words) > 2 else 0
        except (IndexError, ValueError):
            bad += 1
            continue
        yield Point(key, step_of(step), value, _seconds(at, began))
    if bad:
        notes.append(f"{bad} of {lines} lines of metrics/{key} can't be read")


def _seconds(at: Any, began: int | None) -> float | None:
    return (at - began) / 1000 if began is not None and isinstance(at, int | float) else None


def is_mlflow(database: Database) -> bool:
    """Whether a database has the tables of MLflow."""
    return database.has("runs", "run_uuid", "lifecycle_stage") and database.has(
        "metrics", "key", "value", "run_uuid"
    )


def read_tables(path: Path, database: Database) -> list[Run]:
    """Reads the runs of a database of MLflow.

    Raises:
        ValueError: if there are too many values.
    """
    experiments = {
        key: {"name": name, "lifecycle_stage": stage}
        for key, name, stage in database.rows(
            "experiments", "experiment_id", "name", "lifecycle_stage"
        )
    }
    parameters, tags = (_by_run(database, table) for table in ("params", "tags"))
    rows = list(
        database.rows(
            "runs",
            *("run_uuid", "name", "status", "start_time", "lifecycle_stage", "experiment_id"),
        )
    )
    began = {key: start for key, _, _, start, *_ in rows if isinstance(start, int)}
    logs = _logs(database, began)
    found = []
    for number, (key, given, status, _, stage, experiment) in enumerate(rows):
        about = experiments.get(experiment, {})
        if stage == "deleted" or not is_active(about):
            continue
        place = path / (file_word(str(key)) or f"run{number}")
        name = given or tags[key].get(_NAME) or key
        try:
            entries = logs[key].entries()
            found.append(
                _made(
                    *(name, place, about.get("name"), parameters[key], tags[key], entries),
                    *(status, began.get(key), ""),
                )
            )
        except (ValueError, TypeError) as error:
            found.append(broken(place, f"it can't be read: {reason_of(error)}", SOURCE, str(name)))
    return found


def _by_run(database: Database, table: str) -> dict[Any, dict[str, str]]:
    found: dict[Any, dict[str, str]] = defaultdict(dict)
    for run, key, value in database.rows(table, "run_uuid", "key", "value"):
        found[run][str(key)] = str(value)
    return found


def _logs(database: Database, began: Mapping[Any, int]) -> dict[Any, Log]:
    """The log of each run."""
    found: dict[Any, Log] = defaultdict(Log)
    rows = database.rows(
        *("metrics", "run_uuid", "key", "value", "timestamp", "step", "is_nan"),
        order="run_uuid, step, timestamp" if database.has("metrics", "step") else "",
    )
    for run, key, value, at, step, is_nan in rows:
        huge = isinstance(value, float) and abs(value) > _LARGEST_FLOAT
        number = float("nan") if is_nan or huge else value
        found[run].add(str(key), step_of(step or 0), number, _seconds(at, began.get(run)))
    return found


def _made(
    name: Any,
    path: Path,
    experiment: Any,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    entries: list[dict[str, Any]],
    status: Any,
    began: int | None,
    note: str,
) -> Run:
    settings = {key: setting_of(value) for key, value in parameters.items()}
    settings |= {key: setting_of(tags[key]) for key in tags if key.startswith(f"{FACTS}.")}
    said = {key: tags.get(key) for key in ("group", "job_type")}
    settings |= labels(SOURCE, settings, experiment=experiment, **said)
    known = {label: tags[tag] for tag, label in _TAGS.items() if tag in tags}
    commit = known.pop("commit", None)
    return run_of(
        str(name),
        path,
        SOURCE,
        settings,
        entries,
        STATUSES.get(status, "unknown"),
        note,
        started=date_of(began / 1000) if began is not None else None,
        git={"commit": commit} if commit else None,
        group=tags.get("group"),
        job_type=tags.get("job_type"),
        **known,
    )
