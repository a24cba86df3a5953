import pytest

from experiments.analysis.significance import Difference
from experiments.analysis.verdicts import Outcome, outcomes


def gap(mean: float, error: float) -> Difference:
    return Difference(mean, error, 9, "paired t", 10)


def one(found: Difference, metric: str = "test/acc", margin: float | None = 0.01) -> Outcome:
    (tested,) = outcomes([found], metric, margin)
    assert tested is not None
    return tested


@pytest.mark.parametrize(
    ("found", "verdict", "said"),
    [
        (gap(0.05, 0.005), "better", "+0.0500 (+0.0387 to +0.0613): better, p = 3.6e-06, paired t"),
        (gap(-0.05, 0.005), "worse", "worse, p = 3.6e-06"),
        (gap(0.004, 0.001), "better", "better, but by less than 0.01, p = 0.0031"),
        (gap(0.001, 0.001), "equivalent", "equivalent within ±0.01, TOST p = 4.3e-06"),
        (gap(0.004, 0.01), "undecided", "+0.0040 (-0.0186 to +0.0266): undecided, paired t"),
    ],
)
def test_verdicts_and_their_words(found: Difference, verdict: str, said: str) -> None:
    tested = one(found)
    assert tested.verdict == verdict
    assert said in tested.words()


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        ("val/loss", "worse"),
        ("train/seconds", "worse"),
        ("test_curve/acc@2000", "better"),
        ("train/images_per_s", "higher"),
    ],
)
def test_more_is_better_for_some_measures_alone(metric: str, verdict: str) -> None:
    assert one(gap(0.05, 0.005), metric, None).verdict == verdict


def test_without_a_margin_nothing_is_equivalent() -> None:
    tested = one(gap(0.0, 1e-9), margin=None)
    assert (tested.verdict, tested.equivalence) == ("undecided", None)


def test_both_questions_are_corrected_over_the_family() -> None:
    alone = one(gap(0.0035, 0.0015))
    assert alone.holm == alone.difference.p < 0.05
    family = [gap(0.0035, 0.0015), None, gap(0.002, 0.003), gap(0.002, 0.003)]
    first, untested, same, _ = outcomes(family, "test/acc", 0.01)
    assert untested is None
    assert first is not None
    assert same is not None
    assert first.family == 3
    assert first.holm == pytest.approx(3 * alone.holm)
    assert first.holm > 0.05
    assert first.verdict == "equivalent"
    assert "undecided" not in first.words()
    assert same.equivalence is not None
    assert same.equivalence_holm == pytest.approx(2 * same.equivalence)


def test_one_of_many_lines_that_seems_equivalent_is_corrected() -> None:
    near, far = gap(0.003, 0.003), gap(0.02, 0.02)
    assert one(near).verdict == "equivalent"
    first, *_ = outcomes([near, far, far], "test/acc", 0.01)
    assert first is not None
    assert first.equivalence is not None
    assert 0.05 / 3 < first.equivalence < 0.05
    assert first.verdict == "undecided"
