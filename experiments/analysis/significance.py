"""Intervals and tests over seeds, all by Student's t, and what many tests at once come to.

That two experiments do not differ is not shown by a large p-value, which also comes from few or
noisy runs. It is shown by an equivalence test: the difference is smaller than a stated margin.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import integrate, stats

FEWEST = 3  # fewer values are not tested
LEVEL = 0.95
ALPHA = 0.05  # the level of every test


@dataclass(frozen=True)
class Difference:
    """The difference of two groups of runs, or of runs and a figure.

    Attributes:
        mean: difference of the means.
        error: its standard error.
        df: degrees of freedom of Student's t.
        test: ``paired t`` if both groups have the same seeds, otherwise ``Welch t``;
            ``one-sample t`` and ``one more run`` for a figure.
        n: runs in the smaller group.
    """

    mean: float
    error: float
    df: float
    test: Literal["paired t", "Welch t", "one-sample t", "one more run"]
    n: int

    @property
    def low(self) -> float:
        """Lower end of the 95 % confidence interval."""
        return self.interval()[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % confidence interval."""
        return self.interval()[1]

    @property
    def p(self) -> float:
        """Two-sided p-value for no difference."""
        return self.other_than(0.0)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The ends of a confidence interval."""
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    def above(self, bound: float) -> float:
        """One-sided p-value: a small one shows that the difference is above a bound."""
        if not self.error:  # t is infinite, or 0/0
            return float(self.mean <= bound)
        return float(stats.t.sf((self.mean - bound) / self.error, self.df))

    def below(self, bound: float) -> float:
        """One-sided p-value: a small one shows that the difference is below a bound.

        With the least gain that matters as the bound, this is the test of non-superiority.
        """
        if not self.error:
            return float(self.mean >= bound)
        return float(stats.t.cdf((self.mean - bound) / self.error, self.df))

    def other_than(self, bound: float) -> float:
        """Two-sided p-value: a small one shows that the difference is not this bound."""
        return min(1.0, 2 * min(self.above(bound), self.below(bound)))

    def equivalence(self, margin: float) -> float:
        """The p-value of an equivalence test: a small one shows that the difference is small.

        Two one-sided t tests (TOST): the difference is above ``-margin``, and below ``+margin``.
        Both must be shown, so the larger p-value counts. It is below 0.05 exactly if the 90 %
        interval of the difference lies within ±margin (D. J. Schuirmann, J. Pharmacokinet.
        Biopharm. 15, 657, 1987; D. Lakens, Soc. Psychol. Personal. Sci. 8, 355, 2017).

        Args:
            margin: the least difference that matters, in units of the metric.

        Raises:
            ValueError: if the margin is not above 0.
        """
        if not margin > 0:
            raise ValueError(f"the margin must be above 0, got {margin}")
        return max(self.above(-margin), self.below(margin))


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
        pairs = [ours[seed] - theirs[seed] for seed in ours]
        return Difference(statistics.fmean(pairs), _error(pairs), n - 1, "paired t", n)
    a, b = list(ours.values()), list(theirs.values())
    errors = [_error(values) for values in (a, b)]
    error, mean = math.hypot(*errors), statistics.fmean(a) - statistics.fmean(b)
    if not error:
        return Difference(mean, 0.0, n - 1, "Welch t", n)
    shares = [(part / error) ** 4 / (len(v) - 1) for part, v in zip(errors, (a, b), strict=True)]
    return Difference(mean, error, 1 / sum(shares), "Welch t", n)  # df by Welch and Satterthwaite


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return float(statistics.stdev(values) / len(values) ** 0.5)


def from_figure(values: Sequence[float], figure: float) -> Difference | None:
    """The difference of the mean of runs and an exact figure; None for fewer than three runs."""
    n = len(values)
    if n < FEWEST:
        return None
    mean = statistics.fmean(values) - figure
    return Difference(mean, _error(values), n - 1, "one-sample t", n)


def from_run(values: Sequence[float], run: float) -> Difference | None:
    """The difference of the mean of runs and the figure of one more run.

    The other run has the spread of ours, so the error is ``sd sqrt(1 + 1/n)``. The difference is
    significant exactly if the figure is outside `prediction_interval`.

    Returns:
        The difference; None for fewer than three values.
    """
    n = len(values)
    if n < FEWEST:
        return None
    error = statistics.stdev(values) * (1 + 1 / n) ** 0.5
    return Difference(statistics.fmean(values) - run, error, n - 1, "one more run", n)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean; None for fewer than three values."""
    found = from_figure(values, 0.0)
    return found.interval() if found else None


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval that contains one more run with a probability of 95 %.

    ``mean +- t sd sqrt(1 + 1/n)`` with t of n - 1 degrees of freedom. A single figure, such as one
    of the report, agrees with our runs if it is inside.

    Returns:
        Its ends; None for fewer than three values.
    """
    found = from_run(values, 0.0)
    return found.interval() if found else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects the p-values of a family of tests, so that 5 % is the risk of any false finding.

    The smallest of k is multiplied by k, the next by k - 1, and so on; none gets smaller than the
    one before it (S. Holm, Scand. J. Statist. 6, 65, 1979). This holds for dependent tests too,
    such as those against one baseline.

    Args:
        p_values: of the tests; None for a test that was not made, which does not count.

    Returns:
        The corrected p-values in the same order, at most 1; None stays None.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        found[place] = largest
    return found


def expected_best(count: int) -> float:
    """The expected maximum of independent standard normal variables: 0.56 for two, 1.54 for ten.

    The integral of ``x k phi(x) Phi(x)^(k-1)`` (H. A. David and H. N. Nagaraja, Order Statistics,
    2003, section 3.1). Of equally good experiments that are tested on the same images, the best
    looks better than their mean by this number of standard errors.

    Args:
        count: the number of variables, at least 1.
    """

    def density(x: float) -> float:
        return float(x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1))

    return float(integrate.quad(density, -10, 10, limit=200)[0])
