import csv
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import datamodules.sources
from cli import main
from datamodules.files import CIFAR10, read_test
from datamodules.sources import make_synthetic
from datamodules.synthetic import label_names
from experiments.errors import RunError
from experiments.records.record import RunRecord
from lightning_modules import MLP
from tests.conftest import IMAGES, Cli, draw_nothing, mark_slow, short_fit

MODELS = {
    "MLP": ["--model=MLP", "--model.hidden_units=[8]"],
    "NumPyMLP": ["--model=NumPyMLP", "--model.hidden_units=[8]"],
    # SGD has no state, so that the checkpoints of 11 million weights are small.
    "CNN": [
        "--model=CNN",
        "--model.optimizer=SGD",
        "--data.batch_size=4",
        "--data.eval_batch_size=5",
        "--trainer.limit_val_batches=2",
        "--trainer.limit_test_batches=2",
        "--trainer.limit_predict_batches=2",
    ],
}
TINY = MODELS["MLP"]
Shell = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Trained:
    """A run as its fit, ended by a test, left it."""

    record: RunRecord
    entries: list[dict[str, Any]]
    files: set[str]


@pytest.fixture(scope="session", params=MODELS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> Trained:
    args = [*MODELS[request.param], "--test_after_fit=true"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param != "MLP":  # one that really draws is enough
            draw_nothing(monkeypatch)
        record = short_fit(tmp_path_factory.mktemp("trained"), data_dir, *args, name=request.param)
    files = {path.name for path in record.path.iterdir()}
    return Trained(record, list(record.metrics()), files)


def arguments(run: Trained, *args: str) -> list[str]:
    return [f"--name={run.record.name}", f"--runs_dir={run.record.path.parent}", *args]


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def step(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


# ---- what a fit leaves ---------------------------------------------------------------------------


def test_fit_keeps_everything_in_the_runs_folder(trained: Trained) -> None:
    kept = {"config.yaml", "record.json", "metrics.jsonl", "best.ckpt", "last.ckpt"}
    kept |= {"previous.ckpt", ".lock", ".record.lock"}
    drawn = {"curves.png", "confusion_val.png", "confusion_test.png", "mistakes_test.png"}
    counted = {"confusion_val.json", "confusion_test.json"}
    assert trained.files == kept | drawn | counted


def test_record_says_what_ran_where_and_how_it_ended(trained: Trained) -> None:
    record = json.loads((trained.record.path / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["model"] == record["name"]
    assert (record["optimizer"], record["lr"]) == ("SGD", 1e-4 if record["name"] == "CNN" else 1e-3)
    assert (record["seed"], record["data"]) == (42, "synthetic")
    assert record["images"] == {"train": 5 * IMAGES - 100, "val": 100, "test": IMAGES}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"commit", "dirty"} == record["git"].keys()
    assert {"cpu", "instructions", "cores", "threads", "gpus"} < record["hardware"].keys()
    assert record["command"].startswith("cli.py")
    assert record["started"] <= record["ended"]


def test_metrics_are_logged_at_the_right_steps(trained: Trained) -> None:
    at = {
        stage: [entry["step"] for entry in trained.entries if f"{stage}/loss" in entry]
        for stage in ("train", "val", "test")
    }
    assert at == {"train": [2, 4], "val": [2, 4], "test": [step(trained.record.path / "best.ckpt")]}


def test_summary_holds_the_best_validation(trained: Trained) -> None:
    validations = [entry for entry in trained.entries if "val/acc" in entry]
    best = max(validations, key=lambda entry: float(entry["val/acc"]))  # the first of equals
    summary = trained.record.summary
    assert (summary["best/val/acc"], summary["best/step"]) == (best["val/acc"], best["step"])
    assert step(trained.record.path / "best.ckpt") == best["step"]
    assert summary["train/steps"] == 4


# ---- evaluations of a run ------------------------------------------------------------------------


def test_test_gives_the_figure_of_the_test_after_fit(trained: Trained) -> None:
    main(["test", *arguments(trained)])
    record = RunRecord.open(trained.record.path)
    for metric in ("test/acc", "test/loss"):
        assert record.summary[metric] == trained.record.summary[metric]


@pytest.mark.pictures
def test_validate_gives_the_best_validation_of_the_fit(trained: Trained) -> None:
    main(["validate", *arguments(trained)])
    record, before = RunRecord.open(trained.record.path), trained.record.summary
    last = list(record.metrics())[-1]
    assert (last["step"], last["validate/acc"]) == (before["best/step"], before["best/val/acc"])
    for metric in ("val/acc", "val/loss", "val/per_class"):  # the fit's, of its last step
        assert record.summary[metric] == before[metric]
    assert (record.path / "confusion_validate.png").is_file()


def test_predict_writes_a_row_per_test_image(trained: Trained) -> None:
    main(["predict", *arguments(trained)])
    with (trained.record.path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = label_names(CIFAR10)
    assert len(rows) == (10 if trained.record.name == "CNN" else IMAGES)
    assert list(rows[0]) == ["file", "label", "prediction", "confidence", *names]
    for row in rows:
        probabilities = [float(row[name]) for name in names]
        assert row["file"].startswith(row["label"])
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == float(row[row["prediction"]]) == max(probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["MLP"], indirect=True)
def test_a_new_process_gives_the_same_figure(trained: Trained, shell: Shell) -> None:
    done = shell("test", *arguments(trained))
    assert done.returncode == 0, done.stderr
    again = RunRecord.open(trained.record.path).summary
    assert again["test/acc"] == trained.record.summary["test/acc"]
    assert again["test/loss"] == trained.record.summary["test/loss"]
    assert "test done" in done.stdout


def test_an_evaluation_leaves_the_status_of_the_run(fit: Cli, evaluate: Cli) -> None:
    record = fit(*TINY)
    record.fields["status"] = "interrupted"
    record.save()
    assert evaluate("test").fields["status"] == "interrupted"


# ---- reproducibility -----------------------------------------------------------------------------


def test_same_command_same_weights(fit: Cli) -> None:
    first, second = fit(*TINY, name="a"), fit(*TINY, name="b")
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = weights(first.path / name), weights(second.path / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    other = weights(fit(*TINY, "--seed_everything=7", name="c").path / "last.ckpt")
    assert not torch.equal(ours["layers.1.weight"], other["layers.1.weight"])


# ---- checkpoints ---------------------------------------------------------------------------------


def test_best_is_the_best_and_last_the_last(fit: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse_each_time(self: MLP) -> None:
        self.log_dict({"val/loss": 1.0, "val/acc": 1.0 / self.global_step})

    monkeypatch.setattr(MLP, "on_validation_epoch_end", worse_each_time)
    record = fit(*TINY, "--trainer.max_steps=5")
    assert (step(record.path / "best.ckpt"), step(record.path / "last.ckpt")) == (2, 5)
    assert record.summary["best/step"] == 2


def test_without_validation_the_last_checkpoint_is_tested(
    fit: Cli, evaluate: Cli, capsys: pytest.CaptureFixture[str], error_of: Callable[..., str]
) -> None:
    record = fit(*TINY, "--data.val_size=0", "--trainer.max_steps=5", "--test_after_fit=true")
    assert [path.name for path in record.path.glob("*.ckpt")] == ["last.ckpt"]
    assert record.summary["test/checkpoint"] == "last.ckpt"
    assert "--ckpt_path last" in capsys.readouterr().out.splitlines()[-1]
    again = evaluate("test", "--ckpt_path=last").summary
    assert again["test/loss"] == record.summary["test/loss"]
    asked = ["test", "--name=run", f"--runs_dir={record.path.parent}"]
    assert "no checkpoint best.ckpt: it has last" in error_of([*asked, "--ckpt_path=best"])


def test_resuming_goes_on_and_keeps_the_best(fit: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse_each_time(self: MLP) -> None:
        self.log_dict({"val/loss": 1.0, "val/acc": 1.0 / self.global_step})

    monkeypatch.setattr(MLP, "on_validation_epoch_end", worse_each_time)
    fit(*TINY)
    record = fit(*TINY, "--ckpt_path=last", "--trainer.max_steps=8")
    steps = [entry["step"] for entry in record.metrics() if "train/loss" in entry]
    assert steps == [2, 4, 6, 8]
    assert (step(record.path / "best.ckpt"), step(record.path / "last.ckpt")) == (2, 8)
    assert (record.summary["best/step"], record.summary["best/val/acc"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("kind", "stop"),  # within, at the end of and just after an epoch
    mark_slow([("MLP", 4), ("MLP", 18), ("MLP", 20), ("NumPyMLP", 18)], except_for=[("MLP", 20)]),
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    kind: str, stop: int, fit: Cli, recwarn: pytest.WarningsRecorder
) -> None:
    model = [*MODELS[kind], "--model.optimizer=Adam", "--model.lr_scheduler=CosineAnnealingLR"]
    model += ["--model.lr_scheduler.T_max=40", "--data.batch_size=50"]
    whole = fit(*model, "--trainer.max_steps=22", name="whole")
    fit(*model, f"--trainer.max_steps={stop}", name="parts")
    parts = fit(*model, "--trainer.max_steps=22", "--ckpt_path=last", name="parts")
    expected = weights(whole.path / "last.ckpt")
    for key, value in weights(parts.path / "last.ckpt").items():
        assert torch.equal(value, expected[key]), key
    assert not [w for w in recwarn if "resum" in str(w.message)]


def test_a_diverged_training_fails_and_keeps_what_was_good(
    fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(*TINY)
    with pytest.raises(SystemExit) as failure:
        fit(*TINY, "--ckpt_path=last", "--trainer.max_steps=8", "--model.lr=1e30")
    assert re.search(
        r"error: train/loss is \S+ at step 6 \(epoch 0, batch 5\): .*diverged",
        str(failure.value.code),
    )
    record = RunRecord.open(runs / "run")
    assert record.fields["status"] == "failed"
    assert step(record.path / "last.ckpt") == 4
    assert (record.path / "best.ckpt").is_file()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_weights_of_another_type_train_and_test(precision: str, fit: Cli) -> None:
    record = fit(*TINY, f"--trainer.precision={precision}", "--test_after_fit=true")
    assert record.summary["test/loss"] < 10


def test_what_was_made_with_the_weights_before_does_not_stay(fit: Cli, runs: Path) -> None:
    path = fit(*TINY, "--test_after_fit=true").path
    main(["predict", f"--runs_dir={runs}", "--name=run"])
    (path / "confusion_test.png").touch()
    again = ["--ckpt_path=last", "--trainer.max_steps=6", "--test_after_fit=false"]
    record = fit(*TINY, *again)
    assert not {"predictions.csv", "confusion_test.png"} & {p.name for p in path.iterdir()}
    assert "test/acc" not in record.summary
    assert len(record.fields["resumed"]) == 1


def test_one_batch_is_not_all_of_them(fit: Cli) -> None:
    one = [f"--trainer.limit_{stage}_batches=1" for stage in ("val", "test")]
    record = fit(*TINY, *one, "--data.eval_batch_size=20", "--test_after_fit=true")
    assert (record.summary["val/images"], record.summary["test/images"]) == (20, 20)


def test_a_run_goes_on_by_its_name_alone(fit: Cli, runs: Path) -> None:
    before = fit(*TINY, "--model.lr=0.01")
    main(["fit", f"--runs_dir={runs}", "--name=run", "--ckpt_path=last", "--trainer.max_steps=6"])
    record = RunRecord.open(before.path)
    assert (record.summary["train/steps"], record.fields["lr"]) == (6, 0.01)
    assert record.summary["train/seconds"] > before.summary["train/seconds"]  # of both together


@pytest.mark.parametrize(
    "schedule",
    mark_slow(
        [[], ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=100"]], except_for=[[]]
    ),
)
def test_a_flag_beats_the_checkpoint(fit: Cli, schedule: list[str]) -> None:
    start = fit(*TINY, *schedule, name="a").path / "last.ckpt"
    flags = ["--model.lr=0.5", "--trainer.max_steps=6", f"--ckpt_path={start}"]
    record = fit(*TINY, *schedule, *flags, name="b")
    assert [entry["lr"] for entry in record.metrics() if "lr" in entry] == [0.5]
    moved = (
        weights(record.path / "last.ckpt")["layers.1.weight"] - weights(start)["layers.1.weight"]
    )
    same = fit(*TINY, *schedule, *flags[1:], name="c").path / "last.ckpt"
    slow = weights(same)["layers.1.weight"] - weights(start)["layers.1.weight"]
    assert moved.norm() > 100 * slow.norm()


def test_a_run_started_from_another_is_evaluated_by_its_own_weights(
    fit: Cli, evaluate: Cli
) -> None:
    start = fit(*TINY, name="a").path / "last.ckpt"
    fit(*TINY, "--trainer.max_steps=6", f"--ckpt_path={start}", name="b")
    entries = list(evaluate("test", "--ckpt_path=last", name="b").metrics())
    assert entries[-1]["step"] == 6
    assert list(evaluate("test", name="b").metrics())[-1]["step"] > 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["--model=CNN"], r"class MLP, but CNN is asked for"),
        (["--model=MLP", "--model.hidden_units=[7]"], r"layers\.1\.weight is \(8, 3072\) there"),
        (["--model=MLP", "--model.hidden_units=[8]", "--model.norm=layer"], r"layers\.2\.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    other: list[str],
    message: str,
    fit: Cli,
    synthetic: list[str],
    error_of: Callable[[list[str]], str],
) -> None:
    checkpoint = fit(*TINY).path / "last.ckpt"
    asked = [f"--ckpt_path={checkpoint}", "--trainer.logger=false"]
    assert re.search(message, error_of(["test", *other, *synthetic, *asked]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.optimizer=Adam", "optimizer SGD, but Adam is asked for"),
        ("--model.lr_scheduler=ExponentialLR", "schedule none, but ExponentialLR(gamma=0.9)"),
        ("--data.normalization=channel", "trained with normalization mean_image, but channel"),
    ],
)
def test_going_on_with_another_training_is_refused(
    change: str, message: str, fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    start = fit(*TINY, name="a").path / "last.ckpt"
    gamma = ["--model.lr_scheduler.gamma=0.9"] if "Exponential" in change else []
    with pytest.raises(SystemExit):
        fit(*TINY, change, *gamma, f"--ckpt_path={start}", name="b")
    assert message in capsys.readouterr().err
    assert not (start.parent.parent / "b").exists()


# ---- names and folders ---------------------------------------------------------------------------


def test_a_run_is_only_replaced_when_asked_for(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(*TINY)
    with pytest.raises(SystemExit):
        fit(*TINY)
    assert "exists: resume it with --resume" in capsys.readouterr().err
    (first.path / "stale").touch()
    second = fit(*TINY, "--overwrite=true", "--seed_everything=7")
    assert second.fields["seed"] == 7
    assert not (second.path / "stale").exists()


def test_overwrite_spares_a_folder_that_is_no_run(
    fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = runs / "run" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(SystemExit):
        fit(*TINY, "--overwrite=true")
    assert "not a run of this project" in capsys.readouterr().err
    assert precious.read_text() == "precious"


def test_a_run_without_a_name_gets_one(synthetic: list[str], runs: Path) -> None:
    flags = ["--trainer.max_steps=1", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    for _ in range(2):
        main(["fit", *TINY, *synthetic, *flags, f"--runs_dir={runs}"])
    names = sorted(path.name for path in runs.iterdir())
    assert len(names) == 2
    what = "mlp-batch_size_50-hidden_units_8-limit_val_batches_0-max_steps_1-val_size_100"
    when = r"synthetic-s42-\d{8}-\d{6}(-2)?"
    assert all(re.fullmatch(rf"{what}-{when}", name) for name in names)


def test_the_runs_config_can_be_run_again(fit: Cli, runs: Path) -> None:
    first = fit(*TINY)
    main(["fit", f"--config={first.path / 'config.yaml'}", "--name=again"])
    ours, theirs = weights(first.path / "last.ckpt"), weights(runs / "again" / "last.ckpt")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_fast_dev_run_works_and_keeps_nothing(fit: Cli, runs: Path) -> None:
    with pytest.raises(RunError, match="no run"):  # for the fixture to return
        fit(*TINY, "--trainer.fast_dev_run=true", "--test_after_fit=true")
    assert not runs.exists()


# ---- short forms and help ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [["--model.lr", "0.25"], ["--model.lr=0.25"]])
def test_model_lr_is_the_optimizers(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--model=MLP", "--model.optimizer=Adam", *form, "--print_config"])
    assert done.value.code == 0
    assert re.search(
        r"class_path: torch.optim.Adam\s+init_args:\s+lr: 0.25", capsys.readouterr().out
    )


def test_help_fits_a_few_screens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert len(text.splitlines()) < 220
    for mentioned in ("--model.help", "--help_all", "--name", "--trainer.max_steps"):
        assert mentioned in text
    assert "--trainer.detect_anomaly" not in text


def test_help_all_has_every_option_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", "--help_all"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    for option in ("detect_anomaly", "gradient_clip_val", "limit_train_batches", "max_steps"):
        assert f"--trainer.{option}" in text


@pytest.mark.parametrize("args", [["--help"], ["fit", "--model.help=CNN"], ["fit", "--data.help"]])
def test_other_help_ends_well(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(args)
    assert done.value.code == 0
    assert capsys.readouterr().out


# ---- prediction ----------------------------------------------------------------------------------


def test_a_folder_is_predicted_without_the_data_set(
    fit: Cli, evaluate: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_set = read_test(make_synthetic(tmp_path / "data", 10))
    pictures, nothing = tmp_path / "pictures", tmp_path / "nothing"
    pictures.mkdir()
    for i, image in enumerate(test_set.images):
        Image.fromarray(image.transpose(1, 2, 0)).save(pictures / f"{i}.png")
    flags = [f"--data.data_dir={tmp_path / 'data'}", "--data.synthetic_images=10"]
    fit(*TINY, *flags, "--data.batch_size=8", "--data.val_size=10")
    with (evaluate("predict").path / "predictions.csv").open(newline="") as file:
        known = list(csv.reader(file))

    def forbidden(*args: Any) -> None:
        raise AssertionError("the data set was asked for")

    for name in ("make_synthetic", "find_official", "download_official"):
        monkeypatch.setattr(datamodules.sources, name, forbidden)
    flags = [f"--data.data_dir={nothing}", f"--data.predict_dir={pictures}"]
    with (evaluate("predict", *flags).path / "predictions-pictures.csv").open(newline="") as file:
        found = list(csv.reader(file))
    assert found[0] == ["file", "prediction", "confidence", *known[0][4:]]
    assert [row[0] for row in found[1:]] == [f"{i}.png" for i in range(10)]
    ours = np.array([row[2:] for row in found[1:]], dtype=float)
    theirs = np.array([row[3:] for row in known[1:]], dtype=float)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert not nothing.exists()


@pytest.mark.parametrize(
    ("word", "hint"),
    [("fti", "did you mean fit?"), ("swep", "did you mean sweep?"), ("x", "there are fit, vali")],
)
def test_an_unknown_command_is_one_line(word: str, hint: str, error_of: Callable[..., str]) -> None:
    assert error_of([word, "--config=mlp"]).startswith(f"no command '{word}': {hint}")
