"""Serves the page on this machine alone; runs that train appear and grow.

No address names a file: a request names a run by the name that the page has for it, and one of
three pictures. Only the loopback interface listens, and a request for another host is refused,
because a page elsewhere may have let its own name lead here.
"""

import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from experiments.page.build import live_page, picture, policy
from experiments.page.payload import PICTURES, Grouped, identify, overview, run_fields
from experiments.records.log import METRICS
from experiments.records.record import CONFIG, RECORD
from experiments.records.runs import Run, read_run
from experiments.texts import printable

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_WATCHED = (RECORD, METRICS, CONFIG, "confusion_test.json", "confusion_val.json", *PICTURES)
_LONGEST_VERSION = 20  # digits
_MOST_FILES = 1_000  # of a run of another tool
_PAUSE_S = 1.0  # between two looks at the disk

Signature = tuple[tuple[int, int] | None, ...]


class Watched:
    """Runs on the disk, and which of them changed since when.

    Args:
        find: finds all runs; called again if a folder or file appears or goes, and if a file of
            another tool changes, because several runs may be in it.
        judge: groups them.
        roots: folders in which runs appear.
        view: settings of the page to begin with.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Run]],
        judge: Callable[[Sequence[Run]], Grouped],
        roots: Sequence[Path],
        view: dict[str, Any] | None = None,
    ) -> None:
        self._find, self._judge, self._roots = find, judge, roots
        self._view = view or {}
        self._lock = threading.Lock()
        self._begun = secrets.token_hex(8)  # tells the numbers of this server from an earlier one's
        self._version = 0
        self._looked = float("-inf")
        self._places: list[str] | None = None
        self._runs: dict[Path, Run] = {}
        self._names: dict[Path, str] = {}
        self._signatures: dict[Path, Signature] = {}
        self._fields: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._overview: dict[str, Any] = {}

    def news(self, since: str = "") -> dict[str, Any]:
        """What changed, for the page.

        Args:
            since: ``version`` of the news that the page has; another text for everything.
        """
        with self._lock:
            self._look()
            begun, _, number = since.partition("-")
            known = begun == self._begun and number.isdecimal() and len(number) < _LONGEST_VERSION
            after = int(number) if known else -1
            changed = [fields for at, fields in self._fields.values() if at > after]
            return {
                **self._overview,
                "version": f"{self._begun}-{self._version}",
                "runs": changed,
                "live": True,
                "view": self._view,
            }

    def version(self) -> str:
        """The version of the newest state, after a look at the disk."""
        with self._lock:
            self._look()
            return f"{self._begun}-{self._version}"

    def picture(self, name: str, file: str) -> bytes | None:
        """A picture of a run; None if there is none inside the folders of the runs."""
        with self._lock:
            path = next((path for path, known in self._names.items() if known == name), None)
        if path is None or path not in self._runs or file not in PICTURES:
            return None
        place = (path / file).resolve()  # a run's folder may be a link
        inside = any(place.is_relative_to(root.resolve()) for root in self._roots)
        return picture(path / file) if inside else None

    def _look(self) -> None:
        if time.monotonic() - self._looked < _PAUSE_S:
            return
        try:
            self._update()
        except Exception:
            self._places, self._signatures = None, {}  # the next look begins again
            raise
        self._looked = time.monotonic()

    def _update(self) -> None:
        places = self._listed()
        anew = places != self._places or self._others_changed()
        changed = self._find_again() if anew else self._read_again()
        self._places = places
        if changed or not self._overview:
            self._version += 1
            found = self._judge(list(self._runs.values()))
            self._overview = overview(found, self._names)
            for path in changed & self._runs.keys():
                self._fields[path] = self._version, run_fields(self._runs[path], self._names[path])

    def _listed(self) -> list[str]:
        """The places in which a run may be; those without a record, with what changes in them."""
        found = []
        parents = {path.parent for path in self._runs} | set(self._roots)
        for parent in sorted(parents):
            try:
                entries = [*os.scandir(parent)]
            except OSError:
                continue
            found += [_place(entry) for entry in entries]
        return sorted(found)

    def _others_changed(self) -> bool:
        """Whether a file of another tool changed."""
        others = (run for run in self._runs.values() if run.source != "record")
        return any(_signature(run) != self._signatures.get(run.path) for run in others)

    def _find_again(self) -> set[Path]:
        before = self._runs
        signatures = {path: _signature(run) for path, run in before.items()}  # before it is read
        self._runs = {run.path: run for run in self._find()}
        self._names = identify(self._runs.values(), self._names)
        signatures = {p: signatures.get(p) or _signature(run) for p, run in self._runs.items()}
        gone = before.keys() - self._runs.keys()
        for path in gone:
            self._fields.pop(path, None)
        changed = {
            path
            for path, run in self._runs.items()
            if path not in before
            or self._signatures.get(path) != signatures[path]
            or before[path].status != run.status
        }
        self._signatures = signatures
        return changed | gone

    def _read_again(self) -> set[Path]:
        changed = set()
        for path, run in self._runs.items():
            if run.source != "record":
                continue
            signature = _signature(run)
            if signature != self._signatures[path] or run.status == "running":
                again = read_run(path)
                if signature != self._signatures[path] or again.status != run.status:
                    self._runs[path] = again
                    changed.add(path)
            self._signatures[path] = signature
        return changed


def _place(entry: "os.DirEntry[str]") -> str:
    """A folder with a record, or a file, by its path; another folder also by its time."""
    try:
        is_other = entry.is_dir() and not os.path.lexists(f"{entry.path}/{RECORD}")
        return f"{entry.path} {entry.stat().st_mtime_ns}" if is_other else entry.path
    except OSError:
        return entry.path


def _signature(run: Run) -> Signature:
    """Sizes and times of the files of a run that the page shows."""
    if run.source == "record":
        files = [f"{run.path}/{file}" for file in _WATCHED]
    else:
        files = _files_of_other(run.path)
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116 - three times as fast for many runs
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _files_of_other(path: Path) -> list[str]:
    """The files of a run of another tool: those in its folder, or the file that holds it."""
    place = path if path.exists() else path.parent  # of a run in a database or in Parquet files
    if not place.is_dir():
        return [str(place), f"{place}-wal"]  # SQLite writes into the second first
    walk = (f"{at}/{name}" for at, _, names in os.walk(place) for name in names)
    return sorted(itertools.islice(walk, _MOST_FILES))


class _Handler(BaseHTTPRequestHandler):
    timeout = 60
    server: "PageServer"

    def do_GET(self) -> None:
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._answer(b"no address", "text/plain", HTTPStatus.BAD_REQUEST)
            return
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if not self._is_for_this_machine():
            self._answer(b"wrong host", "text/plain", HTTPStatus.FORBIDDEN)
        elif parts.path == "/":
            page = live_page(self.server.watched.news())
            self._answer(page.encode(), "text/html; charset=utf-8")
        elif parts.path == "/data":
            self._data(query.get("since", ""))
        elif parts.path == "/picture":
            self._picture(query.get("run", ""), query.get("file", ""))
        else:
            self._answer(b"not found", "text/plain", HTTPStatus.NOT_FOUND)

    def _data(self, since: str) -> None:
        version = self.server.watched.version()
        if self.headers.get("If-None-Match") == f'"{version}"':
            self._answer(b"", "application/json", HTTPStatus.NOT_MODIFIED, version)
            return
        news = self.server.watched.news(since)
        text = json.dumps(news, allow_nan=False)
        self._answer(text.encode(), "application/json", version=str(news["version"]))

    def _picture(self, run: str, file: str) -> None:
        content = self.server.watched.picture(run, file)
        if content is None:
            self._answer(b"no such picture", "text/plain", HTTPStatus.NOT_FOUND)
        else:
            self._answer(content, "image/png")

    def _is_for_this_machine(self) -> bool:
        name, _, port = self.headers.get("Host", "").rpartition(":")
        return name in _NAMES and port == str(self.server.server_port)

    def _answer(
        self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, version: str = ""
    ) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache" if version else "no-store",
        }
        headers |= {"ETag": f'"{version}"'} if version else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing for a request."""


class PageServer(ThreadingHTTPServer):
    """The server of the page.

    Args:
        watched: the runs.
        port: 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.watched = watched

    @property
    def address(self) -> str:
        """What to type into a browser."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that went away, and one line of anything else."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(printable(f"error: the page could not be made: {error!r}"), file=sys.stderr)
