"""What ends a training, other than its end: each ends honestly, and nothing is lost."""

import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.session.resuming import RunLock
from tests.chaos import Place
from tests.conftest import PROJECT, SHORT, Cli, mark_slow
from tests.lab import Lab, stand_in_for_scontrol
from tests.wandb_server import WandbServer

ErrorOf = Callable[[list[str]], str]
TERMINATED, INTERRUPTED = (signal.SIGTERM, 143, "preempted"), (signal.SIGINT, 130, "interrupted")
HUNG_UP = (signal.SIGHUP, 129, "interrupted")


def status_of(lab: Lab, name: str) -> str:
    return str(json.loads((lab.root / name / "record.json").read_text())["status"])


def steps_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


# ---- signals -------------------------------------------------------------------------------------


QUICK: list[tuple[tuple[int, int, str], Place, int]] = [
    (TERMINATED, ("os.fsync", 2), 0),  # there is a record, and not much more
    (TERMINATED, ("on_train_batch_end", 17), 17),  # amid an epoch: after this batch
    (INTERRUPTED, ("on_train_batch_end", 48), 48),  # with the last batch: before the test
    (INTERRUPTED, ("on_test_start", 1), 48),
]
STOPS: list[tuple[tuple[int, int, str], Place, int]] = [
    *QUICK,
    (INTERRUPTED, ("on_train_batch_end", 17), 17),
    (HUNG_UP, ("on_train_batch_end", 18), 18),
    (TERMINATED, ("on_validation_start", 2), 14),  # when the validation is over
    (INTERRUPTED, ("on_train_end", 1), 48),
    (TERMINATED, ("weights_sha256", 1), 48),  # between the fit and the test
    (TERMINATED, ("on_test_start", 1), 48),
]


@pytest.mark.parametrize(("stop", "place", "step"), mark_slow(STOPS, except_for=QUICK))
def test_a_signal_stops_between_two_batches_and_loses_nothing(
    labs: dict[str, Lab], stop: tuple[int, int, str], place: Place, step: int
) -> None:
    signum, code, status = stop
    lab, name = labs["MLP"], f"{status}-{place[0]}-{place[1]}"
    stopped = lab.fit(name, at=place, signum=signum)
    assert stopped.code == code
    assert f"fit --runs_dir {lab.root} --name {name} --resume" in stopped.err.splitlines()[-1]
    assert "Traceback" not in stopped.err
    assert status_of(lab, name) == status
    last = lab.root / name / "last.ckpt"
    assert (steps_of(last) if last.exists() else 0) == step
    assert lab.fit(name, "--resume").code == 0
    assert lab.result(name) == lab.result("whole")


