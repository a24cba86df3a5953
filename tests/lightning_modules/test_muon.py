"""Muon: its directions, its groups, and that it trains."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules import LinearSchedule, Muon
from lightning_modules.muon import orthogonalize


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (64, 24)])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalize(matrix, iterations=5)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert 0.5 < values.min() < values.max() < 1.3
    aligned = (u @ vt * found).sum() / (u @ vt).norm() / found.norm()  # the cosine between them
    assert aligned > 0.97


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (64, 24)])
@pytest.mark.parametrize("iterations", [0, 1, 3, 5])
def test_orthogonalize_is_newton_schulz(shape: tuple[int, int], iterations: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -4, shape[1])  # some singular values are small
    x = matrix.double() / matrix.double().norm()
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalize(matrix, iterations), x.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_orthogonalize_keeps_a_low_rank(rank: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, rank) @ torch.randn(rank, 256)
    found = torch.linalg.svdvals(orthogonalize(matrix, iterations=10))
    assert 0.5 < found[rank - 1] <= found[0] < 1.3
    assert found[rank] < 0.05


def test_orthogonalize_does_not_follow_the_default_dtype() -> None:
    matrix = torch.randn(8, 32)
    expected = orthogonalize(matrix)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(orthogonalize(matrix), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_orthogonalize_does_not_care_for_size() -> None:
    matrix = torch.randn(8, 32)
    torch.testing.assert_close(orthogonalize(1024 * matrix), orthogonalize(matrix))
    assert not orthogonalize(torch.zeros(4, 4)).isnan().any()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
    )


def gradients(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.randn_like(p)


def test_filters_turn_and_keep_their_norm() -> None:
    model = network()
    weight: Any = model[0].weight
    optimizer = Muon(model.parameters(), lr=0.1, momentum=0.0)
    gradients(model)
    gradient = weight.grad
    before = weight.detach() * 8**0.5 / weight.norm()
    optimizer.step()
    expected = before - 0.1 * orthogonalize(gradient.flatten(1)).view_as(weight)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("momentum", "iterations"), [(0.0, 3), (0.6, 3), (0.95, 5)])
def test_filters_follow_the_momentum_of_their_gradients(momentum: float, iterations: int) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 3, 3, 3))
    optimizer = Muon([weight], lr=0.1, momentum=momentum, iterations=iterations)
    buffer = torch.zeros(8, 27)
    for _ in range(3):
        gradient = torch.randn(8, 27)
        weight.grad = gradient.view_as(weight)
        buffer = momentum * buffer + gradient
        direction = orthogonalize(gradient + momentum * buffer, iterations)
        before = weight.detach() * 8**0.5 / weight.norm()
        optimizer.step()
        turned = (before - weight.detach()).flatten(1) / 0.1
        torch.testing.assert_close(turned, direction, rtol=0, atol=1e-5)


def test_the_rest_follows_sgd() -> None:
    ours, theirs = network(), network()
    steps: dict[str, Any] = {
        "head_lr": 0.02,
        "bias_lr": 0.5,
        "sgd_momentum": 0.85,
        "weight_decay": 0.01,
    }
    optimizer = Muon(ours.parameters(), **steps)
    groups = [
        {"params": [theirs[4].weight], "lr": 0.02, "weight_decay": 0.01 / 0.02},
        {
            "params": [theirs[0].bias, *theirs[1].parameters(), theirs[4].bias],
            "lr": 0.5,
            "weight_decay": 0.01 / 0.5,
        },
    ]
    reference = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for _ in range(3):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] /= 2  # a schedule leaves the part by which weights shrink
        gradients(ours)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        reference.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name != "0.weight":
            torch.testing.assert_close(p, q)


def test_parameters_without_gradient_stay() -> None:
    model = network()
    optimizer = Muon(model.parameters())
    gradients(model)
    bias: Any = model[0].bias
    bias.grad = None
    before = bias.detach().clone()
    optimizer.step()
    assert torch.equal(bias, before)


def test_it_learns_and_goes_on_from_its_state() -> None:
    torch.manual_seed(1)
    images, labels = torch.randn(64, 3, 3, 3), torch.arange(64) % 4

    def train(model: nn.Module, optimizer: Muon, steps: int) -> Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss.detach()

    rates: dict[str, Any] = {"lr": 0.1, "head_lr": 0.5, "bias_lr": 0.5}
    whole = network()
    start = F.cross_entropy(whole(images), labels)
    end = train(whole, Muon(whole.parameters(), **rates), 30)
    assert end < start / 3
    first, second = network(), network()
    optimizer = Muon(first.parameters(), **rates)
    train(first, optimizer, 10)
    second.load_state_dict(first.state_dict())
    resumed = Muon(second.parameters(), **rates)
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(train(second, resumed, 20), end)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1},
        {"lr": math.nan},
        {"bias_lr": -0.1},
        {"weight_decay": -1},
        {"momentum": 1.0},
        {"iterations": 0},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Muon's"):
        Muon(network().parameters(), **options)


def test_autocast_does_not_round_the_orthogonal_matrix() -> None:
    matrix = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrix)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(orthogonalize(matrix), expected)


def rates_of(total: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = LinearSchedule(optimizer, total_steps=total, **options)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_linear_schedule_rises_and_falls() -> None:
    assert rates_of(4) == [2.0, 1.5, 1.0, 0.5, 0.0]
    assert rates_of(4, end=0.5) == [2.0, 1.75, 1.5, 1.25, 1.0]
    risen = rates_of(8, warmup=0.5, start=0.2)
    assert risen == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_after_its_end_the_schedule_stays() -> None:
    schedule = LinearSchedule(torch.optim.SGD([torch.zeros(1)], lr=1.0), end=0.25, total_steps=4)
    assert [schedule.factor(step) for step in (4, 5, 40)] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    "options", [{"warmup": 1.0}, {"warmup": -0.1}, {"start": -1.0}, {"end": -1.0}]
)
def test_impossible_schedules_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="LinearSchedule"):
        rates_of(3, **options)


def test_a_resumed_schedule_takes_the_length_of_its_own_fit() -> None:
    def schedule(total: int) -> LinearSchedule:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        made = LinearSchedule(optimizer, total_steps=total)
        optimizer.step()
        return made

    first, longer = schedule(4), schedule(10)
    for _ in range(4):
        first.step()
    longer.load_state_dict(first.state_dict())
    longer.step()
    assert longer.get_last_lr() == [0.5]
