import json
import re
import sys
from pathlib import Path

import pytest

from experiments.monitoring.summary import summary_table
from experiments.records.record import RunRecord


def record(path: Path, *files: str, **summary: object) -> RunRecord:
    images = {"train": 900, "val": 100, "test": 200}
    fields = {"data": "synthetic", "images": images, "summary": summary}
    path.mkdir(parents=True)
    (path / "record.json").write_text(json.dumps(fields))
    for name in files:
        (path / name).touch()
    return RunRecord.open(path)


def row(name: str, run: RunRecord, command: str = "fit") -> str | None:
    table = summary_table(run, command, 1.0, None).splitlines()
    rows = [line.split(maxsplit=1) for line in table[2:]]
    return next((value for key, value in rows if key == name), None)


def test_a_name_with_a_space_is_quoted(tmp_path: Path) -> None:
    run = record(tmp_path / "a b", "best.ckpt")
    assert f"cli.py test --name 'a b' --runs_dir {tmp_path}" in str(row("next", run))


def test_users_of_the_console_command_are_told_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cifar10", "fit"])
    assert str(row("next", record(tmp_path / "a", "best.ckpt"))).startswith("cifar10 test")


@pytest.mark.parametrize(
    ("command", "files", "summary", "following"),
    [
        ("fit", ["best.ckpt"], {}, "test"),
        ("test", ["best.ckpt"], {"test/acc": 0.5, "test/loss": 1.0}, "predict"),
        ("predict", ["best.ckpt"], {"test/acc": 0.5, "test/loss": 1.0}, None),
        ("fit", [], {}, None),
    ],
)
def test_next_is_what_is_still_to_be_done(
    command: str, files: list[str], summary: dict[str, float], following: str | None, tmp_path: Path
) -> None:
    said = row("next", record(tmp_path / "a", *files, **summary), command)
    assert said is None if following is None else f"cli.py {following} --name a" in str(said)


@pytest.mark.parametrize(("images", "part"), [(200, ""), (50, ", only 50 of 200 images")])
def test_a_test_of_some_images_says_so(images: int, part: str, tmp_path: Path) -> None:
    figures = {"test/acc": 0.5, "test/loss": 1.0, "test/images": images}
    run = record(tmp_path / "a", **figures, **{"test/checkpoint": "best.ckpt"})
    assert row("test", run, "test") == f"acc 0.5000, loss 1.0000 (best.ckpt{part})"


def test_a_huge_loss_is_short(tmp_path: Path) -> None:
    run = record(tmp_path / "a", **{"train/steps": 4, "train/acc": 0.1, "train/loss": 2e36})
    assert str(row("train", run)).startswith("acc 0.1000, loss 2e+36, 4 steps")


def test_the_folders_of_other_logs_are_named(tmp_path: Path) -> None:
    logs = [tmp_path / "a/tensorboard", tmp_path / "a/csv"]
    table = summary_table(record(tmp_path / "a"), "fit", 1.0, None, logs)
    assert re.search(rf"^  logs +{re.escape(f'{logs[0]}, {logs[1]}')}$", table, re.MULTILINE)
