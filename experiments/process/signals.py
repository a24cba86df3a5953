"""Signals: a command saves and ends between two batches, or at once if it has nothing to save."""

import contextlib
import enum
import os
import signal
import stat
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# SIGHUP comes when a terminal is closed, SIGUSR1 from batch systems before a job's time is over;
# Windows has neither.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(BaseException):
    """A signal ends the command.

    Attributes:
        signum: the signal.
        status: the exit status of the command, as shells expect: 130, 143, 129 or 138.
        preempts: whether a system sent the signal, not a person at the keyboard.
        requeues: whether to run the job again; SIGTERM may come from ``scancel``.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.status = 128 + signum
        name = str(self)
        self.preempts = name in {"SIGTERM", "SIGUSR1"}
        self.requeues = name == "SIGUSR1"


class Phase(enum.Enum):
    """The work that a first signal lets finish, in words for the message."""

    START = "the start"
    BATCH = "this batch"
    FIT = "the fit"
    SUMMARY = "the summary"


class StopSignals:
    """Takes SIGINT, SIGTERM, SIGHUP and SIGUSR1, until its context ends.

    An exception from a handler is lost if the signal interrupts a finaliser. So a signal is also
    stored for `check`.

    Attributes:
        received: the received signal, if any.
        phase: the work that a first signal lets finish; None if it raises `Stopped` at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.phase: Phase | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.give_back()

    def take(self, phase: Phase | None = None) -> None:
        """Takes the signals, except ignored ones, such as SIGHUP under nohup.

        Args:
            phase: see the attribute.
        """
        self.phase = phase
        for signum in _SIGNALS:
            before = self._before.setdefault(signum, signal.getsignal(signum))
            if before is not signal.SIG_IGN:
                _set_handler(signum, self._handle)

    def give_back(self) -> None:
        """Restores the previous handlers."""
        for signum, handler in self._before.items():
            _set_handler(signum, handler)
        self._before = {}

    def check(self) -> None:
        """Stops if a signal came.

        Raises:
            Stopped: if so.
        """
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signum
        if signum == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        if not first or self.phase is None:
            raise Stopped(signum)
        text = f"\nstopping after {self.phase.value}; once more to stop at once\n"
        with contextlib.suppress(OSError):  # not print: the signal may have interrupted a print
            os.write(2, text.encode())


def _leave_terminal() -> None:
    """Redirects output for a closed terminal, where writing would be an error."""
    with contextlib.suppress(OSError), Path(os.devnull).open("r+b", 0) as nowhere:
        for descriptor in (0, 1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere.fileno(), descriptor)


def _set_handler(signum: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
