"""What a stranger's run folder may hold: neither reading nor writing leaves it, or waits."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.errors import RunError
from experiments.records import files
from experiments.records.files import (
    appending,
    check_folder,
    file_identity,
    held,
    read_lines,
    read_text,
    remove_folder,
    replace_file,
    replacing,
    synced,
)
from experiments.records.runs import read_run
from tests.conftest import PROJECT, SHORT, Cli

PRECIOUS = "precious\n"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside of the run's folder."""
    path = tmp_path / "precious"
    path.write_text(PRECIOUS)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "gift"
    path.mkdir(parents=True)
    return path


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        before = Path.cwd()
        os.chdir(path.parent)  # a path of a socket must be short
        end.bind(path.name)
        os.chdir(before)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read_or_added_to(kind: str, folder: Path) -> None:
    path = folder / "metrics.jsonl"
    SPECIAL[kind](path)
    with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
        read_text(path, 100)
    with pytest.raises(OSError, match=f"it is a {kind}"):
        list(read_lines(path, 100))
    with pytest.raises(OSError, match=f"it is a {kind}"), appending(path):
        pass


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_takes_the_place_of_a_file_just_before_it_is_read_is_refused(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(*args: object) -> None:
        raise AssertionError("it waits for somebody who writes")

    path = folder / "record.json"
    SPECIAL[kind](path)
    monkeypatch.setattr(Path, "exists", lambda self: False)  # the look before it is opened
    before = signal.signal(signal.SIGALRM, waits)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(OSError, match=f"it is a {kind}"):
            read_text(path, 100)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_line_that_is_not_utf_8_is_marked(folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(b"a\xff\nb\n")
    assert [*read_lines(folder / "metrics.jsonl", 100)] == ["a\ufffd\n", "b\n"]


def test_reading_is_bounded(folder: Path) -> None:
    path = folder / "record.json"
    path.write_text("{}")
    os.truncate(path, 10 * 2**30)  # sparse
    for read in (read_text, lambda *args: list(read_lines(*args))):
        with pytest.raises(OSError, match="10,737,418,240 bytes; at most 1,000 are read"):
            read(path, 1_000)
    path.write_text("x" * 2_000_000)
    with pytest.raises(OSError, match="a line of more than 1,048,576 bytes"):
        list(read_lines(path, 10_000_000))


def test_a_file_that_grows_while_it_is_read_ends_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "metrics.jsonl"
    path.write_text("line\n" * 100)
    monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat_result([0o100644, *[0] * 9]))
    for read in (read_text, lambda *args: list(read_lines(*args))):
        with pytest.raises(OSError, match="at most 50 are read"):
            read(path, 50)


def test_text_is_utf_8_with_or_without_a_mark(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: caf\xc3\xa9")
    assert read_text(path, 100) == "name: café"
    path.write_text("a: 1", encoding="utf-16")
    with pytest.raises(ValueError, match="'utf-8' codec can't decode byte"):
        read_text(path, 100)


def test_a_link_is_replaced_and_not_followed(folder: Path, precious: Path) -> None:
    link = folder / "record.json"
    link.symlink_to(precious)
    for name in (".record.json.partial", ".record.json.0.partial"):
        (folder / name).symlink_to(precious)
    replace_file(link, "new")
    assert (link.read_text(), link.is_symlink()) == ("new", False)
    assert precious.read_text() == PRECIOUS


def test_a_dangling_link_makes_nothing_elsewhere(folder: Path, tmp_path: Path) -> None:
    link = folder / "config.yaml"
    link.symlink_to(tmp_path / "elsewhere")
    replace_file(link, "new")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(OSError, match="symbolic links"), appending(_dangling(folder, tmp_path)):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_synced_is_no_link(folder: Path, precious: Path) -> None:
    (folder / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), synced(folder / "metrics.jsonl", "w"):
        pass
    assert precious.read_text() == PRECIOUS


def _dangling(folder: Path, tmp_path: Path) -> Path:
    link = folder / "metrics.jsonl"
    link.symlink_to(tmp_path / "elsewhere")
    return link


def test_what_is_added_goes_to_no_other_name_of_the_file(folder: Path, precious: Path) -> None:
    path = folder / "metrics.jsonl"
    path.hardlink_to(precious)
    with appending(path) as file:
        file.write("more\n")
    assert path.read_text() == f"{PRECIOUS}more\n"
    assert precious.read_text() == PRECIOUS


def test_a_new_file_has_the_rights_that_new_files_have(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(folder / "record.json", "new")
    finally:
        os.umask(before)
    assert (folder / "record.json").stat().st_mode & 0o777 == 0o640


def test_what_killed_processes_left_goes_and_what_is_being_written_stays(folder: Path) -> None:
    path = folder / "curves.png"
    code = (
        "import os, pathlib, sys; from experiments.records.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as partial:\n"
        " partial.write_text('half'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=PROJECT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (theirs,) = folder.iterdir()
        replace_file(path, "ours")
        assert theirs.exists()
        other.send_signal(signal.SIGKILL)
    replace_file(path, "ours")
    assert [*folder.iterdir()] == [path]


def test_a_new_file_that_is_taken_for_a_leftover_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[Path] = []

    def another_comes_first(descriptor: int, how: int) -> None:
        for partial in [*folder.iterdir()] if not removed else []:
            partial.unlink()
            removed.append(partial)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", another_comes_first)
    replace_file(folder / "record.json", "new")
    assert removed
    assert (folder / "record.json").read_text() == "new"


def test_a_lock_that_another_has_is_waited_for_and_not_passed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.records.files._LOCK_TIMEOUT_S", 0.01)
    theirs, ours = FileLock(folder / ".record.lock"), FileLock(folder / ".record.lock")
    with theirs, pytest.raises(RunError, match="the record is locked"), held(ours, "the record"):
        pytest.fail("two have it")
    with held(ours, "the record"):
        assert ours.is_locked


def test_a_file_that_is_replaced_or_written_to_is_another(folder: Path) -> None:
    path = folder / "best.ckpt"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    first = file_identity(path)
    replace_file(path, "two")
    os.utime(path, ns=(1, 1))
    replaced = file_identity(path)
    path.write_text("tri")
    os.utime(path, ns=(2, 2))
    assert len({first, replaced, file_identity(path)}) == 3
    assert file_identity(folder / "none") == ()


def test_two_that_write_one_file_do_not_meet(folder: Path) -> None:
    path = folder / "curves.png"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert [*folder.iterdir()] == [path]


def test_what_fails_leaves_the_old_file_alone(folder: Path) -> None:
    path = folder / "record.json"
    replace_file(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert [file.read_text() for file in folder.iterdir()] == ["old"]


PLANTED: dict[str, Callable[[Path], None]] = {
    "wandb": lambda path: path.symlink_to(path.parent),
    "wandb/artifacts": lambda path: path.symlink_to(path.parent),
    "wandb/artifacts/staging": lambda path: path.symlink_to("/nowhere"),
    "wandb/artifacts/staging/tmp1": lambda path: path.symlink_to(path.parent),
    "wandb/settings": lambda path: path.symlink_to(__file__),
    "latest-run": lambda path: path.symlink_to(path.parent),
    "wandb/offline-run-1": lambda path: path.symlink_to(path.parent),
    "lightning_logs": lambda path: path.symlink_to(path.parent),
    "metrics.jsonl": lambda path: path.symlink_to(__file__),
    ".lock": lambda path: path.symlink_to(__file__),
    "best.ckpt": os.mkfifo,
    "config.yaml": make_socket,
    "record.json": lambda path: path.symlink_to("record.json"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_folder_that_leads_elsewhere_is_refused(name: str, folder: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PLANTED[name](path)
    with pytest.raises(RunError) as refused:
        check_folder(folder)
    line = str(refused.value)
    assert line.startswith(f"{path} is ")
    assert line.endswith(("or remove it", ": remove it"))


@pytest.mark.parametrize("name", [".lock", ".record.lock"])
def test_a_lock_that_is_another_file_is_refused(name: str, folder: Path, precious: Path) -> None:
    (folder / name).hardlink_to(precious)
    with pytest.raises(RunError, match="a second name of another file"):
        check_folder(folder)


def test_a_folder_of_one_s_own_is_not_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("offline-run-1")  # as W&B does
    (folder / "wandb" / "debug.log").symlink_to("offline-run-1/logs/debug.log")
    (folder / "best.ckpt").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").touch()
    (folder / ".lock").touch()
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link", tmp_path / "nowhere"):
        check_folder(path)


def test_a_folder_that_is_a_link_is_emptied_and_stays(
    folder: Path, tmp_path: Path, precious: Path
) -> None:
    (folder / "wandb").mkdir()
    (folder / "wandb" / "file").touch()
    (folder / "best.ckpt").symlink_to(precious)
    (folder / "away").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    remove_folder(tmp_path / "link")
    assert [*folder.iterdir()] == []
    assert precious.read_text() == PRECIOUS
    remove_folder(folder)
    assert not folder.exists()


def test_no_command_writes_through_a_link_in_a_run(fit: Cli, evaluate: Cli, precious: Path) -> None:
    record = fit("--model=MLP")
    for name in ("predictions.csv", ".record.json.partial", ".predictions.csv.partial"):
        (record.path / name).symlink_to(precious)
    evaluate("test")
    evaluate("predict")
    assert precious.read_text() == PRECIOUS
    assert not (record.path / "predictions.csv").is_symlink()


@pytest.mark.parametrize("name", ["record.json", "config.yaml", "metrics.jsonl"])
def test_a_link_that_leads_out_of_a_run_is_not_followed(
    name: str, fit: Cli, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fit("--model=MLP").path / name
    elsewhere = file.rename(tmp_path / "elsewhere")
    file.symlink_to(elsewhere)
    found = read_run(file.parent)
    assert f"{name} can't be read: it is a link to a file outside of its folder" in found.note
    elsewhere.rename(file.with_name("inside"))
    file.unlink()
    file.symlink_to("inside")
    assert not read_run(file.parent).note


def test_a_run_that_lies_on_another_disk_goes_on(
    fit: Cli, evaluate: Cli, runs: Path, tmp_path: Path
) -> None:
    fit("--model=MLP")
    (runs / "run").rename(tmp_path / "disk")
    (runs / "run").symlink_to(tmp_path / "disk")
    assert evaluate("test").summary["test/acc"] is not None
    again = fit("--model=MLP", "--overwrite=true")
    assert again.fields["status"] == "finished"
    assert (runs / "run").is_symlink()
    assert "test/acc" not in json.loads((tmp_path / "disk" / "record.json").read_text())["summary"]


@pytest.mark.parametrize("command", [["test"], ["fit", "--resume=true", *SHORT]])
def test_a_planted_link_is_one_line_before_anything_is_written(
    command: list[str], runs: Path, precious: Path, error_of: Callable[[list[str]], str]
) -> None:
    folder = runs / "gift"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"summary": {}, "status": "finished"}')
    (folder / "config.yaml").write_text("seed_everything: 1\n")
    (folder / "metrics.jsonl").symlink_to(precious)
    line = error_of([*command, f"--runs_dir={runs}", "--name=gift"])
    assert line.startswith(f"{folder / 'metrics.jsonl'} is a symbolic link: put what it leads to")
    assert {path.name for path in folder.iterdir()} == {
        "record.json",
        "config.yaml",
        "metrics.jsonl",
    }
    assert precious.read_text() == PRECIOUS


def test_a_file_system_without_locks_is_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with held(FileLock(folder / ".record.lock"), "the record"):
        pass
    replace_file(folder / "record.json", "new")
    assert (folder / "record.json").read_text() == "new"


def test_a_partial_file_that_another_process_took_for_a_leftover_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, made = files._lock, list[Path]()

    def take_the_first(descriptor: int, wait: bool) -> bool:
        if wait:
            (partial,) = tmp_path.iterdir()
            made.append(partial)
        if len(made) == 1:
            made[0].unlink(missing_ok=True)
        return lock(descriptor, wait)

    monkeypatch.setattr(files, "_lock", take_the_first)
    replace_file(tmp_path / "record.json", "{}")
    assert len(made) == 2  # the second is locked, and no leftover to others
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
