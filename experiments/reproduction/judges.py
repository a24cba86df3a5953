"""Judges decide whether a claim holds; each judge has its own statistical test.

A judge asks two questions: do the runs show that the claim holds, and do they show that it does
not? Each has a p-value, see `Evidence`.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from experiments.analysis.significance import (
    ALPHA,
    FEWEST,
    Difference,
    difference,
    from_figure,
    from_run,
    holm,
    mean_interval,
    prediction_interval,
)
from experiments.analysis.verdicts import POINT
from experiments.records.runs import Run

ACCURACY = "test/acc"
CHANCE = 0.1

Verdict = Literal[
    "holds",
    "does not hold",
    "equal within a point",
    "compatible",
    "inside noise",
    "too few seeds",
    "not run",
]
Runs = Mapping[str, Mapping[int, Run]]  # by arm and seed


@dataclass(frozen=True)
class Evidence:
    """What runs show about a claim, by p-values; below 5 % counts as shown.

    Attributes:
        holds: of the test that shows that the claim holds.
        fails: of the test that shows that it does not hold.
        equal: of the test that shows a difference below one point, where a claim says that there
            is a difference.
        otherwise: the verdict if none of them is below 5 %.
    """

    holds: float
    fails: float
    equal: float = 1.0
    otherwise: Verdict = "inside noise"

    @property
    def verdict(self) -> Verdict:
        """The first that is shown: it does not hold, it holds, both sides are equal."""
        if self.fails < ALPHA:
            return "does not hold"
        if self.holds < ALPHA:
            return "holds"
        return "equal within a point" if self.equal < ALPHA else self.otherwise

    @property
    def p(self) -> float:
        """The p-value of the verdict; the smallest if the verdict shows nothing."""
        of = {
            "does not hold": self.fails,
            "holds": self.holds,
            "equal within a point": self.equal,
        }
        return of.get(self.verdict, min(self.holds, self.fails, self.equal))

    def words(self) -> str:
        """Its p-values: ``holds: p = 0.002, fails: p = 1``; that of equality where it decides."""
        decides = min(self.holds, self.fails) >= ALPHA and self.equal < 1
        equal = f", equal: p = {self.equal:.2g}" if decides else ""
        return f"holds: p = {self.holds:.2g}, fails: p = {self.fails:.2g}{equal}"


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: whether the claim holds.
        ours: our figures.
        test: the test and its result.
        evidence: the p-values behind the verdict; None if it has none.
    """

    verdict: Verdict
    ours: str
    test: str
    evidence: Evidence | None = None

    @property
    def p(self) -> float | None:
        """The p-value of the verdict; None if it has none."""
        return None if self.evidence is None else self.evidence.p


class Judge(Protocol):
    """The test of a claim."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that the test needs."""
        ...

    def judge(self, runs: Runs) -> Judgement:
        """Judges the claim by the given runs."""
        ...


_ACCURACIES = (ACCURACY, "test_curve/acc", "val/acc")


def values(runs: Runs, arm: str, metric: str = ACCURACY) -> dict[int, float]:
    """The values of an arm by seed; a run that diverged counts as chance."""
    found: dict[int, float] = {}
    for seed, run in sorted(runs.get(arm, {}).items()):
        value = run.value(metric)
        if value is None and diverged(run) and metric.startswith(_ACCURACIES):
            value = CHANCE
        if value is not None:
            found[seed] = value
    return found


def first_seeds(runs: Runs, count: int) -> Runs:
    """The runs with the seeds below a number."""
    return {
        arm: {seed: run for seed, run in found.items() if seed < count}
        for arm, found in runs.items()
    }


def diverged(run: Run) -> bool:
    """Whether a run ended because its loss was not finite."""
    return run.status == "failed" and run.note.startswith("FloatingPointError")


def spread(found: Mapping[int, float]) -> str:
    """Mean and standard deviation, as text: ``0.5554 ± 0.0036 (n = 5)``."""
    if not found:
        return "not run"
    mean = statistics.fmean(found.values())
    sd = f" ± {statistics.stdev(found.values()):.4f}" if len(found) > 1 else ""
    return f"{mean:.4f}{sd} (n = {len(found)})"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def _missing(*groups: Mapping[int, float]) -> Verdict | None:
    """The verdict if runs are missing."""
    fewest = min(len(group) for group in groups)
    if fewest == 0:
        return "not run"
    return "too few seeds" if fewest < FEWEST else None


@dataclass(frozen=True)
class _OneArm:
    """What every claim about one arm and a figure has."""

    arm: str
    number: float
    metric: str = ACCURACY

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)


