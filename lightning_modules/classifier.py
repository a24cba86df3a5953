"""The base of every model: steps, metrics, optimiser and schedule, once for all."""

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.schedules import LinearSchedule, steps_of_fit

DIVERGED = "the training has diverged; try a lower learning rate (--model.lr)"
_WINDOW = 64  # training batches whose logits are kept at most

LRInterval = Literal["step", "epoch"]
Stage = Literal["val", "test"]


def is_log_step(trainer: Trainer) -> bool:
    """Whether the batch just trained on ended an optimiser step after which to log."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if every < 1 or trainer.global_step % every:
        return False
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if batches % trainer.accumulate_grad_batches == 0:
        return True
    is_last = trainer.is_last_batch or batches == trainer.num_training_batches
    return is_last and not trainer.strategy.handles_gradient_accumulation


def _lost(*args: Any) -> Any:
    raise ValueError(
        "a pickled model loses an optimizer that can't be pickled: build the model anew and load "
        "the state_dict to train on"
    )


class _Shared:
    """A callable that copies of a model share: those of a command line can't be copied.

    Nor pickled: a pickled model computes all the same.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self._function)
        except (pickle.PicklingError, AttributeError, TypeError):
            return _Shared, (_lost,)
        return _Shared, (self._function,)


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
        label_smoothing: share of the target that the training loss spreads over all classes.

    Attributes:
        takes_half_precision: whether the model learns as well in mixed precision, so that it may
            be chosen where it is faster.
        confusion: per name of an evaluation (``val``, ``validate``, ``test``), the confusion
            matrix of the last one: int64 ``(num_classes, num_classes)``, rows true, columns
            predicted.
        step_figures: what callbacks add to the next entry of the log, by name.

    Raises:
        ValueError: if ``num_classes`` is below 2 or ``label_smoothing`` not in [0, 1].
    """

    takes_half_precision: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: LRInterval = "step",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"model.num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"model.label_smoothing must be 0 to 1, got {label_smoothing}")
        # Optimisers are callables, which a checkpoint that loads with weights_only=True can't hold.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.optimizer = _Shared(optimizer)
        self.lr_scheduler = lr_scheduler and _Shared(lr_scheduler)
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        self.confusion: dict[str, Tensor] = {}
        # In a dict, not as submodules: they would come first in every summary of the model.
        self._metrics: dict[str, tuple[MulticlassConfusionMatrix, MeanMetric]] = {}
        self.step_figures: dict[str, float] = {}
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None
        self._window: list[tuple[Tensor, Tensor, Tensor]] = []
        # Of the batches since the last entry of the log: loss (mean), correct answers, images.
        self._noted = torch.zeros(0, 3)
        self._seed = np.uint64(torch.initial_seed())  # may be more than TorchScript's integers hold

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; Lightning sets the name of its hook 34 times a step.

        `torch.nn.Module` takes a microsecond each time to see that a text is no parameter.
        """
        if (value is None or type(value) is str) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from images ``(B, 3, 32, 32)``."""

    def trainer_if_any(self) -> Trainer | None:
        """The trainer, or None before there is one, where `trainer` is an error."""
        try:
            return self.trainer if self.fabric is None else None
        except RuntimeError:
            return None

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that this model can't be run by; called before anything is written.

        Args:
            trainer: with its accelerator, precision and other settings.

        Raises:
            ValueError: naming the setting and the remedy.
        """

    def prepare_fit(self, goes_on: bool) -> None:
        """Loads what a fit starts from; called before anything is written.

        Args:
            goes_on: whether the weights will come from a checkpoint.

        Raises:
            ValueError: for a file that can't be used; the message names the remedy.
        """

    # ---- training -----------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the mean cross-entropy of a batch of images and labels, a scalar."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.note(loss, logits, labels)
        return loss

    def note(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keeps what the next entry of the log needs of a training batch, on the device.

        In a place of its own until the batch is over: a list that grows within a step has
        `torch.compile` compile the step again and again.
        """
        self._latest = loss.detach(), logits.detach(), labels

    def _take_latest(self) -> None:
        if self._latest is not None:
            self._window.append(self._latest)
            self._latest = None

    @torch.no_grad()
    def _fold_window(self) -> None:
        """Shortens what `note` kept to three numbers a batch, a few operations for many batches."""
        self._take_latest()
        if not self._window:
            return
        losses, logits, labels = zip(*self._window, strict=True)
        sizes = [len(batch) for batch in labels]
        right = torch.cat(logits).argmax(1) == torch.cat(labels)
        correct = torch.stack([part.sum() for part in torch.split(right, sizes)])
        images = torch.tensor(sizes).to(right.device, non_blocking=True)
        rows = torch.stack([torch.stack(losses).float(), correct, images], 1)
        self._noted = torch.cat([self._noted.to(rows.device), rows])
        self._window.clear()

    def on_fit_start(self) -> None:
        """Forgets what an earlier fit left unlogged, unless this one goes on with it."""
        self._latest = None
        self._window.clear()
        if not self.trainer.ckpt_path:
            self._noted = self._noted[:0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes what the step draws, such as dropout, a function of the seed and of the step.

        A run that goes on from a checkpoint then draws as the uninterrupted one, whatever
        validation or logging drew before.
        """
        place = (int(self._seed), self.trainer.current_epoch, batch_idx, self.global_rank)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes 0.08 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the means since the last entry when the trainer is to log this step.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        self._take_latest()
        is_due = is_log_step(self.trainer)
        if is_due or len(self._window) == _WINDOW:
            self._fold_window()
        if not is_due:
            return
        noted, self._noted = self._noted.cpu().double(), self._noted[:0]
        loss, accuracy = self._means(noted)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"train/loss is {loss} at {self._first_bad(noted)}: {DIVERGED}"
            )
        self._log_step({"train/loss": loss, "train/acc": accuracy, **self.step_figures})
        self.step_figures.clear()

    def unlogged(self) -> dict[str, float]:
        """Loss and accuracy of training since the last entry of the log; empty if there is none."""
        self._fold_window()
        if not len(self._noted):
            return {}
        loss, accuracy = self._means(self._noted.cpu().double())
        return {"train/loss": loss, "train/acc": accuracy}

    def _first_bad(self, noted: Tensor) -> str:
        """Says which of the batches since the last entry was the first without a finite loss."""
        finite = noted[:, 0].isfinite()
        since = len(noted) - 1 - int(finite.long().argmin()) if not finite.all() else 0
        step = self.trainer.global_step - since // self.trainer.accumulate_grad_batches
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready - since
        epoch, batch = divmod(batch - 1, int(self.trainer.num_training_batches))
        return f"step {step} (epoch {epoch}, batch {batch})"

    def _means(self, noted: Tensor) -> tuple[float, float]:
        """Loss and accuracy over the images of all processes."""
        losses, correct, images = noted.T
        sums = torch.stack([losses @ images, correct.sum(), images.sum()])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.float().to(self.device), reduce_op="sum")
        loss, right, total = sums.tolist()
        return loss / total, right / total

    def _log_step(self, figures: dict[str, float]) -> None:
        """Does what `log` does with figures of a step: that takes half a millisecond for each."""
        trainer = self.trainer
        trainer.progress_bar_metrics.update(figures)
        trainer.callback_metrics.update({k: torch.tensor(value) for k, value in figures.items()})
        for logger in trainer.loggers:
            # Lightning's own entries count steps from 0.
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, trainer.global_step - 1)
            logger.save()

    # ---- evaluation ---------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the logits ``(B, num_classes)`` of a validation batch."""
        return self.evaluate(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the logits ``(B, num_classes)`` of a test batch."""
        return self.evaluate(batch[0])

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        """Computes class probabilities ``(B, num_classes)`` of a batch of images."""
        return self.evaluate(batch[0]).float().softmax(1)

    def evaluate(self, images: Tensor) -> Tensor:
        """Computes the logits ``(B, num_classes)`` that evaluations and predictions go by."""
        logits: Tensor = self(images)
        return logits

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to the validation metrics."""
        self._count("val", outputs, batch[1])

    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to the test metrics."""
        self._count("test", outputs, batch[1])

    def _count(self, stage: Stage, logits: Tensor, labels: Tensor) -> None:
        """Outside of the steps, since torchmetrics can't be compiled."""
        matrix, mean_loss = self._metrics_of(stage)
        mean_loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))
        matrix.update(logits.argmax(1), labels)

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
        if name == "val" and not loss.isfinite():  # before such weights are kept as the best
            step = self.trainer.global_step
            raise FloatingPointError(f"val/loss is {loss.item()} after step {step}: {DIVERGED}")
        self.log_dict({f"{name}/loss": loss, f"{name}/acc": accuracy}, prog_bar=stage == "val")
        self.confusion[name] = confusion
        matrix.reset()
        mean_loss.reset()

    # ---- optimiser, schedule, checkpoint --------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser and, if asked for, its schedule."""
        optimizer: Optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, LinearSchedule) and scheduler.total_steps is None:
            scheduler.total_steps = self._steps_of_fit()
        plan = {"scheduler": scheduler, "interval": self.lr_interval}
        if monitor := getattr(scheduler, "monitor", None):  # Lightning's ReduceLROnPlateau
            plan["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def _steps_of_fit(self) -> int | None:
        """Optimiser steps of the whole fit; None before there is a trainer."""
        trainer = self.trainer_if_any()
        steps = steps_of_fit(trainer) if trainer else None
        if steps == math.inf:
            raise ValueError(
                "a schedule over the whole fit needs its end: set --trainer.max_steps or max_epochs"
            )
        return None if steps is None else int(steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model's class, so that another is refused, and what is measured but not logged.

        Called by all processes: what each has noted is gathered.
        """
        checkpoint["model_class"] = type(self).__qualname__
        if self.trainer.state.fn == "fit":
            self._fold_window()
            noted = [self._noted.clone() for _ in range(self.trainer.world_size)]
            if len(noted) > 1:
                torch.distributed.all_gather(noted, self._noted)
            checkpoint["measured"] = {
                "noted": torch.stack(noted).cpu(),
                "confusion": {name: matrix.cpu() for name, matrix in self.confusion.items()},
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what was measured, so that the next entry of the log is the same."""
        measured = checkpoint.get("measured", {"noted": [], "confusion": {}})
        if self.global_rank < len(measured["noted"]):
            self._noted = measured["noted"][self.global_rank].to(self.device)
        self.confusion = dict(measured["confusion"])
