"""Compares runs: ``python -m experiments.compare [RUN ...]``, without a network or an account.

    python -m experiments.compare                                  # all runs in runs/
    python -m experiments.compare 'mlp*' --baseline mlp            # names and globs in runs/
    python -m experiments.compare runs/reproduce --format md       # a folder of runs
    python -m experiments.compare somewhere/wandb                  # W&B's own files
    python -m experiments.compare --plot curves.png --format html --output runs.html

Runs that differ in their seed alone are one line: mean and standard deviation. Only what differs
between the configurations is shown. Runs that crashed, diverged or can't be read are shown as such.
"""

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from experiments import pages, plots
from experiments.config_files import expand_home, expand_homes, use_utf8
from experiments.groups import (
    Group,
    doubts,
    group_runs,
    is_loss,
    numbers,
    table,
    warnings_about,
)
from experiments.record import CONFIG, METRICS, RECORD, experiment_name
from experiments.runs import Run, read_run
from experiments.wandb_runs import find_wandb_files, read_wandb

_FORMATS = ("table", "md", "csv", "json", "html")
_METRICS = ("test/acc", "val/acc", "train/acc")
_CURVES = ("val/acc", "test_curve/acc", "train/acc")
_MOST_CURVES = 10
_OF_A_RUN = (RECORD, CONFIG, METRICS)


class CompareError(ValueError):
    """Nothing to compare; the message says what was looked for and where."""


def main(args: list[str] | None = None) -> None:
    """Prints or writes a comparison.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    use_utf8()
    options = _parser().parse_args(args)
    try:
        _check(options)
        runs = find_runs(options.runs, options.runs_dir, time.time())
        text = compare(runs, options)
        if options.output:
            options.output.write_text(text, encoding="utf-8")
    except (CompareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"wrote {options.output}" if options.output else text.rstrip("\n"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=expand_homes,
        help="names, globs, folders; default: all of --runs_dir",
    )
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs"))
    parser.add_argument("--metric", help=f"to sort by; default: the first of {', '.join(_METRICS)}")
    parser.add_argument(
        "--curve",
        help=f"best and last value of; default: what most runs have of {', '.join(_CURVES)}",
    )
    parser.add_argument("--baseline", help="a line's name: the others are tested against it")
    parser.add_argument("--no_group", action="store_true", help="a line for each run")
    parser.add_argument("--all", action="store_true", help="show the whole configuration")
    parser.add_argument(
        "--ascending", action="store_true", help="smallest first, as losses are by default"
    )
    parser.add_argument("--top", type=int, help="so many lines only")
    parser.add_argument("--format", choices=_FORMATS, default="table")
    parser.add_argument("--output", type=expand_home, help="a file; default: standard output")
    parser.add_argument("--plot", type=expand_home, help="draw the curves, with bands, as PNG")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.top is not None and options.top < 1:
        raise CompareError(f"--top must be at least 1, got {options.top}")
    if options.plot and options.plot.suffix.lower() != ".png":
        raise CompareError(f"--plot draws PNG files, such as curves.png, not {options.plot}")


def find_runs(asked: Sequence[str], root: Path, now: float) -> list[Run]:
    """Finds and reads runs.

    Of a run's record and its W&B files the record counts.

    Args:
        asked: names or globs below ``root``, folders of runs, runs' folders, or W&B's; all of
            ``root`` for none.
        root: where names are looked for.
        now: seconds since 1970.

    Raises:
        CompareError: if one of them names no run.
    """
    found: dict[Path, Run] = {}
    for name in asked or ["*"]:
        folders = [Path(name)] if Path(name).exists() else _matching(name, root)
        runs = [run for folder in folders for run in _runs_in(folder, now)]
        if not runs:
            exists = bool(asked) and Path(name).exists()
            raise CompareError(_nothing(name if asked else None, root, exists))
        found |= {run.path.resolve(): run for run in runs}
    recorded = {run.fields.get("wandb_id") for run in found.values() if run.source == "record"}
    twice = recorded - {None}
    return [
        run
        for run in found.values()
        if run.source == "record" or run.fields.get("wandb_id") not in twice
    ]


def _matching(name: str, root: Path) -> list[Path]:
    """The folders of a name, a pattern, or a line's name: in that of all runs, else from here."""
    if found := glob.glob(name, root_dir=root):  # noqa: PTH207 - pathlib refuses absolute ones
        return [root / place for place in sorted(found)]
    if os.sep in name:
        return [Path(place).absolute() for place in sorted(glob.glob(name))]  # noqa: PTH207
    places = sorted(root.iterdir()) if root.is_dir() else []
    return [place for place in places if experiment_name(place.name) == name]


def _runs_in(folder: Path, now: float) -> list[Run]:
    """The run of a folder, the runs in it, or those in W&B's files there."""
    if (folder / RECORD).exists():
        return [read_run(folder, now)]
    below = {path.parent for name in _OF_A_RUN for path in folder.glob(f"*/{name}")}
    if any((path / RECORD).exists() for path in below):
        return [read_run(path, now) for path in sorted(below)]
    if files := find_wandb_files(folder) or find_wandb_files(folder / "wandb"):
        return read_wandb(files, now)
    looks_like_a_run = any((folder / name).exists() for name in _OF_A_RUN)
    return [read_run(folder, now)] if looks_like_a_run else []


