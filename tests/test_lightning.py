"""Everything that the installed Lightning offers works, also killed and resumed, or is refused.

`experiments.command_line.lightning_table` decides; what a new version of Lightning adds fails here
until it is decided there, and has a case here if it works.
"""

import inspect
import json
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import pytorch_lightning
import torch
from jsonargparse import Namespace as Configuration
from lightning_fabric.plugins import ClusterEnvironment, environments
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning import Trainer, callbacks, loggers, plugins, profilers, strategies
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import Strategy, StrategyRegistry

from experiments.checkpoints.saving import is_averaged
from experiments.command_line import lightning_table as table
from experiments.command_line.lightning_table import check_lightning, refusal
from experiments.records.record import RunRecord
from experiments.session.stopping import TimeLimit
from lightning_modules import Classifier
from tests.chaos import Ended, Place
from tests.conftest import Cli, mark_slow
from tests.lab import HALF, Lab

# ---- what there is -------------------------------------------------------------------------------


def classes_of(module: Any, kind: type) -> set[str]:
    found = inspect.getmembers(module, inspect.isclass)
    return {name for name, cls in found if issubclass(cls, kind)}


OFFERED: dict[str, Iterable[str]] = {
    "accelerator": {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
    "callbacks": callbacks.__all__,
    "logger": loggers.__all__,
    "plugins": {
        *plugins.__all__,
        *classes_of(environments, ClusterEnvironment),
    },
    "precision": {str(name) for kind in get_args(_PRECISION_INPUT) for name in get_args(kind)},
    "profiler": {"simple", "advanced", "pytorch", "xla", *profilers.__all__},
    "strategy": {
        "auto",
        *StrategyRegistry.available_strategies(),
        *classes_of(strategies, Strategy),
    },
}
HOMES = {
    "callbacks": (callbacks,),
    "logger": (loggers,),
    "plugins": (plugins, environments),
    "profiler": (profilers,),
    "strategy": (strategies,),
}


def namespace(**values: Any) -> Any:
    """A part of a configuration, as the parser makes it."""
    return Configuration(**values)  # type: ignore[no-untyped-call]


def path_of(flag: str, name: str) -> str:
    """How a configuration names it: a class by its path."""
    homes = [home for home in HOMES.get(flag, ()) if inspect.isclass(getattr(home, name, None))]
    return f"{homes[0].__name__}.{name}" if homes else name


def asked(flag: str, name: str, **options: Any) -> Any:
    path = path_of(flag, name)
    value = namespace(class_path=path, init_args=namespace(**options)) if "." in path else path
    return namespace(**{flag: [value] if flag in {"callbacks", "plugins"} else value})


@pytest.mark.parametrize("flag", OFFERED)
def test_all_that_lightning_offers_is_decided(flag: str) -> None:
    assert {*OFFERED[flag]} == {*table.DECISION_TABLES[flag]}


def test_every_flag_of_the_trainer_is_decided() -> None:
    decided = [*table.DECISION_TABLES, *table.ANY_VALUE, *table.DEFAULT_ONLY]
    assert sorted(decided) == sorted(inspect.signature(Trainer).parameters)


def test_what_works_has_a_case_below() -> None:
    works = {
        f"{flag}={name}"
        for flag, known in table.DECISION_TABLES.items()
        for name, reason in known.items()
        if not reason and name not in table._BASES
    }
    assert works | {*table.ANY_VALUE} == {*CASES, *NOT_HERE}


# ---- refused -------------------------------------------------------------------------------------

REFUSED = [
    (flag, name)
    for flag, known in table.DECISION_TABLES.items()
    for name, reason in known.items()
    if reason or name in table._BASES
]
REMEDY = re.compile(
    "[;:] ?(take|leave|run on|use|try|set|name|torchrun|W&B shows|images_per_s|a loss)"
)


@pytest.mark.parametrize(("flag", "name"), REFUSED)
def test_what_does_not_work_is_refused_with_a_remedy(flag: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^trainer.{flag}: {name} ") as error:
        check_lightning(asked(flag, name))
    assert REMEDY.search(str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", table.DEFAULT_ONLY)
def test_a_flag_without_use_here_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match=f"^trainer.{flag} .*(leave|take)"):
        check_lightning(namespace(**{flag: True}))


@pytest.mark.parametrize(
    ("flag", "name", "options", "message"),
    [
        ("callbacks", "ModelCheckpoint", {"dirpath": "x"}, "in the run's folder"),
        ("callbacks", "ModelCheckpoint", {"save_last": True}, "last.ckpt is saved anyway"),
        ("callbacks", "ModelCheckpoint", {"save_on_exception": True}, "resume it with --resume"),
        ("callbacks", "ModelCheckpoint", {"train_time_interval": "1:0:0"}, "every_n_train_steps"),
        ("callbacks", "ModelCheckpoint", {"filename": "a/b"}, "must not contain a slash"),
        ("callbacks", "ModelCheckpoint", {"filename": "a{val/acc}"}, "auto_insert_metric_name"),
        ("callbacks", "ModelCheckpoint", {"filename": "last"}, "that of a file that every run has"),
        ("callbacks", "ModelCheckpoint", {"monitor": "val/acc", "mode": "max"}, "keeps best.ckpt"),
        ("strategy", "DDPStrategy", {"start_method": "fork"}, "take ddp"),
        ("profiler", "SimpleProfiler", {"dirpath": "/tmp"}, "leave dirpath out"),
    ],
)
def test_an_option_that_would_do_something_else_is_refused(
    flag: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_lightning(asked(flag, name, **options))


def test_two_callbacks_of_one_key_are_refused() -> None:
    both = asked("callbacks", "EarlyStopping", monitor="val/acc").callbacks * 2
    with pytest.raises(ValueError, match="two EarlyStopping must differ in monitor, mode"):
        check_lightning(namespace(callbacks=both))


class OwnFinder(callbacks.BatchSizeFinder):
    pass


class OwnWriter(callbacks.BasePredictionWriter):
    pass


def test_classes_of_ones_own_are_decided_by_what_they_derive_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cls in (OwnFinder, OwnWriter):
        monkeypatch.setattr(pytorch_lightning.callbacks, cls.__name__, cls, raising=False)
    found = {
        cls: refusal(table.CALLBACKS, f"pytorch_lightning.callbacks.{cls}")
        for cls in ("OwnFinder", "OwnWriter")
    }
    assert found["OwnFinder"] == table.CALLBACKS["BatchSizeFinder"]
    assert not found["OwnWriter"]
    assert not refusal(table.LOGGERS, "experiments.WandbLogger")


SWA = ["--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.callbacks=BatchSizeFinder"], "BatchSizeFinder would change data.batch_size"),
        (["--trainer.strategy=ddp_spawn"], "ddp_spawn starts .*; take ddp"),
        (["--trainer.strategy=deepspeed"], "take ddp"),
        (["--trainer.barebones=true"], "trainer.barebones keeps no record"),
        (
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x"],
            "twice after a kill and a resume; take experiments.RunCSVLogger",
        ),
        (["--trainer.precision=16-mixed"], "take bf16-mixed on the CPU"),
        (["--trainer.max_time=00:00:00:00"], "max_time must be positive"),
        (["--trainer.overfit_batches=0.01"], "leaves none of 18 batches of training"),
        (SWA, "trainer.max_steps 4 comes first"),
        ([*SWA, "--trainer.max_steps=-1", "--model.norm=batch"], "take EMAWeightAveraging"),
        ([*SWA, "--trainer.max_steps=-1", "--trainer.callbacks.swa_epoch_start=20"], "are 10"),
    ],
)
def test_nothing_is_written_for_what_is_refused(
    flags: list[str], message: str, fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as failure:
        fit("--model=MLP", "--model.hidden_units=[2]", *flags)
    assert failure.value.code == 2
    assert re.search(f"^error: .*{message}.*$", capsys.readouterr().err, re.MULTILINE)
    assert not runs.exists()


def test_a_list_of_loggers_is_looked_into(
    fit: Cli, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = (
        "{class_path: experiments.WandbLogger}, {class_path: CSVLogger, init_args: {save_dir: x}}"
    )
    (tmp_path / "loggers.yaml").write_text(f"trainer: {{logger: [{listed}]}}")
    with pytest.raises(SystemExit):
        fit(f"--config={tmp_path / 'loggers.yaml'}", "--model=MLP", wandb=True)
    assert "CSVLogger would have some steps twice" in capsys.readouterr().err
    assert not runs.exists()


# ---- works ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A run that nobody disturbed, beside one without what is tried.

    Attributes:
        path: its folder.
        err: what it printed.
        plain: the folder of the other one.
    """

    path: Path
    err: str
    plain: Path

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.path / "record.json").read_text())["summary"]
        return summary

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    @property
    def last(self) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.path / "last.ckpt", weights_only=True)
        return content

    @property
    def dtype(self) -> torch.dtype:
        weight: torch.Tensor = next(iter(self.last["state_dict"].values()))
        return weight.dtype

    def same_weights(self) -> bool:
        plain = json.loads((self.plain / "record.json").read_text())["summary"]
        return bool(self.summary["train/weights_sha256"] == plain["train/weights_sha256"])

    def validations(self) -> list[int]:
        return [entry["step"] for entry in self.entries if "val/acc" in entry]


@dataclass(frozen=True)
class Case:
    """What is tried.

    Attributes:
        flags: arguments besides those of every run of the lab.
        effect: whether it shows.
        kills: where the run is killed.
        config: of a file, where flags can't say it.
    """

    flags: list[str]
    effect: Callable[[Seen], bool]
    kills: list[Place] = field(
        default_factory=lambda: [("on_train_batch_end", 8), ("on_train_batch_end", 18)]
    )
    config: str = ""


def callback(name: str, **options: Any) -> list[str]:
    given = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return [f"--trainer.callbacks={name}", *given]


def trainer(**options: Any) -> list[str]:
    return [f"--trainer.{key}={value}" for key, value in options.items()]


EPOCHS = trainer(max_steps=-1, max_epochs=4)
SCHEDULE = (
    "trainer: {callbacks: [{class_path: GradientAccumulationScheduler, "
    "init_args: {scheduling: {0: 4, 1: 2, 2: 1}}}]}"
)
same = Seen.same_weights
STEP_BY_EPOCHS = 5 + 9 + 18 + 18  # of 18 batches each, with four, two and one batch a step

CASES: dict[str, Case] = {
    "callbacks=EMAWeightAveraging": Case(
        callback("EMAWeightAveraging", decay=0.9), lambda run: "averaging_state" in run.last
    ),
    "callbacks=EarlyStopping": Case(
        callback("EarlyStopping", monitor="val/loss", mode="max", patience=2),
        lambda run: (
            run.summary["train/steps"] == 21
            and "val/loss has not been better than" in run.err
            and "stopped_by" in (run.path / "record.json").read_text()
        ),
        [("on_train_batch_end", 8), ("on_train_batch_end", 8)],
    ),
    "callbacks=GradientAccumulationScheduler": Case(
        EPOCHS,
        lambda run: run.summary["train/steps"] == STEP_BY_EPOCHS,
        [("on_train_batch_end", 10), ("on_train_batch_end", 20)],
        SCHEDULE,
    ),
    "callbacks=LambdaCallback": Case(
        callback("LambdaCallback", on_train_epoch_start="tests.lab.smooth"),
        lambda run: not same(run),
        [("on_train_batch_end", 26)],
    ),
    "callbacks=LearningRateMonitor": Case(
        callback("LearningRateMonitor", logging_interval="step"),
        lambda run: same(run) and any("lr-SGD" in entry for entry in run.entries),
    ),
    "callbacks=ModelCheckpoint": Case(
        callback("ModelCheckpoint", every_n_train_steps=5, save_top_k=-1),
        lambda run: same(run) and len(run.files & {f"epoch=0-step={n}.ckpt" for n in (5, 10)}) == 2,
    ),
    "callbacks=ModelSummary": Case(
        [*callback("ModelSummary", max_depth=2), *trainer(enable_model_summary=True)],
        lambda run: same(run) and "layers.1" in run.err,
    ),
    "callbacks=StochasticWeightAveraging": Case(
        [*EPOCHS, *callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=2)],
        lambda run: is_averaged(run.last),
        [("on_train_batch_end", 30), ("on_train_batch_start", 18)],
    ),
    "callbacks=TQDMProgressBar": Case(
        [*callback("TQDMProgressBar"), *trainer(enable_progress_bar=True)],
        lambda run: same(run) and "Epoch 0" in run.err,
    ),
    "callbacks=WeightAveraging": Case(
        callback("WeightAveraging"), lambda run: "averaging_state" in run.last
    ),
    "strategy=auto": Case(trainer(strategy="auto"), same),
    "strategy=ddp": Case(trainer(strategy="ddp"), lambda run: same(run) and "gloo" in run.err),
    "strategy=ddp_find_unused_parameters_false": Case(
        trainer(strategy="ddp_find_unused_parameters_false"), same
    ),
    "strategy=ddp_find_unused_parameters_true": Case(
        trainer(strategy="ddp_find_unused_parameters_true"), same
    ),
    "strategy=single_device": Case(trainer(strategy="single_device"), same),
    "strategy=DDPStrategy": Case(
        [*trainer(strategy="DDPStrategy"), "--trainer.strategy.timeout=0:05:00"], same
    ),
    "strategy=SingleDeviceStrategy": Case(
        [*trainer(strategy="SingleDeviceStrategy"), "--trainer.strategy.device=cpu"], same
    ),
    "precision=32": Case(trainer(precision=32), same),
    "precision=32-true": Case(trainer(precision="32-true"), same),
    "precision=64": Case(trainer(precision=64), lambda run: run.dtype is torch.float64),
    "precision=64-true": Case(trainer(precision="64-true"), lambda run: run.dtype is torch.float64),
    "precision=16-true": Case(trainer(precision="16-true"), lambda run: run.dtype is torch.float16),
    "precision=bf16": Case(trainer(precision="bf16"), lambda run: not same(run)),
    "precision=bf16-mixed": Case(trainer(precision="bf16-mixed"), lambda run: not same(run)),
    "precision=bf16-true": Case(
        trainer(precision="bf16-true"), lambda run: run.dtype is torch.bfloat16
    ),
    "profiler=simple": Case(
        trainer(profiler="simple"), lambda run: same(run) and "FIT Profiler Report" in run.err
    ),
    "profiler=advanced": Case(
        trainer(profiler="advanced"), lambda run: same(run) and "Profile stats for" in run.err
    ),
    "profiler=pytorch": Case(
        trainer(profiler="pytorch"), lambda run: same(run) and "Self CPU time total" in run.err
    ),
    "profiler=SimpleProfiler": Case(
        [*trainer(profiler="SimpleProfiler"), "--trainer.profiler.filename=times"],
        lambda run: same(run) and "fit-times.txt" in run.files,
    ),
    "profiler=AdvancedProfiler": Case(
        [*trainer(profiler="AdvancedProfiler"), "--trainer.profiler.filename=times"],
        lambda run: same(run) and "fit-times.txt" in run.files,
    ),
    "profiler=PyTorchProfiler": Case(
        [*trainer(profiler="PyTorchProfiler"), "--trainer.profiler.filename=times"],
        lambda run: same(run) and "fit-times.txt" in run.files,
    ),
    "profiler=PassThroughProfiler": Case(trainer(profiler="PassThroughProfiler"), same),
    "plugins=LightningEnvironment": Case(trainer(plugins="LightningEnvironment"), same),
    "plugins=TorchSyncBatchNorm": Case(trainer(plugins="TorchSyncBatchNorm"), same),
    "accelerator=auto": Case(trainer(accelerator="auto"), same),
    "accelerator=cpu": Case(trainer(accelerator="cpu"), same),
    "accumulate_grad_batches": Case(
        trainer(accumulate_grad_batches=4, max_steps=12),
        lambda run: run.summary["train/steps"] == 12 and not same(run),
        [("on_train_batch_end", 15), ("on_train_batch_end", 15)],
    ),
    "benchmark": Case(trainer(benchmark=True), same),
    "check_val_every_n_epoch": Case(
        [*EPOCHS, *trainer(check_val_every_n_epoch=2, val_check_interval=1.0)],
        lambda run: run.validations() == [36, 72],
        [("on_train_batch_end", 30)],
    ),
    "detect_anomaly": Case(
        trainer(detect_anomaly=True), lambda run: same(run) and "detect_anomaly=True" in run.err
    ),
    "deterministic": Case(trainer(deterministic=True), same),
    "devices": Case(trainer(devices=1), same),
    "enable_autolog_hparams": Case(trainer(enable_autolog_hparams=False), same),
    "enable_model_summary": Case(
        trainer(enable_model_summary=True), lambda run: same(run) and "Sequential" in run.err
    ),
    "enable_progress_bar": Case(
        trainer(enable_progress_bar=True), lambda run: same(run) and "step 7/48" in run.err
    ),
    "gradient_clip_algorithm": Case(
        trainer(gradient_clip_val=0.01, gradient_clip_algorithm="value"),
        lambda run: not same(run),
    ),
    "gradient_clip_val": Case(trainer(gradient_clip_val=0.5), lambda run: not same(run)),
    "inference_mode": Case(trainer(inference_mode=False), same),
    "limit_test_batches": Case(
        [*trainer(limit_test_batches=1), "--data.eval_batch_size=20"],
        lambda run: run.summary["test/images"] == 20,
    ),
    "limit_train_batches": Case(
        trainer(limit_train_batches=5), lambda run: run.summary["train/images"] == 250
    ),
    "limit_val_batches": Case(
        [*trainer(limit_val_batches=1), "--data.eval_batch_size=20"],
        lambda run: run.summary["val/images"] == 20,
    ),
    "log_every_n_steps": Case(
        trainer(log_every_n_steps=24),
        lambda run: (
            same(run)
            and [entry["step"] for entry in run.entries if "train/loss" in entry] == [24, 48]
        ),
    ),
    "max_epochs": Case(
        trainer(max_steps=-1, max_epochs=2), lambda run: run.summary["train/steps"] == 36
    ),
    "max_steps": Case(trainer(max_steps=31), lambda run: run.summary["train/steps"] == 31),
    "max_time": Case(trainer(max_time="00:01:00:00"), same),
    "min_epochs": Case(
        [
            *trainer(min_epochs=2),
            *callback("EarlyStopping", monitor="val/loss", mode="max", patience=2),
        ],
        lambda run: run.summary["train/steps"] == 36,
    ),
    "min_steps": Case(
        [
            *trainer(min_steps=30),
            *callback("EarlyStopping", monitor="val/loss", mode="max", patience=2),
        ],
        lambda run: run.summary["train/steps"] == 30,
    ),
    "num_nodes": Case(trainer(num_nodes=1), same),
    "num_sanity_val_steps": Case(trainer(num_sanity_val_steps=1), same),
    "overfit_batches": Case(
        trainer(overfit_batches=2),
        lambda run: run.summary["train/images"] == 100 and run.summary["train/steps"] == 20,
        [("on_train_batch_end", 9), ("on_train_batch_end", 9)],
    ),
    "reload_dataloaders_every_n_epochs": Case(trainer(reload_dataloaders_every_n_epochs=2), same),
    "sync_batchnorm": Case(trainer(sync_batchnorm=True), same),
    "use_distributed_sampler": Case(trainer(use_distributed_sampler=False), same),
    "val_check_interval": Case(
        trainer(check_val_every_n_epoch=1, val_check_interval=0.5),
        lambda run: run.validations() == [9, 18, 27, 36, 45],
    ),
}
NOT_HERE = {
    "accelerator=cuda": "needs a GPU",
    "accelerator=gpu": "needs a GPU",
    "accelerator=mps": "needs a Mac",
    "precision=16": "needs a GPU",
    "precision=16-mixed": "needs a GPU",
    "callbacks=RichModelSummary": "needs rich; changes nothing but what is shown",
    "callbacks=RichProgressBar": "needs rich; changes nothing but what is shown",
    "plugins=CheckpointIO": "a base class that only one's own derives from",
    "plugins=ClusterEnvironment": "a base class that only one's own derives from",
    "plugins=LayerSync": "a base class that only one's own derives from",
    "plugins=SLURMEnvironment": "tests/test_machines.py",
    "plugins=TorchElasticEnvironment": "tests/test_processes.py",
    "enable_checkpointing": "false keeps nothing to go on from; tests/test_cli.py",
    "fast_dev_run": "keeps no run",
    "limit_predict_batches": "not of a fit; tests/test_cli.py",
}
FAST = {"callbacks=GradientAccumulationScheduler"}


def flags_of(case: str, tmp_path: Path) -> list[str]:
    flags = CASES[case].flags
    if config := CASES[case].config:
        (tmp_path / "case.yaml").write_text(config)
        flags = [f"--config={tmp_path / 'case.yaml'}", *flags]
    return flags


def undisturbed(lab: Lab, case: str, tmp_path: Path) -> tuple[list[str], Seen]:
    flags = flags_of(case, tmp_path)
    ended = lab.fit(f"{case}-whole", *flags)
    assert ended.code == 0, ended.err
    return flags, Seen(lab.root / f"{case}-whole", ended.err + ended.out, lab.root / "whole")


@pytest.mark.parametrize("case", mark_slow(CASES, except_for=FAST))
def test_what_works_goes_on_exactly(labs: dict[str, Lab], case: str, tmp_path: Path) -> None:
    lab = labs["MLP"]
    flags, seen = undisturbed(lab, case, tmp_path)
    assert CASES[case].effect(seen)
    for place in CASES[case].kills:
        assert lab.fit(case, *flags, "--resume", at=place).code == -signal.SIGKILL
    resumed = lab.fit(case, *flags, "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result(case) == lab.result(f"{case}-whole")


TERM = signal.SIGTERM
OWN: dict[str, list[tuple[Place, int]]] = {
    "OfEpochs": [(("on_train_batch_start", 19), TERM), (("on_train_batch_end", 11), TERM)],
    "OfBatches": [(("on_train_batch_start", 19), TERM), (("on_train_batch_end", 11), TERM)],
    "FrozenOnce": [(("on_train_batch_end", 15), signal.SIGKILL)],
    "HeadFirst": [(("on_train_batch_end", 45), signal.SIGKILL)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_callbacks_of_ones_own_go_on_exactly(labs: dict[str, Lab], name: str) -> None:
    lab = labs["MLP"]
    flags = [*callback(f"tests.lab.{name}"), "--model.optimizer=SGD", "--model.lr=0.001"]
    flags.append("--model.optimizer.momentum=0.9")
    assert lab.fit(f"{name}-whole", *flags).code == 0
    for place, signum in OWN[name]:
        killed: Ended = lab.fit(name, *flags, "--resume", at=place, signum=signum)
        assert killed.code == (-signum if signum == signal.SIGKILL else 128 + signum)
    resumed = lab.fit(name, *flags, "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result(name) == lab.result(f"{name}-whole")
    assert lab.result(name)["last.ckpt"] != lab.result("whole")["last.ckpt"]


TWO = ["callbacks=GradientAccumulationScheduler", "callbacks=StochasticWeightAveraging", "max_time"]


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_processes_go_on_exactly(labs: dict[str, Lab], case: str, tmp_path: Path) -> None:
    lab = labs["MLP"]
    flags = flags_of(case, tmp_path)
    whole = lab.fit_two(f"{case}-two-whole", HALF, *flags)
    assert [process.code for process in whole] == [0, 0], whole
    for place in CASES[case].kills:
        killed = lab.fit_two(f"{case}-two", HALF, *flags, "--resume", at=place, signum=9)
        assert killed[1].code == -signal.SIGKILL
    resumed = lab.fit_two(f"{case}-two", HALF, *flags, "--resume")
    assert [process.code for process in resumed] == [0, 0], resumed
    assert lab.result(f"{case}-two") == lab.result(f"{case}-two-whole")


# ---- time, and what is said of a fit -------------------------------------------------------------

TINY = ["--model=MLP", "--model.hidden_units=[2]"]


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the time of a fit be over when it is asked for the fourth time."""
    asked: list[TimeLimit] = []

    def is_used_up(limit: TimeLimit) -> bool:
        asked.append(limit)
        return len(asked) == 4

    monkeypatch.setattr(TimeLimit, "is_used_up", property(is_used_up))


@pytest.mark.usefixtures("few_batches")
def test_a_fit_whose_time_is_over_can_go_on(
    fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ["--trainer.max_steps=8", "--test_after_fit"]
    whole = fit(*TINY, *long, name="whole")
    stopped = fit(*TINY, *long, "--trainer.max_time=00:01:00:00", name="stopped")
    assert (stopped.fields["status"], stopped.summary["train/steps"]) == ("interrupted", 3)
    assert stopped.fields["stopped_by"] == "trainer.max_time 1:00:00 is used up"
    said = capsys.readouterr().err
    assert "after step 3; resume with: " in said
    assert "--name stopped --resume --trainer.max_time null" in said
    again = fit(*TINY, *long, "--trainer.max_time=00:01:00:00", "--resume", name="stopped")
    assert "is used up by run stopped: raise --trainer.max_time" in capsys.readouterr().err
    assert again.fields == stopped.fields
    ended = fit(*TINY, *long, "--resume", name="stopped")
    assert "with other settings" not in capsys.readouterr().err
    assert ended.fields["status"] == "finished"
    assert "stopped_by" not in ended.fields
    times = ("train/seconds", "train/images_per_s", "images_per_s")
    for summary in (whole.summary, ended.summary):
        for name in times:
            summary.pop(name, None)
    assert ended.summary == whole.summary


@pytest.mark.usefixtures("few_batches")
def test_min_steps_come_before_max_time(fit: Cli) -> None:
    flags = ["--trainer.max_time=00:01:00:00", "--trainer.min_steps=4", "--trainer.max_steps=6"]
    assert fit(*TINY, *flags).summary["train/steps"] == 6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": "max"}, r"val/loss has not been better than 2\.\d+ in 1 checks \(patience 1\)"),
        ({"stopping_threshold": 9}, r"val/loss has come to stopping_threshold 9\.0"),
        ({"divergence_threshold": 1}, "val/loss is worse than divergence_threshold 1\\.0"),
    ],
)
def test_why_a_fit_was_stopped_early_is_said(
    options: dict[str, Any], reason: str, fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = callback("EarlyStopping", monitor="val/loss", patience=1, **options)
    record = fit(*TINY, *stopping, "--trainer.max_steps=8", "--model.lr=1e-9")
    assert record.fields["status"] == "finished"
    assert re.fullmatch(f"EarlyStopping: {reason}", record.fields["stopped_by"])
    shown = capsys.readouterr()
    assert re.search(f"note: stopped early after step \\d: EarlyStopping: {reason}", shown.err)
    assert re.search(f"stopped +EarlyStopping: {reason}", shown.out)


def test_a_fit_without_validation_says_so(fit: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    record = fit(*TINY, "--trainer.val_check_interval=9")
    said = "ends after 4 batches, its first validation would come after 9: it will have no best"
    assert said in capsys.readouterr().err
    assert not (record.path / "best.ckpt").exists()
    fit(*TINY, "--trainer.val_check_interval=4", name="other")
    assert "first validation" not in capsys.readouterr().err


def test_a_fit_too_short_for_the_log_has_figures(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, "--trainer.max_steps=3"]
    often = fit(*flags, "--trainer.log_every_n_steps=3", name="often").summary
    seldom = fit(*flags, "--trainer.log_every_n_steps=9", name="seldom")
    for figure in ("train/loss", "train/acc"):
        assert seldom.summary[figure] == pytest.approx(often[figure], rel=1e-6)
    assert not [entry for entry in seldom.metrics() if "train/loss" in entry]
    assert "150 of 900 train" in capsys.readouterr().out


def test_a_limited_fit_tells_of_how_many_images(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    every = ["--data.eval_batch_size=20", "--trainer.val_check_interval=2"]
    fit(*TINY, *few, *every, "--trainer.max_steps=8")
    assert "100 of 900 train / 20 of 100 val / 200 test images" in capsys.readouterr().out


def test_fast_dev_run_says_that_nothing_is_tested(
    fit: Callable[..., RunRecord], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="no run"):  # it keeps none to be opened
        fit(*TINY, "--trainer.fast_dev_run=true", "--test_after_fit")
    assert "note: fast_dev_run keeps nothing: there is no test" in capsys.readouterr().err
    assert not runs.exists()


def test_a_value_that_cannot_be_written_back_is_refused(
    fit: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as failure:
        fit(*TINY, *callback("tests.lab.OfAnObject"))
    assert failure.value.code == 2
    assert "can't hold" in capsys.readouterr().err
    assert not runs.exists()


def test_packages_that_rich_callbacks_need_are_named(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    if RequirementCache("rich"):
        pytest.skip("rich is installed")
    with pytest.raises(SystemExit) as failure:
        fit(*TINY, *callback("RichModelSummary"))
    assert failure.value.code == 2
    assert "pip install -U rich" in capsys.readouterr().err


def test_overfitting_sees_the_same_images_in_every_epoch(
    fit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    note = Classifier.note

    def look(model: Classifier, loss: Any, logits: Any, labels: torch.Tensor) -> None:
        seen.append(labels.tolist())
        note(model, loss, logits, labels)

    monkeypatch.setattr(Classifier, "note", look)
    fit(*TINY, "--trainer.overfit_batches=2", "--trainer.max_steps=6")
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


def test_a_flag_beats_the_patience_of_a_checkpoint(fit: Cli) -> None:
    stopping = callback("EarlyStopping", monitor="val/loss", min_delta=1)
    few = [*TINY, *stopping, "--trainer.callbacks.patience=1", "--trainer.max_steps=8"]
    assert fit(*few).summary["train/steps"] == 4
    more = ["--trainer.callbacks.patience=3", "--trainer.max_steps=18", "--resume"]
    assert fit(*few, *more).summary["train/steps"] == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*callback("EarlyStopping", monitor="train/loss"), "--trainer.log_every_n_steps=3"],
            "EarlyStopping asks for train/loss after 2 batches, but it is first known after 3",
        ),
        (
            [
                "--model.lr_scheduler=pytorch_lightning.cli.ReduceLROnPlateau",
                "--model.lr_scheduler.monitor=val/loss",
            ],
            "ReduceLROnPlateau asks for val/loss after 1 batches, but it is first known after 2",
        ),
    ],
)
def test_a_metric_that_is_asked_for_too_soon_is_refused(
    flags: list[str], message: str, fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as failure:
        fit(*TINY, *flags)
    assert failure.value.code == 2
    assert message in capsys.readouterr().err
    assert not runs.exists()


def test_a_schedule_over_a_fit_knows_of_changing_accumulation(fit: Cli, tmp_path: Path) -> None:
    (tmp_path / "case.yaml").write_text(SCHEDULE)
    linear = "--model.lr_scheduler=lightning_modules.schedules.LinearSchedule"
    often = ["--trainer.log_every_n_steps=1", "--trainer.val_check_interval=1.0"]
    flags = [f"--config={tmp_path / 'case.yaml'}", *TINY, linear, *often, *EPOCHS]
    rates = [entry["lr"] for entry in fit(*flags).metrics() if "lr" in entry]
    assert len(rates) == STEP_BY_EPOCHS
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[-2] > 0


@pytest.mark.slow
def test_a_stop_that_waits_for_min_steps_is_not_forgotten(labs: dict[str, Lab]) -> None:
    """Stopped after the validation of step 14, to end at step 20; killed between the two."""
    lab = labs["MLP"]
    stopping = callback("EarlyStopping", monitor="val/acc", mode="max", patience=1, min_delta=1)
    flags = [*stopping, "--trainer.min_steps=20"]
    assert lab.fit("waits", *flags).code == 0
    for signum, batch in ((signal.SIGTERM, 16), (signal.SIGKILL, 2), (signal.SIGTERM, 1)):
        at = ("on_train_batch_end", batch)
        lab.fit("waits-killed", *flags, "--resume", at=at, signum=signum)
    assert lab.fit("waits-killed", *flags, "--resume").code == 0
    assert lab.result("waits-killed") == lab.result("waits")
    assert RunRecord.open(lab.root / "waits").summary["train/steps"] == 20
