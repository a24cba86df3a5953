"""Groups runs over seeds, tests their differences, and warns of doubtful comparisons."""

import functools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.analysis.costs import cost_numbers, cost_words, machine
from experiments.analysis.significance import FEWEST, Difference, difference
from experiments.analysis.verdicts import Outcome, margin_for, outcomes
from experiments.identity import MAX_TIME, experiment_name, experiment_settings, kind_of
from experiments.records.runs import Run
from experiments.texts import decimals, shortened


@dataclass(frozen=True)
class Group:
    """Runs of one experiment.

    Attributes:
        name: the common part of their names.
        runs: the runs of all seeds.
        metric: the final metric of the comparison.
        curve: the metric of their best and last values.
    """

    name: str
    runs: tuple[Run, ...]
    metric: str
    curve: str

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the runs share."""
        return next((run.config for run in self.runs if run.config), {})

    @property
    def data(self) -> str | None:
        """The data of the runs, such as ``cifar10`` or ``synthetic``."""
        found: str | None = next((run.fields.get("data") for run in self.runs), None)
        return found

    def final(self) -> dict[int, float]:
        """The final metric by seed; runs without a seed get -1, -2, ..."""
        return self._by_seed(lambda run: run.value(self.metric))

    def best(self) -> dict[int, float]:
        """The best value of the curve by seed: the highest, or for a loss the lowest."""
        return self._by_seed(lambda run: self._at_best(run)[1])

    def best_steps(self) -> dict[int, float]:
        """The step of the best value, by seed."""
        return self._by_seed(lambda run: self._at_best(run)[0])

    def last(self) -> dict[int, float]:
        """The last value of the curve, by seed."""
        return self._by_seed(lambda run: next(reversed(run.curve(self.curve).values()), None))

    def _at_best(self, run: Run) -> tuple[int, float] | tuple[None, None]:
        step = run.best_step(self.curve)
        return (None, None) if step is None else (step, run.curve(self.curve)[step])

    def _by_seed(self, of: Callable[[Run], float | None]) -> dict[int, float]:
        """A value for each seed; runs without a seed get -1, -2, ...

        Repeats of a seed count once, by their mean: they are not independent.
        """
        found: dict[int, list[float]] = {}
        for position, run in enumerate(self.runs, 1):
            if (value := of(run)) is not None:
                found.setdefault(-position if run.seed is None else run.seed, []).append(value)
        return {seed: statistics.fmean(several) for seed, several in found.items()}

    def unfinished(self) -> int:
        """How many of the runs with the final metric have not finished their training."""
        return sum(r.is_unfinished and r.value(self.metric) is not None for r in self.runs)

    def status(self) -> str:
        """The statuses of the runs: ``finished``, or ``4 finished, 1 failed``."""
        counts = Counter(run.status for run in self.runs)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {status}" for status, count in counts.most_common())

    def notes(self) -> str:
        """The problems of the runs and of their figures."""
        notes = dict.fromkeys(run.note for run in self.runs if run.note)
        for run in self.runs:
            stage = self.curve.partition("/")[0]
            if self.metric != self.curve and (part := run.part_of_images(stage)):
                notes[f"{run.name}: {self.curve} is of {part} images"] = None
            part = run.part_of_images(self.metric.partition("/")[0])
            if part and run.value(self.metric) is None:
                notes[f"{run.name}: {self.metric} is of {part} images, not compared"] = None
            elif self.metric in run.summary and run.value(self.metric) is None:
                notes[f"{run.name}: {self.metric} is not finite"] = None
        return "; ".join(notes)

    def sort_key(self, ascending: bool) -> tuple[bool, float, str]:
        """Sort key: the mean of the final metric; lines without it come last."""
        values = self.final()
        mean = statistics.fmean(values.values()) if values else math.nan
        return not values, mean if ascending else -mean, self.name


def group_runs(runs: Sequence[Run], metric: str, curve: str, by_seed: bool = True) -> list[Group]:
    """Groups runs whose configurations differ only in their seeds.

    Args:
        runs: the runs; a run without a configuration is a group of its own.
        metric: the final metric of the comparison.
        curve: the metric of best and last values.
        by_seed: whether to group at all.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = _text({**experiment_settings(run.config), **_way(run)})
        alone = not (by_seed and run.config)
        found.setdefault(f"{run.path}" if alone else key, []).append(run)
    groups = []
    for members in found.values():
        members.sort(key=lambda run: (run.seed is None, run.seed or 0, run.name))
        name = members[0].name
        if by_seed and len(members) > 1:
            name = _common_name([run.name for run in members])
        groups.append(Group(name, tuple(members), metric, curve))
    return groups


