"""Intervals and tests over seeds, all by Student's t."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

FEWEST = 3  # fewer values are not tested
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The difference of two groups of runs.

    Attributes:
        mean: difference of the means.
        low: lower end of its 95 % confidence interval.
        high: upper end.
        p: two-sided p-value for no difference.
        test: ``paired t`` if both groups have the same seeds, otherwise ``Welch t``.
        n: runs in the smaller group.
    """

    mean: float
    low: float
    high: float
    p: float
    test: Literal["paired t", "Welch t"]
    n: int


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Compares two groups of runs.

    Args:
        ours: a value for each seed; negative numbers stand for runs without one.
        theirs: a value for each seed; with the same seeds the test is paired, because a seed sets
            the order of the images in both groups.

    Returns:
        The difference ``ours - theirs``; None with fewer than three runs in either group.
    """
    n = min(len(ours), len(theirs))
    if n < FEWEST:
        return None
    if ours.keys() == theirs.keys() and min(ours) >= 0:
        low, high, p = _t_test([ours[seed] - theirs[seed] for seed in ours])
        mean = statistics.fmean(ours[seed] - theirs[seed] for seed in ours)
        return Difference(mean, low, high, p, "paired t", n)
    a, b = list(ours.values()), list(theirs.values())
    mean = statistics.fmean(a) - statistics.fmean(b)
    if statistics.pvariance(a) == statistics.pvariance(b) == 0:
        return Difference(mean, mean, mean, float(mean == 0), "Welch t", n)
    found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    return Difference(
        mean, float(interval.low), float(interval.high), float(found.pvalue), "Welch t", n
    )


def _t_test(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends of the mean's confidence interval, and the p-value of a mean of 0."""
    mean = statistics.fmean(values)
    if statistics.pvariance(values) == 0:  # t is infinite, or 0/0
        return mean, mean, float(mean == 0)
    found = stats.ttest_1samp(values, 0.0)
    interval = found.confidence_interval(LEVEL)
    return float(interval.low), float(interval.high), float(found.pvalue)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean; None for fewer than three values."""
    return _t_test(values)[:2] if len(values) >= FEWEST else None


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval that contains one more run with a probability of 95 %.

    ``mean +- t sd sqrt(1 + 1/n)`` with t of n - 1 degrees of freedom. A single figure, such as one
    of the report, agrees with our runs if it is inside.

    Returns:
        Its ends; None for fewer than three values.
    """
    n = len(values)
    if n < FEWEST:
        return None
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd * (1 + 1 / n) ** 0.5
    return mean - half, mean + half
