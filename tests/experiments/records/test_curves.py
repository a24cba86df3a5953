"""The best of a curve, and what a log's entries come to."""

import math
from typing import Any

import pytest

from experiments.records.curves import best_step, curve_of, direction, is_better

CURVE = {1: 0.5, 2: 0.7, 4: 0.7, 6: 0.1}


@pytest.mark.parametrize(
    ("metric", "since", "step"),
    [
        ("val/acc", None, 2),  # the first of equal ones
        ("val/acc", 1, 2),
        ("val/acc", 2, 4),  # those of the step itself are of before
        ("val/acc", 6, None),
        ("val/loss", None, 6),
    ],
)
def test_the_best_of_a_curve(metric: str, since: int | None, step: int | None) -> None:
    assert best_step(CURVE, metric, since) == step


def test_the_first_of_equal_losses_is_the_best() -> None:
    assert best_step({1: 0.2, 2: 0.1, 3: 0.1}, "train/loss") == 2


def test_what_is_no_number_is_never_the_best() -> None:
    assert best_step({1: math.nan, 2: 0.1, 3: math.nan}, "val/acc") == 2
    assert not is_better(math.nan, None, "val/loss")


def test_lightning_and_wandb_are_told_the_same_direction() -> None:
    assert (direction("val/acc"), direction("val/loss")) == ("max", "min")


def test_a_curve_is_in_the_order_of_steps_with_the_latest_of_a_step() -> None:
    entries: list[dict[str, Any]] = [
        {"step": 4, "acc": 0.1},
        {"step": 2, "acc": 1},
        {"step": 2, "acc": 0.3, "loss": 1.0},
        {"step": None, "acc": 0.9},
        {"step": 6, "acc": None},
        {"step": 8, "acc": math.inf},
        {"acc": 0.5},
        {"step": 9, "acc": True},
    ]
    assert [*curve_of(entries, "acc").items()] == [(2, 0.3), (4, 0.1)]
