"""Errors that tell the user what to do, and the library errors that the user can fix."""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
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


def is_user_error(error: BaseException) -> bool:
    """Whether the user's input caused an error that was raised while a run is set up."""
    if isinstance(error, (*_BUILT_IN, RunError)):
        return True
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return any(kind in _LIBRARY_ERRORS for kind in kinds)


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
