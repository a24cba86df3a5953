"""What is kept of a run, and how runs begin, end and are compared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.errors import RunError
    from experiments.inference import load
    from experiments.monitoring.loggers import RecordLogger, WandbLogger
    from experiments.monitoring.probes import ActivationStatistics, CurveOnTest
    from experiments.records.record import RunRecord

__all__ = [
    "ActivationStatistics",
    "CurveOnTest",
    "RecordLogger",
    "RunError",
    "RunRecord",
    "WandbLogger",
    "load",
]
_HOMES = {
    "ActivationStatistics": "monitoring.probes",
    "CurveOnTest": "monitoring.probes",
    "RecordLogger": "monitoring.loggers",
    "RunError": "errors",
    "RunRecord": "records.record",
    "WandbLogger": "monitoring.loggers",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: comparing runs needs neither torch nor Lightning, and no wait."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
