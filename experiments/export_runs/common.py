"""What all targets write of a run, and the surroundings in which a library writes it."""

import contextlib
import importlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.identity import SEEDS, run_labels
from experiments.records.reader import is_number
from experiments.records.runs import Run, flat
from experiments.sources.foreign import FACTS, KEPT_FACTS, finite, is_value, time_of

_NO_METRICS = {"step", "seconds"}
# Libraries say by these that they must send nothing.
_OFFLINE = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class TargetError(ValueError):
    """Runs can't be written in a format; the message names the remedy."""


def library(name: str, package: str) -> Any:
    """Imports what writes a format.

    Args:
        name: the module.
        package: what pip installs.

    Raises:
        TargetError: if it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TargetError(f"{name} is missing; pip install {package}") from error


@contextlib.contextmanager
def surroundings(prefix: str, folder: Path, **variables: str) -> Iterator[None]:
    """Keeps a library within a folder, and away from the network and the user's settings.

    Args:
        prefix: of the environment variables of the library, which are removed.
        folder: the working directory meanwhile.
        variables: more environment variables.
    """
    before = dict(os.environ)
    for name in [*os.environ]:
        if name.startswith(prefix):
            del os.environ[name]
    os.environ |= _OFFLINE | variables
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def facts_of(run: Run) -> dict[str, Any]:
    """The fields of a record that another tool keeps under the key ``run`` of the settings."""
    facts = {key: run.fields.get(key) for key in KEPT_FACTS}
    facts |= {"status": run.status, "note": run.note or None}
    return {key: value for key, value in facts.items() if value not in (None, {}, [])}


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run, flat, without what the reader of another tool added."""
    kept = {key: v for key, v in run.config.items() if not key.startswith(f"{FACTS}.")}
    kept = {key: v for key, v in kept.items() if not key.startswith(f"{run.source}.")}
    if run.seed is not None and not any(key in kept for key in SEEDS):
        kept[SEEDS[0]] = run.seed
    return kept


def labels_of(run: Run) -> dict[str, Any]:
    """The group, the kind, the tags and the notes of a run; for a record, the default ones."""
    found = run_labels(run.name, run.fields) if run.source == "record" else {}
    for key in ("group", "job_type", "tags", "notes"):
        found[key] = run.fields.get(key) or found.get(key)
    tags = found["tags"]
    return {**found, "tags": list(map(str, tags)) if isinstance(tags, list) else []}


def logged(run: Run) -> Iterator[tuple[int, float | None, dict[str, float]]]:
    """Yields each entry of the log: its step, its seconds and its numbers.

    What is no finite number in a record is NaN here. An entry without a step gets the last one.
    """
    step = 0
    for entry in run.entries:
        step = entry["step"] if isinstance(entry.get("step"), int) else step
        at = entry.get("seconds")
        seconds = float(at) if isinstance(at, int | float) and is_number(at) else None
        numbers = {
            key: _with_nan(value)
            for key, value in entry.items()
            if key not in _NO_METRICS and (value is None or is_value(value))
        }
        yield step, seconds, numbers


def _with_nan(value: Any) -> float | int:
    number = finite(value)
    return math.nan if number is None else number


def final_values(run: Run) -> dict[str, Any]:
    """The values of the summary, flat, that the log does not hold."""
    in_log = {key for entry in run.entries for key in entry}
    return {key: value for key, value in flat(run.summary).items() if key not in in_log}


def final_numbers(run: Run) -> dict[str, float]:
    """The numbers of `final_values`."""
    return {key: value for key, value in final_values(run).items() if is_number(value)}


def last_step(run: Run) -> int:
    """The last step of the log; 0 if it is empty."""
    return max((step for step, _, _ in logged(run)), default=0)


def start_of(run: Run) -> float:
    """The start of a run in seconds since 1970; now, if it is not known."""
    return time_of(run.fields.get("started")) or time.time()


def flat_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with flat keys: ``run.data``, ``run.git.commit``."""
    return flat({FACTS: facts})
