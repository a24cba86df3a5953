"""What the finders of a learning rate and of a batch size share."""

import argparse
import functools
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from pytorch_lightning import Callback

from experiments.analysis import plots
from experiments.command_line.config_files import expand_home
from experiments.command_line.interface import CIFAR10CLI, run
from experiments.command_line.parsing import fail, user_errors
from experiments.errors import OneLineParser, UsageError
from experiments.identity import experiment_of, flags_of
from experiments.session.preparation import prepare
from experiments.session.quiet import silence_expected_warnings

# What a fit keeps, prints and watches, and what ends it, is left out.
_FLAGS = [
    *("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--test_after_fit=false"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.callbacks=null", "--trainer.limit_val_batches=0", "--trainer.max_time=null"),
    *("--trainer.max_epochs=-1", "--trainer.min_steps=null", "--trainer.min_epochs=null"),
    # The classifier ends a fit at a log entry with a loss that is not finite; a finder goes on.
    *("--trainer.log_every_n_steps=1000000000", "--trainer.fast_dev_run=false"),
]
_WITHOUT = {"ckpt_path", "resume", "name", "overwrite"}


class Finder(CIFAR10CLI):
    """Builds data, model and trainer as ``fit`` does, and then measures; it keeps no run.

    Args:
        options: of the finder.
        *args: see `CIFAR10CLI`.
        **kwargs: see `CIFAR10CLI`.
    """

    def __init__(self, *args: Any, options: argparse.Namespace, **kwargs: Any) -> None:
        self.options = options
        super().__init__(*args, **kwargs)

    def run_command(self, command: str) -> None:
        """Checks everything that a fit checks, and measures."""
        self.model.lr_scheduler = None
        with user_errors(), warnings.catch_warnings():
            silence_expected_warnings()
            if self.trainer.world_size > 1:
                raise ValueError("a finder measures one device: pass --trainer.devices 1")
            prepare(self, command, self.experiment)
            self.measure()

    def train(self, callback: Callback) -> None:
        """Trains until a callback ends it."""
        trainer = self.instantiate_trainer()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(callback)
        trainer.fit(self.model, datamodule=self.datamodule)

    def draw(self, title: str) -> tuple[Figure, Axes]:
        """A figure for `plots.save`, with a logarithmic horizontal axis in plain numbers."""
        figure, (ax,) = plots.panels(1, f"{self.options.of}: {title}")
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        return figure, ax

    @abstractmethod
    def measure(self) -> None:
        """Trains for some seconds, prints a flag and draws a plot.

        Raises:
            ValueError: if there is nothing to suggest.
        """


def finder_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options of a finder; unknown ones are those of ``fit``."""
    found = OneLineParser(
        prog=f"cli.py {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--plot", type=expand_home, default=Path(f"{program}.png"), help="a PNG")
    return found


def find(kind: type[Finder], options: argparse.Namespace, words: Sequence[str], steps: int) -> None:
    """Runs a finder.

    Args:
        kind: which.
        options: its options.
        words: flags of ``fit``.
        steps: most optimiser steps of one training.
    """
    try:
        with user_errors():
            _check(options, words)
            options.of = experiment_of(["fit", *words])
    except UsageError as error:
        fail(error)
    arguments = ["fit", *words, *_FLAGS, f"--trainer.max_steps={steps}"]
    run(arguments, functools.partial(kind, options=options))


def _check(options: argparse.Namespace, words: Sequence[str]) -> None:
    plot: Path = options.plot
    if not plot.parent.is_dir() or plot.is_dir() or plot.suffix.lower() != ".png":
        raise ValueError(f"--plot must name a PNG file in a folder that exists: {plot}")
    if wrong := sorted(_WITHOUT & {key for key, _ in flags_of(words)}):
        raise ValueError(f"leave --{wrong[0]} out: a finder keeps no run")
