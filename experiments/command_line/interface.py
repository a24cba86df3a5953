"""LightningCLI for runs: parses a command, builds data, model and trainer, and executes it."""

import contextlib
import logging
import pydoc
import shlex
import signal
import sys
from collections.abc import Callable

try:
    import torchvision  # noqa: F401 - before Lightning, which hides the cause of an error
except ModuleNotFoundError as _error:
    sys.exit(
        f"error: {sys.executable} has no {_error.name}: set up with python3 start.py, then "
        "activate .venv (. .venv/bin/activate)"
    )
except (ImportError, RuntimeError) as _error:
    from importlib.metadata import version

    sys.exit(
        f"error: torch {version('torch')} and torchvision {version('torchvision')} do not fit "
        f"together ({_error}); install both from one index: "
        "pip install --force-reinstall 'torch>=2.11' 'torchvision>=0.26'"
    )

from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

from datamodules import CIFAR10DataModule, DatasetError
from experiments.checkpoints.saving import best_checkpoint
from experiments.command_line.config_files import check_encodings, expand_homes, texts_of, use_utf8
from experiments.command_line.help import COMMANDS, DESCRIPTION
from experiments.command_line.lightning_table import check_lightning
from experiments.command_line.messages import one_line, show_notes
from experiments.command_line.own_modules import add_working_directory, refuse_to_end
from experiments.command_line.parser_seam import options_of, set_option_type
from experiments.command_line.parsing import (
    ParserError,
    RunParser,
    Seed,
    fail,
    prepare_arguments,
    user_errors,
    with_place,
)
from experiments.command_line.shipped_configs import with_shipped
from experiments.errors import RunError, UsageError
from experiments.identity import experiment_of
from experiments.lightning_seam import CommandLine
from experiments.monitoring.loggers import keep_environment
from experiments.monitoring.progress import RunProgressBar
from experiments.process.allocator import keep_freed_memory
from experiments.process.processes import die_with_parent
from experiments.process.signals import Stopped
from experiments.records.environment import fast_precision
from experiments.records.record import RunRecord
from experiments.records.trust import TRUST_FLAG
from experiments.session.checks import written_config
from experiments.session.preparation import prepare
from experiments.session.quiet import quiet_lightning
from experiments.session.session import RunSession
from experiments.texts import printable
from lightning_modules import (  # noqa: F401 - known by short name
    CNN,
    MLP,
    Classifier,
    FastCNN,
    FineTuned,
    NumPyMLP,
)

_log = logging.getLogger(__name__)


class CIFAR10CLI(CommandLine):
    """LightningCLI whose runs have a name, a folder, a record and checkpoints."""

    record: RunRecord | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("args")
        words = sys.argv[1:] if given is None else given
        asked = words[0] if isinstance(words, list) and words else ""
        self._commands = {asked} if asked in COMMANDS else {*COMMANDS}
        for other in COMMANDS.keys() - self._commands:
            kwargs["parser_kwargs"].pop(other, None)
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given command only: adding the options of all four takes a tenth of a second."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in known if name in self._commands}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the seed."""
        parser.add_argument("--seed_everything", type=Seed, default=42, help="Seed of everything.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of a run."""
        group = parser.add_argument_group("Run: its folder and its end")
        group.add_argument(
            "--name",
            type=str | None,
            help="Name of the run; default: configs, flags, seed and time. Evaluations take the "
            "run's config and best checkpoint.",
        )
        group.add_argument(
            "--init_from",
            type=str | None,
            help="Start a new run with the weights of a run or a checkpoint, and nothing else.",
        )
        group.add_argument("--runs_dir", type=str, default="runs", help="The folder of all runs.")
        group.add_argument(
            "--overwrite", type=bool, default=False, help="Replace a run of the same name."
        )
        group.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="Resume the run, or start it if there is none.",
        )
        group.add_argument(
            TRUST_FLAG,
            type=bool,
            default=False,
            help="Allow the modules and folders that a run's own configuration names.",
        )
        group.add_argument(
            "--save_every_min",
            type=float,
            default=5.0,
            help="Save last.ckpt after this many minutes, even without a validation.",
        )
        group.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit, test the checkpoint that is best on validation.",
        )
        parser.set_defaults({"data": "CIFAR10DataModule"})
        for option in options_of(parser):
            if option.dest.startswith("trainer.limit_"):
                # Lightning's float | int would convert 1 (one batch) to 1.0 (all batches).
                set_option_type(option, int | float | None)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments, with short forms."""
        self.experiment = "run"
        self._texts: list[str] = []
        self.command_line = shlex.join(sys.argv)
        if isinstance(args, list):  # a call from Python: sys.argv belongs to the caller
            self.command_line = shlex.join(["cli.py", *args])
        if isinstance(args, list | None):
            with user_errors():
                given = sys.argv[1:] if args is None else args
                check_encodings(given)
                arguments = prepare_arguments(with_shipped(expand_homes(given)))
                self._texts = [*arguments, *texts_of(arguments)]
                add_working_directory(self._texts)
                self.config = expand_homes(self._parse(parser, arguments))
                self._keep_environment()
                self.experiment = experiment_of(given)
        else:
            super().parse_arguments(parser, args)

    def _parse(self, parser: LightningArgumentParser, arguments: list[str]) -> Namespace:
        """Parses with the parser of the command: the outer parser would check everything again."""
        # Only the outer parser prints a configuration.
        asked = [word for word in arguments if word.startswith("--print_config")]
        if not arguments or {arguments[0]} != self._commands:
            return parser.parse_args(arguments)
        command, *words = (word for word in arguments if word not in asked)
        parsed = self.command_parser(command).parse_args(words)
        if asked:
            counted = []
            with contextlib.suppress(DatasetError):  # a folder may be filled later
                if classes := self._classes_of(parsed):
                    counted = [f"--model.num_classes={classes}"]
            return parser.parse_args([command, *words, *counted, *asked])
        outer = {"config": None, "subcommand": command, command: parsed}
        return Namespace(**outer)  # type: ignore[no-untyped-call]

    def written_settings(self) -> dict[str, Any]:
        """The configuration, for hyperparameters, without another check by Lightning."""
        command = self.config.subcommand
        written = written_config(self.command_parser(command), self.config[command])
        settings: dict[str, Any] = yaml.safe_load(written)
        return settings

    def _keep_environment(self) -> None:
        """Writes the values that W&B takes from the environment into the configuration."""
        keep_environment(self.config[self.config.subcommand].trainer.logger)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; reports their errors as usage errors."""
        with user_errors():
            config = self.config[self.config.subcommand]
            if classes := self._classes_of(config):
                config.model.init_args.num_classes = classes
            check_lightning(config.trainer)
            super().instantiate_classes()

    def _classes_of(self, config: Namespace) -> int | None:
        """The number of classes of the data; None if a flag or a config gives it, or none does."""
        data, model = config.data, config.model.get("init_args")
        known = model is not None and model.get("num_classes") is not None
        count = getattr(pydoc.locate(data.class_path), "count_classes", None)
        if not known or count is None or any("num_classes" in text for text in self._texts):
            return None
        settings = data.get("init_args")
        classes: int | None = count(**(settings.as_dict() if settings else {}))
        return classes

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with this project's bar and checkpoint, unless they are disabled."""
        config = self.config_init[self.config.subcommand].trainer
        if config.precision is None and self.model.takes_half_precision:
            self._choose_precision(config)
        callbacks: list[Callback] = []
        if config.enable_progress_bar is not False and not _has_bar(config.callbacks):
            callbacks.append(RunProgressBar())
        if config.enable_checkpointing is not False:
            callbacks.append(best_checkpoint())
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def _choose_precision(self, config: Any) -> None:
        """Chooses the precision that is fastest here, and writes it into the configuration."""
        config.precision = fast_precision(config.accelerator)
        self.config[self.config.subcommand].trainer.precision = config.precision
        _log.info(f"{config.precision} is fastest here; --trainer.precision chooses another")

    def run_command(self, command: str) -> None:
        """Executes a command on one run."""
        with user_errors():
            session = RunSession(prepare(self, command, self.experiment))
        self.record = session.run.record if session.run else None
        try:
            session.execute(self.arguments_of(command))
        except UsageError as error:  # in the words of Lightning
            raise UsageError(with_place(one_line(str(error)), error)) from error


