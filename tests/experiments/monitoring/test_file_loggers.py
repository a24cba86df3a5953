import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.monitoring import file_loggers
from experiments.records.curves import last_step
from experiments.records.record import RunRecord
from tests.conftest import Cli, draw_nothing, run_cli, short_fit

TINY = ["--model=MLP", "--model.hidden_units=[2]"]
CSV, TENSORBOARD = (
    f"--trainer.logger=experiments.Run{name}Logger" for name in ("CSV", "TensorBoard")
)
METRICS = ("train/loss", "train/acc", "lr", "images_per_s", "val/loss", "val/acc", "test/acc")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunRecord:
    """A run with both loggers, tested by another command; a fit ends after its last validation."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    runs = tmp_path_factory.mktemp("runs")
    loggers = [
        {"class_path": f"experiments.{name}"} for name in ("RunCSVLogger", "RunTensorBoardLogger")
    ]
    (runs / "both.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch)
        flags = [f"--config={runs / 'both.yaml'}", *TINY, "--trainer.max_steps=5"]
        short_fit(runs, data_dir, *flags, wandb=True)
        return run_cli(["test", f"--runs_dir={runs}", "--name=run"], runs / "run")


def lines(record: RunRecord) -> list[dict[str, Any]]:
    """The lines of a run's CSV, as entries of a record."""
    with (record.path / "csv" / "metrics.csv").open(newline="") as file:
        found = [{k: float(v) for k, v in line.items() if v} for line in csv.DictReader(file)]
    return [{**line, "step": int(line["step"])} for line in found]


def events(record: RunRecord) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415 - an extra
        EventAccumulator,
    )

    return EventAccumulator(str(record.path / "tensorboard")).Reload()


def points(entries: Any, metric: str) -> list[tuple[int, Any]]:
    """Each value of a metric with its step, also if a step has two."""
    found = [(e["step"], e[metric]) for e in entries if e.get(metric) is not None]
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in found]


@pytest.mark.parametrize("metric", METRICS)
def test_csv_and_tensorboard_have_the_values_and_steps_of_the_record(
    metric: str, logged: RunRecord
) -> None:
    expected = points(logged.metrics(), metric)
    assert expected
    assert points(lines(logged), metric) == expected
    assert [(e.step, e.value) for e in events(logged).Scalars(metric)] == expected


@pytest.mark.parametrize("stage", ["val", "test"])
def test_accuracies_per_class_are_at_the_step_of_the_evaluated_weights(
    stage: str, logged: RunRecord
) -> None:
    step = last_step(logged.metrics(), f"{stage}/acc")
    for name, accuracy in logged.summary[f"{stage}/per_class"].items():
        metric, expected = f"{stage}/acc/{name}", [(step, pytest.approx(accuracy))]
        assert [(e.step, e.value) for e in events(logged).Scalars(metric)] == expected
        assert points(lines(logged), metric) == expected


def test_tensorboard_has_pictures_and_hyperparameters(logged: RunRecord) -> None:
    found = events(logged)
    pictures = {"val/confusion_matrix", "test/confusion_matrix", "test/mistakes"}
    assert {*found.Tags()["images"]} == pictures
    start = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"model.optimizer.lr" in start
    (final,) = found.Scalars("final/test/acc")
    assert final.value == pytest.approx(logged.summary["test/acc"])


def test_csv_has_hyperparameters(logged: RunRecord) -> None:
    kept = yaml.safe_load((logged.path / "csv" / "hparams.yaml").read_text())
    assert kept["model"] == "MLP"
    assert kept["model.optimizer.lr"] == 1e-3


def test_a_run_that_goes_back_has_no_step_twice(fit: Cli, runs: Path) -> None:
    fit(*TINY, CSV, "--trainer.max_steps=3", wandb=True)
    third = (runs / "run" / "last.ckpt").read_bytes()
    fit(*TINY, CSV, "--trainer.max_steps=6", "--ckpt_path=last", wandb=True)
    (runs / "run" / "third.ckpt").write_bytes(third)
    start = f"--ckpt_path={runs / 'run' / 'third.ckpt'}"
    record = fit(*TINY, CSV, "--trainer.max_steps=6", start, wandb=True)
    for metric in ("train/loss", "val/acc"):
        assert [step for step, _ in points(lines(record), metric)] == [2, 4, 6]
        assert points(lines(record), metric) == points(record.metrics(), metric)


def test_an_evaluation_leaves_the_files_of_a_running_fit_alone(
    fit: Cli, evaluate: Cli, runs: Path
) -> None:
    record = fit(*TINY, CSV, wandb=True)
    before = (record.path / "csv" / "metrics.csv").read_bytes()
    file = record.path / "record.json"
    finished = file.read_text()
    file.write_text(json.dumps(json.loads(finished) | {"status": "running"}))
    evaluate("test")
    assert (record.path / "csv" / "metrics.csv").read_bytes() == before
    file.write_text(finished)
    record = evaluate("test")
    assert points(lines(record), "test/acc") == points(record.metrics(), "test/acc")


def test_a_missing_tensorboard_is_said_before_anything_is_written(
    synthetic: list[str],
    runs: Path,
    error_of: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_loggers, "find_spec", lambda name: None)
    said = error_of(["fit", *TINY, *synthetic, TENSORBOARD, f"--runs_dir={runs}"])
    assert "RunTensorBoardLogger needs tensorboard: pip install tensorboard" in said
    assert not runs.exists()
