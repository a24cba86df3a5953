import functools
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from cli import main
from experiments.monitoring.loggers import keep_environment, with_environment
from experiments.records.record import RunRecord
from tests.chaos import Zygote
from tests.conftest import SHORT, Cli, draw_nothing, short_fit, small
from tests.wandb_server import WandbServer

TINY = ["--model=MLP", "--model.hidden_units=[2]"]


def inspect(file: Path) -> dict[str, Any]:
    """What W&B's own reader finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--summary", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunRecord:
    """A run with W&B offline, ended by a test, then tested again by another command."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked for something"))
        draw_nothing(monkeypatch)
        record = short_fit(runs, data_dir, *TINY, "--test_after_fit=true", wandb=True)
        main(["test", f"--runs_dir={runs}", "--name=run"])
    return record


@pytest.fixture
def fit(runs: Path, data_dir: Path) -> Cli:
    """A fit with its pictures, which W&B wants too."""
    return functools.partial(short_fit, runs, data_dir, *TINY, wandb=True)


def wandb_files(record: RunRecord) -> list[Path]:
    return sorted(record.path.glob("wandb/offline-run-*/run-*.wandb"))


def test_wandb_keeps_config_summary_and_status_in_the_runs_folder(logged: RunRecord) -> None:
    run = inspect(wandb_files(logged)[0])
    assert (run["name"], run["run_id"]) == ("run", logged.fields["wandb_id"])
    assert (run["state"], run["exit_code"]) == ("finished", 0)
    config = run["config"]
    assert config["model"]["class_path"] == "lightning_modules.MLP"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3
    facts = {"model": "MLP", "optimizer": "SGD", "lr": 1e-3, "seed": 42, "data": "synthetic"}
    assert facts.items() <= config["run"].items()
    summary = run["summary"]
    assert summary["val/acc"]["max"] == logged.summary["best/val/acc"]
    assert summary["test/acc"] == logged.summary["test/acc"]
    assert summary["best/step"] == logged.summary["best/step"]
    assert {"test/acc/disc", "test/confusion_matrix", "test/per_class"} <= summary.keys()


def test_a_later_test_goes_on_in_the_same_wandb_run(logged: RunRecord) -> None:
    fit, test = wandb_files(logged)
    assert fit.name == test.name == f"run-{logged.fields['wandb_id']}.wandb"
    run = inspect(test)
    assert (run["state"], run["exit_code"]) == ("finished", 0)
    assert run["summary"]["test/acc"] == logged.summary["test/acc"]


def test_disabled_wandb_writes_nothing(fit: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    record = fit()
    assert record.fields["status"] == "finished"
    assert not list(record.path.glob("wandb*"))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("bogus", "WANDB_MODE must be offline, online or disabled, got 'bogus'"),
        ("online", "set WANDB_API_KEY"),
    ],
)
def test_a_mode_that_cannot_work_is_an_error(
    mode: str,
    message: str,
    synthetic: list[str],
    runs: Path,
    error_of: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("NETRC", str(runs / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(runs))
    assert message in error_of(["fit", *TINY, *synthetic, f"--runs_dir={runs}"])
    assert not (runs / "run").exists()


ENVIRONMENT = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "seeds",
    "WANDB_JOB_TYPE": "nightly",
    "WANDB_TAGS": "a, b,,",
    "WANDB_NOTES": "size ±",
}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, [], ("cifar10-lightning", None, "run", "fit", [], None)),
        (ENVIRONMENT, [], ("theirs", "team", "seeds", "nightly", ["a", "b"], "size ±")),
        (
            ENVIRONMENT,
            [
                "--trainer.logger.project=mine",
                "--trainer.logger.group=g",
                "--trainer.logger.job_type=j",
                "--trainer.logger.entity=e",
                "--trainer.logger.tags=[c]",
                "--trainer.logger.notes=n",
            ],
            ("mine", "e", "g", "j", ["c"], "n"),
        ),
        (dict.fromkeys(ENVIRONMENT, ""), [], ("cifar10-lightning", None, "run", "fit", [], None)),
    ],
)
def test_default_then_environment_then_flag(
    environment: dict[str, str],
    flags: list[str],
    expected: tuple[Any, ...],
    fit: Cli,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def unreachable(**kwargs: Any) -> None:
        asked.update(kwargs)
        raise wandb.errors.CommError("timed out")

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(SystemExit):
        fit(*flags)
    labels = ["MLP", "SGD", "synthetic", "seed 42"]
    project, entity, group, job_type, tags, notes = expected
    assert (asked["project"], asked["entity"]) == (project, entity)
    assert (asked["group"], asked["job_type"]) == (group, job_type)
    assert (asked["tags"], asked["notes"]) == ([*labels, *tags], notes)


def test_a_later_command_goes_on_in_the_project_of_the_run(
    logged: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = yaml.safe_load((logged.path / "config.yaml").read_text(encoding="utf-8"))
    assert kept["trainer"]["logger"]["init_args"]["project"] == "cifar10-lightning"
    monkeypatch.setenv("WANDB_PROJECT", "another")
    given = kept["trainer"]["logger"]["init_args"]
    assert with_environment(given)["project"] == "cifar10-lightning"


def test_what_the_environment_says_is_in_the_runs_configuration(
    synthetic: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Namespace(class_path="experiments.WandbLogger", init_args=Namespace(project=None))
    others = [False, None, Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="a"))]
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    keep_environment([config, *others])
    assert config.init_args.project == "theirs"
    assert config.init_args.tags == ["a", "b"]
    assert others[2] == Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="a"))
    keep_environment(False)


