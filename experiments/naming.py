"""How an experiment is called after what was asked for: runs that differ in it have other names."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.runs import CIRCUMSTANCES

_LONGEST = 80  # characters; seed and time come after them
_OVERLAYS = {"data", "trainer", "logger"}  # folders of configs that say where, not what
# What does not change what is learned, or has a part of the name of its own.
_UNSAID = re.compile(
    rf"{CIRCUMSTANCES}|\w+|\w*\.?config|data\.(source|synthetic_images|download|predict_dir)"
    r"|trainer\.(accelerator|devices|strategy|num_nodes|log_every_n_steps|enable_.*"
    r"|default_root_dir)"
)


def flags_of(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Reads flags and their values, as ``--key value`` or ``--key=value``.

    Args:
        arguments: those of a command; what stands before the first flag is left out.

    Returns:
        Keys without dashes, with values; an empty one for a flag without.

    Raises:
        ValueError: for a word after the first flag that is no flag's value.
    """
    found: list[tuple[str, str]] = []
    is_open = False
    for argument in arguments:
        if argument.startswith("-") and not re.fullmatch(r"-\d.*", argument):
            key, equals, value = argument.lstrip("-").partition("=")
            found.append((key, value))
            is_open = not equals
        elif is_open:
            found[-1] = (found[-1][0], argument)
            is_open = False
        elif found:
            raise ValueError(
                f"{argument!r} is the value of no flag; put values with spaces in quotes"
            )
    return found


def experiment_of(arguments: Sequence[str]) -> str:
    """The name of an experiment: its config files, and the flags that change it.

    ``fit --config configs/mlp.yaml --model.lr 0.01`` is ``mlp-lr_0.01``.

    Args:
        arguments: those of the command, short forms allowed.

    Raises:
        ValueError: see `flags_of`.
    """
    flags = flags_of(arguments)
    configs = [Path(value) for key, value in flags if key in {"c", "config"}]
    parts = [path.stem for path in configs if path.parent.name not in _OVERLAYS]
    last = {key.removesuffix("+"): value for key, value in flags}
    if model := last.get("model", "").rpartition(".")[2].lower():
        parts += [model] if model not in parts else []
    parts += sorted(
        f"{key.rpartition('.')[2]}_{_word(value)}"
        for key, value in last.items()
        if not _UNSAID.fullmatch(key)
    )
    name = "-".join(map(_word, parts)) or "run"
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - len(digest) - 1]}-{digest}"


def _word(text: str) -> str:
    """Leaves only what any file system takes."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")