def _way(run: Run) -> dict[str, Any]:
    """The history of a run, which can make it another experiment with the same configuration.

    With ``source: auto``, the data may be either of two sets. A run that started from the weights
    of another, or whose settings changed on a resume, is no repeat of a run that had its final
    configuration from the start. A run that a time limit stopped is no repeat of a complete run.
    """
    stopped = str(run.fields.get("stopped_by"))
    begun = (run.fields.get("started_from") or {}).get("weights_sha256")
    changed = []
    for again in run.fields.get("resumed") or []:
        changes = again.get("changes")
        changes = changes if isinstance(changes, dict) else {}
        kept = {key: change for key, change in changes.items() if kind_of(key).group}
        if kept:
            changed.append({"step": again.get("step"), **kept})
    return {
        "data found": run.fields.get("data"),
        "started from": str(begun)[:8] if begun else None,
        "changed on resume": changed or None,
        "stopped by": stopped if stopped.startswith(MAX_TIME) else None,
    }


def _text(value: Any) -> str:
    """A value as text, with the same text for equal values: W&B writes 0.0 as 0."""
    return json.dumps(_with_floats(value), sort_keys=True, default=str)


def _with_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_floats(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(entry) for entry in value]
    is_plain_int = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_plain_int and abs(value) < 2**53 else value


def _common_name(names: Sequence[str]) -> str:
    stems = {experiment_name(name) for name in names}
    return stems.pop() if len(stems) == 1 else f"{names[0]} and {len(names) - 1} more"


