"""Pictures of one's own, a folder for each class, work as CIFAR-10 does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from datamodules import DatasetError, ImageFolderDataModule
from experiments import load
from experiments.records.record import RunRecord
from tests.conftest import SHORT

COLOURS = {"blue": 2, "green": 1, "red": 0}


def draw(folder: Path, count: int, seed: int = 0) -> None:
    """Pictures of each class, of other sizes, the classes told apart by their colour."""
    random = np.random.default_rng(seed)
    for name, channel in COLOURS.items():
        (folder / name / "more").mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 100, (20 + number, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            place = "more" if number % 2 else "."
            Image.fromarray(pixels).save(folder / name / place / f"{number}.png")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures" / "train", 12)
    draw(tmp_path / "pictures" / "test", 4, seed=1)
    return tmp_path / "pictures"


def test_the_parts_are_those_of_the_folders(parts: Path) -> None:
    data = ImageFolderDataModule(str(parts), batch_size=4, val_size=6)
    data.setup()
    assert data.label_names == ["blue", "green", "red"]
    sets = (data.train_set, data.val_set, data.test_set)
    assert [len(images.labels) for images in sets] == [30, 6, 12]
    for images in sets:
        assert {*images.labels} == {0, 1, 2}
        brightest = images.images.mean((2, 3)).argmax(1)
        assert [list(COLOURS.values())[label] for label in images.labels] == brightest.tolist()
    assert data.test_set.names[:2] == ["blue/0.png", "blue/2.png"]
    assert "red/more/3.png" in data.test_set.names


def test_a_folder_of_validation_images_is_taken_whole(parts: Path) -> None:
    draw(parts / "val", 2, seed=2)
    data = ImageFolderDataModule(str(parts), batch_size=4, val_size=6)
    data.setup()
    assert [len(images.labels) for images in (data.train_set, data.val_set)] == [36, 6]
    assert {name.partition("/")[0] for name in data.val_set.names} == {*COLOURS}


def test_without_parts_a_share_of_each_class_is_the_test_set(tmp_path: Path) -> None:
    draw(tmp_path / "all", 10)
    sets = []
    for _ in range(2):
        data = ImageFolderDataModule(str(tmp_path / "all"), 0.3, batch_size=4, val_size=3)
        data.setup()
        sets.append([sorted(s.names) for s in (data.train_set, data.val_set, data.test_set)])
        assert np.bincount(data.test_set.labels).tolist() == [3, 3, 3]
    train, val, test = sets[0]
    assert sets[0] == sets[1]
    assert (len(train), len(val), len(test)) == (18, 3, 9)
    assert len({*train, *val, *test}) == 30


def test_every_command_works_on_it(parts: Path, runs: Path) -> None:
    places = [f"--runs_dir={runs}", "--name=p"]
    main(
        [
            "fit", "--model=MLP", "--model.hidden_units=[4]", "--data=ImageFolderDataModule",
            f"--data.data_dir={parts}", "--data.batch_size=4", "--data.val_size=6", *SHORT,
            "--trainer.logger=false", "--test_after_fit=true", *places,
        ]
    )  # fmt: skip
    record = RunRecord.open(runs / "p")
    assert record.fields["data"] == "image_folder"
    assert record.fields["images"] == {"train": 30, "val": 6, "test": 12}
    assert record.summary["test/per_class"].keys() == {*COLOURS}
    figure = record.summary["test/acc"]
    main(["fit", "--resume", "--trainer.max_steps=6", *places])
    main(["test", *places])
    main(["predict", f"--data.predict_dir={parts / 'test' / 'red'}", *places])
    main(["export", "--format=torch_export", *places])
    record = RunRecord.open(runs / "p")
    assert record.summary["train/steps"] == 6
    assert 0 <= figure <= 1
    assert load(runs / "p").classes == [*COLOURS]


def test_a_class_without_images_to_evaluate_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "all", 10)
    for number in range(1, 10):
        (tmp_path / "all" / "red" / ("more" if number % 2 else ".") / f"{number}.png").unlink()
    data = ImageFolderDataModule(str(tmp_path / "all"), 0.3, batch_size=4, val_size=3)
    caplog.set_level("INFO", "datamodules")
    for _ in range(2):
        data.setup()
    assert 2 not in data.test_set.labels
    assert caplog.messages.count("no test image of red: its accuracy is not measured") == 1
    with pytest.raises(DatasetError, match="leaves no training image of red: add pictures"):
        ImageFolderDataModule(str(tmp_path / "all"), 0.9, batch_size=1, val_size=0).setup()


FIT = ["fit", "--model=MLP", "--model.hidden_units=[4]", "--data=ImageFolderDataModule"]
FIT += ["--data.batch_size=4", "--data.val_size=6", *SHORT, "--trainer.logger=false"]


def test_images_that_were_trained_on_are_never_tested(
    runs: Path, tmp_path: Path, error_of: Callable[[list[str]], str]
) -> None:
    flat, places = tmp_path / "flat", [f"--runs_dir={runs}", "--name=p"]
    draw(flat, 12)
    main([*FIT, f"--data.data_dir={flat}", "--test_after_fit=true", *places])
    (flat / "red" / "0.png").rename(flat / "red" / "zero.png")  # only another order
    Image.new("RGB", (9, 9), "red").save(flat / "red" / "new.png")
    record = (runs / "p" / "record.json").read_bytes()
    for command in (["test"], ["validate"], ["predict"], ["export", "--format=torch_export"]):
        line = error_of([*command, *places])
        assert f"{flat} has other pictures than those of the run" in line
        assert "some were trained on: bring the pictures back, or name with --data.data_dir" in line
    assert (runs / "p" / "record.json").read_bytes() == record
    main(["predict", f"--data.predict_dir={flat / 'red'}", *places])
    parted = tmp_path / "parted"
    draw(parted / "train", 12)
    draw(parted / "test", 2, seed=1)
    main(["test", f"--data.data_dir={parted}", *places])


def test_a_folder_is_predicted_without_the_training_images(runs: Path, tmp_path: Path) -> None:
    flat, places = tmp_path / "flat", [f"--runs_dir={runs}", "--name=p"]
    draw(flat, 6)
    main([*FIT, f"--data.data_dir={flat}", "--data.batch_size=2", "--data.val_size=3", *places])
    flat.rename(tmp_path / "moved")
    main(["predict", f"--data.predict_dir={tmp_path / 'moved' / 'red'}", *places])
    assert (runs / "p" / "predictions-red.csv").read_text().count("\n") == 7


def test_a_number_of_classes_that_is_given_must_be_right(
    parts: Path, runs: Path, error_of: Callable[[list[str]], str]
) -> None:
    data = ["--data=ImageFolderDataModule", f"--data.data_dir={parts}", "--data.val_size=6"]
    given = ["fit", "--model=MLP", *data, "--data.batch_size=4", f"--runs_dir={runs}"]
    message = error_of([*given, "--model.num_classes=10"])
    assert message == "model.num_classes is 10, but the data has 3 classes"
    assert not runs.exists()


def lacks_class(folder: Path) -> None:
    for file in (folder / "test" / "red").rglob("*.png"):
        file.unlink()
    (folder / "test" / "red" / "more").rmdir()
    (folder / "test" / "red").rmdir()


def another_class(folder: Path) -> None:
    (folder / "test" / "pink").mkdir()


def empty_class(folder: Path) -> None:
    for file in (folder / "train" / "red").rglob("*.png"):
        file.unlink()


def no_test(folder: Path) -> None:
    (folder / "test").rename(folder / "tset")


def one_class(folder: Path) -> None:
    for name in ("red", "green"):
        (folder / "train" / name).rename(folder / name)


def broken(folder: Path) -> None:
    (folder / "train" / "red" / "0.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacks_class, "test has no red: expected the classes blue, green, red"),
        (another_class, "test has also pink"),
        (empty_class, "red holds no image files"),
        (no_test, "test is missing: expected a folder for each class"),
        (one_class, "train has the folders blue: expected a folder for each of two"),
        (broken, "cannot read the image .*0.png: it is damaged"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(
    change: Callable[[Path], None], message: str, parts: Path
) -> None:
    change(parts)
    with pytest.raises(DatasetError, match=message):
        ImageFolderDataModule(str(parts), batch_size=4, val_size=3).setup()


def test_settings_that_are_wrong_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.data_dir: name the folder"):
        ImageFolderDataModule()
    with pytest.raises(ValueError, match="test_share must be between 0 and 1, got 1"):
        ImageFolderDataModule(str(tmp_path), 1.0)
    with pytest.raises(DatasetError, match=r"nothing is missing: .* check --data\.data_dir"):
        ImageFolderDataModule(str(tmp_path / "nothing")).setup()


def test_a_test_set_of_other_classes_is_refused(
    parts: Path, runs: Path, error_of: Callable[[list[str]], str]
) -> None:
    places = [f"--runs_dir={runs}", "--name=p"]
    main([*FIT, f"--data.data_dir={parts}", *places])
    for part in ("train", "test"):
        (parts / part / "red").rename(parts / part / "azure")
    known = "the data has the classes azure, blue, green; the model knows blue, green, red"
    for command in (["test"], ["validate"]):
        assert error_of([*command, *places]) == known
