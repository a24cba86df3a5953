"""Reads runs from W&B's offline files.

The official reader of W&B, ``wandb leet inspect``, needs no account and no network. Each process
that works on a run writes its own fragment; fragments with one run id are one run here. The step
of an entry is ``trainer/global_step`` if it exists, otherwise W&B's count of entries. This project
logs the optimiser steps of the weights there; Lightning itself counts from 0.

The group and the job type of a run are the settings ``wandb.group`` and ``wandb.job_type``, unless
this project wrote them: they then say what the name and the command say.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from experiments.identity import MAX_TIME
from experiments.records.files import open_regular, reason_of
from experiments.records.reader import LARGEST_LOG, MOST_ENTRIES, parse_json
from experiments.records.runs import STALE_S, Run, flat
from experiments.sources.foreign import (
    FACTS,
    broken,
    finite,
    is_value,
    labels,
    run_of,
    step_of,
    time_of,
)

SOURCE = "wandb"
SUFFIX = ".wandb"
_PATIENCE_S = 60  # for one file; its size is limited like the size of a log
_AT_ONCE = 4  # parallel readers
_LABELS = {"run_group": "group", "job_type": "job_type"}
_STEP = "trainer/global_step"


def read_wandb(files: Iterable[Path], now: float) -> list[Run]:
    """Reads runs from W&B's files; a file that can't be read becomes an unreadable run.

    Args:
        files: ``.wandb`` files, in the order of their creation.
        now: seconds since 1970, to tell a crashed run from a running one.
    """
    runs: dict[str, Run] = {}
    files = list(files)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, found in zip(files, pool.map(_records, files), strict=True):
            if isinstance(found, str):
                run = broken(path.parent, found, SOURCE)
            else:
                run = _read(path, found, now)
            key = str(run.fields.get("wandb_id", path))
            runs[key] = _merged(runs[key], run) if key in runs else run
    return list(runs.values())


def _records(path: Path) -> list[dict[str, Any]] | str:
    """The records of a file, or the reason why it can't be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > LARGEST_LOG:
            return f"{path.name} has {size:,} bytes; at most {LARGEST_LOG:,} are read"
        records = _inspect(path)
    except OSError as error:
        return f"{path.name} can't be read: {reason_of(error)}"
    except (ValueError, subprocess.SubprocessError) as error:
        return f"W&B's reader refuses {path.name}: {reason_of(error)}"
    known = any(record.get("type") == "run" for record in records)
    return records if known else f"{path.name} holds no run yet ({size} bytes)"


def _inspect(path: Path) -> list[dict[str, Any]]:
    """The output of W&B's reader for a file.

    Raises:
        ValueError: if it refuses the file, or its output is too large.
    """
    with tempfile.TemporaryFile() as said:  # on disk, not in memory
        done = subprocess.run(
            _command(path),
            stdout=said,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE_S,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError((lines or ["no reason given"])[-1])
        said.seek(0)
        records = []
        for line in said:
            if line.startswith(b"{"):
                records.append(parse_json(line.decode(errors="replace")))
            if len(records) > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES:,} records")
    return records


def _command(path: Path) -> list[str]:
    """What reads a file; W&B's program itself starts twenty times faster than its Python."""
    place = str(path.absolute())
    # A wandb.py, or a folder wandb, in the current folder is not W&B.
    places = [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()]
    spec = PathFinder.find_spec("wandb", places)
    if spec is None:
        raise ValueError("it needs W&B's reader: pip install wandb")
    for folder in spec.submodule_search_locations or []:
        program = Path(folder, "bin", "wandb-core")
        if program.is_file():
            flags = ["-json", "-no-observability", "-run-file", place]
            return [str(program), "leet", "inspect", *flags]
    return [sys.executable, "-P", "-m", "wandb", "leet", "inspect", place, "--json"]


def _read(path: Path, records: list[dict[str, Any]], now: float) -> Run:
    """Builds a run from its records; unreadable if their types are not those of W&B."""
    try:
        return _run(path, records, now)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        note = f"{path.name} is no file of W&B: {reason_of(error)}"
        return broken(path.parent, note, SOURCE)


def _run(path: Path, records: list[dict[str, Any]], now: float) -> Run:
    fields: dict[str, Any] = {"summary": {}, "wandb_id": path.stem.removeprefix("run-")}
    name, status, note = path.parent.name, "running", ""
    tree: dict[str, Any] = {}
    said: dict[str, Any] = {}
    items = []
    for record in records:
        kind = str(record.get("type"))
        content = record.get(kind) or {}
        match kind:
            case "run":
                name = content.get("display_name") or name
                fields["wandb_id"] = content.get("run_id", fields["wandb_id"])
                commit = (content.get("git") or {}).get("commit")
                fields["git"] = {"commit": commit} if commit else None
                fields |= {k: content.get(k) for k in ("tags", "notes", "job_type", "project")}
                said = {key: content.get(label) for label, key in _LABELS.items()}
                fields |= {"group": content.get("run_group"), "started": content.get("start_time")}
                tree |= (content.get("config") or {}).get("update", {})
            case "config":
                tree |= content.get("update", {})
            case "summary":
                fields["summary"] |= content.get("update", {})
            case "history":
                items.append(content.get("item", {}))
            case "exit":
                status = "failed" if content.get("exit_code") else "finished"
                note = f"exit code {content['exit_code']}" if content.get("exit_code") else ""
    tree.pop("_wandb", None)
    tree |= labels(SOURCE, tree, **said)
    fields["stopped_by"] = _limits(tree)
    began = _began(tree)
    if began is not None:
        fields["started"] = None
    entries = [_entry(item, began) for item in items]
    run = run_of(name, path.parent, SOURCE, tree, entries, status, note, **fields)
    if status == "running" and run.status == "running" and path.stat().st_mtime < now - STALE_S:
        run.status = "crashed"
        run.note = "has no end, and nothing was written for ten minutes"
    return run


def _limits(tree: Mapping[str, Any]) -> str | None:
    """The time limit of a run: W&B does not record what stopped it, and this may be the reason."""
    found = {k: v for k, v in flat(tree).items() if k.startswith(MAX_TIME) and v is not None}
    return ", ".join(f"{key} {limit}" for key, limit in found.items()) or None


def _began(tree: Mapping[str, Any]) -> float | None:
    """The start of a run that was exported: W&B's own is the time of the export."""
    facts = tree.get(FACTS)
    return time_of(facts.get("started")) if isinstance(facts, Mapping) else None


def _entry(item: Mapping[str, Any], began: float | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"step": step_of(item.get(_STEP, item.get("_step")))}
    at = item.get("_runtime") if began is None else item.get("_timestamp")
    if isinstance(at, int | float):
        entry["seconds"] = round(at - (began or 0.0), 3)
    shown = {key: value for key, value in item.items() if not key.startswith("_")}
    return entry | {key: finite(v) if is_value(v) else v for key, v in shown.items()}


def _merged(first: Run, second: Run) -> Run:
    """A run with the entries that a later process added."""
    second.entries[:0] = first.entries
    kept = {k: v for k, v in first.config.items() if k.startswith(f"{SOURCE}.")}
    second.config = {**first.config, **second.config, **kept}
    for entry in second.entries:
        logged = {k: v for k, v in entry.items() if k not in {"step", "seconds", "epoch"}}
        second.summary.update(logged)
    second.fields["summary"] = {**first.summary, **second.summary}
    return second
