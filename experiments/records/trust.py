"""Decides which classes and paths of a run's own configuration a command may use.

``test --name X`` uses the configuration in the run's folder. If somebody else made this folder,
a class in it could be foreign code, and a path could lead anywhere. Such a configuration may name
only classes of this project, of torch.optim and of Lightning, and classes that the command names.
It may write nothing outside its run. Configurations of this user's own fits are recognised by their
hash and have no such limits.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

import datamodules
from datamodules.files import CIFAR10
from datamodules.sources import is_made
from experiments.errors import RunError
from experiments.identity import flat_key
from experiments.records.reader import parse_yaml, read_config
from experiments.records.runs import flat

TRUST_FLAG = "--trust_run"
_HASHES_FILE = "run-configs-written-here"  # in the user's state folder; one hash on each line
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_CONFIG_FILE = re.compile(r".*\.(ya?ml|json|jsonnet|toml)", re.IGNORECASE)
# Keys whose values are paths, and values that are paths under any key.
_PATH_KEY = re.compile(r"(.*_)?(dir|dirpath|path|folder|root|uri|url|host)")
_PATH_VALUE = re.compile(r"(/|~|\\|[A-Za-z]:[\\/]|[A-Za-z][\w+.-]*://).*|(.*[/\\])?\.\.([/\\].*)?")
# Modules whose classes are safe to name in a configuration.
_MODULES = re.compile(
    r"(lightning_modules|datamodules|experiments|custom_ops|torch\.optim"
    r"|pytorch_lightning|lightning_fabric)(\..*)?"
)
_READ_ONLY = {"data.predict_dir", "model.weights", "init_from"}
_IGNORED_KEYS = {"runs_dir", "name"}  # the folder where the run was found is used instead


def check_run_config(path: Path, arguments: Sequence[str]) -> None:
    """Refuses a run's own configuration if it could run code or write outside the run.

    Args:
        path: the run's ``config.yaml``.
        arguments: of the command; classes and paths that they name are allowed.

    Raises:
        RunError: naming the refused entry and how to allow it.
    """
    if _hash(path) in _known():
        return
    named = {found for argument in arguments for found in _IMPORT_PATH.findall(argument)}
    given = {flat_key(argument.lstrip("-").partition("=")[0].rstrip("+")) for argument in arguments}
    for key, reason in _problems(path, named, given):
        raise RunError(
            f"{path}: {key} {reason}: refused, as nobody here wrote it; if you trust where the run "
            f"comes from, add {TRUST_FLAG} true"
        )


def remember(path: Path) -> None:
    """Allows later commands of this user to use a run's configuration without limits.

    Args:
        path: the run's ``config.yaml``; stored only if an entry would be refused.
    """
    try:
        if next(_problems(path, set(), set()), None) is None or _hash(path) in _known():
            return
        folder = user_state_path("cifar10-lightning", appauthor=False)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / _HASHES_FILE).open("a", encoding="ascii") as file:
            file.write(f"{_hash(path)}\n")
    except (OSError, ValueError, RuntimeError):  # no writable home; --trust_run still works
        return


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _known() -> set[str]:
    try:
        path = user_state_path("cifar10-lightning", appauthor=False) / _HASHES_FILE
        return set(path.read_text(encoding="ascii").split())
    except (OSError, RuntimeError, ValueError):
        return set()


def _problems(path: Path, named: set[str], given: set[str]) -> Iterator[tuple[str, str]]:
    """Yields keys of a configuration that may not be used without trust, each with the reason.

    Args:
        path: the file.
        named: import paths that may be used.
        given: keys whose paths the command gives.
    """
    tree = read_config(path)
    for key, value in _leaves(tree, ""):
        short, last = flat_key(key.rstrip("+")), key.rpartition(".")[2].rstrip("+")
        if short in _IGNORED_KEYS:
            continue
        if short in {"config", "ckpt_path"} or _is_file(value, path.parent):
            yield key, f"names the file {value}"  # a parser reads it, whatever its name
        elif last == "class_path" or (_IMPORT_PATH.fullmatch(value) and _is_importable(value)):
            if value not in named and not _is_known_class(value):
                yield key.removesuffix(".class_path"), f"names {value}"
        elif _CONFIG_FILE.fullmatch(value):
            yield key, f"names the file {value}"
        elif short in {*_READ_ONLY, *given} or (
            short == "data.data_dir" and _has_data(value, tree)
        ):
            continue
        elif (_PATH_KEY.fullmatch(last) or _PATH_VALUE.fullmatch(value)) and not (
            _inside(value, path.parent) or (short, value) == ("trainer.default_root_dir", "runs")
        ):
            yield key, f"leads out of the run, to {value}"


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields all texts of a configuration with their keys, also inside texts that are YAML."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple | set):
        for value in tree:
            yield from _leaves(value, key)
    elif isinstance(tree, str):
        try:
            inner = parse_yaml(tree)
        except ValueError:  # unknown content is treated like an unknown class
            inner, key = None, f"{key}.class_path"
        if isinstance(inner, Mapping | list) or (isinstance(inner, str) and inner != tree):
            yield from _leaves(inner, key)
        else:
            yield key, tree


def _is_importable(path: str) -> bool:
    """Whether the first word of an import path is a module, without importing it."""
    root = path.partition(".")[0]
    try:
        here = PathFinder.find_spec(root, [str(Path.cwd())])  # may be parsed later
        return here is not None or find_spec(root) is not None
    except (ImportError, OSError, ValueError):
        return True


def _is_known_class(path: str) -> bool:
    """Whether a configuration may name the class of this import path without trust."""
    module, _, name = path.rpartition(".")
    if not _MODULES.fullmatch(module):
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and bool(_MODULES.fullmatch(found.__module__))


def _is_file(value: str, run: Path) -> bool:
    """Whether a text names a file, relative to this folder or to the run's folder."""
    try:
        return any((place / Path(value).expanduser()).is_file() for place in (Path(), run))
    except (OSError, RuntimeError, ValueError):
        return False


def _has_data(value: str, tree: Mapping[str, Any]) -> bool:
    """Whether the data set of a configuration exists already, so that none would be written."""
    folder = Path(value).expanduser()
    asked = flat(tree)
    official = getattr(getattr(datamodules, str(asked.get("data")), None), "official", CIFAR10)
    if asked.get("data.source") != "synthetic":
        is_there = (folder / official.folder).is_dir()
        return is_there and asked.get("data.source") == official.source
    images = asked.get("data.synthetic_images")
    return isinstance(images, int) and is_made(folder, images, official)


def _inside(value: str, run: Path) -> bool:
    return Path(value).expanduser().resolve().is_relative_to(run.resolve())
