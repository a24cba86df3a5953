"""The first paragraphs of the reproduction's page: commands, dates and machines of its runs."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments.analysis.chance import chance_of_best
from experiments.records.machine import machine_name
from experiments.records.runs import Run
from experiments.reproduction.judges import Runs, values
from experiments.reproduction.kept import Kept, Written

_PROTOCOL = (
    "Every network is trained on all 50,000 training images for a fixed number of steps. Its last "
    "weights are tested on the official 10,000 test images; nothing is selected on them. Learning "
    "rates are those of the report; only the batch-size experiments have others, which were chosen "
    "on validation images. The test curves in the figures are measured during the training, and "
    "nothing is chosen by them."
)


def introduction(kept: Kept) -> list[str]:
    """The first paragraphs of a page; what they say of the runs is counted from the runs.

    Args:
        kept: the input of the page.
    """
    runs = [run for found in kept.runs.values() for run in found.values()]
    made = [f"{_commands(kept.history)} {_PROTOCOL}"] if kept.history else []
    return [
        *_on_other_data(runs),
        *made,
        *kept.intro,
        f"{_counted(runs, _day, 'Started: ', 'on')}. {_counted(runs, _machine, 'Machines: ', 'on')}"
        f". {_counted(runs, _versions, 'Versions: ', 'with')}.",
        *_many_tested(kept.runs),
    ]


def _commands(history: Iterable[Written]) -> str:
    """The commands that wrote a page, in a sentence."""
    parts = [
        f"by `{written.command}` on {written.date} ({written.seeds}; {_runs(written.added)})"
        for written in history
    ]
    return f"Written {', then '.join(parts)}."


def _counted(runs: Iterable[Run], of: Callable[[Run], str], title: str, word: str) -> str:
    """The number of runs by a description: ``Machines: 165 runs on A; 11 runs on B``."""
    counts = Counter(of(run) for run in runs)
    return title + "; ".join(f"{_runs(counts[what])} {word} {what}" for what in sorted(counts))


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _day(run: Run) -> str:
    return str(run.fields.get("started") or "an unknown day").partition("T")[0]


def _machine(run: Run) -> str:
    hardware: Mapping[str, Any] = run.fields.get("hardware") or {}
    instructions, name = hardware.get("instructions"), machine_name(hardware)
    if not name:
        return "an unknown machine"
    words = [name]
    words += [str(instructions)] if instructions else []
    words += [] if hardware.get("gpus") else ["no GPU"]
    return ", ".join(words)


def _versions(run: Run) -> str:
    found: Mapping[str, Any] = run.fields.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "unknown versions"


def _many_tested(runs: Runs) -> list[str]:
    """A warning that one test set is used for many experiments."""
    found = [list(values(runs, arm).values()) for arm in runs]
    tested = [accuracies for accuracies in found if accuracies]
    errors = [statistics.stdev(v) / len(v) ** 0.5 for v in tested if len(v) > 1]
    if len(tested) < 2 or not errors:
        return []
    return [
        f"One test set is used for {len(tested)} experiments. If all were equally good, the best "
        f"would still look better than their mean by {chance_of_best(errors, len(tested))} over "
        "seeds. So choose nothing by this page: each claim names what it compares."
    ]


def _on_other_data(runs: Iterable[Run]) -> list[str]:
    """A warning if runs are not on CIFAR-10, or only on a part of it."""
    found = [run for run in runs if run.fields.get("data")]
    other = sum(run.fields["data"] != "cifar10" for run in found)
    if not other:
        return []
    return [
        f"Warning: {other} of {len(found)} runs are not on CIFAR-10 but on other images: their "
        "figures and verdicts say nothing about the report."
    ]
