"""``fit`` from Python does what the command line does."""

from pathlib import Path

import pytest

from experiments import RunError, fit
from experiments.errors import UsageError
from tests.conftest import Cli

TINY = {"model": "MLP", "model.hidden_units": [4]}
LIMITS = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "trainer.logger": False}


@pytest.fixture
def small(data_dir: Path) -> dict[str, object]:
    return {
        "data.source": "synthetic",
        "data.data_dir": str(data_dir),
        "data.synthetic_images": 200,
        "data.batch_size": 50,
        "data.val_size": 100,
        "trainer.accelerator": "cpu",
        **LIMITS,
    }


def test_it_trains_as_the_command_line_does(
    small: dict[str, object], runs: Path, data_dir: Path
) -> None:
    given = {**TINY, **small}
    record = fit(flags=given, name="p", runs_dir=str(runs), test_after_fit=True)
    from tests.conftest import short_fit  # noqa: PLC0415

    same = short_fit(runs, data_dir, "--model=MLP", "--model.hidden_units=[4]", name="c")
    key = "train/weights_sha256"
    assert record.summary[key] == same.summary[key]
    assert (record.path, record.fields["status"]) == (runs / "p", "finished")
    assert "test/acc" in record.summary
    assert record.fields["command"].startswith("cli.py fit --name=p ")


def test_it_resumes(small: dict[str, object], runs: Path) -> None:
    given = {**TINY, **small}
    fit(flags=given, name="p", runs_dir=str(runs))
    record = fit(flags={**given, "trainer.max_steps": 6}, name="p", runs_dir=str(runs), resume=True)
    assert record.summary["train/steps"] == 6
    assert [again["step"] for again in record.fields["resumed"]] == [4]


def test_configs_go_by_their_names(small: dict[str, object], runs: Path) -> None:
    assert fit("mlp", flags=small, name="m", runs_dir=str(runs)).fields["lr"] == 0.001


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"model.hiden_units": [4]}, UsageError, "unknown key 'hiden_units', did you mean"),
        ({"model.lr": "fast"}, UsageError, "model.lr: expected float, got fast"),
        ({"ckpt_path": "nothing.ckpt"}, UsageError, "no checkpoint nothing.ckpt"),
        ({"--model.lr": 0.1}, UsageError, "keys have no dashes: write 'model.lr'"),
        ({"model": Path}, UsageError, "model: pass the name of the class as text, 'pathlib.Path'"),
        ({"model.lr": 1j}, UsageError, "model.lr: expected text, a number, .*, got complex"),
        ({"ckpt_path": Path("no.ckpt")}, UsageError, "no checkpoint no.ckpt"),
        ({"trainer.fast_dev_run": True}, ValueError, "fast_dev_run keeps no run"),
    ],
)
def test_what_is_wrong_is_raised(
    flags: dict[str, object],
    error: type[Exception],
    message: str,
    small: dict[str, object],
    runs: Path,
) -> None:
    with pytest.raises(error, match=message):
        fit(flags={**TINY, **small, **flags}, name="p", runs_dir=str(runs))
    assert not runs.exists()


def test_a_run_that_is_there_is_not_replaced(fit: Cli, small: dict[str, object]) -> None:
    from experiments import fit as again  # noqa: PLC0415

    path = fit("--model=MLP", "--model.hidden_units=[4]").path
    with pytest.raises((UsageError, RunError), match="exists: "):
        again(flags={**TINY, **small}, name=path.name, runs_dir=str(path.parent))
