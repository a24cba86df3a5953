"""The base of every model: steps, metrics, optimiser and schedule, once for all."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

LRInterval = Literal["step", "epoch"]
Stage = Literal["val", "test"]


def is_log_step(trainer: Trainer) -> bool:
    """Whether the batch just trained on ended an optimiser step after which to log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if every < 1 or trainer.global_step % every:
        return False
    return not trainer.fit_loop.epoch_loop._should_accumulate()  # as Lightning's own logging asks


class Classifier(LightningModule, ABC):
    """An image classifier trained with cross-entropy; subclasses give ``forward``.

    Logs ``train/loss`` and ``train/acc`` (means over the steps since the last entry, every
    ``trainer.log_every_n_steps``), ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc``
    (means over the whole set); a validation asked for by itself logs ``validate/loss`` and
    ``validate/acc``, so that it does not change the fit's. Sums stay on the device between
    entries: nothing in a training step waits for it.

    Args:
        num_classes: number of classes, the size of the logits.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimiser; none by default.
        lr_interval: whether the schedule counts optimiser steps or epochs.

    Attributes:
        confusion: per name of an evaluation (``val``, ``validate``, ``test``), the confusion
            matrix of the last one: int64 ``(num_classes, num_classes)``, rows true, columns
            predicted.

    Raises:
        ValueError: if ``num_classes`` is below 2.
    """

    def __init__(
        self,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "step",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"model.num_classes must be at least 2, got {num_classes}")
        # Optimisers are callables, which a checkpoint that loads with weights_only=True can't hold.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        self.confusion: dict[str, Tensor] = {}
        # In a dict, not as submodules: they would come first in every summary of the model.
        self._metrics: dict[str, tuple[MulticlassConfusionMatrix, MeanMetric]] = {}
        self._loss_sum: Tensor | float = 0.0
        self._correct: Tensor | float = 0.0
        self._images = 0

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from images ``(B, 3, 32, 32)``."""

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that this model can't be run by; called before anything is written.

        Args:
            trainer: with its accelerator, precision and other settings.

        Raises:
            ValueError: naming the setting and the remedy.
        """

    # ---- training -----------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the mean cross-entropy of a batch of images and labels, a scalar."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self.note(loss, logits, labels)
        return loss

    @torch.no_grad()
    def note(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a training batch to the next entry of the log, on the device."""
        self._loss_sum = self._loss_sum + loss.detach() * len(labels)
        self._correct = self._correct + (logits.argmax(1) == labels).sum()
        self._images += len(labels)

    def on_fit_start(self) -> None:
        """Forgets what an earlier fit left unlogged."""
        self._clear_window()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the means since the last entry when the trainer is to log this step.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if is_log_step(self.trainer):
            loss, accuracy = self._loss_sum / self._images, self._correct / self._images
            self._clear_window()
            if not math.isfinite(loss):  # waits for the device, as writing the entry would
                step = self.trainer.global_step
                raise FloatingPointError(
                    f"train/loss is {float(loss)} at step {step}: the training has diverged; "
                    "try a lower learning rate (--model.lr)"
                )
            self.log_dict({"train/loss": loss, "train/acc": accuracy}, prog_bar=True)

    def _clear_window(self) -> None:
        self._loss_sum = self._correct = 0.0
        self._images = 0

    # ---- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds a batch to the validation metrics and returns its logits ``(B, num_classes)``."""
        return self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds a batch to the test metrics and returns its logits ``(B, num_classes)``."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        """Computes class probabilities ``(B, num_classes)`` of a batch of images."""
        logits: Tensor = self(batch[0])
        return logits.float().softmax(1)

    def _evaluate(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        matrix, mean_loss = self._metrics_of(stage)
        mean_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        matrix.update(logits.argmax(1), labels)
        return logits

    def _metrics_of(self, stage: Stage) -> tuple[MulticlassConfusionMatrix, MeanMetric]:
        if stage not in self._metrics:
            matrix = MulticlassConfusionMatrix(self.hparams["num_classes"])
            self._metrics[stage] = matrix, MeanMetric(nan_strategy="disable")
        matrix, mean_loss = self._metrics[stage]
        return matrix.to(self.device), mean_loss.to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics: of a fit as ``val``, by itself as ``validate``."""
        self._log_evaluation("val", "validate" if self.trainer.state.fn == "validate" else "val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_evaluation("test", "test")

    def _log_evaluation(self, stage: Stage, name: str) -> None:
        matrix, mean_loss = self._metrics_of(stage)
        confusion: Tensor = matrix.compute()
        accuracy = confusion.trace() / confusion.sum()
        loss = mean_loss.compute()
        self.log_dict({f"{name}/loss": loss, f"{name}/acc": accuracy}, prog_bar=stage == "val")
        self.confusion[name] = confusion
        matrix.reset()
        mean_loss.reset()

    # ---- optimiser, schedule, checkpoint --------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser and, if asked for, its schedule."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        plan = {"scheduler": scheduler, "interval": self.lr_interval}
        if monitor := getattr(scheduler, "monitor", None):  # Lightning's ReduceLROnPlateau
            plan["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the model's class into the checkpoint, so that another is refused at load."""
        checkpoint["model_class"] = type(self).__qualname__
