"""``--init_from`` starts a new run with the weights of another, and with nothing else of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli import main
from datamodules.files import CIFAR100
from datamodules.sources import make_synthetic
from experiments.analysis.groups import group_runs
from experiments.checkpoints.loading import checkpoint_sha256
from experiments.records.record import RunRecord
from experiments.records.runs import read_run
from tests.conftest import Cli, short_fit

TINY = ["--model=MLP", "--model.hidden_units=[4]", "--model.norm=batch"]
STILL = "--model.lr=1e-30"  # too small to change a weight


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    return short_fit(root, data_dir, *TINY, "--model.lr=0.01", name="source").path


@pytest.fixture
def source(trained: Path, runs: Path) -> Path:
    return Path(shutil.copytree(trained, runs / "source"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(path)["state_dict"]
    return {name: value for name, value in content.items() if name.endswith("weight")}


@pytest.mark.parametrize("named", ["source", "{}/source", "{}/source/best.ckpt"])
def test_the_weights_come_from_there_and_the_rest_does_not(
    named: str, fit: Cli, runs: Path, source: Path
) -> None:
    record = fit(*TINY, STILL, f"--init_from={named.format(runs)}", name="new")
    found, expected = weights(record.path / "last.ckpt"), weights(source / "best.ckpt")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert record.summary["train/steps"] == 4
    assert (record.fields["lr"], record.fields["seed"]) == (1e-30, 42)
    start = record.fields["started_from"]
    assert start["weights_sha256"] == checkpoint_sha256(source / "best.ckpt")
    assert start["weights_only"]


def test_it_is_another_experiment_than_one_from_scratch(fit: Cli, source: Path) -> None:
    runs = [
        fit(*TINY, STILL, f"--init_from={source}", "--seed_everything=1", name="a").path,
        fit(*TINY, STILL, f"--init_from={source}", "--seed_everything=2", name="b").path,
        fit(*TINY, STILL, "--seed_everything=3", name="c").path,
    ]
    groups = group_runs([read_run(run) for run in runs], "val/acc", "val/acc")
    assert [sorted(run.name for run in group.runs) for group in groups] == [["a", "b"], ["c"]]


def test_it_goes_on_exactly(fit: Cli, source: Path) -> None:
    start = [*TINY, "--model.lr=0.01", f"--init_from={source}"]
    whole = fit(*start, "--trainer.max_steps=8", name="whole")
    fit(*start, "--trainer.max_steps=4", name="parts")
    parts = fit(*start, "--resume", "--trainer.max_steps=8", name="parts")
    hashes = {record.summary["train/weights_sha256"] for record in (whole, parts)}
    assert len(hashes) == 1
    assert parts.fields["started_from"] == whole.fields["started_from"]


def test_a_run_killed_before_its_first_checkpoint_begins_with_them_again(
    fit: Cli, source: Path
) -> None:
    start = [*TINY, "--model.lr=0.01", f"--init_from={source}"]
    whole = fit(*start, name="whole")
    for file in fit(*start, name="killed").path.glob("*.ckpt"):
        file.unlink()
    again = fit(*start, "--resume", "--overwrite=false", name="killed")
    assert again.summary["train/weights_sha256"] == whole.summary["train/weights_sha256"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_from=nothing"], "nothing is no checkpoint and no run"),
        (["--init_from=source", "--model.hidden_units=[5]"], "holds another MLP"),
        (["--init_from=source", "--data.normalization=channel"], "set --data.normalization mean_i"),
        (["--init_from=source", "--ckpt_path=x.ckpt"], "--init_from takes the weights alone"),
        (["--ckpt_path={}/source/last.ckpt"], "start a new run from its weights with --init_from"),
        (
            ["--ckpt_path={}/source/last.ckpt", "--model.optimizer=Adam"],
            "start a new run from its weights with --init_from",
        ),
    ],
)
def test_what_can_not_be_taken_is_one_line(
    flags: list[str],
    message: str,
    source: Path,
    runs: Path,
    synthetic: list[str],
    error_of: Callable[[list[str]], str],
) -> None:
    given = [flag.format(runs) for flag in flags]
    limits = ["--trainer.max_steps=4", f"--runs_dir={runs}", "--name=new"]
    assert message in error_of(["fit", *TINY, *synthetic, *limits, *given])
    assert not (runs / "new").exists()


def test_other_data_must_be_on_the_same_scale(
    source: Path, runs: Path, tmp_path: Path, error_of: Callable[[list[str]], str]
) -> None:
    for number in range(10):
        (folder := tmp_path / "pictures" / f"class {number}").mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{name}.png")
    data = ["--data=ImageFolderDataModule", f"--data.data_dir={tmp_path / 'pictures'}"]
    small = ["--data.batch_size=2", "--data.val_size=2", "--trainer.max_steps=1"]
    start = [f"--init_from={source}", f"--runs_dir={runs}", "--data.normalization=channel"]
    assert "set --data.normalization mean_image" in error_of(["fit", *TINY, *data, *small, *start])


def test_for_other_classes_the_last_layer_begins_anew(
    source: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_synthetic(tmp_path / "hundred", 200, CIFAR100)
    data = ["--data=CIFAR100DataModule", f"--data.data_dir={tmp_path / 'hundred'}"]
    data += ["--data.source=synthetic", "--data.synthetic_images=200", "--data.val_size=100"]
    flags = [f"--runs_dir={runs}", "--trainer.logger=false", "--trainer.max_steps=1", "--name=new"]
    main(["fit", *TINY, STILL, *data, "--data.batch_size=50", f"--init_from={source}", *flags])
    found, given = weights(runs / "new" / "last.ckpt"), weights(source / "best.ckpt")
    *before, head = given
    assert found[head].shape == (100, 4)
    for name in before:
        torch.testing.assert_close(found[name], given[name], rtol=0, atol=0)
    assert f"begin anew: {source / 'best.ckpt'} is for 10 classes" in capsys.readouterr().err
    started = RunRecord.open(runs / "new").fields["started_from"]
    assert started["weights_sha256"] == checkpoint_sha256(source / "best.ckpt")


def test_weights_of_other_classes_go_on_in_a_new_run_alone(
    source: Path, runs: Path, tmp_path: Path, error_of: Callable[[list[str]], str]
) -> None:
    make_synthetic(tmp_path / "hundred", 200, CIFAR100)
    data = ["--data=CIFAR100DataModule", f"--data.data_dir={tmp_path / 'hundred'}"]
    small = ["--data.source=synthetic", "--data.synthetic_images=200", "--data.val_size=100"]
    start = [f"--ckpt_path={source / 'best.ckpt'}", f"--runs_dir={runs}", "--trainer.logger=false"]
    line = error_of(["fit", *TINY, *data, *small, *start])
    assert "best.ckpt is for 10 classes, but the model asked for has 100: take data with 10" in line
    assert "or start a new run from it with --init_from" in line


def test_another_network_for_other_classes_names_its_weights(
    source: Path, runs: Path, tmp_path: Path, error_of: Callable[[list[str]], str]
) -> None:
    make_synthetic(tmp_path / "hundred", 200, CIFAR100)
    data = ["--data=CIFAR100DataModule", f"--data.data_dir={tmp_path / 'hundred'}"]
    data += ["--data.source=synthetic", "--data.synthetic_images=200", "--data.val_size=100"]
    wide = ["--model=MLP", "--model.hidden_units=[5]", "--model.norm=batch"]
    line = error_of(["fit", *wide, *data, f"--init_from={source}", f"--runs_dir={runs}"])
    assert "holds another MLP: layers." in line
