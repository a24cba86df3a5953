"""Two processes train as one, go on as two, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT, SHORT
from tests.lab import HALF, Lab, children_of


@pytest.fixture(scope="module", params=["MLP", pytest.param("NumPyMLP", marks=pytest.mark.slow)])
def lab(request: pytest.FixtureRequest, labs: dict[str, Lab]) -> Lab:
    return labs[request.param]


def test_two_processes_train_as_one_with_the_same_batches(lab: Lab) -> None:
    one, two = lab.result("whole"), lab.two()
    assert one["record"]["summary"].keys() == two["record"]["summary"].keys()
    for alone, shared in zip(one["metrics"], two["metrics"], strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)
    assert two["record"]["summary"]["test/acc"] == one["record"]["summary"]["test/acc"]
    weights = [
        torch.load(lab.root / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "two")
    ]
    for alone, shared in zip(weights[0].values(), weights[1].values(), strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "codes"),
    [(signal.SIGTERM, [143, 143]), (signal.SIGKILL, [1, -9])],
)
def test_one_process_that_ends_ends_both_and_both_go_on(
    lab: Lab, signum: int, codes: list[int]
) -> None:
    name = f"ended-{signum}"
    ended = lab.fit_two(name, HALF, at=("on_train_batch_end", 18), signum=signum)
    assert [process.code for process in ended] == codes
    if signum == signal.SIGKILL:
        assert "error: another process of the run ended" in ended[0].err.splitlines()[-1]
    resumed = lab.fit_two(name, HALF, "--resume")
    assert [process.code for process in resumed] == [0, 0], resumed
    assert lab.result(name) == lab.two()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["on_fit_start", "on_test_start"])
def test_a_signal_to_one_of_two_never_hangs(lab: Lab, place: str) -> None:
    """Outside of the training nobody asks the other process, which ends when it misses this one."""
    ended = lab.fit_two(place, HALF, at=(place, 1), signum=signal.SIGTERM)
    assert [process.code for process in ended] == [1, 143], ended
    assert "error: another process of the run ended" in ended[0].err.splitlines()[-1]
    resumed = lab.fit_two(place, HALF, "--resume")
    assert [process.code for process in resumed] == [0, 0], resumed
    assert lab.result(place) == lab.two()


def test_processes_from_outside_need_the_name_of_their_run(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    shared = [*lab.options, f"--runs_dir={lab.root}", "--trainer.devices=2"]
    ended = lab.zygote.run_two(["fit", *shared, "--trainer.strategy=ddp"], signum=signal.SIGKILL)
    assert [process.code for process in ended] == [2, 2]
    assert "must share one run: name it with --name" in ended[0].err


@pytest.mark.slow
def test_torchrun_starts_again_what_died_and_nothing_is_lost(
    labs: dict[str, Lab], tmp_path: Path
) -> None:
    lab = labs["MLP"]
    shared = ["--trainer.devices=2", "--trainer.strategy=ddp", HALF, "--resume"]
    places = [f"--runs_dir={lab.root}", "--name=restarted"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*run, "--max_restarts=1", "cli.py", "fit", *lab.options, *places, *shared],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = lab.root / "restarted" / "last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    (victim, *_) = children_of(process.pid)
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "goes on" in err or "Restoring states" in err, err
    assert lab.result("restarted") == lab.two()


# ---- started by Lightning itself ---------------------------------------------------------------


def started(tmp_path: Path, *args: str, **env: str) -> "subprocess.Popen[str]":
    """``cli.py fit`` with two processes, at a folder of its own."""
    shared = ["--trainer.devices=2", "--trainer.strategy=ddp", "--model=MLP", "--name=run"]
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "cli.py"), "fit", *SHORT, *shared, *args],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """The processes that still work in a folder, after a moment's grace."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cwd")
            if os.path.realpath(path) == str(tmp_path.resolve())
        ]
        if not found:
            return []
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_first_process_that_is_killed_leaves_none_behind(
    synthetic: list[str], tmp_path: Path
) -> None:
    endless = ["--trainer.max_steps=10000000", "--trainer.logger=false"]
    process = started(tmp_path, *synthetic, *endless)
    while not (tmp_path / "runs" / "run" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(synthetic: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = started(tmp_path, *synthetic, "--trainer.logger=false", **address)
        _, err = process.communicate()
    assert process.returncode == 1
    assert f"error: port {port} is taken: leave MASTER_PORT out" in err
    assert not (tmp_path / "runs" / "run").exists()  # its name is free
    assert left_behind(tmp_path) == []
