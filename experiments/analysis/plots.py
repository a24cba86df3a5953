"""Draws figures: the curves, confusion matrix and mistakes of a run, the curves of several."""

import math
import statistics
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which is the caller's: it may show a notebook
from matplotlib.lines import Line2D
from matplotlib.text import Text

from experiments.records.curves import curve_of
from experiments.records.files import replacing
from experiments.texts import decimals, printable, shortened

# Colours for people with each kind of colour blindness: Okabe and Ito, "Color Universal Design"
# (2008), without yellow, which is too light on white.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000")
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "ls": dashes} for dashes in ("-", "--") for color in _COLORS
)
STEPS, LOSS, ACCURACY = "optimiser steps", "cross-entropy (nats)", "accuracy (share of images)"

_DPI = 120
_TITLE_WIDTH = 70  # characters
_LONGEST_LINE, _LONGEST_LABEL, _LONGEST_NAME = 80, 60, 24  # of a text, a legend, a class
_MOST_LINES = 6
_MOST_COUNTED = 20  # classes whose counts fit into a matrix


def accuracy_per_class(confusion: npt.NDArray[np.int64]) -> list[float]:
    """The recall of each class.

    Args:
        confusion: ``(C, C)`` counts, rows true, columns predicted.

    Returns:
        C fractions; 0 for a class without images.
    """
    totals = confusion.sum(1)
    fractions: list[float] = (confusion.diagonal() / np.maximum(totals, 1)).tolist()
    return fractions


def curves(
    entries: Iterable[Mapping[str, Any]], path: Path, title: str, training_loss: str = ""
) -> None:
    """Draws loss and accuracy over steps, as in the report's figures.

    Args:
        entries: the record's metrics, each with ``step``.
        path: the PNG to write.
        title: the figure's title.
        training_loss: what it is, if it is another measure than the cross-entropy of an
            evaluation; it then has a plot of its own.
    """
    entries = list(entries)
    trained, *evaluated = _PARTS
    drawn = [("loss", LOSS, [*_PARTS]), ("acc", ACCURACY, [*_PARTS])]
    if training_loss:
        label = f"training loss: {training_loss}"
        drawn[:1] = [("loss", label, [trained]), ("loss", LOSS, evaluated)]
    figure, axes = panels(len(drawn), title)
    for ax, (metric, label, parts) in zip(axes, drawn, strict=True):
        values = [_draw(ax, entries, part, metric) for part in parts]
        ax.set(xlabel=STEPS, ylabel=label)
        ax.set_title("last values: " + ", ".join(filter(None, values)), fontsize="small")
    legend(figure)
    save(figure, path)


# It is hollow: a point of validation at the same place stays visible.
_STAR: dict[str, Any] = {
    **{"color": RED, "marker": "*", "ls": ""},
    **{"markersize": 16, "markerfacecolor": "none", "markeredgewidth": 1.3, "zorder": 3},
}
# The name, the legend and the style of each part of a record's metrics.
_PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "train": ("training", "training batches, mean since the last point", {"color": BLUE}),
    "val": ("validation", "validation images", {"color": ORANGE, "marker": "o", "markersize": 4}),
    "test_curve": (
        "test during training",
        "test images during training",
        {"color": GREEN, "marker": "s", "markersize": 3},
    ),
    "test": ("test", "test images", _STAR),
}


def _draw(ax: Axes, entries: list[Mapping[str, Any]], part: str, metric: str) -> str:
    """Draws one curve, if there is one, and returns its name with its last value."""
    points = curve_of(entries, f"{part}/{metric}")
    if not points:
        return ""
    name, label, style = _PARTS[part]
    *_, (step, last) = points.items()
    label += f", weights of step {step:,}" if part == "test" else ""
    ax.plot([*points], [*points.values()], label=label, **style)
    return f"{name} {decimals(last, 3)}"


def described(metric: str) -> str:
    """A metric of a record in words, such as ``validation accuracy (share of images)``."""
    part, _, name = metric.partition("/")
    known = {"loss": LOSS, "acc": ACCURACY}
    return f"{_PARTS[part][0]} {known[name]}" if part in _PARTS and name in known else metric


def band(ax: Axes, curves: Sequence[Mapping[int, float]], label: str, **style: Any) -> None:
    """Draws the mean curve of several runs, with a band of one standard deviation on each side.

    Args:
        ax: the axes.
        curves: values by step, one mapping for each run; a step uses the runs that have it.
        label: the group's name; the number of runs is added to it.
        style: of the line.
    """
    curves = [curve for curve in curves if curve]
    steps = sorted(set().union(*curves))
    at = [[curve[step] for curve in curves if step in curve] for step in steps]
    means = [statistics.fmean(values) for values in at]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in at]
    if steps:
        label = f"{shortened(label, _LONGEST_LABEL)} (n = {len(curves)})"
        hidden = label.startswith("_")  # matplotlib hides such lines in the legend
        (line,) = ax.plot(steps, means, label=f" {label}" if hidden else label, **style)
        low = [mean - sd for mean, sd in zip(means, spread, strict=True)]
        high = [mean + sd for mean, sd in zip(means, spread, strict=True)]
        ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, and replaces an old one.

    Text is drawn literally: a dollar sign begins no formula, and invisible characters are escaped.
    A character that the font lacks is drawn as a box.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        lines = text.get_text().split("\n")[:_MOST_LINES]
        text.set_text("\n".join(shortened(printable(line), _LONGEST_LINE) for line in lines))
    with warnings.catch_warnings(), replacing(path) as partial:
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        figure.savefig(partial, dpi=_DPI, format="png")


def panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` plots side by side."""
    size = (5.5 * count if count > 1 else 8, 4.5)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    figure.suptitle(title)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return figure, list(axes.flat)


def legend(figure: Figure) -> None:
    """Draws one legend for all plots of a figure, below them, where it hides no curve."""
    lines = {
        (label, str(line.get_color()), str(line.get_linestyle())): line
        for ax in figure.axes
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
        if isinstance(line, Line2D)
    }
    if lines:
        labels = [label for label, *_ in lines]
        longest = max(map(len, labels)) + 8  # in characters, of which 13 fit into an inch
        rows = math.ceil(len(lines) / max(1, int(13 * figure.get_figwidth() / longest)))
        figure.legend(
            [*lines.values()],
            labels,
            loc="outside lower center",
            ncols=math.ceil(len(lines) / rows),
            fontsize="small",
            handlelength=3.5,  # shows the dashes
        )


def confusion_matrix(
    confusion: npt.NDArray[np.int64], names: Sequence[str], path: Path, title: str
) -> None:
    """Draws a confusion matrix, coloured by the share of each true class.

    Up to 20 classes have their counts. The recall of each class stands at the end of its row, its
    precision below its column; a class without true or predicted images has none.

    Args:
        confusion: ``(C, C)`` counts, rows true, columns predicted.
        names: the C classes.
        path: the PNG to write.
        title: the figure's title; the accuracy and the number of images are added to it.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    is_small = len(names) <= _MOST_COUNTED
    side = max(0.45 * len(names) + 3, 6.5) if is_small else 14.0  # inches
    figure = Figure((side, side - 0.4), layout="constrained")
    ax = figure.subplots()
    # A row and a column more, without colour, for the rates.
    cells = np.pad(shares, (0, 1), constant_values=np.nan) if is_small else shares
    ax.imshow(cells, cmap="Blues", vmin=0, vmax=1)
    names = [shortened(name.replace("\n", " "), _LONGEST_NAME) for name in names]
    if is_small:
        _write_counts(ax, confusion, shares)
        _write_rates(ax, confusion)
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(len(names) + 1), [*names, "recall"], **turned)
        ax.set_yticks(range(len(names) + 1), [*names, "precision"])
    else:
        size = min(10, 600 / len(names))  # points: a hundred names fit beside each other
        ax.set_xticks(range(len(names)), names, fontsize=size, rotation=90)
        ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class")
    images = confusion.sum()
    accuracy = confusion.trace() / max(images, 1)
    lines = f"{title}\naccuracy {accuracy:.4f} on {images:,} images".splitlines()
    ax.set_title("\n".join(textwrap.fill(line, _TITLE_WIDTH) for line in lines), fontsize=10)
    save(figure, path)


def _write_counts(
    ax: Axes, confusion: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> None:
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            ax.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)


def _write_rates(ax: Axes, confusion: npt.NDArray[np.int64]) -> None:
    """Writes recall beside and precision below a confusion matrix, behind a line."""
    last = len(confusion)
    for axis, totals in ((1, confusion.sum(1)), (0, confusion.sum(0))):
        for position, (right, total) in enumerate(zip(confusion.diagonal(), totals, strict=True)):
            x, y = (last, position) if axis else (position, last)
            rate = f"{right / total:.2f}" if total else "-"
            ax.text(x, y, rate, ha="center", va="center", fontsize=8)
    ax.axhline(last - 0.5, color="black", linewidth=0.8)
    ax.axvline(last - 0.5, color="black", linewidth=0.8)


def image_grid(
    images: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    path: Path,
    title: str,
    columns: int = 8,
) -> None:
    """Draws captioned images in rows; writes nothing if there are none.

    Args:
        images: uint8 ``(H, W, 3)`` each.
        captions: one text for each image.
        path: the PNG to write.
        title: the figure's title.
        columns: images in a row.
    """
    if not images:
        return
    rows = -(-len(images) // columns)
    size = (columns * 1.5, rows * 1.9 + 0.6)
    figure = Figure(size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.imshow(image, interpolation="nearest")
        lines = [shortened(line, _LONGEST_NAME) for line in caption.splitlines()]
        ax.set_title("\n".join(lines), fontsize=8)
    save(figure, path)
