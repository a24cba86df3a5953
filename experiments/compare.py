"""Compares runs: ``python -m experiments.compare [RUN ...]``, without a network or an account.

    python -m experiments.compare                                  # all runs in runs/
    python -m experiments.compare 'mlp*' --baseline mlp            # names and globs in runs/
    python -m experiments.compare runs/reproduce --format md       # a folder of runs
    python -m experiments.compare somewhere/wandb                  # W&B's own files
    python -m experiments.compare --format html --output runs.html # a page to look through
    python -m experiments.compare --serve                          # the same, while runs train

Runs that differ only in their seed share one line: mean and standard deviation. The table shows
only the settings that differ. Runs that crashed, diverged or can't be read are marked.
"""

import argparse
import contextlib
import csv
import dataclasses
import glob
import json
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.analysis import pages, plots
from experiments.analysis.costs import CHEAPER
from experiments.analysis.groups import Group, doubts, group_runs, numbers, table, warnings_about
from experiments.analysis.wandb_runs import find_wandb_files, read_wandb
from experiments.command_line.config_files import expand_home, expand_homes, use_utf8
from experiments.errors import OneLineParser, ended_plainly
from experiments.identity import experiment_name
from experiments.page.build import PageError, embedded_pictures, static_page
from experiments.page.payload import Grouped, lines_of, payload
from experiments.page.server import PageServer, Watched
from experiments.records.curves import is_loss
from experiments.records.files import PARTIAL, reason_of
from experiments.records.log import METRICS
from experiments.records.record import CONFIG, RECORD
from experiments.records.runs import Run, read_run
from experiments.texts import csv_cell, printable, shortened

_FORMATS = ("table", "md", "csv", "json", "html")
_METRICS = ("test/acc", "val/acc", "train/acc")
_CURVES = ("val/acc", "test_curve/acc", "train/acc")
_MOST_CURVES = 10
_WIDEST = 200  # characters of a cell on a terminal
_RUN_FILES = (RECORD, CONFIG, METRICS)
_LAST_PORT = 65_535


class CompareError(ValueError):
    """There is nothing to compare; the message says what was searched and where."""


def main(args: list[str] | None = None) -> None:
    """Prints or writes a comparison.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    use_utf8()
    options = parser().parse_args(args)
    try:
        _check(options)
        if options.serve:
            _serve(options)
            return
        runs = find_runs(options.runs, options.runs_dir, time.time())
        text = compare(runs, options)
        if options.output:
            options.output.write_text(text, encoding="utf-8")
    except (CompareError, PageError, OSError) as error:
        _say(f"error: {error}")
        raise SystemExit(2) from error
    print(printable(f"wrote {options.output}") if options.output else _encodable(text))


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _encodable(text: str) -> str:
    """Escapes characters that the encoding of standard output lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.rstrip("\r\n").encode(encoding, "backslashreplace").decode(encoding)


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
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
        help=f"metric for best and last value; default: the commonest of {', '.join(_CURVES)}",
    )
    parser.add_argument("--baseline", help="a line's name: the others are tested against it")
    parser.add_argument("--no_group", action="store_true", help="a line for each run")
    parser.add_argument("--all", action="store_true", help="show the whole configuration")
    parser.add_argument(
        "--ascending",
        action="store_true",
        help="smallest first, as losses and costs are by default",
    )
    parser.add_argument("--top", type=int, help="show only the first TOP lines")
    parser.add_argument("--format", choices=_FORMATS, default="table")
    parser.add_argument("--output", type=expand_home, help="a file; default: standard output")
    parser.add_argument("--plot", type=expand_home, help="draw the curves, with bands, as PNG")
    parser.add_argument(
        "--serve", action="store_true", help="show the page of --format html, and follow the runs"
    )
    parser.add_argument("--open", action="store_true", help="open the page of --serve in a browser")
    parser.add_argument("--port", type=int, default=0, help="of --serve; default: a free one")
    return parser


def _check(options: argparse.Namespace) -> None:
    if options.top is not None and options.top < 1:
        raise CompareError(f"--top must be at least 1, got {options.top}")
    if options.plot and options.plot.suffix.lower() != ".png":
        raise CompareError(f"--plot draws PNG files, such as curves.png, not {options.plot}")
    if not options.serve and (options.open or options.port):
        raise CompareError("--open and --port are of --serve; pass it too")
    if not 0 <= options.port <= _LAST_PORT:
        raise CompareError(f"--port must be between 0 and {_LAST_PORT}, got {options.port}")
    if options.serve and (options.output or options.plot or options.top):
        raise CompareError(
            "--serve shows all lines and writes no file; leave --top, --output and --plot out"
        )