def _has_bar(callbacks: Any) -> bool:
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(callback, ProgressBar) for callback in given)


def run(args: ArgsType = None, kind: Callable[..., CIFAR10CLI] = CIFAR10CLI) -> None:
    """Runs a command line, and exits with its status if that is not 0.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
        kind: makes the command line.
    """
    try:
        execute(args, kind)
    except UsageError as error:
        fail(error)
    except FloatingPointError as error:
        sys.exit(printable(f"error: {error}"))  # with status 1
    except (RunError, OSError) as error:  # usually an error of the disk
        sys.exit(printable(f"error: {one_line(str(error))}"))
    except Stopped as stopped:
        raise SystemExit(stopped.status) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def execute(
    args: ArgsType = None, kind: Callable[..., CIFAR10CLI] = CIFAR10CLI
) -> RunRecord | None:
    """Runs a command line, and raises what is wrong.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
        kind: makes the command line.

    Returns:
        The record of the run; None if nothing is kept of it.

    Raises:
        UsageError: for an error of the user; the message is one line.
        RunError: for an error of a run's files.
        FloatingPointError: if a loss is not finite.
        Stopped: if a signal ended the command.
    """
    use_utf8()
    quiet_lightning()
    show_notes()
    keep_freed_memory()
    die_with_parent()
    try:
        with refuse_to_end():
            return _command_line(args, kind).record
    except ParserError as stop:
        raise stop.error from None


class _Parsers(CIFAR10CLI):
    """The command line without a command: it makes its parsers, and parses and runs nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Leaves the configuration empty, and asks for no seed."""
        empty = {"subcommand": None, "seed_everything": False}
        self.config = Namespace(**empty)  # type: ignore[no-untyped-call]

    def instantiate_classes(self) -> None:
        """Builds nothing."""


def parsers() -> dict[str, LightningArgumentParser]:
    """The parser of each command; nothing is parsed or run."""
    made = _command_line([], _Parsers)
    return {command: made.command_parser(command) for command in COMMANDS}


def _command_line(args: ArgsType, kind: Callable[..., CIFAR10CLI]) -> CIFAR10CLI:
    return kind(
        Classifier,
        CIFAR10DataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=RunParser,
        parser_kwargs={
            "description": DESCRIPTION,
            **{name: {"description": text} for name, text in COMMANDS.items()},
        },
        save_config_callback=None,
        auto_configure_optimizers=False,
        trainer_defaults={
            "max_epochs": 10,
            "logger": {"class_path": "experiments.WandbLogger"},
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 20,
            "default_root_dir": "runs",
        },
        args=args,
    )
