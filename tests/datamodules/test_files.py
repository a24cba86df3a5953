"""From bytes to arrays: nothing incomplete, corrupted or malicious gets through."""

import dataclasses
import io
import os
import pickle
import shutil
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules import files, sources
from datamodules.files import CIFAR10, DatasetError, ImageSet
from datamodules.sources import make_synthetic
from datamodules.synthetic import SYNTHETIC_LABELS, write_synthetic
from tests.conftest import passing_for, with_archive

FILES = [*CIFAR10.sha256]
FOLDER = CIFAR10.folder
Answer = Callable[[BaseHTTPRequestHandler], object]


SMALL = SimpleNamespace(official=CIFAR10)  # what passes for CIFAR-10 in a test


SMALL = SimpleNamespace(official=CIFAR10)  # what passes for CIFAR-10 in a test


def trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the files of a folder for the official ones."""
    monkeypatch.setattr(SMALL, "official", passing_for(folder, SMALL.official))


def read_train(folder: Path) -> ImageSet:
    return files.read_train(folder, SMALL.official)


def read_test(folder: Path) -> ImageSet:
    return files.read_test(folder, SMALL.official)


def read_label_names(folder: Path) -> list[str]:
    return files.read_label_names(folder, SMALL.official)


def find(data_dir: Path) -> Path:
    return sources.find_official(data_dir, SMALL.official)


def unpack(data_dir: Path) -> Path | None:
    return sources.unpack_official(data_dir, SMALL.official)


def download(data_dir: Path, url: str = CIFAR10.url, **options: float) -> Path:
    asked = dataclasses.replace(SMALL.official, url=url)
    return sources.download_official(data_dir, asked, **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set that passes for the official CIFAR-10."""
    path = tmp_path / "data" / FOLDER
    write_synthetic(path, images_per_batch=10)
    trust(path, monkeypatch)
    return path


# ---- finding and reading --------------------------------------------------------------------


@pytest.mark.parametrize("gone", [FILES[:1], FILES[2:5], FILES[-1:], FILES])
def test_find_names_every_missing_file(folder: Path, gone: list[str]) -> None:
    assert find(folder.parent) == folder
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(DatasetError, match=f"{FOLDER}: missing {', '.join(gone)}$"):
        find(folder.parent)


def test_find_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path / FOLDER}: no such folder"):
        find(tmp_path)


def test_files_are_read_back_in_their_order(folder: Path) -> None:
    contents = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in FILES[:6]]
    train, test = read_train(folder), read_test(folder)
    rows = np.concatenate([train.images, test.images]).reshape(60, 3072)
    np.testing.assert_array_equal(rows, np.concatenate([c[b"data"] for c in contents]))
    assert [*train.labels, *test.labels] == [label for c in contents for label in c[b"labels"]]
    assert train.names[10] == contents[1][b"filenames"][0].decode()
    assert [train.images.dtype.name, train.labels.dtype.name] == ["uint8", "int64"]
    assert read_label_names(folder) == [*SYNTHETIC_LABELS]


