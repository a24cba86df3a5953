"""Checks a fit of a sweep and ends before it trains; nothing is written."""

from typing import Any

from experiments.command_line.interface import CIFAR10CLI
from experiments.command_line.interface import run as run_command_line
from experiments.command_line.parsing import user_errors
from experiments.session.checks import ends_before_validation
from experiments.session.preparation import prepare


class CheckedFit(CIFAR10CLI):
    """The command line, up to the point where a run would get its folder."""

    def run_command(self, command: str) -> None:
        """Checks everything that a fit checks, and that it will be validated."""
        with user_errors():
            trainer: Any = self.trainer
            prepare(self, command, self.experiment)
            if not trainer.limit_val_batches:
                raise ValueError("trainer.limit_val_batches is 0: a sweep needs validation")
            if too_short := ends_before_validation(trainer, self.datamodule):
                raise ValueError(
                    f"{too_short}, and a sweep needs one: lower --trainer.val_check_interval, or "
                    "train longer"
                )


def run() -> None:
    """Checks the command of this process, and exits with its status if that is not 0."""
    run_command_line(kind=CheckedFit)
