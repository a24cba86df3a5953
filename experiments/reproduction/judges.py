"""Judges decide whether a claim holds; each judge has its own statistical test."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from experiments.analysis.significance import (
    FEWEST,
    Difference,
    difference,
    mean_interval,
    prediction_interval,
)
from experiments.records.runs import Run

ACCURACY = "test/acc"
CHANCE = 0.1
# A gain below one point counts as no gain.
_MARGIN = 0.01

Verdict = Literal["holds", "does not hold", "inside noise", "too few seeds", "not run"]
Runs = Mapping[str, Mapping[int, Run]]  # by arm and seed


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
        verdict: whether the claim holds.
        ours: our figures.
        test: the test and its result.
    """

    verdict: Verdict
    ours: str
    test: str


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
    """A claim with a figure: it holds if the figure agrees with one more run of ours."""

    def judge(self, runs: Runs) -> Judgement:
        """Tests whether the figure is inside the 95 % prediction interval of our runs."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        ends = prediction_interval(list(found.values()))
        if ends is None:
            return Judgement(_missing(found) or "not run", ours, "prediction interval")
        inside = ends[0] <= self.number <= ends[1]
        test = f"95 % prediction interval {_interval(ends)}"
        return Judgement("holds" if inside else "does not hold", ours, test)


@dataclass(frozen=True)
class AtLeast(_OneArm):
    """A claim that an accuracy is at least a figure."""

    def judge(self, runs: Runs) -> Judgement:
        """Tests on which side of the figure the 95 % confidence interval of our mean is."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        ends = mean_interval(list(found.values()))
        if ends is None:
            return Judgement(_missing(found) or "not run", ours, "confidence interval")
        verdict: Verdict = "inside noise"
        if ends[0] >= self.number:
            verdict = "holds"
        elif ends[1] < self.number:
            verdict = "does not hold"
        return Judgement(verdict, ours, f"95 % confidence interval {_interval(ends)}")


@dataclass(frozen=True)
class NoLearning:
    """A claim that a network learns nothing."""

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)

    def judge(self, runs: Runs) -> Judgement:
        """Tests whether every run ends within one point of chance."""
        found = values(runs, self.arm)
        ours = f"{self.arm}: {spread(found)}"
        missing = _missing(found)
        at_chance = all(abs(value - CHANCE) <= _MARGIN for value in found.values())
        verdict: Verdict = missing or ("holds" if at_chance else "does not hold")
        return Judgement(verdict, ours, "every run within a point of chance")


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
        verdicts = [_beyond(found.low, found.high, self.by)]
        if self.at_most is not None:
            verdicts.append(_beyond(-found.high, -found.low, -self.at_most))
        return Judgement(_worst(verdicts), _both(self, ours, theirs), _words(found))


def _beyond(low: float, high: float, margin: float) -> Verdict:
    """Whether an interval is completely above a margin, completely below it, or neither."""
    if low > margin:
        return "holds"
    return "does not hold" if high < margin else "inside noise"


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
    return f"difference {found.mean:+.4f} ({ends}), {found.test}, p = {found.p:.2g}"


@dataclass(frozen=True)
class NoGain:
    """A claim that none of several changes brings a significant improvement.

    Attributes:
        changed: the arms with a change.
        than: the arm without a change.
        metric: the metric that does not improve.
        than_metric: the metric of the arm without a change; default: the same.
    """

    changed: tuple[str, ...]
    than: str
    metric: str = ACCURACY
    than_metric: str | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(dict.fromkeys((*self.changed, self.than)))

    def judge(self, runs: Runs) -> Judgement:
        """Judges each change, and takes the worst verdict.

        A change is a gain if it is significantly better, at a level of 5 % for all changes
        together (Bonferroni). It is no gain if the interval of its difference ends below a point.
        """
        verdicts, ours, tests = [], [], []
        for arm in self.changed:
            pair = Greater(arm, self.than, self.metric, self.than_metric)
            a, b = _pair(runs, pair)
            ours.append(f"{self.metric if arm == self.than else arm}: {spread(a)}")
            found = difference(a, b)
            verdicts.append(_missing(a, b) or self._verdict(found))
            tests.append(f"{arm}: {_words(found)}" if found else f"{arm}: not tested")
        without = self._than_metric if self.changed == (self.than,) else self.than
        ours.append(f"{without}: {spread(values(runs, self.than, self._than_metric))}")
        return Judgement(_worst(verdicts), "; ".join(ours), "; ".join(tests))

    @property
    def _than_metric(self) -> str:
        return self.than_metric or self.metric

    def _verdict(self, found: Difference | None) -> Verdict:
        assert found is not None
        if found.mean > 0 and found.p < 0.05 / len(self.changed):
            return "does not hold"
        return "holds" if found.high < _MARGIN else "inside noise"


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
        """Judges each part, and takes the worst verdict."""
        found = {word: part.judge(runs) for word, part in self.parts.items()}
        return Judgement(
            _worst([judged.verdict for judged in found.values()]),
            "; ".join(f"{word}: {judged.ours}" for word, judged in found.items()),
            "; ".join(f"{word}: {judged.test}" for word, judged in found.items()),
        )
