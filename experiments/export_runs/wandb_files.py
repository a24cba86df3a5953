"""Writes runs as W&B's offline files, which ``wandb sync`` uploads if you want."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.export_runs.common import (
    facts_of,
    final_values,
    labels_of,
    library,
    logged,
    settings_of,
    start_of,
    surroundings,
)
from experiments.records.runs import Run
from experiments.sources.foreign import FACTS

PACKAGE = "wandb"
_FOLDERS = ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR")


def write_wandb(runs: Sequence[Run], folder: Path, project: str) -> list[str]:
    """Writes a folder ``wandb`` with a folder for each run.

    Args:
        runs: the runs.
        folder: an empty folder.
        project: W&B's project.

    Returns:
        Nothing that was left out.

    Raises:
        TargetError: without W&B.
    """
    with tempfile.TemporaryDirectory() as aside:
        places = {f"WANDB_{name}": aside for name in _FOLDERS} | {"WANDB_DIR": str(folder)}
        with surroundings(
            "WANDB_", folder, WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", **places
        ):
            wandb = library("wandb", PACKAGE)
            for run in runs:
                _write(wandb, run, folder, project)
            with contextlib.suppress(Exception):  # ends W&B's own process
                wandb.teardown()
    for path in [*(folder / "wandb").rglob("*")]:  # logs, and links to the folder's first place
        if path.is_symlink() or path.suffix == ".log":
            path.unlink()
    return []


def _write(wandb: Any, run: Run, folder: Path, project: str) -> None:
    labels = labels_of(run)
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_save_requirements=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    written = wandb.init(
        project=project,
        name=run.name,
        group=labels["group"],
        job_type=labels["job_type"],
        tags=labels["tags"],
        notes=labels["notes"],
        config={**settings_of(run), FACTS: {**facts_of(run), "started": _started(run)}},
        dir=str(folder),
        mode="offline",
        reinit="finish_previous",
        settings=settings,
    )
    began = start_of(run)
    for step, seconds, numbers in logged(run):
        at = {} if seconds is None else {"_timestamp": began + seconds}
        written.log({**numbers, **at, "trainer/global_step": step})
    written.summary.update({key: v for key, v in final_values(run).items() if v is not None})
    written.finish(exit_code=0 if run.status == "finished" else 1)


def _started(run: Run) -> str | None:
    started = run.fields.get("started")
    return started if isinstance(started, str) else None