@dataclass(frozen=True)
class Figure(_OneArm):
    """A claim with a figure.

    It holds if our runs are shown to be equal to the figure, within a point. It does not hold if
    the figure is outside the 95 % prediction interval of our runs. Otherwise the figure could be
    one of our runs, but so could others: it is compatible.
    """

    def judge(self, runs: Runs) -> Judgement:
        """Tests the difference of our mean and the figure as that of one more run of ours."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        gap = from_run(list(found.values()), self.number)
        ends = prediction_interval(list(found.values()))
        if gap is None or ends is None:
            return Judgement(_missing(found) or "not run", ours, "prediction interval")
        evidence = Evidence(gap.equivalence(POINT), gap.p, otherwise="compatible")
        return _judged(evidence, ours, f"95 % prediction interval {_interval(ends)}")


@dataclass(frozen=True)
class AtLeast(_OneArm):
    """A claim that an accuracy is at least a figure."""

    def judge(self, runs: Runs) -> Judgement:
        """Tests on which side of the figure our mean is, or whether it is within a point of it."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        gap = from_figure(list(found.values()), self.number)
        ends = mean_interval(list(found.values()))
        if gap is None or ends is None:
            return Judgement(_missing(found) or "not run", ours, "confidence interval")
        sides = _two_sided(gap.above(0.0)), _two_sided(gap.below(0.0))
        evidence = Evidence(*sides, gap.equivalence(POINT))
        return _judged(evidence, ours, f"95 % confidence interval {_interval(ends)}")


def _judged(evidence: Evidence, ours: str, test: str) -> Judgement:
    return Judgement(evidence.verdict, ours, f"{test}; {evidence.words()}", evidence)


def _two_sided(p: float) -> float:
    """The two-sided p-value of a one-sided one, as a 95 % interval tests either side."""
    return min(1.0, 2 * p)


@dataclass(frozen=True)
class NoLearning:
    """A claim that a network learns nothing."""

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)

    def judge(self, runs: Runs) -> Judgement:
        """Tests whether the mean is within a point of chance; no run may be further from it."""
        found = values(runs, self.arm)
        ours = f"{self.arm}: {spread(found)}"
        gap = from_figure(list(found.values()), CHANCE)
        if gap is None:
            return Judgement(_missing(found) or "not run", ours, "within a point of chance")
        if any(abs(value - CHANCE) > POINT for value in found.values()):
            return Judgement("does not hold", ours, "a run is over a point from chance")
        evidence = Evidence(gap.equivalence(POINT), 1.0)
        return _judged(evidence, ours, "every run within a point of chance")


@dataclass(frozen=True)
class Greater:
    """A claim that a metric is greater in one arm (or at one step) than in another.

    Attributes:
        arm: the arm with the greater value.
        than: the arm with the smaller value.
        metric: the metric.
        than_metric: the metric of the other arm; default: the same.
        magnitude: compare absolute values.
        by: the least difference; the claim's text has it in words.
        at_most: the greatest difference, if the claim names one.
    """

    arm: str
    than: str
    metric: str = ACCURACY
    than_metric: str | None = None
    magnitude: bool = False
    by: float = 0.0
    at_most: float | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """Both arms."""
        return tuple(dict.fromkeys((self.arm, self.than)))

    def judge(self, runs: Runs) -> Judgement:
        """Tests whether the 95 % interval of the difference is above or below the margin."""
        ours, theirs = _pair(runs, self)
        found = difference(ours, theirs)
        if found is None:
            return Judgement(_missing(ours, theirs) or "not run", _both(self, ours, theirs), "t")
        return _judged(self._evidence(found), _both(self, ours, theirs), _words(found))

    def _evidence(self, found: Difference) -> Evidence:
        holds, fails = _two_sided(found.above(self.by)), _two_sided(found.below(self.by))
        if self.at_most is not None:  # both bounds must be shown, but one of them is missed
            holds = max(holds, _two_sided(found.below(self.at_most)))
            fails = min(fails, _two_sided(found.above(self.at_most)))
        of_accuracy = self.metric.startswith(_ACCURACIES)
        return Evidence(holds, fails, found.equivalence(POINT) if of_accuracy else 1.0)


def _pair(runs: Runs, judge: Greater) -> tuple[dict[int, float], dict[int, float]]:
    ours = values(runs, judge.arm, judge.metric)
    theirs = values(runs, judge.than, judge.than_metric or judge.metric)
    if judge.magnitude:
        ours = {seed: abs(value) for seed, value in ours.items()}
        theirs = {seed: abs(value) for seed, value in theirs.items()}
    return ours, theirs


