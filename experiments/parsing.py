"""The command line's manners: errors of one line, help that fits a screen, short forms."""

import difflib
import inspect
import os
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse.typing import restricted_number_type
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser

from datamodules import CIFAR10DataModule, DatasetError
from experiments.record import CONFIG, RunError, RunRecord, run_folder
from lightning_modules import Classifier

Seed = restricted_number_type(
    "Seed", int, [(">=", 0), ("<", 2**32)], join="and", docstring="An integer from 0 to 2^32 - 1."
)
_SEED = "expected an integer from 0 to 2^32 - 1"

_REWORDED = (
    (
        "No supported gpu backend found",
        "torch finds no GPU here; run with --trainer.accelerator cpu, or auto",
    ),
    (
        r'arguments are required: \w+\.model|Key "\w+\.model" is required|'
        r"Not a valid subclass of Classifier[\s\S]*NestedArg",
        "which model? Add --config configs/mlp.yaml, or --model MLP before its options",
    ),
)
_LOST_CHOICES = "Cannot take a Union of no types"  # jsonargparse 4.39 of a word it doesn't know
_UNHELPFUL = (
    "expected NoneType",
    "Expected a path but",
    "Expected a config path but",
    "Does not validate against",
    _LOST_CHOICES,
    "a class path (str)",
    "a dict with",
)
_UNKNOWN_KEY = re.compile(r"(?:[Oo]ption|[Kk]ey) '([^']+)'|nrecognized arguments: (\S+)")
_EVALUATIONS = {"validate", "test", "predict"}
_COMMON = {
    "accelerator",
    "callbacks",
    "devices",
    "logger",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "precision",
    "strategy",
    "val_check_interval",
}
_SET_HERE = {"weights_only", "return_predictions", "verbose"}  # by experiments.session
_HELP = {"ckpt_path": "Weights to start from or to evaluate: best, last (of run --name) or a file."}
_EXAMPLES = """
examples:
  python cli.py fit --config configs/mlp.yaml --test_after_fit true
  python cli.py fit --config configs/cnn.yaml --trainer.accelerator gpu
  python cli.py test --name RUN
  python cli.py predict --name RUN --data.predict_dir FOLDER
"""
_MORE_HELP = """
more:
  --model.help MLP             options of a model (MLP, NumPyMLP, CNN)
  --data.help                  options of the data
  --print_config               the configuration that the other arguments make
  --help_all                   every option, with all of Lightning's Trainer
  --model.lr X                 short for --model.init_args.optimizer.init_args.lr X
"""
_LEARNING_RATE = "--model.lr"
_LEARNING_RATE_LONG = "--model.init_args.optimizer.init_args.lr"


class UsageError(Exception):
    """Something the user can mend; the message is one line that says how."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors about the user's input, raised while a run is set up, into a `UsageError`."""
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException, DatasetError, RunError) as error:
        raise UsageError(one_line(str(error))) from error


