"""Reads the runs in ``runs.parquet`` and ``metrics.parquet``, as `experiments.export_runs` writes.

``runs.parquet`` has a row for each run; its columns ``config``, ``summary`` and ``fields`` hold
JSON. ``metrics.parquet`` has a row for each run, entry and metric.
"""

import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.records.files import open_regular, reason_of
from experiments.records.reader import parse_json
from experiments.records.runs import Run
from experiments.sources.foreign import FACTS, MOST_POINTS, broken, run_of

SOURCE = "parquet"
RUNS_FILE, METRICS_FILE = "runs.parquet", "metrics.parquet"
MARK = b"experiments.export_runs"  # a key of the file's own metadata
FORMAT = b"1"
RUN_COLUMNS = ("run", "name", "config", "summary", "fields")
METRIC_COLUMNS = ("run", "entry", "step", "seconds", "metric", "value")
_MOST_RUNS = 10_000
_AT_ONCE = 10_000  # rows
_AS_NUMBERS = ["metric"]  # repeated texts


def read_parquet(folder: Path) -> list[Run]:
    """Reads the runs of a folder; files of other programs give none, broken ones a line."""
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return [broken(folder, "Parquet files need a reader: pip install pyarrow", SOURCE)]
    try:
        return _runs(folder, reader)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [broken(folder, f"its Parquet files can't be read: {reason_of(error)}", SOURCE)]


def _runs(folder: Path, reader: Any) -> list[Run]:
    with open_regular(folder / RUNS_FILE) as file:
        table = reader.ParquetFile(file)
        found = (table.schema_arrow.metadata or {}).get(MARK)
        if found is None:
            return []
        if found != FORMAT:
            version = found.decode(errors="replace")
            raise ValueError(f"they have format {version}, newer than {FORMAT.decode()}")
        if table.metadata.num_rows > _MOST_RUNS:
            raise ValueError(f"they have more than {_MOST_RUNS:,} runs")
        rows = list(_rows(table, RUN_COLUMNS))
    entries = _entries(folder / METRICS_FILE, reader)
    return [_run(folder, row, entries) for row in rows]


def _rows(table: Any, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(_AT_ONCE, columns=list(columns)):
        yield from batch.to_pylist()


def _entries(path: Path, reader: Any) -> dict[Any, dict[Any, dict[str, Any]]]:
    """The log of each run, by the number of the run and of the entry."""
    found: dict[Any, dict[Any, dict[str, Any]]] = defaultdict(dict)
    with open_regular(path) as file:
        table = reader.ParquetFile(file, read_dictionary=_AS_NUMBERS)
        if table.metadata.num_rows > MOST_POINTS:
            raise ValueError(f"they have more than {MOST_POINTS:,} values")
        for row in _rows(table, METRIC_COLUMNS):
            entry = found[row["run"]].setdefault(row["entry"], {"step": row["step"]})
            if row["seconds"] is not None:
                entry["seconds"] = row["seconds"]
            entry[row["metric"]] = row["value"]
    return found


def _run(folder: Path, row: dict[str, Any], entries: dict[Any, dict[Any, dict[str, Any]]]) -> Run:
    number = int(row["run"])
    logged = [entry for _, entry in sorted(entries[number].items())]
    settings = {**parse_json(row["config"]), FACTS: parse_json(row["fields"])}
    name, summary = str(row["name"]), parse_json(row["summary"])
    return run_of(name, folder / str(number), SOURCE, settings, logged, summary=summary)
