"""What is kept of a run, and how its commands begin and end."""

from experiments.loggers import RecordLogger, WandbLogger
from experiments.record import RunError, RunRecord

__all__ = ["RecordLogger", "RunError", "RunRecord", "WandbLogger"]
