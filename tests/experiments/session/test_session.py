import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cli import main
from experiments.records.record import RunRecord
from lightning_modules import MLP
from tests.conftest import PROJECT, SHORT, Cli

TINY = ["--model=MLP", "--model.hidden_units=[2]"]


def failing(error: BaseException) -> Any:
    def step(self: MLP, *args: Any) -> NoReturn:
        raise error

    return step


def test_a_run_that_raises_has_failed(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLP, "training_step", failing(RuntimeError("out of paint")))
    with pytest.raises(RuntimeError, match="out of paint"):
        fit(*TINY)
    fields = RunRecord.open(runs / "run").fields
    assert (fields["status"], fields["error"]) == ("failed", "RuntimeError('out of paint')")


def test_an_interrupted_run_says_so(fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLP, "training_step", failing(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as exited:
        fit(*TINY)
    assert exited.value.code != 0
    assert RunRecord.open(runs / "run").fields["status"] == "interrupted"


def test_a_failed_evaluation_is_not_a_failed_run(
    fit: Cli, evaluate: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(*TINY)
    monkeypatch.setattr(MLP, "test_step", failing(RuntimeError("out of paint")))
    with pytest.raises(RuntimeError, match="out of paint"):
        evaluate("test")
    assert RunRecord.open(runs / "run").fields["status"] == "finished"


def test_a_checkpoint_of_no_run_is_tested_in_a_run_of_its_own(
    fit: Cli, runs: Path, tmp_path: Path, synthetic: list[str]
) -> None:
    moved = tmp_path / "moved.ckpt"
    (fit(*TINY).path / "best.ckpt").rename(moved)
    places = [f"--ckpt_path={moved}", f"--runs_dir={runs}", "--trainer.logger=false"]
    main(["test", *TINY, *synthetic, *places])
    (other,) = runs.glob("mlp-*-synthetic-s42-*")
    record = RunRecord.open(other)
    assert record.fields["status"] == "finished"
    assert record.summary["test/checkpoint"] == "moved.ckpt"


@pytest.mark.slow
def test_a_terminated_run_exits_with_143(
    data_dir: Path, synthetic: list[str], tmp_path: Path
) -> None:
    endless = ["--trainer.max_steps=10000000", "--trainer.logger=false", "--name=run"]
    command = [sys.executable, str(PROJECT / "cli.py"), "fit", *TINY, *SHORT, *synthetic, *endless]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "runs" / "run" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert RunRecord.open(tmp_path / "runs" / "run").fields["status"] == "preempted"


def test_a_finished_run_says_which_settings_it_does_not_take(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fit(*TINY)
    capsys.readouterr()
    again = fit(*TINY, "--resume", "--model.optimizer.lr=0.5")
    said = capsys.readouterr().err
    assert "not used, as the run is finished: model.optimizer.lr 0.5; for another run" in said
    assert again.fields["lr"] == before.fields["lr"]
