"""Draws the pictures in a run's folder: curves, confusion matrix, mistakes."""

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
from matplotlib.text import Text

from experiments.records.curves import curve_of
from experiments.records.files import replacing
from experiments.texts import printable, shortened

_DPI = 120
_TITLE_WIDTH = 70  # characters
_LONGEST_LINE, _LONGEST_LABEL, _LONGEST_NAME = 80, 60, 24  # of a text, a legend, a class
_MOST_LINES = 6


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


def curves(entries: Iterable[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws loss and accuracy over steps, as in the report's figures.

    Args:
        entries: the record's metrics, each with ``step``.
        path: the PNG to write.
        title: the figure's title.
    """
    entries = list(entries)
    figure, axes = panels(2, title)
    for ax, metric, label in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        _draw(ax, entries, f"train/{metric}", color="tab:blue", alpha=0.6, linewidth=1)
        _draw(ax, entries, f"val/{metric}", color="tab:orange", marker="o", markersize=3)
        _draw(ax, entries, f"test_curve/{metric}", color="tab:green", marker=".", markersize=3)
        _draw(ax, entries, f"test/{metric}", color="tab:red", marker="*", markersize=12, ls="")
        ax.set(xlabel="optimiser steps", ylabel=label)
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
    save(figure, path)


def _draw(ax: Axes, entries: list[Mapping[str, Any]], key: str, **style: Any) -> None:
    if points := curve_of(entries, key):
        steps, values = zip(*points.items(), strict=True)
        label = f"{key.partition('/')[0].replace('_', ' ')} ({values[-1]:.3f})"
        ax.plot(steps, values, label=label, **style)


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
    size = (5.5 * count if count > 1 else 8, 4)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    figure.suptitle(title)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return figure, list(axes.flat)


def confusion_matrix(
    confusion: npt.NDArray[np.int64], names: Sequence[str], path: Path, title: str
) -> None:
    """Draws a confusion matrix with counts, coloured by the share of each true class.

    Args:
        confusion: ``(C, C)`` counts, rows true, columns predicted.
        names: the C classes.
        path: the PNG to write.
        title: the figure's title; the accuracy is added to it.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    accuracy = confusion.trace() / max(confusion.sum(), 1)
    figure = Figure((7, 6.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        color = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(names))
    names = [shortened(name.replace("\n", " "), _LONGEST_NAME) for name in names]
    ax.set_xticks(ticks, names, rotation=45, ha="right")
    ax.set_yticks(ticks, names)
    ax.set(xlabel="predicted", ylabel="true")
    lines = f"{title}, accuracy {accuracy:.4f}".splitlines()
    ax.set_title("\n".join(textwrap.fill(line, _TITLE_WIDTH) for line in lines), fontsize=10)
    save(figure, path)


def image_grid(
    images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], path: Path, columns: int = 8
) -> None:
    """Draws captioned images in rows; writes nothing if there are none.

    Args:
        images: uint8 ``(H, W, 3)`` each.
        captions: one text for each image.
        path: the PNG to write.
        columns: images in a row.
    """
    if not images:
        return
    rows = -(-len(images) // columns)
    size = (columns * 1.5, rows * 1.9)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.imshow(image, interpolation="nearest")
        lines = [shortened(line, _LONGEST_NAME) for line in caption.splitlines()]
        ax.set_title("\n".join(lines), fontsize=7)
    save(figure, path)
