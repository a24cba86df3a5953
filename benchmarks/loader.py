"""Cost of an augmented epoch of 50,000 images: this project's batch source and torchvision's.

    python -m benchmarks.loader

All do the same work: random crop after padding, flip, normalise, batches of 512. Figures are
core-seconds on one thread: the processor time of this process and its workers, with the start of
the workers. On shared cores this varies less than wall time.

- ours: `datamodules.BatchSource` over `datamodules.AugmentedImages`, normalised by the data module.
- torchvision: PIL images one by one, as `torchvision.datasets.CIFAR10` returns them, through
  ``RandomCrop(32, 4)``, ``RandomHorizontalFlip``, ``ToTensor`` and ``Normalize``, in a
  ``DataLoader`` with 0 or 2 workers.

The images are random, because their content does not affect the cost.
"""

import argparse
import resource
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from benchmarks.reports import write_report
from datamodules import AugmentedImages, BatchSource
from experiments.command_line.config_files import expand_home

RESULT = Path(__file__).resolve().parent / "results" / "loader.json"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 512


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images as `torchvision.datasets.CIFAR10` returns them."""

    def __init__(self, images: np.ndarray[Any, Any], labels: list[int]) -> None:
        self.images = images
        self.labels = labels
        self.transform = Compose(
            [RandomCrop(32, 4), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Augments one image."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def ours(images: Tensor, labels: Tensor) -> Callable[[], Iterable[Any]]:
    """An epoch from memory."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    augmented = AugmentedImages(images, crop=4, flip="random")
    source = BatchSource(augmented, labels, batch_size=BATCH, shuffle_seed=0)

    def epoch() -> Iterable[Any]:
        source.sampler.set_epoch(source.epoch + 1)
        for batch, targets in source:
            yield batch.float().sub_(mean).div_(std), targets

    return epoch


def core_seconds() -> float:
    """Processor time of this process and its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cost(epoch: Callable[[], Iterable[Any]]) -> float:
    """Core-seconds of an epoch."""
    before = core_seconds()
    for _ in epoch():
        pass
    return core_seconds() - before


def main(args: list[str] | None = None) -> None:
    """Measures and writes the result with its date, hardware and versions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=expand_home, default=RESULT)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (options.images, 3, 32, 32), np.uint8)
    labels = torch.zeros(options.images, dtype=torch.long)
    dataset = PILImages(pixels.transpose(0, 2, 3, 1).copy(), labels.tolist())
    ways: dict[str, Callable[[], Iterable[Any]]] = {"ours": ours(torch.from_numpy(pixels), labels)}
    for workers in (0, 2):
        loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
        ways[f"torchvision, {workers} workers"] = loader.__iter__
    cost(ways["ours"])  # pads the images, once
    rounds = [{name: cost(way) for name, way in ways.items()} for _ in range(options.repeats)]
    medians = {name: round(statistics.median(r[name] for r in rounds), 3) for name in ways}
    for name, seconds in medians.items():
        print(f"{name:>24} {seconds:7.3f} core-s")
    write_report(options.output, {"images": options.images, "core_seconds_per_epoch": medians})


if __name__ == "__main__":
    main()
