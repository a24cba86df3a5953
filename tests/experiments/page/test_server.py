import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare_page import make_runs
from experiments import compare
from experiments.page import server
from experiments.page.server import PageServer
from tests.conftest import PROJECT
from tests.experiments.sources.test_foreign_tools import unpacked

PNG = b"\x89PNG\r\n\x1a\nrest"


class Visit:
    """A server in this process, and requests to it."""

    def __init__(self, runs: Path, *options: str) -> None:
        asked = compare.parser().parse_args(["--serve", f"--runs_dir={runs}", *options])
        self.server: PageServer = compare.server_of(asked)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        port = self.server.server_port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def data(self, since: str = "") -> dict[str, Any]:
        status, content = self.get(f"/data?since={since}")
        assert status == 200
        found: dict[str, Any] = json.loads(content)
        return found

    def names(self) -> set[str]:
        return {*self.data()["order"]}

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    make_runs(folder, 3, points=3)
    return folder


@pytest.fixture
def visit(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    monkeypatch.setattr(server, "_PAUSE_S", 0.0)
    found = Visit(runs)
    yield found
    found.close()


def test_it_listens_on_this_machine_alone(visit: Visit) -> None:
    assert visit.server.server_address[0] == "127.0.0.1"
    assert visit.server.address == f"http://127.0.0.1:{visit.server.server_port}/"


def test_the_page_has_the_runs(visit: Visit) -> None:
    status, page = visit.get("/")
    assert status == 200
    assert b"packed-data" in page
    assert visit.names() == {"made-0-s0", "made-0-s1", "made-0-s2"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "[::1]:{port}"]
)
def test_a_request_for_another_host_is_refused(host: str, visit: Visit) -> None:
    host = host.format(port=visit.server.server_port)
    for path in ("/", "/data", "/picture?run=made-0-s0&file=curves.png"):
        assert visit.get(path, Host=host) == (403, b"wrong host")
    assert visit.get("/data", Host=f"localhost:{visit.server.server_port}")[0] == 200


