"""The pages on runs of other tools and on the format: their commands and examples work."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import compare
from experiments.export_runs import program
from experiments.records.reader import (
    FORMAT,
    LARGEST_CONFIG,
    LARGEST_LOG,
    LARGEST_RECORD,
    MOST_ENTRIES,
)
from experiments.records.record import RunRecord
from experiments.records.runs import read_run
from tests.conftest import PROJECT
from tests.experiments.sources.test_foreign_tools import unpacked
from tests.test_docs import blocks_of, commands_of
from tests.test_start import setup_cfg

TOOLS = (PROJECT / "docs/other-tools.md").read_text()
FORMAT_PAGE = (PROJECT / "docs/run_format.md").read_text()
ALONE = [block.text for block in blocks_of(TOOLS) if "requirements-compare" in block.text]
COMMANDS = [words for words in commands_of(TOOLS) if words[:2] == ["python", "-m"]]
# What needs PyTorch, or is of a tool.
ABSENT = [
    *("torch", "pytorch_lightning", "lightning_fabric", "torchvision", "torchmetrics", "wandb"),
    *("jsonargparse", "mlflow", "trackio", "pyarrow", "tqdm", "platformdirs"),
]


def write_example(folder: Path) -> Path:
    """The files of the page on the format; returns the run's folder."""
    for block in blocks_of(FORMAT_PAGE):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
    return folder / "runs/mine-s0"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with runs of every tool, named as on the page."""
    write_example(tmp_path)
    shutil.copytree(tmp_path / "runs/mine-s0", tmp_path / "runs/mlp-s0")
    unpacked("tensorboard", tmp_path).rename(tmp_path / "tensorboard_logs")
    (unpacked("csv", tmp_path) / "lightning_logs").rename(tmp_path / "lightning_logs")
    (unpacked("mlflow-sqlite", tmp_path) / "mlflow.db").rename(tmp_path / "mlflow.db")
    (unpacked("mlflow-folder", tmp_path) / "mlruns").rename(tmp_path / "mlruns")
    unpacked("wandb", tmp_path)
    unpacked("trackio", tmp_path)
    return tmp_path


def test_the_example_of_the_format_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands_of(FORMAT_PAGE):
        assert words[:3] == ["python", "-m", "experiments.compare"]
        compare.main([*words[3:], "--format=json"])
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["test/acc mean"], row["val/acc best step mean"], row["note"]) == (0.52, 200, "")
    run = read_run(folder)
    assert (run.config["model"], run.config["model.width"]) == ("mynet.MyNet", 64)
    (folder / "config.yaml").unlink()
    (folder / "metrics.jsonl").unlink()
    (folder / "record.json").write_text('{"summary": {}}')
    assert (read_run(folder).status, read_run(folder).name) == ("unknown", "mine-s0")


def test_a_newer_format_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_example(tmp_path)
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"format": FORMAT + 1}))
    monkeypatch.chdir(tmp_path)
    compare.main([])
    said = re.search(r"`(it has format .*?)`", FORMAT_PAGE, re.DOTALL)
    assert said and said[1].replace("\n", " ") in capsys.readouterr().out


def test_every_field_of_a_record_is_on_the_page(tmp_path: Path) -> None:
    record = RunRecord.create(tmp_path / "run", "a: 1\n", {"seed": 1})
    assert record.fields["format"] == FORMAT
    kept = PROJECT / "tests/fixtures/of-before-the-rooms"
    old = json.loads((kept / "record.json").read_text())
    named = set(re.findall(r"`([\w/]+)`", FORMAT_PAGE))
    assert {*record.fields, *old} <= named
    files = {path.name for path in (tmp_path / "run").iterdir()} | {p.name for p in kept.iterdir()}
    assert not [name for name in files if name not in FORMAT_PAGE]
    limits = (LARGEST_RECORD >> 20, LARGEST_CONFIG >> 10, LARGEST_LOG >> 20, MOST_ENTRIES)
    assert limits == (4, 256, 64, 250_000)  # as the page says


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[2] == "experiments.compare"], ids=" ".join
)
def test_every_comparison_of_the_page_runs(
    words: list[str],
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tools)
    compare.main(words[3:])
    printed = capsys.readouterr()
    assert "unreadable" not in printed.out
    assert "run" in printed.out or "version_0" in printed.out


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if "export_runs" in words[2]], ids=" ".join
)
def test_every_export_of_the_page_is_understood(
    words: list[str], tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(runs: object, folder: Path, project: str) -> list[str]:
        written.append(project)
        return []

    monkeypatch.chdir(tools)
    monkeypatch.setattr(program, "_TARGETS", dict.fromkeys(program._TARGETS, write))
    program.main(words[3:])
    assert written == ["cifar10"]


def test_compare_needs_neither_torch_nor_a_tool(tools: Path) -> None:
    code = (
        f"import sys; absent = {ABSENT}\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in absent: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import cli; cli.main(['compare', 'mlflow.db', 'lightning_logs', 'trackio', 'runs'])\n"
        "cli.main(['compare', 'runs', '--format', 'html', '--output', 'page.html'])\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tools, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unreadable" not in done.stdout
    assert len(done.stdout.splitlines()) == 6


def test_what_compare_alone_installs_is_what_the_project_installs() -> None:
    wanted = setup_cfg()["options"]["install_requires"].split()
    lines = (PROJECT / "requirements-compare.txt").read_text().splitlines()
    alone = [line for line in lines if not line.startswith("#")]
    assert alone and {*alone} <= {*wanted}


@pytest.mark.slow
def test_compare_alone_installs_and_runs(tools: Path) -> None:
    """Needs a package index."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT)
    for name in listed.decode().splitlines():
        (tools / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tools / name)
    (block,) = ALONE
    for line in block.splitlines():
        done = subprocess.run(
            shlex.split(line), cwd=tools, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "runs.html" in done.stdout
    python = [str(tools / "compare/bin/python"), "-c", "import torch"]
    assert subprocess.run(python, capture_output=True, check=False, cwd="/").returncode == 1
