"""Removes output and work of Lightning that no one needs.

A step of a small MLP takes 2 ms. In each step, Lightning calls six hooks of every callback and of
the model, and times each call for a profiler, even if the hooks are empty and there is no profiler.
It also checks in each step whether to clip gradients and which arguments ``training_step`` takes.
"""

import contextlib
import logging
import warnings
from contextlib import AbstractContextManager
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import PassThroughProfiler

from experiments.lightning_seam import give_step_arguments, skip_hook
from lightning_modules import Classifier

# Tips; also devices and seed, which are in the run's first line and its record.
_ADVERTISED = ("💡", "TPU available", "GPU available", "HPU available", "Seed set to")
_EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # frozen layers
    "Checkpoint directory .* exists and is not empty",  # because the run's folder holds its record
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
    "The dirpath has changed from",  # because a new run starts from the checkpoint of another
    "Total length of `list` across ranks is zero",  # data.val_size 0
    "It is recommended to use .*sync_dist=True",  # torchmetrics has synchronised them
    "The number of training batches .* is smaller than the logging interval",
    "You requested to overfit but enabled",  # `CIFAR10DataModule` then stops shuffling
)
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def quiet_lightning() -> None:
    """Hides Lightning's advertisements and the messages that this project prints itself."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(
            lambda record: not record.getMessage().startswith(_ADVERTISED)
        )


def silence_expected_warnings() -> None:
    """Hides warnings on things that this project does on purpose."""
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message)


class NoProfiler(PassThroughProfiler):
    """Times nothing, and creates no generator for each action."""

    _NOTHING: AbstractContextManager[None] = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """Returns a context that does nothing."""
        return self._NOTHING


def skip_idle_hooks(trainer: Trainer, model: Classifier) -> None:
    """Makes the trainer skip the hooks of a step that callbacks and model do not override.

    All overridden hooks still run, and a profiler of the user stays.

    Args:
        trainer: with all its callbacks.
        model: the model to train.
    """
    settings: Any = trainer
    callbacks: list[Callback] = settings.callbacks
    for hook in _STEP_HOOKS:
        for owner, base in [
            *((callback, Callback) for callback in callbacks),
            (model, LightningModule),
        ]:
            _skip_if_idle(owner, base, hook)
    if type(settings.profiler) is PassThroughProfiler:
        settings.profiler = NoProfiler()
    if settings.gradient_clip_val is None:
        _skip_if_idle(model, LightningModule, "configure_gradient_clipping")
    give_step_arguments(trainer)  # the arguments of every `Classifier.training_step`


def _skip_if_idle(owner: Any, base: type, hook: str) -> None:
    if getattr(type(owner), hook) is getattr(base, hook) and hook not in vars(owner):
        skip_hook(owner, hook)
