"""Which metric a comparison shows if nobody named one: this project's, or else the likeliest."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from experiments.records.curves import is_loss
from experiments.records.runs import Run

FINAL = ("test/acc", "val/acc")  # the metrics to sort by, the best first
CURVES = ("val/acc", "test_curve/acc", "train/acc")
# Words in the names that other projects use; measures of quality, then the images they are of.
_QUALITY = {"acc", "accuracy", "auc", "auroc", "f1", "map", "iou", "miou", "dice", "bleu", "rouge"}
_QUALITY |= {"precision", "recall", "top1", "top5", "score", "reward", "return", "r2", "psnr"}
_TEST = {"test", "testing", "eval", "evaluation"}
_VAL = {"val", "valid", "validation", "dev"}
_TRAIN = {"train", "training"}
_WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*|\d+")


def final_metric(runs: Sequence[Run]) -> str:
    """The metric to sort by: of this project if some run has it, else the likeliest name.

    A measure of quality comes before a loss, the test before the validation, and both before the
    training; then the metric that most runs have.
    """
    counts = Counter(k for run in runs for k in run.summary if run.value(k) is not None)
    return next((name for name in FINAL if counts[name]), _likeliest(counts) or FINAL[0])


def curve_metric(runs: Sequence[Run], final: str) -> str:
    """The metric of best and last values: the commonest of this project's, else the likeliest.

    Args:
        runs: the runs.
        final: the metric to sort by, which is taken if it has several points.
    """
    counts = Counter({name: sum(bool(run.curve(name)) for run in runs) for name in CURVES})
    if any(counts.values()):
        return max(CURVES, key=lambda name: counts[name])
    if any(len(run.curve(final)) > 1 for run in runs):
        return final
    names = {key for run in runs for entry in run.entries for key in entry}
    found = Counter({name: sum(len(run.curve(name)) > 1 for run in runs) for name in names})
    found = Counter({name: count for name, count in found.items() if count})
    return _likeliest(found, of_fit=True) or (final if final in names else CURVES[0])


def _likeliest(counts: Counter[str], of_fit: bool = False) -> str:
    """The name that most probably tells how good a model is; empty if there is no name."""
    names = [name for name in counts if name not in {"step", "seconds", "epoch"}]
    return min(names, key=lambda name: (*_rank(name, of_fit), -counts[name], name), default="")


def _rank(name: str, of_fit: bool) -> tuple[int, int]:
    words = {word.lower() for word in _WORD.findall(name)}
    quality = 0 if words & _QUALITY else 1 if is_loss(name) else 2
    parts: Iterable[set[str]] = (_VAL, _TEST) if of_fit else (_TEST, _VAL)
    stage = next((place for place, part in enumerate(parts) if words & part), 2)
    is_training = stage == 2 and bool(words & _TRAIN)
    # A loss on the validation says more than the accuracy on the training images.
    return (3 if is_training and quality < 2 else quality), (3 if is_training else stage)
