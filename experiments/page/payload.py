"""Runs as the JSON that the page shows: short, without anything that JSON or a browser refuses."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.analysis.costs import machine, parameters, quotient, share_of_peak
from experiments.analysis.groups import Group
from experiments.analysis.verdicts import better_if, margin_for
from experiments.page.settings import cell, differing, labels, readable, settings_of, shown
from experiments.records.reader import is_number, read_json
from experiments.records.runs import Run
from experiments.texts import printable, shortened

PICTURES = ("mistakes_test.png", "confusion_test.png", "curves.png")
CONFUSIONS = {"test": "confusion_test.json", "validation": "confusion_val.json"}
_LARGEST_CONFUSION = 2**20  # bytes; 200 classes have 120 KB
_MOST_CLASSES = 200
_MOST_POINTS = 1_000  # of a curve
_MOST_METRICS = 200  # of a run


@dataclass(frozen=True)
class Grouped:
    """Runs, as `compare` groups them.

    Attributes:
        groups: the shown lines.
        metric: the final metric of the comparison.
        curve: the metric of best and last values.
        warnings: reasons to doubt the comparison, one line each.
    """

    groups: Sequence[Group]
    metric: str
    curve: str
    warnings: Sequence[str] = ()

    @property
    def runs(self) -> list[Run]:
        """The runs of all lines, in their order."""
        return [run for group in self.groups for run in group.runs]


def payload(found: Grouped) -> dict[str, Any]:
    """All that the page shows of some runs."""
    names = identify(found.runs)
    return {
        **overview(found, names),
        "runs": [run_fields(run, names[run.path]) for run in found.runs],
    }


def identify(runs: Iterable[Run], known: Mapping[Path, str] | None = None) -> dict[Path, str]:
    """A unique name for each run, by its path.

    Args:
        runs: the runs.
        known: earlier names, which stay.
    """
    found = dict(known or {})
    taken = set(found.values())
    for run in runs:
        if run.path not in found:
            name = shown(run.name)
            digest = hashlib.sha256(os.fsencode(run.path)).hexdigest()[:8]
            found[run.path] = f"{name} ({digest})" if name in taken else name
            taken.add(found[run.path])
    return found


def overview(found: Grouped, names: Mapping[Path, str]) -> dict[str, Any]:
    """What the page shows of all runs together: groups, settings that differ, warnings."""
    settings = [settings_of(run) for run in found.runs]
    different = differing(settings)
    everything = list(dict.fromkeys(key for run in found.runs for key in readable(run.config)))
    return {
        "metric": shown(found.metric),
        "curve": shown(found.curve),
        **_judged_by(found.runs),
        "warnings": [shortened(printable(warning), 500) for warning in found.warnings],
        "lines": {names[p]: line for p, line in lines_of(found.groups).items()},
        "order": [names[run.path] for run in found.runs],
        "differing": different,
        "settings": everything,
        "labels": labels(dict.fromkeys([*everything, *different])),
    }


def _judged_by(runs: Sequence[Run]) -> dict[str, Any]:
    """By metric: which figures are better, and the margin if none is given."""
    metrics = {metric: shown(metric, 100) for run in runs for metric in run.summary}
    better = {name: better_if(metric) for metric, name in metrics.items()}
    margins = {name: margin_for(metric) for metric, name in metrics.items()}
    return {
        "better": {name: wanted for name, wanted in better.items() if wanted},
        "margins": {name: least for name, least in margins.items() if least},
    }


def lines_of(groups: Sequence[Group]) -> dict[Path, str]:
    """The name of each run's line, by the run's path; lines of one name get a number."""
    found: dict[Path, str] = {}
    names = {shown(group.name) for group in groups}
    for group in groups:
        name = label = shown(group.name)
        number = 1
        while label in found.values() or (number > 1 and label in names):
            number += 1
            label = f"{name} #{number}"
        found |= {run.path: label for run in group.runs}
    return found


def run_fields(run: Run, name: str) -> dict[str, Any]:
    """All that the page shows of one run.

    Args:
        run: the run.
        name: its unique name.
    """
    axes, curves = _curves(run)
    return {
        "id": name,
        "status": shown(run.status),
        "unfinished": run.is_unfinished,
        "note": shown(run.note, 1_000),
        # A number in JavaScript is exact to 2^53.
        "seed": run.seed if run.seed is None or abs(run.seed) < 2**53 else str(run.seed),
        "data": shown(str(run.fields.get("data") or "")),
        "source": run.source,
        "config": readable(run.config) | settings_of(run),
        "summary": _figures(run),
        "partial": {k: v for k in ("test", "val", "validate") if (v := run.part_of_images(k))},
        "facts": _facts(run),
        "machine": shown(machine(run) or ""),
        **_scales(run),
        "axes": axes,
        "curves": curves,
        "confusion": confusions(run.path),
        "pictures": [file for file in PICTURES if (run.path / file).is_file()],
        "folder": shown(str(run.path), 500),
    }


# ---- figures ------------------------------------------------------------------------------------


def _figures(run: Run) -> dict[str, float]:
    """The final figures that can be compared, and what the run cost."""
    costs = {"parameters": parameters(run), "share of peak": share_of_peak(run)}
    figures = {name: value for name, value in costs.items() if value is not None}
    for key in list(run.summary)[:_MOST_METRICS]:
        if (value := run.value(key)) is not None:
            figures[shown(key, 100)] = value
    return figures


def _scales(run: Run) -> dict[str, float | None]:
    """Images of a step and of an epoch, and floating-point operations of a step."""
    batch: Any = run.config.get("data.batch_size")
    again: Any = run.config.get("trainer.accumulate_grad_batches") or 1
    devices, nodes = (run.config.get(f"trainer.{key}") for key in ("devices", "num_nodes"))
    several = [count for count in (devices, nodes) if isinstance(count, int) and count > 1]
    images = (run.fields.get("images") or {}).get("train")
    steps, flops = run.summary.get("train/steps"), run.summary.get("train/flops")
    known = is_number(batch) and is_number(again)
    return {
        "images_per_step": batch * again * math.prod(several) if known else None,
        "images_per_epoch": images or None,
        "flops_per_step": quotient(flops, steps),
    }


def _curves(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The curves of a run; those logged in the same entries share their axes."""
    axes: list[dict[str, Any]] = []
    places: dict[tuple[int, ...], int] = {}
    curves: dict[str, Any] = {}
    for metric in _logged(run):
        at = _entries_of(run, metric)
        if not at:  # never a number
            continue
        kept = tuple(thinned(at))
        if kept not in places:
            places[kept] = len(axes)
            axes.append(_axes([run.entries[i] for i in kept]))
        values = [_rounded(run.entries[i][metric]) for i in kept]
        best = run.best_step(metric)
        curves[shown(metric, 100)] = {
            "axes": places[kept],
            "y": values,
            "best": None if best is None else [best, run.curve(metric)[best]],
            "last": run.entries[at[-1]][metric],
        }
    return axes, curves


