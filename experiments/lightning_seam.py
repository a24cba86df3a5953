"""All uses of private names of Lightning, each behind a function or class of this module.

No other module may use such a name (`tests/test_architecture.py`). If a version of Lightning
changes one, `tests/experiments/test_lightning_seam.py` names it, and only this module must change.
All exist in 2.6.1, the oldest version that setup.cfg allows, and in 2.6.6. Each docstring says
which private name is used, why no public name is enough, and what happens when it is gone.
"""

from importlib.metadata import version
from typing import Any

import pytorch_lightning.loggers
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI


def _put_in_place_of(owner: Any, name: str, value: Any) -> None:
    """Replaces a method of an object, which must exist: otherwise Lightning would never call it."""
    if not hasattr(owner, name):
        raise AttributeError(
            f"pytorch-lightning {version('pytorch-lightning')} has no "
            f"{type(owner).__name__}.{name}: see experiments/lightning_seam.py"
        )
    setattr(owner, name, value)


# ---- steps ---------------------------------------------------------------------------------------


def skip_hook(owner: Any, hook: str) -> None:
    """Makes the trainer skip a hook of a callback or a model.

    Relies on: the trainer calls a hook only if it is callable. No setting skips hooks.
    When it is gone: "'NoneType' object is not callable" in the first step of a fit.
    """
    object.__setattr__(owner, hook, None)  # `torch.nn.Module` would search its parameters


def give_step_arguments(trainer: Trainer) -> None:
    """Passes batch and index to ``training_step`` without inspecting its signature in each step.

    Relies on: ``_TrainingEpochLoop._build_kwargs(kwargs, batch, batch_idx)``. Without this change,
    Lightning spends 8 us of each step on the signature.
    When it is gone: Lightning inspects the signature again.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._build_kwargs = _step_arguments


def _step_arguments(kwargs: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
    return {"batch": batch, "batch_idx": batch_idx}


# ---- signals -------------------------------------------------------------------------------------


def disable_signal_handlers(trainer: Trainer) -> None:
    """Stops Lightning from installing its signal handlers.

    At SIGTERM, Lightning would communicate with other processes inside the handler, which may block
    for ever, and exit with status 0. At SIGUSR1, it would save and requeue differently (`cluster`).

    Relies on: ``trainer._signal_connector.register_signal_handlers``. A callback could restore the
    handlers only later, and a signal may come before.
    When it is gone: an AttributeError with its name, at the start of every command.
    """
    connector = trainer._signal_connector
    _put_in_place_of(connector, "register_signal_handlers", lambda: None)


# ---- resuming ------------------------------------------------------------------------------------


def postpone_validation(trainer: Trainer) -> None:
    """Makes a resumed fit begin with a batch, not with a validation, until `allow_validation`.

    Relies on: ``_TrainingEpochLoop._should_check_val_fx(data_fetcher)``, which the loop also calls
    before the first batch. If it returned True there, the loop would end the previous batch again,
    and schedules and loggers would see it twice. The setting ``limit_val_batches`` could replace
    this, but callbacks would see the changed setting.
    When it is gone: an AttributeError with its name, in a resumed fit.
    """
    loop = trainer.fit_loop.epoch_loop
    _put_in_place_of(loop, "_should_check_val_fx", lambda data_fetcher: False)


def allow_validation(trainer: Trainer) -> None:
    """Reverts `postpone_validation`."""
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_should_check_val_fx", None)


def note_steps(loops: dict[str, Any], steps: int) -> None:
    """Writes the number of logged steps into the loops of a checkpoint.

    Relies on: ``_batches_that_stepped`` in the state of the epoch loop. Lightning increments it
    after a batch, and a checkpoint may be taken before or after that.
    When it is gone: no code reads the value; loggers other than ours may count a step twice.
    """
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps


# ---- callbacks -----------------------------------------------------------------------------------


def checks_at_epoch_end(callback: EarlyStopping) -> bool | None:
    """The argument ``check_on_train_epoch_end``; None leaves the choice to `EarlyStopping`.

    Relies on: ``EarlyStopping._check_on_train_epoch_end``; there is no public attribute.
    When it is gone: an AttributeError at the start of a fit with `EarlyStopping`.
    """
    return callback._check_on_train_epoch_end


def averaging_start(callback: StochasticWeightAveraging) -> int | float:
    """The argument ``swa_epoch_start``: an epoch, or a fraction of all epochs.

    Relies on: ``StochasticWeightAveraging._swa_epoch_start``; the public ``swa_start`` raises an
    error for a fraction.
    When it is gone: an AttributeError at the start of a fit with `StochasticWeightAveraging`.
    """
    return callback._swa_epoch_start


# ---- W&B -----------------------------------------------------------------------------------------


class OpenWandbLogger(pytorch_lightning.loggers.WandbLogger):
    """Lightning's W&B logger, whose run can get its name and folder after the constructor.

    Relies on: ``_wandb_init``, the arguments of ``wandb.init``; ``_experiment``, the run, None
    until its first use; ``_offline``, ``_save_dir``. The constructor takes the same values, but the
    command line calls it before the run has a name.
    When they are gone: an AttributeError for ``_wandb_init`` when the logger is built; a test for
    the others.
    """

    @property
    def init_arguments(self) -> dict[str, Any]:
        """The arguments of ``wandb.init``; callers change them in place."""
        return self._wandb_init

    @property
    def is_open(self) -> bool:
        """Whether there is a W&B run; the property `experiment` would create one."""
        return self._experiment is not None

    def keep_in(self, folder: str) -> None:
        """Keeps W&B's files in a folder."""
        self._wandb_init["dir"] = self._save_dir = folder

    def begin_offline(self) -> None:
        """Drops a run that could not start; the next run only writes files."""
        self._wandb_init["mode"], self._offline = "offline", True
        self.forget()

    def forget(self) -> None:
        """Drops a W&B run that has ended."""
        self._experiment = None


# ---- command line --------------------------------------------------------------------------------


class CommandLine(LightningCLI):
    """LightningCLI whose private steps have public names, for calls and overrides.

    Relies on: ``_parser(subcommand)``, ``_prepare_subcommand_kwargs(subcommand)``; and that it
    calls ``_run_subcommand(subcommand)``, ``_dump_config()`` and ``_parse_ckpt_path()``.
    Its public hooks, such as ``before_fit``, come too early to run a command in another way.
    When they are gone: an AttributeError for a called one. For an overridden one, a run would have
    no folder, or its checkpoint would override the flags; a test finds this.
    """

    def command_parser(self, command: str) -> LightningArgumentParser:
        """The parser of a command."""
        return self._parser(command)

    def arguments_of(self, command: str) -> dict[str, Any]:
        """The keyword arguments for the trainer's method of a command."""
        return self._prepare_subcommand_kwargs(command)

    def run_command(self, command: str) -> None:
        """Runs a command after everything is built; a subclass implements it."""
        raise NotImplementedError

    def written_settings(self) -> dict[str, Any]:
        """The configuration, for hyperparameters; a subclass implements it."""
        raise NotImplementedError

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_command(subcommand)

    def _dump_config(self) -> None:
        if not hasattr(self, "config_dump"):
            self.config_dump = self.written_settings()

    def _parse_ckpt_path(self) -> None:
        """Does nothing: the values of a checkpoint would override flags."""
