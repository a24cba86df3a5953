import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.claims import CLAIMS
from experiments.reproduction.judges import (
    AtLeast,
    Everywhere,
    Figure,
    Greater,
    Judge,
    NoGain,
    NoLearning,
    Verdict,
    values,
)
from tests.conftest import PROJECT


def arm(accuracies: Sequence[float | None]) -> dict[int, Run]:
    """Runs of an arm over seeds; None is one that diverged."""
    runs = {}
    for seed, accuracy in enumerate(accuracies):
        if accuracy is None:
            run = Run("x", Path("x"), "failed", {"summary": {}}, note="FloatingPointError('nan')")
        else:
            run = Run("x", Path("x"), "finished", {"summary": {"test/acc": accuracy}})
        runs[seed] = run
    return runs


HIGH, LOW = [0.55, 0.56, 0.57, 0.56], [0.50, 0.51, 0.52, 0.50]
NEAR = [0.553, 0.561, 0.565, 0.563]


@pytest.mark.parametrize(
    ("judge", "runs", "verdict"),
    [
        (Figure("a", 0.565), {"a": HIGH}, "holds"),
        (Figure("a", 0.60), {"a": HIGH}, "does not hold"),
        (Figure("a", 0.60), {"a": HIGH[:2]}, "too few seeds"),
        (Figure("a", 0.60), {}, "not run"),
        (AtLeast("a", 0.5), {"a": HIGH}, "holds"),
        (AtLeast("a", 0.56), {"a": HIGH}, "inside noise"),
        (AtLeast("a", 0.6), {"a": HIGH}, "does not hold"),
        (NoLearning("a"), {"a": [0.1, 0.1, 0.1]}, "holds"),
        (NoLearning("a"), {"a": [0.1, 0.1, 0.2]}, "does not hold"),
        (Greater("a", "b"), {"a": HIGH, "b": LOW}, "holds"),
        (Greater("a", "b"), {"a": LOW, "b": HIGH}, "does not hold"),
        (Greater("a", "b"), {"a": NEAR, "b": HIGH}, "inside noise"),
        (Greater("a", "b"), {"a": HIGH}, "not run"),
        (Greater("a", "b"), {"a": HIGH, "b": [None] * 4}, "holds"),
        (Greater("a", "b", by=0.03), {"a": HIGH, "b": LOW}, "holds"),
        (Greater("a", "b", by=0.05), {"a": HIGH, "b": LOW}, "inside noise"),
        (Greater("a", "b", by=0.10), {"a": HIGH, "b": LOW}, "does not hold"),
        (Greater("a", "b", at_most=0.07), {"a": HIGH, "b": LOW}, "holds"),
        (Greater("a", "b", at_most=0.05), {"a": HIGH, "b": LOW}, "inside noise"),
        (Greater("a", "b", at_most=0.02), {"a": HIGH, "b": LOW}, "does not hold"),
        (
            Everywhere({"x": Greater("a", "b"), "y": Greater("b", "a")}),
            {"a": HIGH, "b": LOW},
            "does not hold",
        ),
        (Everywhere({"x": Greater("a", "b")}), {"a": HIGH, "b": LOW}, "holds"),
        (NoGain(("a",), "b"), {"a": LOW, "b": HIGH}, "holds"),
        (NoGain(("a",), "b"), {"a": HIGH, "b": LOW}, "does not hold"),
        (NoGain(("a",), "b"), {"a": NEAR, "b": HIGH}, "holds"),
        (NoGain(("a",), "b"), {"a": [0.53, 0.60, 0.55, 0.58], "b": HIGH}, "inside noise"),
        (NoGain(("a", "c"), "b"), {"a": LOW, "c": HIGH, "b": LOW}, "does not hold"),
        (NoGain(("a", "c"), "b"), {"a": LOW, "b": HIGH}, "not run"),
    ],
)
def test_verdicts(judge: Judge, runs: dict[str, list[float | None]], verdict: Verdict) -> None:
    judged = judge.judge({name: arm(found) for name, found in runs.items()})
    assert judged.verdict == verdict
    for name in runs:
        assert name in judged.ours


def test_a_run_that_diverged_counts_as_chance() -> None:
    assert values({"a": arm([0.5, None])}, "a") == {0: 0.5, 1: 0.1}


def test_a_magnitude_has_no_sign() -> None:
    runs = {"a": arm([-0.3, -0.31, -0.32]), "b": arm([0.1, 0.1, 0.1])}
    assert Greater("a", "b").judge(runs).verdict == "does not hold"
    assert Greater("a", "b", magnitude=True).judge(runs).verdict == "holds"


def test_claims_name_arms_that_exist_and_every_arm_is_claimed_about() -> None:
    assert {name for claim in CLAIMS for name in claim.arms} == ARMS.keys()
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)


def test_every_ablation_is_run_by_an_arm() -> None:
    used = {f"{name}.yaml" for arm in ARMS.values() for name in arm.configs}
    there = {f"ablations/{path.name}" for path in (PROJECT / "configs/ablations").glob("*.yaml")}
    assert there <= used
    assert all((PROJECT / "configs" / name).is_file() for name in used)


def test_the_reports_figures_are_those_it_gives() -> None:
    for claim in CLAIMS:
        if isinstance(claim.judge, Figure | AtLeast):
            digits = re.search(r"[\d.]+", claim.number)
            assert digits is not None
            number = float(digits.group())
            assert claim.judge.number == pytest.approx(number / 100 if number > 1 else number)