def find_runs(asked: Sequence[str], root: Path, now: float) -> list[Run]:
    """Finds and reads runs.

    If a run has a record and W&B files, the record is used.

    Args:
        asked: names or globs below ``root``, folders of runs, folders of one run, or W&B folders;
            empty for all of ``root``.
        root: the folder in which names are searched.
        now: seconds since 1970.

    Raises:
        CompareError: if an argument names no run.
    """
    found: dict[str, Run] = {}
    for name in asked or ["*"]:
        folders = [Path(name)] if Path(name).exists() else _matching(name, root)
        runs = [run for folder in folders for run in _runs_in(folder, now)]
        if not runs:
            exists = bool(asked) and Path(name).exists()
            raise CompareError(_nothing(name if asked else None, root, exists))
        found |= {os.path.realpath(run.path): run for run in runs}
    recorded = {run.fields.get("wandb_id") for run in found.values() if run.source == "record"}
    twice = recorded - {None}
    return [
        run
        for run in found.values()
        if run.source == "record" or run.fields.get("wandb_id") not in twice
    ]


def _matching(name: str, root: Path) -> list[Path]:
    """The folders of a name, a pattern or a line: below ``root``, or else below this folder."""
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


def _runs_in(folder: Path, now: float) -> list[Run]:
    """The run of a folder, the runs below it, or the runs in its W&B files."""
    try:
        names = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208
    except OSError as error:
        return [Run(folder.name, folder, "unreadable", note=reason_of(error))]
    if RECORD in names:
        return [read_run(folder, now)]
    below = {path.parent for name in _RUN_FILES for path in _below(folder, name)}
    if any(os.path.lexists(path / RECORD) for path in below):
        return [read_run(path, now) for path in sorted(below)]
    if files := find_wandb_files(folder) or find_wandb_files(folder / "wandb"):
        return read_wandb(files, now)
    return [read_run(folder, now)] if names & {*_RUN_FILES} else []


def _below(folder: Path, name: str) -> list[Path]:
    """The entries of this name, also links, in the subfolders of a folder."""
    return [folder / place for place in _glob(f"*/{name}", folder)]


def _nothing(name: str | None, root: Path, exists: bool) -> str:
    if exists:
        return f"no runs: {name} is no run and holds no runs"
    if not root.is_dir():
        return f"no runs: {root} is no folder; name another with --runs_dir"
    known = sorted(path.parent.name for path in _below(root, RECORD))
    there = f"it has {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}" if known else ""
    what = f"nothing called {name} in {root}" if name else f"{root} holds none"
    return f"no runs: {what}; {there or 'fit one with python cli.py fit'}"


def compare(runs: Sequence[Run], options: argparse.Namespace) -> str:
    """Groups, sorts and renders runs, and draws their curves if asked.

    Raises:
        CompareError: for a metric or baseline that no run has.
    """
    found = compared(runs, options)
    baseline = _baseline(found.groups, options.baseline)
    shown = dataclasses.replace(found, groups=found.groups[: options.top])
    if options.plot:
        _plot(shown.groups, shown.curve, options.plot)
    for warning in found.warnings:
        _say(f"warning: {warning}")
    return _render(shown, baseline, options)


def compared(runs: Sequence[Run], options: argparse.Namespace) -> Grouped:
    """Groups and sorts runs, and looks for reasons to doubt their comparison.

    Raises:
        CompareError: for a metric that no run has.
    """
    metric = _choose(runs, options.metric, _METRICS, lambda run, name: run.value(name) is not None)
    curve = _choose(runs, options.curve, _CURVES, lambda run, name: bool(run.curve(name)), True)
    groups = group_runs(runs, metric, curve, by_seed=not options.no_group)
    smallest_first = options.ascending or is_loss(metric) or metric in CHEAPER
    groups.sort(key=lambda group: group.sort_key(smallest_first))
    warnings = [*_lacking(runs, metric, options), *warnings_about(runs), *doubts(groups)]
    return Grouped(groups, metric, curve, warnings)


def _choose(
    runs: Sequence[Run],
    asked: str | None,
    names: Sequence[str],
    has: Callable[[Run, str], bool],
    commonest: bool = False,
) -> str:
    """The given name, or else the first that some run has, or that most runs have."""
    if asked is None:
        counts = {name: sum(has(run, name) for run in runs) for name in names}
        return max(names, key=lambda name: counts[name] if commonest else counts[name] > 0)
    if not any(has(run, asked) for run in runs):
        known = sorted({key for run in runs for key in run.summary if run.value(key) is not None})
        raise CompareError(f"no run has {asked}; there are {', '.join(known) or 'no metrics'}")
    return asked


def _lacking(runs: Sequence[Run], metric: str, options: argparse.Namespace) -> list[str]:
    """Warnings on runs that lack the metric."""
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


