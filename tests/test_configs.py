import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torchvision import models
from wandb.sdk.lib.wbauth import unauthenticate_session

from cli import main
from experiments.records.record import RunRecord
from tests.conftest import PROJECT, SHORT, mark_slow

CONFIGS = sorted(
    path.relative_to(PROJECT).as_posix() for path in (PROJECT / "configs").rglob("*.yaml")
)
RUNNABLE = [name for name in CONFIGS if not name.startswith("configs/sweeps/")]
SPECIAL = {
    "configs/finetune.yaml",
    "configs/logger/wandb.yaml",
    "configs/trainer/ddp.yaml",
    "configs/trainer/gpu.yaml",
}
# Between them they have every kind of value.
VARIED = {"configs/mlp.yaml", "configs/cnn.yaml", "configs/fast94.yaml", "configs/trainer/ddp.yaml"}
# What trains on all images says so, and stays so.
UNSPLIT = ("experiments.CurveOnTest", "ablations/protocol.yaml")
# Four images a step: quick enough for the network with 11 million weights.
TWO_STEPS = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=4",
    "--data.eval_batch_size=4",
]


def command(config: str) -> list[str]:
    """The arguments of the command in a config's first line."""
    first = (PROJECT / config).read_text().splitlines()[0]
    return shlex.split(first.removeprefix("# python cli.py "))


@pytest.fixture
def arguments(
    synthetic: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    monkeypatch.chdir(PROJECT)

    def make(config: str, *flags: str) -> list[str]:
        places = [f"--runs_dir={runs}", "--name=run"]
        unsplit = any(text in (PROJECT / config).read_text() for text in UNSPLIT)
        whole = ["--data.val_size=0"] if unsplit else []
        return [*command(config), *synthetic, *TWO_STEPS, *whole, *places, *flags]

    return make


@pytest.mark.parametrize("config", RUNNABLE)
def test_first_line_is_the_command_and_the_second_says_what(config: str) -> None:
    first, second, *_ = (PROJECT / config).read_text().splitlines()
    assert re.fullmatch(rf"# python cli\.py (fit|test) .*--config {re.escape(config)}( .*)?", first)
    assert re.match(r"# \w.{20,}", second)


@pytest.mark.parametrize("config", [name for name in RUNNABLE if name not in SPECIAL])
def test_the_command_runs(config: str, arguments: Callable[..., list[str]], runs: Path) -> None:
    main(arguments(config, "--trainer.logger=false", "--trainer.accelerator=cpu"))
    record = RunRecord.open(runs / "run")
    asked = yaml.safe_load((PROJECT / config).read_text()).get("model", {})
    assert record.fields["status"] == "finished"
    assert record.summary["train/steps"] == 2
    assert asked.get("class_path", "").endswith(record.fields["model"]) or not asked


@pytest.mark.parametrize("config", mark_slow(RUNNABLE, except_for=VARIED))
def test_print_config_parses_back(
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(SystemExit):
        main([*command(config), "--print_config"])
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'printed.yaml'}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


def test_fine_tuning_runs_with_a_file(
    arguments: Callable[..., list[str]], runs: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(models.resnet18(weights=None).state_dict(), weights)
    flags = [f"--model.weights={weights}", "--model.image_size=32", "--trainer.logger=false"]
    main(arguments("configs/finetune.yaml", *flags, "--trainer.accelerator=cpu"))
    assert RunRecord.open(runs / "run").fields["model"] == "FineTuned"


def test_fine_tuning_without_the_file_is_an_error(
    arguments: Callable[..., list[str]], error_of: Callable[[list[str]], str], runs: Path
) -> None:
    message = error_of(arguments("configs/finetune.yaml", "--trainer.logger=false"))
    assert "no weights resnet18-f37072fd.pth; name a state dict" in message
    assert not (runs / "run").exists()


SWEEPS = [name for name in CONFIGS if name.startswith("configs/sweeps/")]


@pytest.mark.parametrize("config", SWEEPS)
def test_a_sweep_asks_for_what_the_command_line_knows(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    assert (PROJECT / config).read_text().startswith(f"# python cli.py sweep {config}")
    sweep = yaml.safe_load((PROJECT / config).read_text())
    assert sweep["metric"] == {"name": "val/acc", "goal": "maximize"}
    for end in (0, -1):
        chosen = {
            name: options["values"][end]
            if "values" in options
            else options["min" if end else "max"]
            for name, options in sweep["parameters"].items()
        }
        flags = [f"--{name}={value}" for name, value in chosen.items()]
        macros = {"${env}": [], "${interpreter}": [], "${program}": [], "${args}": flags}
        words = [word for part in sweep["command"] for word in macros.get(part, [part])]
        with pytest.raises(SystemExit) as done:
            main([*words, "--print_config"])
        assert done.value.code in {0, None}
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["data"]["init_args"]["val_size"] == 5000
        assert printed["model"]["init_args"]["norm"] == chosen["model.norm"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_config_without_one_is_an_error(
    arguments: Callable[..., list[str]], error_of: Callable[[list[str]], str], runs: Path
) -> None:
    assert "torch finds no GPU here" in error_of(arguments("configs/trainer/gpu.yaml"))
    assert not runs.exists()


@pytest.mark.gpu
def test_gpu_config_runs(arguments: Callable[..., list[str]], runs: Path) -> None:
    main(arguments("configs/trainer/gpu.yaml", "--trainer.logger=false", "--test_after_fit=true"))
    record = RunRecord.open(runs / "run")
    assert record.fields["hardware"]["gpus"]
    assert "test/acc" in record.summary
    assert record.summary["train/peak_gpu_mib"] > 0


def test_online_config_without_an_account_is_an_error(
    arguments: Callable[..., list[str]],
    error_of: Callable[[list[str]], str],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    unauthenticate_session()  # W&B remembers the account of an earlier test of this process
    message = error_of(arguments("configs/logger/wandb.yaml"))
    assert "no API key configured; set WANDB_API_KEY" in message
    assert not runs.exists()


@pytest.mark.slow
def test_ddp_config_trains_one_run_in_two_processes(
    synthetic: list[str], tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    configs = [
        f"--config={PROJECT / name}" for name in ("configs/mlp.yaml", "configs/trainer/ddp.yaml")
    ]
    flags = ["--trainer.logger=false", "--name=run", "--test_after_fit=true"]
    done = shell("fit", *configs, *SHORT, *synthetic, *flags, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    record = RunRecord.open(tmp_path / "runs" / "run")
    entries = list(record.metrics())
    assert [entry["step"] for entry in entries if "train/loss" in entry] == [2, 4]
    assert record.fields["status"] == "finished"
    assert record.summary["test/acc"] * 200 == pytest.approx(
        round(record.summary["test/acc"] * 200)
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
