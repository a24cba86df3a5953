"""The log of a run, ``metrics.jsonl``: every process of the run appends a line for each entry."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.errors import RunError
from experiments.records.files import appending, reason_of, replace_file, synced, writing
from experiments.records.reader import LARGEST_OWN_LOG, read_log

METRICS = "metrics.jsonl"
EVALUATED = ("test", "validate")  # log prefixes of evaluations, not of the fit


def add_entry(run: Path, entry: Mapping[str, Any]) -> None:
    """Appends an entry to the log of a run.

    Args:
        run: its folder.
        entry: as `to_json_values` makes it, with ``step`` and ``seconds``.

    Raises:
        RunError: if it can't be written.
    """
    with writing(run), appending(run / METRICS) as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


def write_entries(run: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the whole log of a run.

    Raises:
        RunError: if it can't be written.
    """
    with writing(run):
        replace_file(run / METRICS, "".join(json.dumps(entry) + "\n" for entry in entries))


def sync_log(run: Path) -> None:
    """Syncs the log to the disk, as a checkpoint of the same step is synced."""
    if (run / METRICS).is_file():
        with synced(run / METRICS, "rb+"):
            pass


def entries_in(run: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of a run's log, oldest first.

    An unfinished last line of a killed process is skipped.

    Raises:
        RunError: for any other line that is no entry.
    """
    path = run / METRICS
    try:
        for number, (line, entry) in enumerate(read_log(path, LARGEST_OWN_LOG), 1):
            if entry is not None:
                seconds = entry.get("seconds") or 0.0
                yield {**entry, "step": entry.get("step"), "seconds": seconds}
            elif line.endswith("\n"):
                raise RunError(f"{path}, line {number}: no entry of a log; remove the line")
    except FileNotFoundError:
        return  # nothing was logged yet
    except OSError as error:
        raise RunError(f"{path} can't be read: {reason_of(error)}; remove it") from error


def is_fit_entry(entry: Mapping[str, Any], step: int) -> bool:
    """Whether an entry belongs to the first ``step`` steps of the fit, not to an evaluation."""
    return not is_evaluation_entry(entry) and (entry["step"] or 0) <= step and step > 0


def is_evaluation_entry(entry: Mapping[str, Any]) -> bool:
    """Whether an entry belongs to a separate evaluation."""
    return any(key.partition("/")[0] in EVALUATED for key in entry)


def to_json_values(value: Any) -> Any:
    """Converts a value to JSON: scalar tensors become floats, and non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(key): to_json_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(entry) for entry in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
