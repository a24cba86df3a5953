"""Runs grouped over seeds: what stands for a seed that ran more than once."""

from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.groups import Comparison, Group, doubts, group_runs, warnings_about
from experiments.records.runs import Run
from experiments.sources.wandb_runs import read_wandb


def run(seed: int | None, value: float | None, curve: list[float], number: int = 0) -> Run:
    name = f"a-s{seed}-20260101-00000{number}"
    summary: dict[str, Any] = {} if value is None else {"test/acc": value}
    fields = {"summary": summary, "seed": seed, "data": "cifar10"}
    entries = [{"step": 10 * i, "val/acc": point} for i, point in enumerate(curve, 1)]
    return Run(name, Path(name), "finished", fields, {"model": "MLP"}, entries)


def group(*runs: Run) -> Group:
    (found,) = group_runs(runs, "test/acc", "val/acc")
    return found


def test_a_seed_that_ran_twice_counts_once_with_its_mean() -> None:
    runs = run(1, 0.4, [0.1, 0.7, 0.2]), run(1, 0.6, [0.3, 0.3, 0.9], 1), run(2, 0.9, [0.5, 0.6])
    found = group(*runs)
    assert found.final() == pytest.approx({1: 0.5, 2: 0.9})
    assert found.best() == pytest.approx({1: 0.8, 2: 0.6})
    assert found.last() == pytest.approx({1: 0.55, 2: 0.6})
    assert found.best_steps() == pytest.approx({1: 25, 2: 20})
    assert doubts([found]) == ["a: seed 1 ran more than once, counted once"]


def test_the_best_of_a_loss_is_its_lowest() -> None:
    one = run(1, 0.4, [0.3, 0.1, 0.2])
    one.entries = [{"step": entry["step"], "val/loss": entry["val/acc"]} for entry in one.entries]
    (found,) = group_runs([one], "test/acc", "val/loss")
    assert (found.best(), found.best_steps()) == ({1: 0.1}, {1: 20})


def test_a_repeat_without_a_figure_changes_nothing() -> None:
    assert group(run(1, None, []), run(1, 0.6, [], 1)).final() == {1: 0.6}


def test_runs_without_a_seed_stay_apart() -> None:
    found = group(run(3, 0.3, []), run(None, 0.4, []), run(None, 0.6, [], 1))
    assert found.final() == {3: 0.3, -2: 0.4, -3: 0.6}


def test_the_order_of_the_runs_changes_nothing() -> None:
    runs = run(1, 0.4, []), run(1, 0.6, [], 1), run(2, 0.9, [])
    assert group(*runs).final() == group(*reversed(runs)).final()


def line(name: str, *values: float | None, status: str = "finished") -> Group:
    runs = [run(seed, value, []) for seed, value in enumerate(values)]
    for one in runs:
        one.status, one.config = status, {"model": name}
    return group(*runs)


@pytest.mark.parametrize("status", ["running", "failed", "crashed", "interrupted", "preempted"])
def test_runs_that_are_not_finished_are_not_tested(status: str) -> None:
    one, other = line("a", 0.1, 0.2, 0.3), line("b", 0.5, 0.7, 0.6, status=status)
    words = "3 of 3 runs not finished: not tested"
    assert Comparison(one, [one, other]).words(other) == f"+0.4000, {words}"
    assert Comparison(other, [one, other]).tested(one) is None
    assert "3 of 3 runs of the baseline not finished" in Comparison(other, [one, other]).words(one)


def test_runs_that_a_time_limit_ended_and_failed_tests_are_tested() -> None:
    one, other = line("a", 0.1, 0.2, 0.3), line("b", 0.5, 0.7, 0.6, status="interrupted")
    for stopped in other.runs:
        stopped.fields["stopped_by"] = "trainer.max_time 00:00:10:00"
    assert Comparison(one, [one, other]).tested(other)
    other = line("b", 0.5, 0.7, 0.6, status="failed")
    for trained in other.runs:
        trained.summary["train/steps"] = 100
    assert Comparison(one, [one, other]).tested(other)
    other.runs[0].fields["resumed"] = [{"step": 100}]
    assert not Comparison(one, [one, other]).tested(other)