def differing(groups: Sequence[Group], everything: bool = False) -> list[str]:
    """The keys of the configuration in which groups differ, or all of them.

    A key that only some groups have, such as the betas of Adam, is shown only if it differs among
    these groups. The key of the class shows why the other groups lack it.
    """
    configs = [_shown(group, everything) for group in groups if group.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    if everything:
        return keys
    values = {key: [config[key] for config in configs if key in config] for key in keys}
    return [key for key in keys if len({_text(value) for value in values[key]}) > 1]


def _shown(group: Group, everything: bool) -> Mapping[str, Any]:
    """The shown settings of a group, and the data of its runs."""
    config = group.config if everything else experiment_settings(group.config)
    found = _way(group.runs[0])
    return {**found, **config, **found}


class Comparison:
    """Lines tested against a baseline, as one family.

    Args:
        baseline: the line that the others are tested against.
        family: all lines, also those that are not shown: a correction for the best lines alone
            would be none.
        margin: the least difference that matters; default: one point of accuracy, for another
            metric none.
    """

    def __init__(
        self, baseline: Group, family: Sequence[Group], margin: float | None = None
    ) -> None:
        self.baseline = baseline
        margin = margin_for(baseline.metric) if margin is None else margin
        differences = [_difference(group, baseline) for group in family]
        found = outcomes(differences, baseline.metric, margin)
        self._found = {id(group): tested for group, tested in zip(family, found, strict=True)}
        self._family = family  # keeps the groups, and so their ids

    def tested(self, group: Group) -> Outcome | None:
        """The result of a line; None if it is not tested."""
        return self._found.get(id(group))

    def heading(self) -> str:
        """The heading of the results: it says over how many tests they are corrected."""
        family = sum(tested is not None for tested in self._found.values())
        corrected = f", p by Holm over {family}" if family > 1 else ""
        return f"difference to {self.baseline.name}{corrected}"

    def words(self, group: Group) -> str:
        """The result of a line, for people."""
        if group is self.baseline:
            return "(baseline)"
        if tested := self.tested(group):
            return tested.words() + _survivors(group)
        gap = _gap(group, self.baseline)
        return "" if gap is None else f"{decimals(gap, sign='+')}, {self._why_untested(group)}"

    def _why_untested(self, group: Group) -> str:
        if group.data != self.baseline.data:
            return "on other data: not tested"
        for line, of in ((group, ""), (self.baseline, " of the baseline")):
            if count := line.unfinished():
                return f"{count} of {len(line.runs)} runs{of} not finished: not tested"
        if min(len(group.final()), len(self.baseline.final())) < FEWEST:
            return f"n too small to test (below {FEWEST})"
        return "no spread over the seeds: not tested"

    def numbers(self, group: Group) -> dict[str, Any]:
        """The result of a line, for programs."""
        tested = self.tested(group)
        parts = ("mean", "low", "high", "p", "test")
        found = {part: getattr(tested.difference, part) if tested else None for part in parts}
        return {
            **{f"difference {part}": value for part, value in found.items()},
            "difference mean": _gap(group, self.baseline),
            "difference holm p": tested and tested.holm,
            "difference family": tested and tested.family,
            "difference margin": tested and tested.margin,
            "difference equivalence p": tested and tested.equivalence,
            "difference equivalence holm p": tested and tested.equivalence_holm,
            "difference verdict": tested and tested.verdict,
        }


def numbers(
    groups: Sequence[Group],
    baseline: Group | Comparison | None,
    everything: bool = False,
) -> pd.DataFrame:
    """A line for each group, with numbers for programs.

    Args:
        groups: the lines.
        baseline: the line that they are tested against, as one family; or tests made before.
        everything: show the whole configuration.
    """
    keys = differing(groups, everything)
    against = Comparison(baseline, groups) if isinstance(baseline, Group) else baseline
    return pd.DataFrame([_numbers(group, against, keys, everything) for group in groups])


def _numbers(
    group: Group, against: Comparison | None, keys: Sequence[str], everything: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": group.name, "status": group.status(), "runs": len(group.runs)}
    columns = {
        group.metric: group.final(),
        f"{group.curve} best": group.best(),
        f"{group.curve} best step": group.best_steps(),
        f"{group.curve} last": group.last(),
    }
    for name, found in columns.items():
        values = list(found.values())
        row[f"{name} n"] = len(values)
        row[f"{name} mean"] = statistics.fmean(values) if values else None
        row[f"{name} sd"] = statistics.stdev(values) if len(values) > 1 else None
    row |= cost_numbers(group.runs)
    if against is not None:
        row |= against.numbers(group)
    config = _shown(group, everything)
    taken = {*row, "seeds", "note"}
    row |= {_free(key, taken): _cell(config.get(key)) for key in keys}
    row["seeds"] = " ".join(str(run.seed) for run in group.runs)
    row["note"] = group.notes()
    return row


def table(
    groups: Sequence[Group],
    baseline: Group | Comparison | None,
    everything: bool = False,
) -> pd.DataFrame:
    """A line for each group, with text for people; empty columns are left out.

    The machine is shown if the lines have several. For the arguments, see `numbers`.
    """
    keys = differing(groups, everything)
    against = Comparison(baseline, groups) if isinstance(baseline, Group) else baseline
    several = len({machine(run) for group in groups for run in group.runs} - {None}) > 1
    rows = []
    for group in groups:
        row = {"name": group.name, "status": group.status(), "n": _count(group)}
        row[group.metric] = _spread(group.final())
        row[f"{group.curve}: best"] = _spread(group.best())
        row["at step"] = _steps(group.best_steps())
        row["last"] = _spread(group.last())
        if against is not None:
            row[against.heading()] = against.words(group)
        costs = cost_words(group.runs)
        row |= costs if several else {k: v for k, v in costs.items() if k != "machine"}
        config = _shown(group, everything)
        headings = _short(keys, {*row, "note"})
        row |= {headings[key]: _cell(config.get(key, "")) for key in keys}
        row["note"] = group.notes()
        rows.append(row)
    frame = pd.DataFrame(rows)
    kept = [column for column in frame if column == "name" or (frame[column] != "").any()]
    return frame[kept]


def _count(group: Group) -> str:
    have, all_runs = len(group.final() or group.last()), len(group.runs)
    return str(have) if have == all_runs else f"{have} of {all_runs}"


def _spread(found: Mapping[int, float]) -> str:
    values = list(found.values())
    if not values:
        return ""
    sd = f" ± {decimals(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{decimals(statistics.fmean(values))}{sd}"


def _steps(found: Mapping[int, float]) -> str:
    if not found:
        return ""
    low, high = int(min(found.values())), int(max(found.values()))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _difference(group: Group, baseline: Group) -> Difference | None:
    if group is baseline or group.data != baseline.data:
        return None
    if group.unfinished() or baseline.unfinished():
        return None
    found = difference(group.final(), baseline.final())
    # Equal values, as of networks that learn nothing, say nothing of other seeds.
    return found if found is not None and found.error > 0 else None


def _survivors(group: Group) -> str:
    """How many runs a test is of, if others of the line lack the metric: perhaps the worst."""
    have = sum(run.value(group.metric) is not None for run in group.runs)
    return "" if have == len(group.runs) else f"; of {have} of {len(group.runs)} runs"


def _gap(group: Group, baseline: Group) -> float | None:
    """The difference of the means; for a paired test, this is also the mean difference."""
    ours, theirs = group.final(), baseline.final()
    if group is baseline or not ours or not theirs:
        return None
    return statistics.fmean(ours.values()) - statistics.fmean(theirs.values())


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    return "" if value is None else value


def _short(keys: Sequence[str], taken: Container[str]) -> dict[str, str]:
    """Headings: the last part of each key, if no other key or column has this name."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: key.rpartition(".")[2] for key in keys}
    return {
        key: s if last[s := short[key]] == 1 and s not in taken else _free(key, taken)
        for key in keys
    }


def _free(key: str, taken: Container[str]) -> str:
    """A key, with a prefix if a column with another meaning has its name."""
    return f"config {key}" if key in taken else key


def doubts(groups: Sequence[Group]) -> list[str]:
    """Warnings on lines with runs of several commits, or with repeated seeds."""
    found = []
    for group in groups:
        found.append(_disagreement(group.runs, "commit", _commit, f"the runs of {group.name}"))
        counts = Counter(run.seed for run in group.runs if run.seed is not None)
        twice = [str(seed) for seed, count in counts.items() if count > 1]
        if twice:
            found.append(f"{group.name}: seed {', '.join(twice)} ran more than once, counted once")
    return [doubt for doubt in found if doubt]


def warnings_about(runs: Sequence[Run]) -> list[str]:
    """Reasons to doubt a comparison of these runs, one line for each."""
    readable = [run for run in runs if run.status != "unreadable"]
    found = [
        _disagreement(readable, "commit", _commit),
        _disagreement(readable, "data", lambda run: run.fields.get("data")),
        _disagreement(readable, "number of images", _images),
        _on_machines(readable),
        *(
            _disagreement(readable, f"{package} version", functools.partial(_version, package))
            for package in ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy")
        ),
    ]
    dirty = [run.name for run in readable if (run.fields.get("git") or {}).get("dirty")]
    if dirty:
        found.append(f"{len(dirty)} of {len(readable)} runs come from uncommitted changes")
    return [warning for warning in found if warning]


def _on_machines(runs: Sequence[Run]) -> str:
    unknown = "not recorded" if any(map(machine, runs)) else None
    found = _disagreement(runs, "machine", lambda run: machine(run) or unknown)
    return f"{found}: their seconds and images/s can't be compared" if found else ""


def _disagreement(
    runs: Sequence[Run], what: str, of: Callable[[Run], Any], whose: str = "runs"
) -> str:
    counts = Counter(str(value) for run in runs if (value := of(run)) is not None)
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{shortened(v, 40)} ({count})" for v, count in counts.most_common(4))
    more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
    return f"{whose} differ in {what}: {listed}{more}"


def _commit(run: Run) -> str | None:
    commit = (run.fields.get("git") or {}).get("commit")
    return commit[:7] if commit else None


def _images(run: Run) -> str | None:
    images = run.fields.get("images")
    return "/".join(map(str, images.values())) if isinstance(images, dict) else None


def _version(package: str, run: Run) -> str | None:
    found: str | None = (run.fields.get("versions") or {}).get(package)
    return found
