"""A model that is loaded predicts as the command line does, without its run."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DatasetError
from datamodules.files import read_test
from datamodules.sources import synthetic_folder
from experiments import RunError, load
from experiments.inference import Predictor
from lightning_modules import MLP
from tests.conftest import IMAGES, Cli, short_fit

KINDS = {
    "MLP": ["--model=MLP", "--model.hidden_units=[8]", "--model.norm=batch"],
    "FastCNN": ["--model=FastCNN", "--model.widths=[4, 4, 4]", "--trainer.precision=bf16-mixed"],
}


@pytest.fixture
def pictures(data_dir: Path, tmp_path: Path) -> Path:
    """Twenty test images as files."""
    images = read_test(synthetic_folder(data_dir, IMAGES)).images[:20]
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "pictures" / f"{number:02}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_fit(tmp_path_factory.mktemp("made"), data_dir, *KINDS["MLP"]).path


@pytest.fixture
def trained(made: Path, runs: Path) -> Path:
    return Path(shutil.copytree(made, runs / made.name))


@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_what_the_command_line_does(
    kind: str, fit: Cli, evaluate: Cli, pictures: Path, tmp_path: Path
) -> None:
    run = fit(*KINDS[kind]).path
    evaluate("predict", f"--data.predict_dir={pictures}")
    with (run / "predictions-pictures.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    alone = Path(shutil.copy(run / "best.ckpt", tmp_path / "alone.ckpt"))
    for source in (run, alone):
        found = load(source).predict(pictures)
        assert found.classes == header[3:]
        assert found.names == [row[0] for row in rows]
        assert found.labels == [row[1] for row in rows]
        assert [[f"{value:.6f}" for value in row] for row in found.probabilities] == [
            row[3:] for row in rows
        ]


def test_every_form_of_an_image_is_the_same_image(trained: Path, pictures: Path) -> None:
    model = load(trained)
    path = pictures / "03.png"
    array = np.asarray(Image.open(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = model.predict(path).probabilities
    for form in (str(path), Image.open(path), array, tensor, array[None], tensor[None], [path]):
        found = model.predict(form)
        np.testing.assert_array_equal(found.probabilities, expected)
        assert len(found.labels) == len(found.names) == 1
    assert model.predict([path, array, tensor]).names == ["03.png", "1", "2"]


def test_the_command_line_predicts_a_single_file(
    trained: Path, pictures: Path, evaluate: Cli
) -> None:
    evaluate("predict", f"--data.predict_dir={pictures / '03.png'}")
    (line,) = (trained / "predictions-03.png.csv").read_text().splitlines()[1:]
    assert line.startswith("03.png,")


def test_pictures_of_any_size_are_taken(trained: Path) -> None:
    found = load(trained).predict(Image.new("L", (300, 200), 128))
    assert found.probabilities.shape == (1, 10)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_a_run_in_the_working_directory_goes_by_its_name(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent.parent)
    assert isinstance(load("run"), Predictor)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((32, 32, 3), np.float32), TypeError, "expected uint8 pixels .*, got float32"),
        (torch.zeros(3, 32, 32), TypeError, r"got float32: .*\.to\(torch.uint8\) if they are 0 to"),
        (np.zeros((32, 32, 3), np.int64), TypeError, r"with images\.astype\('uint8'\);"),
        (np.zeros((3, 32, 32), np.uint8), ValueError, "move the channels with np.moveaxis"),
        (np.zeros((3, 32, 32), np.uint8), ValueError, r"array \(H, W, 3\), got .* \(3, 32, 32\)"),
        (np.zeros((32, 32, 4), np.uint8), ValueError, "leave out the fourth channel"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), ValueError, r"with images.movedim\(-1, -3\)"),
        (torch.zeros(1, 9, 9, dtype=torch.uint8), ValueError, r"pass RGB, .*convert\('RGB'\)"),
        (torch.zeros(32, 32, dtype=torch.uint8), ValueError, "expected a tensor"),
        ("nothing.png", DatasetError, "is no file and no folder: name a picture"),
        ([], ValueError, "no images"),
        ("", TypeError, "a path, a PIL image, an array, a tensor or a list of these, got ''"),
        (None, TypeError, "or a list of these, got None"),
        (b"cat.jpg", TypeError, "or a list of these, got b'cat.jpg'"),
        ({"a": 1}, TypeError, "or a list of these"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), TypeError, "uint8 pixels .* got bfloat16"),
        (torch.zeros(3, 4, 4, requires_grad=True), TypeError, "uint8 pixels .* got float32"),
        (np.zeros((0, 7, 3), np.uint8), ValueError, "expected an array"),
        (np.zeros((1, 1, 7, 7, 3), np.uint8), ValueError, "expected an array"),
    ],
)
def test_other_images_are_refused(
    images: object, error: type[Exception], message: str, trained: Path
) -> None:
    with pytest.raises(error, match=message):
        load(trained).predict(images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": None}, TypeError, "a run's folder or name, or a checkpoint, got None"),
        ({"model_class": "MLP"}, TypeError, "a class derived from Classifier, got 'MLP'"),
        ({"model_class": torch.nn.Linear}, TypeError, "a class derived from Classifier"),
        ({"device": "gpu"}, RunError, "^device gpu: .*; take another, such as cpu$"),
    ],
)
def test_other_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, trained: Path
) -> None:
    with pytest.raises(error, match=message):
        load(**{"source": trained, **arguments})


class Mine(MLP):
    """A class of one's own."""


def other_class(content: dict[str, object]) -> None:
    content["model_class"] = "Mine"


def no_data(content: dict[str, object]) -> None:
    del content["CIFAR10DataModule"]


def other_weights(content: dict[str, object]) -> None:
    content["hyper_parameters"] = {"hidden_units": [9]}


def one_name(content: dict[str, object]) -> None:
    content["CIFAR10DataModule"]["label_names"] = ["a"]  # type: ignore[index]


def odd_precision(content: dict[str, object]) -> None:
    content["precision"] = "zz"


def no_settings(content: dict[str, object]) -> None:
    content["hyper_parameters"] = [1]


def too_wide(content: dict[str, object]) -> None:
    content["hyper_parameters"] = {"hidden_units": [10**13]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_name, "names 1 of 10 classes: name another checkpoint"),
        (odd_precision, "trained in zz, and load knows 32-true, .*: use cli.py predict"),
        (no_settings, "best.ckpt"),
        (too_wide, "does not fit MLP: "),
        (other_class, r"the class Mine, .*: pass it, load\(..., model_class=Mine\)"),
        (no_data, "holds no state of a CIFAR10DataModule"),
        (other_weights, "best.ckpt"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(
    change: Callable[[dict[str, object]], None], message: str, trained: Path
) -> None:
    path = trained / "best.ckpt"
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(RunError, match=message):
        load(path)
    with pytest.raises(RunError, match="no checkpoint and no run"):
        load(trained.parent / "other")


def test_a_class_of_ones_own_is_passed(trained: Path, pictures: Path) -> None:
    path = trained / "best.ckpt"
    expected = load(path).predict(pictures).probabilities
    content = torch.load(path)
    other_class(content)
    torch.save(content, path)
    found = load(path, model_class=Mine).predict(pictures).probabilities
    np.testing.assert_array_equal(found, expected)


def test_a_run_of_before_is_loaded() -> None:
    kept = Path(__file__).parent.parent / "fixtures" / "of-before-the-rooms"
    assert load(kept).precision == "32-true"
