"""Writes a measurement with its date, code, versions and machine, and prints the machine."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.records.environment import environment_fields
from experiments.records.machine import calibration_words, machine_name


def write_report(path: Path, measured: Mapping[str, Any]) -> None:
    """Writes a measurement as JSON.

    Args:
        path: the file.
        measured: what was measured.
    """
    report = {**environment_fields(), **measured}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    machine = report["hardware"]
    print(f"on {machine_name(machine)}; {calibration_words(machine) or 'not calibrated'}")


def report_cases(
    path: Path,
    cases: Iterable[dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
    **more: Any,
) -> list[dict[str, Any]]:
    """Prints a line for each case as soon as it is measured, then writes all of them.

    Args:
        path: the file.
        cases: measures one case after the other.
        line: the line of a case.
        **more: what else is written, before the cases.

    Returns:
        The cases.
    """
    measured = []
    for case in cases:
        print(line(case), flush=True)
        measured.append(case)
    write_report(path, {**more, "cases": measured})
    return measured
