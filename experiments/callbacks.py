"""What a run shows and keeps besides its metrics."""

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from tqdm import tqdm

from datamodules import CIFAR10DataModule
from experiments import plots
from experiments.checkpoints import BEST
from experiments.loggers import WandbLogger
from experiments.record import RunRecord
from lightning_modules import Classifier
from lightning_modules.classifier import is_log_step


def wandb_logger(trainer: Trainer) -> WandbLogger | None:
    """The trainer's W&B logger, if it has one."""
    return next((log for log in trainer.loggers if isinstance(log, WandbLogger)), None)


class RunProgressBar(ProgressBar):
    """One bar for a whole fit, test or prediction; plain lines where there is no terminal.

    Args:
        stream_is_terminal: draw a bar (default: whether standard error is a terminal).
    """

    def __init__(self, stream_is_terminal: bool | None = None) -> None:
        super().__init__()
        self._terminal = sys.stderr.isatty() if stream_is_terminal is None else stream_is_terminal
        self._bar: Any = None
        self._enabled = True
        self._logged = False

    def disable(self) -> None:
        """Turns the bar off, on all processes but the first."""
        self._enabled = False

    def _open(self, description: str, total: float, done: int = 0) -> None:
        self._bar = tqdm(
            total=None if total == float("inf") else int(total),
            initial=done,
            desc=description,
            disable=not (self._enabled and self._terminal),
            mininterval=0.2,
            leave=False,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over all optimiser steps."""
        self._open("fit", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advances the bar; new figures come with the step after each entry of the log."""
        if self._logged and not self._bar.disable:
            self._bar.set_postfix_str(_figures(self.get_metrics(trainer, pl_module)), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        self._logged = is_log_step(trainer)  # the model's own hook, which logs, comes after this

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line per validation where there is no bar."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self._enabled and not self._terminal:
            total = trainer.estimated_stepping_batches
            figures = _figures(self.get_metrics(trainer, pl_module))
            print(f"step {trainer.global_step}/{total:.0f}  {figures}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._bar.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over the test batches."""
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advances the bar."""
        self._bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._bar.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over the batches to predict."""
        self._open("predict", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advances the bar."""
        self._bar.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._bar.close()


def _figures(metrics: dict[str, Any]) -> str:
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return "  ".join(
        f"{key} {value:,.0f}" if abs(value) >= 100 else f"{key} {value:.4f}"
        for key, value in figures.items()
    )


class TrainMonitor(Callback):
    """Logs the learning rate and the throughput in images/s, at each entry of the log.

    Attributes:
        seconds: time spent in training steps, without validation.
        images: images trained on.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._since = (0.0, 0)
        self._mark = 0.0

    def _lap(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._lap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        self._mark = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images; logs when the trainer is to log this step."""
        self.images += len(batch[0]) * trainer.world_size
        if is_log_step(trainer):
            self._lap()
            seconds, images = self.seconds - self._since[0], self.images - self._since[1]
            self._since = (self.seconds, self.images)
            pl_module.log("images_per_s", images / seconds, prog_bar=True)
            pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])


class TrainingSettings(Callback):
    """Lets the optimiser's settings that are asked for beat those of the checkpoint gone on from.

    An optimiser restored from a checkpoint has the checkpoint's settings, the learning rate
    included. The settings in which this run differs from the checkpoint's are set again here; a
    schedule goes on from the new learning rate.

    Args:
        ours: what `training_settings` says of this run.
    """

    def __init__(self, ours: dict[str, Any]) -> None:
        self.ours = ours
        self._theirs: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the settings into the checkpoint."""
        checkpoint["training"] = self.ours

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes note of the checkpoint's settings."""
        self._theirs = checkpoint.get("training")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets what differs from the checkpoint."""
        if self._theirs is None:
            return
        ours, theirs = self.ours["settings"], self._theirs["settings"]
        changed = {name: value for name, value in ours.items() if value != theirs.get(name)}
        factor = 1.0
        if "lr" in changed and theirs["lr"]:
            factor = changed.pop("lr") / theirs["lr"]
        for group in trainer.optimizers[0].param_groups:
            group.update(changed)
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [lr * factor for lr in config.scheduler.base_lrs]


class EvaluationReport(Callback):
    """Confusion matrix, accuracy per class and the worst mistakes, in the run's folder and W&B.

    Drawn for the validation at the end of a fit and for every test.

    Args:
        record: where the plots and the figures go.
        mistakes: how many misclassified images to show, the most confident first.
    """

    def __init__(self, record: RunRecord, mistakes: int = 32) -> None:
        self.record = record
        self.mistakes = mistakes
        self._logits: list[Tensor] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on the last validation and draws the curves of the fit."""
        if trainer.is_global_zero:
            self._report("val", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on a validation that was asked for by itself."""
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            self._report("val", trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier test."""
        self._logits = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the logits of a test batch."""
        self._logits.append(outputs.detach())

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
        per_class = dict(zip(names, plots.accuracy_per_class(matrix), strict=True))
        self.record.summary[f"{stage}/per_class"] = per_class
        path = self.record.path / f"confusion_{stage}.png"
        plots.confusion_matrix(matrix, names, path, title=f"{self.record.name}: {stage}")
        if logger := wandb_logger(trainer):
            logger.log_image(f"{stage}/confusion_matrix", [str(path)])
            rows = [[name, accuracy] for name, accuracy in per_class.items()]
            logger.log_table(f"{stage}/per_class", columns=["class", "accuracy"], data=rows)
            logger.summarize({f"{stage}/acc/{name}": value for name, value in per_class.items()})

    def _show_mistakes(self, trainer: Trainer) -> None:
        data = _datamodule(trainer)
        probabilities = torch.cat(self._logits).float().softmax(1).cpu()
        labels = torch.from_numpy(data.test_set.labels)[: len(probabilities)]
        confidence, predicted = probabilities.max(1)
        wrong = torch.nonzero(predicted != labels).flatten()
        worst = wrong[confidence[wrong].argsort(descending=True)][: self.mistakes].tolist()
        names = data.label_names
        captions = [
            f"{names[predicted[i]]} {confidence[i]:.0%}\ntrue: {names[labels[i]]}" for i in worst
        ]
        images = [data.test_set.images[i].transpose(1, 2, 0) for i in worst]
        plots.image_grid(images, captions, self.record.path / "mistakes_test.png")
        if (logger := wandb_logger(trainer)) and images:
            logger.log_image("test/mistakes", images, caption=captions)


def best_checkpoint() -> ModelCheckpoint:
    """Keeps the checkpoint with the best validation accuracy as ``best.ckpt``."""
    return ModelCheckpoint(
        filename=BEST,
        monitor="val/acc",
        mode="max",
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=False,  # before `LastCheckpoint` saves what is known of the best
    )


class LastCheckpoint(Checkpoint):
    """Keeps the newest state as a checkpoint: at each validation and when training ends.

    Lightning's ``save_last`` writes only when a new best one is found.

    Args:
        path: the checkpoint's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._step: int | None = None

    def _save(self, trainer: Trainer) -> None:
        if self._step != trainer.global_step:
            self._step = trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after a validation within a fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        self._save(trainer)


class PredictionWriter(Callback):
    """Writes the predictions as CSV: file, (label,) prediction, confidence, a column per class.

    Args:
        path: the CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._probabilities: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the probabilities of a batch."""
        self._probabilities.append(outputs.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        data = _datamodule(trainer)
        images = data.images_to_predict
        labels = [data.label_names[i] if i >= 0 else None for i in images.labels]
        probabilities = torch.cat(self._probabilities).numpy()
        write_predictions(self.path, images.names, labels, probabilities, data.label_names)


def write_predictions(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str | None],
    probabilities: np.ndarray[Any, Any],
    names: Sequence[str],
) -> None:
    """Writes class probabilities as CSV.

    Args:
        path: the CSV file.
        files: name of each image.
        labels: true class of each image; the column is left out if none is known.
        probabilities: ``(N, len(names))``.
        names: the classes.
    """
    known = any(label is not None for label in labels)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["file", *(["label"] if known else []), "prediction", "confidence", *names]
        writer.writerow(header)
        for name, label, row in zip(files, labels, probabilities, strict=False):
            best = int(row.argmax())
            truth = [label] if known else []
            figures = [f"{value:.6f}" for value in (row[best], *row)]
            writer.writerow([name, *truth, names[best], *figures])


class RunStatus(Callback):
    """Writes into the record, and tells W&B, when a run fails or is interrupted.

    Args:
        record: the run's record.
        changes_status: whether the run itself fails, and not just an evaluation of it.
    """

    def __init__(self, record: RunRecord, changes_status: bool = True) -> None:
        self.record = record
        self.changes_status = changes_status

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Marks the run."""
        if not trainer.is_global_zero:
            return
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if self.changes_status:
            self.record.fields["error"] = repr(exception)
            self.record.finish("interrupted" if stopped else "failed")
        if logger := wandb_logger(trainer):
            logger.close(exit_code=130 if stopped else 1)


def _datamodule(trainer: Trainer) -> CIFAR10DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, CIFAR10DataModule)
    return data


def _label_names(trainer: Trainer) -> list[str]:
    return list(_datamodule(trainer).label_names)
