"""Files of a run: written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, Timeout

from experiments.errors import RunError

_LOCK_TIMEOUT_S = 60.0  # far longer than a record takes to write

PARTIAL = ".partial"  # what the name of an unfinished file ends in


@contextlib.contextmanager
def synced(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Opens a file whose content is on the disk itself when the context ends."""
    encoding = None if "b" in mode else "utf-8"
    with path.open(mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path, remedy: str = "make room or mend its permissions") -> Iterator[None]:
    """Tells what the system says of a folder that can't be written.

    Args:
        path: the run's folder.
        remedy: what to do, for the message.

    Raises:
        RunError: in place of what the system raises.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to the run's folder {path}: {error.strerror}; {remedy}"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file that takes the place of an old one in one step, when whole."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: str) -> None:
    """Writes a text file in one step and to the disk: it is the old one or the new one, whole."""
    with replacing(path) as partial, synced(partial, "w") as file:
        file.write(content)


@contextlib.contextmanager
def held(lock: BaseFileLock, what: str) -> Iterator[None]:
    """Holds a lock, waiting for it; goes without where the file system has no locks.

    Args:
        lock: what to hold; the same one may be held again within.
        what: what it protects, for the message.

    Raises:
        RunError: if another process holds it for a minute.
    """
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout as error:  # an OSError too: it must come first
        raise RunError(f"{what} is locked by another process for a minute: end that one") from error
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def file_identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; empty for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
