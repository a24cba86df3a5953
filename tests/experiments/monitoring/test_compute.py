"""What a training computes: counted by shapes, the same for a resumed run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.monitoring.compute import ComputeCount, training_flops
from lightning_modules import CNN, MLP, FastCNN, NumPyMLP
from tests.conftest import Cli

# Two operations a multiply-add, in three products a layer; the pixels get no gradient.
DENSE = 2 * (2 * 3072 * 100) + 3 * (2 * 100 * 10)


class Peeks(MLP):
    """A network that needs the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1)) * images.max().item()
        return logits


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_products_of_matrices_count(norm: Any) -> None:
    assert training_flops(MLP(norm=norm).train(), 32) == DENSE


def test_numpy_computes_the_gradient_of_the_pixels_too() -> None:
    assert training_flops(NumPyMLP(), 32) == DENSE + 2 * 3072 * 100


def test_convolutions_count() -> None:
    class One(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.conv(images).mean((2, 3))
            return logits

    assert training_flops(One(), 32) == 2 * (2 * 32 * 32 * 3 * 9 * 10)


def test_stages_of_a_training_cost_differently() -> None:
    model, count = FastCNN(small_size=24, small_until=0.5).train(), ComputeCount()
    images = torch.zeros(5, 3, 32, 32)
    count.add(model, images)
    small = count.flops
    model._size, model._bias_is_frozen = 32, True
    count.add(model, images, processes=2)
    assert small is not None
    assert count.flops == small + 10 * (training_flops(model, 32) or 0)
    assert small / 5 < (training_flops(model, 32) or 0)


def test_counting_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = CNN().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert training_flops(model, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_that_cannot_be_counted_trains_on() -> None:
    count = ComputeCount()
    count.add(Peeks(), torch.zeros(2, 3, 32, 32))
    count.add(MLP(), torch.zeros(2, 3, 32, 32))
    assert count.flops is None


def test_a_run_holds_its_compute(fit: Cli) -> None:
    run = fit("--model=MLP", "--data.batch_size=50")
    assert run.summary["train/flops"] == 4 * 50 * DENSE
