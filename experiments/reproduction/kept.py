"""Keeps the runs behind a page of the reproduction in one file beside the page.

Runs can be added to a page: `merged` takes those that it lacks, and the history of the page says
which commands wrote it.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from experiments.identity import flags_of, flat_key, kind_of
from experiments.records.files import replace_file
from experiments.records.reader import check_record, read_json
from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.judges import ACCURACY, Runs, diverged

_T = TypeVar("_T")
CURVE = "test_curve/acc"
_KEPT = (ACCURACY, "test/loss", "train/acc", "train/loss", "train/steps", "train/seconds")
_CURVES = (CURVE, "train/loss", "train/acc", "val/acc")

_KEPT_RUNS = "runs.json"
_LARGEST_KEPT = 2**25  # bytes; 150 runs with their curves have 2,000,000
_PLACES = {"--runs_dir", "--data.data_dir", "--overwrite"}


@dataclass(frozen=True)
class Written:
    """One time that a page was written.

    Attributes:
        command: of ``reproduce.py``.
        date: of that day.
        seeds: the seeds that the command meant then, in words.
        added: the number of runs that it added to the page.
    """

    command: str
    date: str
    seeds: str
    added: int


@dataclass(frozen=True)
class Kept:
    """The complete input of a page.

    Attributes:
        runs: by arm and seed, with the fields for a page.
        intro: paragraphs written by hand.
        history: the commands that wrote the page, the oldest first.
    """

    runs: dict[str, dict[int, Run]] = field(default_factory=dict)
    intro: tuple[str, ...] = ()
    history: tuple[Written, ...] = ()


def keep(kept: Kept, folder: Path) -> None:
    """Writes ``reproduction/runs.json``, one line for each run.

    Args:
        kept: the input of the page.
        folder: the folder of the page.
    """
    head = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "intro": kept.intro,
        "history": [asdict(written) for written in kept.history],
    }
    records = [_record(arm, run) for arm, found in kept.runs.items() for run in found.values()]
    lines = ",\n".join(json.dumps(record) for record in records)
    data = data_of(folder)
    data.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head, indent=1).removesuffix("\n}")
    replace_file(data / _KEPT_RUNS, f'{text},\n "runs": [\n{lines}\n ]\n}}\n')


def merged(kept: Runs, found: Runs) -> tuple[dict[str, dict[int, Run]], int]:
    """Adds runs to those that a page keeps.

    Args:
        kept: by arm and seed; a run that is over stays.
        found: the runs that may be added.

    Returns:
        All runs, and the number of those that were added.
    """
    runs: dict[str, dict[int, Run]] = {}
    added = 0
    for arm in ARMS:
        over = {seed: run for seed, run in kept.get(arm, {}).items() if is_over(run)}
        new = {seed: run for seed, run in found.get(arm, {}).items() if seed not in over}
        added += len(new)
        runs[arm] = dict(sorted({**kept.get(arm, {}), **new}.items()))
    return runs, added


def is_over(run: Run) -> bool:
    """Whether a run has come to its end: it was tested, or its loss was not finite."""
    return (run.status == "finished" and run.value(ACCURACY) is not None) or diverged(run)


def command_differences(run: Run, arguments: Sequence[str]) -> list[str]:
    """Describes how the command of a kept run differs from the arguments of another.

    Config files count by their names, and flags by their values, if the setting makes another
    experiment of it (see `experiments.identity`).
    """
    asked = _settings(arguments)
    try:
        found = _settings(shlex.split(str(run.fields.get("command"))))
    except ValueError:
        return ["its command can't be read"]
    keys = sorted({key for key in {**found, **asked} if found.get(key) != asked.get(key)})
    return [f"{key} {found.get(key)}, asked for {asked.get(key)}" for key in keys]


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    flags = [(flat_key(key), value) for key, value in flags_of(arguments)]
    configs = [value.rpartition("configs/")[2] for key, value in flags if key == "config"]
    kinds = {key: kind_of(key) for key, _ in flags}
    of_claim = {k for k, kind in kinds.items() if kind.claim and (kind.group or k == "data.seed")}
    return {"config": " ".join(configs), **{k: v for k, v in flags if k in of_claim}}


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


def read_kept(folder: Path) -> Kept:
    """Reads the file of `keep`.

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
        intro = tuple(_checked_type(str, text) for text in content["intro"])
        return Kept(runs, intro, tuple(map(_written, content.get("history", []))))
    except OSError as error:
        raise ValueError(f"no runs are kept in {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of kept runs: {error!r:.200}") from error


def kept_or_none(folder: Path) -> Kept:
    """What a folder's page keeps; nothing if the folder has no page.

    Raises:
        ValueError: see `read_kept`.
    """
    exists = os.path.lexists(data_of(folder) / _KEPT_RUNS)
    return read_kept(folder) if exists else Kept()


def _written(entry: Mapping[str, Any]) -> Written:
    command, date, seeds = (_checked_type(str, entry[key]) for key in ("command", "date", "seeds"))
    return Written(command, date, seeds, _checked_type(int, entry["added"]))


def _run(record: Mapping[str, Any], path: Path) -> Run:
    """Restores a run from its kept fields."""
    activations = record.get("activations", [])
    curves = record["curves"].items()
    entries = [{"step": step, key: value} for key, points in curves for step, value in points]
    entries += activations
    # A final figure that was not kept is of a part of the images only.
    last = {key: points[-1][1] for key, points in curves if key not in _KEPT}
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
