"""The report's convolutional network: a VGG of pre-activation blocks (section 4)."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam

from custom_ops import Conv2d
from lightning_modules.classifier import Classifier

BlockOrder = Literal["bn_relu_conv", "bn_conv_relu"]
Convolution = Literal["winograd", "native"]


def convolution_class(name: Convolution) -> type[nn.Conv2d]:
    """The class of the 3x3 convolutions of a network.

    Args:
        name: ``winograd``: `custom_ops.Conv2d`, which is faster on a CPU. ``native``: PyTorch's.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ("winograd", "native"):
        raise ValueError(f"model.convolution must be winograd or native, got {name}")
    return Conv2d if name == "winograd" else nn.Conv2d


class PreActBlock(nn.Module):
    """``x + conv3x3(relu(bn(x)))``: a residual block that keeps its number of channels.

    Args:
        channels: channels in and out.
        order: ``bn_relu_conv`` is the assignment's pre-activation block; ``bn_conv_relu`` is the
            block the report's author built, ``x + relu(conv3x3(bn(x)))``.
        convolution: see `convolution_class`.

    Raises:
        ValueError: for an unknown order.
    """

    def __init__(
        self,
        channels: int,
        order: BlockOrder = "bn_relu_conv",
        convolution: Convolution = "winograd",
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "bn": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(inplace=order == "bn_relu_conv"),
            "conv": convolution_class(convolution)(channels, channels, 3, padding=1),
        }
        if order not in {"bn_relu_conv", "bn_conv_relu"}:
            raise ValueError(f"model.block_order must be bn_relu_conv or bn_conv_relu, got {order}")
        self.branch = nn.Sequential(*(parts[name] for name in order.split("_")))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, channels, H, W)`` to the same shape."""
        branch: Tensor = self.branch(x)
        return x + branch


class CNN(Classifier):
    """The assignment's network of five stages, 64 to 512 channels, 11,138,122 parameters.

    Each stage is a convolution that widens (3x3 at first, then 1x1), one or two pre-activation
    blocks and a 3x3 max-pool of stride 2, from 32x32 down to 1x1; then batch norm, ReLU, linear.

    Args:
        block_order: order inside the blocks, see `PreActBlock`.
        final_norm: batch norm and ReLU before the linear layer. Without it and with
            ``bn_conv_relu`` this is the network of the report's author: 11,137,098 parameters.
        channels_last: store activations as NHWC; same results, faster convolutions.
        convolution: ``winograd`` for 3x3 convolutions that take less time on a CPU;
            ``native`` for those of PyTorch.
        optimizer: makes the optimiser from the parameters.
        **kwargs: see `Classifier`.
    """

    takes_half_precision = True

    def __init__(
        self,
        block_order: BlockOrder = "bn_relu_conv",
        final_norm: bool = True,
        channels_last: bool = True,
        convolution: Convolution = "winograd",
        optimizer: OptimizerCallable = lambda p: Adam(p, lr=1e-4),
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        self.channels_last = channels_last
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1)]
        block = functools.partial(PreActBlock, order=block_order, convolution=convolution)
        layers += _stage(64, 128, blocks=1, block=block)
        layers += _stage(128, 256, blocks=2, block=block)
        layers += _stage(256, 512, blocks=2, block=block)
        layers += _stage(512, None, blocks=2, block=block)
        layers += _stage(512, None, blocks=2, block=block)
        if final_norm:
            layers += [nn.BatchNorm2d(512), nn.ReLU(inplace=True)]
        layers += [nn.Flatten(), nn.Linear(512, self.num_classes)]
        self.layers = nn.Sequential(*layers)
        if channels_last:
            self.layers.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``."""
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        logits: Tensor = self.layers(images)
        return logits


def _stage(
    channels: int, widened: int | None, blocks: int, block: Callable[[int], PreActBlock]
) -> list[nn.Module]:
    """Blocks, then an optional 1x1 convolution to ``widened`` channels, then the pooling."""
    layers: list[nn.Module] = [block(channels) for _ in range(blocks)]
    if widened is not None:
        layers.append(nn.Conv2d(channels, widened, 1))
    return [*layers, nn.MaxPool2d(3, stride=2, padding=1)]
