"""Runs read from W&B's own offline files, through W&B's reader: the second source for a comparison.

The reader is ``wandb leet inspect``, W&B's official one; it needs no account and no network. Each
process that works on a run leaves a fragment of its own; fragments of one run id are one run here.
An entry's step is ``trainer/global_step`` where there is one, else W&B's own count of entries. This
project logs the optimiser steps behind the weights there; Lightning itself counts from 0.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.runs import STALE_S, Run, flat

_PATIENCE_S = 60
_AT_ONCE = 4  # readers
_SEED = "seed_everything"


def find_wandb_files(folder: Path) -> list[Path]:
    """The ``.wandb`` files of a W&B folder, of one run's folder there, or a file itself."""
    if folder.suffix == ".wandb":
        return [folder]
    found = [*folder.glob("*.wandb"), *folder.glob("*run-*/*.wandb")]
    return sorted(path for path in found if not path.parent.is_symlink())


def read_wandb(files: Iterable[Path], now: float) -> list[Run]:
    """Reads runs from W&B's files; what can't be read is a run that says so.

    Args:
        files: ``.wandb`` files, in the order in which they were written.
        now: seconds since 1970, to tell a crashed run from a running one.
    """
    runs: dict[str, Run] = {}
    files = list(files)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for path, found in zip(files, pool.map(_records, files), strict=True):
            run = _run(path, found, now) if isinstance(found, list) else _broken(path, found)
            key = str(run.fields.get("wandb_id", path))
            runs[key] = _merged(runs[key], run) if key in runs else run
    return list(runs.values())


def _records(path: Path) -> list[dict[str, Any]] | str:
    """The records of a file, or why it can't be read."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(path), "--json"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"W&B's reader failed: {error}"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return f"W&B's reader refuses {path.name}: {lines[-1]}"
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    known = any(record["type"] == "run" for record in records)
    return records if known else f"{path.name} holds no run yet ({path.stat().st_size} bytes)"


def _broken(path: Path, note: str) -> Run:
    return Run(path.parent.name, path.parent, "unreadable", note=note, source="wandb")


def _run(path: Path, records: list[dict[str, Any]], now: float) -> Run:
    fields: dict[str, Any] = {"summary": {}, "wandb_id": path.stem.removeprefix("run-")}
    run = Run(path.parent.name, path.parent, "running", fields, source="wandb")
    tree: dict[str, Any] = {}
    for record in records:
        content = record.get(record["type"]) or {}
        match record["type"]:
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
    fields["seed"] = run.config.get(_SEED, run.config.get("seed"))
    fields["data"] = run.config.get("run.data")
    fields["summary"] = flat(fields["summary"])
    if run.status == "running" and path.stat().st_mtime < now - STALE_S:
        run.status = "crashed"
        run.note = "has no end, and nothing was written for ten minutes"
    return run


def _entry(item: Mapping[str, Any]) -> dict[str, Any]:
    step = item.get("trainer/global_step", item.get("_step"))
    return {"step": step, **{k: v for k, v in item.items() if not k.startswith("_")}}


def _merged(first: Run, second: Run) -> Run:
    """A run and what a later process added to it."""
    second.entries[:0] = first.entries
    second.config = {**first.config, **second.config}
    for entry in second.entries:
        second.summary.update({k: v for k, v in entry.items() if k not in {"step", "epoch"}})
    second.fields["summary"] = {**first.summary, **second.summary}
    return second
