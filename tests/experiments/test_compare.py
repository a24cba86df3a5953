import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from experiments.analysis import plots
from experiments.compare import main
from tests.conftest import PROJECT, short_fit

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 100},
    "model": {
        "class_path": "lightning_modules.MLP",
        "init_args": {
            "norm": "none",
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        },
    },
    "data": {"class_path": "datamodules.CIFAR10DataModule", "init_args": {"val_size": 5000}},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run's folder as a fit leaves it."""

    def make(
        name: str, acc: float | None = 0.5, seed: int = 0, norm: str = "none", **fields: Any
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = json.loads(json.dumps(CONFIG))
        config["seed_everything"] = seed
        config["model"]["init_args"]["norm"] = norm
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        record = {
            "name": name,
            "status": "finished",
            "seed": seed,
            "data": "cifar10",
            "git": {"commit": "a" * 40, "dirty": False},
            "versions": {"torch": "2.14.1"},
            "summary": {"test/acc": acc, "val/acc": acc},
            **fields,
        }
        (folder / "record.json").write_text(json.dumps(record))
        entries = [{"step": step, "val/acc": step / 200} for step in (50, 100, 75)]
        entries[-1]["val/acc"] = 0.1
        lines = [json.dumps({**e, "step": e["step"]}) for e in entries[:2]]
        lines.append(json.dumps({"step": 150, "val/acc": 0.1}))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def three_and_three(write: Write) -> None:
    for seed in range(3):
        write(f"plain-s{seed}", 0.50 + seed / 100, seed)
        write(f"batch-s{seed}", 0.55 + seed / 100 + (seed == 1) / 1000, seed, norm="batch")


@pytest.fixture
def output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*args: str) -> str:
        main([*args, f"--runs_dir={tmp_path / 'runs'}"])
        return capsys.readouterr().out

    return run


