"""What chance alone makes of many lines that are tested on the same images."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence

from experiments.analysis.groups import Group
from experiments.analysis.significance import expected_best
from experiments.records.curves import is_accuracy

# From six lines on, a warning: at 5 % each, one of six equally good lines looks different from its
# baseline in one of four comparisons (1 - 0.95^6 = 0.26).
MANY = 5
_TEST = re.compile(r"(^|[/_.-])(test|eval)(?=[/_.-]|$)", re.IGNORECASE)


def many_tested(groups: Sequence[Group]) -> list[str]:
    """A warning if the figures of many lines are of the same test images.

    The best of many looks good by chance. How much is said by the standard errors over seeds, or,
    if every line has one run, by the binomial error of an accuracy on that many images.
    """
    lines = [group for group in groups if _TEST.search(group.metric) and group.final()]
    data, count = Counter(group.data for group in lines).most_common(1)[0] if lines else ("", 0)
    if count <= MANY:
        return []
    errors, of = _errors([group for group in lines if group.data == data])
    by_chance = f" by {chance_of_best(errors, count)} {of}" if errors else ""
    known = {key for line in lines for run in line.runs for key in run.summary}
    metric = lines[0].metric.partition("@")[0]
    names = [_TEST.sub(rf"\1{word}", metric, count=1) for word in ("val", "validation", "valid")]
    names += [f"val/{metric.rpartition('/')[2]}"]
    is_ours = lines[0].runs[0].source == "record"
    other = names[-1] if is_ours else "figures of validation images"
    validation = next((name for name in names if name in known), other)
    return [
        f"{count} lines are compared on the same test images: if all were equally good, the best "
        f"would still be better than their mean{by_chance}; choose by {validation}"
    ]


def _errors(lines: Sequence[Group]) -> tuple[list[float], str]:
    """The standard errors of the lines' figures, and where they come from."""
    seeds = [list(line.final().values()) for line in lines]
    if several := [values for values in seeds if len(values) > 1]:
        deviation = statistics.median(map(statistics.stdev, several))
        return [deviation / len(values) ** 0.5 for values in seeds], "over seeds"
    images = lines[0].runs[0].fields.get("images")
    count = images.get("test") if isinstance(images, dict) else None
    if not isinstance(count, int) or count < 1 or not is_accuracy(lines[0].metric):
        return [], ""
    if any(not 0 <= value <= 1 for (value,) in seeds):  # in percent
        return [], ""
    variances = [value * (1 - value) / count for (value,) in seeds]
    return [variance**0.5 for variance in variances], f"of {count:,} images"


def chance_of_best(errors: Sequence[float], count: int) -> str:
    """How far the best of equally good lines is ahead by chance, for a warning.

    Args:
        errors: the standard errors of the lines' means.
        count: the number of lines.

    Returns:
        Such as ``about 0.0026 (1.63 standard errors)``.
    """
    factor = expected_best(count)
    return f"about {factor * statistics.median(errors):.2g} ({factor:.2f} standard errors)"