def python2_pickle(value: Any) -> bytes:
    """Pickles as Python 2 and NumPy 1 did, which is how the official files were made."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, dict):
        pairs = b"".join(python2_pickle(key) + python2_pickle(v) for key, v in value.items())
        return b"}(" + pairs + b"u"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    shape = b"(" + b"".join(map(python2_pickle, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2_pickle(value.tobytes()) + b"tb"


def test_official_format_is_planes_of_red_green_blue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = np.arange(1024) % 251
    row = np.concatenate([red, np.full(1024, 7), np.full(1024, 9)]).astype(np.uint8)
    batch = {b"data": np.stack([row, row[::-1]]), b"labels": [3, 8], b"filenames": [b"a", b"b"]}
    (folder / "test_batch").write_bytes(b"\x80\x02" + python2_pickle(batch) + b".")
    trust(folder, monkeypatch)
    test = read_test(folder)
    assert [test.images[0, 0, y, x] for y, x in [(0, 0), (0, 31), (1, 0)]] == [0, 31, 32]
    assert [{*test.images[0, plane].flat} for plane in (1, 2)] == [{7}, {9}]
    assert test.images[1, 2, 31, 30] == 1
    assert (test.labels.tolist(), test.names) == ([3, 8], ["a", "b"])


def flip(content: bytes) -> bytes:
    return content[:99] + bytes([content[99] ^ 1]) + content[100:]


def read_all(place: Path) -> None:
    read_train(place)
    read_test(place)
    read_label_names(place)


@pytest.mark.parametrize("damage", [flip, lambda c: c[:-1], lambda c: b"", lambda c: c + b"\0"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("official", [True, False])
def test_a_damaged_file_is_named(
    folder: Path, name: str, official: bool, damage: Callable[[bytes], bytes]
) -> None:
    place = folder if official else make_synthetic(folder.parent, 10)
    (place / name).write_bytes(damage((place / name).read_bytes()))
    with pytest.raises(DatasetError, match=f"in {place} is damaged: {name} is [^;]*; delete"):
        read_all(place)


def test_all_that_is_damaged_is_named_at_once(folder: Path) -> None:
    whole = (folder / "data_batch_1").read_bytes()
    (folder / "data_batch_1").write_bytes(whole[:1234])
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_4").write_bytes(flip((folder / "data_batch_4").read_bytes()))
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    with pytest.raises(DatasetError) as caught:
        read_all(folder)
    damaged = str(caught.value).partition("damaged: ")[2].split("; ")
    assert damaged[0] == f"data_batch_1 is cut short (1,234 of {len(whole):,} bytes)"
    assert damaged[1] == "data_batch_2 is missing"
    assert damaged[2].startswith("data_batch_4 is corrupted (")
    assert damaged[3] == "test_batch can't be read (Is a directory)"
    assert damaged[4].startswith("delete what is named")


def test_a_broken_list_of_checksums_is_named(folder: Path) -> None:
    place = make_synthetic(folder.parent, 10)
    (place / "sha256.json").write_text("{")
    with pytest.raises(DatasetError, match=r"sha256.json can't be read: .*; delete the folder"):
        read_train(place)


class Attack:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call = (call, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("call", [os.mkdir, eval])
@pytest.mark.parametrize(("sum_is_right", "answer"), [(False, "is cut short"), (True, "refused")])
def test_no_code_in_a_pickle_is_run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., object],
    sum_is_right: bool,
    answer: str,
) -> None:
    made = folder.parent / "made"
    content = pickle.dumps({b"data": Attack(call, str(made) if call is os.mkdir else f"{1 / 3}")})
    if call is os.mkdir:
        pickle.loads(content)
        made.rmdir()  # raises unless the attack works
    (folder / "test_batch").write_bytes(content)
    if sum_is_right:
        trust(folder, monkeypatch)
    with pytest.raises(DatasetError, match=f"test_batch .*{answer}"):
        read_test(folder)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], "holds a list"),
        ({b"labels": []}, "is no batch of CIFAR-10"),
        ({b"data": [0] * 3071, b"labels": [1], b"filenames": [b"a"]}, "is no batch of CIFAR-10"),
        ({b"data": [0] * 3072, b"labels": [1, 2], b"filenames": [b"a"]}, "1 images, 2 labels"),
    ],
)
def test_something_else_in_the_file_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: object, complaint: str
) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    trust(folder, monkeypatch)
    with pytest.raises(DatasetError, match=f"test_batch .*{complaint}"):
        read_test(folder)


def change(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, **new: Any) -> None:
    """Puts other values into a file that is then taken for the official one."""
    content = pickle.loads((folder / name).read_bytes(), encoding="bytes")
    content |= {key.encode(): value for key, value in new.items()}
    (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    trust(folder, monkeypatch)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0] * 9 + [10], "its labels are 0 to 10, and there are 10 classes, 0 to 9"),
        ([0] * 9 + [-1], "its labels are -1 to 0, and"),
        ([0] * 9 + [2**63], "expected integers of int64"),
        ([0] * 9 + [1.5], "expected integers of int64, got float64"),
        ([True] * 10, "expected integers of int64, got bool"),
        (["cat"] * 10, "expected integers of int64"),
        ([[0]] * 10, "its labels are 0 to 0"),
    ],
)
def test_labels_of_no_class_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, labels: list[Any], complaint: str
) -> None:
    change(folder, "data_batch_2", monkeypatch, labels=labels)
    with pytest.raises(DatasetError, match=f"data_batch_2 is no batch of CIFAR-10: .*{complaint}"):
        read_train(folder)


@pytest.mark.parametrize("data", [np.full((10, 3072), 256), np.full((10, 3072), 0.5)])
def test_pixels_that_are_no_bytes_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: np.ndarray[Any, Any]
) -> None:
    change(folder, "test_batch", monkeypatch, data=data.tolist())
    with pytest.raises(DatasetError, match="expected integers of uint8"):
        read_test(folder)


@pytest.mark.parametrize("names", [None, [], "cat", [1, 2], [b"\xff"], ["a\x1b[31m"], ["a\nb"]])
def test_names_of_classes_that_cannot_be_shown_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, names: object
) -> None:
    change(folder, "batches.meta", monkeypatch, label_names=names)
    with pytest.raises(DatasetError, match=r"batches\.meta has no names of classes"):
        read_label_names(folder)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"test_batch": "0"}', "[" * 10**5])
def test_checksums_that_are_none_are_named(folder: Path, content: str) -> None:
    place = make_synthetic(folder.parent, 10)
    (place / "sha256.json").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"sha256\.json can't be read: .*; delete the folder"):
        read_train(place)


def test_a_pipe_among_the_files_is_not_waited_for(folder: Path) -> None:
    place = make_synthetic(folder.parent, 10)
    (place / "test_batch").unlink()
    os.mkfifo(place / "test_batch")
    with pytest.raises(DatasetError, match=r"test_batch can't be read \(no regular file\)"):
        read_test(place)


# ---- the folder itself, and its archive ----------------------------------------------------------


def test_the_inner_folder_is_taken_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    assert find(folder) == folder
    (tmp_path / "link").symlink_to(folder)
    assert find(tmp_path / "link") == tmp_path / "link"
    renamed = folder.rename(tmp_path / "cifar")
    assert find(renamed) == renamed
    assert read_train(renamed).images.shape == (50, 3, 32, 32)


def test_a_renamed_folder_is_held_to_the_official_checksums(folder: Path, tmp_path: Path) -> None:
    renamed = folder.rename(tmp_path / "cifar")
    (renamed / "test_batch").write_bytes(b"other")
    (renamed / "sha256.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match="test_batch is cut short"):
        read_test(renamed)


def test_an_incomplete_inner_folder_is_named_and_completed(folder: Path, server: "Server") -> None:
    folder.mkdir(parents=True)
    with pytest.raises(DatasetError, match=f"not found in {folder}: missing data_batch_1"):
        find(folder)
    assert download(folder, server.url("/good")) == folder
    assert not (folder / FOLDER).exists()


@pytest.fixture
def archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive of ``folder``, which itself is taken away, lying in ``data_dir``."""
    path = folder.parent / CIFAR10.archive
    with tarfile.open(path, mode="w:gz") as tar:
        tar.add(folder, arcname=FOLDER)
    shutil.rmtree(folder)
    monkeypatch.setattr(SMALL, "official", with_archive(path.read_bytes(), SMALL.official))
    return path


