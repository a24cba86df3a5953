"""Runs commands of ``cli.py`` in processes that start at once, because PyTorch is loaded before."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

RUN = "experiments.command_line.interface"
CHECK = "experiments.tuning.check_fit"
_POLL_S = 0.5


def _context() -> ForkServerContext | SpawnContext:
    """Starts processes as copies of one that has loaded PyTorch; on Windows, new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([CHECK])  # which imports RUN
    return context


def run_command(
    words: Sequence[str],
    log: Path,
    each_moment: Callable[[], int | None] = lambda: None,
    what: str = RUN,
) -> int:
    """Runs a command to its end.

    Args:
        words: arguments of ``cli.py``.
        log: a file that receives what the command prints.
        each_moment: called twice a second; returns a signal to send, if any.
        what: `RUN`, or `CHECK` to check a fit and end before it trains.

    Returns:
        The exit status; negative for a signal that the command did not take.
    """
    arguments = (what, list(words), str(log), str(Path.cwd()), dict(os.environ))
    process = _context().Process(target=_execute, args=arguments)
    process.start()
    while process.is_alive():
        signum = each_moment()
        if signum is not None and process.pid is not None:
            os.kill(process.pid, signum)
        process.join(_POLL_S)
    assert process.exitcode is not None
    return process.exitcode


def _execute(
    what: str, words: list[str], log: str, folder: str, environment: Mapping[str, str]
) -> None:
    """The command, in its process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C at the terminal reaches the sweep, which passes it on once
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with Path(log).open("a", encoding="utf-8") as file:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), "cli.py", *words, file=file, flush=True)
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["cli.py", *words]
    import_module(what).run()


def _stop_with_parent() -> None:
    """Makes this process save and stop if the one that runs it is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
