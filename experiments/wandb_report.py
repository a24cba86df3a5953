"""Builds a report of a project on W&B's server; its runs must be uploaded before.

    python -m experiments.wandb_report --entity TEAM

This needs an account and ``pip install wandb-workspaces``. Runs are grouped over seeds, by the
labels of `experiments.WandbLogger`.
"""

import argparse
import importlib
import sys
from typing import Any

_CURVES = ("val/acc", "val/loss", "train/acc", "train/loss")
_STEP = "trainer/global_step"


def main(args: list[str] | None = None) -> None:
    """Builds and saves the report, and prints its address.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.wandb_report", description=__doc__)
    parser.add_argument("--entity", required=True, help="the W&B user or team")
    parser.add_argument("--project", default="cifar10-lightning")
    parser.add_argument("--title", default="CIFAR-10: runs compared")
    options = parser.parse_args(args)
    try:
        report = build(options.entity, options.project, options.title)
    except ModuleNotFoundError:
        sys.exit("error: W&B's reports need a package of their own: pip install wandb-workspaces")
    try:
        report.save()
    except Exception as error:  # W&B raises different errors without a key and without a server
        reason = " ".join(str(error).split())
        sys.exit(f"error: W&B can't save the report: {reason}; check WANDB_API_KEY and --entity")
    print(f"report: {report.url}")


def build(entity: str, project: str, title: str) -> Any:
    """Makes the report: curves, final accuracy over seeds, and differences between runs.

    Args:
        entity: the W&B user or team.
        project: the W&B project.
        title: the report's.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``, not saved yet.

    Raises:
        ModuleNotFoundError: without the package ``wandb-workspaces``.
    """
    wr: Any = importlib.import_module("wandb_workspaces.reports.v2")  # optional
    runs = wr.Runset(entity=entity, project=project, name="by experiment", groupby=["Group"])
    over_seeds = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    curves = [wr.LinePlot(title=curve, x=_STEP, y=[curve], **over_seeds) for curve in _CURVES]
    final = wr.BarPlot(title="test accuracy", metrics=["test/acc"], **over_seeds)
    each = wr.Runset(entity=entity, project=project, name="runs")
    return wr.Report(
        entity=entity,
        project=project,
        title=title,
        description="Mean and standard deviation over seeds.",
        blocks=[
            wr.H2("Test accuracy"),
            wr.PanelGrid(runsets=[runs], panels=[final]),
            wr.H2("Curves"),
            wr.PanelGrid(runsets=[runs], panels=curves),
            wr.H2("What differs"),
            wr.PanelGrid(runsets=[each], panels=[wr.RunComparer(diff_only="split")]),
        ],
    )


if __name__ == "__main__":
    main()
