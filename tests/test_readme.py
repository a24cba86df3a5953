"""Every command in the README and in the configs' table runs, on small data."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import reproduce
import start
from cli import main
from custom_ops import check
from experiments import compare
from experiments.records.record import RunRecord
from tests.conftest import PROJECT, SHORT

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
INLINE = re.findall(r"`(python3? [^`]*?)`", README.replace("\n", " "))
EXAMPLES = [
    block
    for page in sorted((PROJECT / "docs").glob("*.md"))
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]
# A flag with a value; the name of a flag alone is no use of it.
OVERRIDES = re.findall(r"`(--[a-z_.]+ [^`]*)`", README)


def arguments(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def commands_of(program: str) -> list[list[str]]:
    found = [arguments(command) for command in [*COMMANDS, *INLINE]]
    return [words[2:] for words in found if words[:2] == program.split()]


def test_every_block_is_understood() -> None:
    programs = {" ".join(arguments(command)[:2]) for command in COMMANDS}
    assert programs <= {"python cli.py", "python reproduce.py", "python3 start.py", "python -m"}
    assert len(commands_of("python cli.py")) >= 5


@pytest.mark.parametrize("words", commands_of("python3 start.py"), ids=" ".join)
def test_start_understands(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "set_up", lambda **_: None)
    monkeypatch.setattr(start, "run", lambda command: 0 if command else 1)
    assert start.main(words) == 0


@pytest.mark.parametrize("words", commands_of("python reproduce.py"), ids=" ".join)
def test_reproduce_understands(words: list[str]) -> None:
    _, unknown = reproduce.parser().parse_known_args(words)
    assert unknown == []


WALK = re.findall(
    r"^```sh\n(.*?)^```", (PROJECT / "docs/comparing.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_the_walk_through_a_comparison(
    tmp_path: Path,
    synthetic: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    commands = [arguments(line) for block in WALK for line in block.splitlines()]
    for words in commands:
        if words[:2] == ["python", "cli.py"]:
            main([*words[2:], *SHORT, *synthetic, "--trainer.logger=false"])
        else:
            assert words[:3] == ["python", "-m", "experiments.compare"]
            compared(words[3:])
    assert "paired t" in capsys.readouterr().out
    assert "batch-lr0.1-s0" in Path("runs.html").read_text()
    assert Path("curves.png").is_file()


def compared(words: list[str]) -> None:
    """Runs `compare`; a server only starts and is closed."""
    if "--serve" not in words:
        compare.main(words)
        return
    with compare.server_of(compare.parser().parse_args(words)) as server:
        names = server.watched.news()["order"]
        print(f"{server.address}:", *names)
        assert names


RELIABILITY = (PROJECT / "docs/reliability.md").read_text()
LAUNCHED = re.findall(r"cli\.py (fit .*--config .*)", RELIABILITY.replace("\\\n", " "))


@pytest.mark.parametrize("command", LAUNCHED)
def test_what_launchers_start_parses(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(SystemExit) as done:
        main([*shlex.split(command), "--print_config"])
    assert done.value.code in {0, None}
    assert "class_path: lightning_modules." in capsys.readouterr().out


def test_every_fault_has_its_test() -> None:
    rows = re.findall(r"^\|.*\| `(tests/\S+\.py)::(\w+)` \|$", RELIABILITY, re.MULTILINE)
    assert len(rows) >= 35
    for path, name in rows:
        assert f"\ndef {name}(" in (PROJECT / path).read_text(), (path, name)


def story() -> list[list[str]]:
    """The commands that make, use and compare runs, in the order of the page."""
    found = re.findall(r"^```sh\n(.*?)^```|`(python [^`]*?)`", README, re.MULTILINE | re.DOTALL)
    typed = [line for block, inline in found for line in (block.splitlines() or [inline])]
    commands = [arguments(line)[1:] for line in typed if line.startswith("python ")]
    commands = [words for words in commands if words != ["cli.py"]]  # a name, not a command
    return [words for words in commands if words[0] == "cli.py" or "experiments.compare" in words]


def test_the_story_of_the_page(
    tmp_path: Path,
    synthetic: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All commands that make, use and compare runs succeed in one folder, in their order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    small = [*SHORT, *synthetic, "--trainer.logger=false"]
    steps = 0
    for program, *words in story():
        if program == "-m":
            capsys.readouterr()
            compared(words[1:])
            shown = capsys.readouterr().out
            assert "wrote runs.html" in shown or {"my-mlp", "my-mlp-batch"} <= {*shown.split()}
        elif "--model.help" in words:
            with pytest.raises(SystemExit, match="0"):
                main(words)
        elif words[0] == "fit":
            steps += 4  # later fits of a run train on
            main([*words, *small, f"--trainer.max_steps={steps}"])
        else:
            main(words)
    kinds = [words[1] if words[0] == "cli.py" else "compare" for words in story()]
    assert kinds[:3] == ["fit", "test", "predict"]
    assert kinds[-5:] == ["fit", *["compare"] * 4]
    run = tmp_path / "runs" / "my-mlp"
    assert RunRecord.open(run).fields["resumed"]
    assert {"best.ckpt", "curves.png", "confusion_test.png"} <= {
        path.name for path in run.iterdir()
    }
    assert Path("runs.html").stat().st_size > 1000
    assert Path("curves.png").is_file()
    assert {"model.onnx", "model.pt2"} <= {path.name for path in run.iterdir()}
    Image.new("RGB", (60, 40), "orange").save("cat.jpg")
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    capsys.readouterr()
    exec(compile(example, "example", "exec"), {})
    assert capsys.readouterr().out.startswith("['")


def test_the_checker_is_used_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (words[1:] for words in commands_of("python -m") if "custom_ops.check" in words)
    check.main(first)
    with pytest.raises(SystemExit, match="1"):
        check.main(second)
    assert "0 of 8 right" in capsys.readouterr().out


BY_THEMSELVES = [words for words in commands_of("python cli.py") if words and "--name" not in words]


@pytest.mark.parametrize("words", BY_THEMSELVES, ids=" ".join)
def test_inline_commands_parse(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    shows = [] if any("help" in word for word in words) else ["--print_config"]
    with pytest.raises(SystemExit) as done:
        main([*words, *shows])
    assert done.value.code in {0, None}
    assert capsys.readouterr().out


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_docs_run(code: str) -> None:
    exec(compile(code, "example", "exec"), {})


@pytest.mark.parametrize("flags", OVERRIDES)
def test_every_flag_in_the_text_parses(
    flags: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = "from lightning_modules import MLP\n\n\nclass MyNet(MLP):\n    pass\n"
    (tmp_path / "mynet.py").write_text(own, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(PROJECT)
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", "configs/mlp.yaml", *shlex.split(flags), "--print_config"])
    assert done.value.code in {0, None}
