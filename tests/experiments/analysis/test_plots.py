import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from experiments.analysis import plots

NAMES = [f"class {i}" for i in range(10)]

pytestmark = pytest.mark.pictures


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 2  # something is drawn
        return image.size


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Figure]:
    """The figure that was saved last."""
    saved: list[Figure] = []
    draw = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        draw(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return lambda: saved[-1]


def texts_of(figure: Figure) -> list[str]:
    """The texts of a figure that are not empty."""
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text]


def measures_of(figure: Figure) -> list[tuple[str, int]]:
    """The label of each y axis, with the number of its curves."""
    return [(ax.get_ylabel(), len(ax.get_lines())) for ax in figure.axes]


def test_a_test_hides_no_validation_of_the_same_step(
    tmp_path: Path, figure: Callable[[], Figure]
) -> None:
    plots.curves(ENTRIES, tmp_path / "curves.png", "title")
    markers = {line.get_marker(): line for line in figure().axes[0].get_lines()}
    assert markers["*"].get_markerfacecolor() == "none"
    assert markers["*"].get_markersize() > 2 * markers["o"].get_markersize()


ENTRIES: list[dict[str, Any]] = [
    {"step": 20, "train/loss": 2.3, "train/acc": 0.1},
    {"step": 40, "train/loss": 2.1, "train/acc": 0.2, "val/loss": 1.9, "val/acc": 0.25},
    {"step": 40, "test/loss": 1.95, "test/acc": 0.24},
]


def test_curves_say_what_they_show_and_of_which_weights(
    tmp_path: Path, figure: Callable[[], Figure]
) -> None:
    plots.curves(ENTRIES, tmp_path / "curves.png", "Loss and accuracy of a run")
    assert measures_of(figure()) == [("cross-entropy (nats)", 3), ("accuracy (share of images)", 3)]
    assert {
        "Loss and accuracy of a run",
        "last values: training 2.100, validation 1.900, test 1.950",
        "training batches, mean since the last point",
        "validation images",
        "test images, weights of step 40",
    } <= {*texts_of(figure())}


def test_a_smoothed_training_loss_has_an_axis_of_its_own(
    tmp_path: Path, figure: Callable[[], Figure]
) -> None:
    plots.curves(
        ENTRIES, tmp_path / "curves.png", "a run", "cross-entropy (nats),\nlabel smoothing 0.2"
    )
    assert measures_of(figure()) == [
        ("training loss: cross-entropy (nats),\nlabel smoothing 0.2", 1),
        ("cross-entropy (nats)", 2),
        ("accuracy (share of images)", 3),
    ]


def test_a_legend_has_each_curve_once_and_hides_none(
    tmp_path: Path, figure: Callable[[], Figure]
) -> None:
    drawn, axes = plots.panels(2, "two plots")
    for ax in axes:
        for style in plots.STYLES:
            plots.band(ax, [{1: 0.5, 2: 0.6}], "same name", **style)
    plots.legend(drawn)
    plots.save(drawn, tmp_path / "curves.png")
    (legend,) = figure().legends
    assert len(legend.get_texts()) == len(plots.STYLES)
    top = legend.get_window_extent().y1
    assert all(ax.get_tightbbox().y0 >= top for ax in axes)  # type: ignore[union-attr]


def test_confusion_matrix_has_recall_and_precision(
    tmp_path: Path, figure: Callable[[], Figure]
) -> None:
    confusion = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    plots.confusion_matrix(confusion, ["cat", "dog", "owl"], tmp_path / "m.png", title="a run")
    (ax,) = figure().axes
    placed = {text.get_position(): text.get_text() for text in ax.texts}
    assert [placed[3, row] for row in range(3)] == ["0.75", "0.50", "-"]
    assert [placed[column, 3] for column in range(3)] == ["0.86", "0.33", "-"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog", "owl", "recall"]
    assert ax.get_yticklabels()[-1].get_text() == "precision"
    assert ax.get_title() == "a run\naccuracy 0.7000 on 10 images"


def test_curves_are_drawn_also_with_gaps(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 1, "train/loss": 2.3, "train/acc": 0.1},
        {"step": 2, "train/loss": None, "val/loss": 2.2, "val/acc": 0.2},
        {"step": 2, "test/loss": 2.2, "test/acc": 0.2},
    ]
    plots.curves(entries, tmp_path / "curves.png", title="a run")
    width, height = size_of(tmp_path / "curves.png")
    assert width > 2 * height > 600


