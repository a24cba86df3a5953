"""Finds runs on disk: names, folders and files, of this project and of other tools.

A folder is searched with its subfolders. What a run is, the content decides: a record, W&B's files,
TensorBoard's event files, a ``metrics.csv``, MLflow's folder or database, trackio's database, or
the Parquet files of an export. A run of this project is one run, whatever other files it holds.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from experiments.identity import experiment_name
from experiments.records.files import PARTIAL, reason_of
from experiments.records.log import METRICS
from experiments.records.record import RECORD
from experiments.records.runs import Run, read_run
from experiments.sources import (
    csv_runs,
    mlflow_runs,
    parquet_runs,
    tensorboard_runs,
    trackio_runs,
    wandb_runs,
)
from experiments.sources.databases import is_database, open_database
from experiments.sources.foreign import broken

_DATABASES = {".db", ".sqlite", ".sqlite3"}
_MLFLOW_DATABASE = "mlflow.db"
_IGNORED = {".git", ".venv", "__pycache__", "node_modules", ".trash"}
_DEEPEST = 8  # levels of folders
_MOST_FOLDERS = 20_000


class CompareError(ValueError):
    """There is nothing to compare; the message says what was searched and where."""


def find_runs(asked: Sequence[str], root: Path, now: float) -> list[Run]:
    """Finds and reads runs.

    If a run has a record and W&B files, the record is used.

    Args:
        asked: names or globs below ``root``, folders, or files of another tool; empty for all of
            ``root``.
        root: the folder in which names are searched.
        now: seconds since 1970.

    Raises:
        CompareError: if an argument names no run, or too many folders.
    """
    found: dict[str, Run] = {}
    names: list[str | None] = [*asked]
    for name in names or [None]:
        runs = _named(name, root, now, several=len(asked) > 1)
        if not runs:
            raise CompareError(_nothing(name, root, name is not None and Path(name).exists()))
        for run in runs:
            found.setdefault(os.path.realpath(run.path), run)
    recorded = {run.fields.get("wandb_id") for run in found.values() if run.source == "record"}
    twice = recorded - {None}
    return [
        run
        for run in found.values()
        if run.source == "record" or run.fields.get("wandb_id") not in twice
    ]


def _named(name: str | None, root: Path, now: float, several: bool) -> list[Run]:
    """The runs that an argument names; names of other tools' runs tell the folders apart."""
    if name is None:
        return _Search(root, now).runs([root])
    if Path(name).exists():
        place = Path(name)
        return _Search(place.absolute().parent if several else place, now).runs([place])
    places = _matching(name, root)
    base = os.path.commonpath([place.absolute().parent for place in places] or [root.absolute()])
    return _Search(Path(base), now).runs(places)


def _matching(name: str, root: Path) -> list[Path]:
    """The places of a name, a pattern or a line: below ``root``, or else below this folder."""
    if found := _glob(name, root):
        return [root / place for place in found]
    if os.sep in name:
        return [Path(place).absolute() for place in _glob(name)]
    places = sorted(root.iterdir()) if root.is_dir() else []
    return [place for place in places if experiment_name(place.name) == name]


def _glob(pattern: str, root: Path | None = None) -> list[str]:
    """The paths that match a pattern, also hidden ones; pathlib refuses absolute patterns."""
    found = glob.glob(pattern, root_dir=root, include_hidden=True)  # noqa: PTH207
    return sorted(place for place in found if f"{PARTIAL}/" not in f"{place}/")


