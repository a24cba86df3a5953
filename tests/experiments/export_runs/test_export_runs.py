"""Runs written for other tools and read back: names, settings, curves, steps, times, figures."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.export_runs import program
from experiments.export_runs.common import final_numbers, settings_of
from experiments.records.runs import Run
from experiments.sources.find import find_runs
from tests.conftest import PROJECT

LIBRARIES = {"trackio": "trackio", "mlflow": "mlflow", "parquet": "pyarrow", "wandb": "wandb"}
CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_steps": 100, "precision": "32", "callbacks": None},
    "model": {
        "class_path": "lightning_modules.MLP",
        "init_args": {"norm": "none", "hidden_units": [2, 3], "bias": True, "scale": 1e-4},
    },
}
# In an exporting process: no address but those of this machine, and what was asked for.
GUARD = """
import sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        if args[1][0] not in ("127.0.0.1", "::1", "localhost"):
            print("network", args[1], file=open(r"{log}", "a"))
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "localhost", None):
        print("network", args[0], file=open(r"{log}", "a"))
sys.addaudithook(watch)
"""


def write_run(folder: Path, seed: int, **fields: Any) -> Path:
    """A run as a fit leaves it, with what other tools find hard."""
    folder.mkdir(parents=True)
    record = {
        "name": folder.name,
        "status": "finished",
        "job_type": "fit",
        "model": "MLP",
        "parameters": 7,
        "hardware": {"cpu": "A 7", "gpus": ["G"], "calibration": {"fp32_gflops": 1.5}},
        "started": "2026-11-26T23:56:12+00:00",
        "seconds": 9.5,
        "seed": seed,
        "data": "cifar10",
        "images": {"train": 900, "val": 100, "test": 200},
        "git": {"commit": "a" * 40, "dirty": False},
        "versions": {"torch": "2.14.1"},
        "wandb_id": "abc",
        "summary": {
            **{"train/loss": None, "val/acc": 0.4, "best/val/acc": 0.5, "best/step": 20},
            **{"test/acc": 0.45, "test/per_class": {"cat": 0.3, "dog": 0.6}, "note": "text"},
        },
        **fields,
    }
    lines: list[dict[str, Any]] = [
        {"step": 10, "seconds": 1.5, "train/loss": 2.25, "lr": 0, "epoch": 0},
        {"step": 20, "seconds": 2.5, "train/loss": 1.0 / 3, "lr": 1e-7, "epoch": 0},
        {"step": 20, "seconds": 3.25, "val/acc": 0.5, "val/loss": 1e-12, "epoch": 0},
        {"step": 30, "seconds": 4.0, "train/loss": None, "val/acc": 0.4, "epoch": 1},
        {"step": 20, "seconds": 9.0, "test/acc": 0.45},
    ]
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed_everything": seed}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_run(folder / "plain-s3", 3)
    write_run(folder / "odd = é 'x'-s4", 4, status="interrupted", error="KeyboardInterrupt()")
    (folder / "lost").mkdir()
    (folder / "lost/record.json").write_text("{")
    return folder


def by_name(place: Path) -> dict[str, Run]:
    found = find_runs([str(place)], Path("runs"), 2e9)
    return {run.name: run for run in found if run.status != "unreadable"}


def check_same(before: Run, after: Run) -> None:
    """What a tool gives back of a run is what the run's folder has."""
    assert (after.name, after.status, after.note) == (before.name, before.status, before.note)
    assert (after.seed, settings_of(after)) == (before.seed, before.config)
    for field in (
        "hardware",
        "parameters",
        "model",
        "data",
        "job_type",
        "images",
        "git",
        "versions",
        "started",
        "seconds",
    ):
        assert after.fields.get(field) == before.fields[field], field
    group, tags = before.name[:-3], ["MLP", "cifar10", f"seed {before.seed}"]
    assert after.fields["group"] == group
    assert after.source == "mlflow" or after.fields["tags"] == tags
    metrics = {key for entry in before.entries for key in entry} - {"step", "seconds"}
    assert metrics > {"train/loss", "val/acc", "test/acc"}
    for metric in metrics:
        assert after.curve(metric) == before.curve(metric), metric
    for metric in (*metrics, *final_numbers(before), "test/per_class.cat"):
        summary = {**before.summary, "test/per_class.cat": 0.3, "epoch": None}
        if metric in summary and metric != "epoch":
            assert after.value(metric) == summary[metric], metric
    times = {(entry["step"], entry["seconds"]) for entry in before.entries}
    assert {(entry["step"], entry["seconds"]) for entry in after.entries} <= times


