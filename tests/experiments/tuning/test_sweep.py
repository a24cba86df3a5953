"""Local sweeps as their users start them: ``python cli.py sweep FILE``."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cli import main
from experiments.records.runs import Run, read_run
from experiments.tuning.sweep import point_name
from tests.conftest import PROJECT, SHORT


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]
POINTS = {"model.norm": {"values": ["none", "batch"]}, "seed_everything": {"values": [0, 1]}}
SWEEP: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "val/acc", "goal": "maximize"},
    "parameters": POINTS,
    "command": ["${program}", "fit", "--model=MLP", "--trainer.logger=false", "${args}"],
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def words(file: Path, *more: str) -> list[str]:
    return [sys.executable, str(PROJECT / "cli.py"), "sweep", str(file), *more]


@pytest.fixture
def sweep(
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs a sweep in an empty folder, on little data, with one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(file: Path, *more: str, short: bool = True) -> Ended:
        status = 0
        try:
            main(["sweep", str(file), *(SHORT if short else []), *synthetic, *more])
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
        return Ended(status, *capsys.readouterr())

    return run


def runs_in(folder: Path) -> dict[str, Run]:
    return {path.parent.name: read_run(path.parent) for path in folder.glob("*/record.json")}


def test_a_grid_is_trained_compared_and_tested_once(sweep: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "norms.yaml")
    refused = sweep(file, "--model.norms=none")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == "error: unknown key 'norms', did you mean 'norm'?\n"
    assert not (tmp_path / "runs").exists()

    done = sweep(file)
    assert done.status == 0, done.err
    runs = runs_in(tmp_path / "runs/norms")
    names = {f"norms-norm_{norm}-s{seed}" for norm in ("none", "batch") for seed in (0, 1)}
    assert runs.keys() == names
    assert {run.status for run in runs.values()} == {"finished"}
    assert not any("test/acc" in run.summary for run in runs.values())
    means = {
        norm: sum(runs[f"norms-norm_{norm}-s{seed}"].summary["best/val/acc"] for seed in (0, 1)) / 2
        for norm in ("none", "batch")
    }
    winner = max(means, key=lambda norm: means[norm])
    assert f"winner: norms-norm_{winner}: val/acc {means[winner]:.4f} ± " in done.out
    assert "[2/2]" in done.out
    assert "(2 seeds)" in done.out

    tested = sweep(file, "--test_winner")
    assert "[" not in tested.out.partition("\n\n")[0]  # nothing is trained again
    assert "the test set has chosen nothing" in tested.out
    with_test = [name for name, run in runs_in(tmp_path / "runs/norms").items()
                 if "test/acc" in run.summary]  # fmt: skip
    assert sorted(with_test) == [f"norms-norm_{winner}-s{seed}" for seed in (0, 1)]


@pytest.mark.slow
def test_weak_points_stop_early_and_a_stopped_search_goes_on(
    sweep: Command, synthetic: list[str], tmp_path: Path
) -> None:
    rates = {"values": [1.0e-9, 1.0e-3, 1.0e-8]}
    long = ["--trainer.max_steps=400", "--trainer.max_epochs=-1", "--trainer.val_check_interval=10",
            "--trainer.check_val_every_n_epoch=null"]  # fmt: skip
    file = write(
        tmp_path / "rates.yaml",
        method="grid",
        parameters={"model.lr": rates, "model.weight_std": {"value": 0.02}},
        early_terminate={"type": "hyperband", "min_iter": 3, "eta": 2},
    )
    folder = tmp_path / "runs/rates"
    with subprocess.Popen(
        words(file, *long, *synthetic), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        wait_for(lambda: any(run.curve("val/acc") for run in runs_in(folder).values()))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.endswith("to go on, type the same command again\n")

    done = sweep(file, *long, short=False)
    assert done.status == 0, done.err
    runs = runs_in(folder)
    assert len(runs) == 3
    assert "winner: rates-lr_0.001" in done.out
    assert "stopped early after" in done.out
    assert {run.status for run in runs.values()} >= {"finished", "interrupted"}

    other = sweep(file, *long, "--data.batch_size=25", short=False)
    assert (other.status, other.out) == (2, "")
    assert "runs/rates has another sweep: name another folder" in other.err


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_runs_of_a_killed_search_save_and_stop(
    sweep: Command, synthetic: list[str], tmp_path: Path
) -> None:
    file = write(tmp_path / "norms.yaml")
    folder = tmp_path / "runs/norms"
    endless = ["--trainer.max_steps=1000000", "--trainer.max_epochs=-1", "--jobs=2"]
    with subprocess.Popen(words(file, *synthetic, *endless), cwd=tmp_path) as process:
        wait_for(lambda: sum(bool(run.entries) for run in runs_in(folder).values()) == 2)
        process.kill()
    wait_for(lambda: {run.status for run in runs_in(folder).values()} == {"preempted"})


def test_a_point_that_diverges_does_not_end_the_search(sweep: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "wild.yaml", parameters={"model.lr": {"values": [1.0e30, 1.0e-5]}})
    done = sweep(file)
    assert done.status == 0, done.err
    assert "wild-lr_1e+30-s42: " in done.out
    assert "the training has diverged" in done.out
    assert "winner: wild-lr_1e-05" in done.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name=x"], "leave name out: the sweep sets it for each run"),
        (["--test_after_fit=true"], "leave test_after_fit out"),
        (["--jobs=0"], "--jobs must be at least 1, got 0"),
        (["--count=0"], "--count must be at least 1, got 0"),
        (["--count=many"], "argument --count: invalid int value: 'many'"),
        (["--data.val_size=0"], "data.val_size is 0, and there is no val/acc: hold images out"),
        (["--trainer.max_steps=1"], "ends after 1 batches, its first validation would come"),
        (["--trainer.limit_val_batches=0"], "trainer.limit_val_batches is 0: a sweep needs val"),
        (["--print_config"], "leave print_config out: a sweep trains"),
        (["--ckpt_path=x"], "leave ckpt_path out: every run of a sweep is trained anew"),
        (["--model.norm"], "error"),
        (["other.yaml"], "'other.yaml' is the value of no flag"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], message: str, sweep: Command, tmp_path: Path
) -> None:
    refused = sweep(write(tmp_path / "sweep.yaml"), *more)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1
    assert message in refused.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"name": {"values": ["a", "b"]}}},
        {"command": ["${program}", "fit", "--model=MLP", "--runs_dir=x", "${args}"]},
    ],
)
def test_what_the_sweep_sets_can_be_no_flag_of_its_file(
    changes: dict[str, Any], sweep: Command, tmp_path: Path
) -> None:
    refused = sweep(write(tmp_path / "sweep.yaml", **changes))
    assert (refused.status, refused.out) == (2, "")
    assert "out: the sweep sets it for each run" in refused.err


def test_a_folder_with_other_files_is_left_alone(sweep: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "sweep.yaml")
    (tmp_path / "runs/other/run").mkdir(parents=True)
    (tmp_path / "runs/other/run/record.json").write_text("{}")
    assert "has runs of no sweep" in sweep(file, "--runs_dir=runs/other").err
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/sweep.db").write_text("no database\n" * 100)
    damaged = sweep(file, "--runs_dir=runs/damaged")
    assert (damaged.status, damaged.out) == (2, "")
    assert "sweep.db can't be used" in damaged.err


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data.synthetic_images": "200"}, {"data.synthetic_images": "300"}),  # not in names
        ({"model.norm": "a b"}, {"model.norm": "a_b"}),
        ({"model.a.size": "1", "model.b.size": "2"}, {"model.a.size": "2", "model.b.size": "1"}),
    ],
)
def test_no_two_points_share_a_name(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert point_name(one) != point_name(other)
    assert point_name({"model.lr": 0.1, "model.norm": "none"}) == "lr_0.1-norm_none"


def test_a_search_with_other_settings_of_a_config_is_another(
    sweep: Command, tmp_path: Path
) -> None:
    file = write(tmp_path / "norms.yaml", parameters={"model.norm": {"values": ["none", "batch"]}})
    for name, units in (("a", 5), ("b", 6)):
        config = {"model": {"class_path": "MLP", "init_args": {"hidden_units": [units]}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert sweep(file, "--count=1", "--config=a.yaml").status == 0
    assert "has another sweep" in sweep(file, "--count=2", "--config=b.yaml").err
    record = tmp_path / "runs/norms/norms-norm_none-s42/record.json"
    assert json.loads(record.read_text())["status"] == "finished"
    record.write_text(record.read_text().replace('"finished"', '"running"'))  # as after kill -9
    (tmp_path / "runs/norms/logs/norms-norm_batch-s42.txt").symlink_to(tmp_path / "mine.txt")
    linked = sweep(file, "--count=2", "--config=a.yaml")
    assert "norms-norm_batch-s42.txt is a symbolic link: remove it" in linked.err
    assert not (tmp_path / "mine.txt").exists()


def test_a_random_search_needs_a_number_of_points(sweep: Command, tmp_path: Path) -> None:
    refused = sweep(write(tmp_path / "sweep.yaml", method="random"))
    assert refused.err == "error: random search: give the number of points with --count\n"


def test_a_file_that_is_missing_is_named(sweep: Command, tmp_path: Path) -> None:
    assert "No such file" in sweep(tmp_path / "no.yaml").err
