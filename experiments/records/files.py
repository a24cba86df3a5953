"""Reads and writes the files of a run safely, even if somebody else made the run.

Only regular files of limited size are read, and reading never waits. A write replaces the old file
by a complete new one: a symbolic link of that name is replaced, and its target stays unchanged. The
folder of a run may itself be a link, for example to another disk.
"""

import contextlib
import errno
import functools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, Timeout

from experiments.errors import RunError

_LOCK_TIMEOUT_S = 60.0  # far longer than the write of a record

try:
    import fcntl
except ModuleNotFoundError:  # not POSIX: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # held by the process that trains
RECORD_LOCK = ".record.lock"  # held while a process writes the record
PARTIAL = ".partial"  # suffix of an unfinished file
_LONGEST_LINE = 2**20  # bytes; a log entry has a few hundred
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
# Entries of a run's folder that other programs change in place, not by a new file.
_WRITTEN_INTO = (".", "wandb", "wandb/artifacts", "wandb/artifacts/staging")
_WANDB_LINKS = {"latest-run", "debug.log", "debug-internal.log", "debug-core.log"}
_LINK_REMEDY = "put what it leads to in its place, or remove it"
_LOCKS = {LOCK, RECORD_LOCK}
_KEPT_OPEN = {*_LOCKS, "metrics.jsonl"}


# ---- reading ------------------------------------------------------------------------------------


def check_link(path: Path) -> None:
    """Refuses a link that leads out of its folder: a stranger's folder must show nothing else.

    Raises:
        OSError: if it does.
    """
    leads_to_a_file = path.is_symlink() and path.is_file()
    if leads_to_a_file and not path.resolve().is_relative_to(path.parent.resolve()):
        raise OSError(errno.ELOOP, "it is a link to a file outside of its folder: copy the file")


def read_text(path: Path, largest: int) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file; a link is followed within its folder.
        largest: how many bytes it may have.

    Raises:
        OSError: if the system can't read it, if it is no regular file, or too large.
        UnicodeDecodeError: if it is not in UTF-8.
    """
    check_link(path)
    return read_bytes(path, largest).decode("utf-8-sig")


def read_bytes(path: Path, largest: int) -> bytes:
    """Reads a file.

    Args:
        path: the file; a link to one is followed.
        largest: how many bytes it may have.

    Raises:
        OSError: if the system can't read it, if it is no regular file, or too large.
    """
    with open_regular(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, largest)
        content: bytes = file.read(largest + 1)
    _check_size(len(content), largest)
    return content


def read_lines(path: Path, largest: int) -> Iterator[str]:
    """Yields the lines of a text file, each with its end; what is not UTF-8 is marked as such.

    Args:
        path: the file; a link is followed within its folder.
        largest: how many bytes it may have.

    Raises:
        OSError: if the system can't read it, if it is no regular file, or too large.
    """
    check_link(path)
    with open_regular(path) as file:
        _check_size(os.fstat(file.fileno()).st_size, largest)
        size = 0
        while line := file.readline(_LONGEST_LINE + 1):
            size += len(line)
            _check_size(size, largest)  # it may be growing
            if len(line) > _LONGEST_LINE:
                raise OSError(errno.EFBIG, f"it has a line of more than {_LONGEST_LINE:,} bytes")
            yield line.decode("utf-8", "replace")


@contextlib.contextmanager
def open_regular(path: Path, mode: str = "rb", flags: int = 0) -> Iterator[IO[Any]]:
    """Opens a regular file; refuses a pipe or a device without waiting for it.

    Args:
        path: the file.
        mode: as for `open`.
        flags: more flags of the system's call.

    Raises:
        OSError: if the system can't open it, or if it is no regular file.
    """
    _check_kind(path.stat().st_mode if path.exists() else stat.S_IFREG)  # opening may have effects
    opener = functools.partial(_open, flags | _NEVER_WAIT)
    encoding = None if "b" in mode else "utf-8"
    with open(path, mode, encoding=encoding, opener=opener) as file:
        _check_kind(os.fstat(file.fileno()).st_mode)
        yield file


def _open(more_flags: int, path: str, flags: int) -> int:
    return os.open(path, flags | more_flags, 0o666)


def _check_kind(mode: int) -> None:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    if not stat.S_ISREG(mode):
        kind = kinds.get(stat.S_IFMT(mode), "special file")
        raise OSError(errno.EINVAL, f"it is a {kind}, not a regular file")


def _check_size(size: int, largest: int) -> None:
    if size > largest:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes; at most {largest:,} are read")


def reason_of(error: Exception) -> str:
    """The message of an error, in one line without the name of the file."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join((reason or type(error).__name__).split())


