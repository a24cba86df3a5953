"""Finds a learning rate: ``python cli.py find_lr --config mlp``.

    python cli.py find_lr --config cnn --steps 100 --max_lr 1

It takes the flags of ``fit``. It trains with a rate that grows from step to step, and suggests the
rate at which the loss falls fastest [1]. It keeps nothing but the plot. If an optimiser has several
rates, as Muon has, it changes the one of --model.lr.

[1] L. N. Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.
"""

import argparse
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy.ndimage import gaussian_filter1d

from experiments.analysis import plots
from experiments.tuning.finder import Finder, find, finder_parser

_MOST_STEPS = 100_000
_DIVERGED = 4.0  # times the smallest loss: the ramp ends
_CLEAR = 2.0  # times the noise of a batch: a smaller fall is none
_SMOOTHED = 0.025  # standard deviation of the smoothing, as a part of all steps

Floats = npt.NDArray[np.float64]


class Ramp(Callback):
    """Trains each step with the next rate, and keeps its loss.

    Args:
        rates: one for each step.

    Attributes:
        losses: of the steps so far.
    """

    def __init__(self, rates: Floats) -> None:
        self.rates = rates
        self.losses: list[float] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the rate of the parameters that have the rate of the flag."""
        optimizer = trainer.optimizers[0]
        if not self.losses:
            asked = optimizer.defaults["lr"]
            self._groups = [g for g in optimizer.param_groups if g["lr"] == asked]
        for group in self._groups:
            group["lr"] = float(self.rates[len(self.losses)])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the loss; ends the ramp if the training diverges."""
        if not outputs:
            raise ValueError("training_step returns no loss, so that there is nothing to measure")
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if math.isfinite(loss):
            self.losses.append(loss)
        over = not math.isfinite(loss) or loss > _DIVERGED * min(self.losses)
        if over or len(self.losses) == len(self.rates):
            trainer.should_stop = True


def steepest(rates: Floats, losses: Floats) -> float | None:
    """The rate at which the smoothed loss falls fastest over the logarithm of the rate.

    Args:
        rates: ascending.
        losses: one for each rate.

    Returns:
        The rate; None if the loss does not clearly fall.
    """
    smooth = smoothed(losses)
    lowest = int(smooth.argmin())
    noise = float(np.std((losses - smooth)[: lowest + 1]))
    if lowest < 2 or smooth[0] - smooth[lowest] < _CLEAR * noise:
        return None
    slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
    return float(rates[int(slopes.argmin())])


def smoothed(losses: Floats) -> Floats:
    """Losses without the noise of single batches."""
    smooth: Floats = gaussian_filter1d(losses, max(1.0, _SMOOTHED * len(losses)), mode="nearest")
    return smooth


class RateFinder(Finder):
    """Finds a learning rate."""

    def measure(self) -> None:
        """Trains with growing rates, prints the flag and draws the loss.

        Raises:
            ValueError: if the loss does not fall between the rates.
        """
        options = self.options
        ramp = Ramp(np.geomspace(options.min_lr, options.max_lr, options.steps))
        self.train(ramp)
        losses = np.asarray(ramp.losses)
        rates = ramp.rates[: len(losses)]
        found = steepest(rates, losses) if len(losses) > 2 else None
        if found is None:
            raise ValueError(
                f"the loss does not fall between {options.min_lr:g} and {options.max_lr:g} "
                f"({len(losses)} steps): pass other --min_lr and --max_lr, or more --steps"
            )
        self._draw(rates, losses, found)
        print(f"{len(losses)} steps from {rates[0]:.2g} to {rates[-1]:.2g}: see {options.plot}")
        print(f"the loss falls fastest at: --model.lr {found:.2g}")

    def _draw(self, rates: Floats, losses: Floats, found: float) -> None:
        smoothing = self.model.label_smoothing
        figure, ax = self.draw("training loss while the learning rate grows")
        ax.plot(rates, losses, alpha=0.4, label="of a batch")
        ax.plot(rates, smoothed(losses), label="smoothed")
        ax.axvline(found, color="tab:red", linestyle="--", label=f"falls fastest: {found:.2g}")
        of = f" (label smoothing {smoothing:g})" if smoothing else ""
        ax.set(xlabel="learning rate (--model.lr)", ylabel=f"training loss{of}")
        low, high = losses.min(), losses[:5].max()
        ax.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))  # not the diverged end
        ax.legend()
        plots.save(figure, self.options.plot)


def main(args: list[str] | None = None) -> None:
    """Finds a learning rate.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    known = parser()
    options, words = known.parse_known_args(args)
    if not 0 < options.min_lr < options.max_lr < math.inf:
        known.error(f"--min_lr must be positive and below --max_lr, got {options.min_lr}, "
                    f"{options.max_lr}")  # fmt: skip
    if not 10 <= options.steps <= _MOST_STEPS:
        known.error(f"--steps must be 10 to {_MOST_STEPS}, got {options.steps}")
    find(RateFinder, options, words, options.steps + 1)


def parser() -> argparse.ArgumentParser:
    """The options; others are those of ``fit``."""
    known = finder_parser("find_lr", __doc__)
    known.add_argument("--min_lr", type=float, default=1e-6, help="first rate; default: 1e-6")
    known.add_argument("--max_lr", type=float, default=10.0, help="last rate; default: 10")
    known.add_argument("--steps", type=int, default=200, help="number of rates; default: 200")
    return known


if __name__ == "__main__":
    main()