def _nothing(name: str | None, root: Path, exists: bool) -> str:
    if exists:
        return f"no runs: {name} is none and holds none"
    if not root.is_dir():
        return f"no runs: {root} is no folder; name another with --runs_dir"
    known = sorted(path.parent.name for path in root.glob(f"*/{RECORD}"))
    there = f"it has {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}" if known else ""
    what = f"nothing called {name} in {root}" if name else f"{root} holds none"
    return f"no runs: {what}; {there or 'fit one with python cli.py fit'}"


def compare(runs: Sequence[Run], options: argparse.Namespace) -> str:
    """Groups, sorts and renders runs, and draws their curves if asked.

    Raises:
        CompareError: for a metric or baseline that none of them has.
    """
    metric = _choose(runs, options.metric, _METRICS, lambda run, name: run.value(name) is not None)
    curve = _choose(runs, options.curve, _CURVES, lambda run, name: bool(run.curve(name)), True)
    groups = group_runs(runs, metric, curve, by_seed=not options.no_group)
    smallest_first = options.ascending or is_loss(metric)
    groups.sort(key=lambda group: group.sort_key(smallest_first))
    baseline = _baseline(groups, options.baseline)
    warnings = [*_lacking(runs, metric, options), *warnings_about(runs), *doubts(groups)]
    shown = groups[: options.top]
    if options.plot:
        _plot(shown, curve, options.plot)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _render(shown, baseline, warnings, options)


def _choose(
    runs: Sequence[Run],
    asked: str | None,
    names: Sequence[str],
    has: Callable[[Run, str], bool],
    commonest: bool = False,
) -> str:
    """The name asked for, else the first that a run has, or the first that most runs have."""
    if asked is None:
        counts = {name: sum(has(run, name) for run in runs) for name in names}
        return max(names, key=lambda name: counts[name] if commonest else counts[name] > 0)
    if not any(has(run, asked) for run in runs):
        known = sorted({key for run in runs for key in run.summary if run.value(key) is not None})
        raise CompareError(f"no run has {asked}; there are {', '.join(known) or 'no metrics'}")
    return asked


def _lacking(runs: Sequence[Run], metric: str, options: argparse.Namespace) -> list[str]:
    """Says what runs are not compared by, or with."""
    if metric == "train/acc" and options.metric is None:
        return ["compared by train/acc: no run has an accuracy on validation or test"]
    without = sum(run.value(metric) is None for run in runs if run.status != "unreadable")
    return [f"{without} of {len(runs)} runs have no {metric}"] if without else []


def _baseline(groups: Sequence[Group], name: str | None) -> Group | None:
    found = [group for group in groups if name in {group.name, *(r.name for r in group.runs)}]
    if name is not None and not found:
        names = ", ".join(group.name for group in groups)
        raise CompareError(f"no line called {name} to compare with; there are {names}")
    return found[0] if name is not None else None


def _render(
    groups: Sequence[Group],
    baseline: Group | None,
    warnings: Sequence[str],
    options: argparse.Namespace,
) -> str:
    if options.format in {"csv", "json"}:
        frame = numbers(groups, baseline, everything=options.all)
        if options.format == "csv":
            return str(frame.to_csv(index=False))
        rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
        return json.dumps({"warnings": warnings, "runs": rows}, indent=1) + "\n"
    frame = table(groups, baseline, everything=options.all)
    if options.format == "table":
        return _plain(frame)
    if options.format == "md":
        notes = "".join(f"\n\nWarning: {warning}" for warning in warnings)
        return f"{pages.markdown_table(frame)}{notes}\n"
    blocks: list[pages.Block] = [pages.Table(frame)]
    blocks[:0] = [pages.Paragraph(f"Warning: {warning}") for warning in warnings]
    if options.plot:
        blocks.append(pages.Figure(options.plot, "Mean and standard deviation over seeds."))
    return pages.html_page("Runs compared", blocks)


def _plain(frame: pd.DataFrame) -> str:
    """A table for a terminal, columns aligned to the left."""
    cells = [list(map(str, frame.columns)), *frame.astype(str).to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return os.linesep.join(lines) + os.linesep


def _plot(groups: Sequence[Group], curve: str, path: Path) -> None:
    """Draws the curves of the first lines that have one."""
    drawn = [group for group in groups if any(run.curve(curve) for run in group.runs)]
    if not drawn:
        raise CompareError(f"nothing to draw: no run has a curve of {curve}")
    figure, (ax,) = plots.panels(1, curve)
    for group in drawn[:_MOST_CURVES]:
        curves = [run.curve(curve) for run in group.runs]
        lone = "o" if max(map(len, curves)) == 1 else None  # a line of one point is none
        plots.band(ax, curves, group.name, marker=lone)
    ax.set(xlabel="optimiser steps", ylabel=curve)
    ax.legend(fontsize=8)
    plots.save(figure, path)
    if len(drawn) > _MOST_CURVES:
        print(f"note: {path} shows the first {_MOST_CURVES} of {len(drawn)} lines", file=sys.stderr)


if __name__ == "__main__":
    main()
