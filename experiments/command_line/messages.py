"""Rewords messages of parsers and libraries to one line with a remedy."""

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datamodules import CIFAR10DataModule
from experiments.identity import LEARNING_RATE, LEARNING_RATE_LONG
from experiments.texts import printable
from lightning_modules import Classifier

_SEED = "expected an integer from 0 to 2^32 - 1"

_REWORDED = (
    (
        'expected "subcommand" to be one of',
        "which command? fit, validate, test or predict, export, compare, sweep ...; see --help",
    ),
    (
        "You selected an invalid accelerator name",
        "trainer.accelerator: expected cpu, gpu, auto or another accelerator of Lightning",
    ),
    (
        "You selected an invalid strategy name",
        "trainer.strategy: expected auto, ddp or another strategy of Lightning; auto suits one "
        "device",
    ),
    (
        "No supported gpu backend found",
        "torch finds no GPU here; run with --trainer.accelerator cpu, or auto",
    ),
    (
        r'arguments are required: (\w+\.)?model\b(?!\.)|Key "(\w+\.)?model" is required|'
        r"Not a valid subclass of Classifier[\s\S]*NestedArg",
        "which model? Add --config configs/mlp.yaml, or --model MLP before its options",
    ),
    (
        "Multiple subclasses with name ReduceLROnPlateau|lr scheduler dict must include a monitor",
        "model.lr_scheduler: ReduceLROnPlateau needs a metric: --model.lr_scheduler "
        "pytorch_lightning.cli.ReduceLROnPlateau --model.lr_scheduler.monitor val/loss",
    ),
    (
        "optimizer got an empty parameter list",
        "the model has no parameters to train: make its layers in __init__, as attributes",
    ),
)
_LOST_CHOICES = "Cannot take a Union of no types"  # jsonargparse 4.39 for an unknown word
_UNHELPFUL = (
    "expected NoneType",
    "Expected a path but",
    "Expected a config path but",
    "Does not validate against",
    _LOST_CHOICES,
    "a class path (str)",
    "a dict with",
)
# The base class of the classes that an option takes, by the end of its key.
_BASES: dict[str, type] = {
    "model": Classifier,
    "data": LightningDataModule,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "callbacks": Callback,
    "logger": Logger,
}
_PREFIXES = dict.fromkeys(("optimizer", "lr_scheduler"), "model.")
_PREFIXES |= dict.fromkeys(("callbacks", "logger"), "trainer.")
_NO_CLASSIFIER = (
    "does not derive from lightning_modules.Classifier: let it, take **kwargs in __init__ and call "
    "super().__init__(**kwargs), and let forward return logits; training_step may stay, "
    "configure_optimizers may go; see docs/how-to/add-a-model.md"
)
_UNKNOWN_KEY = re.compile(r"(?:[Oo]ption|[Kk]ey) '([^']+)'|nrecognized arguments: (\S+)")


