"""The configs of this project go by their names, also away from its folder."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from cli import main
from experiments.command_line.shipped_configs import CONFIGS, names, with_shipped
from tests.conftest import PROJECT, Cli


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "shipped"),
    [
        (["fit", "--config", "mlp"], ["fit", "--config", f"{CONFIGS / 'mlp.yaml'}"]),
        (["fit", "-c=mlp.yaml"], ["fit", f"-c={CONFIGS / 'mlp.yaml'}"]),
        (["--config=configs/mlp.yaml"], [f"--config={CONFIGS / 'mlp.yaml'}"]),
        (["--config=data/synthetic"], [f"--config={CONFIGS / 'data/synthetic.yaml'}"]),
        (["--name", "mlp"], ["--name", "mlp"]),
        (["--config=nothing.yaml"], ["--config=nothing.yaml"]),  # the reader says so
        (["--config=../configs/mlp.yaml"], ["--config=../configs/mlp.yaml"]),
        (["--config=/configs/mlp.yaml"], ["--config=/configs/mlp.yaml"]),
    ],
)
def test_a_name_is_the_config_of_this_project(given: list[str], shipped: list[str]) -> None:
    assert with_shipped(given) == shipped


def test_a_file_of_ones_own_goes_first(elsewhere: Path) -> None:
    (elsewhere / "mlp").touch()
    assert with_shipped(["--config=mlp"]) == ["--config=mlp"]


def test_every_config_has_a_name() -> None:
    assert {"mlp", "cnn", "data/synthetic", "ablations/relu"} <= set(names())


def test_a_name_that_is_none_is_one_line(error_of: Callable[[list[str]], str]) -> None:
    assert error_of(["fit", "--config=mpl"]) == "no config 'mpl', did you mean 'mlp'?"
    assert "no config 'xyzw': there are cnn, " in error_of(["fit", "--config", "xyzw"])


def test_a_run_is_called_after_the_name(fit: Cli, runs: Path, synthetic: list[str]) -> None:
    limits = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.logger=false"]
    main(["fit", "--config=mlp", *synthetic, *limits, f"--runs_dir={runs}"])
    (run,) = runs.iterdir()
    assert run.name.startswith("mlp-batch_size_50-")


def test_other_programs_are_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"cifar10-lightning {version('cifar10-lightning')}\n"
    main(["reproduce", "--list", "--only", "adam"])
    assert capsys.readouterr().out.startswith("adam ")
    with pytest.raises(SystemExit):
        main(["compare"])
    assert "runs" in capsys.readouterr().err


def test_a_folder_of_that_name_is_no_config(elsewhere: Path) -> None:
    (elsewhere / "mlp").mkdir()
    assert with_shipped(["--config=mlp"]) == [f"--config={CONFIGS / 'mlp.yaml'}"]


@pytest.mark.parametrize("words", [["compare", "--format=foo"], ["reproduce", "--budget=foo"]])
def test_errors_of_other_programs_are_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: argument --")


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    command = f"{sys.executable} {PROJECT / 'cli.py'} reproduce --list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("numpy ")
    assert done.stderr == ""