def test_the_callers_own_pictures_are_left_alone(tmp_path: Path) -> None:
    """A notebook that calls `fit` goes on to show its figures."""
    before = mpl.get_backend()
    plt.switch_backend("svg")
    try:
        importlib.reload(plots)
        plots.curves([], tmp_path / "curves.png", title="a run")
        assert mpl.get_backend() == "svg"
        assert plt.get_fignums() == []
    finally:
        plt.switch_backend(before)


def test_curves_of_nothing_are_an_empty_figure(tmp_path: Path) -> None:
    plots.curves([], tmp_path / "curves.png", title="a run")
    assert size_of(tmp_path / "curves.png")


def test_confusion_matrix_is_drawn_also_without_images(tmp_path: Path) -> None:
    for confusion in (np.zeros((10, 10), np.int64), np.diag(np.arange(10))):
        plots.confusion_matrix(confusion, NAMES, tmp_path / "matrix.png", title="test")
        assert min(size_of(tmp_path / "matrix.png")) > 600


def test_a_matrix_of_many_classes_shows_colours_without_counts(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(100)]
    plots.confusion_matrix(np.eye(100, dtype=np.int64), names, tmp_path / "matrix.png", "test")
    with Image.open(tmp_path / "matrix.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (8, 48, 107)).all(2).sum() > 10_000  # the darkest blue, on the diagonal


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2)])
def test_a_grid_has_as_many_rows_as_it_needs(count: int, rows: int, tmp_path: Path) -> None:
    images = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(count)]
    plots.image_grid(images, ["cat 99%\ntrue: dog"] * count, tmp_path / "grid.png", "a run")
    width, height = size_of(tmp_path / "grid.png")
    assert height == pytest.approx((rows * 1.9 + 0.6) / 12 * width, abs=2)


def test_no_mistakes_no_picture(tmp_path: Path) -> None:
    plots.image_grid([], [], tmp_path / "grid.png", "a run")
    assert not (tmp_path / "grid.png").exists()


STRANGE = [
    "cost$x_{$",
    r"$\frac{$",
    "$a$",
    "\u732b\U0001f600",  # the font has neither
    "x" * 300,
    "a\nb\x1b[31m\u202e\ud800",
    "_hidden",
    "",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_is_drawn_as_text_whatever_it_is(
    name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    figure, (ax,) = plots.panels(1, name)
    plots.band(ax, [{1: 0.5, 2: 0.6}], name)
    ax.set(xlabel=name)
    plots.legend(figure)
    plots.save(figure, tmp_path / "curves.png")
    drawn = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    legend = [text for text in drawn if text.endswith(" (n = 1)")]
    assert len(legend) == 1
    assert all(len(line) <= 80 for text in drawn for line in text.split("\n"))
    assert not [text for text in drawn if {"\x1b", "\u202e", "\ud800"} & {*text}]
    assert not [text for text in figure.findobj(Text) if text.get_parse_math()]
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", [r"$\frac{$", "x" * 300])
def test_classes_and_titles_are_drawn_as_text(
    name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    confusion = np.eye(2, dtype=np.int64)
    plots.confusion_matrix(confusion, [name, "b"], tmp_path / "matrix.png", title=name)
    image = np.zeros((8, 8, 3), np.uint8)
    plots.image_grid([image], [f"{name} 99%\ntrue: {name}"], tmp_path / "grid.png", name)
    assert min(size_of(tmp_path / "matrix.png")) > 600
    assert not [str(warning.message) for warning in recwarn]


def test_what_is_no_figure_is_not_drawn(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 1, "train/loss": 2.3},
        {"step": None, "train/loss": 2.3},
        {"step": 3, "train/loss": "2.3"},
        {"step": 4, "train/loss": float("nan"), "val/acc": [1]},
        {"step": 10**400, "train/loss": 1e308},
        {"train/loss": 1},
    ]
    plots.curves(entries, tmp_path / "curves.png", title="a run")
    assert size_of(tmp_path / "curves.png")


def test_a_picture_takes_the_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("curves.png", ".curves.png.partial"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    plots.curves([], tmp_path / "curves.png", title="a run")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "curves.png").is_symlink()
    assert size_of(tmp_path / "curves.png")


def test_accuracy_per_class_is_its_recall() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])
    assert plots.accuracy_per_class(confusion) == [0.75, 0.0, 0.5]