def _render(found: Grouped, baseline: Group | None, options: argparse.Namespace) -> str:
    groups, warnings = found.groups, found.warnings
    if options.format in {"csv", "json"}:
        frame = numbers(groups, baseline, everything=options.all)
        if options.format == "csv":
            safe = frame.rename(columns=csv_cell).map(csv_cell)
            return str(safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
        rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
        return json.dumps({"warnings": warnings, "runs": rows}, indent=1) + "\n"
    frame = table(groups, baseline, everything=options.all)
    if options.format == "table":
        return _terminal_table(frame)
    notes = [pages.Paragraph(f"Warning: {warning}") for warning in warnings]
    if options.format == "md":
        return pages.markdown_blocks([pages.Table(frame), *notes])
    blocks: list[pages.Block] = [*notes, pages.Table(frame)]
    return static_page(_content(found, baseline, options), pages.html_blocks(blocks))


def _content(found: Grouped, baseline: Group | None, options: argparse.Namespace) -> dict[str, Any]:
    """The runs, pictures included, and the view that the page begins with."""
    content = payload(found)
    folders = dict(zip(content["order"], (run.path for run in found.runs), strict=True))
    view = _view(options)
    if baseline is not None:
        view["baseline"] = lines_of(found.groups)[baseline.runs[0].path]
    return {**content, "pictures": embedded_pictures(folders), "view": view, "live": False}


def _view(options: argparse.Namespace) -> dict[str, Any]:
    """The view of the page that the options ask for."""
    view: dict[str, Any] = {"ascending": options.ascending, "everything": options.all}
    return {**view, "group": "run"} if options.no_group else view


def _serve(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), server_of(options) as server:
        where = printable(str(options.runs_dir))
        print(f"{server.address} shows the runs of {where}; stop with Ctrl-C", flush=True)
        if options.open:
            webbrowser.open(server.address)
        server.serve_forever()


def server_of(options: argparse.Namespace) -> PageServer:
    """The server of the page, on a port of its own.

    Args:
        options: as `parser` reads them.

    Raises:
        CompareError: if the port is taken.
    """

    def find() -> list[Run]:
        try:
            return find_runs(options.runs, options.runs_dir, time.time())
        except CompareError:
            return []  # not yet, or not any more

    def judge(runs: Sequence[Run]) -> Grouped:
        try:
            return compared(runs, options)
        except CompareError as error:  # no run has the metric yet
            names = options.metric or _METRICS[0], options.curve or _CURVES[0]
            return Grouped(group_runs(runs, *names), *names, [str(error)])

    roots = [options.runs_dir, *(Path(name) for name in options.runs if Path(name).is_dir())]
    view = _view(options) | ({"baseline": options.baseline} if options.baseline else {})
    try:
        return PageServer(Watched(find, judge, roots, view), options.port)
    except OSError as error:
        raise CompareError(f"port {options.port}: {reason_of(error)}; name another") from error


def _terminal_table(frame: pd.DataFrame) -> str:
    """A table for a terminal, columns aligned to the left."""
    rows = [list(frame.columns), *frame.to_numpy(dtype=object).tolist()]
    cells = [[shortened(printable(str(value)), _WIDEST) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return os.linesep.join(lines) + os.linesep


def _plot(groups: Sequence[Group], curve: str, path: Path) -> None:
    """Draws the curves of the first lines that have one, each measure in a plot of its own."""
    found = [group for group in groups if any(run.curve(curve) for run in group.runs)]
    if not found:
        raise CompareError(f"nothing to draw: no run has a curve of {curve}")
    drawn = found[:_MOST_CURVES]
    first = f"; the first {len(drawn)} of {len(found)} lines" if len(drawn) < len(found) else ""
    measures = sorted({_measure(group, curve) for group in drawn})
    title = f"{curve}: mean and standard deviation over runs{first}"
    figure, axes = plots.panels(len(measures), title)
    for group, style in zip(drawn, plots.STYLES, strict=False):
        ax = axes[measures.index(_measure(group, curve))]
        curves = [run.curve(curve) for run in group.runs]
        lone = "o" if max(map(len, curves)) == 1 else None  # a line needs two points
        plots.band(ax, curves, group.name, marker=lone, **style)
    for ax, measure in zip(axes, measures, strict=True):
        ax.set(xlabel=plots.STEPS, ylabel=measure)
    plots.legend(figure)
    plots.save(figure, path)
    if first:
        _say(f"note: {path} shows the first {_MOST_CURVES} of {len(found)} lines")


def _measure(group: Group, curve: str) -> str:
    """What a curve measures: label smoothing makes another measure of the training loss."""
    smoothing = group.config.get("model.label_smoothing") if curve == "train/loss" else None
    return plots.described(curve) + (f", label smoothing {smoothing}" if smoothing else "")


if __name__ == "__main__":
    with ended_plainly():
        main()
