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
    Evidence,
    Figure,
    Greater,
    Judge,
    NoGain,
    NoLearning,
    Same,
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
NEAR, NOISY = [0.553, 0.561, 0.565, 0.563], [0.53, 0.60, 0.55, 0.58]


@pytest.mark.parametrize(
    ("judge", "runs", "verdict"),
    [
        (Figure("a", 0.565), {"a": HIGH}, "compatible"),
        (Figure("a", 0.56), {"a": [0.560, 0.561, 0.559, 0.560]}, "holds"),
        (Figure("a", 0.57), {"a": [0.560, 0.561, 0.559, 0.560]}, "does not hold"),
        (Figure("a", 0.60), {"a": HIGH}, "does not hold"),
        (Figure("a", 0.60), {"a": HIGH[:2]}, "too few seeds"),
        (Figure("a", 0.60), {}, "not run"),
        (AtLeast("a", 0.5), {"a": HIGH}, "holds"),
        (AtLeast("a", 0.56), {"a": HIGH}, "equal within a point"),
        (AtLeast("a", 0.56), {"a": NOISY}, "inside noise"),
        (AtLeast("a", 0.6), {"a": HIGH}, "does not hold"),
        (NoLearning("a"), {"a": [0.1, 0.1, 0.1]}, "holds"),
        (NoLearning("a"), {"a": [0.1, 0.1, 0.2]}, "does not hold"),
        (NoLearning("a"), {"a": [0.1, 0.1]}, "too few seeds"),
        (Greater("a", "b"), {"a": HIGH, "b": LOW}, "holds"),
        (Greater("a", "b"), {"a": LOW, "b": HIGH}, "does not hold"),
        (Greater("a", "b"), {"a": NEAR, "b": HIGH}, "equal within a point"),
        (Greater("a", "b"), {"a": NOISY, "b": HIGH}, "inside noise"),
        (Greater("a", "b"), {"a": [x + 0.004 for x in LOW], "b": LOW}, "holds"),
        (Same("a", "b"), {"a": NEAR, "b": HIGH}, "holds"),
        (Same("a", "b"), {"a": NOISY, "b": HIGH}, "inside noise"),
        (Same("a", "b"), {"a": HIGH, "b": LOW}, "does not hold"),
        (Same("a", "b"), {"a": [x + 0.004 for x in LOW], "b": LOW}, "does not hold"),
        (Same("a", "b"), {"a": HIGH, "b": LOW[:2]}, "too few seeds"),
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
        (NoGain(("a",), "b"), {"a": NOISY, "b": HIGH}, "inside noise"),
        (NoGain(("a",), "b"), {"a": [x + 0.004 for x in LOW], "b": LOW}, "does not hold"),
        (
            NoGain(("a",), "b", allows_small=True),
            {"a": [x + 0.004 for x in LOW], "b": LOW},
            "holds",
        ),
        (NoGain(("a",), "b", allows_small=True), {"a": NOISY, "b": HIGH}, "inside noise"),
        (NoGain(("a",), "b", allows_small=True), {"a": HIGH, "b": LOW}, "does not hold"),
        (NoGain(("a", "c"), "b"), {"a": LOW, "c": HIGH, "b": LOW}, "does not hold"),
        (NoGain(("a", "c"), "b"), {"a": LOW, "b": HIGH}, "not run"),
    ],
)
def test_verdicts(judge: Judge, runs: dict[str, list[float | None]], verdict: Verdict) -> None:
    judged = judge.judge({name: arm(found) for name, found in runs.items()})
    assert judged.verdict == verdict
    for name in runs:
        assert name in judged.ours


def slightly_better(by: Sequence[float]) -> list[float]:
    return [low + gap for low, gap in zip(LOW, by, strict=True)]


def test_one_of_many_changes_that_seems_better_is_corrected() -> None:
    """Its p-value alone is below 5 %; of three, it is not."""
    gain = slightly_better([0.004, 0.001, 0.003, 0.004])
    runs = {"a": arm(gain), **{name: arm(LOW) for name in "bcd"}}
    alone = NoGain(("a",), "b").judge(runs)
    together = NoGain(("a", "c", "d"), "b").judge(runs)
    assert alone.verdict == "does not hold"
    assert together.verdict == "holds"
    assert alone.evidence is not None
    assert together.evidence is not None
    assert 0.05 / 3 < alone.evidence.fails < 0.05
    assert together.evidence.fails == pytest.approx(3 * alone.evidence.fails)
    assert together.evidence.holds == alone.evidence.holds  # the largest, not corrected


def test_one_of_many_layers_that_seems_to_fail_is_corrected() -> None:
    part = Greater("b", "a")
    better = slightly_better([0.004, 0.001, 0.003, 0.004])
    runs = {"a": arm(better), "b": arm(LOW), "c": arm(HIGH)}
    assert part.judge(runs).verdict == "does not hold"
    parts: dict[str, Judge] = {"x": part, "y": Greater("c", "a"), "z": Greater("c", "b")}
    assert Everywhere(parts).judge(runs).verdict == "inside noise"


def test_what_is_within_a_point_is_only_of_accuracies() -> None:
    runs = {name: arm(found) for name, found in (("a", NEAR), ("b", HIGH))}
    for run in (*runs["a"].values(), *runs["b"].values()):
        run.fields["summary"]["activations/1/mean"] = run.fields["summary"]["test/acc"]
    assert Greater("a", "b", "activations/1/mean").judge(runs).verdict == "inside noise"


@pytest.mark.parametrize(
    ("evidence", "verdict", "p"),
    [
        (Evidence(0.01, 0.9), "holds", 0.01),
        (Evidence(0.9, 0.01), "does not hold", 0.01),
        (Evidence(0.01, 0.02), "does not hold", 0.02),
        (Evidence(0.9, 0.2, 0.03), "equal within a point", 0.03),
        (Evidence(0.01, 0.2, 0.003), "holds", 0.01),
        (Evidence(0.9, 0.2, 0.3), "inside noise", 0.2),
        (Evidence(0.05, 0.05, otherwise="compatible"), "compatible", 0.05),
    ],
)
def test_the_p_value_is_that_of_the_verdict(evidence: Evidence, verdict: str, p: float) -> None:
    assert (evidence.verdict, evidence.p) == (verdict, p)


def test_the_p_value_of_equality_is_said_where_it_decides() -> None:
    assert Evidence(0.9, 0.2, 0.03).words() == "holds: p = 0.9, fails: p = 0.2, equal: p = 0.03"
    assert Evidence(0.01, 0.9, 0.03).words() == "holds: p = 0.01, fails: p = 0.9"
    assert Evidence(0.9, 0.2).words() == "holds: p = 0.9, fails: p = 0.2"


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
