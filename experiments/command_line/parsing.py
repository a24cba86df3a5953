"""Arguments of the command line: short forms, one-line errors, short help."""

import inspect
import os
import sys
from argparse import SUPPRESS, Action
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from jsonargparse.typing import restricted_number_type
from pytorch_lightning.cli import LightningArgumentParser

from experiments import errors
from experiments.checkpoints.loading import BEST, LAST
from experiments.command_line.config_files import lines_of_keys, place_of
from experiments.command_line.help import (
    COMMANDS,
    MainHelpFormatter,
    ShortHelpFormatter,
    closing,
    title,
)
from experiments.command_line.messages import one_line, project_classes
from experiments.command_line.parser_seam import errors_of_types, groups_of, options_of
from experiments.errors import UsageError, is_user_error, place_in_own_code
from experiments.identity import LEARNING_RATE, expand_learning_rate, flat_key
from experiments.records.record import CONFIG, RunRecord, run_folder
from experiments.records.trust import TRUST_FLAG, check_run_config

Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], join="and", docstring="An integer from 0 to 2^32 - 1."
)
_EVALUATIONS = {"validate", "test", "predict"}
_SWITCHES = {"--resume", "--overwrite", "--test_after_fit", TRUST_FLAG}
_BEFORE_OTHERS = {"-c": 0, "--config": 0, "--trainer": 1, "--model": 1, "--data": 1}


@contextmanager
def user_errors() -> Iterator[None]:
    """Converts errors in the user's input, raised while a run is set up, to a `UsageError`."""
    try:
        yield
    except OSError as error:  # such as a folder that may not be entered
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UsageError(with_place(one_line(reason), error)) from error
    except UsageError:
        raise
    except Exception as error:
        if not is_user_error(error) and not place_in_own_code(error):
            raise
        raise UsageError(with_place(one_line(str(error)), error)) from error


def with_place(message: str, error: BaseException) -> str:
    """Adds the file, the line and the kind of an error that a user's own module raised."""
    errors_ = (error, *errors_of_types(error))
    place = next(filter(None, map(place_in_own_code, errors_)), "")
    return f"{message} ({place})" if place else message


# The lines of the keys in the config files of this command, for error messages.
_LINES: dict[str, str] = {}


def fail(error: UsageError) -> NoReturn:
    """Prints the error, with the line of its key in a config file if any; exits with status 2."""
    if os.environ.get("JSONARGPARSE_DEBUG"):
        raise error
    place = place_of(str(error), _LINES)
    errors.fail(f"{error} ({place})" if place else error)


def prepare_arguments(args: list[str] | None) -> list[str]:
    """Expands the short forms that LightningCLI doesn't know, and checks the config files.

    Configs move to the front, then the choices of classes. In LightningCLI the last argument wins,
    but here a flag overrides a file in any order. ``--model.lr`` is the optimiser's learning rate.
    With ``--name`` and no ``--config``, an evaluation or a resumed fit uses the configuration of
    the run.

    Args:
        args: the arguments; default: the arguments of the process.

    Returns:
        The expanded arguments.

    Raises:
        RunError: if the named run does not exist, or the name is invalid.
        ValueError: for a config file that can't be used, with file and line; for a Python file in
            place of a class.
    """
    given = sys.argv[1:] if args is None else args
    _check_order(given)
    _check_classes(given)
    arguments = _expand_switches(list(map(expand_learning_rate, given)))
    configs = _values(arguments, "-c", "--config")
    names = _values(arguments, "--name")
    goes_on = {BEST, LAST} & set(_values(arguments, "--ckpt_path")) or _resumes(arguments)
    of_a_run = bool(arguments) and (arguments[0] in _EVALUATIONS or goes_on)
    if of_a_run and names and not configs:
        root = Path((_values(arguments, "--runs_dir") or ["runs"])[-1])
        own = RunRecord.open(run_folder(root, names[-1])).path / CONFIG
        # The folder where the run was found is used, not the one in its configuration.
        place = [] if _values(arguments, "--runs_dir") else [f"--runs_dir={root}"]
        arguments[1:1] = ["--config", str(own), *place]
    else:
        own = None
    _LINES.clear()
    for config in _values(arguments, "-c", "--config"):
        _LINES.update(lines_of_keys(Path(config)))
    if own is not None and own.is_file() and not _is_on(arguments, TRUST_FLAG):
        check_run_config(own, given)
    for argument in arguments:  # a flag overrides a config
        _LINES.pop(flat_key(argument.removeprefix("--").partition("=")[0]), None)
    return arguments[:1] + _in_order(arguments[1:])


