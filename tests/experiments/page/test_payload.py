import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare_page import make_runs
from experiments.analysis.groups import Group, group_runs
from experiments.page.payload import (
    Grouped,
    confusions,
    identify,
    lines_of,
    payload,
    run_fields,
    thinned,
)
from experiments.page.settings import differing, labels, readable
from experiments.records.runs import Run, read_run

STOPPING = {
    "class_path": "pytorch_lightning.callbacks.EarlyStopping",
    "init_args": {"patience": 1, "monitor": "val/acc"},
}


def compared(runs: list[Run]) -> Grouped:
    return Grouped(group_runs(runs, "test/acc", "val/acc"), "test/acc", "val/acc", ["a doubt"])


def test_a_nested_setting_is_a_line_of_its_own() -> None:
    found = readable({"trainer.callbacks": [STOPPING, STOPPING], "model.hidden_units": [200, 100]})
    assert found["trainer.callbacks.EarlyStopping.patience"] == 1
    assert found["trainer.callbacks.EarlyStopping#2.monitor"] == "val/acc"
    assert found["model.hidden_units"] == "200, 100"
    assert not any("{" in str(value) for value in found.values())
    assert labels(found)["trainer.callbacks.EarlyStopping.patience"] == "EarlyStopping.patience"


def test_other_nested_values_are_plain_too() -> None:
    config = {
        "a": {"b": {"c": None}},
        "d": [[1, 2], {"e": True}],
        "f": float("nan"),
        "g": [STOPPING],
    }
    found = readable(config)
    assert found["a.b.c"] is None
    assert found["d"] == "1, 2, e = true"
    assert found["f"] == "nan"
    assert found["g.EarlyStopping.patience"] == 1
    json.dumps(found, allow_nan=False)


def test_what_only_some_runs_have_differs_if_it_is_a_callback() -> None:
    settings: list[dict[str, Any]] = [
        {"trainer.callbacks.SWA": "yes", "trainer.callbacks.SWA.lr": 0.1, "a": 1, "model.beta": 2},
        {"a": 1.0},
        {},
    ]
    assert differing(settings) == ["trainer.callbacks.SWA"]


def test_labels_are_as_long_as_needed() -> None:
    keys = ["model.optimizer.lr", "model.schedule.lr", "model.norm", "norm"]
    assert labels(keys) == {
        "model.optimizer.lr": "optimizer.lr",
        "model.schedule.lr": "schedule.lr",
        "model.norm": "model.norm",
        "norm": "norm",
    }


def test_all_runs_are_there_with_lines_curves_and_scales(tmp_path: Path) -> None:
    make_runs(tmp_path, 7, points=4)
    runs = [read_run(path) for path in sorted(tmp_path.iterdir())]
    found = payload(compared(runs))
    assert sorted(found["order"]) == sorted(run.name for run in runs)
    assert set(found["lines"].values()) == {"made-0", "made-1"}
    assert found["warnings"] == ["a doubt"]
    assert "model.optimizer.lr" in found["differing"]
    assert "trainer.max_steps" not in found["differing"]
    first = next(run for run in found["runs"] if run["id"] == "made-0-s0")
    curve = first["curves"]["val/acc"]
    assert first["axes"][curve["axes"]]["step"] == [100, 200, 300, 400]
    assert curve["best"][1] == max(runs[0].curve("val/acc").values())
    assert curve["last"] == runs[0].curve("val/acc")[400]
    assert first["curves"]["val/loss"]["axes"] == curve["axes"]
    assert (first["images_per_step"], first["images_per_epoch"]) == (200, 45_000)
    assert first["flops_per_step"] == pytest.approx(3.1e14 / 400)
    json.dumps(found, allow_nan=False)


def test_the_page_knows_what_is_better_and_the_margins(tmp_path: Path) -> None:
    make_runs(tmp_path, 1, points=1)
    record = json.loads((tmp_path / "made-0-s0/record.json").read_text())
    record["summary"] |= {"val/error": 0.5, "other": 1.0}
    (tmp_path / "made-0-s0/record.json").write_text(json.dumps(record))
    found = payload(compared([read_run(tmp_path / "made-0-s0")]))
    better = {"test/acc": "higher", "val/error": "lower", "train/seconds": "lower"}
    assert better.items() <= found["better"].items()
    assert "other" not in found["better"]
    assert found["margins"] == {"test/acc": 0.01, "val/acc": 0.01}


