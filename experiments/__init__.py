"""Runs: their commands, records, checkpoints and comparison."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.errors import RunError
    from experiments.fitting import fit
    from experiments.inference import load
    from experiments.monitoring.file_loggers import RunCSVLogger, RunTensorBoardLogger
    from experiments.monitoring.loggers import RecordLogger, WandbLogger
    from experiments.monitoring.probes import ActivationStatistics, CurveOnTest
    from experiments.records.record import RunRecord

__all__ = [
    "ActivationStatistics",
    "CurveOnTest",
    "RecordLogger",
    "RunCSVLogger",
    "RunError",
    "RunRecord",
    "RunTensorBoardLogger",
    "WandbLogger",
    "fit",
    "load",
]
_HOMES = {
    "ActivationStatistics": "monitoring.probes",
    "CurveOnTest": "monitoring.probes",
    "RecordLogger": "monitoring.loggers",
    "RunCSVLogger": "monitoring.file_loggers",
    "RunError": "errors",
    "RunRecord": "records.record",
    "RunTensorBoardLogger": "monitoring.file_loggers",
    "WandbLogger": "monitoring.loggers",
    "fit": "fitting",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is used: a comparison does not wait for torch and Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
