"""Homes in paths, and encodings: what a config file or a flag says is what is taken."""

import os
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import main
from experiments import compare
from experiments.command_line.config_files import HomeError, expand_home, expand_homes, read_config
from tests.conftest import SHORT, Cli

TEXT = "# größe\ntrainer:\n  max_steps: 1\n"
TINY = ["--model=MLP", "--model.hidden_units=[2]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "{}"),
        ("~/runs", "{}/runs"),
        ("--runs_dir=~/runs", "--runs_dir={}/runs"),
        ("--runs_dir=~", "--runs_dir={}"),
        ("--trainer.callbacks.dirpath=~/a b", "--trainer.callbacks.dirpath={}/a b"),
        ("-c=~/a.yaml", "-c={}/a.yaml"),
        ("--model.lr_scheduler=~", "--model.lr_scheduler=~"),  # YAML's null
        ("--name=~x", "--name=~x"),
        ("a/~/b", "a/~/b"),
        ("./~/b", "./~/b"),
        ("~x", "~x"),
        ("about ~/this", "about ~/this"),
    ],
)
def test_a_home_is_written_out_where_a_path_begins(home: Path, written: str, meant: str) -> None:
    assert expand_homes(written) == meant.format(home)


def test_all_of_a_configuration_is_written_out(home: Path) -> None:
    config = Namespace(a=["~/x", {"b": Namespace(c="~/y", d=3, e=None)}], f=("~/z", True))
    expand_homes(config)
    assert config.a == [f"{home}/x", {"b": Namespace(c=f"{home}/y", d=3, e=None)}]
    assert config.f == (f"{home}/z", True)


def test_a_home_of_nobody_is_refused(error_of: Callable[[list[str]], str], tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="~nobody-there/runs begins at the home of a user"):
        expand_home("~nobody-there/runs")
    message = error_of(["fit", *TINY, "--data.data_dir=~nobody-there/data"])
    assert message.startswith("~nobody-there/data begins at the home of a user who has none here")


def test_every_path_of_a_command_may_begin_at_home(
    home: Path, synthetic: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config: dict[str, Any] = {
        "data": {"class_path": "CIFAR10DataModule", "init_args": {"data_dir": "~/data"}}
    }
    (home / "a.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    places = ["--runs_dir=~/runs", "--name=run", "--trainer.logger=false"]
    options = [word for word in synthetic if "data_dir" not in word]
    main(["fit", "--config", "~/a.yaml", *TINY, *SHORT, *options, *places])
    main(["test", "--runs_dir", "~/runs", "--name=run", "--ckpt_path=~/runs/run/best.ckpt"])
    compare.main(["--runs_dir=~/runs", "--format=csv", "--output=~/runs.csv"])
    assert {path.name for path in home.iterdir()} == {"a.yaml", "data", "runs", "runs.csv"}
    assert [*tmp_path.iterdir()] == [home]
    kept = (home / "runs/run/config.yaml").read_text(encoding="utf-8")
    assert "~" not in kept
    assert f"data_dir: {home}/data" in kept


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT, encoding=encoding)
    with pytest.raises(ValueError, match=f"a.yaml is in {encoding.upper()}: save it as UTF-8"):
        read_config(path)


def test_a_config_of_latin_1_is_named_with_its_line(
    tmp_path: Path, error_of: Callable[[list[str]], str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"\n{TEXT}", encoding="latin-1")
    line = f"{path}, line 2: not UTF-8 (byte 0xf6): save it as UTF-8"
    assert error_of(["fit", f"--config={path}"]) == line
    assert error_of(["fit", "--model", str(path)]) == line  # the parser reads that one


def test_a_byte_order_mark_is_left_out(fit: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT, encoding="utf-8-sig")
    assert read_config(path) == TEXT
    record = fit(*TINY, f"--config={path}", "--trainer.val_check_interval=1")
    assert record.fields["status"] == "finished"


@pytest.mark.slow
def test_text_is_utf8_where_the_locale_is_not(
    tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model: {class_path: MLP}\nname: größe ±\n", encoding="utf-8")
    done = shell("fit", f"--config={path}", "--print_config", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "name: gr\\xf6\\xdfe \\xb1\n" in done.stdout  # as far as an ASCII terminal goes


def test_what_is_no_text_is_refused(error_of: Callable[[list[str]], str]) -> None:
    message = error_of(["fit", *TINY, "--name", os.fsdecode(b"gr\xf6sse")])
    assert message.startswith("'gr\\udcf6sse' is no utf-8: rename it, or choose another locale")