def _both(judge: Greater, ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    at = judge.than_metric is not None and judge.arm == judge.than
    names = (judge.metric, judge.than_metric) if at else (judge.arm, judge.than)
    return f"{names[0]}: {spread(ours)}; {names[1]}: {spread(theirs)}"


def _words(found: Difference) -> str:
    ends = _interval((found.low, found.high))
    return f"difference {found.mean:+.4f} ({ends}), {found.test}"


@dataclass(frozen=True)
class Same:
    """A claim that two arms reach the same accuracy.

    Attributes:
        arm: one arm.
        than: the other.
    """

    arm: str
    than: str

    @property
    def arms(self) -> tuple[str, ...]:
        """Both arms."""
        return (self.arm, self.than)

    def judge(self, runs: Runs) -> Judgement:
        """Tests whether the difference is within a point (equivalence), or is not 0."""
        pair = Greater(self.arm, self.than)
        ours, theirs = _pair(runs, pair)
        figures = _both(pair, ours, theirs)
        found = difference(ours, theirs)
        if found is None:
            return Judgement(_missing(ours, theirs) or "not run", figures, "equivalence")
        return _judged(Evidence(found.equivalence(POINT), found.p), figures, _words(found))


@dataclass(frozen=True)
class NoGain:
    """A claim that none of several changes helps.

    That a change does not help is a statement on its size: the gain is shown to be below a point
    (non-superiority). It is not shown by a gain that is not significant.

    Attributes:
        changed: the arms with a change.
        than: the arm without a change.
        metric: the metric that does not improve.
        than_metric: the metric of the arm without a change; default: the same.
        allows_small: whether the claim allows a gain below a point, as "no significant gain" does.
            If not, it does not hold if any gain is shown.
    """

    changed: tuple[str, ...]
    than: str
    metric: str = ACCURACY
    than_metric: str | None = None
    allows_small: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(dict.fromkeys((*self.changed, self.than)))

    def judge(self, runs: Runs) -> Judgement:
        """Judges each change; the claim is on all of them, see `_all`."""
        parts = {arm: self._judge(runs, arm) for arm in self.changed}
        without = self._than_metric if self.changed == (self.than,) else self.than
        ours = [part.ours for part in parts.values()]
        ours.append(f"{without}: {spread(values(runs, self.than, self._than_metric))}")
        return _all(parts, "; ".join(ours))

    def _judge(self, runs: Runs, arm: str) -> Judgement:
        ours, theirs = _pair(runs, Greater(arm, self.than, self.metric, self.than_metric))
        figures = f"{self.metric if arm == self.than else arm}: {spread(ours)}"
        found = difference(ours, theirs)
        if found is None:
            return Judgement(_missing(ours, theirs) or "not run", figures, "not tested")
        gain = POINT if self.allows_small else 0.0
        evidence = Evidence(found.below(POINT), _two_sided(found.above(gain)))
        return _judged(evidence, figures, _words(found))

    @property
    def _than_metric(self) -> str:
        return self.than_metric or self.metric


def _all(parts: Mapping[str, Judgement], ours: str) -> Judgement:
    """Judges a claim that holds only if all its parts hold.

    Each part must be shown, so the largest p-value counts, and no correction is needed (R. L.
    Berger, Technometrics 24, 295, 1982). One part of many may seem to fail by chance, so the
    p-values of failing are corrected by Holm.
    """
    known = [part.evidence for part in parts.values() if part.evidence is not None]
    verdicts = [part.verdict for part in parts.values() if part.evidence is None]
    test = "; ".join(f"{word}: {part.test}" for word, part in parts.items())
    if not known:
        return Judgement(_worst(verdicts), ours, test)
    fails = min(p for p in holm([evidence.fails for evidence in known]) if p is not None)
    together = Evidence(max(evidence.holds for evidence in known), fails)
    return Judgement(_worst([*verdicts, together.verdict]), ours, test, together)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("does not hold", "not run", "too few seeds", "inside noise")
    return next((verdict for verdict in order if verdict in verdicts), "holds")


@dataclass(frozen=True)
class Everywhere:
    """A claim that holds only if all its parts hold.

    Attributes:
        parts: the judges of the parts, by name.
    """

    parts: Mapping[str, Judge]

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(dict.fromkeys(arm for part in self.parts.values() for arm in part.arms))

    def judge(self, runs: Runs) -> Judgement:
        """Judges each part, and all together, see `_all`."""
        found = {word: part.judge(runs) for word, part in self.parts.items()}
        return _all(found, "; ".join(f"{word}: {judged.ours}" for word, judged in found.items()))
