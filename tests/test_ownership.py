"""A record, and a run's folder, have one owner at a time."""

import json
import multiprocessing
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml

from cli import main
from experiments.records import environment
from experiments.records.record import RunRecord, with_changes
from experiments.records.runs import read_run
from experiments.session.resuming import RunLock, make_room
from lightning_modules import MLP
from tests.conftest import SHORT, Cli, short_fit
from tests.lab import Lab

TINY = ["--model=MLP", "--model.hidden_units=[4]"]


# ---- the record ----------------------------------------------------------------------------------


def test_each_makes_its_own_changes() -> None:
    before = {"status": "running", "summary": {"val/acc": 0.1, "old": 1}, "error": "x"}
    mine = {"status": "running", "summary": {"val/acc": 0.1, "test/acc": 0.2, "old": 1}}
    theirs = {"status": "finished", "summary": {"val/acc": 0.3}, "error": "x", "seconds": 5}
    assert with_changes(before, mine, theirs) == {
        "status": "finished",
        "summary": {"val/acc": 0.3, "test/acc": 0.2},
        "seconds": 5,
    }


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_evaluation_amid_a_fit_leaves_what_the_fit_writes(
    command: str, fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the record while the fit runs, and saves it when the fit is over."""
    fit(*TINY)
    path = runs / "run"
    final = json.loads((path / "record.json").read_text(encoding="utf-8"))
    as_running = {**final, "status": "running", "summary": {"val/acc": 0.1}}
    as_running.pop("ended")
    (path / "record.json").write_text(json.dumps(as_running), encoding="utf-8")

    def the_fit_ends(self: MLP) -> None:
        (path / "record.json").write_text(json.dumps(final), encoding="utf-8")

    monkeypatch.setattr(MLP, "on_test_end", the_fit_ends)
    monkeypatch.setattr(MLP, "on_validation_end", the_fit_ends)
    monkeypatch.setattr(MLP, "on_predict_end", the_fit_ends)
    main([command, f"--runs_dir={runs}", "--name=run"])
    after = RunRecord.open(path)
    assert {key: after.fields[key] for key in final if key not in {"summary", "evaluations"}} == {
        key: value for key, value in final.items() if key not in {"summary", "evaluations"}
    }
    assert final["summary"].items() <= after.summary.items()
    assert (f"{command}/acc" in after.summary) == (command != "predict")
    assert read_run(path, now=2e9).status == "finished"


def test_two_evaluations_at_once_are_both_kept(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(*TINY)
    validated: list[int] = []

    def validate_meanwhile(self: MLP) -> None:
        if not validated:
            validated.append(1)
            main(["validate", f"--runs_dir={runs}", "--name=run"])

    monkeypatch.setattr(MLP, "on_test_start", validate_meanwhile)
    main(["test", f"--runs_dir={runs}", "--name=run"])
    record = RunRecord.open(runs / "run")
    assert {"test/acc", "validate/acc", "train/acc"} <= record.summary.keys()
    assert record.evaluations.keys() == {"test", "validate"}
    logged = [key for entry in record.metrics() for key in entry]
    assert {"test/acc", "validate/acc"} <= {*logged}


def _count(path: str, name: str) -> None:
    record = RunRecord.open(Path(path))
    for number in range(20):
        record.summary[f"{name}/{number}"] = number
        record.log({f"test/{name}": float(number)}, step=number)
        record.save()


def test_many_processes_lose_nothing(tmp_path: Path) -> None:
    record = RunRecord.create(tmp_path / "run", "model: MLP\n", {"seed": 1})
    names = ["a", "b", "c"]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        list(pool.map(_count, [str(record.path)] * 3, names))
    found = RunRecord.open(record.path)
    assert all(found.summary[f"{name}/{n}"] == n for name in names for n in range(20))
    assert len(list(found.metrics())) == 60


# ---- the folder ----------------------------------------------------------------------------------


def test_a_fit_that_is_refused_has_written_nothing(
    runs: Path, data_dir: Path, error_of: Callable[[list[str]], str], synthetic: list[str]
) -> None:
    flags = [*TINY, *SHORT, *synthetic, "--trainer.logger=false", f"--runs_dir={runs}"]
    lock = RunLock(runs / "run")
    lock.acquire()  # by a process that has written nothing yet
    assert "is being trained by another process" in error_of(["fit", "--name=run", *flags])
    assert {path.name for path in (runs / "run").iterdir()} == {".lock"}
    lock.release()
    short_fit(runs, data_dir, *TINY)
    before = {path.name: path.read_bytes() for path in (runs / "run").iterdir()}
    lock.acquire()
    for more in (["--overwrite=true"], ["--resume"], ["--ckpt_path=last"]):
        asked = ["fit", "--name=run", *flags, *more, "--model.lr=0.5", "--trainer.max_steps=9"]
        assert "is being trained by another process" in error_of(asked)
    lock.release()
    assert {path.name: path.read_bytes() for path in (runs / "run").iterdir()} == before


def test_of_fits_at_once_one_trains_what_its_configuration_says(
    labs: dict[str, Lab], tmp_path: Path
) -> None:
    lab = labs["MLP"]
    flags = [*lab.options, f"--runs_dir={tmp_path}", "--name=toc", "--trainer.max_steps=2"]
    rates = (0.25, 0.5, 0.75)
    ended = lab.zygote.run_at_once([["fit", *flags, f"--model.lr={lr}"] for lr in rates])
    won = [rate for rate, one in zip(rates, ended, strict=True) if one.code == 0]
    assert len(won) == 1
    assert [one.code for one in ended].count(2) == 2
    config = yaml.safe_load((tmp_path / "toc" / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == won[0]
    assert RunRecord.open(tmp_path / "toc").fields["lr"] == won[0]


def test_runs_of_one_second_have_two_names(
    synthetic: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    flags = ["--trainer.max_steps=1", "--trainer.logger=false", f"--runs_dir={runs}"]
    for _ in range(3):
        main(["fit", *TINY, *synthetic, *SHORT, *flags])
    names = sorted(path.name.partition("20260101-000000")[2] for path in runs.iterdir())
    assert names == ["", "-2", "-3"]


def test_a_checkpoint_that_another_process_replaces_is_not_gone_on_from(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch, error_of: Callable[[list[str]], str]
) -> None:
    fit(*TINY)
    last = runs / "run" / "last.ckpt"
    acquire = RunLock.acquire

    def after_another(self: RunLock) -> None:
        content = last.read_bytes()
        last.unlink()
        last.write_bytes(content)
        acquire(self)

    monkeypatch.setattr(RunLock, "acquire", after_another)
    asked = ["fit", f"--runs_dir={runs}", "--name=run", "--resume", "--trainer.max_steps=9"]
    assert "another process has just trained run run: try again" in error_of(asked)
    assert RunRecord.open(runs / "run").fields["status"] == "finished"


def test_room_is_made_without_losing_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lock = RunLock(folder)
    lock.acquire()
    for name in ("record.json", "stale"):
        (folder / name).write_text("{}", encoding="utf-8")
    make_room(folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {".lock"}
    lock.release()


# ---- what was typed, and where from --------------------------------------------------------------


def test_a_call_from_python_records_what_was_asked_for(
    fit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/ipykernel_launcher.py", "-f", "kernel.json"])
    command = fit(*TINY).fields["command"]
    assert re.match(r"cli.py fit .*--model=MLP", command)


@pytest.mark.parametrize("where", ["enclosing", "GIT_DIR"])
def test_a_commit_of_another_repository_is_not_this_projects(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True
        )

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "foreign")
    if where == "GIT_DIR":
        before = environment.git_state()
        monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
        assert environment.git_state() == before
    else:
        (tmp_path / "project").mkdir()
        monkeypatch.setattr(environment, "_PROJECT", tmp_path / "project")
        assert environment.git_state() == {"commit": None, "dirty": None}
