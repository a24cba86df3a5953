"""All that this project takes from private names of Lightning, each under a name of its own.

No other module of it may use one (`tests/test_architecture.py`), so that here is the one place to
mend when a version of Lightning changes them; `tests/experiments/test_lightning_seam.py` then says
which. All are in 2.6.1, the oldest that setup.cfg allows, and in 2.6.6. Each function says what it
relies on, why no public name will do, and what happens when the private one is gone.
"""

from importlib.metadata import version
from typing import Any

import pytorch_lightning.loggers
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI


def _put_in_place_of(owner: Any, name: str, value: Any) -> None:
    """Replaces a method of an object; one that Lightning has no more would be set for nobody."""
    if not hasattr(owner, name):
        raise AttributeError(
            f"pytorch-lightning {version('pytorch-lightning')} has no "
            f"{type(owner).__name__}.{name}: see experiments/lightning_seam.py"
        )
    setattr(owner, name, value)


# ---- steps ---------------------------------------------------------------------------------------


def skip_hook(owner: Any, hook: str) -> None:
    """Lets the trainer pass over a hook of a callback or a model.

    Relies on: the trainer calls a hook only if it is callable. No setting leaves out hooks.
    When it is gone: "'NoneType' object is not callable" in the first step of a fit.
    """
    object.__setattr__(owner, hook, None)  # `torch.nn.Module` would look through its parameters


def give_step_arguments(trainer: Trainer) -> None:
    """Gives ``training_step`` batch and number without looking at its signature in each step.

    Relies on: ``_TrainingEpochLoop._build_kwargs(kwargs, batch, batch_idx)``. The public way, to
    leave it alone, takes 8 us of a step.
    When it is gone: Lightning goes on asking.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._build_kwargs = _step_arguments


def _step_arguments(kwargs: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
    return {"batch": batch, "batch_idx": batch_idx}


# ---- signals -------------------------------------------------------------------------------------


def disable_signal_handlers(trainer: Trainer) -> None:
    """Has Lightning take no signal.

    At SIGTERM it would talk to other processes from within the handler, which may wait for ever,
    and end with status 0; at SIGUSR1 it would save and requeue in its own way (see `cluster`).

    Relies on: ``trainer._signal_connector.register_signal_handlers``. A callback could only take
    the signals back later, when one may have come.
    When it is gone: an AttributeError with its name, at the start of every command.
    """
    connector = trainer._signal_connector
    _put_in_place_of(connector, "register_signal_handlers", lambda: None)


# ---- going on ------------------------------------------------------------------------------------


def postpone_validation(trainer: Trainer) -> None:
    """Has a fit that goes on begin with a batch, until `allow_validation`.

    Relies on: ``_TrainingEpochLoop._should_check_val_fx(data_fetcher)``, which the loop asks before
    the first batch too. After a yes it ends the batch before once more: schedules and loggers see
    it twice. The setting ``limit_val_batches`` would do, but callbacks would see it meanwhile.
    When it is gone: an AttributeError with its name, in a fit that goes on.
    """
    loop = trainer.fit_loop.epoch_loop
    _put_in_place_of(loop, "_should_check_val_fx", lambda data_fetcher: False)


def allow_validation(trainer: Trainer) -> None:
    """Takes `postpone_validation` back."""
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_should_check_val_fx", None)


def note_steps(loops: dict[str, Any], steps: int) -> None:
    """Writes into a checkpoint's loops of a fit how many steps loggers have been told of.

    Relies on: ``_batches_that_stepped`` in the state of the epoch loop, which Lightning counts up
    after a batch, and a checkpoint may be taken before or after.
    When it is gone: written for nobody; other loggers than ours may count a step twice.
    """
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps


# ---- callbacks -----------------------------------------------------------------------------------


def checks_at_epoch_end(callback: EarlyStopping) -> bool | None:
    """What ``check_on_train_epoch_end`` was given; None leaves it to `EarlyStopping`.

    Relies on: ``EarlyStopping._check_on_train_epoch_end``; it has no public one.
    When it is gone: an AttributeError at the start of a fit with `EarlyStopping`.
    """
    return callback._check_on_train_epoch_end


def averaging_start(callback: StochasticWeightAveraging) -> int | float:
    """What ``swa_epoch_start`` was given: an epoch, or a part of all.

    Relies on: ``StochasticWeightAveraging._swa_epoch_start``; the public ``swa_start`` is an error
    for a part.
    When it is gone: an AttributeError at the start of a fit with `StochasticWeightAveraging`.
    """
    return callback._swa_epoch_start


# ---- W&B -----------------------------------------------------------------------------------------


class OpenWandbLogger(pytorch_lightning.loggers.WandbLogger):
    """Lightning's W&B logger, whose run may be given name and folder after it was built.

    Relies on: ``_wandb_init``, the arguments of ``wandb.init``; ``_experiment``, the run, None
    until it is first asked for; ``_offline``, ``_save_dir``. The constructor takes the same, but
    the command line calls it before there is a run to be named after.
    When they are gone: an AttributeError for ``_wandb_init`` when the logger is built; a test for
    the others.
    """

    @property
    def init_arguments(self) -> dict[str, Any]:
        """The arguments of ``wandb.init``, to be changed in place."""
        return self._wandb_init

    @property
    def is_open(self) -> bool:
        """Whether there is a W&B run; to ask for `experiment` makes one."""
        return self._experiment is not None

    def keep_in(self, folder: str) -> None:
        """Keeps W&B's files in a folder."""
        self._wandb_init["dir"] = self._save_dir = folder

    def begin_offline(self) -> None:
        """Forgets a run that could not begin; the next one writes files only."""
        self._wandb_init["mode"], self._offline = "offline", True
        self.forget()

    def forget(self) -> None:
        """Lets go of a W&B run that is over."""
        self._experiment = None


# ---- command line --------------------------------------------------------------------------------


class CommandLine(LightningCLI):
    """LightningCLI whose inner steps have public names, to be called and overridden.

    Relies on: ``_parser(subcommand)``, ``_prepare_subcommand_kwargs(subcommand)``; and that it
    calls ``_run_subcommand(subcommand)``, ``_dump_config()`` and ``_parse_ckpt_path()``.
    Its public ``before_fit`` and the like come too early to run a command in another way.
    When they are gone: an AttributeError for those called; a run without a folder, or whose
    checkpoint beats the flags, for those overridden: a test finds them.
    """

    def command_parser(self, command: str) -> LightningArgumentParser:
        """The parser of a command."""
        return self._parser(command)

    def arguments_of(self, command: str) -> dict[str, Any]:
        """The keyword arguments for the trainer's method of a command."""
        return self._prepare_subcommand_kwargs(command)

    def run_command(self, command: str) -> None:
        """Runs a command when all is built; to be written by a subclass."""
        raise NotImplementedError

    def written_settings(self) -> dict[str, Any]:
        """The configuration, for hyperparameters; to be written by a subclass."""
        raise NotImplementedError

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_command(subcommand)

    def _dump_config(self) -> None:
        if not hasattr(self, "config_dump"):
            self.config_dump = self.written_settings()

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration alone: a checkpoint's values would beat flags."""
