"""What Lightning says and does for nobody, left out.

A step of a small MLP takes 2 ms. Lightning calls six hooks of every callback and of the model in
each, and times each call for a profiler, whether or not there is anything to call or to time. It
asks each time whether gradients are to be clipped and which arguments ``training_step`` takes.
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

# Tips; and devices and seed, which the run's first line and its record name.
_ADVERTISED = ("💡", "TPU available", "GPU available", "HPU available", "Seed set to")
_EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # frozen layers
    "Checkpoint directory .* exists and is not empty",  # the run's folder holds its record
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.14
    "The dirpath has changed from",  # a new run that starts from another's checkpoint
    "Total length of `list` across ranks is zero",  # data.val_size 0
    "It is recommended to use .*sync_dist=True",  # torchmetrics has synchronised them
    "The number of training batches .* is smaller than the logging interval",
    "You requested to overfit but enabled",  # `CIFAR10DataModule` shuffles no more then
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
    """Keeps Lightning's advertisements, and what this project says itself, out of the output."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(
            lambda record: not record.getMessage().startswith(_ADVERTISED)
        )


def silence_expected_warnings() -> None:
    """Leaves out warnings of what this project does on purpose."""
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message)


class NoProfiler(PassThroughProfiler):
    """Times nothing, without a generator for every action that it does not time."""

    _NOTHING: AbstractContextManager[None] = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """Returns a context that does nothing."""
        return self._NOTHING


def skip_idle_hooks(trainer: Trainer, model: Classifier) -> None:
    """Lets the trainer pass over the hooks of a step that callbacks and model don't override.

    Nothing is left out that anyone wrote, and a profiler that was asked for stays.

    Args:
        trainer: with all of its callbacks.
        model: the model that it will train.
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
    give_step_arguments(trainer)  # those of every `Classifier.training_step`


def _skip_if_idle(owner: Any, base: type, hook: str) -> None:
    if getattr(type(owner), hook) is getattr(base, hook) and hook not in vars(owner):
        skip_hook(owner, hook)
