"""What a shell offers at a Tab, and that it starts no Python for it."""

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli import main
from experiments.command_line.shipped_configs import names
from tests.conftest import PROJECT

# Prints what is offered after the words, one a line.
TAB = """
COMP_WORDS=("$0" "$@")
COMP_CWORD=$#
_cifar10
for word in "${COMPREPLY[@]}"; do printf '%s\\n' "$word"; done
"""
COMMANDS = [
    *("fit", "validate", "test", "predict", "export", "compare", "export_runs"),
    *("reproduce",),
    *("sweep", "find_lr", "find_batch_size", "completion"),
]
RUNS = ["mlp-s0", "mlp-s1"]
CHECKPOINTS = ["runs/mlp-s0/best.ckpt", "runs/mlp-s1/best.ckpt"]


def written(shell: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(["completion", shell])
    return out.getvalue()


@pytest.fixture(scope="module")
def script() -> str:
    return written("bash")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, a folder that is none, and config files."""
    for run in RUNS:
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "record.json").touch()
        (tmp_path / "runs" / run / "best.ckpt").touch()
    (tmp_path / "runs/wandb").mkdir()
    (tmp_path / "mine/deep").mkdir(parents=True)
    for name in ("my net.yaml", "mynet.yml", "mynet.py", "mine/a.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(script: str, words: Sequence[str], shell: str = "bash") -> list[str]:
    """What a shell offers; it finds no other program to start."""
    start = {"bash": ["bash", "--norc", "-c"], "zsh": ["zsh", "-f", "-c"]}[shell]
    # zsh calls the function so; the rest of the script is for a terminal.
    code = script if shell == "bash" else f"emulate sh\n{script[: script.index('if [ -n')]}"
    command = [str(shutil.which(start[0])), *start[1:], code + TAB, *words]
    ended = subprocess.run(
        command, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


CASES: list[tuple[list[str], list[str]]] = [
    (["cifar10", ""], [*COMMANDS, "--help", "--version"]),
    (["cifar10", "pre"], ["predict"]),
    (["cifar10", "fit", "--con"], ["--config"]),
    (["cifar10", "fit", "--trainer.prec"], ["--trainer.precision"]),
    (["cifar10", "fit", "--trainer.precision", "bf"], ["bf16", "bf16-mixed", "bf16-true"]),
    (["cifar10", "fit", "--data.flip", ""], ["none", "random", "alternating"]),
    (["cifar10", "fit", "--model", ""], ["MLP", "NumPyMLP", "CNN", "FastCNN", "FineTuned"]),
    (["cifar10", "fit", "--model.lr_"], ["--model.lr_interval", "--model.lr_scheduler"]),
    (["cifar10", "fit", "--model.lr_interval", ""], ["step", "epoch"]),
    (["cifar10", "fit", "--trainer.logger.m", "o"], []),
    (["cifar10", "fit", "--trainer.logger.mode", "o"], ["offline", "online"]),
    (["cifar10", "fit", "--resume", "t"], ["true"]),
    (["cifar10", "fit", "--resume", "--over"], ["--overwrite"]),
    (["cifar10", "fit", "--model.lr", ""], []),
    (["cifar10", "fit", "--config", "mlp_"], ["mlp_deep", "mlp_layernorm", "mlp_numpy"]),
    (["cifar10", "fit", "--config", "=", "mlp_d"], ["mlp_deep"]),
    (["cifar10", "fit", "--config=mlp_d"], ["--config=mlp_deep"]),
    (["cifar10", "fit", "-c", "my"], ["my\\ net.yaml", "mynet.yml"]),
    (["cifar10", "fit", "--config", "mine/"], ["mine/a.yaml", "mine/deep/"]),
    (["cifar10", "test", "--name", ""], RUNS),
    (["cifar10", "test", "--name", "=", "mlp-s1"], ["mlp-s1"]),
    (["cifar10", "test", "--runs_dir", "elsewhere", "--name", ""], []),
    (["cifar10", "test", "--runs_dir", "=", "runs", "--name", "mlp-s0"], ["mlp-s0"]),
    (["cifar10", "test", "--ckpt_path", ""], ["best", "last", *CHECKPOINTS]),
    (["cifar10", "export", "--ckpt_path", ""], CHECKPOINTS),
    (["cifar10", "export", "--format", ""], ["onnx", "torch_export"]),
    (["cifar10", "compare", "mlp-s0", ""], RUNS),
    (["cifar10", "compare", "--format", "c"], ["csv"]),
    (["cifar10", "export_runs", "mlp-s0", ""], RUNS),
    (["cifar10", "export_runs", "--to", "t"], ["trackio"]),
    (["cifar10", "compare", "--baseline", "mlp-s1"], ["mlp-s1"]),
    (["cifar10", "reproduce", "--b"], ["--budget"]),
    (["cifar10", "find_lr", "--min"], ["--min_lr"]),
    (["cifar10", "sweep", "--trainer.prec"], ["--trainer.precision"]),
    (["cifar10", "completion", ""], ["bash", "zsh", "fish"]),
    (["/opt/bin/python3", "../cli.py", "va"], ["validate"]),
    (["python", "cli.py", "fit", "--model.norm", "layer_"], ["layer_native"]),
    (["python", "cl"], []),
    (["python", "other.py", ""], []),
]  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab(shell: str, script: str, here: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert [(words, offered(script, words, shell)) for words, _ in CASES] == CASES


def test_every_config_is_offered(script: str, here: Path) -> None:
    found = offered(script, ["cifar10", "fit", "--config", ""])
    assert found == [*names(), "my\\ net.yaml", "mynet.yml"]


def test_every_flag_of_the_readme_is_offered(script: str, here: Path) -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    flags = {*re.findall(r"`(--[a-z_.]+) [^`]*`", readme)}
    known = {flag for command in COMMANDS for flag in offered(script, ["cifar10", command, "--"])}
    assert len(flags) > 10
    assert flags - known == set()


def test_what_would_be_refused_is_not_offered(script: str, here: Path) -> None:
    flags = offered(script, ["cifar10", "fit", "--"])
    assert not {"--weights_only", "--trainer.barebones"} & {*flags}
    assert "ddp_spawn" not in offered(script, ["cifar10", "fit", "--trainer.strategy", "ddp"])


def test_a_name_is_not_expanded(script: str, here: Path) -> None:
    run = here / "runs/$(echo >ran)`echo >ran`"
    run.mkdir()
    (run / "record.json").touch()
    found = offered(script, ["cifar10", "test", "--name", "$"])
    assert found == [r"\$\(echo\ \>ran\)\`echo\ \>ran\`"]
    assert not (here / "ran").exists()


ODD = ["a b'c", 'quo"te', "do$l`ar", "back\\slash", "ünï x", "(par)&;"]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("a", [r"a\ b\'c"]),
        (r"a\ b", [r"a\ b\'c"]),
        ('"a b', ["a b'c"]),
        ("'a", []),  # a name with ' can't be in '
        ("'quo", ['quo"te']),
        ('"quo', [r"quo\"te"]),
        ('"do', [r"do\$l\`ar"]),
        ("'do", ["do$l`ar"]),
        (r"do\$", [r"do\$l\`ar"]),
        ('"back', [r"back\\slash"]),
        ("'ün", ["ünï x"]),
        (r"\(p", [r"\(par\)\&\;"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_name_is_quoted_as_the_word_was_begun(
    shell: str, typed: str, found: list[str], script: str, here: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    odd_runs(here)
    assert offered(script, ["cifar10", "test", "--name", typed], shell) == found
    own = [f"--name={word}" for word in found]
    assert offered(script, ["cifar10", "test", f"--name={typed}"], shell) == own


def odd_runs(here: Path) -> None:
    for name in ODD:
        (here / "runs" / name).mkdir()
        (here / "runs" / name / "record.json").touch()


def test_fish_is_given_names_as_they_are(script: str, here: Path) -> None:
    odd_runs(here)
    found = offered(f"_cifar10_raw=1\n{script}", ["cifar10", "test", "--name", ""])
    assert sorted(found) == sorted([*ODD, *RUNS])


def test_bash_completes_both_programs_in_a_terminal(script: str, here: Path) -> None:
    (here / "script").write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["bash", "--norc", "-c", ". ./script; complete -p cifar10 python python3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"-F (\S+) (\S+)$", done.stdout, re.M) == [
        ("_cifar10", name) for name in ("cifar10", "python", "python3")
    ]


def test_fish(here: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    script = written("fish")
    asked = "; ".join(
        f"complete -C '{line}'"
        for line in ("cifar10 pre", "cifar10 fit --config=mlp_d", "python cli.py test --name ")
    )
    done = subprocess.run(
        ["fish", "-N", "-c", script + asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["predict", "--config=mlp_deep", *RUNS]
    odd_runs(here)
    asked = "complete -C 'cifar10 test --name a'; complete -C 'cifar10 test --name \\'a b'"
    done = subprocess.run(
        ["fish", "-N", "-c", script + asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [ODD[0], ODD[0]]


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        main(["completion", "tcsh"])
    assert failure.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
