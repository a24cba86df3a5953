"""Runs that the real libraries wrote: kept ones of a known version, and new ones (slow)."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from experiments.records.runs import Run
from experiments.sources.find import find_runs
from tests.conftest import PROJECT
from tests.foreign import DISTRIBUTIONS, STEPS, accuracy

KEPT = sorted((PROJECT / "tests/fixtures/foreign").glob("*.tar.gz"))
MODULES = {"mlflow-skinny": "mlflow", "pytorch-lightning": "pytorch_lightning"}
SOURCES = {"mlflow-sqlite": "mlflow", "mlflow-folder": "mlflow"}
# What each tool keeps beside the metrics; of TensorBoard, the settings are flat.
STATUS = {
    "wandb": ("finished", "failed"),
    **dict.fromkeys(SOURCES, ("finished", "finished")),
}


def unpacked(kind: str, folder: Path) -> Path:
    """A kept folder of a kind."""
    (archive,) = (path for path in KEPT if path.name.startswith(kind))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / kind


def by_seed(folder: Path) -> list[Run]:
    runs = find_runs([str(folder)], Path("runs"), 2e9)
    return sorted(runs, key=lambda run: run.seed or 0)


def check(kind: str, folder: Path) -> None:
    runs = by_seed(folder)
    assert [(run.seed, run.source) for run in runs] == [
        (seed, SOURCES.get(kind, kind)) for seed in range(2)
    ]
    statuses = STATUS.get(kind, ("unknown", "unknown"))
    for seed, (run, status) in enumerate(zip(runs, statuses, strict=True)):
        note = "exit code 1" if status == "failed" else ""
        assert (run.status, run.note) == (status, note), run
        assert run.curve("val_acc") == pytest.approx({s: accuracy(seed, s) for s in STEPS})
        assert run.curve("train/loss") == pytest.approx({s: 1 / s for s in STEPS[:-1]})
        assert run.value("val_acc") == pytest.approx(accuracy(seed, STEPS[-1]))
        assert run.value("train/loss") is None  # it is no number at the end
        assert (run.config["lr"], run.config["batch_size"]) == (0.1, 32)
        check_labels(kind, run, seed)
    if kind not in {"csv", "parquet"}:
        times = [entry["seconds"] for entry in runs[0].entries if "seconds" in entry]
        assert times and all(0 <= at < 60 for at in times)


def check_labels(kind: str, run: Run, seed: int) -> None:
    of_lightning = kind in {"csv", "parquet"}
    name = f"lightning_logs/version_{seed}" if of_lightning else f"run-s{seed}"
    assert run.name == name
    labels: dict[str, Any] = {
        "wandb": {"wandb.group": "baseline", "wandb.job_type": ("train", "sweep")[seed]},
        "trackio": {"trackio.group": "baseline", "trackio.project": "digits"},
        "mlflow": {"mlflow.group": "baseline", "mlflow.experiment": "digits"},
    }
    tool = SOURCES.get(kind, kind)
    expected = labels.get(tool, {})
    assert expected.items() <= run.config.items()
    assert run.fields.get("group") == expected.get(f"{tool}.group")


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_kept_runs_are_read(kind: str, tmp_path: Path) -> None:
    if kind in {"tensorboard", "parquet"}:
        pytest.importorskip(MODULES.get(DISTRIBUTIONS[kind], DISTRIBUTIONS[kind]))
    check(kind, unpacked(kind, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_new_runs_are_read(kind: str, tmp_path: Path) -> None:
    library = DISTRIBUTIONS[kind]
    module = MODULES.get(library, library)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {library}")
    command = [sys.executable, "-m", "tests.foreign", kind, str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    check(kind, tmp_path / "new")


def test_all_kinds_are_found_side_by_side(tmp_path: Path) -> None:
    kinds = DISTRIBUTIONS.keys() - {"parquet"}
    for kind in kinds:
        unpacked(kind, tmp_path)
    found = find_runs([], tmp_path, 2e9)
    assert len(found) == 2 * len(kinds)
    assert {run.status for run in found} == {"unknown", "finished", "failed"}
    again = find_runs([str(tmp_path), str(tmp_path / "wandb")], tmp_path, 2e9)
    assert len(again) == len(found)


@pytest.mark.parametrize(
    "name",
    [
        *("mlflow-sqlite/mlflow.db", "trackio/digits.db", "csv/lightning_logs/version_0"),
        *("csv/lightning_logs/version_0/metrics.csv", "tensorboard/run-s0", "wandb/wandb"),
        *("mlflow-folder/mlruns", "csv/lightning_logs/*"),
    ],
)
def test_a_file_or_a_folder_may_be_named(name: str, tmp_path: Path) -> None:
    unpacked(name.partition("/")[0], tmp_path)
    found = find_runs([str(tmp_path / name)], tmp_path, 2e9)
    assert len(found) in {1, 2}
    assert "unreadable" not in {run.status for run in found}
