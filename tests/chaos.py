"""Kills trainings where it hurts, and tells whether what goes on is what would have been.

Every command runs in a process of its own, forked from one that has imported the command line: a
start costs a tenth of a second instead of ten.
"""

import base64
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent

# Where in a run, and the how manieth time: ``("on_train_batch_end", 3)``.
Place = tuple[str, int]
_FUNCTIONS = {
    "torch.save": "torch:save",  # a checkpoint is about to be written
    "os.fsync": "os:fsync",  # a file is written, and not in its place yet
    "Path.replace": "pathlib:Path.replace",  # ... and about to be
    "weights_sha256": "experiments.session.outcome:weights_sha256",  # after the fit, outside of it
    "plots.curves": "experiments.analysis.plots:curves",  # all is over but for the summary
}


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit status; negative for the signal that killed it.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str


class Zygote:
    """A process that has imported the command line and forks itself for every command.

    Args:
        inside: a command that starts others, as ``ip netns exec NAME`` does.
    """

    def __init__(self, inside: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*inside, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_without_wandb(os.environ), "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        args: Sequence[str],
        at: Place | None = None,
        signum: int = signal.SIGKILL,
        largest_file: int | None = None,
        victim: str = "",
        **env: str,
    ) -> Ended:
        """Runs ``cli.py`` with arguments.

        Args:
            args: the arguments.
            at: where it sends a signal to itself.
            signum: the signal.
            largest_file: bytes at which the system refuses to let a file grow, as if the disk
                were full.
            victim: name of a program that it has started and that gets the signal instead.
            **env: environment variables.
        """
        order = {"args": list(args), "at": at, "signum": signum, "env": env, "limit": largest_file}
        (ended,) = self._order([{**order, "victim": victim}])
        return ended

    def run_at_once(self, commands: Sequence[Sequence[str]]) -> list[Ended]:
        """Runs commands at the same time, each in a process of its own."""
        shared: dict[str, Any] = {"at": None, "signum": signal.SIGKILL, "env": {}, "limit": None}
        return self._order([{**shared, "args": list(args)} for args in commands])

    def run_two(self, args: Sequence[str], at: Place | None = None, **kwargs: Any) -> list[Ended]:
        """Runs ``cli.py`` in two processes that share the work, as ``torchrun`` starts them.

        Args:
            args: the arguments.
            at: where the second process sends a signal to itself.
            **kwargs: see `run`.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        orders = []
        for rank in range(2):
            env = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TORCHELASTIC_RUN_ID": "test",
            }
            where = at if rank == 1 else None
            orders.append({"args": list(args), "at": where, "env": env, "limit": None, **kwargs})
        return self._order(orders)

    def _order(self, orders: list[dict[str, Any]]) -> list[Ended]:
        assert self._process.stdin and self._process.stdout
        here = str(Path.cwd())
        self._process.stdin.write(json.dumps([{**order, "cwd": here} for order in orders]) + "\n")
        self._process.stdin.flush()
        return [Ended(**ended) for ended in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _without_wandb(env: Mapping[str, str]) -> dict[str, str]:
    """Leaves out what W&B tells other processes: each command is to start a W&B of its own."""
    return {name: value for name, value in env.items() if not name.startswith("WANDB_")}


def _serve() -> None:
    """Forks for every order that comes."""
    sys.path.insert(0, str(PROJECT))
    gc.disable()  # as cli.py does
    importlib.import_module("experiments.command_line.interface")
    gc.freeze()
    gc.enable()
    os.fsync = sync_nothing  # type: ignore[assignment]
    for line in sys.stdin:
        children = [_fork(order) for order in json.loads(line)]
        print(json.dumps([_wait(*child) for child in children]), flush=True)


def _fork(order: dict[str, Any]) -> tuple[int, int, int]:
    out, err = (os.memfd_create(name) for name in ("out", "err"))
    child = os.fork()
    if child == 0:
        _obey(order, out, err)
    return child, out, err


def _wait(child: int, out: int, err: int) -> dict[str, Any]:
    _, status = os.waitpid(child, 0)
    return asdict(Ended(os.waitstatus_to_exitcode(status), _read(out), _read(err)))


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor) as file:
        return file.read()


def _obey(order: dict[str, Any], out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = 0
    try:
        os.chdir(order["cwd"])
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        os.environ.update(order["env"])
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
            # Of tests in the background of a script, or under nohup, some are ignored.
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        sys.argv = [str(PROJECT / "cli.py"), *order["args"]]
        plots: Any = importlib.import_module("experiments.analysis.plots")
        for picture in PICTURES:
            setattr(plots, picture, draw_a_dot)
        if order["at"]:
            arm(tuple(order["at"]), order["signum"], order.get("victim", ""))
        importlib.import_module("cli").main(order["args"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# What `experiments.analysis.plots` draws of a run: half of the time of a short one.
PICTURES = ("curves", "confusion_matrix", "image_grid")
_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


def draw_a_dot(*args: Any, **kwargs: Any) -> None:
    """Writes a picture of one pixel in place of another, as W&B wants to have one."""
    (path,) = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Path)]
    path.write_bytes(_DOT)


def sync_nothing(descriptor: Any) -> None:
    """Stands for `os.fsync`: tests wait for no disk, and what a killed process wrote is kept."""


def arm(place: Place, signum: int, victim: str = "") -> None:
    """Has this process send itself, or a victim, a signal at the n-th time it comes to a place."""
    name, count = place
    seen = 0

    def pass_by() -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            for process in _started(victim) if victim else [os.getpid()]:
                os.kill(process, signum)

    if name in _FUNCTIONS:
        module, _, path = _FUNCTIONS[name].partition(":")
        *owners, function = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, function, _before(pass_by, getattr(owner, function)))
        return
    trainer_calls: Any = importlib.import_module("pytorch_lightning.trainer.call")
    original = trainer_calls._call_callback_hooks

    def call(trainer: Any, hook: str, *args: Any, **kwargs: Any) -> None:
        if hook == name:
            pass_by()
        original(trainer, hook, *args, **kwargs)

    trainer_calls._call_callback_hooks = call


def _started(name: str) -> list[int]:
    """The programs of a name that this process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = path.read_text().partition(" (")
            program, _, state = rest.rpartition(") ")
            parents[int(number)] = (program, int(state.split()[1]))
    ours, grown = {os.getpid()}, True
    while grown:
        children = {child for child, (_, parent) in parents.items() if parent in ours}
        grown = not children <= ours
        ours |= children
    found = [child for child in ours if parents.get(child, ("", 0))[0] == name]
    assert found, f"no {name} among {parents}"
    return found


