"""Callbacks that write reports and predictions."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules import CIFAR10DataModule
from experiments.analysis import plots
from experiments.checkpoints.evaluations import Evaluation, confirmed
from experiments.monitoring.loggers import run_loggers
from experiments.records.curves import last_step
from experiments.records.files import replace_file, replacing, writing
from experiments.records.record import RunRecord
from experiments.texts import csv_cell
from lightning_modules import Classifier


class EvaluationReport(Callback):
    """Confusion matrix, accuracy per class and most confident mistakes, as files and in loggers.

    They are drawn for the last validation of a fit, and for every separate validation and test.

    Args:
        record: the record for plots and figures.
        step: returns the optimiser steps of the evaluated weights.
        evaluation: the evaluation of a separate validation or test; may be set before it starts.
        mistakes: number of misclassified images to show, the most confident first.

    Attributes:
        outputs: of the model for each batch of a test, logits, or of a prediction, probabilities:
            ``(B, C)``, on the device.
    """

    def __init__(
        self,
        record: RunRecord,
        step: Callable[[], int],
        evaluation: Evaluation | None = None,
        mistakes: int = 32,
    ) -> None:
        self.record = record
        self.step = step
        self.evaluation = evaluation
        self.mistakes = mistakes
        self.outputs: list[Tensor] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on the last validation and draws the curves of the fit."""
        if trainer.is_global_zero:
            self._report("val", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on a separate validation."""
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            self._report("validate", trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops earlier outputs; checks that the checkpoint has not been replaced."""
        self.outputs = []
        self._check_weights()

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what the model returned for a batch."""
        self.outputs.append(outputs.detach())

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on the test set, mistakes included."""
        if trainer.is_global_zero:
            self._report("test", trainer, pl_module)
            if trainer.world_size == 1:
                self._show_mistakes(trainer)

    def _report(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        confusion = pl_module.confusion.get(stage)
        if confusion is None:
            return
        matrix = confusion.cpu().numpy()
        names = _label_names(trainer)
        accuracies = zip(names, plots.accuracy_per_class(matrix), matrix.sum(1), strict=True)
        per_class = {name: accuracy for name, accuracy, images in accuracies if images}
        figures = {"per_class": per_class, "images": int(matrix.sum())}
        if stage == "val":
            self.record.summary.update({f"val/{name}": value for name, value in figures.items()})
        else:
            self._note(stage, figures, trainer)
        path = self.record.path / f"confusion_{stage}{self._tag(stage)}.png"
        counts = {"classes": names, "counts": matrix.tolist()}
        with writing(self.record.path):
            replace_file(path.with_suffix(".json"), json.dumps(counts) + "\n")
        step = self._step_of(stage)
        images = "test" if stage == "test" else "validation"
        title = f"Confusion matrix of {self.record.name} on {images} images\n"
        plots.confusion_matrix(matrix, names, path, title + self._weights(stage))
        for logger in run_loggers(trainer):
            logger.log_picture(f"{stage}/confusion_matrix", path, step)
            logger.log_per_class(stage, per_class, step)

    def _note(self, stage: str, figures: dict[str, Any], trainer: Trainer) -> None:
        evaluation = self.confirm()
        for name, value in trainer.callback_metrics.items():
            if name.startswith(f"{stage}/"):
                figures[name.removeprefix(f"{stage}/")] = value.item()
        evaluation.note(self.record, figures)

    def confirm(self) -> Evaluation:
        """The evaluation after a second check: a fit may have replaced the weights."""
        assert self.evaluation is not None
        self.evaluation = confirmed(self.record, self.evaluation)
        return self.evaluation

    def _check_weights(self) -> None:
        if self.evaluation is not None:
            self.evaluation.check_weights()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the checkpoint has not been replaced."""
        if trainer.state.fn == "validate":
            self._check_weights()

    def _weights(self, stage: str) -> str:
        """The evaluated weights in words."""
        words = f"weights of step {self._step_of(stage):,}"
        if stage == "val":
            return words
        assert self.evaluation is not None
        return f"{words} ({self.evaluation.file(self.record)})"

    def _step_of(self, stage: str) -> int:
        """The steps of the evaluated weights; a fit may end after its last validation."""
        return last_step(self.record.metrics(), "val/acc") if stage == "val" else self.step()

    def _tag(self, stage: str) -> str:
        return self.evaluation.tag if self.evaluation is not None and stage != "val" else ""

    def _show_mistakes(self, trainer: Trainer) -> None:
        data = datamodule_of(trainer)
        probabilities = torch.cat(self.outputs).float().softmax(1).cpu()
        labels = torch.from_numpy(data.test_set.labels)[: len(probabilities)]
        confidence, predicted = probabilities.max(1)
        wrong = torch.nonzero(predicted != labels).flatten()
        shown = wrong[confidence[wrong].argsort(descending=True)][: self.mistakes].tolist()
        names = data.label_names
        captions = [
            f"{names[predicted[i]]} {confidence[i]:.0%}\ntrue: {names[labels[i]]}" for i in shown
        ]
        images = [data.test_set.images[i].transpose(1, 2, 0) for i in shown]
        path = self.record.path / f"mistakes_test{self._tag('test')}.png"
        path.unlink(missing_ok=True)  # an old file; there may be no mistakes now
        title = (
            f"Most confident mistakes of {self.record.name} on test images: {len(shown)} of "
            f"{len(wrong):,}\n{self._weights('test')}; above each: prediction, its probability"
        )
        plots.image_grid(images, captions, path, title)
        for logger in run_loggers(trainer) if images else []:
            logger.log_picture("test/mistakes", path, self.step())


class PredictionWriter(Callback):
    """Writes the predictions as CSV: file, (label,) prediction, confidence, a column per class.

    Args:
        record: of the run; the file is in its folder.
        report: holds the evaluation and the probabilities.
    """

    def __init__(self, record: RunRecord, report: EvaluationReport) -> None:
        self.record = record
        self.report = report

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        data = datamodule_of(trainer)
        images = data.images_to_predict
        labels = [data.label_names[i] if i >= 0 else None for i in images.labels]
        probabilities = torch.cat(self.report.outputs).cpu().numpy()
        evaluation = self.report.confirm()
        with replacing(evaluation.predictions(self.record)) as partial:
            write_predictions(partial, images.names, labels, probabilities, data.label_names)
        figures = {"images": len(probabilities), "whole": len(images.names)}
        evaluation.note(self.record, figures)


def write_predictions(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str | None],
    probabilities: np.ndarray[Any, Any],
    names: Sequence[str],
) -> None:
    """Writes class probabilities as CSV, UTF-8, safe to open in a spreadsheet (`csv_cell`).

    Args:
        path: the CSV file.
        files: name of each image.
        labels: true class of each image; without labels, the column is left out.
        probabilities: ``(N, len(names))``.
        names: the classes.
    """
    known = any(label is not None for label in labels)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        classes = [csv_cell(name) for name in names]
        header = ["file", *(["label"] if known else []), "prediction", "confidence", *classes]
        writer.writerow(header)
        for name, label, row in zip(files, labels, probabilities, strict=False):
            best = int(row.argmax())
            truth = [csv_cell(label or "")] if known else []
            figures = [f"{value:.6f}" for value in (row[best], *row)]
            writer.writerow([csv_cell(name), *truth, classes[best], *figures])


def datamodule_of(trainer: Trainer) -> CIFAR10DataModule:
    """The data module of a trainer."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, CIFAR10DataModule)
    return data


def _label_names(trainer: Trainer) -> list[str]:
    return list(datamodule_of(trainer).label_names)