OUTSIDE = [
    "/../secret.png",
    "/runs/made-0-s0/record.json",
    "/picture",
    "/picture?run=made-0-s0&file=record.json",
    "/picture?run=made-0-s0&file=../../secret.png",
    "/picture?run=made-0-s0&file=curves.png",  # a link to the secret
    "/picture?run=..&file=curves.png",
    "/picture?run=made-0-s0/../made-0-s1&file=curves.png",
    "/picture?run=away&file=mistakes_test.png",  # the folder is a link
    "/%2e%2e/secret.png",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_the_runs_is_served(
    path: str, visit: Visit, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    (runs / "made-0-s0/curves.png").symlink_to(tmp_path / "secret.png")
    (runs / "made-0-s1/curves.png").write_bytes(PNG)
    make_runs(tmp_path / "elsewhere", 1, points=1)
    (tmp_path / "elsewhere/made-0-s0/mistakes_test.png").write_bytes(PNG)
    (runs / "away").symlink_to(tmp_path / "elsewhere/made-0-s0")
    assert "away" in visit.names()
    assert visit.get(path)[0] == 404
    assert visit.get("/picture?run=made-0-s1&file=curves.png") == (200, PNG)


def test_only_changed_runs_come_again(visit: Visit, runs: Path) -> None:
    first = visit.data()
    assert len(first["runs"]) == 3
    assert visit.get("/data", **{"If-None-Match": f'"{first["version"]}"'}) == (304, b"")
    with (runs / "made-0-s1/metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "val/acc": 0.5}\n{"step": 500, "val/')
    news = visit.data(first["version"])
    assert [run["id"] for run in news["runs"]] == ["made-0-s1"]
    assert news["runs"][0]["curves"]["val/acc"]["last"] == 0.5
    assert news["order"] == first["order"]
    assert len(visit.data("of-another-server-1")["runs"]) == 3


def test_runs_appear_and_go(visit: Visit, runs: Path) -> None:
    visit.data()
    (runs / "new").mkdir()
    assert "new" not in visit.names()
    shutil.copytree(runs / "made-0-s0", runs / "new", dirs_exist_ok=True)
    assert "new" in visit.names()
    shutil.rmtree(runs / "made-0-s1")
    assert visit.names() == {"made-0-s0", "made-0-s2", "new"}
    shutil.rmtree(runs)
    assert visit.names() == set()


def last_of(news: dict[str, Any], metric: str) -> dict[str, float]:
    return {run["id"]: run["curves"][metric]["last"] for run in news["runs"]}


def test_runs_of_other_tools_appear_and_grow(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PAUSE_S", 0.0)
    logs = tmp_path / "logs"
    logs.mkdir()
    found = Visit(runs, str(runs), str(logs), "--curve=val/acc")
    try:
        found.data()
        (logs / "version_0").mkdir()
        (logs / "version_0/metrics.csv").write_text("step,val/acc\n1,0.25\n")
        first = found.data()
        (name,) = {*first["order"]} - {path.name for path in runs.iterdir()}
        assert last_of(first, "val/acc")[name] == 0.25
        with (logs / "version_0/metrics.csv").open("a") as file:
            file.write("2,0.5\n")
        news = found.data(first["version"])
        assert last_of(news, "val/acc") == {name: 0.5}
        assert found.data(news["version"])["runs"] == []
    finally:
        found.close()


def test_all_runs_of_a_database_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PAUSE_S", 0.0)
    database = next(unpacked("mlflow-sqlite", tmp_path).rglob("*.db"))
    found = Visit(tmp_path / "runs", str(database))
    try:
        first = found.data()
        assert len(first["runs"]) == 2
        with closing(sqlite3.connect(database)) as tables:
            tables.execute("UPDATE runs SET status = 'FAILED'")
            tables.commit()
        news = found.data(first["version"])
        assert [run["status"] for run in news["runs"]] == ["failed", "failed"]
    finally:
        found.close()


def test_the_margin_of_the_command_is_in_the_view(runs: Path) -> None:
    found = Visit(runs, "--margin=0.02")  # a baseline may be chosen later
    try:
        assert found.data()["view"]["margin"] == 0.02
    finally:
        found.close()


def half_written(run: Path) -> None:
    (run / "record.json").write_text('{"name": "a", "summ')


def without_metrics(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "config.yaml").write_bytes(b"\xff\xfe: [")


def with_nonsense(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b'\x00\xff{"step": 1}\nnull\n[[[\n')
    (run / "confusion_test.json").write_text("{")


def a_pipe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


def of_strange_types(run: Path) -> None:
    record = {"summary": {"a": {"b": 1}, "test/acc": None}, "hardware": {"gpus": 3}, "status": "x"}
    (run / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage", [half_written, without_metrics, with_nonsense, a_pipe, of_strange_types]
)
def test_damaged_runs_stay_and_hurt_no_other(
    damage: Callable[[Path], None], visit: Visit, runs: Path
) -> None:
    first = visit.data()
    damage(runs / "made-0-s0")
    news = visit.data(first["version"])
    assert [run["id"] for run in news["runs"]] == ["made-0-s0"]
    assert visit.names() == {"made-0-s0", "made-0-s1", "made-0-s2"}


def test_a_killed_run_is_crashed_after_a_while(
    visit: Visit, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((runs / "made-0-s0/record.json").read_text())
    (runs / "made-0-s0/record.json").write_text(json.dumps({**record, "status": "running"}))
    first = visit.data()
    assert {run["status"] for run in first["runs"]} == {"running", "finished"}
    monkeypatch.setattr("experiments.records.runs.STALE_S", -10)
    (run,) = visit.data(first["version"])["runs"]
    assert run["status"] == "crashed"


def test_it_waits_for_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAUSE_S", 0.0)
    found = Visit(tmp_path / "none")
    try:
        assert found.names() == set()
        make_runs(tmp_path / "none", 1, points=1)
        assert found.names() == {"made-0-s0"}
    finally:
        found.close()


def test_a_taken_port_is_one_line(
    visit: Visit, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = visit.server.server_port
    with pytest.raises(SystemExit) as failure:
        compare.main(["--serve", f"--runs_dir={runs}", f"--port={port}"])
    assert failure.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: port {port}: ")


def test_ctrl_c_ends_it_with_status_0(runs: Path) -> None:
    # A shell's job in the background ignores the signal, and so do its children.
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('experiments.compare', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--serve", f"--runs_dir={runs}"]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
