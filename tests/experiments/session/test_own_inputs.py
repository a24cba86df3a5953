"""A run notes the code of a user's own model and own pictures, and tells when they have changed."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cli import main
from experiments.records.record import RunRecord
from tests.conftest import Cli

CODE = """
from lightning_modules import MLP


class Edited(MLP):
    def forward(self, images):
        return {}super().forward(images)
"""
DATA = ["--data=ImageFolderDataModule", "--data.batch_size=4", "--data.val_size=4"]
LIMITS = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.val_check_interval=1"]


def test_figures_of_edited_code_are_kept_aside(
    fit: Cli, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "edited_model.py"
    module.write_text(CODE.format(""))
    monkeypatch.syspath_prepend(tmp_path)
    record = fit("--model=edited_model.Edited", "--model.hidden_units=[4]", "--test_after_fit=true")
    accuracy = record.summary["test/acc"]
    module.write_text(CODE.format("-"))
    sys.modules.pop("edited_model")
    main(["test", "--name=run", f"--runs_dir={runs}"])
    again = RunRecord.open(record.path)
    assert again.summary["test/acc"] == accuracy
    (aside,) = [e for e in again.evaluations.values() if "model_code" in e.get("differs", {})]
    assert aside["differs"]["model_code"][0] == record.fields["model_code"]


def test_other_pictures_are_a_change_of_a_resumed_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            picture = Image.new("RGB", (32, 32), (ord(name), number, 0))
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    words = ["--model=MLP", *DATA, f"--data.data_dir={tmp_path / 'pictures'}", *LIMITS]
    words += [f"--runs_dir={runs}", "--name=run"]
    main(["fit", *words, "--trainer.max_steps=2"])
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "pictures" / "a" / "0.png")
    capsys.readouterr()
    main(["fit", *words, "--trainer.max_steps=4", "--resume"])
    assert "the run continues with other settings: pictures " in capsys.readouterr().err
    assert "pictures" in RunRecord.open(runs / "run").fields["resumed"][-1]["changes"]