@pytest.fixture
def rows(output: Callable[..., str]) -> Callable[..., list[dict[str, Any]]]:
    def run(*args: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(output(*args, "--format=json"))["runs"]
        return found

    return run


Rows = Callable[..., list[dict[str, Any]]]


@pytest.mark.usefixtures("three_and_three")
def test_seeds_are_one_line_and_the_best_comes_first(rows: Rows) -> None:
    best, second = rows()
    assert (best["name"], best["test/acc n"], best["seeds"]) == ("batch", 3, "0 1 2")
    assert second["test/acc mean"] == pytest.approx(0.51)
    assert second["test/acc sd"] == pytest.approx(0.01)


@pytest.mark.usefixtures("three_and_three")
def test_best_and_last_of_the_curve_are_told_apart(rows: Rows) -> None:
    row = rows()[0]
    assert row["val/acc best mean"] == 0.5
    assert row["val/acc best step mean"] == 100
    assert row["val/acc last mean"] == pytest.approx(0.1)


@pytest.mark.usefixtures("three_and_three")
def test_only_what_differs_is_shown(rows: Rows) -> None:
    assert rows()[0]["model.norm"] == "batch"
    assert "trainer.max_steps" not in rows()[0]
    assert rows("--all")[0]["trainer.max_steps"] == 100


@pytest.mark.usefixtures("three_and_three")
def test_a_baseline_is_compared_in_pairs(rows: Rows) -> None:
    best, baseline = rows("--baseline=plain")
    assert best["difference test"] == "paired t"
    assert best["difference mean"] == pytest.approx(0.05 + 1 / 3000)
    assert best["difference low"] < best["difference mean"] < best["difference high"]
    assert best["difference p"] < 1e-3
    assert baseline["difference mean"] is None


NUMBERS = {"holm p", "family", "margin", "equivalence p", "equivalence holm p", "verdict"}


@pytest.fixture
def five_lines(write: Write) -> None:
    """Plain, nearly the same, noisy, and two that are better by much and by little."""
    noise = (0.0, 0.001, -0.001, 0.0005)
    gaps = {
        "same": [0.001, 0.0, 0.0005, 0.0],
        "noisy": [0.03, -0.02, 0.02, -0.01],
        "much": [0.05, 0.051, 0.05, 0.052],
        "little": [0.004, 0.005, 0.004, 0.0045],
    }
    for seed, part in enumerate(noise):
        write(f"plain-s{seed}", 0.5 + part, seed)
        for name, gap in gaps.items():
            write(f"{name}-s{seed}", 0.5 + part + gap[seed], seed, norm=name)


@pytest.mark.usefixtures("five_lines")
def test_each_line_has_a_verdict_of_its_family(rows: Rows, output: Callable[..., str]) -> None:
    found = {row["name"]: row for row in rows("--baseline=plain")}
    verdicts = {name: row["difference verdict"] for name, row in found.items()}
    expected = {"much": "better", "little": "better", "same": "equivalent", "noisy": "undecided"}
    assert verdicts == {**expected, "plain": None}
    assert {f"difference {part}" for part in NUMBERS} <= found["same"].keys()
    assert found["same"]["difference family"] == 4
    assert found["same"]["difference margin"] == 0.01
    assert found["much"]["difference holm p"] == pytest.approx(4 * found["much"]["difference p"])
    text = output("--baseline=plain")
    assert "difference to plain, p by Holm over 4" in text
    assert "+0.0044 (+0.0036 to +0.0051): better, but by less than 0.01, p = " in text
    assert ": equivalent within ±0.01, TOST p = " in text
    assert "+0.0050 (-0.0329 to +0.0429): undecided, paired t" in text
    assert "no difference" not in text


@pytest.mark.usefixtures("five_lines")
def test_lines_that_are_not_shown_count_in_the_correction(rows: Rows) -> None:
    whole, top = rows("--baseline=plain"), rows("--baseline=plain", "--top=2")
    assert top == whole[:2]
    assert top[0]["difference family"] == 4


@pytest.mark.usefixtures("five_lines")
def test_the_margin_can_be_set(rows: Rows, output: Callable[..., str]) -> None:
    found = {row["name"]: row for row in rows("--baseline=plain", "--margin=0.1")}
    assert found["noisy"]["difference verdict"] == "equivalent"
    assert "equivalent within ±0.1," in output("--baseline=plain", "--margin=0.1")


@pytest.mark.usefixtures("five_lines")
@pytest.mark.parametrize("baseline", [[], ["--baseline=plain"]])
def test_the_page_takes_a_margin_and_a_baseline_later(
    baseline: list[str], output: Callable[..., str]
) -> None:
    assert "packed-data" in output("--format=html", "--margin=0.1", *baseline)


def test_a_loss_is_better_lower_and_equivalent_by_a_margin_that_is_given(
    write: Write, rows: Rows
) -> None:
    for seed in range(4):
        write(f"plain-s{seed}", None, seed, summary={"test/loss": 1.5})
        write(f"low-s{seed}", None, seed, norm="low", summary={"test/loss": 1.0 + seed / 100})
        near = {"test/loss": 1.5 + (-1) ** seed / 100}
        write(f"near-s{seed}", None, seed, norm="near", summary=near)
    args = ("--metric=test/loss", "--baseline=plain")
    verdicts = {row["name"]: row["difference verdict"] for row in rows(*args)}
    assert verdicts == {"low": "better", "near": "undecided", "plain": None}
    verdicts = {row["name"]: row["difference verdict"] for row in rows(*args, "--margin=0.1")}
    assert verdicts == {"low": "better", "near": "equivalent", "plain": None}


@pytest.mark.parametrize("form", ["table", "md", "html", "json"])
def test_many_lines_of_one_test_set_are_warned_of(
    form: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in range(6):
        for seed in range(2):
            write(f"a{line}-s{seed}", 0.5 + (line + seed) / 100, seed, norm=f"{line}")
    said = "6 lines are compared on the same test images"
    main([f"--runs_dir={tmp_path / 'runs'}", f"--format={form}"])
    printed = capsys.readouterr()
    assert f"warning: {said}" in printed.err
    assert "about 0.0063 (1.27 standard errors) over seeds; choose by val/acc" in printed.err
    assert (said in printed.out) == (form != "table")
    main([f"--runs_dir={tmp_path / 'runs'}", "--metric=val/acc"])
    assert said not in capsys.readouterr().err


def test_a_single_seed_is_not_tested(write: Write, output: Callable[..., str]) -> None:
    write("a", 0.5)
    write("b", 0.6, norm="batch")
    assert "+0.1000, n too small to test (below 3)" in output("--baseline=a")


@pytest.mark.usefixtures("three_and_three")
@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_every_format_has_every_line(form: str, output: Callable[..., str], tmp_path: Path) -> None:
    text = output(f"--format={form}")
    assert "plain" in text
    assert "batch" in text
    assert ("0.5100" in text) == (form in {"table", "md", "html"})
    if form == "csv":
        (tmp_path / "t.csv").write_text(text)
        assert len(pd.read_csv(tmp_path / "t.csv")) == 2
    if form == "html":
        assert "<td>0.5100\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.0100</td>" in text


@pytest.mark.usefixtures("three_and_three")
def test_curves_are_drawn_and_part_of_the_page(tmp_path: Path, output: Callable[..., str]) -> None:
    picture, page = tmp_path / "curves.png", tmp_path / "page.html"
    output(f"--plot={picture}", "--format=html", f"--output={page}")
    assert picture.stat().st_size > 5000
    assert "data:image/png;base64," in page.read_text()


def test_a_smoothed_training_loss_is_drawn_on_an_axis_of_its_own(
    write: Write, tmp_path: Path, output: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"step": step, "train/loss": 2.0, "val/acc": 0.2} for step in (1, 2)]
    for name, smoothing in (("plain", 0.0), ("smoothed", 0.2), ("other", 0.0)):
        run = write(name)
        text = (
            f"model: {{class_path: MLP, init_args: {{norm: {name}, label_smoothing: {smoothing}}}}}"
        )
        (run / "config.yaml").write_text(text)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    for curve in ("train/loss", "val/acc"):
        output(f"--plot={tmp_path / 'curves.png'}", f"--curve={curve}")
    losses, accuracies = ([(a.get_ylabel(), len(a.get_lines())) for a in f.axes] for f in drawn)
    assert losses == [
        ("training cross-entropy (nats)", 2),
        ("training cross-entropy (nats), label smoothing 0.2", 1),
    ]
    assert accuracies == [("validation accuracy (share of images)", 3)]


def test_a_figure_says_that_it_leaves_lines_out(
    write: Write, tmp_path: Path, output: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in range(12):
        write(f"run{chr(97 + count)}")
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    output(f"--plot={tmp_path / 'curves.png'}", "--no_group")
    assert drawn[0].get_suptitle().endswith("over runs; the first 10 of 12 lines")


def test_broken_runs_are_shown(write: Write, rows: Rows, tmp_path: Path) -> None:
    write("whole")
    write("nan", None, status="failed", error="FloatingPointError('train/loss is nan at step 20')")
    write("truncated").joinpath("record.json").write_text('{"status": "fin')
    write("foreign").joinpath("record.json").write_text('{"loss": 1}')
    write("half").joinpath("metrics.jsonl").write_text('{"step": 1, "val/acc": 0.2}\n{"step": ')
    write("running", status="running")
    old = write("crashed", status="running")
    for file in old.iterdir():
        os.utime(file, (time.time() - 3600, time.time() - 3600))
    found = {row["name"]: row for row in rows("--no_group")}
    assert len(found) == 7
    assert found["nan"]["note"].startswith("FloatingPointError('train/loss is nan at step 20')")
    assert "can't be read" in found["truncated"]["note"]
    assert "is not of this project" in found["foreign"]["note"]
    assert found["half"]["note"] == "1 of 2 lines of metrics.jsonl can't be read"
    states = {name: row["status"] for name, row in found.items()}
    assert states["truncated"] == states["foreign"] == "unreadable"
    assert (states["running"], states["crashed"]) == ("running", "crashed")
    assert states["nan"] == "failed"


def test_what_makes_a_comparison_doubtful_is_said(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write("a")
    write("b", git={"commit": "b" * 40, "dirty": True}, data="synthetic")
    write("c", versions={"torch": "2.11.0"}, images={"train": 50_000, "val": 0, "test": 10_000})
    main([f"--runs_dir={tmp_path / 'runs'}"])
    found = capsys.readouterr().err
    assert "warning: runs differ in commit: aaaaaaa (2), bbbbbbb (1)" in found
    assert "warning: runs differ in data: cifar10 (2), synthetic (1)" in found
    assert "warning: runs differ in torch version: 2.14.1 (2), 2.11.0 (1)" in found
    assert "warning: 1 of 3 runs come from uncommitted changes" in found


def test_other_data_is_another_line(write: Write, rows: Rows) -> None:
    write("a-s0", data="cifar10")
    write("a-s1", data="synthetic", seed=1)
    assert len(rows()) == 2


@pytest.mark.usefixtures("three_and_three")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cnn*"], "nothing called cnn* in "),
        (["--baseline=cnn"], "no line called cnn to compare with; there are batch, plain"),
        (["/nowhere/at/all"], "there is no file or folder /nowhere/at/all"),
        (["--metric=test_curve/acc@x"], "no run has test_curve/acc@x; there are test/acc"),
        (["--metric=test/accuracy"], "no run has test/accuracy; there are test/acc, val/acc"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*args, f"--runs_dir={tmp_path / 'runs'}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.usefixtures("three_and_three")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--top=0"], "--top must be at least 1, got 0"),
        (["--baseline=plain", "--margin=0"], "--margin must be above 0, got 0"),
        (["--baseline=plain", "--margin=nan"], "--margin must be above 0, got nan"),
        (["--margin=0.1"], "--margin is for a comparison with a line: add --baseline NAME"),
        (["--plot=curves.jpgz"], "--plot draws PNG files"),
        (["empty"], "no runs: empty is no run and holds no runs"),
    ],
)
def test_what_is_asked_for_is_checked_first(
    args: list[str],
    message: str,
    output: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        output(*args)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("three_and_three")
def test_runs_here_are_none_of_another_folder(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    (tmp_path / "here").mkdir()
    write("mine").rename(tmp_path / "here" / "mine")
    monkeypatch.chdir(tmp_path)
    assert {row["name"] for row in rows()} == {"plain", "batch"}
    assert [row["name"] for row in rows("plain")] == ["plain"]  # a line's name


def test_a_run_without_the_metric_neither_chooses_nor_leads(
    write: Write, output: Callable[..., str], rows: Rows
) -> None:
    for seed in range(3):
        write(f"tested-s{seed}", 0.5, seed)
        write(f"other-s{seed}", summary={"train/acc": 0.9}, seed=seed, norm="batch")
    assert [row["name"] for row in rows()] == ["tested", "other"]
    assert "3 of 6 runs have no test/acc" in output("--format=md")


def test_accuracy_on_the_training_images_is_compared_with_a_warning(
    write: Write, output: Callable[..., str]
) -> None:
    write("a", summary={"train/acc": 0.9})
    assert "compared by train/acc: no run has an accuracy on validation" in output("--format=md")


def test_the_smallest_loss_comes_first(write: Write, rows: Rows) -> None:
    for loss in (2.0, 1.0, 3.0):
        write(f"loss-{loss}", summary={"test/loss": loss}, norm=str(loss))
    ordered = [row["test/loss mean"] for row in rows("--metric=test/loss")]
    assert ordered == [1.0, 2.0, 3.0]


def test_runs_on_other_data_are_told_apart_and_not_tested(
    write: Write, rows: Rows, output: Callable[..., str]
) -> None:
    for seed in range(3):
        write(f"real-s{seed}", 0.5, seed)
        write(f"made-s{seed}", 0.6, seed, norm="batch", data="synthetic")
    best, _ = rows("--baseline=real")
    assert (best["data found"], best["difference p"]) == ("synthetic", None)
    assert "+0.1000, on other data: not tested" in output("--baseline=real")


def test_equal_numbers_of_unlike_types_are_equal(write: Write, rows: Rows) -> None:
    one, other = write("a-s0"), write("a-s1", seed=1)
    add_to_config(one, "model.init_args.label_smoothing", 0.0)
    add_to_config(other, "model.init_args.label_smoothing", 0)  # as W&B writes it
    assert [row["runs"] for row in rows()] == [2]


@pytest.mark.usefixtures("three_and_three")
def test_patterns_with_folders_are_found_from_here(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for pattern in ("plain*", "runs/plain*", f"{tmp_path}/runs/plain*"):
        assert [row["runs"] for row in rows(pattern)] == [3], pattern


@pytest.mark.parametrize(
    "fields",
    [
        {"git": "abc"},
        {"git": {"commit": 5}},
        {"versions": [1]},
        {"seed": "zero"},
        {"images": 3},
        {"error": {"a": [1]}},
        {"wandb_id": [1]},
    ],
)
def test_a_foreign_field_is_shown_and_spoils_nothing_else(
    fields: dict[str, Any], write: Write, rows: Rows
) -> None:
    write("whole")
    folder = write("foreign", **fields)
    states = {row["name"]: row["status"] for row in rows("--no_group")}
    assert states == {"whole": "finished", "foreign": "unreadable"}
    assert {row["status"] for row in rows(str(folder.parent))} == {"finished", "unreadable"}


def test_strange_numbers_are_no_metrics(write: Write, rows: Rows) -> None:
    write("huge", summary={"test/acc": 10**400, "val/acc": 0.5})
    folder = write("lines")
    (folder / "metrics.jsonl").write_text("5\n" + (folder / "metrics.jsonl").read_text())
    assert {row["name"] for row in rows("--no_group")} == {"huge", "lines"}


def replaced(write: Write, name: str, file: str, content: str | bytes | None = None) -> Path:
    """Writes a run, and something else in the place of one of its files."""
    path = write(name) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_one_bad_run_spoils_no_other(write: Write, rows: Rows, tmp_path: Path) -> None:
    write("good")
    broken: dict[str, str | bytes] = {
        "deep": "[" * 200_000,
        "digits": f'{{"summary": {{"test/acc": {"9" * 5_000}}}}}',
        "bytes": b'{"summary": {}, "error": "\xff"}',
    }
    for name, content in broken.items():
        replaced(write, name, "record.json", content)
    os.mkfifo(replaced(write, "pipe", "record.json"))
    replaced(write, "device", "record.json").symlink_to("/dev/zero")
    replaced(write, "loop", "record.json").symlink_to("record.json")
    replaced(write, "folder", "record.json").mkdir()
    os.truncate(replaced(write, "huge", "record.json", "{}"), 10 * 2**30)
    (tmp_path / "runs" / "round").symlink_to("round")
    found = {row["name"]: row for row in rows("--no_group")}
    assert found.pop("good")["status"] == "finished"
    assert {row["status"] for row in found.values()} == {"unreadable"}
    reasons = {
        "deep": "nested too deeply",
        "digits": "Exceeds the limit",
        "bytes": "'utf-8' codec can't decode byte 0xff",
        "pipe": "it is a pipe",
        "device": "it is a device",
        "loop": "symbolic links",
        "folder": "it is a folder",
        "huge": "at most 4,194,304 are read",
    }
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found[name]["note"]


def test_a_run_with_a_bad_configuration_or_log_is_shown(
    write: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("good")
    aliases = ["a0: &a0 [x, x]"]
    aliases += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    for name, content in {
        "itself": "a: &a [*a]",
        "bomb": "\n".join(aliases),
        "list": "- a",
    }.items():
        replaced(write, name, "config.yaml", content)
    os.mkfifo(replaced(write, "pipe", "config.yaml"))
    os.mkfifo(replaced(write, "no log", "metrics.jsonl"))
    replaced(write, "long", "metrics.jsonl", '{"step": 1, "val/acc": 0.3}\n' * 5)
    monkeypatch.setattr("experiments.records.runs.MOST_ENTRIES", 4)
    os.truncate(replaced(write, "huge", "metrics.jsonl", ""), 10 * 2**30)
    found = {row["name"]: row for row in rows("--no_group")}
    assert {row["status"] for row in found.values()} == {"finished"}
    assert {row["test/acc mean"] for row in found.values()} == {0.5}
    reasons = {
        "itself": "config.yaml can't be read: an alias that contains itself",
        "bomb": "config.yaml can't be read: more than 10,000 values",
        "list": "config.yaml can't be read: no configuration",
        "pipe": "config.yaml can't be read: it is a pipe",
        "no log": "metrics.jsonl can't be read: it is a pipe, not a regular file; its curves are",
        "long": "it has more than 4 lines; its curves are left out",
        "huge": "at most 67,108,864 are read; its curves are left out",
    }
    for name, reason in reasons.items():
        assert reason in found[name]["note"]
        assert found[name]["val/acc best n"] == (name in {"itself", "bomb", "list", "pipe"})


def test_an_error_of_the_system_is_of_one_run(
    write: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("good")
    write("denied")
    write("broken")
    errors = {"denied": PermissionError(13, "Permission denied"), "broken": OSError(5, "I/O error")}
    known = os.open

    def refuse(path: str | Path, *args: Any, **kwargs: Any) -> int:
        if error := errors.get(Path(path).parent.name):
            raise error
        return known(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    notes = {row["name"]: row["note"] for row in rows("--no_group")}
    assert notes == {
        "good": "",
        "denied": "record.json can't be read: Permission denied",
        "broken": "record.json can't be read: I/O error",
    }


def test_hidden_runs_are_shown_and_leftovers_are_not(
    write: Write, rows: Rows, tmp_path: Path
) -> None:
    write(".hidden")
    write(".half.partial")
    (tmp_path / "runs" / ".locked").mkdir()
    (tmp_path / "runs" / ".locked" / ".lock").touch()
    assert [row["name"] for row in rows()] == [".hidden"]
    assert [row["name"] for row in rows(".hid*")] == [".hidden"]
    assert [row["name"] for row in rows(str(tmp_path / "runs"), "--no_group")][:1] == [".hidden"]


EVIL = "\x1b]0;x\x07\n=1<img src=x>|`q`![](http://e/)\u202e"


def evil_runs(write: Write) -> None:
    for place, value in enumerate(("<b>", "\x1b[31m")):
        fields = {"error": f"@SUM(1)\r\n{EVIL}", "status": "failed", "versions": {"torch": value}}
        folder = write(f"={place}{EVIL.replace('/', '')}", **fields)
        (folder / "config.yaml").write_text(
            yaml.safe_dump({f"+{EVIL}": value, "model": {"note": place, f"{EVIL}.status": value}})
        )


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_text_of_a_run_is_text_in_every_format(
    form: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil_runs(write)
    main([f"--runs_dir={tmp_path / 'runs'}", f"--format={form}", "--no_group"])
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not {*text} & {"\x1b", "\x07", "\r", "\u202e", "\x00"}
    assert len(printed.err.splitlines()) == 1  # of torch's versions
    if form in {"md", "html"}:
        assert "<img" not in printed.out
    if form == "md":
        assert not re.search(r"(?<!\\)[`]|!\[\]\(", printed.out)
    if form == "csv":
        cells = [cell for row in csv.reader(io.StringIO(printed.out)) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=+@\t\r\n]|-\D", cell)]
        assert "'@SUM(1)" in printed.out
    if form == "json":
        assert {row["note"] for row in json.loads(printed.out)["runs"]} == {f"@SUM(1)\r\n{EVIL}"}


def test_no_key_of_a_configuration_takes_the_place_of_a_column(
    write: Write, rows: Rows, output: Callable[..., str]
) -> None:
    for place in range(2):
        folder = write(f"run{place}", status="failed")
        keys = ("status", "note", "last", "n", "runs", "seeds", "test/acc", "data found")
        add_to_config(folder, "faked", dict.fromkeys(keys, f"fake{place}"))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config |= dict.fromkeys(keys, f"fake{place}")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for row in rows("--no_group"):
        shown = row["status"], row["note"], row["runs"], row["seeds"], row.get("data found")
        assert shown == ("failed", "", 1, "0", None)
        assert row["config status"].startswith("fake")
    head = output("--no_group").splitlines()[0].split("  ")
    assert [name.strip() for name in head].count("status") == 1


def test_errors_show_no_control_characters(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a\x1b[31m\nb")
    for args in (["none"], ["--baseline=none"], ["--metric=no\x07ne"]):
        with pytest.raises(SystemExit):
            main([*args, f"--runs_dir={tmp_path / 'runs'}"])
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert not {*line} & {"\x1b", "\x07"}


def test_figures_beyond_statistics_are_none(write: Write, rows: Rows) -> None:
    for seed in range(2):
        write(f"a-s{seed}", 1e308, seed)
    (row,) = rows()
    assert (row["runs"], row["test/acc n"]) == (2, 0)
    assert "test/acc is not finite" in row["note"]


def test_names_that_are_no_text_are_shown(
    write: Write, output: Callable[..., str], tmp_path: Path
) -> None:
    write("bytes").rename(tmp_path / "runs" / os.fsdecode(b"\xff"))
    write("half", error="\ud800")
    text = output("--no_group")
    assert r"\udcff" in text
    assert r"\ud800" in text


def test_a_folder_shows_runs_that_lost_their_record(write: Write, rows: Rows) -> None:
    write("whole")
    folder = write("lost")
    (folder / "record.json").unlink()
    found = {row["name"]: row["status"] for row in rows(str(folder.parent), "--no_group")}
    assert found == {"whole": "finished", "lost": "unreadable"}


def add_to_config(folder: Path, keys: str, value: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *above, last = keys.split(".")
    tree = config
    for key in above:
        tree = tree[key]
    tree[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_callbacks_that_train_make_another_experiment(write: Write, rows: Rows) -> None:
    watched, averaged = write("watched-s1", seed=1), write("averaged-s2", seed=2)
    write("plain-s0")
    probe = {"class_path": "experiments.CurveOnTest", "init_args": {"every_n_steps": 5}}
    averaging = {
        "class_path": "pytorch_lightning.callbacks.EMAWeightAveraging",
        "init_args": {"decay": 0.9},
    }
    add_to_config(watched, "trainer.callbacks", [probe])
    add_to_config(averaged, "trainer.callbacks", [probe, averaging])
    found = {row["seeds"]: row["trainer.callbacks"] for row in rows()}
    assert found == {"0 1": "", "2": '[{"EMAWeightAveraging": {"decay": 0.9}}]'}


def test_what_only_one_class_has_is_no_column_of_its_own(write: Write, rows: Rows) -> None:
    write("sgd")
    for name, betas in (("adam", [0.9, 0.999]), ("adam-other", [0.5, 0.999])):
        arguments = {"lr": 0.001, "amsgrad": False, "betas": betas}
        adam = {"class_path": "torch.optim.Adam", "init_args": arguments}
        add_to_config(write(name), "model.init_args.optimizer", adam)
    shown = {key for row in rows() for key in row if key.startswith("model.")}
    assert shown == {"model.optimizer", "model.optimizer.lr", "model.optimizer.betas"}


def test_the_curve_is_the_one_that_most_runs_have(write: Write, rows: Rows) -> None:
    write("only")
    for seed in range(2):
        folder = write(f"test-s{seed}", seed=seed, norm="batch")
        (folder / "metrics.jsonl").write_text('{"step": 5, "test_curve/acc": 0.3}\n')
    assert rows()[0]["test_curve/acc best n"] in {0, 2}


def test_runs_of_one_line_from_several_commits_are_named(
    write: Write, output: Callable[..., str]
) -> None:
    for seed in range(2):
        write(f"plain-s{seed}", seed=seed, git={"commit": f"{seed}" * 40, "dirty": False})
    assert "the runs of plain differ in commit: 0000000 (1), 1111111 (1)" in output("--format=md")


def test_repeats_of_a_seed_are_no_evidence(
    write: Write, rows: Rows, output: Callable[..., str]
) -> None:
    for copy in range(3):
        write(f"plain-s0-20261124-10000{copy}", 0.5)
        write(f"batch-s0-20261124-10000{copy}", 0.6, norm="batch")
    best, plain = rows("--baseline=plain")
    assert (best["test/acc mean"], plain["test/acc mean"]) == (0.6, 0.5)
    assert (best["runs"], best["test/acc n"], best["difference p"]) == (3, 1, None)
    assert "seed 0 ran more than once, counted once" in output("--format=md")


def test_a_tiny_p_value_is_not_rounded_away(write: Write, rows: Rows) -> None:
    for seed in range(5):
        write(f"plain-s{seed}", 0.1 + seed / 1e7, seed)
        write(f"batch-s{seed}", 0.9 - seed / 1e7, seed, norm="batch")
    best, _ = rows("--baseline=plain")
    assert 0 < best["difference p"] < 1e-15


def test_no_folder_of_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--runs_dir={tmp_path / 'none'}"])
    assert "is no folder; name another with --runs_dir" in capsys.readouterr().err


def test_neither_torch_nor_lightning_is_waited_for(three_and_three: None, tmp_path: Path) -> None:
    code = (
        "import sys; from experiments.compare import main; "
        f"main(['--runs_dir={tmp_path / 'runs'}']); "
        "assert not {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)


def test_real_runs_and_their_wandb_files_say_the_same(
    tmp_path: Path,
    data_dir: Path,
    output: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tmp_path / "runs"
    record = short_fit(runs, data_dir, "--model=MLP", "--test_after_fit=true", wandb=True)
    capsys.readouterr()
    (ours,) = json.loads(output("run", "--format=json"))["runs"]
    (theirs,) = json.loads(output(str(record.path / "wandb"), "--format=json"))["runs"]
    assert theirs["status"] == ours["status"] == "finished"
    assert theirs["test/acc mean"] == pytest.approx(ours["test/acc mean"])
    assert theirs["val/acc best mean"] == pytest.approx(ours["val/acc best mean"])
    assert theirs["val/acc best step mean"] == ours["val/acc best step mean"]
    assert theirs["seeds"] == ours["seeds"]
    both = json.loads(output("run", str(record.path / "wandb"), "--format=json"))["runs"]
    assert both == [ours]  # one run, not two


@pytest.mark.parametrize("content", [b"", b":W&B\xeb\xe1\x00", b"\x00" * 100])
def test_wandb_files_that_cant_be_read_are_shown(
    content: bytes, tmp_path: Path, rows: Rows
) -> None:
    folder = tmp_path / "wandb" / "offline-run-20261124_000000-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_bytes(content)
    (row,) = rows(str(tmp_path / "wandb"))
    assert row["status"] == "unreadable"
    assert "run-abc.wandb" in row["note"]


EPYC = {"cpu": "AMD EPYC", "cpu_family": 26, "cpu_model": 2, "cores": 2}


def spent(seconds: float, hardware: dict[str, Any] = EPYC) -> dict[str, Any]:
    """Fields of a run that took so many seconds for 4 TFLOP on this machine."""
    calibration = {"fp32_gflops": 200.0, "bf16_gflops": 800.0}
    summary = {"test/acc": 0.5, "train/seconds": seconds, "train/flops": 4e12}
    return {
        "parameters": 1000,
        "summary": {**summary, "train/images_per_s": 1e5 / seconds},
        "hardware": {**hardware, "calibration": calibration},
    }


def test_what_a_line_cost(write: Write, output: Callable[..., str], rows: Rows) -> None:
    for seed, seconds in enumerate((8.0, 12.0)):
        write(f"a-s{seed}", seed=seed, **spent(seconds))
    (row,) = rows()
    assert (row["parameters"], row["train/seconds"], row["train/flops"]) == (1000, 10, 4e12)
    assert row["share of peak"] == pytest.approx((4000 / 8 / 200 + 4000 / 12 / 200) / 2)
    assert row["machine"] == "AMD EPYC 26/2, 2 cores"
    text = output()
    assert "4 TFLOP" in text
    assert "AMD EPYC" not in text  # the same for all


def test_seconds_of_several_machines_are_not_ranked_without_a_word(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a", **spent(10))
    write("b", norm="batch", **spent(5, {**EPYC, "cpu_family": 25, "cpu_model": 17}))
    main(["--runs_dir", str(tmp_path / "runs"), "--metric", "train/seconds"])
    shown = capsys.readouterr()
    assert "differ in machine: AMD EPYC 26/2, 2 cores (1), AMD EPYC 25/17, 2 cores (1)" in shown.err
    assert "can't be compared" in shown.err
    lines = shown.out.splitlines()
    assert [line[0] for line in lines[1:3]] == ["b", "a"]  # the fastest first
    assert "25/17" in lines[1]


def test_a_closed_pipe_ends_without_a_traceback(write: Write, tmp_path: Path) -> None:
    for number in range(300):  # more text than a pipe holds
        write(f"run-{number}", note="x" * 300)
    command = f"{sys.executable} -m experiments.compare --no_group --runs_dir {tmp_path / 'runs'}"
    done = subprocess.run(
        f"{command} | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("name ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train/seconds", 5e-324),
        ("train/seconds", -4),
        ("train/flops", 10**19),
        ("train/steps", 1e-300),
    ],
)
@pytest.mark.parametrize("form", ["table", "json", "html"])
def test_figures_that_no_run_has_spoil_no_comparison(
    form: str, name: str, value: float, write: Write, output: Callable[..., str], tmp_path: Path
) -> None:
    fields = spent(10)
    write("good", **spent(10))
    write("odd", norm="batch", **{**fields, "summary": {**fields["summary"], name: value}})
    page = tmp_path / "page.html"
    text = output("--format", form, *(["--output", str(page)] if form == "html" else []))
    text = page.read_text() if form == "html" else text
    assert "odd" in text
    assert "inf%" not in text
    assert "Infinity" not in text.partition("<script")[0]


def test_a_curve_without_a_number_spoils_no_page(
    write: Write, output: Callable[..., str], tmp_path: Path
) -> None:
    folder = write("a")
    log = folder / "metrics.jsonl"
    log.write_text('{"step": 1, "val/acc": 0.5, "train/loss": null}\n{"val/loss": 1.0}\n')
    page = tmp_path / "page.html"
    output("--format", "html", "--output", str(page))
    assert page.read_text().startswith("<!doctype html>")


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "no such")
    with pytest.raises(SystemExit):
        main([missing])
    assert capsys.readouterr().err == f"error: no runs: there is no file or folder {missing}\n"


def test_a_baseline_may_be_named_without_its_seed(write: Write, rows: Rows) -> None:
    write("p-s0", acc=0.5)
    write("q-s0", acc=0.6, norm="batch")
    found = rows("--baseline", "p")
    assert found[0]["difference mean"] == pytest.approx(0.1)


def test_a_baseline_that_two_lines_have_is_refused(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("p-s0")
    write("p-s1", seed=1, norm="batch")
    with pytest.raises(SystemExit):
        main(["--runs_dir", str(tmp_path / "runs"), "--baseline", "p"])
    assert "2 lines are called p: name a run of the right one" in capsys.readouterr().err
