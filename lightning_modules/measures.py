"""Metrics of training and evaluation, summed on the device until they are read."""

import math
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

DIVERGED = "the training has diverged; try a lower learning rate (--model.lr)"
_WINDOW = 64  # largest number of training batches whose logits are kept

Stage = Literal["val", "test"]


class StepSums:
    """Loss and correct predictions of the training batches since the last log entry.

    Attributes:
        noted: a row for each batch: mean loss, correct predictions (NaN if unknown), images;
            float32, on the device.
        is_noted: whether the values of this batch are known.
    """

    def __init__(self) -> None:
        self.noted = torch.zeros(0, 3)
        self.is_noted = False
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None
        self._window: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Stores the values of a batch, detached, until `end_batch`.

        They are not in the list yet: if a list grows within a step, `torch.compile` compiles the
        step again and again.

        Args:
            loss: the mean of the batch, a scalar.
            logits: ``(B, num_classes)``.
            labels: int64 ``(B,)``.
        """
        self._latest = loss, logits, labels
        self.is_noted = True

    @torch.no_grad()
    def note_loss(self, loss: Tensor, images: int) -> None:
        """Adds a batch of which only the loss is known.

        Args:
            loss: the mean of the batch, a scalar.
            images: number of images.
        """
        row = torch.tensor([[0.0, math.nan, images]], device=loss.device)
        row[0, 0] = loss
        self.noted = torch.cat([self.folded().to(row.device), row])

    def end_batch(self) -> None:
        """Adds the batch of `note` to the list, and folds the list if it is long."""
        self.is_noted = False
        if self._latest is not None:
            self._window.append(self._latest)
            self._latest = None
        if len(self._window) == _WINDOW:
            self.folded()

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Folds all batches into rows, many in a few operations, and returns the rows."""
        kept = self._window if self._latest is None else [*self._window, self._latest]
        if kept:
            losses, logits, labels = zip(*kept, strict=True)
            sizes = [len(batch) for batch in labels]
            right = torch.cat(logits).argmax(1) == torch.cat(labels)
            correct = torch.stack([part.sum() for part in torch.split(right, sizes)])
            images = torch.tensor(sizes).to(right.device, non_blocking=True)
            rows = torch.stack([torch.stack(losses).float(), correct, images], 1)
            self.noted = torch.cat([self.noted.to(rows.device), rows])
            self.forget(unfolded_alone=True)
        return self.noted

    def forget(self, unfolded_alone: bool = False) -> None:
        """Drops all batches, or only those that are not folded yet."""
        self._latest = None
        self._window.clear()
        if not unfolded_alone:
            self.noted = self.noted[:0]

    def take(self) -> Tensor:
        """Returns the rows of all batches, float64 on the CPU, and drops them."""
        rows = self.folded().cpu().double()
        self.forget()
        return rows


