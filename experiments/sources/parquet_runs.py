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
from experiments.sources.foreign import FACTS, broken, finite, is_value, run_of

SOURCE = "parquet"
RUNS_FILE, METRICS_FILE = "runs.parquet", "metrics.parquet"
MARK = b"experiments.export_runs"  # a key of the file's own metadata
FORMAT = b"1"
RUN_COLUMNS = ("run", "name", "config", "summary", "fields")
METRIC_COLUMNS = ("run", "entry", "step", "seconds", "metric", "value")
_MOST_RUNS = 10_000
_MOST_VALUES = 5_000_000
_AT_ONCE = 10_000  # rows
_LARGEST_TEXT = 2**27  # bytes of JSON, and of names; a text that is repeated is small in the file
_RUN_TEXTS, _METRIC_TEXTS = ["name", "config", "summary", "fields"], ["metric"]
_TEXTS = {*_RUN_TEXTS, *_METRIC_TEXTS}


def read_parquet(folder: Path) -> list[Run]:
    """Reads the runs of a folder; files of other programs give none, broken ones a line."""
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return [broken(folder, "Parquet files need a reader: pip install pyarrow", SOURCE)]
    try:
        return _runs(folder, reader)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
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
        table = reader.ParquetFile(file, read_dictionary=_RUN_TEXTS)
        rows = list(_rows(table, RUN_COLUMNS, _MOST_RUNS))
    if sum(len(text) for row in rows for text in row if isinstance(text, str)) > _LARGEST_TEXT:
        raise ValueError(f"they have more than {_LARGEST_TEXT:,} bytes of settings")
    entries = _entries(folder / METRICS_FILE, reader)
    return [_run(folder, row, entries) for row in rows]


def _rows(table: Any, columns: tuple[str, ...], most: int) -> Iterator[tuple[Any, ...]]:
    if table.metadata.num_rows > most:
        raise ValueError(f"they have more than {most:,} rows")
    for batch in table.iter_batches(_AT_ONCE, columns=list(columns)):
        values = [_values(batch.column(name), name in _TEXTS) for name in columns]
        yield from zip(*values, strict=True)


def _values(column: Any, is_text: bool) -> list[Any]:
    """The values of a column; rows with the same text share it, as in the file."""
    if not is_text:
        found: list[Any] = column.to_pylist()
        return found
    if column.dictionary.nbytes > _LARGEST_TEXT:
        raise ValueError(f"they have more than {_LARGEST_TEXT:,} bytes of text")
    texts = column.dictionary.to_pylist()
    return [texts[place] for place in column.indices.to_pylist()]


def _entries(path: Path, reader: Any) -> dict[Any, dict[Any, dict[str, Any]]]:
    """The log of each run, by the number of the run and of the entry."""
    logs: dict[Any, dict[Any, dict[str, Any]]] = defaultdict(dict)
    with open_regular(path) as file:
        table = reader.ParquetFile(file, read_dictionary=_METRIC_TEXTS)
        for run, number, step, seconds, metric, value in _rows(table, METRIC_COLUMNS, _MOST_VALUES):
            entry = logs[run].setdefault(number, {"step": step})
            if seconds is not None:
                entry["seconds"] = seconds
            entry[metric] = finite(value) if is_value(value) else None
    return logs


def _run(folder: Path, row: tuple[Any, ...], logs: dict[Any, dict[Any, dict[str, Any]]]) -> Run:
    number, name, config, summary, fields = row
    entries = [entry for _, entry in sorted(logs[number].items())]
    settings = {**parse_json(config), FACTS: parse_json(fields)}
    place = folder / str(int(number))
    return run_of(name, place, SOURCE, settings, entries, summary=parse_json(summary))
