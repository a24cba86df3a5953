"""A model has as many classes as its data, unless the user says another number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from cli import main
from experiments.errors import UsageError

OWN = """
from datamodules import CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule
from lightning_modules import MLP


class Folders(ImageFolderDataModule):
    pass


class Hundred(CIFAR100DataModule):
    pass


class Chosen(CIFAR10DataModule):
    def __init__(self, many: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)

    @classmethod
    def count_classes(cls, many, **settings):
        return 7 if many else 2


class Bare(CIFAR100DataModule):
    def __init__(self) -> None:
        super().__init__(download=False)


class Other(CIFAR100DataModule):
    def read(self):
        raise NotImplementedError


class FourClasses(MLP):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__(num_classes=num_classes)
"""


@pytest.fixture
def classes_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The number of classes of the model that a command builds."""
    (tmp_path / "own_of_classes.py").write_text(OWN, encoding="utf-8")
    for name in ("cat", "dog", "eel"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    built: list[int] = []

    def end_here(cli: Any, *_: object) -> NoReturn:
        built.append(cli.model.hparams["num_classes"])
        raise UsageError("built")

    monkeypatch.setattr("experiments.command_line.interface.prepare", end_here)

    def build(*flags: str) -> int:
        with pytest.raises(SystemExit):
            main(["fit", *flags, "--trainer.logger=false", "--trainer.accelerator=cpu"])
        return built.pop()

    return build


MODEL = "--model=MLP"
FOUR = "--model=own_of_classes.FourClasses"
PICTURES = "--data.data_dir=pictures"


@pytest.mark.parametrize(
    ("flags", "classes"),
    [
        ([MODEL], 10),
        ([MODEL, "--data=CIFAR10DataModule"], 10),
        ([MODEL, "--data=CIFAR100DataModule"], 100),
        ([MODEL, "--config=data/cifar100"], 100),
        (["--config=cnn", "--config=data/cifar100", "--data.source=synthetic"], 100),
        (["--config=mlp", "--data=CIFAR100DataModule"], 100),
        (["--model=NumPyMLP", "--data=ImageFolderDataModule", PICTURES], 3),
        ([MODEL, "--data=own_of_classes.Folders", PICTURES], 3),
        ([MODEL, "--data=own_of_classes.Hundred"], 100),
        ([MODEL, "--data=own_of_classes.Chosen"], 7),
        ([MODEL, "--data=own_of_classes.Chosen", "--data.many=false"], 2),
        ([MODEL, "--data=own_of_classes.Bare"], 100),
        ([FOUR, "--data=own_of_classes.Chosen"], 7),
        ([FOUR, "--data=own_of_classes.Other"], 4),  # it does not say: as the model has it
        ([MODEL, "--data=CIFAR100DataModule", "--model.num_classes=20"], 20),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_number_of_classes_follows_the_data(
    flags: list[str], classes: int, classes_of: Callable[..., int]
) -> None:
    assert classes_of(*flags) == classes


def test_a_config_file_may_say_another_number(
    classes_of: Callable[..., int], tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text("model: {class_path: MLP, init_args: {num_classes: 20}}", encoding="utf-8")
    assert classes_of(f"--config={config}", "--data=CIFAR100DataModule") == 20


def test_a_printed_config_has_the_classes_of_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model=MLP", "--data=CIFAR100DataModule", "--print_config"])
    assert end.value.code in {0, None}
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["num_classes"] == 100
