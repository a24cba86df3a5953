"""Counts the floating-point operations of a training, without computing anything."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.classifier import Classifier

_LOGGING = ("log", "log_dict")
_IMAGES = 2  # batch norm needs more than one value per channel


class ComputeCount:
    """The operations of a fit so far: two for each multiply-add of matrices and convolutions.

    The cost of an image is counted once for each stage of a training
    (`Classifier.training_stage`), on tensors that have a shape but no values.

    Attributes:
        flops: number of operations; None if the network can't be counted.
        seconds: time that the counting itself took.
    """

    def __init__(self) -> None:
        self.flops: float | None = 0.0
        self.seconds = 0.0
        self._of_image: dict[tuple[int, ...], float | None] = {}

    def add(self, model: Classifier, images: Tensor, processes: int = 1) -> None:
        """Adds a training step.

        Args:
            model: the model, in training mode.
            images: its batch ``(B, 3, H, W)``.
            processes: number of processes that trained such a batch.
        """
        stage = model.training_stage(images)
        if stage not in self._of_image:
            started = time.perf_counter()
            self._of_image[stage] = training_flops(model, stage[0])
            self.seconds += time.perf_counter() - started
        cost = self._of_image[stage]
        if self.flops is not None:
            self.flops = None if cost is None else self.flops + cost * len(images) * processes


def training_flops(model: Classifier, size: int) -> float | None:
    """Counts the operations of forward and backward pass for one training image.

    Args:
        model: the model, in training mode.
        size: side of the image in pixels.

    Returns:
        The number; None for a network that needs the values of its images.
    """
    known = model.flops_of_image()
    if known is not None:
        return known
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in state.items()
    }
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    images = torch.empty(_IMAGES, 3, size, size, device="meta", dtype=dtype)
    labels = torch.empty(_IMAGES, device="meta", dtype=torch.long)
    counter = FlopCounterMode(display=False)
    try:
        # A network's own random numbers and a compiler must not notice.
        with (
            torch.random.fork_rng([]),
            torch.compiler.set_stance("force_eager"),
            _logging_nothing(model),
            counter,
        ):
            logits = functional_call(model, shapes, (images,))
            F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    except Exception:
        return None
    return counter.get_total_flops() / _IMAGES


@contextmanager
def _logging_nothing(model: Classifier) -> Iterator[None]:
    """Lets the model log nothing: its tensors have no values."""
    own = vars(model)
    hidden = {name: own.pop(name) for name in _LOGGING if name in own}
    own.update(dict.fromkeys(_LOGGING, _nothing))
    try:
        yield
    finally:
        for name in _LOGGING:
            del own[name]
        own.update(hidden)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for a method that logs."""