class EvaluationSums:
    """Confusion and mean loss of an evaluation, over the batches of all processes.

    Args:
        num_classes: the size of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = MulticlassConfusionMatrix(num_classes)
        self.mean_loss = MeanMetric(nan_strategy="disable")

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch; called outside the steps, because torchmetrics can't be compiled.

        Args:
            logits: ``(B, num_classes)``.
            labels: int64 ``(B,)``.
        """
        self._to(logits.device)
        self.mean_loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))
        self.matrix.update(logits.argmax(1), labels)

    def compute(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The confusion matrix, int64 ``(num_classes, num_classes)``, and the mean loss."""
        self._to(device)
        return self.matrix.compute(), self.mean_loss.compute()

    def reset(self) -> None:
        """Resets the sums."""
        self.matrix.reset()
        self.mean_loss.reset()

    def _to(self, device: torch.device) -> None:
        self.matrix.to(device)
        self.mean_loss.to(device)


def means(rows: Tensor, module: LightningModule) -> dict[str, float]:
    """``train/loss`` and, if known, ``train/acc`` over the images of all processes.

    Args:
        rows: rows of `StepSums`, float64.
        module: the trained module, for its trainer and device.
    """
    losses, correct, images = rows.T
    sums = torch.stack([losses @ images, correct.sum(), images.sum()])
    if module.trainer.world_size > 1:
        sums = module.trainer.strategy.reduce(sums.float().to(module.device), reduce_op="sum")
    loss, right, total = sums.tolist()
    accuracy = {} if math.isnan(right) else {"train/acc": right / total}
    return {"train/loss": loss / total, **accuracy}


def first_bad(rows: Tensor, trainer: Trainer) -> str:
    """Describes the first batch since the last log entry whose loss is not finite."""
    finite = rows[:, 0].isfinite()
    since = len(rows) - 1 - int(finite.long().argmin()) if not finite.all() else 0
    step = trainer.global_step - since // trainer.accumulate_grad_batches
    batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - since
    epoch, batch = divmod(batch - 1, int(trainer.num_training_batches))
    return f"step {step} (epoch {epoch}, batch {batch})"


class Evaluated(LightningModule):
    """A module with metrics of its logits over the whole set in validations and tests.

    Attributes:
        num_classes: the size of the logits; a subclass sets it.
        confusion: for each name of an evaluation (``val``, ``validate``, ``test``), the last
            confusion matrix: int64 ``(num_classes, num_classes)``, rows true, columns
            predicted.
    """

    num_classes: int

    def __init__(self) -> None:
        super().__init__()
        self.confusion: dict[str, Tensor] = {}
        # In a dict, not as submodules, which would come first in every summary of the model.
        self._evaluations: dict[Stage, EvaluationSums] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `forward` with normalised images, as the data modules give them.

        Integers are refused. Pixels as floats, from 0 to 1 or to 255, look like normalised images:
        their logits are wrong, without an error. `experiments.load` gives a model for pixels.

        Raises:
            TypeError: for images of integers, such as the pixels of a picture.
        """
        if args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            raise TypeError(
                f"{type(self).__name__} expected normalised images, floats (B, 3, 32, 32), got "
                f"{str(args[0].dtype).removeprefix('torch.')}: predict pixels with "
                "experiments.load(CHECKPOINT).predict(images), which normalises them"
            )
        return super().__call__(*args, **kwargs)

    def training_stage(self, images: Tensor) -> tuple[int, ...]:
        """What the cost of a training step depends on: the side of its images, then anything else.

        Args:
            images: a training batch ``(B, 3, H, W)``, as it comes from the data.
        """
        return (images.shape[-1],)

    def flops_of_image(self) -> float | None:
        """The operations of a training step for each image, if the model knows them.

        By default they are counted, see `experiments.monitoring.compute`.
        """
        return None

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
        """Computes the logits ``(B, num_classes)`` for evaluations and predictions."""
        logits: Tensor = self(images)
        return logits

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluated("val").add(outputs, batch[1])

    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to the test metrics."""
        self._evaluated("test").add(outputs, batch[1])

    def _evaluated(self, stage: Stage) -> EvaluationSums:
        if stage not in self._evaluations:
            self._evaluations[stage] = EvaluationSums(self.num_classes)
        return self._evaluations[stage]

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics: as ``val`` in a fit, as ``validate`` in a separate one."""
        self._log_evaluation("val", "validate" if self.trainer.state.fn == "validate" else "val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_evaluation("test", "test")

    def _log_evaluation(self, stage: Stage, name: str) -> None:
        confusion, loss = self._evaluated(stage).compute(self.device)
        accuracy = confusion.trace() / confusion.sum()
        if name == "val" and not loss.isfinite():  # before these weights are kept as the best
            step = self.trainer.global_step
            raise FloatingPointError(f"val/loss is {loss.item()} after step {step}: {DIVERGED}")
        self.log_dict({f"{name}/loss": loss, f"{name}/acc": accuracy}, prog_bar=stage == "val")
        self.confusion[name] = confusion
        self._evaluated(stage).reset()
