"""Writes a measurement with its date, code, versions and machine, and prints the machine."""

import json
from collections.abc import Mapping
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