def fail(error: UsageError) -> NoReturn:
    """Prints the error's line and exits with status 2."""
    if os.environ.get("JSONARGPARSE_DEBUG"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def one_line(message: str, keys: Iterable[str] = ()) -> str:
    """Shortens a parser's or library's message to one line with a remedy.

    Args:
        message: the message, perhaps over many lines.
        keys: the keys that exist, to name the nearest to one that doesn't.

    Returns:
        What is wrong, where, and what to do.
    """
    for pattern, text in _REWORDED:
        if re.search(pattern, message):
            return text
    if unknown := _UNKNOWN_KEY.search(message):
        return _unknown_key(unknown[1] or unknown[2], keys)
    key_match = re.search(r'Parser key "([^"]+)":\s*(.*)', message)
    key = key_match[1] if key_match else ""
    listed = re.sub(r":\n\s+(?!\s*- )", ": ", message)  # a reason over two lines
    reasons = [_plain(r) for r in re.findall(r"^\s+- (.+)$", listed, re.MULTILINE)]
    if key_match and not reasons:
        reasons = [_plain(key_match[2])]
    reasons = [r for r in reasons if not r.startswith(_UNHELPFUL)]
    if _LOST_CHOICES in message and (choices := _choices(key, message)):
        reasons = [f"expected one of {', '.join(choices)}"]
    if not reasons:
        return " ".join(_plain(message).split())
    given = re.search(r"(?:Given value|dot import path string): (.+)", message)
    reasons = [r for r in reasons if not r.startswith("expected")] or reasons  # a class's own
    of_parser = all(r.startswith("expected") and ", got " not in r for r in reasons)
    if key == "model":
        models = ", ".join(sorted(known.__name__ for known in Classifier.__subclasses__()))
        reasons = [r.replace("the name of a class", f"one of {models}") for r in reasons]
    where = f"{key}: " if key else ""
    return where + "; or ".join(reasons) + (f", got {given[1]}" if given and of_parser else "")


def _unknown_key(argument: str, keys: Iterable[str]) -> str:
    if "/" in argument and not argument.startswith("-"):
        return f"unexpected argument {argument!r}; a configuration is given with --config"
    key = argument.lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if near == [key]:
        return f"the class that is asked for has no option {key!r}; see --model.help CLASS"
    return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")


def _project_classes() -> list[type]:
    return [CIFAR10DataModule, *Classifier.__subclasses__(), Classifier]


def _choices(key: str, message: str) -> list[str]:
    """What an option may be that is one of a few words, by the message or the option's class."""
    if named := re.findall(r"Literal\[(.*?)\]", message):
        return list(dict.fromkeys(", ".join(named).replace("'", "").split(", ")))
    for known in _project_classes():
        kind = get_type_hints(known.__init__).get(key)  # type: ignore[misc]
        if get_origin(kind) is Literal:
            return [str(choice) for choice in get_args(kind)]
    return []


def _plain(reason: str) -> str:
    """Rewords a parser's complaint about a type for people who don't read Python's."""
    for pattern, text in (
        (r"^Validation failed: ", ""),
        (r'Parser key "([^"]+)":\s*', r"\1: "),
        (r"[Ee]xpected a dot import path string: .+", "expected the name of a class"),
        (r"Problem with given class_path '([\w.]+)': ", r"can't use the class \1: "),
        (r"Not of type Seed: (\S+) does not .+", rf"{_SEED}, got \1"),
        (r"Not of type Seed: .+: '(.*)'", rf"{_SEED}, got \1"),
        (r"[Ee]xpected a <class '([\w.]+)'>", r"expected \1"),
        (r"\.? Got value: ", ", got "),
    ):
        reason = re.sub(pattern, text, reason)
    return re.sub(
        r"[Ee]xpected a typing\.Literal\[(.*?)\]",
        lambda found: "expected one of " + found[1].replace("'", ""),
        reason,
    )


def prepare_arguments(args: list[str] | None) -> list[str]:
    """Writes out the short forms that LightningCLI doesn't know, and checks the config files.

    ``--model.lr`` stands for the optimiser's learning rate; an evaluation with ``--name`` and no
    ``--config`` uses the run's own configuration.

    Args:
        args: the arguments; default: those of the process.

    Returns:
        The arguments, written out.

    Raises:
        RunError: if the named run does not exist, or the name is none.
        ValueError: for a config file that is not YAML; the message names file and line.
    """
    given = sys.argv[1:] if args is None else args
    arguments = [_expand_learning_rate(argument) for argument in given]
    configs = _values(arguments, "-c", "--config")
    names = _values(arguments, "--name")
    if arguments and arguments[0] in _EVALUATIONS and names and not configs:
        root = Path((_values(arguments, "--runs_dir") or ["runs"])[-1])
        run = RunRecord.open(run_folder(root, names[-1]))
        arguments[1:1] = ["--config", str(run.path / CONFIG)]
    for config in configs:
        _check_yaml(Path(config))
    return arguments


def _expand_learning_rate(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return _LEARNING_RATE_LONG + equals + value if flag == _LEARNING_RATE else argument


def _values(arguments: list[str], *flags: str) -> list[str]:
    """The values that the arguments give to a flag, as ``--flag value`` or ``--flag=value``."""
    values = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in flags and (equals or position + 1 < len(arguments)):
            values.append(value if equals else arguments[position + 1])
    return values


def _check_yaml(path: Path) -> None:
    """Names file and line of a syntax error, which the parser's own message does not."""
    if not path.is_file():
        return  # the parser says so
    try:
        node = yaml.compose(path.read_text())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: no configuration: expected keys such as 'model:'")


class RunParser(LightningArgumentParser):
    """LightningCLI's parser with errors of one line and a help that fits a few screens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--help_all", action=_HelpAll, help="Show every option and exit.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2 and one line: what is wrong, and the nearest valid key."""
        if os.environ.get("JSONARGPARSE_DEBUG"):
            super().error(message, ex)
        fail(UsageError(one_line(message, self._known_keys())))

    def _known_keys(self) -> set[str]:
        """Every key of this parser, of its subcommands, and of this project's classes."""
        keys = {action.dest for action in self._actions}
        for action in self._actions:
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    keys |= {found.dest for found in parser._actions}
        keys.add(_LEARNING_RATE.removeprefix("--"))
        return keys.union(*(inspect.signature(known).parameters for known in _project_classes()))

    def format_help(self, *args: Any) -> str:
        """Formats the help without the Trainer's rarer options and without their usage."""
        replaced = {a: a.help for a in self._actions if _is_rare(a) or a.dest in _HELP}
        for action in replaced:
            action.help = _HELP.get(action.dest, SUPPRESS)
        if replaced:
            self.usage = f"{self.prog.replace(' [options]', '')} [--config FILE ...] [options]"
        try:
            return super().format_help(*args) + (_MORE_HELP if replaced else _EXAMPLES)
        finally:
            self.usage = None
            for action, text in replaced.items():
                action.help = text

    def format_full_help(self) -> str:
        """Formats the help with every option."""
        return super().format_help()


class _HelpAll(Action):
    """Prints every option, as ``--help`` did not."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> NoReturn:
        print(parser.format_full_help())
        raise SystemExit(0)


def _is_rare(action: Action) -> bool:
    group, _, key = action.dest.partition(".")
    return (group == "trainer" and bool(key) and key not in _COMMON) or action.dest in _SET_HERE
