import json
import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.errors import RunError
from experiments.records.environment import git_state, versions
from experiments.records.log import sync_log
from experiments.records.machine import hardware
from experiments.records.record import RECORD, RunRecord, run_folder, was_never_begun, with_changes


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord.create(tmp_path / "runs" / "mine", "model: MLP\n", {"seed": 1})


def test_a_new_record_is_running_and_can_be_opened(record: RunRecord) -> None:
    opened = RunRecord.open(record.path)
    assert (opened.name, opened.fields["status"], opened.fields["seed"]) == ("mine", "running", 1)
    assert (record.path / "config.yaml").read_text() == "model: MLP\n"


def test_readers_never_see_half_a_record(record: RunRecord) -> None:
    record.fields["filler"] = "x" * 500_000
    done = threading.Event()

    def write() -> None:
        for _ in range(30):
            record.save()
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or not reads:
        json.loads((record.path / RECORD).read_text())
        reads += 1
    writer.join()
    assert [path.name for path in record.path.iterdir() if path.suffix == ".partial"] == []


def test_a_failed_save_leaves_the_old_record(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    record.fields["seed"] = 2
    with pytest.raises(RunError, match="No space"):
        record.save()
    assert RunRecord.open(record.path).fields["seed"] == 1


def test_a_damaged_record_is_written_anew_whole(record: RunRecord) -> None:
    (record.path / RECORD).write_text("{")
    record.summary["val/acc"] = 0.5
    record.save()
    fields = RunRecord.open(record.path).fields
    assert (fields["seed"], fields["summary"]) == (1, {"val/acc": 0.5})


def test_an_evaluation_is_written_even_if_another_removed_the_same(record: RunRecord) -> None:
    record.note_evaluation("test", {"step": 1}, {"test/acc": 0.5})
    record.save()
    other = RunRecord.open(record.path)
    for tree, key in ((other.evaluations, "test"), (other.summary, "test/acc")):
        del tree[key]
    other.save()
    record.note_evaluation("test", {"step": 1}, {"test/acc": 0.5})
    record.save()
    found = RunRecord.open(record.path)
    assert (found.evaluations, found.summary) == ({"test": {"step": 1}}, {"test/acc": 0.5})


def test_a_run_that_goes_back_keeps_what_its_fit_had_logged_until_then(record: RunRecord) -> None:
    for step, metrics in ((1, {"val/acc": 0.4}), (2, {"val/acc": 0.3}), (2, {"test/acc": 0.9})):
        record.log(metrics, step)
    record.log({"lr": 0.1}, 2)
    assert record.entries == 3
    (record.path / "predictions.csv").touch()
    other = RunRecord.open(record.path)
    other.fields["weights"] = {"best.ckpt": "a"}
    other.note_evaluation("test", {"step": 2}, {"test/acc": 0.9})
    other.save()
    record.resume("", {}, step=2, entries=2)
    assert [(entry["step"], entry.get("val/acc")) for entry in record.metrics()] == [
        (1, 0.4),
        (2, 0.3),
    ]
    fields = RunRecord.open(record.path).fields
    assert not {"weights", "evaluations"} & fields.keys()
    assert "test/acc" not in fields["summary"]
    assert not (record.path / "predictions.csv").exists()
    record.resume("", {}, step=0)
    assert [*record.metrics()] == []


def test_a_run_that_begins_anew_has_nothing_of_step_0(record: RunRecord) -> None:
    record.log({"activations/1/mean": 0.5}, 0)
    record.resume("", {}, step=0)
    assert [*record.metrics()] == []


def test_a_run_that_goes_on_keeps_no_evaluation_in_its_log(record: RunRecord) -> None:
    record.log({"val/acc": 0.5}, 1)
    record.log({"validate/acc": 0.6}, 1)
    record.resume("", {}, step=1)
    assert [entry.get("val/acc") for entry in record.metrics()] == [0.5]


def test_time_counts_over_all_processes_of_a_run(record: RunRecord) -> None:
    line = {"step": 1, "seconds": 1000.0, "val/acc": 0.5}
    (record.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    again = RunRecord.open(record.path)
    again.resume("", {}, step=1)
    assert 1000 <= again.seconds < 1100


def test_a_new_run_has_nothing_of_an_evaluation_of_one_that_is_gone(tmp_path: Path) -> None:
    old = RunRecord.create(tmp_path / "run", "", {})
    old.note_evaluation("test", {"step": 1}, {"test/acc": 0.5})
    old.save()
    fields = RunRecord.open(RunRecord.create(tmp_path / "run", "", {}).path).fields
    assert (fields["summary"], "evaluations" in fields) == ({}, False)


def test_the_log_is_on_the_disk_when_a_checkpoint_is(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_log(record.path)  # nothing was logged yet
    record.log({"val/acc": 0.5}, 1)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    sync_log(record.path)
    assert (record.path / "metrics.jsonl").stat().st_ino in synced


def test_a_change_of_ones_own_wins_over_another_of_the_same() -> None:
    before = {"a": 1, "b": {"c": 1}}
    mine, theirs = {"a": 2, "b": {"c": 2}}, {"a": 3, "b": {"c": 3, "d": 4}}
    assert with_changes(before, mine, theirs) == {"a": 2, "b": {"c": 2, "d": 4}}


def test_a_record_that_leads_elsewhere_is_not_opened(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    (record.path / "metrics.jsonl").symlink_to(tmp_path / "theirs")
    with pytest.raises(RunError, match=r"metrics\.jsonl is a symbolic link"):
        RunRecord.open(record.path)


def test_an_entry_of_another_process_waits_while_the_record_is_written(record: RunRecord) -> None:
    other = RunRecord.open(record.path)
    writer = threading.Thread(target=other.log, args=({"test/acc": 0.5}, 1))
    with FileLock(record.path / ".record.lock"):
        writer.start()
        writer.join(0.1)
        assert [*record.metrics()] == []
    writer.join()
    assert len([*record.metrics()]) == 1


def test_a_last_line_that_is_not_whole_is_passed_over(record: RunRecord) -> None:
    record.log({"val/acc": 0.5}, step=1)
    with (record.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "val')
    assert [entry["step"] for entry in record.metrics()] == [1]


@pytest.mark.parametrize("name", ["-a", "a\nb", "é" * 65])
def test_a_name_fits_a_command_line_and_a_file_system(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--name"):
        run_folder(tmp_path, name)


def test_a_folder_with_no_more_than_locks_was_never_begun(tmp_path: Path) -> None:
    for name in (".lock", ".record.lock", ".record.json.0.partial"):
        (tmp_path / name).touch()
    assert was_never_begun(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert not was_never_begun(tmp_path)


def test_values_that_are_not_finite_are_null(record: RunRecord) -> None:
    record.log({"train/loss": float("nan"), "val/loss": float("inf"), "lr": 0.5}, step=3)
    record.save()
    entry = json.loads((record.path / "metrics.jsonl").read_text())
    assert (entry["step"], entry["train/loss"], entry["val/loss"], entry["lr"]) == (
        3,
        None,
        None,
        0.5,
    )
    assert RunRecord.open(record.path).summary["train/loss"] is None


def test_the_best_validation_is_the_first_of_the_highest(record: RunRecord) -> None:
    for step, accuracy in enumerate([0.2, float("nan"), 0.5, 0.5, 0.4]):
        record.log({"val/acc": accuracy}, step)
    assert (record.summary["best/val/acc"], record.summary["best/step"]) == (0.5, 2)
    assert record.summary["val/acc"] == 0.4
    assert [entry["step"] for entry in record.metrics()] == [0, 1, 2, 3, 4]


def test_a_finished_record_tells_when_and_how_long(record: RunRecord) -> None:
    record.finish("failed")
    fields = RunRecord.open(record.path).fields
    assert fields["status"] == "failed"
    assert fields["seconds"] >= 0
    assert fields["started"] <= fields["ended"]


def test_going_on_replaces_what_the_run_is(record: RunRecord) -> None:
    record.fields["error"] = "KeyboardInterrupt()"
    record.finish("interrupted")
    record.resume("model: CNN\n", {"seed": 2}, step=2)
    fields = RunRecord.open(record.path).fields
    assert (fields["status"], fields["seed"], "error" in fields) == ("running", 2, False)
    assert (record.path / "config.yaml").read_text() == "model: CNN\n"


def test_a_missing_run_lists_the_latest(record: RunRecord) -> None:
    with pytest.raises(RunError, match=r"no run .*other: latest runs in .*: mine$"):
        RunRecord.open(record.path.parent / "other")
    with pytest.raises(RunError, match=r"no runs in .* yet"):
        RunRecord.open(record.path / "none" / "other")


def test_a_broken_record_is_named(record: RunRecord) -> None:
    (record.path / RECORD).write_text('{"name": ')
    with pytest.raises(RunError, match=r"record\.json can't be read"):
        RunRecord.open(record.path)


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, '{"summary": {"best/val/acc": "x"}}', '{"summary": {}, "resumed": 5}', "\x00"],
)
def test_a_stranger_s_record_is_one_line(content: str, record: RunRecord) -> None:
    (record.path / RECORD).write_text(content)
    with pytest.raises(RunError, match=r"^[^\n]*record\.json can't be read: [^\n]*--ckpt_path$"):
        RunRecord.open(record.path)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "5", '{"step": "1"}', '{"step": 1, "seconds": 1, "val/acc": "x"}']
)
def test_a_line_that_is_no_entry_is_named(line: str, record: RunRecord) -> None:
    record.log({"val/acc": 0.5}, step=1)
    with (record.path / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: no entry of a log"):
        list(record.metrics())


def test_a_run_whose_log_lacks_something_goes_on(record: RunRecord) -> None:
    (record.path / "metrics.jsonl").write_text(
        '{"step": 1, "val/acc": 0.5}\n{}\n{"seconds": null}\n'
    )
    record.resume("", {}, step=2)
    assert (record.summary["best/val/acc"], record.summary["best/step"]) == (0.5, 1)


def test_a_log_that_is_no_file_is_one_line(record: RunRecord) -> None:
    os.mkfifo(record.path / "metrics.jsonl")
    with pytest.raises(RunError, match="it is a pipe, not a regular file; remove it"):
        list(record.metrics())
    with pytest.raises(RunError, match="it is a pipe"):
        record.log({"val/acc": 0.5}, step=1)


def test_hidden_runs_are_among_the_latest(record: RunRecord) -> None:
    record.path.rename(record.path.with_name(".mine"))
    (record.path.parent / "loop").mkdir()
    (record.path.parent / "loop" / RECORD).symlink_to(RECORD)
    with pytest.raises(RunError, match=r"latest runs in .*: \.mine$"):
        RunRecord.open(record.path.parent / "other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a/"])
def test_a_name_is_a_plain_folder_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="plain folder name"):
        run_folder(tmp_path, name)
    assert run_folder(tmp_path, "a-1") == tmp_path / "a-1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="--runs_dir"):
        RunRecord.create(tmp_path / "run", "", {})


def test_a_place_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match="--runs_dir"):
        RunRecord.create(tmp_path / "runs" / "run", "", {})


def test_the_environment_is_known_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}
    assert hardware()["cpu"]
    assert {"python", "torch", "pytorch-lightning", "wandb"} <= versions().keys()
