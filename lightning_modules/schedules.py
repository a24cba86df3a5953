"""Learning-rate schedules over a whole fit."""

import math
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def steps_of_fit(
    trainer: Trainer, batches: int | None = None, ignore_max_steps: bool = False
) -> float:
    """Optimiser steps of a whole fit, also where the accumulation of gradients changes in it.

    Args:
        trainer: the trainer.
        batches: of an epoch; default: those of a fit that is set up.
        ignore_max_steps: count to the last epoch.

    Returns:
        The number; infinite without an end.
    """
    limit = math.inf if ignore_max_steps or trainer.max_steps < 0 else trainer.max_steps
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return limit
    if batches is None and trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    of_epoch = trainer.num_training_batches if batches is None else batches
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    plans = [c for c in callbacks if isinstance(c, GradientAccumulationScheduler)]
    accumulated = (
        plans[0].get_accumulate_grad_batches(epoch) if plans else trainer.accumulate_grad_batches
        for epoch in range(trainer.max_epochs)
    )
    return min(limit, sum(math.ceil(of_epoch / number) for number in accumulated))


class LinearSchedule(LRScheduler):
    """Learning rates that rise and fall in straight lines, over all steps of a fit.

    Every group's rate is its own initial rate times a factor: from ``start`` to 1 over the first
    part ``warmup`` of the steps, then to ``end`` at the last one.

    Args:
        optimizer: whose rates to set.
        warmup: part of the steps that the rise takes, from 0 to below 1; 0 for none.
        start: first factor, where there is a rise.
        end: last factor.
        total_steps: steps of the whole; null for those of the fit, which `Classifier` fills in.

    Raises:
        ValueError: if ``warmup`` is not in [0, 1), or a factor negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.0,
        start: float = 0.2,
        end: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"LinearSchedule's warmup must be in [0, 1), got {warmup}")
        if start < 0 or end < 0:
            raise ValueError(f"LinearSchedule's factors must not be negative: {start}, {end}")
        self.warmup = warmup
        self.start = start
        self.end = end
        self.total_steps = total_steps
        super().__init__(optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, over as many steps as this fit has: it may be the longer one."""
        super().load_state_dict({**state_dict, "total_steps": self.total_steps})

    def factor(self, step: int) -> float:
        """The factor after a number of steps; that of the last step from then on."""
        part = min(step / (self.total_steps or math.inf), 1.0)
        if part < self.warmup:
            return self.start + (1 - self.start) * part / self.warmup
        return self.end + (1 - self.end) * (1 - part) / (1 - self.warmup)

    def get_lr(self) -> list[Any]:
        """The rates of the next step."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


def steps_to_schedule(trainer: Trainer | None) -> int | None:
    """Optimiser steps of the whole fit, for a schedule over it; None before there is a trainer.

    Raises:
        ValueError: if the fit has no end.
    """
    steps = steps_of_fit(trainer) if trainer else None
    if steps == math.inf:
        raise ValueError(
            "a schedule over the whole fit needs its end: set --trainer.max_steps or max_epochs"
        )
    return None if steps is None else int(steps)
