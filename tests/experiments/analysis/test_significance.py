import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.analysis.significance import (
    Difference,
    difference,
    expected_best,
    from_figure,
    from_run,
    holm,
    mean_interval,
    prediction_interval,
)

A = {0: 0.52, 1: 0.55, 2: 0.53, 3: 0.56}
B = {0: 0.50, 1: 0.52, 2: 0.52, 3: 0.53}


def test_the_same_seeds_are_paired() -> None:
    found = difference(A, dict(reversed(B.items())))
    assert found is not None
    expected = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = expected.confidence_interval()
    assert (found.test, found.n) == ("paired t", 4)
    assert found.mean == pytest.approx(0.0225)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_other_seeds_are_not() -> None:
    found = difference(A, {seed + 1: value for seed, value in B.items()})
    assert found is not None
    expected = stats.ttest_ind(list(A.values()), list(B.values()), equal_var=False)
    assert found.test == "Welch t"
    assert found.p == pytest.approx(expected.pvalue)
    assert found.low < found.mean < found.high


def test_runs_without_seeds_are_not_paired() -> None:
    ours, theirs = ({-1: 0.5, -2: 0.6, 3: 0.7}, {-1: 0.4, -2: 0.6, 3: 0.5})
    found = difference(ours, theirs)
    assert found is not None
    assert found.test == "Welch t"


@pytest.mark.parametrize("few", [{}, {0: 0.5}, {0: 0.5, 1: 0.6}])
def test_two_runs_are_not_tested(few: dict[int, float]) -> None:
    assert difference(few, B) is None
    assert mean_interval(list(few.values())) is None
    assert prediction_interval(list(few.values())) is None


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.25, 0.0)])
@pytest.mark.parametrize("shift", [0, 10])
def test_without_any_spread_the_answer_is_certain(gap: float, p: float, shift: int) -> None:
    found = difference(dict.fromkeys(range(3), 0.25 + gap), {s + shift: 0.25 for s in range(3)})
    assert found is not None
    assert (found.mean, found.low, found.high, found.p) == (gap, gap, gap, p)


def test_a_prediction_interval_holds_what_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 6))
    inside = 0
    for *sample, new in draws:
        ends = prediction_interval(sample)
        assert ends is not None
        inside += ends[0] <= new <= ends[1]
    assert inside / 4000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def shifted(values: dict[int, float], by: float) -> list[float]:
    return [value + by for value in values.values()]


@pytest.mark.parametrize("margin", [0.01, 0.03, 0.05])
@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_is_two_one_sided_t_tests(margin: float, paired: bool) -> None:
    theirs = B if paired else {seed + 1: value for seed, value in B.items()}
    found = difference(A, theirs)
    assert found is not None

    def p(bound: float, side: Literal["greater", "less"]) -> float:
        ours, other = list(A.values()), shifted(theirs, bound)
        if paired:
            return float(stats.ttest_rel(ours, other, alternative=side).pvalue)
        return float(stats.ttest_ind(ours, other, equal_var=False, alternative=side).pvalue)

    one_sided = p(-margin, "greater"), p(margin, "less")
    assert (found.above(-margin), found.below(margin)) == pytest.approx(one_sided)
    assert found.equivalence(margin) == pytest.approx(max(one_sided))


def test_equivalence_by_hand() -> None:
    """t = (0.002 - 0.01) / 0.002 = -4 at 4 degrees of freedom: p = 0.00807 of printed tables."""
    found = Difference(0.002, 0.002, 4, "paired t", 5)
    assert found.equivalence(0.01) == pytest.approx(0.00807, abs=1e-5)


SMALL = st.floats(-0.1, 0.1)


