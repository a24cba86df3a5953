"""Compares runs: ``python -m experiments.compare [RUN ...]``, without a network or an account.

    python -m experiments.compare                                  # all runs in runs/
    python -m experiments.compare 'mlp*' --baseline mlp            # names and globs in runs/
    python -m experiments.compare runs/reproduce --format md       # a folder of runs
    python -m experiments.compare runs lightning_logs mlflow.db    # and runs of other tools
    python -m experiments.compare --format html --output runs.html # a page to look through
    python -m experiments.compare --serve                          # the same, while runs train

Runs that differ only in their seed share one line: mean and standard deviation. The table shows
only the settings that differ. Runs that crashed, diverged or can't be read are marked.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import math
import os
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.analysis import pages, plots
from experiments.analysis.chance import many_tested
from experiments.analysis.groups import (
    Comparison,
    Group,
    doubts,
    group_runs,
    numbers,
    table,
    warnings_about,
)
from experiments.analysis.metrics import CURVES, FINAL, curve_metric, final_metric
from experiments.analysis.verdicts import better_if
from experiments.command_line.config_files import expand_home, expand_homes, use_utf8
from experiments.errors import OneLineParser, ended_plainly, fail
from experiments.identity import experiment_name
from experiments.page.build import PageError, embedded_pictures, static_page
from experiments.page.payload import Grouped, lines_of, payload
from experiments.page.server import PageServer, Watched
from experiments.records.files import reason_of
from experiments.records.runs import Run
from experiments.sources.find import CompareError, find_runs
from experiments.texts import csv_cell, printable, shortened

_FORMATS = ("table", "md", "csv", "json", "html")
_MOST_CURVES = 10
_WIDEST = 200  # characters of a cell on a terminal
_LAST_PORT = 65_535


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
        fail(error)
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
        help="names, globs, folders, files of other tools; default: all of --runs_dir",
    )
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs"))
    parser.add_argument(
        "--metric",
        help=f"to sort by; default: the first of {', '.join(FINAL)}, or the likeliest name",
    )
    parser.add_argument(
        "--curve",
        help=f"metric for best and last value; default: the commonest of {', '.join(CURVES)}",
    )
    parser.add_argument("--baseline", help="a line's name: the others are tested against it")
    parser.add_argument(
        "--margin",
        type=float,
        help="the least difference to the baseline that matters, in units of the metric; "
        "default: 0.01 for an accuracy",
    )
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
    if options.margin is not None and not 0 < options.margin < math.inf:
        raise CompareError(f"--margin must be above 0, got {options.margin:g}")
    is_page = options.serve or options.format == "html"  # in it, a line may be chosen later
    if options.margin is not None and options.baseline is None and not is_page:
        raise CompareError("--margin is for a comparison with a line: add --baseline NAME")
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


def compare(runs: Sequence[Run], options: argparse.Namespace) -> str:
    """Groups, sorts and renders runs, and draws their curves if asked.

    Raises:
        CompareError: for a metric or baseline that no run has.
    """
    found = compared(runs, options)
    baseline = _baseline(found.groups, options.baseline)
    against = Comparison(baseline, found.groups, options.margin) if baseline else None
    shown = dataclasses.replace(found, groups=found.groups[: options.top])
    if options.plot:
        _plot(shown.groups, shown.curve, options.plot)
    for warning in found.warnings:
        _say(f"warning: {warning}")
    return _render(shown, against, options)


def compared(runs: Sequence[Run], options: argparse.Namespace) -> Grouped:
    """Groups and sorts runs, and looks for reasons to doubt their comparison.

    Raises:
        CompareError: for a metric that no run has.
    """
    metric = options.metric or final_metric(runs)
    curve = options.curve or curve_metric(runs, metric)
    _check_known(runs, options)
    groups = group_runs(runs, metric, curve, by_seed=not options.no_group)
    smallest_first = options.ascending or better_if(metric) == "lower"
    groups.sort(key=lambda group: group.sort_key(smallest_first))
    warnings = [*_lacking(runs, metric, options), *warnings_about(runs), *doubts(groups)]
    return Grouped(groups, metric, curve, [*warnings, *many_tested(groups)])


def _check_known(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Refuses a metric or a curve that was asked for and that no run has."""
    lacks_metric = all(run.value(options.metric or "") is None for run in runs)
    lacks_curve = not any(run.curve(options.curve or "") for run in runs)
    for asked, lacks in ((options.metric, lacks_metric), (options.curve, lacks_curve)):
        if asked and lacks:
            known = sorted(
                {key for run in runs for key in run.summary if run.value(key) is not None}
            )
            raise CompareError(f"no run has {asked}; there are {', '.join(known) or 'no metrics'}")


