"""What Lightning says for nobody, left out."""

import logging
import warnings

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