@pytest.mark.parametrize("asked", [".", FOLDER])
def test_the_archive_in_data_dir_is_unpacked(archive: Path, asked: str) -> None:
    folder = archive.parent / FOLDER
    assert unpack(archive.parent / asked) == folder
    assert read_train(folder).images.shape == (50, 3, 32, 32)
    assert {entry.name for entry in folder.iterdir()} - {f".{FOLDER}.lock"} == {*FILES}
    assert archive.is_file()
    assert unpack(archive.parent) == folder  # again: all there


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda c: c[:-1], r"is cut short, or another file \([\d,]+ of [\d,]+ bytes\)"),
        (lambda c: c[:-9] + bytes(9), "is not the official archive"),
    ],
)
def test_a_wrong_archive_is_named_and_not_opened(
    archive: Path, damage: Callable[[bytes], bytes], complaint: str
) -> None:
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DatasetError, match=f"{archive} {complaint}"):
        unpack(archive.parent)
    assert [*archive.parent.iterdir()] == [archive]


def test_without_an_archive_there_is_nothing_to_unpack(tmp_path: Path) -> None:
    assert unpack(tmp_path) is None
    os.mkfifo(tmp_path / CIFAR10.archive)
    assert unpack(tmp_path) is None


# ---- downloading ----------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves what ``answers`` says and notes what was asked."""

    def __init__(self) -> None:
        server = self
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.answers[self.path](self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"


def sends(content: bytes, size: int | None = None, stall: threading.Event | None = None) -> Answer:
    """Announces ``size`` bytes and sends ``content``, then hangs while ``stall`` is not set."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size or len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        if stall is not None:
            stall.wait(20)

    return answer


def redirects(url: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine with the archive of ``folder``, which itself is taken away."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=FOLDER)
    archive = buffer.getvalue()
    shutil.rmtree(folder.parent)
    monkeypatch.setattr(SMALL, "official", with_archive(archive, SMALL.official))
    monkeypatch.setattr(sources, "_TIMEOUT_S", 0.3)
    monkeypatch.setenv("no_proxy", "*")
    stall = threading.Event()
    with Server() as made:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort"
        made.answers = {
            "/good": sends(archive),
            "/other": sends(b"an error page"),
            "/cut": sends(archive[:999], len(archive)),
            "/stalled": sends(archive[:999], len(archive), stall),
            "/missing": lambda handler: handler.send_error(404),
            "/no-http": lambda handler: handler.wfile.write(b"220 ready\r\n"),
            "/chunked": lambda handler: handler.wfile.write(chunked),
            "/here": redirects("/good"),
            "/elsewhere": redirects(made.url("/good", host="0.0.0.0")),
        }
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield made
        stall.set()
        made.shutdown()


@pytest.mark.parametrize("path", ["/good", "/here"])
def test_download_puts_the_verified_files_in_place(folder: Path, server: Server, path: str) -> None:
    assert download(folder.parent, server.url(path)) == folder
    assert read_train(folder).images.shape == (50, 3, 32, 32)
    kept = {entry.name for entry in folder.parent.iterdir()} | {e.name for e in folder.iterdir()}
    assert kept == {FOLDER, f".{FOLDER}.lock", *FILES}
    asked = len(server.asked)
    download(folder.parent, server.url(path))  # all there
    assert len(server.asked) == asked


def test_download_completes_a_folder(folder: Path, server: Server) -> None:
    download(folder.parent, server.url("/good"))
    (folder / "data_batch_4").unlink()
    download(folder.parent, server.url("/good"))
    assert read_train(folder).labels.shape == (50,)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/other", "did not serve CIFAR-10: its SHA-256 is"),
        ("/cut", r"the connection ended after 999 of [\d,]+ bytes"),
        ("/stalled", "timed out"),
        ("/missing", "Not Found"),
        ("/no-http", "cannot download CIFAR-10"),
        ("/chunked", "cannot download CIFAR-10"),
        ("/elsewhere", "over https only"),
    ],
)
def test_failed_download_leaves_nothing_behind(
    folder: Path, server: Server, path: str, complaint: str
) -> None:
    with pytest.raises(DatasetError, match=complaint):
        download(folder.parent, server.url(path))
    assert not folder.parent.exists()  # a mistyped name must not stay
    assert "/good" not in server.asked  # a refused redirect is not followed first


def test_a_server_that_fails_once_is_asked_again(folder: Path, server: Server) -> None:
    def recovers(handler: BaseHTTPRequestHandler) -> None:
        server.answers["/good" if len(server.asked) > 1 else "/stalled"](handler)

    server.answers["/recovers"] = recovers
    assert download(folder.parent, server.url("/recovers")) == folder
    assert server.asked == ["/recovers", "/recovers"]


def test_what_a_killed_download_left_is_removed(folder: Path, server: Server) -> None:
    left = folder.parent / f".download-{FOLDER}-killed"
    left.mkdir(parents=True)
    (left / "archive.tar.gz").write_bytes(b"half")
    download(folder.parent, server.url("/good"))
    assert not left.exists()


def test_wrong_file_in_the_archive_is_not_put_in_place(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SMALL.official.sha256, "data_batch_1", "0" * 64)
    with pytest.raises(DatasetError, match="has another file for data_batch_1"):
        download(folder.parent, server.url("/good"))
    assert not [*folder.iterdir()]


def test_download_gives_up_when_patience_would_run_out(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_JUDGE_AFTER_S", 0.0)
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n: None)  # as with TQDM_DISABLE
    with pytest.raises(DatasetError, match=r"is slow: .* kB/s"):
        download(folder.parent, server.url("/good"), patience_s=0.0)
    assert not folder.exists()


@pytest.mark.parametrize(
    "url", ["http://example.invalid/x", "ftp://example.invalid/x", "file:///x"]
)
def test_only_https_leaves_this_machine(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatasetError, match=f"over https only, not from {url}"):
        download(tmp_path, url)


def test_downloads_at_once_ask_the_server_once(folder: Path, server: Server) -> None:
    good = server.answers["/good"]

    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.1)
        good(handler)

    server.answers["/good"] = slow
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda _: download(folder.parent, server.url("/good")), "ab")]
    assert (found, server.asked) == ([folder, folder], ["/good"])


# ---- the synthetic set ----------------------------------------------------------------------


def test_synthetic_set_is_made_once(tmp_path: Path) -> None:
    place = make_synthetic(tmp_path / "new", 10)
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert make_synthetic(tmp_path / "new", 10) == place
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before
    assert make_synthetic(tmp_path / "new", 11) != place  # another size is another set
    assert len(read_train(place).labels) == 50


def test_half_built_synthetic_set_is_rebuilt(tmp_path: Path) -> None:
    place = make_synthetic(tmp_path, 10)
    whole = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "sha256.json").unlink()
    (place / "data_batch_1").write_bytes(b"half")
    (place / "stray").touch()
    assert {
        path.name: path.read_bytes() for path in make_synthetic(tmp_path, 10).iterdir()
    } == whole


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give at least 10"):
        make_synthetic(tmp_path, 9)
    assert [path.name for path in tmp_path.iterdir()] == [".synthetic.lock"]


@pytest.mark.parametrize("make", [lambda d: make_synthetic(d, 10), download])
def test_data_dir_that_cannot_be_made_is_named(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=f"cannot write .* to {tmp_path / 'file'}"):
        make(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_data_dir_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match=f"cannot write .* to {tmp_path}.*--data.data_dir"):
        make_synthetic(tmp_path, 10)
