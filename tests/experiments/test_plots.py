from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import plots

NAMES = [f"class {i}" for i in range(10)]

pytestmark = pytest.mark.pictures


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 2  # something is drawn
        return image.size


def test_curves_are_drawn_also_with_gaps(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 1, "train/loss": 2.3, "train/acc": 0.1},
        {"step": 2, "train/loss": None, "val/loss": 2.2, "val/acc": 0.2},
        {"step": 2, "test/loss": 2.2, "test/acc": 0.2},
    ]
    plots.curves(entries, tmp_path / "curves.png", title="a run")
    width, height = size_of(tmp_path / "curves.png")
    assert width > 2 * height > 600


def test_curves_of_nothing_are_an_empty_figure(tmp_path: Path) -> None:
    plots.curves([], tmp_path / "curves.png", title="a run")
    assert size_of(tmp_path / "curves.png")


def test_confusion_matrix_is_drawn_also_without_images(tmp_path: Path) -> None:
    for confusion in (np.zeros((10, 10), np.int64), np.diag(np.arange(10))):
        plots.confusion_matrix(confusion, NAMES, tmp_path / "matrix.png", title="test")
        assert min(size_of(tmp_path / "matrix.png")) > 600


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2)])
def test_a_grid_has_as_many_rows_as_it_needs(count: int, rows: int, tmp_path: Path) -> None:
    images = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(count)]
    plots.image_grid(images, ["cat 99%\ntrue: dog"] * count, tmp_path / "grid.png")
    width, height = size_of(tmp_path / "grid.png")
    assert height == pytest.approx(rows * 1.9 / 12 * width, abs=2)


def test_no_mistakes_no_picture(tmp_path: Path) -> None:
    plots.image_grid([], [], tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


def test_accuracy_per_class_is_its_recall() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])
    assert plots.accuracy_per_class(confusion) == [0.75, 0.0, 0.5]
