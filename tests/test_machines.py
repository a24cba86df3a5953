"""Two machines: network namespaces on this one, with a cable between them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import Ended, Place, Zygote
from tests.conftest import PROJECT
from tests.lab import HALF, Lab, children_of, stand_in_for_scontrol

SHARED = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", HALF]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMES = tuple(f"cifar10-{os.getpid()}-{i}" for i in range(2))
CABLES = tuple(f"c{os.getpid()}{end}" for end in "ab")  # interfaces have 15 letters at most
INSIDE = tuple(["ip", "netns", "exec", name] for name in NAMES)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


def _connect() -> None:
    for name in NAMES:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    peer = ["type", "veth", "peer", "name", CABLES[1], "netns", NAMES[1]]
    _ip("link", "add", CABLES[0], "netns", NAMES[0], *peer)
    for name, cable, address in zip(NAMES, CABLES, ADDRESSES, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
        _ip("-n", name, "link", "set", cable, "up")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces and a cable; needs Linux, its administrator and iproute2."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    try:
        _connect()
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@dataclass
class Machines:
    """Two machines that share a disk.

    Attributes:
        lab: holds the runs.
        zygotes: run commands on them.
        slurm: holds what SLURM's ``scontrol`` was ``asked``, a line each.
        path: ``PATH`` with that.
    """

    lab: Lab
    zygotes: list[Zygote]
    slurm: Path
    path: str

    def srun(
        self, name: str, *args: str, at: Place | None = None, signum: int = 0, **env: str
    ) -> list[Ended]:
        """Runs the same ``fit`` on both, as SLURM does; the second sends itself a signal."""

        def task(rank: int) -> Ended:
            places = [f"--runs_dir={self.lab.root}", f"--name={name}"]
            return self.zygotes[rank].run(
                ["fit", *self.lab.options, *places, *SHARED, "--resume", *args],
                at if rank == 1 else None,
                signum,
                **{**_environment(rank), "PATH": self.path, **env},
            )

        with ThreadPoolExecutor(2) as both:
            return [*both.map(task, range(2))]


def _environment(rank: int) -> dict[str, Any]:
    nodes = ",".join(ADDRESSES)
    ours = {"PROCID": rank, "NODEID": rank, "LOCALID": 0, "NTASKS": 2, "NTASKS_PER_NODE": 1}
    job = {"JOB_ID": 77, "JOB_NAME": "cifar10", "NODELIST": nodes, "JOB_NODELIST": nodes, **ours}
    return {
        **{f"SLURM_{key}": str(value) for key, value in job.items()},
        "GLOO_SOCKET_IFNAME": CABLES[rank],
    }


@pytest.fixture(scope="module")
def machines(
    network: None, labs: dict[str, Lab], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """Both machines, and a ``scontrol`` that notes what it is asked."""
    slurm = tmp_path_factory.mktemp("slurm")
    zygotes = [Zygote(inside) for inside in INSIDE]
    yield Machines(labs["MLP"], zygotes, slurm, stand_in_for_scontrol(slurm))
    for zygote in zygotes:
        zygote.close()


@pytest.mark.slow
def test_two_machines_end_as_two_processes_on_one(machines: Machines) -> None:
    ended = machines.srun("machines")
    assert [process.code for process in ended] == [0, 0], ended
    assert machines.lab.result("machines") == machines.lab.two()


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_and_both_go_on(machines: Machines) -> None:
    ended = machines.srun("dies", at=("on_train_batch_end", 18), signum=signal.SIGKILL)
    assert [process.code for process in ended] == [1, -9], ended
    assert "error: another process of the run ended" in ended[0].err.splitlines()[-1]
    assert [process.code for process in machines.srun("dies")] == [0, 0]
    assert machines.lab.result("dies") == machines.lab.two()


@pytest.mark.slow
def test_a_job_on_two_machines_is_queued_again_once(machines: Machines) -> None:
    ended = machines.srun("notice", at=("on_train_batch_end", 18), signum=signal.SIGUSR1)
    assert [process.code for process in ended] == [138, 138], ended
    assert (machines.slurm / "asked").read_text() == "requeue 77\n"
    assert [process.code for process in machines.srun("notice")] == [0, 0]
    assert machines.lab.result("notice") == machines.lab.two()


@pytest.mark.slow
def test_a_network_that_leads_nowhere_is_one_line(machines: Machines) -> None:
    patience = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:05"]
    ended = machines.srun("lost", *patience, GLOO_SOCKET_IFNAME="lo")
    assert [process.code for process in ended] == [1, 1]
    assert all("set GLOO_SOCKET_IFNAME" in process.err.splitlines()[-1] for process in ended)


@pytest.mark.slow
def test_torchrun_on_two_machines_starts_again_what_died(machines: Machines) -> None:
    lab = machines.lab
    started = [_torchrun(rank, lab, "rejoined") for rank in range(2)]
    checkpoint = lab.root / "rejoined" / "last.ckpt"
    while not checkpoint.exists() and started[0].poll() is None:
        os.sched_yield()
    (worker,) = children_of(started[1].pid)
    os.kill(worker, signal.SIGKILL)
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert "Restoring states" in errors[0], errors
    assert lab.result("rejoined") == lab.two()


def _torchrun(rank: int, lab: Lab, name: str) -> "subprocess.Popen[str]":
    settings: dict[str, Any] = {
        "nnodes": 2,
        "nproc_per_node": 1,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"{ADDRESSES[0]}:29500",
        "rdzv_conf": f"is_host={1 - rank}",  # namespaces share the name of the host
        "local_addr": ADDRESSES[rank],
        "max_restarts": 1,
    }
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    places = [f"--runs_dir={lab.root}", f"--name={name}"]
    return subprocess.Popen(
        [*INSIDE[rank], *command, "cli.py", "fit", *lab.options, *places, *SHARED, "--resume"],
        cwd=PROJECT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": CABLES[rank],
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
