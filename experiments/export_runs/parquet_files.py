"""Writes runs as two Parquet files, see `experiments.sources.parquet_runs`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.export_runs.common import facts_of, labels_of, library, logged, settings_of
from experiments.records.runs import Run
from experiments.sources.parquet_runs import FORMAT, MARK, METRICS_FILE, RUNS_FILE

PACKAGE = "pyarrow"


def write_parquet(runs: Sequence[Run], folder: Path, project: str) -> list[str]:
    """Writes ``runs.parquet`` and ``metrics.parquet``.

    Args:
        runs: the runs.
        folder: an empty folder.
        project: the value of the column ``project``.

    Returns:
        Nothing that was left out.

    Raises:
        TargetError: without pyarrow.
    """
    arrow, parquet = library("pyarrow", PACKAGE), library("pyarrow.parquet", PACKAGE)
    rows = [_row(number, run, project) for number, run in enumerate(runs)]
    integers, texts = arrow.int64(), arrow.string()
    columns = [("run", integers), ("seed", integers)]
    names = (*("project", "name", "source", "status", "note", "group", "job_type", "started"),)
    columns += [(key, texts) for key in (*names, "config", "summary", "fields")]
    schema = arrow.schema(columns, metadata={MARK: FORMAT})
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), folder / RUNS_FILE)
    points = [
        (number, entry, step, seconds, metric, value)
        for number, run in enumerate(runs)
        for entry, (step, seconds, values) in enumerate(logged(run))
        for metric, value in values.items()
    ]
    kinds = (integers, integers, integers, arrow.float64(), texts, arrow.float64())
    keys = ("run", "entry", "step", "seconds", "metric", "value")
    data = [list(column) for column in zip(*points, strict=True)] or [[] for _ in keys]
    schema = arrow.schema(list(zip(keys, kinds, strict=True)), metadata={MARK: FORMAT})
    parquet.write_table(
        arrow.Table.from_arrays(
            [arrow.array(column, kind) for column, kind in zip(data, kinds, strict=True)],
            schema=schema,
        ),
        folder / METRICS_FILE,
    )
    return []


def _row(number: int, run: Run, project: str) -> dict[str, Any]:
    labels = labels_of(run)
    facts = {**facts_of(run), "tags": labels["tags"], "group": labels["group"]}
    texts = {"config": settings_of(run), "summary": run.summary, "fields": facts}
    return {
        "run": number,
        "seed": run.seed,
        "project": project,
        "name": run.name,
        "source": run.source,
        "status": run.status,
        "note": run.note,
        "group": labels["group"],
        "job_type": labels["job_type"],
        "started": run.fields.get("started"),
        **{key: json.dumps(value, default=str) for key, value in texts.items()},
    }
