"""Accuracy on validation over wall time, from the records of runs, as data and as a plot.

    python cli.py fit --config configs/fast94.yaml --name fast94 --data.val_size 5000
    python cli.py fit --config configs/cnn_5k.yaml --name cnn_5k
    python cli.py fit --config configs/cnn.yaml --name cnn
    python -m benchmarks.time_to_accuracy runs/fast94 runs/cnn_5k runs/cnn
    python -m benchmarks.time_to_accuracy     # draws the kept data again

Seconds are wall time since the start of the fit, or of the last resume, with validations.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.reports import write_report
from experiments.analysis import plots
from experiments.command_line.config_files import expand_home
from experiments.errors import RunError
from experiments.records.record import RunRecord

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "benchmarks" / "results" / "time_to_accuracy.json"
PLOT = PROJECT / "docs" / "time_to_accuracy.png"


def read_run(path: Path) -> dict[str, Any]:
    """Reads the validations of a run.

    Raises:
        RunError: if there is no run or it was never validated.
    """
    record = RunRecord.open(path)
    entries = [entry for entry in record.metrics() if entry.get("val/acc") is not None]
    if not entries:
        raise RunError(f"{path} has no validations; fit it with --data.val_size 5000")
    return {
        "name": record.name,
        "git": record.fields["git"],
        "steps": [entry["step"] for entry in entries],
        "seconds": [entry["seconds"] for entry in entries],
        "val/acc": [round(entry["val/acc"], 4) for entry in entries],
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws the accuracies over time as a PNG."""
    figure, (ax,) = plots.panels(1, "Accuracy on validation images over time, one run of each")
    for run, style in zip(runs, itertools.cycle(plots.STYLES), strict=False):
        last = f"{run['name']} ({run['val/acc'][-1]:.3f} after {run['seconds'][-1]:.0f} s)"
        ax.plot(run["seconds"], run["val/acc"], marker="o", markersize=3, label=last, **style)
    ax.set(xlabel="seconds since the fit began, with validations", ylabel=plots.ACCURACY)
    plots.legend(figure)
    plots.save(figure, path)


def main(args: list[str] | None = None) -> None:
    """Reads the runs and writes data and plot; without runs, draws the data again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", type=expand_home, nargs="*", help="folders of runs")
    parser.add_argument("--output", type=expand_home, default=DATA)
    parser.add_argument("--plot", type=expand_home, default=PLOT)
    options = parser.parse_args(args)
    try:
        runs = [read_run(path) for path in options.runs]
    except RunError as error:
        sys.exit(f"error: {error}")
    if runs:
        write_report(options.output, {"runs": runs})
    draw(json.loads(options.output.read_text(encoding="utf-8"))["runs"], options.plot)
    print(f"{options.output}\n{options.plot}")


if __name__ == "__main__":
    main()
