"""Lightning still has the private names that `experiments.lightning_seam` relies on, as it does."""

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.loggers
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel

from datamodules import BatchSource
from experiments import lightning_seam
from experiments.checkpoints.saving import SettledProgress
from experiments.lightning_seam import (
    CommandLine,
    OpenWandbLogger,
    allow_validation,
    averaging_start,
    checks_at_epoch_end,
    disable_signal_handlers,
    give_step_arguments,
    postpone_validation,
    skip_hook,
)
from lightning_modules import MLP


def gone(item: str, what: str) -> str:
    """What a test says of an item that a version of Lightning has changed."""
    return (
        f"pytorch-lightning {version('pytorch-lightning')}: {what} is not as "
        f"experiments/lightning_seam.py needs it: see {item} there"
    )


class Batches(LightningDataModule):
    """Four batches of nothing, to train and to validate with."""

    def train_dataloader(self) -> BatchSource:
        return BatchSource(torch.zeros(8, 3, 32, 32), torch.zeros(8).long(), batch_size=2)

    val_dataloader = train_dataloader


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks],
        **{"max_epochs": 1, **options},
    )


def model() -> MLP:
    return MLP(hidden_units=[2])


class Noting(Callback):
    """Writes down what is called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.called.append("batch")

    def on_validation_start(self, *args: Any) -> None:
        self.called.append("validation")


def test_pass_over() -> None:
    message = gone("skip_hook", "a hook that is None, left out,")
    callback, net = Noting(), model()
    skip_hook(callback, "on_train_batch_start")
    skip_hook(net, "on_train_batch_start")
    try:
        trainer(callback).fit(net, Batches())
    except TypeError as error:
        raise AssertionError(message) from error
    assert callback.called == ["validation"], message


def test_give_step_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    message = gone("give_step_arguments", "_TrainingEpochLoop._build_kwargs")
    fit, calls = trainer(), []
    loop: Any = fit.fit_loop.epoch_loop
    names = [*inspect.signature(loop._build_kwargs).parameters]
    assert names == ["kwargs", "batch", "batch_idx"], message

    def given(*args: Any) -> dict[str, Any]:
        calls.append(args[2])
        return {"batch": args[1], "batch_idx": args[2]}

    monkeypatch.setattr(lightning_seam, "_step_arguments", given)
    give_step_arguments(fit)
    fit.fit(model(), Batches())
    assert calls == [0, 1, 2, 3], message


def test_leave_signals_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    message = gone("disable_signal_handlers", "_signal_connector.register_signal_handlers")
    fit, taken = trainer(), []
    kind: Any = type(fit._signal_connector)
    monkeypatch.setattr(kind, "_register_signal", lambda *args: taken.append(args))
    fit.fit(model(), Batches())
    assert taken, message
    left = trainer()
    taken.clear()
    disable_signal_handlers(left)
    left.fit(model(), Batches())
    assert taken == [], message


def test_put_off_validation(tmp_path: Path) -> None:
    message = gone("postpone_validation", "_TrainingEpochLoop._should_check_val_fx")
    limits: dict[str, Any] = {"max_epochs": -1, "val_check_interval": 2}
    first = trainer(SettledProgress(), max_steps=2, **limits)
    first.fit(model(), Batches())
    first.save_checkpoint(tmp_path / "begun.ckpt", weights_only=False)

    class Off(Noting):
        def on_train_start(self, trainer: Trainer, *args: Any) -> None:
            postpone_validation(trainer)

        def on_train_batch_start(self, *args: Any) -> None:
            super().on_train_batch_start()
            allow_validation(args[0])

    callback = Off()
    again = trainer(callback, max_steps=4, **limits)
    again.fit(model(), Batches(), ckpt_path=tmp_path / "begun.ckpt", weights_only=True)
    assert callback.called == ["batch", "batch", "validation"], message
    # Lightning alone goes through the end of the last batch once more, schedules and all.
    assert again.fit_loop.epoch_loop._batches_that_stepped == 4, message
    assert "_should_check_val_fx" not in vars(again.fit_loop.epoch_loop), message


def test_note_steps() -> None:
    message = gone("note_steps", "_batches_that_stepped of _TrainingEpochLoop.state_dict()")
    fit = trainer(max_steps=3, max_epochs=-1)
    fit.fit(model(), Batches())
    assert fit.fit_loop.epoch_loop.on_save_checkpoint() == {"_batches_that_stepped": 3}, message


def test_asks_at_end_of_epoch() -> None:
    message = gone("checks_at_epoch_end", "EarlyStopping._check_on_train_epoch_end")
    for given in (True, False, None):
        callback = EarlyStopping("val/acc", check_on_train_epoch_end=given)
        assert checks_at_epoch_end(callback) is given, message


def test_start_of_averaging() -> None:
    message = gone("averaging_start", "StochasticWeightAveraging._swa_epoch_start")
    for given in (3, 0.8):
        callback = StochasticWeightAveraging(1e-2, swa_epoch_start=given)
        assert averaging_start(callback) == given, message


def test_open_wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = gone("OpenWandbLogger", "loggers.WandbLogger")
    begun: list[dict[str, Any]] = []

    def init(**options: Any) -> object:
        begun.append(options)
        return object()

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = OpenWandbLogger(project="mine", mode="online")
    own = {"_wandb_init", "_experiment", "_offline", "_save_dir"}
    assert own <= vars(logger).keys(), message
    assert logger.init_arguments["project"] == "mine" and not logger.is_open, message
    logger.keep_in(str(tmp_path))
    logger.init_arguments["name"] = "run"
    assert logger.experiment and logger.is_open and logger.save_dir == str(tmp_path), message
    assert (begun[0]["name"], begun[0]["dir"]) == ("run", str(tmp_path)), message
    logger.begin_offline()
    assert not logger.is_open, message
    assert logger.experiment and begun[1]["mode"] == "offline", message
    logger.forget()
    assert not logger.is_open, message


@pytest.mark.parametrize("name", ["_run_subcommand", "_dump_config", "_parse_ckpt_path"])
def test_command_line_overrides_what_is_there(name: str) -> None:
    message = gone("CommandLine", f"LightningCLI.{name}")
    assert hasattr(LightningCLI, name), message
    theirs, ours = (getattr(kind, name) for kind in (LightningCLI, CommandLine))
    assert inspect.signature(theirs).parameters == inspect.signature(ours).parameters, message


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = gone("CommandLine", "LightningCLI")
    monkeypatch.chdir(tmp_path)
    called: list[Any] = []

    class Own(CommandLine):
        def run_command(self, command: str) -> None:
            called.append((command, sorted(self.arguments_of(command))))
            called.append("--ckpt_path" in self.command_parser(command).format_help())
            assert isinstance(self.model, LightningModule)
            self._dump_config()

        def written_settings(self) -> dict[str, Any]:
            return {"written": True}

    arguments = ["fit", "--trainer.accelerator=cpu", "--trainer.logger=false", "--ckpt_path=none"]
    cli = Own(BoringModel, Batches, save_config_callback=None, args=arguments)
    names = ["ckpt_path", "datamodule", "model", "weights_only"]
    assert called == [("fit", names), True], message
    assert cli.config_dump == {"written": True}, message
    source = inspect.getsource(LightningCLI) + inspect.getsource(pytorch_lightning.cli)
    for name in ("_run_subcommand", "_dump_config", "_parse_ckpt_path"):
        assert f".{name}(" in source, message


def test_what_is_gone_is_named() -> None:
    with pytest.raises(AttributeError, match=r"has no Noting.none: see experiments/lightning_seam"):
        lightning_seam._put_in_place_of(Noting(), "none", None)
