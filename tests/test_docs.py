"""The pages for those who carry on: what they name exists, and what they show runs."""

import ast
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import reproduce
import start
from cli import main
from datamodules import CIFAR10DataModule, ImageFolderDataModule
from experiments import compare
from experiments.identity import experiment_of
from experiments.records.record import RunRecord
from experiments.reproduction import arms, claims, judges
from tests.chaos import Zygote
from tests.conftest import IMAGES, PROJECT, SHORT, small
from tests.test_architecture import PACKAGES, ROOMS

ARCHITECTURE = (PROJECT / "docs/architecture.md").read_text()
HOW_TO = {path.stem: path.read_text() for path in sorted((PROJECT / "docs/how-to").glob("*.md"))}
PAGES = {
    "CONTRIBUTING": (PROJECT / "CONTRIBUTING.md").read_text(),
    "architecture": ARCHITECTURE,
    **HOW_TO,
}


class Block(NamedTuple):
    """A block of code in a page: its language, the file that it is, its text."""

    language: str
    title: str
    text: str


def blocks_of(page: str) -> list[Block]:
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


def commands_of(page: str) -> list[list[str]]:
    lines = [
        line
        for block in blocks_of(page)
        if block.language == "sh"
        for line in block.text.split("\n")
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ---- the map: what it names exists ---------------------------------------------------------------

LINK = re.compile(r"\[`([^`]+)`\]\(([^)]+)\)")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in ARCHITECTURE.splitlines()
    if line.startswith("|")
]


@functools.cache
def defined_in(path: Path) -> set[str]:
    """The names that a module defines, and those of its classes: ``Class.method``."""
    return {*_defined(ast.parse(path.read_text()).body, "")}


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")
        targets: list[ast.expr] = [node.target] if isinstance(node, ast.AnnAssign) else []
        targets += node.targets if isinstance(node, ast.Assign) else []
        yield from (prefix + t.id for t in targets if isinstance(t, ast.Name))


def names_in(rows: list[list[str]]) -> Iterator[tuple[str, str]]:
    """The names that rows say are in a file, each with the file."""
    for row in rows:
        linked = [LINK.match(cell) for cell in row]
        place = next((at for at, link in enumerate(linked) if link and ".py" in link[1]), None)
        if place is not None and (link := linked[place]):
            for name in re.findall(r"`([\w.]+)`", LINK.sub("", row[place + 1])):
                yield name, link[2]
        for name, target in LINK.findall(" ".join(row)):
            if ".py" not in name:
                yield name, target


def test_files_of_the_map_exist() -> None:
    links = LINK.findall(ARCHITECTURE)
    assert len(links) > 60
    for name, target in links:
        assert (PROJECT / "docs" / target).is_file(), target
        assert not name.endswith(".py") or target.endswith(f"/{name}")


