"""Writes runs as a project of trackio.

``trackio.log`` notes the time of the call as the time of a value. So the rows are written with the
function with which trackio itself imports runs of other tools.
"""

import contextlib
import io
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.export_runs.common import (
    facts_of,
    final_numbers,
    labels_of,
    last_step,
    library,
    logged,
    settings_of,
    start_of,
    surroundings,
)
from experiments.records.runs import Run
from experiments.sources.foreign import FACTS

PACKAGE = "trackio"


def write_trackio(runs: Sequence[Run], folder: Path, project: str) -> list[str]:
    """Writes the database of a project.

    Args:
        runs: the runs.
        folder: an empty folder.
        project: trackio's project.

    Returns:
        Nothing that was left out.

    Raises:
        TargetError: without trackio.
    """
    with tempfile.TemporaryDirectory() as aside:
        places = {"TRACKIO_DIR": str(folder), "HF_HOME": aside}
        modes = {"TRACKIO_STORAGE_MODE": "sqlite", "TRACKIO_SQLITE_JOURNAL_MODE": "delete"}
        with surroundings("TRACKIO_", folder, **places, **modes):
            storage = library("trackio.sqlite_storage", PACKAGE).SQLiteStorage
            with contextlib.redirect_stdout(io.StringIO()):
                for run in runs:
                    _write(storage, run, project)
    for lock in folder.glob("*.lock"):
        lock.unlink()
    return []


def _write(storage: Any, run: Run, project: str) -> None:
    began = start_of(run)
    rows = [(numbers, step, began + (seconds or 0)) for step, seconds, numbers in logged(run)]
    end = max((at for _, _, at in rows), default=began)
    if (final := final_numbers(run)) or not rows:
        rows.append((final, last_step(run), end))
    labels = {"_Group": labels_of(run)["group"], "_Created": _date(began), "_Username": None}
    facts = {**facts_of(run), "tags": labels_of(run)["tags"]}
    config = {**settings_of(run), FACTS: facts, **labels}
    metrics, steps, times = zip(*rows, strict=True)
    storage.bulk_log(
        project=project,
        run=run.name,
        metrics_list=list(metrics),
        steps=list(steps),
        timestamps=[_date(at) for at in times],
        config=config,
        run_id=secrets.token_hex(16),
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
