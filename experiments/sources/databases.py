"""Opens SQLite files of any origin to read them: no code of a file runs, and nothing is written.

Only tables are read: a view, a virtual table, a trigger or a function of the file could take hours.
A file that another program writes at the moment is copied first, with its write-ahead log, so that
reading leaves no trace beside it.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.records.files import file_identity, open_regular, read_bytes

LARGEST_DATABASE = 2**30  # bytes
_HEADER = b"SQLite format 3\x00"
_PATIENCE_S = 20  # for one file
_MOST_ROWS = 5_000_000  # of one table
_LARGEST_VALUE = 2**24  # bytes
_LARGEST_TABLE = 2**28  # bytes of text; a column may be computed, and larger than the file
_TRIES = 5
_WITH_LOG = 2  # byte 18 of a file that has a write-ahead log


class Database:
    """A database that is open for reading.

    Attributes:
        columns: the columns of each table.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Views and virtual tables have no page of their own.
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        )
        names = [name for (name,) in found if isinstance(name, str)]
        self.columns = {name: self._columns_of(name) for name in names}

    def _columns_of(self, table: str) -> set[str]:
        quoted = table.replace('"', '""')
        cursor = self._connection.execute(f'SELECT * FROM "{quoted}" LIMIT 0')
        return {column[0] for column in cursor.description}

    def has(self, table: str, *columns: str) -> bool:
        """Whether there is a table with these columns."""
        return self.columns.get(table, set()) >= {*columns}

    def rows(self, table: str, *columns: str, order: str = "") -> Iterator[tuple[Any, ...]]:
        """Yields the rows of a table.

        Args:
            table: its name.
            columns: their names; a column that is missing gives None.
            order: columns to sort by, with commas.

        Raises:
            ValueError: if there are too many rows, or too much text.
        """
        there = self.columns.get(table, set())
        if not there:
            return
        chosen = ", ".join(f'"{column}"' if column in there else "NULL" for column in columns)
        sort = f" ORDER BY {order}" if order else ""
        cursor = self._connection.execute(f'SELECT {chosen} FROM "{table}"{sort}')
        size = 0
        for count, row in enumerate(cursor, 1):
            if count > _MOST_ROWS:
                raise ValueError(f"its table {table} has more than {_MOST_ROWS:,} rows")
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if size > _LARGEST_TABLE:
                raise ValueError(f"its table {table} has more than {_LARGEST_TABLE:,} bytes")
            yield row


def is_database(path: Path) -> bool:
    """Whether a file begins as SQLite's do."""
    try:
        with open_regular(path) as file:
            return bool(file.read(len(_HEADER)) == _HEADER)
    except OSError:
        return False


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """Opens a file of SQLite.

    Raises:
        OSError: if the system can't read it.
        ValueError: if it is damaged, too large, or takes too long.
    """
    try:
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(_address(path))
            connection = sqlite3.connect(address, uri=True, timeout=2)
            stack.callback(connection.close)
            _limit(connection)
            yield Database(connection)
    except sqlite3.Error as error:
        reason = "reading it takes too long" if "interrupt" in str(error) else str(error)
        raise ValueError(reason) from error


def _limit(connection: sqlite3.Connection) -> None:
    """Limits the size of a value and the time, and allows nothing but to read tables."""
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
    end = time.monotonic() + _PATIENCE_S
    connection.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
    connection.set_authorizer(_authorize)


def _authorize(action: int, _: str | None, __: str | None, ___: str | None, of: str | None) -> int:
    """Allows to read, but not for a view or a trigger, whose name is `of`."""
    reads = action in {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ} and of is None
    return sqlite3.SQLITE_OK if reads else sqlite3.SQLITE_DENY


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The address under which SQLite writes nothing beside the file."""
    with open_regular(path) as file:
        size, header = os.fstat(file.fileno()).st_size, file.read(len(_HEADER) + 4)
    if size > LARGEST_DATABASE:
        raise ValueError(f"it has {size:,} bytes; at most {LARGEST_DATABASE:,} are read")
    if header[: len(_HEADER)] != _HEADER:
        raise ValueError("it is no file of SQLite" if size else "it is empty")
    log = path.with_name(f"{path.name}-wal")
    if header[18:19] != bytes([_WITH_LOG]):
        yield f"{path.absolute().as_uri()}?mode=ro"
    elif not (log.is_file() and log.stat().st_size):
        yield f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "copy.db")
            _copy_together(path, log, copy)
            yield copy.as_uri()


def _copy_together(path: Path, log: Path, copy: Path) -> None:
    """Copies a file and its write-ahead log, again if the file changes meanwhile."""
    for _ in range(_TRIES):
        before = file_identity(path)
        with open_regular(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        written = read_bytes(log, LARGEST_DATABASE) if log.is_file() else b""
        copy.with_name(f"{copy.name}-wal").write_bytes(written)
        if file_identity(path) == before:
            return
    raise ValueError("it changes faster than it can be read")
