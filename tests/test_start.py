"""start.py decides, prints and reports as it says; nothing is installed here."""

import re
import runpy
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import start

PROJECT = Path(start.__file__).parent
INPUTS = ("setup.cfg", "pyproject.toml", "constraints.txt")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project directory of its own, in which creating a venv makes its python only."""
    for name in INPUTS:
        (tmp_path / name).write_text(name)
    venv = tmp_path / ".venv"
    values = {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / "s", "LOG": venv / "log"}
    for name, value in values.items():
        monkeypatch.setattr(start, name, value)
    monkeypatch.setattr(start, "PYTHON", venv / "python")

    def create_venv() -> None:
        venv.mkdir(exist_ok=True)
        start.PYTHON.touch()

    monkeypatch.setattr(start, "create_venv", create_venv)
    return tmp_path


@pytest.fixture
def installs(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What pip_install was asked for: one entry per call, True with the dev tools."""
    calls: list[bool] = []
    monkeypatch.setattr(start, "pip_install", calls.append)
    return calls


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that main runs, on a set-up that is complete."""
    calls: list[list[str]] = []

    def run(command: list[str]) -> int:
        calls.append(command)
        return 3 if "check" in command else 0

    monkeypatch.setattr(start, "run", run)
    monkeypatch.setattr(start, "set_up", lambda dev: None)
    return calls


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (False, False, [False]),
        (True, True, [True]),
        (True, False, [True]),  # an environment with the dev tools serves for both
        (False, True, [False, True]),
    ],
)
def test_second_set_up_installs_only_what_is_missing(
    installs: list[bool], first: bool, second: bool, expected: list[bool]
) -> None:
    start.set_up(first)
    start.set_up(second)
    assert installs == expected


@pytest.mark.parametrize("name", INPUTS)
def test_changed_input_updates_and_keeps_the_dev_tools(
    project: Path, installs: list[bool], name: str
) -> None:
    start.set_up(dev=True)
    (project / name).write_text("changed")
    start.set_up(dev=False)
    assert installs == [True, True]


@pytest.mark.parametrize("damage", ["other python", "no python", "torn stamp"])
def test_damaged_environment_is_built_anew(
    project: Path, installs: list[bool], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    start.set_up(dev=False)
    created = []
    monkeypatch.setattr(start, "create_venv", lambda: created.append(True))
    if damage == "other python":
        monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    elif damage == "no python":
        start.PYTHON.unlink()
    else:
        start.STAMP.write_text('{"base"')
    start.set_up(dev=False)
    assert (len(created), len(installs)) == (1, 2)


@pytest.mark.parametrize("finished_before", [False, True])
def test_failed_install_is_not_taken_for_a_finished_one(
    project: Path, installs: list[bool], monkeypatch: pytest.MonkeyPatch, finished_before: bool
) -> None:
    if finished_before:
        start.set_up(dev=False)

    def fail(dev: bool) -> None:
        raise start.SetupError("no network")

    monkeypatch.setattr(start, "pip_install", fail)
    with pytest.raises(start.SetupError):
        start.set_up(dev=True)
    assert not start.is_ready(dev=False)
    assert not start.is_ready(dev=True)


def test_waits_for_another_set_up(
    installs: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = iter([False, False, True])
    monkeypatch.setattr(start, "try_lock", lambda file: next(locked))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    start.set_up(dev=False)
    assert capsys.readouterr().out.count("waiting for it") == 1
    assert installs == [False]


def test_lock_is_held_once_and_freed_on_close(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as other:
        with path.open("wb") as one:
            assert start.try_lock(one)
            assert not start.try_lock(other)
        assert start.try_lock(other)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], [start.QUICKSTART]),
        (["quickstart", "--trainer.max_epochs=1"], [[*start.QUICKSTART, "--trainer.max_epochs=1"]]),
        (["--model.lr", "0.1"], [[*start.QUICKSTART, "--model.lr", "0.1"]]),
        (["test", "-k", "mlp"], [[*start.TESTS, "-k", "mlp"]]),
    ],
)
def test_arguments_are_handed_on(
    commands: list[list[str]], args: list[str], expected: list[list[str]]
) -> None:
    assert start.main(args) == 0
    assert commands == expected


def test_lint_runs_every_tool_and_reports_the_worst(commands: list[list[str]]) -> None:
    assert start.main(["lint"]) == 3
    assert [command[1] for command in commands] == ["ruff", "ruff", "mypy", "mkdocs"]


@pytest.mark.parametrize("args", [["trian"], ["lint", "--fix"]])
def test_unknown_command_line_is_one_line(
    commands: list[list[str]], args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(args) == 2
    assert commands == []
    assert capsys.readouterr().err == f"start.py: not understood: {' '.join(args)} (see --help)\n"


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("pass", 0)])
def test_exit_code_is_passed_on(monkeypatch: pytest.MonkeyPatch, code: str, expected: int) -> None:
    monkeypatch.setattr(start, "PYTHON", sys.executable)
    assert start.run(["-c", code]) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_signal_becomes_a_shell_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "PYTHON", sys.executable)
    assert start.run(["-c", "import os; os.kill(os.getpid(), 15)"]) == 128 + 15


def test_help_needs_no_set_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(start, "set_up")
    assert start.main(["--help"]) == 0
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" in capsys.readouterr().out


def test_too_old_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 0))
    with pytest.raises(SystemExit, match=r"^start\.py: Python 3\.11 or newer is needed, this is "):
        runpy.run_path(start.__file__)


def test_missing_venv_module_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "VENV", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(start.SetupError, match="apt install python3-venv"):
        start.create_venv()


def test_own_venv_is_not_rebuilt_from_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "VENV", Path(sys.prefix))
    with pytest.raises(start.SetupError, match="python3 outside it"):
        start.create_venv()


def test_failed_venv_says_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = subprocess.CompletedProcess([], 1, stdout="", stderr="...\nno space left\n")
    monkeypatch.setattr(start, "VENV", tmp_path)
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: result)
    with pytest.raises(start.SetupError, match="no space left"):
        start.create_venv()


def fake_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a Python snippet stand in for pip."""
    real = subprocess.Popen

    def popen(command: list[str], **kwargs: Any) -> subprocess.Popen[str]:
        return real([sys.executable, "-c", code], **kwargs)

    monkeypatch.setattr("subprocess.Popen", popen)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Collecting torch\nERROR: No match\n", "No match"),
        ("ERROR: inner\n      ERROR: No setuptools\n      [end of output]\n", "No setuptools"),
        ("ERROR: Exception:\nTraceback\npip.x.ReadTimeoutError: slow\n", "ReadTimeoutError: slow"),
        ("", "no reason given"),
    ],
)
def test_failed_pip_is_one_line_with_remedies(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    reason: str,
) -> None:
    fake_pip(monkeypatch, f"print({output!r}, end=''); raise SystemExit(1)")
    assert start.main(["test"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"start.py: pip failed: {reason} (all it said: ")
    assert "PIP_INDEX_URL" in error
    assert error.count("\n") == 1
    assert start.LOG.read_text() == output


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Downloading torch-2.14.1-cp311-x.whl (530.8 MB)", "  Downloading torch (530.8 MB)"),
        (
            "Using cached https://x.org/a/torch-2.14.1-x.whl (530 MB)",
            "  Using cached torch (530 MB)",
        ),
        ("Installing collected packages: a, b, c", "  Packages to install: 3"),
        ("  Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)", ""),
        ("  Downloading ruff-0.17.6-py3-none-any.whl (10.6 MB)", ""),
        ("Requirement already satisfied: numpy in x", ""),
    ],
)
def test_progress_shows_big_downloads_only(line: str, shown: str) -> None:
    assert start.progress(line) == shown


def setup_cfg() -> ConfigParser:
    """Read the project's own setup.cfg."""
    config = ConfigParser(interpolation=None)
    config.read(PROJECT / "setup.cfg", encoding="utf-8")
    return config


def requirements() -> list[str]:
    """Return every requirement in setup.cfg, those of the dev tools included."""
    config = setup_cfg()
    lines = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    return [line for line in lines.splitlines() if line]


@pytest.mark.parametrize("line", requirements())
def test_proven_version_lies_in_its_range(line: str) -> None:
    requirement = Requirement(line)
    pins = (PROJECT / "constraints.txt").read_text()
    pin = re.search(rf"^{re.escape(requirement.name)}==(\S+)$", pins, re.MULTILINE | re.IGNORECASE)
    assert pin is not None, f"{requirement.name} is not in constraints.txt"
    assert pin[1] in requirement.specifier


def test_every_package_is_installed() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    folders = [PROJECT / name for name in {name.partition(".")[0] for name in listed}]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    found = {".".join(file.parent.relative_to(PROJECT).parts) for file in files}
    assert found == set(listed) - {"configs"}  # files to be read
