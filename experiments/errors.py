"""Errors that tell the user what to do, and the library errors that the user can fix."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from experiments.texts import printable


class RunError(RuntimeError):
    """A run or its files can't be used for this command; the message names the remedy."""


class UsageError(Exception):
    """The user can fix the cause; the message says how in one line."""


_BUILT_IN = (
    ValueError,
    TypeError,
    ModuleNotFoundError,  # what an accelerator, a logger or a strategy needs
)
# By name, so that a comparison of runs does not import these libraries.
_LIBRARY_ERRORS = {
    "datamodules.files.DatasetError",
    "lightning_fabric.utilities.exceptions.MisconfigurationException",
}

_PROJECT = {
    "cli.py",
    "custom_ops",
    "datamodules",
    "experiments",
    "lightning_modules",
    "reproduce.py",
}


def is_user_error(error: BaseException) -> bool:
    """Whether the user's input caused an error that was raised while a run is set up."""
    if isinstance(error, (*_BUILT_IN, RunError)):
        return True
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return any(kind in _LIBRARY_ERRORS for kind in kinds)


def place_in_own_code(error: BaseException) -> str:
    """Where a user's own module raised an error, or the last call in it that led to the error.

    Args:
        error: its causes are searched too: libraries reword errors.

    Returns:
        ``mynet.py, line 7, in __init__: KeyError``; empty if no own module took part.
    """
    for found in causes_of(error):
        frames = [f for f in traceback.extract_tb(found.__traceback__) if _is_own(f.filename)]
        if frames:
            last = frames[-1]
            inside = "" if last.name == "<module>" else f", in {last.name}"
            place = os.path.relpath(last.filename)
            return f"{place}, line {last.lineno}{inside}: {type(found).__name__}"
    return ""


def causes_of(error: BaseException) -> list[BaseException]:
    """An error, its cause, the cause of this, and so on."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _is_own(filename: str) -> bool:
    """Whether a file is neither of this project nor of a library."""
    path = Path(filename)
    if not path.is_file() or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    project = Path(__file__).resolve().parent.parent
    inside = path.is_relative_to(project) and path.relative_to(project).parts[0] in _PROJECT
    return not inside and not path.is_relative_to(sysconfig.get_path("stdlib"))


def fail(error: object) -> NoReturn:
    """Prints an error in one line, and exits with status 2; line breaks are escaped."""
    with contextlib.suppress(OSError):  # nobody may be listening
        print(printable(f"error: {error}"), file=sys.stderr)
    raise SystemExit(2)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with status 2; it takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the error and exits."""
        fail(f"{' '.join(message.split())}; see {self.prog} --help")


@contextlib.contextmanager
def ended_plainly() -> Iterator[None]:
    """Lets Ctrl-C and a closed pipe (``| head``) end a program without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.ENOSPC}:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is lost
        raise SystemExit(1) from None