class _Search:
    """A search through a folder and its subfolders.

    Args:
        base: names of runs of other tools are relative to it.
        now: seconds since 1970.
    """

    def __init__(self, base: Path, now: float) -> None:
        self._base = base
        self._now = now
        self._wandb: list[Path] = []  # read together, as a run may have several
        self._seen: set[str] = set()

    def runs(self, places: Sequence[Path]) -> list[Run]:
        """The runs of folders and files."""
        found: list[Run] = []
        for place in places:
            found += self._in_folder(place, _DEEPEST) if place.is_dir() else self._of_file(place)
        return [*found, *wandb_runs.read_wandb(sorted(self._wandb), self._now)]

    def _in_folder(self, folder: Path, depth: int) -> list[Run]:
        if (known := os.path.realpath(folder)) in self._seen:
            return []
        self._seen.add(known)
        if len(self._seen) > _MOST_FOLDERS:
            raise CompareError(
                f"{self._base} holds more than {_MOST_FOLDERS:,} folders; name a folder within it"
            )
        try:  # links last: what they lead to may be found under its own name
            entries = sorted(os.scandir(folder), key=lambda e: (e.is_symlink(), e.name))
        except OSError as error:
            return [Run(folder.name, folder, "unreadable", note=reason_of(error))]
        names = {entry.name for entry in entries}
        if RECORD in names:
            return [read_run(folder, self._now)]
        if (whole := self._whole(folder, names)) is not None:
            return whole
        files = len(self._wandb)
        found = self._files_of(folder, names)
        found += [run for entry in entries for run in self._below(folder, entry, depth)]
        has_lost_its_record = METRICS in names and not found and len(self._wandb) == files
        return [read_run(folder, self._now)] if has_lost_its_record else found

    def _below(self, folder: Path, entry: "os.DirEntry[str]", depth: int) -> list[Run]:
        """The runs of a subfolder. Links are followed at the top, one level deep: to a disk."""
        is_ignored = entry.name in _IGNORED or entry.name.endswith(PARTIAL)
        is_link = entry.is_symlink()
        if is_ignored or not depth or (is_link and depth < _DEEPEST):
            return []
        try:
            if not entry.is_dir():
                return []
        except OSError:  # a link to itself
            return []
        return self._in_folder(folder / entry.name, min(depth - 1, 1) if is_link else depth - 1)

    def _whole(self, folder: Path, names: set[str]) -> list[Run] | None:
        """The runs of a folder below which there are no others; None if it is none."""
        if files := [folder / name for name in names if name.endswith(wandb_runs.SUFFIX)]:
            self._wandb += [] if folder.is_symlink() else files
            return []
        return mlflow_runs.read_folder(folder) if mlflow_runs.META in names else None

    def _files_of(self, folder: Path, names: set[str]) -> list[Run]:
        """The runs in the files of a folder; two loggers in one folder are one run."""
        found: list[Run] = []
        if csv_runs.METRICS_CSV in names:
            found = [csv_runs.read_csv(folder / csv_runs.METRICS_CSV, self._name(folder))]
        elif any(tensorboard_runs.MARK in name for name in names) and not self._is_part(folder):
            found = [tensorboard_runs.read_tensorboard(folder, self._name(folder))]
        names = {name for name in names if not (folder / name).is_symlink()}
        if names >= {parquet_runs.RUNS_FILE, parquet_runs.METRICS_FILE}:
            found += parquet_runs.read_parquet(folder)
        for name in sorted(name for name in names if Path(name).suffix in _DATABASES):
            if name == _MLFLOW_DATABASE or is_database(folder / name):
                found += _in_database(folder / name)
        return found

    def _of_file(self, path: Path) -> list[Run]:
        """The runs of a file that was named."""
        if path.suffix == wandb_runs.SUFFIX:
            self._wandb.append(path)
        elif path.name == RECORD:
            return [read_run(path.parent, self._now)]
        elif tensorboard_runs.MARK in path.name:
            return [tensorboard_runs.read_tensorboard(path.parent)]
        elif path.suffix == ".csv":
            return [csv_runs.read_csv(path)]
        elif path.suffix == ".parquet":
            return parquet_runs.read_parquet(path.parent)
        elif path.suffix in _DATABASES or is_database(path):
            return _in_database(path)
        return []

    def _is_part(self, folder: Path) -> bool:
        """Whether the run above, which was found too, holds the event files of a folder."""
        above = os.path.realpath(folder.parent) in self._seen
        return above and tensorboard_runs.is_part_of_run(folder)

    def _name(self, folder: Path) -> str:
        """The name of a run that has none of its own, as TensorBoard shows it."""
        name = os.path.relpath(folder, self._base)
        return folder.absolute().name if name == "." else name


def _in_database(path: Path) -> list[Run]:
    """The runs in a file of SQLite; a database of another program has none."""
    try:
        with open_database(path) as database:
            if mlflow_runs.is_mlflow(database):
                return mlflow_runs.read_tables(path, database)
            if trackio_runs.is_trackio(database):
                return trackio_runs.read_tables(path, database)
            return []
    except (OSError, ValueError) as error:
        return [broken(path, f"it can't be read: {reason_of(error)}", "sqlite")]


def _nothing(name: str | None, root: Path, exists: bool) -> str:
    if exists:
        return f"no runs: {name} is no run and holds no runs"
    if name and os.sep in name and not any(mark in name for mark in "*?["):
        return f"no runs: there is no file or folder {name}"
    if not root.is_dir():
        return f"no runs: {root} is no folder; name another with --runs_dir"
    known = sorted(place.parent.name for place in map(Path, _glob(f"*/{RECORD}", root)))
    there = f"it has {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}" if known else ""
    what = f"nothing called {name} in {root}" if name else f"{root} holds none"
    return f"no runs: {what}; {there or 'fit one with python cli.py fit'}"