def check_back(runs: Path, output: Path) -> None:
    before, after = by_name(runs), by_name(output)
    assert before.keys() == after.keys() and len(before) == 2
    for name, run in before.items():
        check_same(run, after[name])
    assert not [run for run in after.values() if f"{run.source}.group" in run.config]


def skip_without(target: str) -> None:
    if importlib.util.find_spec(LIBRARIES[target]) is None:
        pytest.skip(f"needs {LIBRARIES[target]}")


@pytest.mark.slow
@pytest.mark.parametrize("target", LIBRARIES)
def test_what_is_written_is_read_back(target: str, runs: Path, tmp_path: Path) -> None:
    skip_without(target)
    output, here, home = (tmp_path / name for name in ("output", "here", "home"))
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard/sitecustomize.py").write_text(GUARD.format(log=tmp_path / "network"))
    for folder in (here, home):
        folder.mkdir()
    command = [sys.executable, "-m", "experiments.export_runs", f"--runs_dir={runs}"]
    command += [f"--to={target}", f"--output={output}"]
    paths = os.pathsep.join([str(tmp_path / "guard"), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": paths, "HOME": str(home), "WANDB_MODE": "online"}
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning: lost is left out: record.json can't be read" in done.stderr
    assert done.stdout.startswith("wrote 2 runs; show them with: ")
    check_back(runs, output)
    assert [*here.iterdir()] == [] and not (tmp_path / "network").exists()
    assert [path.name for path in home.rglob("*") if path.is_file()] == []
    assert not [path for path in output.rglob("*") if "partial" in path.name or path.is_symlink()]
    assert {path: path.read_bytes() for path in before} == before
    again = subprocess.run(
        [*command, "--overwrite"], cwd=here, env=environment, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    check_back(runs, output)


def error_of(*args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        program.main([*args])
    assert stopped.value.code == 2
    return ""


@pytest.mark.parametrize(("target", "module"), LIBRARIES.items())
def test_a_missing_library_is_one_line(
    target: str,
    module: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (module, "trackio.sqlite_storage", "mlflow.tracking", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, name, None)
    error_of("plain*", f"--runs_dir={runs}", f"--to={target}", f"--output={tmp_path / 'new'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "is missing; pip install " in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to=parquet", "--output=full"], "full is not empty; name another --output, or pass"),
        (["--to=parquet", "--output=new", "nothing"], "nothing called nothing in runs"),
        (["--to=parquet", "--output=new", "lost"], "no run can be read"),
        (["--to=excel", "--output=new"], "invalid choice: 'excel'"),
        (["--to=parquet"], "the following arguments are required: --output"),
        (["--to=wandb", "--output=full/file/new"], "Not a directory"),
        (["--to=wandb", "--output=runs/new"], "runs/new is in runs, where compare would find"),
    ],
)
def test_what_is_asked_for_is_checked_first(
    args: list[str],
    message: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    error_of(*args)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_an_error_of_a_library_is_one_line_and_leaves_nothing(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(found: list[Run], folder: Path, project: str) -> list[str]:
        (folder / "half").touch()
        raise LookupError(f"no {project}\nat all")

    monkeypatch.setitem(program._TARGETS, "trackio", fail)
    error_of(f"--runs_dir={runs}", "--to=trackio", f"--output={tmp_path / 'new'}", "--project=p")
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "error: trackio refuses the runs: no p at all"
    assert not (tmp_path / "new").exists()
