"""The convolutional network: its size, its blocks' formula and its memory format."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules import CNN
from lightning_modules.cnn import PreActBlock
from tests.conftest import mark_slow


def normalized(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 11_138_122),
        ({"block_order": "bn_conv_relu"}, 11_138_122),
        ({"block_order": "bn_conv_relu", "final_norm": False}, 11_137_098),
        ({"num_classes": 100}, 11_138_122 + 90 * 513),
    ],
)
def test_number_of_parameters(options: dict[str, Any], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in CNN(**options).parameters()) == parameters


@pytest.mark.parametrize("order", ["bn_relu_conv", "bn_conv_relu"])
def test_block_computes_its_formula(order: Any) -> None:
    torch.manual_seed(0)
    block = PreActBlock(4, order)
    (conv,) = (part for part in block.branch if isinstance(part, nn.Conv2d))
    x = torch.randn(2, 4, 6, 5)
    given = x.clone()
    if order == "bn_relu_conv":
        expected = x + F.conv2d(F.relu(normalized(x)), conv.weight, conv.bias, padding=1)
    else:
        expected = x + F.relu(F.conv2d(normalized(x), conv.weight, conv.bias, padding=1))
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, given)  # in-place ReLU spares the input


@pytest.mark.parametrize("order", ["bn_relu_conv", "bn_conv_relu"])
def test_block_gradients_are_right(order: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PreActBlock(2, order).double(), (x,))


def test_stages_halve_the_image_and_widen_the_channels() -> None:
    shapes: list[tuple[int, ...]] = []
    model = CNN()
    for layer in model.layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2), (512, 1, 1)]
    tail = [type(layer).__name__ for layer in model.layers][-4:]
    assert tail == ["BatchNorm2d", "ReLU", "Flatten", "Linear"]


@pytest.mark.parametrize("training", [True, False])
def test_memory_format_changes_no_result(training: bool) -> None:
    torch.manual_seed(0)
    nhwc, nchw = CNN().train(training), CNN(channels_last=False).train(training)
    nchw.load_state_dict(nhwc.state_dict())
    assert next(nhwc.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert next(nchw.parameters()).is_contiguous()
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(nhwc(images), nchw(images), rtol=1e-3, atol=1e-4)


AUTHORS = {"block_order": "bn_conv_relu", "final_norm": False}


@pytest.mark.parametrize(
    "options", mark_slow([{}, AUTHORS], except_for=[{}]), ids=["ours", "author's"]
)
def test_network_learns_a_small_batch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = CNN(**options)
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.training_step((images, labels), 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("order", ["conv_bn_relu", "", "bn_relu"])
def test_unknown_order_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match="block_order must be bn_relu_conv or bn_conv_relu"):
        CNN(block_order=order)


def test_every_stage_ends_in_an_overlapping_pool() -> None:
    pools = [layer for layer in CNN().layers if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 5


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_laid_out_as_the_filters(channels_last: bool) -> None:
    model: Any = CNN(channels_last=channels_last).eval()
    seen: list[bool] = []
    form = torch.channels_last
    model.layers[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=form))
    )
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [channels_last]
    assert model.layers[0].weight.is_contiguous(memory_format=form) is channels_last


def test_the_default_optimizer_is_the_reports() -> None:
    optimizer: Any = CNN().configure_optimizers()
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.Adam, 1e-4)
