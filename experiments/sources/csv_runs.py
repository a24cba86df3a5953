"""Reads runs from a ``metrics.csv``, as Lightning's ``CSVLogger`` writes it.

The settings are in ``hparams.yaml`` beside it, or, if the LightningCLI made the run, in
``config.yaml``. A column that holds no number is left out.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.records.files import read_lines, reason_of
from experiments.records.reader import LARGEST_LOG, MOST_ENTRIES, read_config
from experiments.records.runs import Run
from experiments.sources.foreign import Point, broken, entries_of, run_of, step_of

SOURCE = "csv"
METRICS_CSV = "metrics.csv"
_SETTINGS = ("config.yaml", "hparams.yaml")
# The column that counts the training, the best first.
_STEPS = ("step", "trainer/global_step", "global_step", "iteration", "epoch")
_MOST_COLUMNS = 10_000


def read_csv(path: Path, name: str = "") -> Run:
    """Reads the run of a CSV file; one that can't be read is unreadable.

    Args:
        path: the file.
        name: of the run; default: of its folder, or of another file than ``metrics.csv``.
    """
    folder = path.parent
    place = folder if path.name == METRICS_CSV else path
    name = name or place.absolute().name
    try:
        table = _Table(path)
        entries = entries_of(table.points())
        settings, note = settings_in(folder)
        return run_of(name, place, SOURCE, settings, entries, note=table.note() or note)
    except (OSError, ValueError, csv.Error) as error:
        return broken(place, f"{path.name} can't be read: {reason_of(error)}", SOURCE, name)


def settings_in(folder: Path) -> tuple[dict[str, Any], str]:
    """The settings that Lightning keeps in a folder, and a problem with them."""
    for name in _SETTINGS:
        try:
            if found := read_config(folder / name):
                return dict(found), ""
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return {}, f"{name} can't be read: {reason_of(error)}; its settings are left out"
    return {}, ""


class _Table:
    """The lines of a CSV file, which are counted as they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = self._odd = 0
        self._has_step = True

    def points(self) -> Iterator[Point]:
        """Yields the numbers of the file.

        Raises:
            ValueError: if it has no header or too many lines.
            csv.Error: if it is no CSV.
        """
        rows = csv.reader(self._text(), strict=True)
        header = [cell.strip() for cell in next(rows, [])]
        if not any(header):
            raise ValueError("it is empty")
        if len(header) > _MOST_COLUMNS:
            raise ValueError(f"it has more than {_MOST_COLUMNS:,} columns")
        step = next((header.index(key) for key in _STEPS if key in header), None)
        self._has_step = step is not None
        for row in rows:
            if not row:
                continue
            self._lines += 1
            if self._lines > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES:,} lines")
            self._odd += len(row) != len(header)
            at = step_of(_number(row[step])) if step is not None and step < len(row) else None
            for column, (metric, cell) in enumerate(zip(header, row, strict=False)):
                if metric and column != step:
                    yield Point(metric, at, _number(cell))

    def note(self) -> str:
        """What is wrong with the file; empty if nothing is."""
        if not self._has_step:
            return f"{self._path.name} has no column step: its curves are left out"
        if self._odd:
            name = self._path.name
            return f"{self._odd} of {self._lines} lines of {name} have another number of cells"
        return ""

    def _text(self) -> Iterator[str]:
        for number, line in enumerate(read_lines(self._path, LARGEST_LOG)):
            yield line if number else line.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")


def _number(cell: str) -> float | int | None:
    """The number of a cell; None if it holds none."""
    try:
        return float(cell)
    except ValueError:
        return None
