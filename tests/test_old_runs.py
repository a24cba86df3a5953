"""A run that an earlier version has left goes on, is tested and is compared."""

import json
import shutil
from pathlib import Path

import pytest
from torch import load

from experiments.compare import main as compare
from tests.conftest import PROJECT, Cli

NAME = "of-before-the-rooms"  # made by b5086c0; its command is in its record
KEPT = PROJECT / "tests" / "fixtures" / NAME


@pytest.fixture
def old(runs: Path) -> Path:
    return Path(shutil.copytree(KEPT, runs / NAME))


def test_it_is_tested_as_it_was(old: Path, data_dir: Path, evaluate: Cli) -> None:
    before = json.loads((old / "record.json").read_text())["summary"]
    record = evaluate("test", f"--data.data_dir={data_dir}", "--trainer.logger=false", name=NAME)
    assert record.evaluations["test"]["differs"] == {}
    assert record.summary["test/acc"] == pytest.approx(before["test/acc"], abs=0.005)
    assert record.summary["test/loss"] == pytest.approx(before["test/loss"], abs=1e-5)


def test_it_goes_on(
    old: Path, data_dir: Path, evaluate: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--resume", "--trainer.max_steps=6", "--test_after_fit=true"]
    record = evaluate(
        "fit", *longer, f"--data.data_dir={data_dir}", "--trainer.logger=false", name=NAME
    )
    assert "other settings" not in capsys.readouterr().err
    assert record.fields["status"] == "finished"
    assert record.summary["train/steps"] == 6
    steps = [json.loads(line)["step"] for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 0
    assert 6 in steps
    state = load(old / "last.ckpt")
    assert state["global_step"] == 6
    assert {"LastCheckpoint", "CIFAR10DataModule"} <= {
        key.partition("{")[0] for key in (*state["callbacks"], *state)
    }


@pytest.mark.parametrize("source", ["records", "wandb"])
def test_it_is_compared(source: str, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = old.parent if source == "records" else next((old / "wandb").iterdir())
    compare([str(place), "--format", "json"])
    (line,) = json.loads(capsys.readouterr().out)["runs"]
    assert line["status"] == "finished"
    assert line["test/acc mean"] == pytest.approx(0.155)
