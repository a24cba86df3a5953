from pathlib import Path

import pytest

from experiments.analysis.chance import many_tested
from experiments.analysis.groups import group_runs
from experiments.records.runs import Run


def lines(
    count: int, seeds: int, metric: str = "test/acc", images: object = None, value: float = 0.5
) -> list[str]:
    """The warnings on as many lines; the accuracies of a line are 0.01 apart."""
    runs = [
        Run(
            f"a{line}-s{seed}",
            Path(f"a{line}-s{seed}"),
            "finished",
            {"summary": {metric: value + seed / 100}, "seed": seed, "images": images},
            {"line": line},
        )
        for line in range(count)
        for seed in range(seeds)
    ]
    return many_tested(group_runs(runs, metric, "val/acc"))


def test_six_lines_of_one_test_set_are_many() -> None:
    assert lines(5, 3) == []
    (warning,) = lines(6, 3)
    # sd 0.01 over three seeds: 1.267 * 0.01 / sqrt(3)
    assert warning == (
        "6 lines are compared on the same test images: if all were equally good, the best would "
        "still be better than their mean by about 0.0073 (1.27 standard errors) over seeds; "
        "choose by val/acc"
    )


def test_single_runs_have_the_error_of_their_images() -> None:
    (warning,) = lines(12, 1, images={"test": 10_000})
    # sqrt(0.5 * 0.5 / 10,000) = 0.005, times 1.629
    assert "by about 0.0081 (1.63 standard errors) of 10,000 images; choose" in warning


@pytest.mark.parametrize("images", [None, {"test": "many"}, {"test": 0}, {}])
def test_without_a_number_of_images_there_is_no_number(images: object) -> None:
    (warning,) = lines(6, 1, images=images)
    assert warning.endswith("better than their mean; choose by val/acc")


def test_a_strange_accuracy_is_no_error() -> None:
    (warning,) = lines(6, 1, images={"test": 100}, value=7.0)
    assert warning.endswith("better than their mean; choose by val/acc")  # perhaps in percent


@pytest.mark.parametrize("metric", ["accuracy/test", "eval/acc", "test_acc"])
def test_other_names_of_the_test_images_are_known(metric: str) -> None:
    (warning,) = lines(6, 2, metric)
    assert warning.startswith("6 lines are compared on the same test images")
    assert not lines(6, 2, "latest/acc")


def test_a_test_loss_and_a_test_curve_are_of_the_test_images_too() -> None:
    assert lines(6, 2, "test/loss")[0].endswith("choose by val/loss")
    assert lines(6, 1, "test/loss", images={"test": 10_000})[0].endswith("mean; choose by val/loss")
    assert len(lines(6, 2, "val/acc")) == 0
