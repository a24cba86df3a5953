"""Keeps the runs behind a page of the reproduction in one file beside the page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.records.files import replace_file
from experiments.records.reader import check_record, read_json
from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.judges import ACCURACY, Runs

_T = TypeVar("_T")
CURVE = "test_curve/acc"
_KEPT = (ACCURACY, "test/loss", "train/acc", "train/loss", "train/steps", "train/seconds")
_CURVES = (CURVE, "train/loss", "train/acc", "val/acc")

_KEPT_RUNS = "runs.json"
_LARGEST_KEPT = 2**25  # bytes; 150 runs with their curves have 2,000,000
_PLACES = {"--runs_dir", "--data.data_dir", "--overwrite"}


def keep(runs: Runs, folder: Path, intro: Sequence[str]) -> None:
    """Writes ``reproduction/runs.json``, the complete input of a page.

    Args:
        runs: by arm and seed.
        folder: the folder of the page.
        intro: paragraphs on how the runs were made.
    """
    content = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "intro": list(intro),
        "runs": [_record(name, run) for name, found in runs.items() for run in found.values()],
    }
    data = data_of(folder)
    data.mkdir(parents=True, exist_ok=True)
    replace_file(data / _KEPT_RUNS, json.dumps(content, indent=1) + "\n")


def _record(arm: str, run: Run) -> dict[str, Any]:
    """The kept fields of a run."""
    kept = {key: run.fields.get(key) for key in ("seed", "data", "images", "started", "git")}
    kept["command"] = _without_places(str(run.fields.get("command")))
    shared = {key: run.fields.get(key) for key in ("versions", "hardware")}
    summary = {key: run.value(key) for key in _KEPT}
    curves = {key: list(map(list, run.curve(key).items())) for key in _CURVES}
    activations = [entry for entry in run.entries if "activations/1/mean" in entry]
    return {
        "name": run.name,
        "arm": arm,
        "status": run.status,
        "note": run.note,
        **kept,
        "summary": {key: value for key, value in summary.items() if value is not None},
        "curves": {key: points for key, points in curves.items() if points},
        **({"activations": activations} if activations else {}),
        **shared,
    }


def _without_places(command: str) -> str:
    """A command without the folders of its machine."""
    words = shlex.split(command)
    return shlex.join(word for word in words if word.partition("=")[0] not in _PLACES)


def data_of(folder: Path) -> Path:
    """The folder of a page's runs and pictures.

    Raises:
        ValueError: if the folder is a link: the page must not change its target.
    """
    data = folder / "reproduction"
    if data.is_symlink():
        raise ValueError(f"{data} is a symbolic link: put the folder that it leads to in its place")
    return data


def read_kept(folder: Path) -> tuple[dict[str, dict[int, Run]], list[str]]:
    """Reads the file of `keep`.

    Returns:
        The runs by arm and seed, with the fields for a page, and the intro.

    Raises:
        ValueError: if there is no such file, or its content is wrong.
    """
    path = data_of(folder) / _KEPT_RUNS
    try:
        content = read_json(path, _LARGEST_KEPT)
        runs: dict[str, dict[int, Run]] = {name: {} for name in ARMS}
        for record in content["runs"]:
            run = _run(record, path)
            runs[record["arm"]][_checked_type(int, run.seed)] = run
        return runs, [_checked_type(str, text) for text in content["intro"]]
    except OSError as error:
        raise ValueError(f"no runs are kept in {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of kept runs: {error!r:.200}") from error


def _run(record: Mapping[str, Any], path: Path) -> Run:
    """Restores a run from its kept fields."""
    activations = record.get("activations", [])
    curves = record["curves"].items()
    entries = [{"step": step, key: value} for key, points in curves for step, value in points]
    entries += activations
    last = {key: points[-1][1] for key, points in curves}
    summary = {**last, **record["summary"], **(activations[-1] if activations else {})}
    known = ("seed", "data", "images", "started", "git", "command", "versions", "hardware")
    fields = {"summary": summary, **{key: record.get(key) for key in known}}
    check_record(fields)
    words = (_checked_type(str, record[key]) for key in ("name", "status", "note"))
    name, status, note = words
    return Run(name, path, status, fields, {}, entries, note)


def _checked_type(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