def _check_order(arguments: list[str]) -> None:
    commands = [argument for argument in arguments if argument in COMMANDS]
    if commands and arguments[0].startswith("-"):
        raise ValueError(f"options come after the command: {commands[0]} {arguments[0]} ...")


def _check_classes(arguments: list[str]) -> None:
    """Refuses the file of a class in place of its name."""
    for flag in ("--model", "--data"):
        for value in _values(arguments, flag):
            if value.endswith(".py"):
                module = ".".join(Path(value).with_suffix("").parts)
                raise ValueError(f"{value} is a file: pass {flag} {module}.ClassName")


def _expand_switches(arguments: list[str]) -> list[str]:
    """Expands ``--resume`` to ``--resume true``, and the other switches too."""
    following = [*arguments[1:], "--"]
    return [
        f"{argument}=true" if argument in _SWITCHES and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=False)
    ]


def _resumes(arguments: list[str]) -> bool:
    """Whether a fit resumes a named run with the configuration of this run."""
    return _is_on(arguments, "--resume") and not _values(arguments, "--model")


def _is_on(arguments: list[str], switch: str) -> bool:
    return _values(arguments, switch)[-1:] in (["true"], ["True"])


def _in_order(arguments: list[str]) -> list[str]:
    """Sorts flags, each with its value: configs, choices of classes, the rest."""
    groups: list[list[str]] = []
    for argument in arguments:
        takes_value = bool(groups) and len(groups[-1]) == 1 and groups[-1][0] in _BEFORE_OTHERS
        if takes_value:
            groups[-1].append(argument)
        else:
            groups.append([argument])
    groups.sort(key=lambda group: _BEFORE_OTHERS.get(group[0].partition("=")[0], 2))
    return [argument for group in groups for argument in group]


def _values(arguments: list[str], *flags: str) -> list[str]:
    """The values of a flag in the arguments, from ``--flag value`` or ``--flag=value``."""
    values = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in flags and (equals or position + 1 < len(arguments)):
            values.append(value if equals else arguments[position + 1])
    return values


class ParserError(SystemExit):
    """A `UsageError` on its way out of jsonargparse, which rewords every other exception.

    Args:
        error: what is wrong.
    """

    def __init__(self, error: UsageError) -> None:
        super().__init__(2)
        self.error = error


class RunParser(LightningArgumentParser):
    """LightningCLI's parser with one-line errors and a short help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # --ov true must not mean --overwrite true
        super().__init__(*args, **kwargs)
        self.add_argument("--help_all", action=_HelpAll, help="Show every option and exit.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a `ParserError` of one line: the problem and the nearest valid key."""
        if os.environ.get("JSONARGPARSE_DEBUG"):
            super().error(message, ex)
        said = one_line(message, self._known_keys())
        raise ParserError(UsageError(with_place(said, ex) if ex else said))

    def _known_keys(self) -> set[str]:
        """Every key of this parser, of its subcommands, and of this project's classes."""
        keys = {option.dest for option in options_of(self)}
        for option in options_of(self):
            if isinstance(option.choices, dict):
                for parser in option.choices.values():
                    keys |= {found.dest for found in options_of(parser)}
        keys.add(LEARNING_RATE)
        return keys.union(*(inspect.signature(known).parameters for known in project_classes()))

    def format_help(self, *args: Any) -> str:
        """Formats the help without rare options."""
        of_command = any(option.dest == "trainer" for option in options_of(self))
        if of_command:
            self.usage = f"{self.prog.replace(' [options]', '')} [--config FILE ...] [options]"
        for group, options in groups_of(self):
            group.title = title(options, group.title)
        self.formatter_class = ShortHelpFormatter if of_command else MainHelpFormatter
        try:
            return super().format_help(*args) + closing(of_command)
        finally:
            self.usage = None
            self.formatter_class = DefaultHelpFormatter

    def format_full_help(self) -> str:
        """Formats the help with every option."""
        return super().format_help()


class _HelpAll(Action):
    """Prints every option, also those that ``--help`` hides."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> NoReturn:
        print(parser.format_full_help())
        raise SystemExit(0)