def _logged(run: Run) -> list[str]:
    keys = dict.fromkeys(key for entry in run.entries for key in entry)
    return [key for key in keys if key not in {"step", "seconds", "epoch"}][:_MOST_METRICS]


def _entries_of(run: Run, metric: str) -> list[int]:
    """The entries with a value, by step; the latest if a step has two."""
    by_step = {
        int(entry["step"]): at
        for at, entry in enumerate(run.entries)
        if is_number(entry.get(metric)) and is_number(entry.get("step"))
    }
    return [by_step[step] for step in sorted(by_step)]


def thinned(points: Sequence[int]) -> list[int]:
    """At most 1,000 of the points, evenly, with the first and the last."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]


def _axes(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {
        key: [entry.get(key) for entry in entries] for key in ("step", "seconds", "epoch")
    }
    return {
        key: [_rounded(value) for value in values]
        for key, values in columns.items()
        if key == "step" or all(is_number(value) for value in values)
    }


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.7g}")


# ---- how a run ended, and its machine -----------------------------------------------------------


def _facts(run: Run) -> list[tuple[str, str]]:
    """How a run came about and ended, in words."""
    fields = run.fields
    git = fields.get("git") or {}
    commit = (
        f"{(git.get('commit') or '')[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    )
    resumed = [f"from step {again.get('step')}" for again in fields.get("resumed") or []]
    begun = fields.get("started_from")
    versions = ", ".join(f"{name} {v}" for name, v in (fields.get("versions") or {}).items())
    images = ", ".join(f"{count} {name}" for name, count in (fields.get("images") or {}).items())
    seconds = fields.get("seconds")
    facts = {
        "status": run.status,
        "note": run.note,
        "stopped by": fields.get("stopped_by"),
        "started": fields.get("started"),
        "ended": fields.get("ended"),
        "working time": f"{seconds:,.1f} s" if is_number(seconds) else None,
        "resumed": ", ".join(resumed),
        "started from": cell(begun) if begun else None,
        "command": fields.get("command"),
        "folder": str(run.path),
        "data": fields.get("data"),
        "images": images,
        "commit": commit,
        "machine": machine(run),
        "versions": versions,
    }
    return [(name, shown(str(value), 1_000)) for name, value in facts.items() if value]


def confusions(folder: Path) -> dict[str, Any]:
    """The confusion matrices of a run, as counts by the images; damaged ones are left out."""
    return {
        images: matrix
        for images, file in CONFUSIONS.items()
        if (matrix := _confusion(folder / file)) is not None
    }


def _confusion(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, _LARGEST_CONFUSION)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    classes, counts = found.get("classes"), found.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list):
        return None
    size = len(classes)
    rows = [row for row in counts if isinstance(row, list) and len(row) == size]
    is_square = 0 < size <= _MOST_CLASSES and len(rows) == len(counts) == size
    if not is_square or not all(_is_count(value) for row in rows for value in row):
        return None
    return {"classes": [shown(str(name), 40) for name in classes], "counts": rows}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
