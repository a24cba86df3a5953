"""The project in another environment and another folder, as docs/installed.md says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.test_start import setup_cfg

PAGE = (PROJECT / "docs/installed.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_what_pip_installs_runs_in_another_folder(tmp_path: Path) -> None:
    """Needs a package index, for what builds the package."""
    install, version = BLOCKS[0].splitlines()
    source, target, here = (tmp_path / name for name in ("source", "target", "here"))
    here.mkdir()
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT)
    for name in listed.decode().splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, source / name)
    command = [sys.executable, "-m", *install.split(), "--no-deps", "--target", str(target)]
    subprocess.run(command, cwd=source, check=True)

    def cifar10(*words: str) -> str:
        script = [sys.executable, str(target / "bin/cifar10"), *words]
        # Before the folders of this environment, where the checkout itself may be installed.
        environment = {**os.environ, "PYTHONPATH": str(target)}
        return subprocess.check_output(script, cwd=here, env=environment, text=True)

    assert cifar10(*version.split()[1:]).startswith("cifar10-lightning ")
    assert "hidden_units:" in cifar10("fit", "--config", "configs/mlp.yaml", "--print_config")
    assert "_cifar10()" in cifar10("completion", "bash")
    assert cifar10("reproduce", "--list").startswith("numpy ")


def test_every_file_of_a_package_is_installed() -> None:
    config = setup_cfg()
    data = dict(config["options.package_data"].items())
    for package in config["options"]["packages"].split():
        folder = PROJECT / package.replace(".", "/")
        files = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
        assert files <= {*folder.glob(data.get(package, "*.py"))}, package


def test_the_commands_for_a_tab(tmp_path: Path) -> None:
    """With a `cifar10` in place of the one that `pip install .` writes, and a home of its own."""
    _, in_bash, in_fish = BLOCKS
    script = "_cifar10() { :; }; complete -F _cifar10 cifar10\n"
    (tmp_path / "script").write_text(script, encoding="utf-8")
    stub = 'cifar10() { [ "$1 $2" = "completion bash" ] || [ "$2" = fish ] && cat script; }\n'
    code = f"{stub}{in_bash}{in_fish}. ~/.bashrc; complete -p cifar10"
    done = subprocess.run(
        ["bash", "--norc", "-e", "-c", code],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-F _cifar10 cifar10" in done.stdout
    assert (tmp_path / ".config/fish/conf.d/cifar10.fish").read_text(encoding="utf-8") == script


def run_as_installed(here: Path, words: list[str], *paths: Path) -> tuple[int, str]:
    """Runs the command as its installed script does, with other folders searched first."""
    code = f"import sys; sys.path[:1] = {[*map(str, paths), str(PROJECT)]}; from cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}main({words})"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["experiments/__init__", "datamodules/__init__", "reproduce"])
def test_a_package_in_place_of_ours_is_named(module: str, tmp_path: Path) -> None:
    path = tmp_path / f"{module}.py"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    code, said = run_as_installed(tmp_path, ["compare"], tmp_path)
    place = path.parent if path.stem == "__init__" else path
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {place.stem} is {place}, not that of cifar10-lightning: rename")


def test_folders_of_such_names_do_no_harm(tmp_path: Path) -> None:
    """A folder without modules hides no package; the working directory is not searched."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/__init__.py").touch()
    (tmp_path / "path/datamodules").mkdir(parents=True)
    words = ["compare", "--runs_dir", "no"]
    code, said = run_as_installed(tmp_path, words, tmp_path / "path")
    assert (code, said) == (2, "error: no runs: no is no folder; name another with --runs_dir\n")