def test_a_name_or_folder_for_wandb_alone_is_said_to_be_left_out(
    fit: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(**kwargs: Any) -> None:
        raise wandb.errors.CommError("timed out")

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_NAME", "other")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    with pytest.raises(SystemExit):
        fit()
    said = capsys.readouterr().err
    assert "note: WANDB_NAME is not used: " in said
    assert "note: WANDB_DIR is not used: " in said


def test_a_wandb_that_cannot_start_leaves_no_run(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise wandb.errors.CommError("timed out")

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(SystemExit):
        fit()
    assert "W&B can't start in offline mode: timed out" in capsys.readouterr().err
    assert not (runs / "run").exists()


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_leaves_the_run_offline(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init = wandb.init

    def reachable_offline(*args: Any, **kwargs: Any) -> Any:
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return init(*args, **kwargs)

    monkeypatch.setattr(wandb, "init", reachable_offline)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # W&B reads the environment once, and other tests came before
    fit("--trainer.logger.mode=online", *TINY, wandb=True)
    assert "does not answer (timed out): logging offline; upload with" in capsys.readouterr().err
    assert list((runs / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_wandb_that_fails_does_not_end_training(
    fit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    class Failing:
        id = "abc"

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> "Failing":
            return self

        def log(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionResetError("gone")

        def finish(self, exit_code: int) -> None:
            ended.append(exit_code)

    monkeypatch.setattr(wandb, "init", lambda **kwargs: Failing())
    monkeypatch.setattr(wandb.sdk.wandb_run, "Run", Failing)
    with pytest.warns(UserWarning, match="W&B stopped logging") as warned:
        record = fit("--test_after_fit=true")
    assert sum("W&B stopped" in str(warning.message) for warning in warned) == 1
    assert (record.fields["status"], ended) == ("finished", [0])
    assert [entry["step"] for entry in record.metrics() if "train/loss" in entry] == [2, 4]


def test_an_online_run_reaches_the_server(
    tmp_path: Path, data_dir: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--seed_everything=3", "--name=mlp-s3"]
    with WandbServer().listening() as server:
        account: dict[str, Any] = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        words = ["fit", *SHORT, *small(data_dir), *flags]
        done = zygote.run(words, WANDB_MODE="online", **account)
    assert done.code == 0, done.err
    record = RunRecord.open(tmp_path / "runs" / "mlp-s3")
    (run,) = server.runs.values()
    assert record.fields["status"] == "finished"
    assert run["displayName"] == "mlp-s3"
    assert run["groupName"] == "mlp"
    assert run["jobType"] == "fit"
    assert run["tags"] == ["MLP", "SGD", "synthetic", "seed 3"]
    config = json.loads(run["config"])
    assert config["seed_everything"]["value"] == 3
    logged = [e["val/acc"] for e in server.streamed["wandb-history.jsonl"] if "val/acc" in e]
    assert logged[-1] == pytest.approx(record.summary["val/acc"])
    assert server.exit_codes == [0]