def test_functions_of_the_map_exist() -> None:
    tables = [row for row in ROWS if "its task" not in row and len(row) >= 3]
    found = list(names_in(tables))
    assert len(found) > 60
    wrong = [
        (name, file) for name, file in found if name not in defined_in(PROJECT / "docs" / file)
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_of_a_page_exist(page: str) -> None:
    for name in re.findall(rf"`((?:{'|'.join(PACKAGES)})\.[\w.]+)`", PAGES[page]):
        parts = name.split(".")
        modules = [PROJECT.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
        file = [path for module in modules for path in (module.with_suffix(".py"), module)][::-1]
        last = next(path for path in file if path.exists())
        if last.is_dir():
            last /= "__init__.py"
        rest = ".".join(parts[len(last.relative_to(PROJECT).with_suffix("").parts) :])
        assert rest in {"", *defined_in(last)} or rest in last.read_text(), name


def test_the_map_has_every_room_above_those_that_import_it() -> None:
    start_of, end_of = ARCHITECTURE.index("### The rooms"), ARCHITECTURE.index("## Three walks")
    rooms = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE[start_of:end_of], re.MULTILINE)
    assert {*rooms} == ROOMS.keys() - {"__init__"}
    for room in rooms:
        assert all(rooms.index(below) < rooms.index(room) for below in ROOMS[room]), room


def test_the_check_of_names_sees_a_wrong_one() -> None:
    row = ["[`cli.py`](../cli.py)", "`main`, `nothing`; [`gone`](../start.py)", "`what`"]
    assert [*names_in([row])] == [
        ("main", "../cli.py"),
        ("nothing", "../cli.py"),
        ("gone", "../start.py"),
    ]
    assert {"main", "_RANKS"} <= defined_in(PROJECT / "cli.py")
    assert "RunRecord.log" in defined_in(PROJECT / "experiments/records/record.py")


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_of_a_program_that_a_test_runs(page: str) -> None:
    known = (
        "python cli.py",
        "python reproduce.py",
        "python3 start.py",
        "python -m",
        "python draw.py",
        "python make.py",
        "python serve.py",
        "python classify.py",
        "curl --data-binary",
    )
    assert {" ".join(words[:2]) for words in commands_of(PAGES[page])} <= {*known}


STARTED = [words[2:] for words in commands_of(PAGES["CONTRIBUTING"])]


@pytest.mark.parametrize("words", STARTED, ids=" ".join)
def test_start_understands(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "set_up", lambda **_: None)
    monkeypatch.setattr(start, "run", lambda command: 0 if command else 1)
    assert start.main(words) == 0
    assert all((PROJECT / word).exists() for word in words if word.endswith(".py"))


INLINE = [
    shlex.split(command)[2:]
    for page in PAGES.values()
    for command in re.findall(r"`(python cli\.py [^`]*)`", page.replace("\n", " "))
]


@pytest.mark.parametrize("words", INLINE, ids=" ".join)
def test_commands_in_the_text_parse(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(SystemExit) as done:
        main([*words, "--print_config"])
    assert done.value.code in {0, None}
    assert "lr: 0.01" in capsys.readouterr().out
    assert f"`{experiment_of(words)}`" in ARCHITECTURE


def test_contributing_is_one_screen() -> None:
    assert len(PAGES["CONTRIBUTING"].splitlines()) <= 60


# ---- how to: as a reader does it -----------------------------------------------------------------

Reader = Callable[[str], Path]
SEARCHES = {"sweep", "find_lr", "find_batch_size"}


@pytest.fixture(scope="module")
def reader(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> Iterator[Reader]:
    """Writes the files of a page into an empty folder and runs its commands there, in order.

    Fits are short, on the small set unless the page brings its own. Returns the folder.
    """
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(PROJECT / "configs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)

        def fit(words: list[str]) -> list[str]:
            if words[0] in SEARCHES:
                return [*words, *SHORT, *small(data_dir)]
            if not {"--model", "--config"} & {*words}:  # goes on with a run
                return [*words, "--trainer.max_steps=8"]
            data = [] if "--data" in words else small(data_dir)
            return [*words, *SHORT, *data, "--trainer.logger=false"]

        def read(page: str) -> Path:
            monkeypatch.chdir(folder)
            for block in blocks_of(HOW_TO[page]):
                if block.title:
                    (folder / block.title).write_text(block.text, encoding="utf-8")
            for program, script, *words in commands_of(HOW_TO[page]):
                assert program == "python"
                if script == "cli.py":
                    changed = words[0] in {"fit", *SEARCHES} and "--model.help" not in words
                    ended = zygote.run(fit(words) if changed else words)
                    assert ended.code == 0, (words, ended.err)
                elif script == "-m":
                    assert words[0] == "experiments.compare"
                    compare.main(words[1:])
                else:
                    subprocess.run([sys.executable, script], check=True)
            return folder / "runs"

        yield read


@pytest.mark.slow
def test_search_settings(reader: Reader) -> None:
    runs = reader("search-settings")
    assert (runs.parent / "find_lr.png").is_file()
    assert (runs.parent / "find_batch_size.png").is_file()
    found = {path.parent.name: RunRecord.open(path.parent) for path in runs.glob("*/*/record.json")}
    assert sum(name.startswith("rates-") for name in found) == 6
    assert sum(name.startswith("search-") for name in found) == 4
    assert sum("test/acc" in record.summary for record in found.values()) == 2


def test_add_a_model(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    runs = reader("add-a-model")
    record = RunRecord.open(runs / "mynet")
    assert (record.fields["model"], record.fields["lr"]) == ("MyNet", 0.01)
    assert "test/acc" in record.summary
    assert RunRecord.open(runs / "mynet-wide").fields["optimizer"] == "Adam"
    assert "mynet-wider" in capsys.readouterr().out
    mixed = RunRecord.open(runs / "mixed").summary
    assert mixed["train/loss"] > 0 and "train/acc" not in mixed
    assert mixed["test/acc"] > 0


def test_add_a_data_set(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    runs = reader("add-a-data-set")
    record = RunRecord.open(runs / "colours")
    assert record.fields["images"] == {"train": 60, "val": 20, "test": 20}
    assert record.summary["test/per_class"].keys() == {"red", "blue"}
    written = next((runs / "colours").glob("predictions*.csv")).read_text()
    assert written.startswith("file,prediction,confidence,blue,red\n0.png,")
    assert record.fields["data"] == "image_folder"
    other = RunRecord.open(runs / "brightness")
    assert (other.fields["data"], other.summary["test/per_class"].keys()) == (
        "arrays",
        {"dark", "light"},
    )
    hundred = RunRecord.open(runs / "hundred")
    assert len(hundred.summary["test/per_class"]) == 100
    assert "colours" in capsys.readouterr().out


def test_writing_a_data_set_out_loses_nothing(
    synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [b.text for b in blocks_of(HOW_TO["add-a-data-set"]) if b.title == "write_out.py"]
    data_dir = next(word.partition("=")[2] for word in synthetic if "data_dir" in word)
    monkeypatch.setattr(sys, "argv", ["write_out.py", data_dir, "synthetic"])
    small = functools.partial(CIFAR10DataModule, synthetic_images=IMAGES)
    monkeypatch.setattr("datamodules.CIFAR10DataModule", small)
    exec(compile(code, "write_out.py", "exec"), {})
    folders = ImageFolderDataModule("cifar-png", val_size=0)
    folders.setup()
    files = small(data_dir, "synthetic", val_size=0)
    files.setup()
    for ours, theirs in ((folders.train_set, files.train_set), (folders.test_set, files.test_set)):
        pictures = zip(theirs.images, theirs.labels, strict=True)
        by_name = {f"{files.label_names[k]}/{i:05}.png": x for i, (x, k) in enumerate(pictures)}
        assert len(ours.names) == len(by_name)
        for name, pixels in zip(ours.names, ours.images, strict=True):
            assert np.array_equal(pixels, by_name[name])


def test_add_a_callback(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord.open(reader("add-a-callback") / "watched")
    norms = [entry["grad_norm"] for entry in record.metrics() if "grad_norm" in entry]
    assert len(norms) == 4  # of 8 steps, resumed after 4
    assert all(norm > 0 for norm in norms)
    assert [again["step"] for again in record.fields["resumed"]] == [4]
    assert "grad_norm" in capsys.readouterr().out
    assert "GradientMonitor" in (record.path.parent / "added/config.yaml").read_text()


SNIPPETS = [block for block in blocks_of(HOW_TO["add-a-claim"]) if block.language == "python"]


def code_for(module: str) -> list[str]:
    path = f"experiments/reproduction/{module}.py"
    return [block.text for block in SNIPPETS if block.title == path]


def test_add_a_claim(
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for code in code_for("judges"):
        found: dict[str, Any] = {**vars(judges)}
        exec(compile(code, "judges", "exec"), found)
        monkeypatch.setattr(claims, "Steady", found["Steady"], raising=False)
    (arm,) = [entry for code in code_for("arms") for entry in eval(f"({code})", vars(arms))]
    more = [entry for code in code_for("claims") for entry in eval(f"({code})", vars(claims))]
    monkeypatch.setitem(arms.ARMS, arm.name, arm)
    for module in ("claims", "page", "runner"):
        monkeypatch.setattr(
            f"experiments.reproduction.{module}.CLAIMS", (*claims.CLAIMS[:1], *more)
        )
    monkeypatch.chdir(PROJECT)
    flags = [flag for flag in synthetic if "val_size" not in flag]
    short = [*SHORT, *flags, "--trainer.logger=false", f"--runs_dir={tmp_path}"]
    for words in commands_of(HOW_TO["add-a-claim"]):
        assert words[:2] == ["python", "reproduce.py"]
        if "--rejudge" in words:
            _, unknown = reproduce.parser().parse_known_args(words[2:])
            assert unknown == []
        else:
            reproduce.main([*words[2:], *([] if "--list" in words else short)])
    printed = capsys.readouterr().out
    assert "200 hidden units are better than 100" in printed
    verdicts = dict(
        re.findall(r"^(width|steady) +(holds|does not hold|inside noise)", printed, re.M)
    )
    assert verdicts.keys() == {"width", "steady"}
    assert "standard deviation" in (tmp_path / "reproduction.md").read_text()