@given(SMALL, st.floats(1e-4, 0.1), st.integers(2, 30), st.floats(1e-3, 0.2))
def test_equivalent_is_what_its_90_percent_interval_says(
    mean: float, error: float, df: int, margin: float
) -> None:
    found = Difference(mean, error, df, "paired t", df + 1)
    low, high = found.interval(0.9)
    inside = min(low + margin, margin - high)  # above 0 if the interval lies within the margin
    if abs(inside) > 1e-9:
        assert (found.equivalence(margin) < 0.05) == (inside > 0)


@given(SMALL, st.floats(0, 0.1), st.integers(2, 30))
def test_a_shown_difference_is_not_shown_to_be_none(mean: float, error: float, df: int) -> None:
    found = Difference(mean, error, df, "paired t", df + 1)
    low, high = found.interval()
    assert (found.p < 0.05) == (low > 0 or high < 0)
    if found.above(0.01) < 0.05 or found.below(-0.01) < 0.05:
        assert found.equivalence(0.01) > 0.5


@pytest.mark.parametrize(("gap", "p"), [(0.0, 0.0), (0.005, 0.0), (0.25, 1.0)])
def test_equivalence_without_any_spread_is_certain(gap: float, p: float) -> None:
    found = difference(dict.fromkeys(range(3), 0.25 + gap), dict.fromkeys(range(3), 0.25))
    assert found is not None
    assert found.equivalence(0.01) == p


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_is_above_0(margin: float) -> None:
    with pytest.raises(ValueError, match="the margin must be above 0"):
        Difference(0.0, 0.1, 4, "paired t", 5).equivalence(margin)


def test_runs_are_tested_against_a_figure_as_scipy_does() -> None:
    values = list(A.values())
    found = from_figure(values, 0.5)
    assert found is not None
    expected = stats.ttest_1samp(values, 0.5)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low + 0.5, found.high + 0.5) == pytest.approx(mean_interval(values))


def test_a_figure_differs_if_it_is_outside_the_prediction_interval() -> None:
    values = list(A.values())
    ends = prediction_interval(values)
    assert ends is not None
    for end, outwards in zip(ends, (-1, 1), strict=True):
        inside, outside = (from_run(values, end + outwards * by) for by in (-1e-6, 1e-6))
        assert inside is not None
        assert outside is not None
        assert outside.p < 0.05 < inside.p


def test_holm_of_a_published_example() -> None:
    """``p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`` of R, in another order."""
    found = holm([0.03, 0.01, None, 0.05, 0.02, 0.04])
    assert found == [pytest.approx(p) if p else None for p in (0.09, 0.05, None, 0.09, 0.08, 0.09)]
    assert holm([]) == []
    assert holm([None]) == [None]


P_VALUES = st.lists(st.none() | st.floats(0, 1), max_size=12)


@given(P_VALUES)
def test_holm_corrects_upwards_and_keeps_the_order(p_values: list[float | None]) -> None:
    corrected = holm(p_values)
    pairs = sorted(
        (p, q) for p, q in zip(p_values, corrected, strict=True) if p is not None and q is not None
    )
    assert [q is None for q in corrected] == [p is None for p in p_values]
    assert all(p <= q <= min(1, len(pairs) * p) for p, q in pairs)
    assert [q for _, q in pairs] == sorted(q for _, q in pairs)
    if pairs:
        assert pairs[0][1] == min(1, len(pairs) * pairs[0][0])  # Bonferroni


def test_holm_keeps_the_risk_of_any_false_finding() -> None:
    """Eight lines against one baseline, all equally good: the tests depend on each other."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(500):
        runs = rng.normal(size=(9, 5))
        ps = [float(stats.ttest_rel(line, runs[0]).pvalue) for line in runs[1:]]
        false += min(p for p in holm(ps) if p is not None) < 0.05
    assert false / 500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (5, 1.16296), (10, 1.53875), (100, 2.50759)],
)
def test_the_best_of_many_is_that_of_printed_tables(count: int, expected: float) -> None:
    """L. H. C. Tippett, Biometrika 17, 364, 1925."""
    assert expected_best(count) == pytest.approx(expected, abs=1e-5)
