"""Metrics by step and their best value, for records, checkpoints, tables and plots."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from experiments.records.reader import is_number

_WORD = re.compile(r"[a-z]+")
_SMALLER = {"error", "err", "mse", "rmse", "mae", "nll", "perplexity", "ppl", "wer", "cer", "fid"}
_SMALLER |= {"entropy", "ce", "bce"}
_LARGER = {"acc", "accuracy", "auc", "auroc", "precision", "recall", "iou", "score"}
CHOSEN_BY = "val/acc"  # the figure whose best step is kept as best.ckpt


def curve_of(entries: Iterable[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """Values of a metric by step, in the order of the steps; the latest if a step has two.

    Args:
        entries: of a log, each with its ``step``, oldest first.
        metric: such as ``val/acc``.
    """
    points = {
        int(entry["step"]): float(entry[metric])
        for entry in entries
        if is_number(entry.get(metric)) and is_number(entry.get("step"))
    }
    return dict(sorted(points.items()))


def last_step(entries: Iterable[Mapping[str, Any]], metric: str) -> int:
    """The last step with a value of a metric; 0 if there is none."""
    return max(curve_of(entries, metric), default=0)


def is_loss(metric: str) -> bool:
    """Whether a smaller value of a metric is better: a loss, an error, a perplexity."""
    return "loss" in metric.lower() or not _SMALLER.isdisjoint(_WORD.findall(metric.lower()))


def is_score(metric: str) -> bool:
    """Whether a larger value of a metric is better: an accuracy in any unit, a recall, a score."""
    return not is_loss(metric) and not _LARGER.isdisjoint(_WORD.findall(metric.lower()))


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of images, such as ``test/acc`` or ``test_curve/acc@2300``."""
    return metric.partition("@")[0].rpartition("/")[2] == "acc"


def direction(metric: str) -> Literal["min", "max"]:
    """The word of Lightning and W&B for the best value of a metric: ``min`` or ``max``."""
    return "min" if is_loss(metric) else "max"


def is_better(value: float, than: float | None, metric: str) -> bool:
    """Whether a value is better than the best so far; an equal value or NaN is not."""
    if than is None:
        return not math.isnan(value)
    return value < than if is_loss(metric) else value > than


def best_step(curve: Mapping[int, float], metric: str, since: int | None = None) -> int | None:
    """The step of the best value, the first of equal ones; None if there is no value.

    Args:
        curve: values by step, in the order of the steps.
        metric: the metric's name.
        since: only values after this step count, because earlier ones belong to another training
            (``best_since`` of a record).
    """
    best = None
    for step, value in curve.items():
        counts = since is None or step > since
        if counts and is_better(value, None if best is None else curve[best], metric):
            best = step
    return best


def summarize(entry: Mapping[str, Any], summary: dict[str, Any], since: int) -> None:
    """Adds an entry of a log to a run's summary: the last value of each figure, and the best.

    Args:
        entry: with its ``step``.
        summary: final and best values by metric, changed in place.
        since: only values after this step count for the best.
    """
    for key, value in entry.items():
        if key in {"step", "seconds", "epoch"}:
            continue
        summary[key] = value
        best = f"best/{CHOSEN_BY}"
        counts = key == CHOSEN_BY and value is not None and (entry["step"] or 0) > since
        if counts and is_better(value, summary.get(best), key):
            summary |= {best: value, "best/step": entry["step"]}
