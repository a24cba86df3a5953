"""What the tests of lines against a baseline come to, as one family and in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.analysis.costs import CHEAPER
from experiments.analysis.significance import ALPHA, Difference, holm
from experiments.records.curves import is_accuracy, is_loss, is_score
from experiments.texts import decimals

POINT = 0.01  # of accuracy: the margin, unless another is given

Verdict = Literal["better", "worse", "higher", "lower", "equivalent", "undecided"]


def margin_for(metric: str) -> float | None:
    """The margin of a metric if none is given: one point of accuracy; None for others."""
    return POINT if is_accuracy(metric) else None


def better_if(metric: str) -> Literal["higher", "lower"] | None:
    """Which of two figures is better; None for what is no score, loss or cost by its name."""
    if is_loss(metric) or metric in CHEAPER:
        return "lower"
    return "higher" if is_score(metric) else None


@dataclass(frozen=True)
class Outcome:
    """A difference to a baseline, tested as one of a family.

    Attributes:
        difference: its mean, interval and test.
        metric: what differs; it decides whether more is better.
        family: the number of lines that are tested against the baseline.
        holm: p-value for no difference, corrected over the family.
        margin: the least difference that matters; None: equivalence is not tested.
        equivalence: p-value of the equivalence test.
        equivalence_holm: the same, corrected over the family.
    """

    difference: Difference
    metric: str
    family: int
    holm: float
    margin: float | None = None
    equivalence: float | None = None
    equivalence_holm: float | None = None

    @property
    def is_within(self) -> bool:
        """Whether the difference is shown to be smaller than the margin."""
        return self.equivalence_holm is not None and self.equivalence_holm < ALPHA

    @property
    def verdict(self) -> Verdict:
        """What is shown at 5 %, for the whole family; what is no quality is ``higher``."""
        if self.holm >= ALPHA:
            return "equivalent" if self.is_within else "undecided"
        side: Literal["higher", "lower"] = "higher" if self.difference.mean > 0 else "lower"
        wanted = better_if(self.metric)
        if wanted is None:
            return side
        return "better" if side == wanted else "worse"

    def words(self) -> str:
        """Difference, interval and verdict: ``-0.1231 (-0.1407 to -0.1056): worse, p = 0.0011``."""
        found, verdict = self.difference, self.verdict
        said = f"{verdict} within ±{self.margin:g}" if verdict == "equivalent" else str(verdict)
        if verdict not in {"equivalent", "undecided"} and self.is_within:
            said += f", but by less than {self.margin:g}"
        if verdict == "equivalent":
            said += f", TOST p = {self.equivalence_holm:.2g}"
        elif verdict != "undecided" or found.p < ALPHA:
            said += f", p = {self.holm:.2g}"
        mean, low, high = (decimals(x, sign="+") for x in (found.mean, found.low, found.high))
        return f"{mean} ({low} to {high}): {said}, {found.test}"


def outcomes(
    differences: Sequence[Difference | None], metric: str, margin: float | None
) -> list[Outcome | None]:
    """Tests the lines of a comparison against its baseline, as one family.

    Two questions, each corrected by Holm over the family: is there a difference, and is it smaller
    than the margin? The second is corrected too: of many lines with a difference that matters, one
    may seem to have none by chance. No correction is needed between the two: a line can't have no
    difference and one that matters, so at most one of its two answers can be false (J. J. Goeman,
    A. Solari and T. Stijnen, Statist. Med. 29, 2117, 2010).

    Args:
        differences: of each line to the baseline; None if it is not tested.
        metric: what differs.
        margin: the least difference that matters; None to test no equivalence.

    Returns:
        A result for each difference, in the same order.
    """
    corrected = holm([None if found is None else found.p for found in differences])
    same = [
        None if found is None or margin is None else found.equivalence(margin)
        for found in differences
    ]
    family = sum(found is not None for found in differences)
    return [
        None if found is None or p is None else Outcome(found, metric, family, p, margin, *both)
        for found, p, *both in zip(differences, corrected, same, holm(same), strict=True)
    ]
