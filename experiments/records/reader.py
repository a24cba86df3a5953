"""The only reader of records, configurations and logs; it reads files of any origin safely.

For any file, it returns the content with the types that this project writes, or raises an `OSError`
or a `ValueError` with the problem in one line. It takes a few seconds at most.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.records.files import read_lines, read_text, reason_of

FORMAT = 1  # of the folder of a run, see docs/run_format.md
# A record has 10 KB, and about 400 bytes more for each resume.
LARGEST_RECORD = 4 * 2**20
# A configuration has 5 KB and 250 values. YAML takes 2 s for a megabyte.
LARGEST_CONFIG = 2**18
_MOST_VALUES = 10_000  # with aliases expanded: nested aliases can mean billions
_DEEPEST = 50  # levels; a record has 4, a configuration with lists of callbacks 10
_NUMBER = re.compile(r"[-+]?[\d.][-+.:\w]*")
_LONGEST_NUMBER = 1_000  # characters; Python converts at most 4,300 digits to text
# A log has 100 to 400 bytes an entry, one for every 20 steps by default: 5,000,000 steps.
LARGEST_LOG = 64 * 2**20
MOST_ENTRIES = 250_000
LARGEST_OWN_LOG = 2**30  # for a run that is resumed or drawn, even if it logged every step
_LARGEST_INTEGER = 2**63  # a larger one is no metric, and may overflow a float
_LARGEST_FLOAT = 1e150  # its square is finite, as statistics need
# The C parser reads a config in 3 ms, the one in Python in 30.
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_OBJECTS = ("summary", "git", "versions", "images", "hardware", "evaluations", "weights")
_KINDS: dict[str, type] = {
    **dict.fromkeys(_OBJECTS, dict),
    "started_from": dict,
    **dict.fromkeys(("format", "seed", "parameters", "best_since"), int),
    **dict.fromkeys(
        ("name", "status", "error", "wandb_id", "data", "job_type", "model", "chosen"), str
    ),
    **dict.fromkeys(("optimizer", "command", "started", "ended"), str),
    "resumed": list,
    "seconds": float,
}
_KINDS_WITHIN: dict[str, type] = {
    "images": int,
    "versions": str,
    "resumed": dict,
    "evaluations": dict,
    "weights": str,
}
_COMMIT: dict[str, type] = {"commit": str, "dirty": bool}
# The keys of a summary whose values are numbers.
_FIGURE = re.compile(r".+/(acc|loss|steps?|seconds|images|images_per_s|peak_gpu_mib|flops)")


_REQUIRED_VALUES = ("evaluations", "weights", "started_from", "resumed", "best_since", "chosen")


def parse_json(text: str) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if the text is no JSON, or nested deeper than any file of this project.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(content)
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _within(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def parse_yaml(text: str) -> Any:
    """Reads YAML as simple values.

    Raises:
        ValueError: if the text is no YAML, creates objects, or expands without limit.
    """
    try:
        _check_yaml(text)
        content = yaml.load(text, Loader=_YAML)
    except Exception as error:  # PyYAML raises any kind of error for a malformed value
        raise ValueError(reason_of(error)) from error
    _check_depth(content)
    return content


def _check_yaml(text: str) -> None:
    """Refuses text that expands too far: the C parser has no limit and crashes Python."""
    sizes: dict[str, int] = {}  # number of values by anchor, with aliases expanded
    open_ones: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_YAML):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            sizes |= {anchor: total - before} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {anchor for anchor, _ in open_ones}:
                raise ValueError("an alias that contains itself")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_ones.append((event.anchor, total))
            elif _is_endless(getattr(event, "value", "")):
                raise ValueError("a number of too many digits")
        if len(open_ones) > _DEEPEST:
            raise ValueError("nested too deeply")
        if total > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values")


def _is_endless(word: str) -> bool:
    return len(word) > _LONGEST_NUMBER and bool(_NUMBER.fullmatch(word))


def read_json(path: Path, largest: int) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        largest: how many bytes it may have.

    Raises:
        OSError: if it can't be read.
        ValueError: if it holds no JSON.
    """
    return parse_json(read_text(path, largest))


def read_record(path: Path) -> dict[str, Any]:
    """Reads a ``record.json``.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is not of this project, or of a newer version of it.
    """
    fields = read_json(path, LARGEST_RECORD)
    if not isinstance(fields, dict):
        raise ValueError("it is not of this project: no fields")
    fields = {k: v for k, v in fields.items() if v is not None or k not in _REQUIRED_VALUES}
    check_record(fields)
    if (version := fields.get("format") or FORMAT) > FORMAT:
        raise ValueError(
            f"it has format {version}; this version reads up to {FORMAT}: update this project"
        )
    return fields


def check_record(fields: Mapping[str, Any]) -> None:
    """Refuses the content of a record if a field has a wrong type.

    Raises:
        ValueError: naming the first such field.
    """
    if not isinstance(fields.get("summary"), dict):
        raise ValueError("it is not of this project: it has no summary")
    if wrong := _wrong(fields):
        raise ValueError(f"it is not of this project: its {wrong}")


def _wrong(fields: Mapping[str, Any]) -> str:
    """The first field with a wrong type; empty if there is none."""
    checked = [(key, fields.get(key), kind) for key, kind in _KINDS.items()]
    git, summary = fields.get("git"), fields["summary"]
    if isinstance(git, dict):
        checked += [(f"git {key}", git.get(key), kind) for key, kind in _COMMIT.items()]
    for key, kind in _KINDS_WITHIN.items():
        values = [*_within(fields.get(key))]
        if key in _REQUIRED_VALUES and None in values:
            return f"{key} is null"
        checked += [(key, value, kind) for value in values]
    checked += [(key, value, float) for key, value in summary.items() if _FIGURE.fullmatch(key)]
    if None in _within(fields.get("images")):
        return "images are not counted"
    return next((f"{k} is {v!r:.40}" for k, v, kind in checked if not _has_type(v, kind)), "")


def _has_type(value: Any, kind: type) -> bool:
    if value is None:
        return True
    if kind in {int, float}:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole and abs(value) < (_LARGEST_INTEGER if kind is int else _LARGEST_FLOAT)
        return fits or (kind is float and isinstance(value, float))
    return isinstance(value, kind)


def read_config(path: Path) -> Any:
    """Reads the resolved configuration of a run.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is none.
    """
    content = parse_yaml(read_text(path, LARGEST_CONFIG))
    if not isinstance(content, dict):
        raise ValueError("no configuration: expected keys such as 'model:'")
    return _as_json(content)


def _as_json(value: Any) -> Any:
    """A value of YAML, with dates, sets and other keys than text converted for JSON."""
    if isinstance(value, dict):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def read_log(path: Path, largest: int = LARGEST_LOG) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yields each line of a ``metrics.jsonl`` with its entry; None if the line is no entry.

    Args:
        path: the file.
        largest: how many bytes it may have.

    Raises:
        OSError: if it can't be read.
    """
    for line in read_lines(path, largest):
        yield line, _entry(line)


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not _has_type(entry.get("step"), int):
        return None
    others = (key for key, value in entry.items() if not isinstance(value, float))
    figures = (key for key in others if key == "seconds" or _FIGURE.fullmatch(key))
    return entry if all(_has_type(entry[key], float) for key in figures) else None


def is_number(value: Any) -> bool:
    """Whether a value of a record is a usable number: finite, and with a finite square."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST_FLOAT  # False for NaN
