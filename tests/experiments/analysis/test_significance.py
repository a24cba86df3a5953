import math

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.significance import difference, mean_interval, prediction_interval

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