# ---- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path, remedy: str = "make room or fix its permissions") -> Iterator[None]:
    """Turns an error of the system on a folder that can't be written into a message.

    Args:
        path: the run's folder.
        remedy: what to do, for the message.

    Raises:
        RunError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to the run's folder {path}: {error.strerror}; {remedy}"
        ) from error


@contextlib.contextmanager
def synced(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Opens a file, not a link, and syncs its content to the disk at the end."""
    with open_regular(path, mode, _NO_LINKS) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Opens a text file to append to it; copies a hard link first, refuses a symbolic link.

    Raises:
        OSError: if the system can't open it, or if it is no regular file.
    """
    if path.is_file() and path.stat().st_nlink > 1:  # the other name keeps its content
        with replacing(path) as partial:
            shutil.copyfile(path, partial)
    with open_regular(path, "a", _NO_LINKS) as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file; at the end, it replaces the old file in one step.

    The temporary file is in the same folder and has a name that nobody can guess.
    """
    _remove_leftovers(path)
    partial, descriptor = _new_partial(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _new_partial(path: Path) -> tuple[Path, int]:
    """A new file beside another one; it is locked while its descriptor is open."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o666)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:  # otherwise another process removed it as a leftover
            return partial, descriptor
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Locks an open file if no other process has the lock; the system frees it at exit."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # also if the file system has no locks
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files that killed processes left."""
    for old in path.parent.glob(f".*{PARTIAL}"):
        if not old.name.startswith(f".{path.name}.") or old.is_symlink() or not old.is_file():
            continue
        with contextlib.suppress(OSError), open_regular(old, "rb+", _NO_LINKS) as file:
            if _lock(file.fileno(), wait=False):
                old.unlink()


def replace_file(path: Path, content: str) -> None:
    """Replaces a text file in one step and syncs it: readers see the old file or the new one."""
    with replacing(path) as partial, synced(partial, "w") as file:
        file.write(content)


@contextlib.contextmanager
def held(lock: BaseFileLock, what: str) -> Iterator[None]:
    """Waits for a lock and holds it; continues without it if the file system has no locks.

    Args:
        lock: the lock; a nested call may hold the same one.
        what: the protected thing, for the message.

    Raises:
        RunError: if another process holds it for a minute.
    """
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout as error:  # a subclass of OSError, so it comes first
        raise RunError(f"{what} is locked by another process for a minute: end that one") from error
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def is_in_folder(path: str | Path, folder: str | Path) -> bool:
    """Whether a file is directly in a folder, after links are resolved."""
    return Path(path).resolve().parent == Path(folder).resolve()


def file_identity(path: Path) -> tuple[int, ...]:
    """Values that change when a file is replaced or written; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# ---- folders ------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Refuses a run's folder if an entry would make a command write elsewhere, or wait.

    A link is allowed if a new file replaces it.

    Args:
        folder: the run's folder; it may be a link, or not exist yet.

    Raises:
        RunError: naming the entry and the remedy.
    """
    for place in _WRITTEN_INTO:
        with writing(folder), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in sorted((folder / place).iterdir()):
                if what := _leads_elsewhere(entry, place != "."):
                    raise RunError(f"{entry} is {what}")


def _leads_elsewhere(entry: Path, of_wandb: bool) -> str:
    """The problem of an entry of a run's folder; empty if there is none."""
    status = entry.lstat()
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        replaced = entry.is_file() and entry.name not in _KEPT_OPEN and not of_wandb
        own = of_wandb and entry.name in _WANDB_LINKS
        return "" if replaced or own else f"a symbolic link: {_LINK_REMEDY}"
    if entry.name in _LOCKS and status.st_nlink > 1 and status.st_size:  # the lock may empty it
        return "a second name of another file: remove it"
    known = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return "" if known else "neither a file nor a folder: remove it"


def remove_folder(folder: Path) -> None:
    """Removes a run's folder with its content; if it is a link, only the content."""
    if not folder.is_symlink():
        shutil.rmtree(folder)
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
