"""Train, validate, test and predict: ``python cli.py fit --config configs/mlp.yaml``.

Each run keeps everything in ``runs/<name>/``; later commands find it by name:
``python cli.py test --name <name>``.
"""

import contextlib
import difflib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning.cli import ArgsType

_INTERFACE = "experiments.command_line.interface"
# Commands that are programs of their own.
_PROGRAMS = {
    "export": "experiments.export",
    "compare": "experiments.compare",
    "export_runs": "experiments.export_runs.program",
    "reproduce": "reproduce",
    "sweep": "experiments.tuning.sweep",
    "find_lr": "experiments.tuning.find_lr",
    "find_batch_size": "experiments.tuning.find_batch_size",
}
_SLOW = {  # they import PyTorch
    "experiments.export",
    "experiments.completion.script",
    "experiments.tuning.find_lr",
    "experiments.tuning.find_batch_size",
}
_OURS = ("custom_ops", "datamodules", "experiments", "lightning_modules", "reproduce")
# Lightning, torchrun and SLURM write the rank of a process into these variables.
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")


def main(args: "ArgsType" = None) -> None:
    """Runs the command line, and exits with its status if that is not 0.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by 2>&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
    words = sys.argv[1:] if args is None else args if isinstance(args, list) else []
    if words[:1] == ["--version"]:
        print(f"cifar10-lightning {version('cifar10-lightning')}")
        return
    _check_packages()
    if words and words[0] in _PROGRAMS:
        _run_program(_PROGRAMS[words[0]], words[1:])
        return
    if words[:1] == ["completion"]:
        _run_program("experiments.completion.script", words[1:], _PROGRAMS)
        return
    if words and not words[0].startswith("-"):  # an option is left to the parser
        _check_command(words[0])
    if _INTERFACE not in sys.modules:
        if args is None and all(os.environ.get(name, "0") == "0" for name in _RANKS):
            _say("loading PyTorch and Lightning")
        with _importing():
            import_module(_INTERFACE)
    import_module(_INTERFACE).run(args)


def _run_program(module: str, *arguments: object) -> None:
    """Runs another program of this project; Ctrl-C and a closed pipe end it without a traceback."""
    if module not in sys.modules:
        if module in _SLOW:
            _say("loading PyTorch and Lightning")
        with _importing():
            import_module(module)
    with import_module("experiments.errors").ended_plainly():
        import_module(module).main(*arguments)


def _check_command(word: str) -> None:
    """Refuses a command that does not exist."""
    known = [*import_module("experiments.command_line.help").COMMANDS, *_PROGRAMS, "completion"]
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        _say(f"error: no command {word!r}: {hint}")
        raise SystemExit(2)


def _check_packages() -> None:
    """Refuses another package in place of this project's, such as ``experiments`` in PYTHONPATH."""
    for name in _OURS:
        spec = find_spec(name)
        place = Path((spec.submodule_search_locations or [str(spec.origin)])[0]) if spec else None
        if place is None or place.resolve().parent != Path(__file__).resolve().parent:
            _say(
                f"error: {name} is {place}, not that of cifar10-lightning: rename it, or take its "
                "folder out of PYTHONPATH"
            )
            raise SystemExit(2)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Imports without a traceback on Ctrl-C, and without the garbage collector.

    Imported objects stay in use, and a search through them takes a third of the start.
    """
    interrupt, collects = signal.getsignal(signal.SIGINT), gc.isenabled()
    in_main = threading.current_thread() is threading.main_thread()
    is_ours = in_main and interrupt is signal.default_int_handler  # otherwise it is ignored
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, interrupt)
        if collects:
            gc.freeze()
            gc.enable()


if __name__ == "__main__":
    main()
