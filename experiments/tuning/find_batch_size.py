"""Finds a batch size: ``python cli.py find_batch_size --config cnn``.

It takes the flags of ``fit``. It trains for some seconds with each power of two, until the speed
grows no more or the memory of the device is full. It suggests the smallest batch that is within 5 %
of the highest speed, and keeps nothing but the plot. Another batch size needs another learning
rate: find it with ``find_lr``.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error

from experiments.analysis import plots
from experiments.tuning.finder import Finder, find, finder_parser

_WARMUP = 3  # steps before the clock starts
_SECONDS = 1.0  # of a measurement
_FEWEST, _MOST = 3, 100_000  # steps of a measurement
_GAIN = 1.05  # a doubling that gains less is no gain
_NEAR = 0.95  # of the highest speed


class Speed(Callback):
    """Measures images per second by the median step, and ends the training after a second.

    Attributes:
        images_per_s: the speed of the last training.
    """

    def __init__(self) -> None:
        self.images_per_s = 0.0
        self._times: list[float] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Notes the time of a step."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._times.append(time.perf_counter())
        steps = np.diff(self._times[_WARMUP:])
        if len(steps) >= _FEWEST and steps.sum() >= _SECONDS:
            self.images_per_s = len(batch[1]) / float(np.median(steps))
            trainer.should_stop = True


class SizeFinder(Finder):
    """Finds a batch size."""

    def measure(self) -> None:
        """Trains with growing batches, prints the flag and draws the speed.

        Raises:
            ValueError: if not even the smallest batch can be trained.
        """
        speeds, end = self._speeds()
        if not speeds:
            raise ValueError(f"no size can be measured, because {end}: pass a smaller --min_size")
        highest = max(speeds.values())
        found = min(size for size, speed in speeds.items() if speed >= _NEAR * highest)
        figure, ax = self.draw("speed of training by batch size")
        ax.plot([*speeds], [*speeds.values()], marker="o")
        ax.axvline(found, color="tab:red", linestyle="--", label=f"smallest near the top: {found}")
        ax.set(xlabel="batch size (--data.batch_size)", ylabel="images/s", ylim=(0, None))
        ax.set_xticks([*speeds])
        ax.legend()
        plots.save(figure, self.options.plot)
        print(f"{end}: see {self.options.plot}")
        print(
            f"{speeds[found]:,.0f} images/s, at most {highest:,.0f}: --data.batch_size {found} "
            "(then find the learning rate anew with find_lr)"
        )

    def _speeds(self) -> tuple[dict[int, float], str]:
        """Images per second by batch size, and why the search ended."""
        speeds: dict[int, float] = {}
        size, idle = self.options.min_size, 0
        while size <= len(self.datamodule.train_set.labels):
            self.datamodule.batch_size = size
            speed = Speed()
            try:
                self.train(speed)
            except RuntimeError as error:
                if not is_oom_error(error):
                    raise
                garbage_collection_cuda()
                return speeds, f"a batch of {size} does not fit into the memory"
            print(f"  {size:>6}  {speed.images_per_s:>9,.0f} images/s", flush=True)
            best = max(speeds.values(), default=0.0)
            idle = 0 if speed.images_per_s > _GAIN * best else idle + 1
            speeds[size] = speed.images_per_s
            if idle == 2:
                return speeds, "larger batches are not faster"
            size *= 2
        return speeds, f"there are {len(self.datamodule.train_set.labels):,} training images"


def main(args: list[str] | None = None) -> None:
    """Finds a batch size.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    known = parser()
    options, words = known.parse_known_args(args)
    if options.min_size < 1:
        known.error(f"--min_size must be at least 1, got {options.min_size}")
    find(SizeFinder, options, words, _MOST)


def parser() -> argparse.ArgumentParser:
    """The options; others are those of ``fit``."""
    known = finder_parser("find_batch_size", __doc__)
    known.add_argument("--min_size", type=int, default=16, help="first size; default: 16")
    return known


if __name__ == "__main__":
    main()
