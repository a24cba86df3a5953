"""Settings in words: a nested one as ``EarlyStopping.patience``, never as a block of JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.identity import experiment_settings
from experiments.records.reader import is_number
from experiments.records.runs import Run, class_name
from experiments.texts import printable, shortened

_LONGEST = 300  # characters of a setting
_CALLBACKS = "trainer.callbacks."
_COLUMNS = {"experiment", "run", "name", "status", "machine", "seed", "n", "note", "difference"}
_PRESENT = "yes"  # the value of a callback's own key


def shown(text: str, most: int = _LONGEST) -> str:
    """A text of a run as one printable line."""
    return shortened(printable(text), most)


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration without lists of classes: ``trainer.callbacks.EarlyStopping.patience``.

    A list of plain values becomes a text: ``200, 100``.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = printable(str(key))
        _expand(f"config {name}" if name in _COLUMNS else name, value, found)
    return found


def settings_of(run: Run) -> dict[str, Any]:
    """The settings that make another experiment, as `readable` gives them, and the data."""
    found = readable(experiment_settings(run.config)) if run.config else {}
    data = run.fields.get("data")
    return {**found, "data found": shown(str(data))} if data else found


def _expand(key: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _expand(f"{key}.{printable(str(name))}", inner, found)
    elif isinstance(value, list) and (key + "." == _CALLBACKS or any(map(_is_class, value))):
        counts: Counter[str] = Counter()
        for entry in value:
            name, arguments = _class_of(entry)
            counts[name] += 1
            inner_key = f"{key}.{name}" + (f"#{counts[name]}" if counts[name] > 1 else "")
            found[inner_key] = _PRESENT
            _expand(inner_key, arguments, found)
    else:
        found[key] = cell(value)


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _class_of(entry: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of a class, as configurations or `experiment_settings` have it."""
    if _is_class(entry):
        arguments = entry.get("init_args")
        name = class_name(str(entry["class_path"]))
    elif isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
    else:
        name, arguments = str(entry), {}
    return shown(str(name), 80), arguments if isinstance(arguments, Mapping) else {}


def cell(value: Any) -> Any:
    """A value as a number or one printable line; None for nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return value if is_number(value) else shown(str(value))
    if isinstance(value, list):
        return shown(", ".join("none" if v is None else str(cell(v)) for v in value))
    if isinstance(value, Mapping):
        return shown(", ".join(f"{key} = {cell(inner)}" for key, inner in value.items()))
    return shown(str(value))


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values differ among the runs that have them; callbacks that some runs lack."""
    keys = list(dict.fromkeys(key for run in settings for key in run))
    known = [run for run in settings if run]
    return [key for key in keys if _differs(key, known)]


def _differs(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    values = {_text(run[key]) for run in settings if key in run}
    some_lack_it = any(key not in run for run in settings)
    is_callback = key.startswith(_CALLBACKS) and values == {_text(_PRESENT)}
    return len(values) > 1 or (is_callback and some_lack_it)


def _text(value: Any) -> str:
    is_plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return json.dumps(float(value) if is_plain else value)


def labels(keys: Iterable[str]) -> dict[str, str]:
    """Headings: the last parts of a key, as many as tell it from the others."""
    keys = list(keys)
    ends = Counter(end for key in keys for end in _ends(key))
    return {key: next((end for end in _ends(key) if ends[end] == 1), key) for key in keys}


def _ends(key: str) -> list[str]:
    """The ends of a key, shortest first; a callback's argument keeps the callback's name."""
    if key.startswith(_CALLBACKS):
        return [key.removeprefix(_CALLBACKS)]
    parts = key.split(".")
    return [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]