def test_equal_values_are_not_tested() -> None:
    one, other = line("a", 0.1, 0.1, 0.1), line("b", 0.2, 0.2, 0.2)
    assert Comparison(one, [one, other]).words(other) == (
        "+0.1000, no spread over the seeds: not tested"
    )


def test_a_test_of_some_runs_says_so() -> None:
    one, other = line("a", 0.1, 0.2, 0.3, 0.2), line("b", 0.5, None, 0.6, 0.7)
    assert Comparison(one, [one, other]).words(other).endswith("Welch t; of 3 of 4 runs")


def test_losses_that_have_diverged_are_tested() -> None:
    one, other = line("a", 1e149, 3e149, 2e149), line("b", 0.5, 0.6, 0.7, 0.8)
    tested = Comparison(one, [one, other]).tested(other)
    assert tested is not None
    assert tested.difference.df == pytest.approx(2)
    assert "e+149" in tested.words()


def test_a_machine_that_is_not_recorded_is_another_one() -> None:
    known, unknown = run(1, 0.5, []), run(2, 0.5, [])
    assert not warnings_about([unknown])
    known.fields["hardware"] = {"cpu": "one"}
    assert any("machine: one (1), not recorded (1)" in w for w in warnings_about([known, unknown]))


@pytest.mark.parametrize(("metric", "counts"), [("train/seconds", True), ("train/acc", False)])
def test_what_a_part_of_an_epoch_cost_counts(metric: str, counts: bool) -> None:
    found = run(1, None, [])
    found.fields["images"] = {"train": 100}
    found.summary.update({"train/images": 20, metric: 0.5})
    assert (found.value(metric) is not None) == counts


def limited(seed: int, limit: str | None, stopped_by: str | None = None) -> Run:
    found = run(seed, 0.5, [])
    found.config["trainer.max_time"] = limit
    found.fields["stopped_by"] = stopped_by
    return found


def grouped(*runs: Run) -> list[list[int | None]]:
    return [[run.seed for run in found.runs] for found in group_runs(runs, "test/acc", "val/acc")]


def test_a_time_limit_that_stopped_nothing_makes_no_other_experiment() -> None:
    early = limited(2, "00:02:00:00", "EarlyStopping: val/acc is not finite")
    late = limited(3, None, "EarlyStopping: val/acc has not been better")
    assert grouped(limited(0, None), limited(1, "00:01:00:00"), early, late) == [[0, 1, 2, 3]]


def test_a_run_that_its_time_limit_stopped_is_no_repeat() -> None:
    hour, two = (f"trainer.max_time {hours}:00:00 is used up" for hours in (1, 2))
    stopped = [limited(seed, "00:01:00:00", hour) for seed in (1, 2)]
    longer = limited(3, "00:02:00:00", two)
    assert grouped(limited(0, "00:01:00:00"), *stopped, longer) == [[0], [1, 2], [3]]


def test_what_w_and_b_has_of_a_run_with_a_time_limit_stays_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [None, "00:01:00:00", {"hours": 1}, {"minutes": 1}, {"minutes": 1}]

    def records(path: Path) -> list[dict[str, Any]]:
        tree = {"seed_everything": (seed := int(path.stem)), "trainer": {"max_time": limits[seed]}}
        update = {"type": "run", "run": {"run_id": path.stem, "config": {"update": tree}}}
        return [update, {"type": "exit", "exit": {}}]

    monkeypatch.setattr("experiments.sources.wandb_runs._records", records)
    runs = read_wandb([Path(f"{seed}.wandb") for seed in range(len(limits))], 0.0)
    assert [run.note for run in runs] == [""] * len(limits)
    assert grouped(*runs) == [[0], [1], [2], [3, 4]]
