import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import main
from experiments.checkpoints.evaluations import (
    Evaluation,
    confirmed,
    differences,
    in_run,
    set_aside_others,
)
from experiments.compare import main as compare
from experiments.errors import RunError
from experiments.records.files import file_identity
from experiments.records.record import RunRecord
from experiments.records.runs import flat
from lightning_modules import MLP
from tests.conftest import short_fit

TINY = ["--model=MLP", "--model.hidden_units=[4]"]


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs, `a` (tested) and `b`, that tests copy."""
    root = tmp_path_factory.mktemp("made")
    short_fit(root, data_dir, *TINY, "--test_after_fit=true", name="a")
    short_fit(root, data_dir, *TINY, "--seed_everything=1", name="b")
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


Do = Callable[..., RunRecord]


@pytest.fixture
def do(runs: Path) -> Do:
    """Runs a command on run `a`, or another, and returns its record."""

    def run(command: str, *args: str, name: str = "a") -> RunRecord:
        main([command, f"--runs_dir={runs}", f"--name={name}", *args])
        return RunRecord.open(runs / name)

    return run


def figures(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.summary.items() if key.startswith("test/")}


def weights(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


# ---- whose figure it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--ckpt_path={runs}/b/best.ckpt"], "weights"),
        (["--ckpt_path={runs}/a/previous.ckpt"], "weights"),
        (["--trainer.limit_test_batches=1", "--data.eval_batch_size=50"], "limit_test_batches"),
        (["--trainer.limit_test_batches=0.5", "--data.eval_batch_size=50"], "limit_test_batches"),
        (["--model.activation=relu"], "model.activation"),
        (["--trainer.precision=bf16-mixed"], "trainer.precision"),
    ],
)
def test_an_evaluation_of_something_else_is_kept_aside(
    flags: list[str], key: str, do: Do, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = RunRecord.open(runs / "a")
    picture, lines = (runs / "a" / "confusion_test.png").read_bytes(), [*before.metrics()]
    record = do("test", *(flag.format(runs=runs) for flag in flags))
    assert figures(record) == figures(before)
    assert [*record.metrics()] == lines
    assert (runs / "a" / "confusion_test.png").read_bytes() == picture
    (name,) = record.evaluations.keys() - before.evaluations.keys()
    kept = record.evaluations[name]
    assert any(key in found for found in kept["differs"])
    assert 0 <= kept["acc"] <= 1
    assert all((runs / "a" / f"confusion_{name}.{kind}").is_file() for kind in ("png", "json"))
    assert "not the run's own figures" in capsys.readouterr().out


def test_a_figure_says_what_gave_it(runs: Path) -> None:
    record = RunRecord.open(runs / "a")
    found = record.evaluations["test"]
    assert found["checkpoint"] == record.summary["test/checkpoint"] == "best.ckpt"
    assert found["images"] == record.summary["test/images"] == record.fields["images"]["test"]
    assert found["weights_sha256"] == record.fields["weights"]["best.ckpt"]
    assert found["step"] == weights(runs / "a" / "best.ckpt")["global_step"]
    assert found["differs"] == {}


def test_batches_of_another_size_and_no_logger_give_the_runs_own_figure(do: Do, runs: Path) -> None:
    before = figures(RunRecord.open(runs / "a"))
    again = do("test", "--data.eval_batch_size=30", "--trainer.limit_test_batches=1.0")
    assert figures(again)["test/acc"] == before["test/acc"]
    assert again.evaluations.keys() == {"test"}


def test_the_last_weights_give_the_runs_figures_where_none_are_of_the_best(
    do: Do, data_dir: Path, runs: Path
) -> None:
    short_fit(runs, data_dir, *TINY, "--trainer.max_steps=6", name="l")
    record = do("test", "--ckpt_path=last", name="l")
    assert record.summary["test/checkpoint"] == "last.ckpt"
    assert record.evaluations["test"]["weights_sha256"] == record.fields["weights"]["last.ckpt"]
    of_last = figures(record)
    record = do("test", name="l")
    assert record.summary["test/checkpoint"] == "best.ckpt"
    (aside,) = record.evaluations.keys() - {"test"}
    assert record.evaluations[aside]["acc"] == of_last["test/acc"]
    again = do("test", "--ckpt_path=last", name="l")
    assert figures(again) == figures(record)
    assert again.evaluations.keys() == record.evaluations.keys()


def test_predictions_of_the_last_weights_leave_those_of_the_best(
    do: Do, data_dir: Path, runs: Path
) -> None:
    short_fit(runs, data_dir, *TINY, "--trainer.max_steps=6", name="l")
    do("predict", name="l")
    of_best = (runs / "l" / "predictions.csv").read_bytes()
    record = do("predict", "--ckpt_path=last", name="l")
    assert (runs / "l" / "predictions.csv").read_bytes() == of_best
    (other,) = (key for key in record.evaluations if key.startswith("predictions-"))
    assert (runs / "l" / other).read_bytes() != of_best


def test_a_run_of_evaluations_keeps_other_weights_aside(do: Do, runs: Path) -> None:
    of_file = [f"--config={runs}/a/config.yaml", "--trainer.logger=false"]
    before = do("test", *of_file, f"--ckpt_path={runs}/a/best.ckpt", name="only")
    assert before.evaluations["test"]["checkpoint"] == str(runs / "a" / "best.ckpt")
    record = do("test", *of_file, f"--ckpt_path={runs}/b/best.ckpt", name="only")
    assert figures(record) == figures(before)
    (aside,) = record.evaluations.keys() - {"test"}
    assert record.evaluations[aside]["checkpoint"] == str(runs / "b" / "best.ckpt")


def test_weights_that_were_replaced_meanwhile_give_no_figure_of_the_run(runs: Path) -> None:
    record = RunRecord.open(runs / "a")
    best, sha256 = runs / "a" / "best.ckpt", record.fields["weights"]["best.ckpt"]
    opened = Evaluation("test", best, sha256, 4, identity=file_identity(best))
    assert confirmed(record, opened).belongs_to_run
    shutil.copy(runs / "b" / "best.ckpt", best)
    record.fields["weights"] = {"last.ckpt": sha256}  # the best ones by now
    record.save()
    assert confirmed(record, opened).belongs_to_run
    del record.fields["weights"]  # a fit goes on with it
    record.save()
    assert not confirmed(record, opened).belongs_to_run


@pytest.mark.parametrize("which", ["b/previous.ckpt", "a/best.ckpt"])
def test_other_weights_are_no_figure_of_a_run_that_has_none_yet(which: str, runs: Path) -> None:
    record = RunRecord.open(runs / "b")
    assert not record.evaluations
    for _ in range(2):
        found = in_run(record, Evaluation("test", runs / which, "0", 2))
        assert not found.belongs_to_run
        record.fields.pop("weights", None)  # as of a run that was killed


def test_what_is_aside_already_stays_where_it_is(runs: Path) -> None:
    record = RunRecord.open(runs / "a")
    old = {"differs": {"weights": "x"}, "weights_sha256": "0", "checkpoint": "x", "acc": 0.5}
    record.evaluations["test-1a2b3c4d"] = old
    set_aside_others(record)
    assert record.evaluations.keys() == {"test", "test-1a2b3c4d"}


def test_figures_are_aside_before_others_are_measured(
    do: Do, data_dir: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_fit(runs, data_dir, *TINY, "--trainer.max_steps=6", name="l")
    do("test", "--ckpt_path=last", name="l")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MLP, "test_step", killed)
    with pytest.raises(SystemExit):
        do("test", name="l")
    record = RunRecord.open(runs / "l")
    assert not figures(record)
    assert "test" not in record.evaluations


def test_a_class_of_the_same_name_is_another() -> None:
    own, ours = (
        {"model": {"class_path": f"{module}.MLP"}} for module in ("mynet", "lightning_modules")
    )
    assert (flat(own), flat(ours)) == ({"model": "mynet.MLP"}, {"model": "MLP"})
    assert differences("test", flat(ours), flat(own), 1) == {"model": ["mynet.MLP", "MLP"]}


@pytest.mark.parametrize(
    ("stage", "key", "counts"),
    [
        ("test", "model.label_smoothing", False),  # of the training alone
        ("test", "model.optimizer.lr", False),
        ("test", "data.normalization", True),
        ("test", "trainer.precision", True),
        ("validate", "data.val_size", True),
        ("validate", "data.split_seed", True),
        ("test", "data.val_size", False),
        ("test", "data.split_seed", False),
    ],
)
def test_settings_that_change_a_figure(stage: Any, key: str, counts: bool) -> None:
    assert differences(stage, {key: 1}, {key: 2}, 1) == ({key: [2, 1]} if counts else {})


@pytest.mark.parametrize(
    ("ours", "runs", "counts"),
    [(4, None, True), (5, None, False), (6, None, False), (4, 4, False), (0.5, 0.5, False)],
)
def test_a_limit_counts_if_it_leaves_out_what_the_run_took(
    ours: float, runs: float | None, counts: bool
) -> None:
    key = "trainer.limit_test_batches"
    found = differences("test", {key: ours}, {key: runs}, batches=5)
    assert found == ({key: [runs, ours]} if counts else {})


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    path.write_text("one")
    evaluation = Evaluation("test", path, "a" * 64, 1, identity=file_identity(path))
    evaluation.check_weights()
    path.write_text("other")
    with pytest.raises(RunError, match="was replaced while it was read"):
        evaluation.check_weights()


def test_an_overfitted_validation_is_kept_aside(do: Do) -> None:
    record = do("validate", "--trainer.overfit_batches=1", "--data.eval_batch_size=20")
    assert "validate/acc" not in record.summary


@pytest.mark.parametrize(
    "flags", [["--trainer.limit_test_batches=0"], ["--trainer.limit_test_batches=0.5"]]
)
def test_a_test_of_nothing_is_refused(flags: list[str], runs: Path, error_of: Any) -> None:
    assert "limit_test_batches" in error_of(["test", f"--runs_dir={runs}", "--name=a", *flags])


def test_a_checkpoint_copied_over_the_runs_is_noticed(do: Do, runs: Path) -> None:
    before = figures(RunRecord.open(runs / "a"))
    shutil.copy(runs / "b" / "best.ckpt", runs / "a" / "best.ckpt")
    assert figures(do("test")) == before


def test_a_run_of_part_of_the_images_is_not_ranked(
    data_dir: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=20"]
    record = short_fit(runs, data_dir, *TINY, *limited, "--test_after_fit=true", name="part")
    assert record.summary["test/images"] == 20
    capsys.readouterr()
    compare([f"--runs_dir={runs}", "a", "part", "--format=json"])
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)["runs"]}
    assert lines["part"]["test/acc mean"] is None
    assert "20 of 200" in lines["part"]["note"]


# ---- predictions ---------------------------------------------------------------------------------


def test_predictions_of_something_else_have_a_file_of_their_own(
    do: Do, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do("predict")
    whole = (runs / "a" / "predictions.csv").read_bytes()
    capsys.readouterr()
    do("predict", "--trainer.limit_predict_batches=1", "--data.eval_batch_size=20")
    assert "only 20 of 200 images" in capsys.readouterr().out
    do("predict", f"--ckpt_path={runs}/b/best.ckpt")
    assert (runs / "a" / "predictions.csv").read_bytes() == whole
    assert len([*(runs / "a").glob("predictions-*.csv")]) == 2


def test_two_folders_of_one_name_have_two_files(do: Do, runs: Path, tmp_path: Path) -> None:
    for place in ("x", "y"):
        folder = tmp_path / place / "cats"
        folder.mkdir(parents=True)
        shutil.copy(runs / "a" / "confusion_test.png", folder / f"{place}.png")
        do("predict", f"--data.predict_dir={folder}")
    texts = [path.read_text() for path in (runs / "a").glob("predictions-cats*.csv")]
    assert sorted("x.png" in text for text in texts) == [False, True]
    do("predict", f"--data.predict_dir={tmp_path / 'x' / 'cats'}")
    assert len([*(runs / "a").glob("predictions-cats*.csv")]) == 2


# ---- runs that go back, or on otherwise ----------------------------------------------------------


def test_a_run_that_goes_back_leaves_the_best_of_the_other_way(do: Do, runs: Path) -> None:
    assert weights(runs / "a" / "best.ckpt")["global_step"] == 4
    back = [f"--config={runs}/a/config.yaml", f"--ckpt_path={runs}/a/previous.ckpt"]
    record = do("fit", *back, "--model.lr=1e-9", "--trainer.max_steps=3", "--test_after_fit=true")
    assert record.summary["test/checkpoint"] == "last.ckpt"
    assert record.evaluations["test"]["step"] == 3
    assert "best/val/acc" not in record.summary
    assert not (runs / "a" / "best.ckpt").exists()
    assert (runs / "a" / "abandoned.ckpt").is_file()


def test_a_run_killed_after_it_went_back_goes_on_from_there(
    do: Do, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    back = [f"--config={runs}/a/config.yaml", f"--ckpt_path={runs}/a/previous.ckpt"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("experiments.session.session.skip_idle_hooks", die)
        do("fit", *back, "--model.lr=0.01", "--trainer.max_steps=8")
    assert weights(runs / "a" / "last.ckpt")["global_step"] == 2
    record = do("fit", "--resume")
    assert record.fields["resumed"][-1]["step"] == 2


@pytest.mark.parametrize("size", [10, 0])
def test_other_validation_images_have_another_best(size: int, do: Do, runs: Path) -> None:
    on = [f"--config={runs}/a/config.yaml", "--resume", "--trainer.max_steps=6"]
    record = do("fit", *on, f"--data.val_size={size}", "--test_after_fit=true")
    tested = "best.ckpt" if size else "last.ckpt"
    assert record.summary["test/checkpoint"] == tested
    assert record.evaluations["test"]["step"] == 6
    assert record.summary.get("best/step") == (6 if size else None)


def test_another_network_has_another_best(do: Do, runs: Path) -> None:
    on = [f"--config={runs}/a/config.yaml", "--resume", "--trainer.max_steps=6"]
    record = do("fit", *on, "--model.activation=tanh", "--test_after_fit=true")
    assert record.evaluations["test"]["step"] == 6


def test_a_run_that_was_moved_keeps_its_best(
    do: Do, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later validations are worse; Lightning would take the first of them for the best."""

    def worse_each_time(self: MLP) -> None:
        self.log_dict({"val/loss": 1.0, "val/acc": 0.001 / self.global_step})

    monkeypatch.setattr(MLP, "on_validation_epoch_end", worse_each_time)
    best = torch.load(runs / "a" / "best.ckpt", weights_only=True)["global_step"]
    (runs / "a").rename(runs / "moved")
    more = ["--resume", "--trainer.max_steps=8", "--test_after_fit=true"]
    record = do("fit", *more, name="moved")
    assert record.summary["best/step"] == record.evaluations["test"]["step"] == best


