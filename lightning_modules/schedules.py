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
    """Optimiser steps of a whole fit, also with changing gradient accumulation.

    Args:
        trainer: the trainer.
        batches: batches of an epoch; default: the batches of the fit.
        ignore_max_steps: count to the last epoch.

    Returns:
        The number; infinite if the fit has no end.
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
    """Learning rates that rise and fall linearly over all steps of a fit.

    The rate of every group is its initial rate times a factor. The factor rises from ``start`` to 1
    over the fraction ``warmup`` of the steps, then falls to ``end`` at the last step.

    Args:
        optimizer: the optimiser.
        warmup: fraction of the steps for the rise, from 0 to below 1; 0 for no rise.
        start: first factor of the rise.
        end: last factor.
        total_steps: total number of steps; null for the steps of the fit, set by `Classifier`.

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
        """Restores a state, but keeps the number of steps of this fit, which may be longer."""
        super().load_state_dict({**state_dict, "total_steps": self.total_steps})

    def factor(self, step: int) -> float:
        """The factor after a number of steps; after the last step it stays constant."""
        part = min(step / (self.total_steps or math.inf), 1.0)
        if part < self.warmup:
            return self.start + (1 - self.start) * part / self.warmup
        return self.end + (1 - self.end) * (1 - part) / (1 - self.warmup)

    def get_lr(self) -> list[Any]:
        """The rates of the next step."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


def steps_to_schedule(trainer: Trainer | None) -> int | None:
    """Optimiser steps of the whole fit, for a schedule; None without a trainer.

    Raises:
        ValueError: if the fit has no end.
    """
    steps = steps_of_fit(trainer) if trainer else None
    if steps == math.inf:
        raise ValueError(
            "a schedule over the whole fit needs its end: set --trainer.max_steps or max_epochs"
        )
    return None if steps is None else int(steps)
