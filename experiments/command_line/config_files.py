"""Checks config files before a parser reads them; errors name file and line.

It also expands ``~`` in paths of config files and flags.
"""

import argparse
import contextlib
import io
import json
import locale
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.identity import flat_key
from experiments.records.files import read_bytes
from experiments.records.reader import LARGEST_CONFIG

_YAML_TAG = "tag:yaml.org,2002:"
_MERGE, _TEXT, _NUMBER = (f"{_YAML_TAG}{kind}" for kind in ("merge", "str", "int"))
_MOST_NODES = 100_000  # nested aliases can mean billions of nodes
# Keys in error lines: "unknown key 'x'", "x: expected int", "x must be positive".
_KEY = re.compile(r"(?:unknown key '([\w.]+)'|([\w.]+)(?::| must be| is not))")

# A path that begins at a home: ~ or ~/runs, or ~ada/runs for another user.
_HOME = re.compile(r"~|~[^/\\]*[/\\].*", re.DOTALL)
# The value of a flag; a single ~ is a home for a flag with a folder, otherwise YAML's null.
_FLAG = re.compile(r"(--?[\w.+]+=)(~[^/\\]*[/\\].*|(?<=dir=)~|(?<=dirpath=)~)", re.DOTALL)


class HomeError(ValueError, argparse.ArgumentTypeError):
    """A path begins at the home of an unknown user; argparse shows the message."""


def expand_home(path: str | Path) -> Path:
    """Expands ``~`` or ``~user`` at the beginning of a path.

    Raises:
        HomeError: for an unknown user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HomeError(
            f"{path} begins at the home of a user who has none here: write the folder out, or put "
            "./ in front of it"
        ) from error


def expand_homes(value: Any) -> Any:
    """Expands ``~`` in every path of a configuration, or of a list of arguments.

    Args:
        value: a text, or lists, dictionaries and namespaces of texts; changes a namespace in place.

    Returns:
        The same value with expanded paths.

    Raises:
        HomeError: for an unknown user.
    """
    if isinstance(value, argparse.Namespace | dict):
        held = value if isinstance(value, dict) else vars(value)
        held.update({key: expand_homes(entry) for key, entry in held.items()})
        return value
    if isinstance(value, list | tuple):
        return type(value)(map(expand_homes, value))
    if not isinstance(value, str):
        return value
    flag = _FLAG.fullmatch(value)
    before, path = flag.groups() if flag else ("", value)
    return f"{before}{expand_home(path)}" if _HOME.fullmatch(path) else value


def read_config(path: Path) -> str:
    """Reads a config file in UTF-8, without a byte-order mark.

    Raises:
        OSError: if it can't be read.
        ValueError: naming the encoding, or the line, of a file that is not UTF-8.
    """
    content = read_bytes(path, LARGEST_CONFIG)
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"{path} is in {encoding.upper()}: save it as UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}): save it as UTF-8"
        ) from error


def check_encodings(arguments: Sequence[str]) -> None:
    """Refuses arguments and a working directory that can't be decoded as text.

    Raises:
        ValueError: naming the text.
    """
    for text in [str(Path.cwd()), *arguments]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text!r} is no {sys.getfilesystemencoding()}: rename it, or choose another "
                "locale, as with LC_ALL=C.UTF-8"
            ) from error


def texts_of(arguments: Sequence[str]) -> list[str]:
    """Reads the config files that arguments name, also in other flags (``--model a.yaml``).

    Raises:
        ValueError: for one that is not UTF-8, see `read_config`.
    """
    found = []
    for argument in arguments:
        path = Path(argument.partition("=")[2] if argument.startswith("-") else argument)
        if path.suffix in {".yaml", ".yml", ".json"}:
            with contextlib.suppress(OSError):  # the parser reports it
                if path.is_file():
                    found.append(read_config(path))
    return found


def use_utf8() -> None:
    """Makes UTF-8 the default encoding of libraries, whatever the locale is.

    A character that a terminal can't show is printed as its Unicode number.
    """
    if locale.getencoding().lower().replace("-", "") != "utf8":
        with contextlib.suppress(locale.Error):  # a system without it
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def lines_of_keys(path: Path) -> dict[str, str]:
    """Reads the lines of the keys in a config file.

    Args:
        path: the file; the parser reports a missing file.

    Returns:
        ``FILE, line N`` by key, such as ``model.norm``, without ``init_args``.

    Raises:
        ValueError: if the file is not UTF-8 or not YAML, or has a duplicate key (parsers silently
            take the last one), a key that is not a word, an alias that contains itself, or a tag
            that creates objects.
    """
    try:
        if not path.is_file():
            return {}
        node = yaml.compose(read_config(path))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: no configuration: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: no configuration: expected keys such as 'model:'")
    for key, value in node.value:
        if key.value == "trainer" and not isinstance(value, yaml.MappingNode):
            raise ValueError(f"{path}, line {_line(key)}: trainer: expected options below it")
    dotted = {flat_key(str(key.value)) for key, _ in node.value if "." in key.value}
    found: dict[str, str] = {}
    for count, (written, number) in enumerate(_keys(node, path, "", ())):
        if count > _MOST_NODES:
            raise ValueError(f"{path}: no configuration: too many aliases")
        key, place = flat_key(written), f"{path}, line {number}"
        if key in dotted and key in found:
            raise ValueError(f"{place}: {key!r} is there twice, first in {found[key]}: keep one")
        found[key] = place
    return found


def _keys(
    node: yaml.Node, path: Path, prefix: str, above: tuple[yaml.Node, ...]
) -> Iterator[tuple[str, int]]:
    """Yields every key with its line, and an empty key for each item of a list."""
    if node in above:
        raise ValueError(f"{path}, line {_line(node)}: an alias that contains itself")
    if not node.tag.startswith(_YAML_TAG) or "python" in node.tag:
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
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {_MERGE, _TEXT, _NUMBER}:
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


def place_of(message: str, lines: Mapping[str, str]) -> str:
    """Finds the line of a config file for an error line.

    Args:
        message: the error line.
        lines: see `lines_of_keys`.

    Returns:
        ``FILE, line N``; empty if the message names no key of the files, or an ambiguous one.
    """
    if not (found := _KEY.match(message)):
        return ""
    key = flat_key(found[1] or found[2])
    places = {line for name, line in lines.items() if f".{name}".endswith(f".{key}")}
    return lines.get(key) or (places.pop() if len(places) == 1 else "")
