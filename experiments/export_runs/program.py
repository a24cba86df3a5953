"""Writes runs for other tools: ``python -m experiments.export_runs RUN ... --to trackio``.

    python -m experiments.export_runs --to trackio --output exported          # all runs in runs/
    python -m experiments.export_runs 'mlp*' --to mlflow --output exported
    python -m experiments.export_runs runs mlflow.db --to parquet --output exported

It takes what `experiments.compare` takes, also runs of other tools. Name, settings, seed, status,
notes, group, curves with steps and times, and final values are written with the tool's own library,
into the folder alone and without a network. Weights and pictures stay in the run's folder.
"""

import argparse
import contextlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.command_line.config_files import expand_home, expand_homes, use_utf8
from experiments.errors import OneLineParser, fail
from experiments.export_runs.common import TargetError
from experiments.export_runs.mlflow_files import write_mlflow
from experiments.export_runs.parquet_files import write_parquet
from experiments.export_runs.trackio_files import write_trackio
from experiments.export_runs.wandb_files import write_wandb
from experiments.records.files import PARTIAL, reason_of
from experiments.records.runs import Run
from experiments.sources.find import CompareError, find_runs
from experiments.texts import printable

Write = Callable[[Sequence[Run], Path, str], list[str]]
_TARGETS: dict[str, Write] = {
    "trackio": write_trackio,
    "mlflow": write_mlflow,
    "parquet": write_parquet,
    "wandb": write_wandb,
}
_SHOWN_BY = {
    "trackio": "TRACKIO_DIR={folder} trackio show --project {project}",
    "mlflow": "mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db",
    "parquet": "python -m experiments.compare {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*",
}


def main(args: list[str] | None = None) -> None:
    """Writes runs, and prints what shows them.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    use_utf8()
    options = parser().parse_args(args)
    try:
        _check(options)
        runs = _readable(find_runs(options.runs, options.runs_dir, time.time()))
        notes = export(runs, options.to, options.output, options.project, options.overwrite)
    except (CompareError, TargetError, OSError) as error:
        fail(error)
    for note in notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    folder, project = (
        shlex.quote(str(word)) for word in (options.output.absolute(), options.project)
    )
    shown = _SHOWN_BY[options.to].format(folder=folder, project=project)
    what = "1 run; show it" if len(runs) == 1 else f"{len(runs)} runs; show them"
    print(printable(f"wrote {what} with: {shown}"))


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog="python -m experiments.export_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="*", type=expand_homes, help="as for compare; default: all of --runs_dir"
    )
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs"))
    parser.add_argument("--to", choices=_TARGETS, required=True)
    parser.add_argument("--output", type=expand_home, required=True, help="a folder")
    parser.add_argument("--project", default="cifar10", help="the project or experiment there")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier export"
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.output.resolve().is_relative_to(options.runs_dir.resolve()):
        raise TargetError(
            f"{options.output} is in {options.runs_dir}, where compare would find each run twice; "
            "name a folder elsewhere with --output"
        )


def _readable(runs: Sequence[Run]) -> list[Run]:
    """The runs that can be written; the others are named.

    Raises:
        CompareError: if there is none.
    """
    found = [run for run in runs if run.status != "unreadable"]
    for run in runs:
        if run.status == "unreadable":
            print(printable(f"warning: {run.name} is left out: {run.note}"), file=sys.stderr)
    if not found:
        raise CompareError("no run can be read")
    return found


def export(
    runs: Sequence[Run], to: str, output: Path, project: str = "cifar10", overwrite: bool = False
) -> list[str]:
    """Writes runs in the format of another tool: all of them, or nothing.

    Args:
        runs: from `experiments.sources.find.find_runs`.
        to: ``trackio``, ``mlflow``, ``parquet`` or ``wandb``.
        output: a folder, which is made if it is missing.
        project: the project or experiment there.
        overwrite: whether files of the same name are replaced.

    Returns:
        What was left out, in one line each.

    Raises:
        TargetError: if the library is missing, or files would be overwritten.
        OSError: if the folder can't be written.
    """
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise TargetError(f"{output} is not empty; name another --output, or pass --overwrite")
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=output) as aside:
            notes = _TARGETS[to](runs, Path(aside).absolute(), project)
            for path in sorted(Path(aside).iterdir()):
                _move(path, output / path.name)
    except (TargetError, OSError):
        raise
    except Exception as error:  # each library has its own kinds
        raise TargetError(f"{to} refuses the runs: {reason_of(error)}") from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds the runs
                output.rmdir()
    return notes


def _move(path: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    path.replace(target)
