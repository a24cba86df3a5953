"""The base class of all models: steps, metrics, optimiser and schedule."""

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from lightning_modules.measures import DIVERGED, Evaluated, StepSums, first_bad, means
from lightning_modules.schedules import LinearSchedule, steps_to_schedule

LRInterval = Literal["step", "epoch"]


def is_log_step(trainer: Trainer) -> bool:
    """Whether the last training batch ended an optimiser step that is logged."""
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
        "a pickled model loses an optimizer that can't be pickled: build the model again and load "
        "the state_dict to train on"
    )


class _Shared:
    """A callable that copies of a model share: a callable of the command line can't be copied.

    It can't be pickled either; a pickled model still computes.
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


class Classifier(Evaluated, ABC):
    """A classifier of normalised images (see `__call__`); subclasses give ``forward``.

    Logs ``train/loss`` and ``train/acc`` (means over the steps since the last entry, every
    ``trainer.log_every_n_steps``), ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc`` (means
    over the whole set). A separate validation logs ``validate/loss`` and ``validate/acc``, so that
    it does not change the metrics of the fit. Sums stay on the device between log entries: no
    training step waits for the device.

    A subclass may have a ``training_step`` of its own. If that calls `note`, ``train/acc`` is
    logged too.

    Args:
        num_classes: number of classes, the size of the logits.
        optimizer: makes the optimiser from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimiser; none by default.
        lr_interval: the unit of the schedule: optimiser steps or epochs.
        label_smoothing: share of the target that the training loss spreads over all classes.

    Attributes:
        num_classes: number of classes.
        takes_half_precision: whether the model learns equally well in mixed precision, so that a
            command may choose it if it is faster.
        step_figures: values that callbacks add to the next log entry, by name.

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
        # A checkpoint that loads with weights_only=True can't hold callables, such as optimisers.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.num_classes = num_classes
        self.optimizer = _Shared(optimizer)
        self.lr_scheduler = lr_scheduler and _Shared(lr_scheduler)
        self.lr_interval = lr_interval
        self.label_smoothing = label_smoothing
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        self.step_figures: dict[str, float] = {}
        self._sums = StepSums()
        self._seed = np.uint64(torch.initial_seed())  # may exceed the integers of TorchScript

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; Lightning sets the name of its hook 34 times a step.

        `torch.nn.Module` takes 1 us for each check that a text is no parameter.
        """
        if (value is None or type(value) is str) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``."""

    def trainer_if_any(self) -> Trainer | None:
        """The trainer, or None if there is none yet: then `trainer` raises an error."""
        try:
            return self.trainer if self.fabric is None else None
        except RuntimeError:
            return None

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that can't run this model; called before anything is written.

        Args:
            trainer: with its accelerator, precision and other settings.

        Raises:
            ValueError: naming the setting and the remedy.
        """

    def prepare_fit(self, goes_on: bool) -> None:
        """Loads the initial weights of a fit; called before anything is written.

        Args:
            goes_on: whether the weights come from a checkpoint instead.

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
        """Stores the values of a training batch for the next log entry, on the device."""
        self._sums.note(loss.detach(), logits.detach(), labels)

    def on_fit_start(self) -> None:
        """Drops unlogged values of an earlier fit, unless this fit resumes it."""
        goes_on = bool(self.trainer.ckpt_path)
        self._sums.forget(unfolded_alone=goes_on)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes random numbers of a step, such as dropout, a function of the seed and the step.

        A resumed run then draws the same numbers as an uninterrupted one, whatever validation
        or logging drew before.
        """
        place = (int(self._seed), self.trainer.current_epoch, batch_idx, self.global_rank)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes 0.08 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the means since the last entry if the trainer logs this step.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if outputs and not self._sums.is_noted:  # by a training_step of a user's own
            self._sums.note_loss(outputs["loss"], len(batch[1]))
        self._sums.end_batch()
        if not is_log_step(self.trainer) or not len(noted := self._sums.take()):
            return
        figures = means(noted, self)
        if not math.isfinite(loss := figures["train/loss"]):
            raise FloatingPointError(
                f"train/loss is {loss} at {first_bad(noted, self.trainer)}: {DIVERGED}"
            )
        self._log_step({**figures, **self.step_figures})
        self.step_figures.clear()

    def unlogged(self) -> dict[str, float]:
        """Loss and accuracy of training since the last log entry; empty without new batches."""
        noted = self._sums.folded()
        return means(noted.cpu().double(), self) if len(noted) else {}

    def _log_step(self, figures: dict[str, float]) -> None:
        """Logs values of a step like `log`, which takes half a millisecond for each value."""
        trainer = self.trainer
        trainer.progress_bar_metrics.update(figures)
        trainer.callback_metrics.update({k: torch.tensor(value) for k, value in figures.items()})
        for logger in trainer.loggers:
            # Lightning's own entries count steps from 0.
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, trainer.global_step - 1)
            logger.save()

    # ---- optimiser, schedule, checkpoint --------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes the optimiser and its schedule, if any."""
        optimizer: Optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, LinearSchedule) and scheduler.total_steps is None:
            scheduler.total_steps = steps_to_schedule(self.trainer_if_any())
        plan = {"scheduler": scheduler, "interval": self.lr_interval}
        if monitor := getattr(scheduler, "monitor", None):  # Lightning's ReduceLROnPlateau
            plan["monitor"] = monitor
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model's class, so that another is refused, and the unlogged measurements.

        All processes call it, and their measurements are gathered.
        """
        checkpoint["model_class"] = type(self).__qualname__
        checkpoint["precision"] = str(self.trainer.precision)
        if self.trainer.state.fn == "fit":
            own = self._sums.folded()
            noted = [own.clone() for _ in range(self.trainer.world_size)]
            if len(noted) > 1:
                torch.distributed.all_gather(noted, own)
            checkpoint["measured"] = {
                "noted": torch.stack(noted).cpu(),
                "confusion": {name: matrix.cpu() for name, matrix in self.confusion.items()},
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the measurements, so that the next log entry is the same."""
        measured = checkpoint.get("measured", {"noted": [], "confusion": {}})
        if self.global_rank < len(measured["noted"]):
            self._sums.noted = measured["noted"][self.global_rank].to(self.device)
        self.confusion = dict(measured["confusion"])
