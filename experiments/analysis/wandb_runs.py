"""Reads runs from W&B's offline files, the second source for a comparison.

The official reader of W&B, ``wandb leet inspect``, needs no account and no network. Each process
that works on a run writes its own fragment; fragments with one run id are one run here. The step
of an entry is ``trainer/global_step`` if it exists, otherwise W&B's count of entries. This project
logs the optimiser steps of the weights there; Lightning itself counts from 0.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.identity import MAX_TIME
from experiments.records.files import open_regular, reason_of
from experiments.records.reader import LARGEST_LOG, MOST_ENTRIES, check_record, parse_json
from experiments.records.runs import STALE_S, Run, flat

_PATIENCE_S = 60  # for one file; its size is limited like the size of a log
_AT_ONCE = 4  # parallel readers
_SEED = "seed_everything"
_START = "run.started_from"


def find_wandb_files(folder: Path) -> list[Path]:
    """The ``.wandb`` files of a W&B folder or of one run's folder; or the given file."""
    if folder.suffix == ".wandb":
        return [folder]
    found = [*folder.glob("*.wandb"), *folder.glob("*run-*/*.wandb")]
    return sorted(path for path in found if not path.parent.is_symlink())


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
            run = _read(path, found, now) if isinstance(found, list) else _broken(path, found)
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
    # -P: a wandb.py in the current folder is not W&B.
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", str(path.absolute())]
    with tempfile.TemporaryFile() as said:  # on disk, not in memory
        done = subprocess.run(
            [*command, "--json"],
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


def _broken(path: Path, note: str) -> Run:
    return Run(path.parent.name, path.parent, "unreadable", note=note, source="wandb")


def _read(path: Path, records: list[dict[str, Any]], now: float) -> Run:
    """Builds a run from its records; unreadable if their types are not those of W&B."""
    try:
        return _run(path, records, now)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return _broken(path, f"{path.name} is no file of W&B: {reason_of(error)}")


def _run(path: Path, records: list[dict[str, Any]], now: float) -> Run:
    fields: dict[str, Any] = {"summary": {}, "wandb_id": path.stem.removeprefix("run-")}
    run = Run(path.parent.name, path.parent, "running", fields, source="wandb")
    tree: dict[str, Any] = {}
    for record in records:
        kind = str(record.get("type"))
        content = record.get(kind) or {}
        match kind:
            case "run":
                run.name = content.get("display_name") or run.name
                fields["wandb_id"] = content.get("run_id", fields["wandb_id"])
                fields["git"] = {"commit": (content.get("git") or {}).get("commit")}
                tree |= (content.get("config") or {}).get("update", {})
            case "config":
                tree |= content.get("update", {})
            case "summary":
                fields["summary"] |= content.get("update", {})
            case "history":
                run.entries.append(_entry(content.get("item", {})))
            case "exit":
                run.status = "failed" if content.get("exit_code") else "finished"
                run.note = f"exit code {content['exit_code']}" if content.get("exit_code") else ""
    tree.pop("_wandb", None)
    run.config = flat(tree)
    seed, data = run.config.get(_SEED, run.config.get("seed")), run.config.get("run.data")
    fields["seed"] = seed if isinstance(seed, int) and not isinstance(seed, bool) else None
    fields["data"] = data if isinstance(data, str) else None
    fields["started_from"] = {"weights_sha256": run.config.get(f"{_START}.weights_sha256")}
    fields["resumed"] = run.config.get("run.resumed")
    # W&B does not record what stopped a run; its time limit, if any, may be the reason.
    limits = {k: v for k, v in run.config.items() if k.startswith(MAX_TIME) and v is not None}
    fields["stopped_by"] = ", ".join(f"{key} {limit}" for key, limit in limits.items()) or None
    fields["summary"] = flat(fields["summary"])
    check_record({**fields, "name": run.name})
    if run.status == "running" and path.stat().st_mtime < now - STALE_S:
        run.status = "crashed"
        run.note = "has no end, and nothing was written for ten minutes"
    return run


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    step = item.get("trainer/global_step", item.get("_step"))
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    shown = {key: value for key, value in item.items() if not key.startswith("_")}
    return {"step": step if isinstance(step, int) else None, **shown}


def _merged(first: Run, second: Run) -> Run:
    """A run with the entries that a later process added."""
    second.entries[:0] = first.entries
    second.config = {**first.config, **second.config}
    for entry in second.entries:
        second.summary.update({k: v for k, v in entry.items() if k not in {"step", "epoch"}})
    second.fields["summary"] = {**first.summary, **second.summary}
    return second
