"""Loggers that keep a copy of a run's metrics in the files of other tools: TensorBoard and CSV."""

import contextlib
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import csv_logs
from pytorch_lightning.loggers.logger import Logger

from experiments.monitoring.loggers import RunLogger, without_epoch_of_evaluation
from experiments.records.curves import last_step
from experiments.records.files import remove_folder
from experiments.records.reader import is_number
from experiments.records.record import RunRecord
from experiments.records.runs import flat

_PICTURES = {"confusion_matrix": "confusion_{}.png", "mistakes": "mistakes_{}.png"}


class FileLogger(RunLogger, Logger):
    """A logger with its own folder in the run's folder.

    Each command begins the folder anew with what the record has. A resumed run takes its record
    back to a checkpoint, so no step is in the files twice. While a fit is running elsewhere, an
    evaluation of its run leaves the folder alone; the next command adds its figures.

    Attributes:
        folder: the name of the folder.
        record: the run's record; None before `start`, and where nothing is written.
    """

    folder: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.record: RunRecord | None = None
        self._count_steps: Callable[[], int] = int

    @property
    def name(self) -> str:
        """The folder in the run's folder."""
        return self.folder

    @property
    def version(self) -> str:
        """Empty: a run has one folder."""
        return ""

    def start(self, record: RunRecord, config: Mapping[str, Any], step: Callable[[], int]) -> None:
        """Opens the files, and writes what the record has.

        Args:
            record: the run.
            config: the resolved configuration.
            step: as for `RecordLogger`, so that both log the same steps.
        """
        if record.fields["status"] == "running" and not record.is_owner:
            return
        folder = record.path / self.folder
        with contextlib.suppress(FileNotFoundError):
            remove_folder(folder)
        self.open(folder, flat(config))
        self.record, self._count_steps = record, step
        began, entries = datetime.fromisoformat(record.fields["started"]), [*record.metrics()]
        for entry in entries:
            figures = {k: v for k, v in entry.items() if k not in {"step", "seconds"}}
            self.write(figures, entry["step"] or 0, began.timestamp() + entry["seconds"])
        for stage in ("val", "validate", "test"):
            last = last_step(entries, f"{stage}/acc")
            self.log_per_class(stage, record.summary.get(f"{stage}/per_class", {}), last)
            for key, name in _PICTURES.items():
                if (path := record.path / name.format(stage)).is_file():
                    self.log_picture(f"{stage}/{key}", path, last)

    @abstractmethod
    def open(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Opens the files in a folder, with the configuration, flat."""

    @abstractmethod
    def write(self, figures: Mapping[str, Any], step: int, time: float | None = None) -> None:
        """Writes the numbers of one entry.

        Args:
            figures: by name; what is no number is left out.
            step: optimiser steps done.
            time: seconds since 1970; None for now.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes an entry, at the step that the record has."""
        if self.record is not None:
            self.write(without_epoch_of_evaluation(metrics), self._count_steps())

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any) -> None:
        """Does nothing: `start` writes the whole configuration."""

    def log_per_class(self, stage: str, accuracies: Mapping[str, float], step: int) -> None:
        """Writes the accuracy of each class as ``test/acc/cat``."""
        if self.record is not None and accuracies:
            self.write({f"{stage}/acc/{name}": acc for name, acc in accuracies.items()}, step)


class RunTensorBoardLogger(FileLogger):
    """Writes TensorBoard's event files into ``tensorboard/`` in the run's folder.

    They hold every metric, the accuracy of each class, the pictures, and the configuration beside
    the final figures under HPARAMS. ``tensorboard --logdir runs`` shows all runs.

    Raises:
        ValueError: if the package tensorboard is missing.
    """

    folder = "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        if find_spec("tensorboard") is None:
            raise ValueError("RunTensorBoardLogger needs tensorboard: pip install tensorboard")
        self._writer: Any = None
        self._config: dict[str, Any] = {}

    def open(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Opens an event file."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second

        self._writer = SummaryWriter(str(folder), flush_secs=10)
        simple = (bool, int, float, str)
        self._config = {k: v if isinstance(v, simple) else str(v) for k, v in config.items()}

    def write(self, figures: Mapping[str, Any], step: int, time: float | None = None) -> None:
        """Writes each number as a scalar."""
        for name, value in _numbers(figures).items():
            self._writer.add_scalar(name, value, step, time)

    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Writes a picture, at its size."""
        if self._writer is None:
            return
        # A picture of another person's run may be anything: other formats may start programs.
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            with Image.open(path, formats=["PNG"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(key, pixels, step, dataformats="HWC")

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Writes texts; numbers follow at the end, from the record."""
        for name, value in values.items():
            if self._writer is not None and isinstance(value, str):
                self._writer.add_text(name, f"```\n{value}\n```")

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """Writes the configuration beside the final figures, such as ``final/test/acc``."""
        if self._writer is not None and self.record is not None:
            final = {f"final/{name}": n for name, n in _numbers(self.record.summary).items()}
            self._writer.add_hparams(self._config, final, run_name=".")
            self._writer.close()
            self._writer = None


class RunCSVLogger(FileLogger):
    """Writes ``csv/metrics.csv`` and ``csv/hparams.yaml`` in the run's folder, as Lightning does.

    A line holds the metrics of one entry; the accuracy of each class has lines of its own. The
    files can't hold pictures: they are in the run's folder.
    """

    folder = "csv"

    def __init__(self) -> None:
        super().__init__()
        self._files: csv_logs.CSVLogger | None = None

    def open(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Opens Lightning's own logger in the folder."""
        self._files = csv_logs.CSVLogger(folder.parent, name="", version=folder.name)
        self._files.log_hyperparams(dict(config))

    def write(self, figures: Mapping[str, Any], step: int, time: float | None = None) -> None:
        """Writes a line."""
        assert self._files is not None
        self._files.log_metrics(_numbers(figures), step)

    def save(self) -> None:
        """Writes the lines to the disk."""
        if self._files is not None:
            self._files.save()

    def close(self, exit_code: int, preempted: bool = False) -> None:
        """Writes the last lines to the disk."""
        self.save()


def _numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v.item() if hasattr(v, "item") else v for k, v in figures.items()}
    return {name: float(value) for name, value in plain.items() if is_number(value)}