def test_a_long_curve_keeps_its_ends() -> None:
    assert thinned(range(5)) == [0, 1, 2, 3, 4]
    kept = thinned(range(12_345))
    assert (len(kept), kept[0], kept[-1]) == (1000, 0, 12_344)
    assert kept == sorted(set(kept))


def test_runs_of_one_name_are_told_apart_for_good(tmp_path: Path) -> None:
    runs = [Run("a", tmp_path / place / "a", "finished") for place in "xyz"]
    first = identify(runs)
    assert len(set(first.values())) == 3
    assert first[runs[0].path] == "a"
    assert identify(runs[1:], first) == first


def test_lines_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        Run("a", tmp_path / str(i), "finished", config={"model.norm": str(i)}) for i in range(2)
    ]
    assert set(payload(compared(runs))["lines"].values()) == {"a", "a #2"}


def test_no_line_takes_the_name_of_another() -> None:
    names = ["a", "a #2", "a", "a", "a #2"]
    runs = [Run(str(i), Path(str(i)), "finished") for i in range(len(names))]
    groups = [Group(name, (run,), "m", "m") for name, run in zip(names, runs, strict=True)]
    found = [lines_of(groups)[run.path] for run in runs]
    assert found == ["a", "a #2", "a #3", "a #4", "a #2 #2"]


def test_settings_and_columns_of_one_name_stay_apart() -> None:
    assert readable({"status": 1, "n": 2, "model.n": 3}) == {
        "config status": 1,
        "config n": 2,
        "model.n": 3,
    }


@pytest.mark.parametrize("seed", [None, 3, 2**60 + 1])
def test_a_seed_keeps_all_its_digits(seed: int | None, tmp_path: Path) -> None:
    found = run_fields(Run("a", tmp_path, "finished", {"seed": seed}), "a")["seed"]
    assert found == (str(seed) if seed == 2**60 + 1 else seed)


def test_an_unreadable_run_is_there_with_its_note(tmp_path: Path) -> None:
    run = run_fields(Run("a\x1b[31m", tmp_path, "unreadable", note="gone\n"), "a")
    assert (run["status"], run["note"], run["curves"]) == ("unreadable", r"gone\n", {})


def test_steps_on_several_devices_have_more_images(tmp_path: Path) -> None:
    config = {"data.batch_size": 8, "trainer.devices": 4, "trainer.accumulate_grad_batches": 2}
    assert run_fields(Run("a", tmp_path, "finished", config=config), "a")["images_per_step"] == 64


def test_costs_are_figures(tmp_path: Path) -> None:
    hardware = {"cpu": "EPYC", "gpus": ["H100"], "threads": 2}
    fields = {"hardware": hardware, "parameters": 7, "summary": {"train/flops": 1e9}}
    found = run_fields(Run("a", tmp_path, "finished", fields=fields), "a")
    assert found["machine"]
    assert found["summary"] == {"parameters": 7, "train/flops": 1e9}
    assert run_fields(Run("a", tmp_path, "finished"), "a")["machine"] == ""


DAMAGED: list[Any] = [
    [],
    {"classes": ["a"], "counts": [[1, 2]]},
    {"classes": ["a", "b"], "counts": [[1, 2], [3, "<b>"]]},
    {"classes": ["a"], "counts": [[-1]]},
    {"classes": ["a"], "counts": [[True]]},
    {"classes": ["a"], "counts": [1]},
    {"classes": [], "counts": []},
    {"classes": 3, "counts": None},
]


@pytest.mark.parametrize("content", DAMAGED, ids=str)
def test_a_damaged_matrix_is_left_out(content: Any, tmp_path: Path) -> None:
    (tmp_path / "confusion_test.json").write_text(json.dumps(content))
    (tmp_path / "confusion_val.json").write_text('{"classes": ["a\\u001b"], "counts": [[3]]}')
    assert confusions(tmp_path) == {"validation": {"classes": [r"a\x1b"], "counts": [[3]]}}


def test_no_matrix_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "confusion_test.json")
    (tmp_path / "confusion_val.json").write_text("{")
    assert confusions(tmp_path) == {}
