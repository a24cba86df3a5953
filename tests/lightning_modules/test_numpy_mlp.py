"""The NumPy network against the same network under autograd, and its place in Lightning."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from custom_ops import numpy_ops
from datamodules import BatchSource
from lightning_modules import MLP, NumPyMLP

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10
WIDTHS: list[list[int]] = [[], [20], [20, 10, 15]]
DESCENT = partial(SGD, lr=0.1)


def pair(widths: list[int], optimizer: Any = DESCENT) -> tuple[NumPyMLP, MLP]:
    """A NumPy network and an autograd network with the same weights."""
    torch.manual_seed(0)
    ours = NumPyMLP(hidden_units=widths, weight_std=0.1, optimizer=optimizer)
    reference = MLP(hidden_units=widths, optimizer=optimizer)
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
            theirs.copy_(mine)
    return ours, reference


def fit(model: NumPyMLP | MLP, steps: int, **options: Any) -> list[Tensor]:
    """Trains on the images; returns the parameters."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, BatchSource(IMAGES, LABELS, batch_size=4))
    assert trainer.global_step == steps
    return [parameter.detach() for parameter in model.parameters()]


def backward(model: NumPyMLP, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """One training step whose optimiser does nothing; returns the loss."""
    idle = SimpleNamespace(step=lambda: None)
    monkeypatch.setattr(model, "optimizers", lambda: idle)
    monkeypatch.setattr(model, "lr_schedulers", lambda: None)
    return model.training_step((IMAGES, LABELS), 0)


@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_equal_autograds(widths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = pair(widths)
    loss = F.cross_entropy(reference(IMAGES), LABELS)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(backward(ours, monkeypatch), loss.detach())
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        error = (mine.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-5


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.05), partial(Adam, lr=1e-3, eps=1e-4)])
def test_training_equals_autograds(
    widths: list[int], steps: int, optimizer: partial[Optimizer]
) -> None:
    ours, reference = pair(widths, optimizer)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    after, expected = fit(ours, steps), fit(reference, steps)
    for start, mine, theirs in zip(before, after, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.equal(mine, start)


def test_autograd_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair([20])
    loss = backward(model, monkeypatch)
    assert not loss.requires_grad
    assert not model(IMAGES).requires_grad
    assert not model(IMAGES.clone().requires_grad_()).requires_grad


def loaded(model: NumPyMLP) -> NumPyMLP:
    fresh = NumPyMLP(hidden_units=[20])
    fresh(IMAGES)  # has run with its own weights before
    fresh.load_state_dict(model.state_dict())
    return fresh


def assigned(model: NumPyMLP) -> NumPyMLP:
    fresh = NumPyMLP(hidden_units=[20])
    fresh.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return fresh


@pytest.mark.parametrize(
    "clone", [loaded, assigned, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_copy_computes_with_its_own_weights(clone: Any) -> None:
    model, _ = pair([20])
    before = model(IMAGES)
    twin = clone(model)
    assert torch.equal(twin(IMAGES), before)
    fit(twin, 3)
    assert torch.equal(model(IMAGES), before)  # nothing is shared
    assert not torch.equal(twin(IMAGES), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(IMAGES).any()


def test_parameters_are_the_networks_of_the_same_widths() -> None:
    model = NumPyMLP()
    assert sum(parameter.numel() for parameter in model.parameters()) == 308_310
    weight, bias, *_ = model.parameters()
    assert weight.std().item() == pytest.approx(1e-4, rel=0.05)
    assert not bias.any()


def test_the_mathematics_is_numpy_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in (numpy_ops.Linear, numpy_ops.ELU, numpy_ops.SoftmaxCrossEntropy):
        for name in ("forward", "backward"):
            real, label = getattr(kind, name), f"{kind.__name__}.{name}"

            def spy(self: Any, *args: Any, real: Any = real, label: str = label) -> Any:
                calls.append(label)
                return real(self, *args)

            monkeypatch.setattr(kind, name, spy)
    backward(NumPyMLP(hidden_units=[20]), monkeypatch)
    forward = ["Linear.forward", "ELU.forward", "Linear.forward"]
    loss = ["SoftmaxCrossEntropy.forward", "SoftmaxCrossEntropy.backward"]
    assert calls == [*forward, *loss, "Linear.backward", "ELU.backward", "Linear.backward"]


def test_other_devices_are_refused() -> None:
    model = NumPyMLP(hidden_units=[])
    model.trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=SimpleNamespace(root_device=torch.device("cuda", 0)), barebones=False
    )
    with pytest.raises(ValueError, match=r"--trainer.accelerator cpu$"):
        model.setup("fit")


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_other_precisions_are_refused(precision: str) -> None:
    with pytest.raises(ValueError, match=r"leave --trainer.precision at 32-true$"):
        fit(NumPyMLP(hidden_units=[]), 1, precision=precision)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hidden_units": [0]}, r"hidden_units must be positive widths, got \[0\]"),
        ({"weight_std": -1.0}, "weight_std must not be negative, got -1.0"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        NumPyMLP(**options)


@pytest.mark.parametrize(
    "options",
    [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1.0}, {"precision": "bf16-mixed"}],
)
def test_what_numpy_does_not_do_is_refused(options: dict[str, Any]) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    (name,) = options
    with pytest.raises(ValueError, match=f"leave --trainer.{name}"):
        NumPyMLP(hidden_units=[2]).check_trainer(trainer)


def test_processes_take_the_mean_of_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does; two real processes are slow, see `test_processes`."""
    asked: list[str] = []

    def reduce(gradient: Tensor, reduce_op: str) -> Tensor:
        asked.append(reduce_op)
        return torch.zeros_like(gradient)

    model: Any = NumPyMLP(hidden_units=[2])
    model.trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce))
    monkeypatch.setattr(model, "optimizers", lambda: SGD(model.parameters(), lr=1.0))
    monkeypatch.setattr(model, "lr_schedulers", lambda: None)
    before = [weight.clone() for weight in model.parameters()]
    model.training_step((IMAGES, LABELS), 0)
    assert asked == ["mean"] * 4
    assert all(map(torch.equal, before, model.parameters()))