def _before(action: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        action()
        return function(*args, **kwargs)

    return call


# ---- what a run has come to ----------------------------------------------------------------------

_TIMES = ("seconds", "images_per_s", "train/seconds", "train/images_per_s")
_PLACES = (
    "dirpath",
    "current_score",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "best_k_models",
)
# Among it the state of the checkout: somebody may edit a file, or commit, while tests run.
_OF_A_PROCESS = ("command", "started", "ended", "seconds", "resumed", "name", "wandb_id", "git")


def fingerprint(run: Path) -> dict[str, Any]:
    """All that a run has come to, but for times and places: equal for equal runs."""
    record = json.loads((run / "record.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found: dict[str, Any] = {
        "record": {key: value for key, value in record.items() if key not in _OF_A_PROCESS},
        "metrics": [_timeless(json.loads(line)) for line in lines],
    }
    found["record"]["summary"] = _timeless(record["summary"])
    evaluations = record.get("evaluations", {})
    found["record"]["evaluations"] = {k: v for k, v in evaluations.items() if ".csv" not in k}
    for path in sorted(run.glob("*.ckpt")):
        if path.stem != "previous":
            found[path.name] = hash_of_checkpoint(path)
    return found


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _TIMES}


def hash_of_checkpoint(path: Path) -> str:
    """A hash of weights, optimiser, schedules, progress and statistics of a checkpoint."""
    torch = importlib.import_module("torch")
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    content["callbacks"] = {
        name: {key: value for key, value in state.items() if key not in (*_PLACES, *_TIMES)}
        for name, state in content["callbacks"].items()
    }
    digest = hashlib.sha256()
    _feed(digest, content, torch)
    return digest.hexdigest()


def _feed(digest: Any, value: Any, torch: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(digest, value[key], torch)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item, torch)
    else:
        digest.update(repr(value).encode())


if __name__ == "__main__":
    _serve()