def _lacking(runs: Sequence[Run], metric: str, options: argparse.Namespace) -> list[str]:
    """Warnings on runs that lack the metric."""
    if options.metric is None and metric == "train/acc":
        return ["compared by train/acc: no run has an accuracy on validation or test"]
    guessed = options.metric is None and metric not in FINAL
    found = [f"compared by {metric}: no run has {FINAL[0]}; --metric names another"]
    without = sum(run.value(metric) is None for run in runs if run.status != "unreadable")
    lacking = [f"{without} of {len(runs)} runs have no {metric}"] if without else []
    return [*(found if guessed else []), *lacking]


def _baseline(groups: Sequence[Group], name: str | None) -> Group | None:
    if name is None:
        return None
    found = [group for group in groups if name in _names(group)]
    if len(found) > 1:
        raise CompareError(f"{len(found)} lines are called {name}: name a run of the right one")
    if not found:
        names = ", ".join(group.name for group in groups)
        raise CompareError(f"no line called {name} to compare with; there are {names}")
    return found[0]


def _names(group: Group) -> set[str]:
    """The names by which a line can be asked for: also without the seed of its only run."""
    return {group.name, experiment_name(group.name), *(run.name for run in group.runs)}


def _render(found: Grouped, against: Comparison | None, options: argparse.Namespace) -> str:
    groups, warnings = found.groups, found.warnings
    if options.format in {"csv", "json"}:
        frame = numbers(groups, against, everything=options.all)
        if options.format == "csv":
            safe = frame.rename(columns=csv_cell).map(csv_cell)
            return str(safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
        rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
        return json.dumps({"warnings": warnings, "runs": rows}, indent=1, allow_nan=False) + "\n"
    frame = table(groups, against, everything=options.all)
    if options.format == "table":
        return _terminal_table(frame)
    notes = [pages.Paragraph(f"Warning: {warning}") for warning in warnings]
    if options.format == "md":
        return pages.markdown_blocks([pages.Table(frame), *notes])
    blocks: list[pages.Block] = [*notes, pages.Table(frame)]
    return static_page(_content(found, against, options), pages.html_blocks(blocks))


def _content(
    found: Grouped, against: Comparison | None, options: argparse.Namespace
) -> dict[str, Any]:
    """The runs, pictures included, and the view that the page begins with."""
    content = payload(found)
    folders = dict(zip(content["order"], (run.path for run in found.runs), strict=True))
    view = _view(options)
    if against is not None:
        view["baseline"] = lines_of(found.groups)[against.baseline.runs[0].path]
    return {**content, "pictures": embedded_pictures(folders), "view": view, "live": False}


def _view(options: argparse.Namespace) -> dict[str, Any]:
    """The view of the page that the options ask for."""
    view: dict[str, Any] = {"ascending": options.ascending, "everything": options.all}
    view |= {"margin": options.margin} if options.margin is not None else {}
    return {**view, "group": "run"} if options.no_group else view


def _serve(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), server_of(options) as server:
        where = printable(", ".join(options.runs) or str(options.runs_dir))
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
            names = options.metric or FINAL[0], options.curve or CURVES[0]
            return Grouped(group_runs(runs, *names), *names, [str(error)])

    named = [Path(name) for name in options.runs]
    # What a name without a folder stands for lies in runs_dir.
    folders = [path if path.is_dir() else path.parent for path in named if path.name != str(path)]
    roots = [options.runs_dir, *folders, *(path for path in named if path.is_dir())]
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
