"""The metric that a comparison takes if nobody named one."""

from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.metrics import curve_metric, final_metric
from experiments.records.curves import is_loss
from experiments.records.runs import Run


def run(*names: str, points: int = 2) -> Run:
    entries: list[dict[str, Any]] = [
        {"step": step, "seconds": 1.0, "epoch": 1, **dict.fromkeys(names, 0.5)}
        for step in range(points)
    ]
    summary = dict.fromkeys(names, 0.5)
    return Run("a", Path("a"), "finished", {"summary": summary}, {}, entries)


@pytest.mark.parametrize(
    ("names", "final", "curve"),
    [
        (["train/acc", "val/acc", "test/acc"], "test/acc", "val/acc"),
        (["train_loss", "val_loss", "val_acc", "lr"], "val_acc", "val_acc"),
        (["train/acc", "valid/accuracy"], "valid/accuracy", "train/acc"),
        (["train_acc", "val_loss"], "val_loss", "val_loss"),
        (["testAccuracy", "valAccuracy", "trainAccuracy"], "testAccuracy", "testAccuracy"),
        (["epoch_loss", "validation/epoch_loss"], "validation/epoch_loss", "validation/epoch_loss"),
        (["rollout/ep_len", "rollout/reward"], "rollout/reward", "rollout/reward"),
        (["loss", "lr", "grad_norm"], "loss", "loss"),
        (["train/acc"], "train/acc", "train/acc"),
        (["train_acc", "train_loss"], "train_acc", "train_acc"),
        ([], "test/acc", "val/acc"),
    ],
)
def test_the_likeliest_metric_is_taken(names: list[str], final: str, curve: str) -> None:
    for order in (names, names[::-1]):
        runs = [run(*order)]
        assert final_metric(runs) == final
        assert curve_metric(runs, final) == curve


def test_the_metric_of_most_runs_is_taken() -> None:
    assert final_metric([run("val_f1"), run("val_f1"), run("val_acc")]) == "val_f1"


def test_a_curve_has_more_than_one_point() -> None:
    runs = [run("test_acc", points=1), run("val_loss", "lr")]
    assert (final_metric(runs), curve_metric(runs, "test_acc")) == ("test_acc", "val_loss")


def test_smaller_is_better_for_losses_and_errors() -> None:
    smaller = ["val/loss", "valLoss", "val_error", "eval/perplexity", "RMSE", "test/nll"]
    assert all(map(is_loss, smaller))
    assert not any(map(is_loss, ["val/acc", "terror_score", "merry", "best/val/acc"]))
