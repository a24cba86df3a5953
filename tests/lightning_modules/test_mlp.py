"""The multi-layer perceptron: its size, its first weights and that every variant learns."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam

from custom_ops import LayerNorm
from lightning_modules import MLP


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 308_310),
        ({"hidden_units": [200, 200, 150, 100, 100]}, 711_160),
        ({"hidden_units": []}, 30_730),
        ({"norm": "batch"}, 308_310 + 200),
        ({"norm": "layer"}, 308_310 + 200),
        ({"num_classes": 100}, 317_400),
    ],
)
def test_number_of_parameters(options: dict[str, Any], parameters: int) -> None:
    assert count(MLP(**options)) == parameters


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("std", [1e-4, 0.02, 0.0])
def test_weights_start_normal_and_biases_zero(norm: Any, std: float) -> None:
    model = MLP(hidden_units=[300, 300], norm=norm, weight_std=std)
    linears = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(layer.weight.mean().item()) <= std / 10
        assert not layer.bias.any()
    for name, parameter in model.named_parameters():
        if norm == "layer" and name in {"layers.2.weight", "layers.5.weight"}:
            assert (parameter == 1).all()


def test_null_std_is_the_default_initialisation() -> None:
    torch.manual_seed(0)
    model = MLP(weight_std=None)
    torch.manual_seed(0)
    reference = nn.Linear(3072, 100)
    weight, bias, *_ = model.parameters()
    assert torch.equal(weight, reference.weight)
    assert torch.equal(bias, reference.bias)


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "layer_native"])
@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
def test_layers_compute_what_their_names_say(activation: Any, norm: Any) -> None:
    torch.manual_seed(0)
    model = MLP(hidden_units=[6], activation=activation, norm=norm, weight_std=0.1)
    images = torch.randn(4, 3, 32, 32)
    first, *_, last, _ = model.parameters()  # all biases are zero
    x = F.linear(images.reshape(4, 3072), first)
    if norm == "batch":
        x = F.batch_norm(x, None, None, training=True)
    elif norm != "none":
        x = F.layer_norm(x, (6,))
    expected = F.linear(getattr(F, activation)(x), last)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "layer_native"])
@pytest.mark.parametrize("activation", ["elu", "relu", "tanh"])
def test_every_variant_learns_a_small_batch(activation: Any, norm: Any) -> None:
    torch.manual_seed(0)
    model = MLP([16], activation=activation, norm=norm, weight_std=0.02)
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    optimizer = Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.training_step((images, labels), 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.5  # log(10) = 2.3 at first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hidden_units": [0]}, r"hidden_units must be positive widths, got \[0\]"),
        ({"hidden_units": [5, -1]}, "positive widths"),
        ({"activation": "gelu"}, "'gelu', choose from elu, relu, tanh"),
        ({"norm": "group"}, "'group', choose from none, batch, layer, layer_native"),
        ({"weight_std": -1e-4}, "weight_std must not be negative, got -0.0001"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MLP(**options)


def test_two_models_share_nothing() -> None:
    first, second = MLP(hidden_units=[3]), MLP()
    assert first.hparams["hidden_units"] == [3]
    assert second.hparams["hidden_units"] == [100]


def test_each_norm_is_of_its_own_class() -> None:
    kinds = {"batch": nn.BatchNorm1d, "layer": LayerNorm, "layer_native": nn.LayerNorm}
    for norm, kind in kinds.items():
        assert type(MLP(hidden_units=[2], norm=norm).layers[2]) is kind  # type: ignore[arg-type]
