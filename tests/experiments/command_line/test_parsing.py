import sys
from pathlib import Path

import pytest
from lightning_fabric.utilities.exceptions import MisconfigurationException

from datamodules import DatasetError
from experiments.command_line.messages import one_line
from experiments.command_line.parsing import fail, prepare_arguments, user_errors
from experiments.errors import RunError, UsageError, is_user_error
from experiments.records.record import RunRecord

KEYS = ["hidden_units", "trainer.max_steps", "batch_size", "block_order"]


@pytest.mark.parametrize(
    "message",
    [  # of jsonargparse 4.53, and of 4.39
        "Option 'hiden_units' is not accepted",
        "Validation failed: Key 'hiden_units' is not expected",
        "Subcommand 'fit' does not accept option 'hiden_units'",
        "Validation failed: Subcommand 'fit' does not accept nested key 'hiden_units'",
        "unrecognized arguments: --hiden_units=3",
        "Unrecognized arguments: --hiden_units",
    ],
)
def test_unknown_keys_in_every_wording(message: str) -> None:
    assert one_line(message, KEYS) == "unknown key 'hiden_units', did you mean 'hidden_units'?"


def test_an_unknown_key_without_a_neighbour_has_no_advice() -> None:
    assert one_line("Option 'zzz' is not accepted", KEYS) == "unknown key 'zzz'"
    assert "has no option 'block_order'" in one_line("Key 'block_order' is not expected", KEYS)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Parser key \"norm\":\n  Expected a typing.Literal['none', 'batch']. Got value: foo",
            "model.norm: expected one of none, batch, got foo",
        ),
        (
            'Parser key "norm":\n  Cannot take a Union of no types.',
            "model.norm: expected one of none, batch, layer, layer_native",
        ),
        (
            'Parser key "mode":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [<class 'NoneType'>, typing.Literal['offline', 'online']]\n  Errors:\n"
            "    - Expected a <class 'NoneType'>\n    - Cannot take a Union of no types.\n"
            "  Given value type: <class 'str'>\n  Given value: bogus",
            "mode: expected one of offline, online, got bogus",
        ),
        (
            "Parser key \"batch_size\":\n  Expected a <class 'int'>. Got value: abc",
            "data.batch_size: expected int, got abc",
        ),
        (
            'Parser key "optimizer":\n\n  - Expected a path but Foo either not accessible or '
            "invalid\n  - Expected a dot import path string: Foo",
            "model.optimizer: expected the name of a class, got Foo",
        ),
        (
            "Does not validate against any of the Union subtypes\nErrors:\n  - WANDB_MODE is odd\n"
            "  - Expected a <class 'bool'>\nGiven value: x",
            "WANDB_MODE is odd",
        ),
        ('Key "fit.model" is required but not included', "which model? Add"),
        ("the following arguments are required: fit.model", "which model? Add"),
        ("two\n  lines", "two lines"),
    ],
)
def test_messages_become_one_line(message: str, line: str) -> None:
    assert one_line(message).startswith(line)
    assert "\n" not in one_line(message)


@pytest.mark.parametrize(
    ("given", "written_out"),
    [
        (["--model.lr", "0.1"], ["--model.init_args.optimizer.init_args.lr", "0.1"]),
        (["--model.lr=0.1"], ["--model.init_args.optimizer.init_args.lr=0.1"]),
        (["--model.lr_scheduler=StepLR"], ["--model.lr_scheduler=StepLR"]),
    ],
)
def test_the_short_learning_rate(given: list[str], written_out: list[str]) -> None:
    assert prepare_arguments(["fit", *given]) == ["fit", *written_out]


@pytest.mark.parametrize("form", [["--name", "mine"], ["--name=mine"]])
def test_an_evaluation_takes_the_runs_config(form: list[str], tmp_path: Path) -> None:
    config = RunRecord.create(tmp_path / "mine", "{}", {}).path / "config.yaml"
    where = [*form, "--runs_dir", str(tmp_path)]
    assert prepare_arguments(["test", *where]) == ["test", "--config", str(config), *where]
    assert prepare_arguments(["fit", *where]) == ["fit", *where]
    own = ["-c", str(config)]
    assert prepare_arguments(["test", *where, *own]) == ["test", *own, *where]


def test_a_flag_may_stand_before_the_file_it_beats(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer: {max_steps: 1}")
    given = [
        "fit",
        "--seed_everything",
        "3",
        "--model.norm=batch",
        "--model",
        "MLP",
        "-c",
        str(config),
    ]
    sorted_ = ["-c", str(config), "--model", "MLP", "--seed_everything", "3", "--model.norm=batch"]
    assert prepare_arguments(given) == ["fit", *sorted_]
    given = ["fit", "--print_config", f"--config={config}", "--config=a", "--data=B"]
    sorted_ = [f"--config={config}", "--config=a", "--data=B", "--print_config"]
    assert prepare_arguments(given) == ["fit", *sorted_]


def test_the_arguments_of_the_process_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", "--model=MLP"])
    assert prepare_arguments(None) == ["fit", "--model=MLP"]


def raise_in_a_library(error: Exception) -> None:
    """Raises an error while a run is set up, in no file of the user's own."""
    exec("with user_errors(): raise error", {"user_errors": user_errors, "error": error})


def test_a_users_error_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no run there") as error:
        raise_in_a_library(RunError("no run\nthere"))
    with pytest.raises(SystemExit) as exited:
        fail(error.value)
    assert (exited.value.code, capsys.readouterr().err) == (2, "error: no run there\n")
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(UsageError):
        fail(error.value)


def test_other_errors_are_not_the_users() -> None:
    assert is_user_error(DatasetError("damaged")) and is_user_error(
        MisconfigurationException("bad")
    )
    with pytest.raises(ZeroDivisionError):
        raise_in_a_library(ZeroDivisionError())
