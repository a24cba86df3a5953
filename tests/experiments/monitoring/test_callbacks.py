import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytorch_lightning import Trainer
from tqdm import tqdm

from cli import main
from datamodules import CIFAR10DataModule
from experiments.analysis import plots
from experiments.monitoring import progress
from experiments.monitoring.callbacks import write_predictions
from experiments.monitoring.progress import RunProgressBar, TrainMonitor
from experiments.records.record import RunRecord
from lightning_modules import MLP
from tests.chaos import PICTURES, draw_a_dot
from tests.conftest import IMAGES, SHORT, Cli

TINY = ["--model=MLP", "--model.hidden_units=[2]"]


def test_without_a_terminal_each_validation_is_a_line(
    synthetic: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [flag for flag in SHORT if "progress_bar" not in flag]
    main(["fit", *TINY, *short, *synthetic, "--trainer.logger=false", f"--runs_dir={runs}"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert all(
        re.search(r"val 0\.\d+  loss \d\S+  acc 0\.\d+  img/s [\d,.]+$", line) for line in lines
    )


def test_on_a_terminal_there_is_a_bar(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps this quick would not be drawn one by one.
    eager = {"mininterval": 0.0, "miniters": 1}
    monkeypatch.setattr(progress, "tqdm", lambda **kwargs: tqdm(**{**kwargs, **eager}))
    data = CIFAR10DataModule(
        str(data_dir), "synthetic", batch_size=50, val_size=100, synthetic_images=IMAGES
    )
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RunProgressBar(stream_is_terminal=True), TrainMonitor()],
        log_every_n_steps=2,
    )
    model = MLP(hidden_units=[2])
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    shown = capsys.readouterr().err
    assert re.search(r"fit 3/4 .*loss \d\S+  acc 0\.\d+  img/s [\d,]+", shown)
    assert re.search(r"fit 4/4 ", shown)
    assert re.search(r"test 1/1 ", shown)
    assert not re.search(r"^step ", shown, re.MULTILINE)


def write(path: Path, labels: list[str | None]) -> list[list[str]]:
    probabilities = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)
    write_predictions(path, ["a,1.png", "b.png"], labels, probabilities, ["cat", "dog"])
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_predictions_of_known_images_have_their_label(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv", ["dog", "dog"]) == [
        ["file", "label", "prediction", "confidence", "cat", "dog"],
        ["a,1.png", "dog", "dog", "0.750000", "0.250000", "0.750000"],
        ["b.png", "dog", "cat", "1.000000", "1.000000", "0.000000"],
    ]


def test_predictions_of_other_images_have_none(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv", [None, None])[0] == [
        "file",
        "prediction",
        "confidence",
        "cat",
        "dog",
    ]


def test_throughput_counts_every_image(fit: Cli) -> None:
    record: RunRecord = fit(*TINY, "--trainer.max_steps=5")
    summary = record.summary
    assert summary["train/images_per_s"] * summary["train/seconds"] == pytest.approx(250, rel=0.2)


def restored(cell: str) -> str:
    """The name that a cell of predictions.csv stands for, as `write_predictions` describes it."""
    written = cell.removeprefix("'")
    return re.sub(
        r"\\(?:\\|[tnr]|x..|u.{4}|U.{8})",
        lambda found: found[0].encode().decode("unicode_escape"),
        written,
    )


NAMES = [
    "cat.png",
    "größe ✓.png",
    '=HYPERLINK("http://there","cat").png',
    "+1.png",
    "-1.png",
    "@SUM(A1).png",
    "'quoted.png",
    "\t=1.png",
    "\r=1.png",
    "a\n=1.png",
    "\x1b[2Jcat.png",
    "a;=1+1;.png",
    r"a\n\x3b.png",
    "\uff1d1.png",
    "\u202egnp.exe",
    os.fsdecode(b"gr\xf6.png"),
    "deep/=1.png",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_neither_formula_nor_command_and_can_be_had_back(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, [name], [name], np.ones((1, 2)), [name, "dog"])
    text = path.read_text(encoding="utf-8")
    header, row = csv.reader(io.StringIO(text, newline=""))
    for cell in (row[0], row[1], row[2], header[4]):
        assert cell.isprintable()
        assert not cell.startswith(("=", "+", "-", "@", "\uff1d"))
        assert restored(cell) == name
    assert not re.search(r";|\n.*\n.*\n", text)
    assert all(c.isprintable() or c in "\r\n" for c in text)


def test_plain_names_are_written_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, ["größe 1.png"], [None], np.ones((1, 1)), ["cat"])
    assert path.read_bytes().decode("utf-8").splitlines()[1] == "größe 1.png,cat,1.000000,1.000000"


def test_confusions_are_kept_as_counts(fit: Cli) -> None:
    record: RunRecord = fit(*TINY, "--test_after_fit=true")
    for stage in ("val", "test"):
        found = json.loads((record.path / f"confusion_{stage}.json").read_text())
        counts = np.array(found["counts"])
        per_class = record.summary[f"{stage}/per_class"]
        assert found["classes"] == [*per_class]
        assert counts.sum() == record.summary[f"{stage}/images"]
        assert plots.accuracy_per_class(counts) == pytest.approx([*per_class.values()])


def test_pictures_say_what_they_show_and_of_which_weights(
    fit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit may end after its last validation, and the best weights are older than the last."""
    titles: dict[str, str] = {}

    def note(*args: Any) -> None:
        (path,) = [arg for arg in args if isinstance(arg, Path)]
        titles[path.name] = next(arg for arg in args if isinstance(arg, str))
        draw_a_dot(path)

    for picture in PICTURES:
        monkeypatch.setattr(plots, picture, note)
    record: RunRecord = fit(*TINY, "--trainer.max_steps=5", "--test_after_fit=true")
    best = record.summary["best/step"]
    assert titles["confusion_val.png"].endswith("on validation images\nweights of step 4")
    assert titles["confusion_test.png"] == (
        f"Confusion matrix of run on test images\nweights of step {best} (best.ckpt)"
    )
    assert titles["mistakes_test.png"].startswith("Most confident mistakes of run on test images")
    assert f"\nweights of step {best} (best.ckpt); " in titles["mistakes_test.png"]
    assert titles["curves.png"] == "Loss and accuracy of run"
