"""The server of docs/how-to/serve-a-model.md says of a picture what `load` says, without torch."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import ExifTags, Image

from cli import main
from experiments import load
from experiments.inference import Predictor
from tests.conftest import short_fit
from tests.test_docs import HOW_TO, blocks_of, commands_of

onnxruntime = pytest.importorskip("onnxruntime")
PAGE = HOW_TO["serve-a-model"]
EXPORT, START, SEND, EXPORT_AGAIN, CLASSIFY = commands_of(PAGE)
(SERVER,) = [block.text for block in blocks_of(PAGE) if block.title == "serve.py"]
(SCRIPT,) = [block.text for block in blocks_of(PAGE) if block.title == "classify.py"]
PICTURES = ("cat.jpg", "grey.png", "few.png")


class Reader(NamedTuple):
    """Who has typed what the page says: in this folder, with this server."""

    folder: Path
    url: str
    model: Predictor


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        own = ["--model=MLP", "--model.weight_std=null", "--data.normalization=channel"]
        short_fit(folder / "runs", data_dir, *own, name="my-mlp")
        main(EXPORT[2:])
        main(EXPORT_AGAIN[2:])
        draw_pictures()
        Path("serve.py").write_text(SERVER, encoding="utf-8")
        model = load("runs/my-mlp")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        words = [port if word == START[-1] else word for word in START[1:]]
        with subprocess.Popen([sys.executable, *words]) as server:
            try:
                wait_for(server, int(port))
                yield Reader(folder, SEND[-1].replace(START[-1], port), model)
            finally:
                server.terminate()


def draw_pictures() -> None:
    """Pictures as readers have them: one that lies on its side, a grey one, one of few colours."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[:20, :30] //= 4
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save("cat.jpg", exif=exif)
    picture.convert("L").save("grey.png")
    picture.convert("P").save("few.png", transparency=0)


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    while server.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"the server ended with status {server.returncode}")


def answer(url: str, picture: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(url, picture) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_it_says_what_the_model_says(reader: Reader) -> None:
    seen = []
    for name in PICTURES:
        found = answer(reader.url, (reader.folder / name).read_bytes())
        expected = reader.model.predict(reader.folder / name)
        assert [found["label"]] == expected.labels
        assert [*found["probabilities"]] == reader.model.classes
        seen.append([*found["probabilities"].values()])
        np.testing.assert_allclose(seen[-1], expected.probabilities[0], atol=1e-5)
    assert all(np.abs(np.subtract(seen[0], other)).max() > 1e-3 for other in seen[1:])


def test_what_is_no_picture_does_not_end_it(reader: Reader) -> None:
    with pytest.raises(urllib.error.HTTPError, match="500"):
        answer(reader.url, b"no picture")
    assert answer(reader.url, (reader.folder / PICTURES[0]).read_bytes())["label"]


def test_it_is_called_as_the_page_says(reader: Reader) -> None:
    assert SEND[:2] == ["curl", "--data-binary"]
    picture = (reader.folder / SEND[2].removeprefix("@")).read_bytes()
    try:
        called = [*SEND[:-1], "--silent", reader.url]
        printed = subprocess.check_output(called, cwd=reader.folder, text=True)
    except FileNotFoundError:
        pytest.skip("needs curl")
    assert json.loads(printed) == answer(reader.url, picture)


def test_it_needs_three_packages() -> None:
    needed = set(re.findall(r"^(?:import|from) (\w+)", SERVER, re.MULTILINE))
    assert needed - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


def test_the_metadata_are_those_of_the_page(reader: Reader) -> None:
    session = onnxruntime.InferenceSession(reader.folder / "model.onnx")
    cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    facts = session.get_modelmeta().custom_metadata_map
    assert {*re.findall(r"`(\w+)`", " ".join(cells))} == {*facts}
    assert isinstance(json.loads(facts["test_accuracy"]), float)
    assert f"`{session.get_inputs()[0].name}`, uint8 `(N, 3, 32, 32)`" in PAGE
    assert f"`{session.get_outputs()[0].name}`,\nfloat32 `(N, classes)`" in PAGE


def test_the_script_for_the_other_format_runs_as_shown(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reader.folder)
    assert CLASSIFY[1:] == ["classify.py"]
    found: dict[str, Any] = {}
    exec(compile(SCRIPT, CLASSIFY[1], "exec"), found)
    expected = reader.model.predict("cat.jpg")
    assert capsys.readouterr().out.split("\n")[0] == expected.labels[0]
    np.testing.assert_allclose(found["probabilities"], expected.probabilities[0], atol=1e-5)