def test_a_warm_start_that_is_killed_early_begins_warm_again(
    data_dir: Path, do: Do, runs: Path, monkeypatch: pytest.MonkeyPatch, error_of: Any
) -> None:
    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    flags = [*TINY, "--trainer.max_steps=6", f"--ckpt_path={runs}/b/last.ckpt"]
    whole = short_fit(runs, data_dir, *flags, name="whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("experiments.session.session.skip_idle_hooks", die)
        short_fit(runs, data_dir, *flags, name="warm")
    (runs / "b").rename(runs / "c")
    message = error_of(["fit", f"--runs_dir={runs}", "--name=warm", "--resume"])
    assert "which are not there any more" in message
    (runs / "c").rename(runs / "b")
    again = do("fit", "--resume", name="warm")
    for key in ("train/weights_sha256", "val/acc"):
        assert again.summary[key] == whole.summary[key]


def test_the_abandoned_way_begins_another_run(do: Do, runs: Path, error_of: Any) -> None:
    shutil.copy(runs / "a" / "best.ckpt", runs / "a" / "abandoned.ckpt")
    on = ["fit", f"--config={runs}/a/config.yaml", f"--ckpt_path={runs}/a/abandoned.ckpt"]
    flags = [f"--runs_dir={runs}", "--trainer.max_steps=6"]
    assert "exists" in error_of([*on, *flags, "--name=a"])


def test_going_on_with_the_same_settings_keeps_the_best(do: Do, runs: Path) -> None:
    before = RunRecord.open(runs / "a").summary["best/step"]
    record = do("fit", "--resume", "--trainer.max_steps=5")
    assert record.summary["best/step"] == before
    assert "best_since" not in record.fields


def test_figures_of_weights_that_a_fit_replaces_are_kept_aside(
    do: Do, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test and a prediction amid a fit, whose best and last weights are others at its end."""
    stale = {"checkpoint": "best.ckpt", "weights_sha256": "0" * 64, "step": 1, "differs": {}}
    finish = RunRecord.save
    written: list[int] = []

    def save(self: RunRecord) -> None:
        if not written and self.fields.get("weights") and self.fields["status"] == "running":
            written.append(1)
            other = RunRecord.open(self.path)
            other.evaluations.update({"test": stale, "predictions.csv": stale})
            other.summary["test/acc"] = 0.75
            (self.path / "predictions.csv").write_text("old")
            finish(other)
        finish(self)

    monkeypatch.setattr(RunRecord, "save", save)
    record = do("fit", "--resume", "--trainer.max_steps=6", "--test_after_fit=false")
    assert written
    assert "test/acc" not in record.summary
    assert not (runs / "a" / "predictions.csv").exists()
    (kept,) = [entry for key, entry in record.evaluations.items() if key.startswith("test-")]
    assert kept["acc"] == 0.75


def test_a_test_of_a_run_that_is_replaced_meanwhile_is_not_the_new_ones(
    do: Do, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[int] = []

    def replace(self: MLP) -> None:
        if not replaced:
            replaced.append(1)
            shutil.rmtree(runs / "a")
            shutil.copytree(runs / "b", runs / "a")

    monkeypatch.setattr(MLP, "on_test_start", replace)
    record = do("test")
    assert (record.fields["seed"], record.fields["status"]) == (1, "finished")
    assert not figures(record)
    assert not [entry for entry in record.metrics() if "test/acc" in entry]
    (kept,) = record.evaluations.values()
    assert kept["differs"] == {"weights": "best.ckpt"}


# ---- what is one experiment ----------------------------------------------------------------------


def groups(runs: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    capsys.readouterr()
    compare([f"--runs_dir={runs}", "--format=json"])
    lines = json.loads(capsys.readouterr().out)["runs"]
    return sorted([line["name"], line["seeds"]] for line in lines)


def test_runs_that_differ_in_their_seed_are_one_experiment(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(groups(runs, capsys)) == 1


def test_a_rate_changed_on_the_way_makes_another_experiment(
    do: Do, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do("fit", "--resume", "--model.lr=0.5", "--trainer.max_steps=6")
    do("fit", "--resume", "--model.lr=0.001", "--trainer.max_steps=8")
    do("fit", "--resume", "--trainer.max_steps=8", name="b")
    assert len(groups(runs, capsys)) == 2


@pytest.mark.slow
def test_wandbs_files_say_the_same_of_what_is_one_experiment(
    data_dir: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"--ckpt_path={runs}/b/last.ckpt"
    longer = [*TINY, "--trainer.max_steps=6"]
    short_fit(runs, data_dir, *longer, start, name="warm", wandb=True)
    short_fit(runs, data_dir, *longer, name="cold", wandb=True)
    short_fit(runs, data_dir, *TINY, "--model.lr=0.5", name="changed", wandb=True)
    main(["fit", f"--runs_dir={runs}", "--name=changed", "--resume", "--model.lr=1e-3", longer[-1]])
    capsys.readouterr()
    folders = [str(runs / name / "wandb") for name in ("warm", "cold", "changed")]
    compare([*folders, "--format=json"])
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3


def test_a_run_begun_with_weights_of_another_is_another_experiment(
    data_dir: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = runs / "b" / "last.ckpt"
    longer = ["--trainer.max_steps=6"]
    record = short_fit(runs, data_dir, *TINY, *longer, f"--ckpt_path={start}", name="warm")
    short_fit(runs, data_dir, *TINY, *longer, name="cold")
    begun = record.fields["started_from"]
    assert (begun["checkpoint"], begun["step"]) == (str(start), 4)
    found = [name for name, _ in groups(runs, capsys)]
    assert {"cold", "warm"} <= {*found}


def test_a_copied_run_is_the_one_that_is_tested(
    do: Do, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "b", runs.parent / "elsewhere" / "copy")
    before = (runs / "b" / "record.json").read_bytes()
    main(["test", f"--runs_dir={runs.parent / 'elsewhere'}", "--name=copy"])
    assert "test/acc" in RunRecord.open(runs.parent / "elsewhere" / "copy").summary
    assert (runs / "b" / "record.json").read_bytes() == before


# ---- averaged weights ----------------------------------------------------------------------------


def test_averaged_weights_are_tested(data_dir: Path, runs: Path) -> None:
    average = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    average += ["--trainer.callbacks.swa_epoch_start=1", "--trainer.max_steps=-1"]
    epochs = ["--trainer.max_epochs=3", "--test_after_fit=true"]
    record = short_fit(runs, data_dir, *TINY, *average, *epochs, name="swa")
    assert record.summary["test/checkpoint"] == "last.ckpt"
    main(["test", f"--runs_dir={runs}", "--name=swa"])
    assert RunRecord.open(runs / "swa").summary["test/checkpoint"] == "last.ckpt"
