"""The configs that come with this project, by their names: ``--config mlp``."""

import difflib
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_FLAGS = ("-c", "--config")


def names() -> list[str]:
    """The names of all configs that come with this project, such as ``data/synthetic``."""
    return sorted(
        str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")
    )


def with_shipped(arguments: Sequence[str]) -> list[str]:
    """Writes out names of configs that come with this project; a file of that name goes first.

    Args:
        arguments: of a command. ``--config mlp`` and, where there is no such file,
            ``--config configs/mlp.yaml`` mean the config that was installed.

    Raises:
        ValueError: for a name that is neither a file nor such a config.
    """
    written = []
    before = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if before in _FLAGS:
            written.append(_path(argument))
        elif flag in _FLAGS and equals:
            written.append(f"{flag}={_path(value)}")
        else:
            written.append(argument)
        before = argument
    return written


def _path(value: str) -> str:
    given = Path(value)
    if given.is_file() or not value or ".." in given.parts:
        return value
    name = given.with_suffix("") if given.suffix == ".yaml" else given
    inside = name.relative_to("configs") if name.parts[:1] == ("configs",) else name
    shipped = CONFIGS / f"{inside}.yaml"
    if not inside.is_absolute() and shipped.is_file():
        return str(shipped)
    if given.suffix or len(given.parts) > 2:
        return value  # a file that is missing: the reader says so
    near = difflib.get_close_matches(value, names(), n=1)
    hint = f", did you mean {near[0]!r}?" if near else f": there are {', '.join(_first_names())}"
    raise ValueError(f"no config {value!r}{hint}")


def _first_names() -> list[str]:
    return [name for name in names() if "/" not in name]
