"""Modules beside the user's working directory can be named, and hide nothing."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.command_line.own_modules import add_working_directory
from tests.conftest import Cli

MYNET = """
from torch import nn

from beside import WIDTH
from lightning_modules import Classifier


class MyNet(Classifier):
    def __init__(self, width: int = WIDTH, **kwargs):
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)
"""
MINE = """
from pytorch_lightning import Callback


class Noted(Callback):
    steps = 0

    def on_train_batch_end(self, *args):
        Noted.steps += 1
"""
OWN = ("mynet", "beside", "mine")
HIJACKED = "raise SystemExit('a library was hidden')"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules of its own, some called as libraries are."""
    path = tmp_path / "work"
    path.mkdir()
    (path / "mynet.py").write_text(MYNET, encoding="utf-8")
    (path / "beside.py").write_text("WIDTH = 3", encoding="utf-8")
    (path / "mine.py").write_text(MINE, encoding="utf-8")
    for name in ("yaml", "datamodules", "tensorboard", "colorsys"):
        (path / f"{name}.py").write_text(HIJACKED, encoding="utf-8")
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in OWN:  # another test may have left one
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield path
    for name in OWN:
        sys.modules.pop(name, None)


def test_models_and_callbacks_of_plain_modules_train_and_are_tested(
    fit: Cli, evaluate: Cli, here: Path
) -> None:
    record = fit("--model=mynet.MyNet", "--trainer.callbacks=mine.Noted")
    assert record.fields["model"] == "MyNet"
    assert sys.modules["mine"].Noted.steps == 4
    assert sys.path[-1] == str(here)
    sys.path.pop()
    for name in OWN:
        del sys.modules[name]
    assert "test/acc" in evaluate("test").summary  # the run's own configuration names them


@pytest.mark.parametrize(
    "text",
    ["--model=mynet.MyNet", "mynet.MyNet", '{"class_path": "mynet.MyNet"}', "a: [mynet.MyNet]"],
)
def test_a_name_brings_the_directory_last(here: Path, text: str) -> None:
    before = [*sys.path]
    add_working_directory([text])
    add_working_directory([text])
    assert sys.path == [*before, str(here)]


@pytest.mark.parametrize(
    "text",
    [
        "--model=MLP",
        "--model=nowhere.MyNet",
        "colorsys.MyNet",  # a library has this name
        "datamodules.MyData",
        "torch.mynet.MyNet",
        "--data.data_dir=here/mynet.d",
        "mynet",
    ],
)
def test_without_a_name_of_a_module_there_the_directory_stays_away(here: Path, text: str) -> None:
    before = [*sys.path]
    add_working_directory([text])
    assert sys.path == before


def test_a_broken_module_is_one_line(here: Path, error_of: Callable[[list[str]], str]) -> None:
    (here / "broken.py").write_text("def (:", encoding="utf-8")
    assert error_of(["fit", "--model=broken.MyNet"]).startswith("model: invalid syntax (broken.py")


@pytest.mark.parametrize("ends", ["import sys; sys.exit(0)", "raise GeneratorExit"])
def test_a_module_that_ends_the_program_is_an_error(
    ends: str, here: Path, error_of: Callable[[list[str]], str]
) -> None:
    (here / "ends.py").write_text(f"x = 1\n{ends}\n", encoding="utf-8")
    line = error_of(["fit", "--model=ends.MyNet"])
    assert line.startswith(f"{here / 'ends.py'}, line 2, raises ")
    assert "put what is a program under if __name__" in line


@pytest.mark.parametrize(("file", "name"), [("mynet.py", "mynet"), ("./sub/mynet.py", "sub.mynet")])
def test_a_file_in_place_of_a_class_is_named(
    file: str, name: str, here: Path, error_of: Callable[[list[str]], str]
) -> None:
    line = f"{file} is a file: pass --model {name}.ClassName"
    assert error_of(["fit", f"--model={file}"]) == line
    assert error_of(["fit", "--model", file]) == line
