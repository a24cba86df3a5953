"""Callbacks that measure a training for the report's figures; nothing is selected by them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import CIFAR10DataModule
from experiments.monitoring.callbacks import datamodule_of
from lightning_modules import Classifier

_ACTIVATIONS = (nn.ELU, nn.ReLU, nn.Tanh)
_IMAGES = 1000  # number of images for the activations


class CurveOnTest(Callback):
    """Logs loss and accuracy on the test set during a fit, as the report's figures show them.

    It logs ``test_curve/loss`` and ``test_curve/acc`` every ``trainer.val_check_interval`` steps.
    No checkpoint, schedule or stop may depend on them. So use it only if the result is the last
    weights after a fixed number of steps, as in ``configs/ablations/protocol.yaml``.

    Raises:
        ValueError: with several processes, with a validation split (it would select checkpoints),
            or if the interval isn't a number of steps.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses settings for which the curve can't be measured."""
        every = trainer.val_check_interval
        if stage == "fit" and not isinstance(every, int):
            raise ValueError(f"CurveOnTest: trainer.val_check_interval must be steps, got {every}")
        if stage == "fit" and datamodule_of(trainer).val_size:
            raise ValueError("CurveOnTest: a checkpoint would be chosen; set --data.val_size 0")
        if trainer.world_size > 1:
            raise ValueError("CurveOnTest evaluates in one process: run with --trainer.devices 1")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates at the interval."""
        if trainer.global_step % trainer.val_check_interval == 0:
            assert isinstance(pl_module, Classifier)
            figures = evaluate(trainer, pl_module, datamodule_of(trainer))
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step)


def evaluate(trainer: Trainer, model: Classifier, data: CIFAR10DataModule) -> dict[str, float]:
    """Mean loss and accuracy of a model on the test set, in the trainer's precision."""
    loss, correct, images = 0.0, 0, 0
    with _in_evaluation(model), trainer.precision_plugin.forward_context():
        for batch in data.test_dataloader():
            inputs, labels = data.on_after_batch_transfer(batch, 0)
            logits = model.evaluate(inputs).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            images += len(labels)
    return {"test_curve/loss": loss / images, "test_curve/acc": correct / images}


class ActivationStatistics(Callback):
    """Logs the outputs and derivatives of each activation function, before and after a fit.

    For the k-th activation, on the first 1,000 training images: ``activations/k/mean`` and
    ``activations/k/std`` of its outputs over images and units, and ``activations/k/gradient``,
    the mean of its derivative; at step 0 and after the last.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the initial network."""
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the trained network."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, model: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        images = datamodule_of(trainer).training_sample(_IMAGES).to(model.device)
        figures = activation_statistics(model, images)
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)


def activation_statistics(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Mean, standard deviation and mean derivative of every activation of a model.

    Args:
        model: its ELU, ReLU and tanh modules are measured, in the order in which they are called.
        images: float ``(B, 3, 32, 32)``.

    Returns:
        ``activations/k/mean``, ``/std`` and ``/gradient``, k from 1.
    """
    figures: dict[str, float] = {}
    modules = [module for module in model.modules() if isinstance(module, _ACTIVATIONS)]

    def measure(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        with torch.enable_grad():
            x = inputs[0].detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(type(module).forward(module, x).sum(), x)
        name = f"activations/{len(figures) // 3 + 1}"
        figures[f"{name}/mean"] = output.mean().item()
        figures[f"{name}/std"] = output.std().item()
        figures[f"{name}/gradient"] = slope.mean().item()

    hooks = [module.register_forward_hook(measure) for module in modules]
    try:
        with _in_evaluation(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return figures


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the previous mode at the end."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
