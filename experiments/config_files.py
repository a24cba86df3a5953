"""Config files: what is wrong with one, with file and line, before a parser reads it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from experiments.files import read_text
from experiments.reader import LARGEST_CONFIG

_PLAIN = "tag:yaml.org,2002:"
_MERGE, _TEXT = f"{_PLAIN}merge", f"{_PLAIN}str"
_MOST_NODES = 100_000  # a file of nested aliases can mean billions
# Keys as error lines name them: "unknown key 'x'", "x: expected int", "x must be positive".
_KEY = re.compile(r"(?:unknown key '([\w.]+)'|([\w.]+)(?::| must be| is not))")

# What people write for the learning rate, and where configurations have it.
LEARNING_RATE = "model.lr"
LEARNING_RATE_LONG = "model.init_args.optimizer.init_args.lr"


def lines_of_keys(path: Path) -> dict[str, str]:
    """Reads where the keys of a config file are.

    Args:
        path: the file; the parser says so if there is none.

    Returns:
        ``FILE, line N`` by key, such as ``model.norm``, without ``init_args``.

    Raises:
        ValueError: for what is not YAML, a key that is there twice (parsers take the last without
            a word), a key that is no word, an alias that contains itself, or a tag that would make
            objects.
    """
    try:
        if not path.is_file():
            return {}
        node = yaml.compose(read_text(path, LARGEST_CONFIG))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: no configuration: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: no configuration: expected keys such as 'model:'")
    for key, value in node.value:
        if key.value == "trainer" and not isinstance(value, yaml.MappingNode):
            raise ValueError(f"{path}, line {_line(key)}: trainer: expected options below it")
    dotted = {without_init_args(str(key.value)) for key, _ in node.value if "." in key.value}
    found: dict[str, str] = {}
    for count, (written, number) in enumerate(_keys(node, path, "", ())):
        if count > _MOST_NODES:
            raise ValueError(f"{path}: no configuration: too many aliases")
        key, place = without_init_args(written), f"{path}, line {number}"
        if key in dotted and key in found:
            raise ValueError(f"{place}: {key!r} is there twice, first in {found[key]}: keep one")
        found[key] = place
    return found


def _keys(
    node: yaml.Node, path: Path, prefix: str, above: tuple[yaml.Node, ...]
) -> Iterator[tuple[str, int]]:
    """Yields every key with its line, and an empty one for each item of a list."""
    if node in above:
        raise ValueError(f"{path}, line {_line(node)}: an alias that contains itself")
    if not node.tag.startswith(_PLAIN) or "python" in node.tag:
        raise ValueError(f"{path}, line {_line(node)}: the tag {node.tag} is refused")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield "", _line(item)
            yield from _keys(item, path, prefix, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), _line(key)
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {_MERGE, _TEXT}:
            raise ValueError(f"{path}, line {line}: a key must be a word")
        if name in lines and key.tag != _MERGE:
            raise ValueError(
                f"{path}, line {line}: {name!r} is there twice, first in line {lines[name]}: "
                "keep one"
            )
        lines[name] = line
        yield prefix + name, line
        yield from _keys(value, path, f"{prefix}{name}.", (*above, node))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def without_init_args(key: str) -> str:
    """A key as people write it: ``model.init_args.norm`` is ``model.norm``."""
    return key.replace(".init_args.", ".")


def place_of(message: str, lines: Mapping[str, str]) -> str:
    """Finds the line of a config file that an error line is about.

    Args:
        message: the error line.
        lines: see `lines_of_keys`.

    Returns:
        ``FILE, line N``; empty if the message names no key of the files, or one of several.
    """
    if not (found := _KEY.match(message)):
        return ""
    key = without_init_args(found[1] or found[2])
    if key == LEARNING_RATE:
        key = without_init_args(LEARNING_RATE_LONG)
    places = {line for name, line in lines.items() if f".{name}".endswith(f".{key}")}
    return lines.get(key) or (places.pop() if len(places) == 1 else "")
