"""What runs cost: parameters, seconds, operations, and the machine that they took them on."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.records.machine import machine_name, peak_gflops
from experiments.records.reader import is_number
from experiments.records.runs import Run

_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
# Of these measures, less is better.
CHEAPER = ("train/seconds", "train/flops", "train/peak_gpu_mib")


def parameters(run: Run) -> float | None:
    """Number of trained parameters."""
    return _positive(run.fields.get("parameters"))


def _positive(value: Any) -> float | None:
    """A figure of a record; None if it is no number or cannot be a cost."""
    return float(value) if is_number(value) and value > 0 else None


def share_of_peak(run: Run) -> float | None:
    """Operations a second of a run, as a share of what its machine does at most.

    The peak is that of a product of matrices in the precision of the run, see
    `experiments.records.machine`; None without a calibration.
    """
    speed = quotient(run.value("train/flops"), run.value("train/seconds"))
    on_gpu = run.value("train/peak_gpu_mib") is not None
    peak = peak_gflops(_hardware(run), run.config.get("trainer.precision"), on_gpu)
    return quotient(speed, None if peak is None else 1e9 * peak)


def quotient(value: Any, by: Any) -> float | None:
    """The quotient of two positive figures of a record; None if there is none that counts."""
    if not all(is_number(part) and part > 0 for part in (value, by)):
        return None
    found = value / by
    return float(found) if is_number(found) and found > 0 else None


def machine(run: Run) -> str | None:
    """The name of a run's machine, see `machine_name`; None if its record names none."""
    return machine_name(_hardware(run)) or None


def _hardware(run: Run) -> Mapping[str, Any]:
    found = run.fields.get("hardware")
    return found if isinstance(found, Mapping) else {}


_MEASURES: dict[str, Callable[[Run], float | None]] = {
    "parameters": parameters,
    "train/seconds": lambda run: _positive(run.value("train/seconds")),
    "train/images_per_s": lambda run: _positive(run.value("train/images_per_s")),
    "train/flops": lambda run: _positive(run.value("train/flops")),
    "share of peak": share_of_peak,
}


def cost_numbers(runs: Sequence[Run]) -> dict[str, Any]:
    """The mean cost of the runs of a line, with a column for each measure, for programs."""
    means = {name: _mean(runs, of) for name, of in _MEASURES.items()}
    return {**means, "machine": "; ".join(_machines(runs)) or None}


def cost_words(runs: Sequence[Run]) -> dict[str, str]:
    """The mean cost of the runs of a line, with a column for each measure, for people."""
    found = cost_numbers(runs)
    seconds, share = found["train/seconds"], found["share of peak"]
    return {
        "parameters": _counted(found["parameters"]),
        "train s": "" if seconds is None else f"{seconds:,.{int(seconds < 10)}f}",
        "images/s": _counted(found["train/images_per_s"]),
        "compute": _operations(found["train/flops"]),
        "of peak": "" if share is None else f"{share:.0%}",
        "machine": found["machine"] or "",
    }


def _mean(runs: Sequence[Run], of: Callable[[Run], float | None]) -> float | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return statistics.fmean(values) if values else None


def _machines(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs if (name := machine(run))))


def _counted(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _operations(flops: float | None) -> str:
    if flops is None:
        return ""
    unit, name = next(((unit, name) for unit, name in _UNITS if flops >= unit), _UNITS[-1])
    return f"{flops / unit:.3g} {name}"
