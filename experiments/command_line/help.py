"""The text of ``--help``: the common options of a run, in a few screens."""

from argparse import SUPPRESS, Action
from collections.abc import Sequence

from experiments.command_line.parser_seam import OpenHelpFormatter
from experiments.identity import LEARNING_RATE, LEARNING_RATE_LONG

DESCRIPTION = "Train, test and compare models on CIFAR-10; every run has its folder runs/<name>/."
COMMANDS = {
    "fit": "Train a model, or train it further (--ckpt_path last).",
    "validate": "Evaluate a run's weights on its validation set.",
    "test": "Evaluate a run's weights on the test set.",
    "predict": "Write the classes of the test set, or of a folder of images, as CSV.",
}
_TRAINER_OPTIONS = {
    "accelerator": "cpu, gpu or auto.",
    "strategy": "How devices share the work: auto, or ddp for more than one.",
    "devices": "How many devices, or a list of their numbers.",
    "precision": "32-true, bf16-mixed ...; by default the CNNs take what is fastest here.",
    "logger": "experiments.WandbLogger, W&B offline; with .mode online it uploads; false for none.",
    "callbacks": "Callbacks of Lightning to add, such as EarlyStopping.",
    "max_epochs": "Stop after this many epochs; -1 for no limit.",
    "max_steps": "Stop after this many optimiser steps; -1 for no limit.",
    "val_check_interval": "Validate after N batches (an integer) or this fraction of an epoch.",
    "check_val_every_n_epoch": "Validate after this many epochs; null counts batches over epochs.",
    "log_every_n_steps": "Log training metrics every N steps.",
}
_OPTIONS = {
    **{f"trainer.{name}": text for name, text in _TRAINER_OPTIONS.items()},
    "trainer": "File with options of the trainer.",
    "model": "MLP, NumPyMLP, CNN or FastCNN; its options follow as --model.OPTION.",
    "data": "Options of the data follow as --data.OPTION.",
    "seed_everything": "Seed of weights, batch order and dropout.",
    "ckpt_path": "Weights to start from or to evaluate: best, last (of run --name) or a file.",
    "print_config": "Print the configuration of the other arguments, and exit.",
    "config": "A YAML file of options; repeat it for more files, the last one wins.",
}
SET_BY_SESSION = {"weights_only", "return_predictions", "verbose"}
_HIDDEN = SET_BY_SESSION | {"model.help", "data.help"}  # `closing` shows the last two
_TITLES = {"trainer": "Trainer", "model": "Model", "data": "Data", "ckpt_path": "Weights"}
_EXAMPLES = """
examples:
  python cli.py fit --config configs/mlp.yaml --test_after_fit true
  python cli.py fit --config configs/cnn.yaml --trainer.accelerator gpu
  python cli.py test --name RUN
  python cli.py predict --name RUN --data.predict_dir FOLDER

other commands, each with a --help of its own:
  python cli.py export --name RUN         write a model as an ONNX or torch.export file
  python cli.py compare                   compare runs, also those of other tools
  python cli.py export_runs --to trackio  write runs for trackio, MLflow, W&B, or as Parquet
  python cli.py sweep FILE                search settings on validation
  python cli.py find_lr --config mlp      suggest a learning rate; find_batch_size: a batch size
  python cli.py reproduce --list          the claims of the report
  python cli.py completion bash           complete words at a Tab; also zsh, fish
"""
_MORE = f"""
more:
  --model.help MLP             options of a model (MLP, NumPyMLP, CNN, FastCNN)
  --data.help                  options of the data
  --help_all                   every option, with all of Lightning's Trainer
  --{LEARNING_RATE} X                 short for --{LEARNING_RATE_LONG} X
"""


class ShortHelpFormatter(OpenHelpFormatter):
    """Formats the texts of this module, without types and lists of classes."""

    def text_of(self, option: Action) -> str:
        """The text of this module for an option, if there is one."""
        text = COMMANDS.get(option.dest) or _OPTIONS.get(option.dest)
        if text is None:
            return super().text_of(option)
        plain = isinstance(option.default, str | int | float)
        known = plain and option.default != SUPPRESS
        return text + (" (default: %(default)s)" if known else "")

    def add_argument(self, action: Action) -> None:
        """Adds an option unless it is rare."""
        if not _is_rare(action):
            super().add_argument(action)


class MainHelpFormatter(ShortHelpFormatter):
    """Hides the options of the commands."""

    def add_argument(self, action: Action) -> None:
        """Adds an option unless it belongs to a command."""
        if action.dest not in _OPTIONS:
            super().add_argument(action)


def _is_rare(action: Action) -> bool:
    """Whether only ``--help_all`` shows an option."""
    group, _, key = action.dest.partition(".")
    rare = group == "trainer" and bool(key) and key not in _TRAINER_OPTIONS
    return rare or action.dest in _HIDDEN


def title(actions: Sequence[Action], default: str | None) -> str | None:
    """The title of a group of options, instead of the docstring of a class."""
    groups = [action.dest.partition(".")[0] for action in actions]
    return next((_TITLES[group] for group in groups if group in _TITLES), default)


def closing(of_command: bool) -> str:
    """The text after the options: more help, or examples."""
    return _MORE if of_command else _EXAMPLES