class NoteHandler(logging.Handler):
    """Prints log records as notes to the user, only in the first process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line; if this fails, training continues."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            with contextlib.suppress(OSError):
                print(f"note: {printable(record.getMessage())}", file=sys.stderr, flush=True)


def show_notes() -> None:
    """Prints the log records of this project's packages from level INFO on."""
    for package in ("datamodules", "experiments", "lightning_modules"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.handlers = [NoteHandler()]


def one_line(message: str, keys: Iterable[str] = ()) -> str:
    """Shortens a parser's or library's message to one line with a remedy.

    Args:
        message: the message, perhaps over many lines.
        keys: the valid keys, to suggest the nearest one.

    Returns:
        The problem, its place and the remedy.
    """
    for pattern, text in _REWORDED:
        if re.search(pattern, message):
            return text
    if unknown := _UNKNOWN_KEY.search(message):
        return _unknown_key(unknown[1] or unknown[2], keys)
    if required := re.search(r"arguments are required: (\w+)$", message):
        return _missing(required[1])
    key_match = re.search(r'Parser key "([^"]+)":\s*(.*)', message)
    name = key_match[1] if key_match else ""
    key = _full_key(name)
    if problem := _problem_of_class(key, message):
        return f"{key}: {problem}"
    listed = re.sub(r":\n\s+(?!\s*- )", ": ", message)  # a reason on two lines
    reasons = [_reworded(r) for r in re.findall(r"^\s+- (.+)$", listed, re.MULTILINE)]
    if key_match and not reasons:
        reasons = [_reworded(key_match[2])]
    reasons = [r for r in reasons if not r.startswith(_UNHELPFUL)]
    if _LOST_CHOICES in message and (choices := _choices(name, message)):
        reasons = [f"expected one of {', '.join(choices)}"]
    if not reasons:
        return " ".join(_reworded(message).split())
    given = re.search(r"(?:Given value|dot import path string): (.+)", message)
    reasons = [r for r in reasons if not r.startswith("expected")] or reasons  # of the class
    of_parser = all(r.startswith("expected") and ", got " not in r for r in reasons)
    if key == LEARNING_RATE:
        reasons = [r for r in reasons if "the name of a class" not in r] or reasons
    where = f"{key}: " if key else ""
    return where + "; or ".join(reasons) + (f", got {given[1]}" if given and of_parser else "")


def _problem_of_class(key: str, message: str) -> str:
    """The problem with the name of a class, with the nearest one that exists; empty if none."""
    base = _BASES.get(key.rpartition(".")[2])
    if base is None:
        return ""
    if found := re.search(r"[Ee]xpected a dot import path string: (\S+)", message):
        if Path(f"{found[1]}.py").is_file():
            return f"{found[1]}.py is a file: name a class in it, as {found[1]}.ClassName"
        known = {kind.__name__ for kind in _subclasses(base)}
        own = ", ".join(sorted(kind.__name__ for kind in Classifier.__subclasses__()))
        expected = f"one of {own}" if base is Classifier else "the name of a class"
        return f"expected {expected}, got {found[1]}{_nearest(found[1], known)}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"{found[1]} has no {found[2]}{_nearest(found[2], dir(sys.modules.get(found[1])))}"
    if found := re.search(r"No module named '([\w.]+)'", message):
        files = [path.stem for path in Path().glob("*.py")]
        return f"no module {found[1]}{_nearest(found[1], files, 0.8)}"
    if "instantiatable class, but is abstract" in message:
        return "its class has no forward: define it, and let it return logits"
    if found := re.search(r"Expected '([\w.]+)' to be a subclass of", message):
        return f"{found[1]} is no {base.__name__}"
    given = re.search(r"Given value: (\S+)", message)
    if given and "does not correspond to a subclass" in message:
        return f"{given[1]} {_NO_CLASSIFIER if base is Classifier else f'is no {base.__name__}'}"
    return ""


def _subclasses(base: type) -> set[type]:
    own: set[type] = set(base.__subclasses__())
    return own.union(*map(_subclasses, own))


def _nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f", did you mean {near[0]}?" if near else ""


def _full_key(key: str) -> str:
    """A key as typed on the command line: the parser of a class omits the prefix."""
    if key in signature(CIFAR10DataModule).parameters:
        return f"data.{key}"
    if any(key in signature(known).parameters for known in project_classes()):
        return f"model.{key}"
    return LEARNING_RATE if f"model.{key}" == LEARNING_RATE else key


def _unknown_key(argument: str, keys: Iterable[str]) -> str:
    if "/" in argument and not argument.startswith("-"):
        return f"unexpected argument {argument!r}; a configuration is given with --config"
    key = argument.lstrip("-").partition("=")[0]
    if LEARNING_RATE_LONG.endswith(key):
        return (
            "--model.lr is the learning rate of an optimizer that the flags choose, and this model "
            "has none: pass its **kwargs on to Classifier, or set its own argument with "
            "--model.init_args.lr"
        )
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if argument.startswith("--") and _full_key(key) != key:
        return f"unknown key {key!r}, did you mean {_full_key(key)!r}?"
    if near == [key]:
        return f"the class that is asked for has no option {key!r}; see --model.help CLASS"
    return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")


def project_classes() -> list[type]:
    """The classes whose arguments are options of the command line."""
    return [CIFAR10DataModule, *Classifier.__subclasses__(), Classifier]


def _missing(name: str) -> str:
    """What to add if a class that was asked for has an argument without a default."""
    flags = [
        f"--{_PREFIXES.get(key, '')}{key}.{name}"
        for key, base in _BASES.items()
        if any(_needs(kind, name) for kind in _subclasses(base))
    ]
    remedy = f": add {' or '.join(flags)}" if flags else ""
    return f"a class that is asked for needs {name}{remedy}"


def _needs(kind: type, name: str) -> bool:
    argument = signature(kind).parameters.get(name)
    return argument is not None and argument.default is argument.empty


def _choices(key: str, message: str) -> list[str]:
    """The allowed words of an option, from the message or from the option's class."""
    if named := re.findall(r"Literal\[(.*?)\]", message):
        return list(dict.fromkeys(", ".join(named).replace("'", "").split(", ")))
    for known in project_classes():
        kind = get_type_hints(known.__init__).get(key)  # type: ignore[misc]
        if get_origin(kind) is Literal:
            return [str(choice) for choice in get_args(kind)]
    return []


def _reworded(reason: str) -> str:
    """Rewords a parser's message on a Python type."""
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