@pytest.mark.slow
def test_a_terminal_that_is_closed_loses_nothing(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    endless = [*lab.options, "--trainer.max_steps=1000000", "--trainer.enable_progress_bar=true"]
    child, terminal = pty.fork()
    if child == 0:
        program = [sys.executable, str(PROJECT / "cli.py"), "fit"]
        os.execv(program[0], [*program, *endless, f"--runs_dir={lab.root}", "--name=closed"])
    while not (lab.root / "closed" / "last.ckpt").exists():
        os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert status_of(lab, "closed") == "interrupted"
    assert lab.fit("closed", "--resume").code == 0


def test_a_signal_when_all_is_done_but_the_summary_changes_nothing(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    ended = lab.fit("all-done", at=("plots.curves", 1), signum=signal.SIGINT)
    assert ended.code == 0
    assert "stopping after the summary; once more to stop at once" in ended.err
    assert lab.result("all-done") == lab.result("whole")


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["> /dev/full 2>&-", "2> /dev/full"])
def test_nobody_needs_to_listen(streams: str, labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    places = [f"--runs_dir={lab.root}", "--name=deaf", "--overwrite=true"]
    command = shlex.join([sys.executable, "cli.py", "fit", *lab.options, *places])
    done = subprocess.run(f"{command} {streams}", shell=True, cwd=PROJECT, check=False)
    assert done.returncode == 0
    assert lab.result("deaf") == lab.result("whole")


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_so(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    places = [f"--runs_dir={lab.root}", "--name=ignores", "--trainer.max_steps=2000"]
    command = shlex.join([sys.executable, "cli.py", "fit", *lab.options, *places])
    process = subprocess.Popen(f"trap '' TERM INT HUP; exec {command}", shell=True, cwd=PROJECT)
    while not (lab.root / "ignores" / "last.ckpt").exists():
        time.sleep(0.01)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(signum)
    assert process.wait() == 0
    assert status_of(lab, "ignores") == "finished"


def test_predictions_that_cannot_be_written_leave_the_old_ones(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    predict = ["predict", f"--runs_dir={lab.root}", "--name=whole"]
    assert lab.zygote.run(predict).code == 0
    before = (lab.root / "whole" / "predictions.csv").read_text()
    ended = lab.zygote.run(predict, largest_file=8000)
    assert ended.code == 1
    assert "File too large" in ended.err.splitlines()[-1]
    assert (lab.root / "whole" / "predictions.csv").read_text() == before
    assert not list((lab.root / "whole").glob(".*.partial"))


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of one task, and a ``scontrol`` that notes what it is asked."""
    names = ("PROCID", "LOCALID", "NODEID")
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "cifar10"}
    place = {"PATH": stand_in_for_scontrol(tmp_path)}
    return {**job, **{f"SLURM_{name}": "0" for name in names}, **place}


@pytest.mark.parametrize(
    ("more", "asked", "said"),
    [
        (
            {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"},
            "requeue 70_3",
            "SLURM runs job 70_3 again",
        ),
        *mark_slow(
            [
                ({}, "requeue 77", "SLURM runs job 77 again"),
                ({"REFUSES": "1"}, "requeue 77", "SLURM does not run job 77 again (scontrol "),
            ]
        ),
    ],
)
def test_a_job_whose_time_is_over_saves_and_is_queued_again(
    labs: dict[str, Lab],
    slurm: dict[str, str],
    tmp_path: Path,
    more: dict[str, str],
    asked: str,
    said: str,
) -> None:
    lab, name = labs["MLP"], f"slurm-{len(more)}-{asked[-1]}"
    job: dict[str, Any] = {**slurm, **more}
    at = ("on_train_batch_end", 17)
    stopped = lab.fit(name, "--resume", at=at, signum=signal.SIGUSR1, **job)
    assert stopped.code == 128 + signal.SIGUSR1
    assert said in stopped.err
    assert (tmp_path / "asked").read_text().split("\n") == [asked, ""]
    assert status_of(lab, name) == "preempted"
    assert not list(lab.root.glob("hpc_ckpt*"))
    again = lab.fit(name, "--resume", **job)  # the same job script
    assert again.code == 0
    assert lab.result(name) == lab.result("whole")


def test_a_job_that_is_cancelled_is_not_queued_again(
    labs: dict[str, Lab], slurm: dict[str, Any], tmp_path: Path
) -> None:
    at = ("on_train_batch_end", 17)
    stopped = labs["MLP"].fit("cancelled", at=at, signum=signal.SIGTERM, **slurm)
    assert stopped.code == 143
    assert not (tmp_path / "asked").exists()


@pytest.mark.slow
def test_wandb_is_told_of_a_preemption(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    online = ["--trainer.logger=experiments.WandbLogger", "--trainer.logger.mode=online"]
    with WandbServer().listening() as server:
        account: dict[str, Any] = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        at = ("on_train_batch_end", 9)
        assert lab.fit("told", *online, at=at, signum=signal.SIGTERM, **account).code == 143
        assert (server.preempted, server.exit_codes) == (True, [143])
        assert lab.fit("told", *online, "--resume", **account).code == 0
        assert (len(server.runs), server.exit_codes) == (1, [143, 0])  # one run, that went on


def test_a_wandb_that_dies_takes_no_training_with_it(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    wandb = "--trainer.logger=experiments.WandbLogger"
    ended = lab.fit("orphaned", wandb, at=("on_train_batch_end", 17), victim="wandb-core")
    assert ended.code == 0, ended.err
    assert "W&B stopped logging" in ended.err
    assert lab.result("orphaned") == lab.result("whole")


@pytest.mark.slow
def test_a_server_that_dies_amid_a_training_ends_none(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    online = ["--trainer.logger=experiments.WandbLogger", "--trainer.logger.mode=online"]
    with WandbServer(dies_after=1).listening() as server:
        account: dict[str, Any] = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        started = time.monotonic()
        ended = lab.fit("forsaken", *online, **account)
    assert ended.code == 0, ended.err
    assert time.monotonic() - started < 90  # it waits for the server, but not for long
    assert "W&B's server may lack the end of this run; upload it with: " in ended.err
    assert lab.result("forsaken") == lab.result("whole")
    (kept,) = (lab.root / "forsaken" / "wandb").glob("run-*/run-*.wandb")
    assert kept.stat().st_size > 1000


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_nothing_but_time(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    online = ["--trainer.logger=experiments.WandbLogger", "--trainer.logger.mode=online"]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        account: dict[str, Any] = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        ended = lab.fit("silent", *online, **account)
    assert ended.code == 0
    assert "W&B's server does not answer" in ended.err
    assert f"-m wandb sync {lab.root}/silent/wandb/offline-run-*" in ended.err
    assert list((lab.root / "silent" / "wandb").glob("offline-run-*/run-*.wandb"))


# ---- divergence ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_batch(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    ended = lab.fit("nan", "--model.lr=1e6")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    every_step = lab.fit("nan-too", "--model.lr=1e6", "--trainer.log_every_n_steps=1")
    assert line.partition(" (")[0] in every_step.err  # the step is the very one
    assert "train/loss is nan at step 4 (epoch 0, batch 3)" in line
    assert status_of(lab, "nan") == "failed"


def test_weights_that_are_not_finite_are_never_saved(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    ended = lab.fit("late", "--model.lr=1e6", "--trainer.log_every_n_steps=1000")
    assert ended.code == 1
    assert "val/loss is nan after step 7: the training has diverged" in ended.err
    assert not list((lab.root / "late").glob("*.ckpt"))
    ended = lab.fit(
        "later", "--model.lr=1e6", "--trainer.log_every_n_steps=1000", "--data.val_size=0"
    )
    assert ended.code == 1
    assert "are not finite after step 48" in ended.err


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    assert lab.fit("full", at=("on_train_batch_end", 17), signum=signal.SIGTERM).code == 143
    before = (lab.root / "full" / "last.ckpt").read_bytes()
    ended = lab.fit("full", "--resume", largest_file=100_000)
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "cannot write the checkpoint" in line
    assert "File too large" in line
    assert f"cli.py fit --runs_dir {lab.root} --name full --resume" in ended.err
    assert (lab.root / "full" / "last.ckpt").read_bytes() == before
    assert status_of(lab, "full") == "failed"
    assert not list((lab.root / "full").glob(".*.partial"))
    assert lab.fit("full", "--resume").code == 0
    assert lab.result("full") == lab.result("whole")


def test_a_folder_that_cannot_be_written_is_found_before_training(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    ended = lab.fit("unwritable", largest_file=1500)
    assert (ended.code, ended.err.count("error: ")) == (2, 1)
    assert f"cannot write to the run's folder {lab.root}/unwritable: File too large" in ended.err
    assert not (lab.root / "unwritable").exists()


def test_a_run_that_cannot_be_written_any_more_stays_as_it_is(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    lab.fit("filled", at=("on_train_batch_end", 17))
    before = {path: path.read_bytes() for path in (lab.root / "filled").glob("*")}
    ended = lab.fit("filled", "--resume", largest_file=1500)
    assert ended.code == 2
    assert "cannot write to the run's folder" in ended.err
    assert {path: path.read_bytes() for path in (lab.root / "filled").glob("*")} == before
    assert lab.fit("filled", "--resume").code == 0
    assert lab.result("filled") == lab.result("whole")


def test_metrics_that_cannot_be_written_end_the_training(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    config = (lab.root / "whole" / "config.yaml").stat().st_size
    often = ["--trainer.log_every_n_steps=1", "--data.val_size=0"]
    ended = lab.fit("metrics", *often, largest_file=config + 100)
    assert ended.code == 1
    assert "error: cannot write to the run's folder" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "damage", mark_slow(["truncated", "empty", "flipped", "text"], except_for=["flipped"])
)
def test_a_damaged_checkpoint_is_passed_over(labs: dict[str, Lab], damage: str) -> None:
    lab = labs["MLP"]
    assert lab.fit(damage, at=("on_train_batch_end", 17)).code == -signal.SIGKILL
    last = lab.root / damage / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    cut = {"truncated": content[:-1000], "empty": b"", "flipped": content, "text": b"no\n"}
    last.write_bytes(bytes(cut[damage]))
    resumed = lab.fit(damage, "--resume")
    assert resumed.code == 0
    assert f"{last}" in resumed.err
    assert "resuming from previous.ckpt" in resumed.err
    assert lab.result(damage) == lab.result("whole")


def test_without_a_good_checkpoint_nothing_is_touched(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    assert lab.fit("lost", at=("on_train_batch_end", 17)).code == -signal.SIGKILL
    for name in ("last", "previous"):
        os.truncate(lab.root / "lost" / f"{name}.ckpt", 1000)
    before = (lab.root / "lost" / "metrics.jsonl").read_text()
    ended = lab.fit("lost", "--resume")
    assert ended.code == 2
    assert "start the run again with --overwrite true" in ended.err
    assert (lab.root / "lost" / "metrics.jsonl").read_text() == before


def test_a_disk_without_room_is_found_before_training(
    monkeypatch: pytest.MonkeyPatch, synthetic: list[str], error_of: ErrorOf, runs: Path
) -> None:
    usage = shutil.disk_usage(runs.parent)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    places = [f"--runs_dir={runs}", "--name=run", "--model=MLP"]
    message = error_of(["fit", *SHORT, *synthetic, *places])
    assert "has 1.0 MiB free, and the run's checkpoints need up to" in message
    assert not runs.exists()


def test_a_run_that_goes_on_needs_less_room(
    monkeypatch: pytest.MonkeyPatch, fit: Cli, tmp_path: Path
) -> None:
    """It has checkpoints already, which the next ones replace."""
    run = fit("--model=MLP")
    largest = max(path.stat().st_size for path in run.path.glob("*.ckpt"))
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * largest)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert fit("--model=MLP", "--resume", "--trainer.max_steps=6").summary["train/steps"] == 6


# ---- going on ------------------------------------------------------------------------------------


def test_a_finished_run_has_nothing_left_to_do(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    before = lab.result("whole")
    ended = lab.fit("whole", "--resume", "--data.batch_size=40")
    assert (ended.code, lab.result("whole")) == (0, before)
    assert "run whole is finished" in ended.err
    assert "other settings" not in ended.err


def test_what_changes_in_a_run_that_goes_on_is_said(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    lab.fit("changed", at=("on_train_batch_end", 17))
    ended = lab.fit("changed", "--resume", "--data.batch_size=40")
    assert "continues with other settings: data.batch_size 40 (was 50)" in ended.err


def test_two_processes_cannot_train_one_run(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    lab.fit("shared", at=("on_train_batch_end", 17))
    other = RunLock(lab.root / "shared")
    other.acquire()
    for flag in ("--resume", "--overwrite"):
        refused = lab.fit("shared", flag)
        assert refused.code == 2
        assert "run shared is being trained by another process" in refused.err
    other.release()
    assert lab.fit("shared", "--resume").code == 0
