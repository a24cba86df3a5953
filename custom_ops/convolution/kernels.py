"""The operators of the fast convolution, and the rule that says where it is used.

``torch.ops.custom_ops.winograd``, ``winograd_pool`` and their ``..._backward`` are dispatcher
operators without derivatives; `function` and `pooled` define the derivatives. The first is a
convolution with a 3x3 kernel, padding 1 and stride 1, the second takes the maxima of its 2x2
squares. The CPU kernels compute them as `winograd` derives; without kernels, PyTorch does.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from custom_ops.convolution.formula import Geometry
from custom_ops.functions import product_dtype
from custom_ops.operators import Kernels, load_on_cpu
from custom_ops.pooling import max_pool, unpool

_LIBRARY: Any = torch.library.Library("custom_ops", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "winograd(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "winograd_backward(Tensor dy, Tensor x, Tensor weight, bool[2] needs)"
    " -> (Tensor dx, Tensor dweight)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "winograd_pool(Tensor x, Tensor weight, Tensor? bias) -> (Tensor y, Tensor places)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "winograd_pool_backward(Tensor dy, Tensor places, Tensor x, Tensor weight, bool[2] needs)"
    " -> (Tensor dx, Tensor dweight)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_SAME_3X3 = ((1, 1), (1, 1), (1, 1))  # stride, padding and dilation
_GEOMETRY = Geometry(*_SAME_3X3)
# Below, transforms cost more than the products they save: measured, see docs/convolution.md.
_FEWEST_PRODUCTS = 4096  # input times output channels
_FEWEST_PRODUCTS_POOLED = 1024
_DTYPES = (torch.bfloat16, torch.float32)
_FEWEST_TILES = 256
_SMALLEST_IMAGE = 2  # pixels
_NHWC = torch.channels_last


def suits(
    x: Tensor, weight: Tensor, geometry: Geometry, fewest_products: int = _FEWEST_PRODUCTS
) -> bool:
    """Whether `winograd` is used: where it takes less time than PyTorch for most shapes.

    It never depends on a measurement, so that a run can be repeated to the last digit.

    Args:
        x: X, (N, C, H, W), before a conversion by autocast.
        weight: g, (K, C, U, V).
        geometry: stride, padding and so on.
        fewest_products: the least number of input times output channels.
    """
    if geometry != _GEOMETRY or x.ndim != 4 or weight.shape[2:] != (3, 3):
        return False
    if x.device.type != "cpu" or product_dtype(x) not in _DTYPES:
        return False
    if weight.device != x.device or product_dtype(weight) != product_dtype(x):
        return False
    images, channels, height, width = x.shape
    tiles = images * ((height + 1) // 2) * ((width + 1) // 2)
    return (
        channels * len(weight) >= fewest_products
        and min(height, width) >= _SMALLEST_IMAGE
        and tiles >= max(_FEWEST_TILES, channels, len(weight))
        and x.is_contiguous(memory_format=_NHWC)
    )


def suits_pooled(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd_pool` is used for a convolution and its maxima.

    The arguments are those of `suits`.
    """
    fits = suits(x, weight, _GEOMETRY, _FEWEST_PRODUCTS_POOLED)
    return fits and KERNELS.found_for("cpu")


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator without a kernel: convolves with padding 1.

    Args:
        x: X, (N, C, H, W).
        weight: g, (K, C, 3, 3), of the dtype of X.
        bias: (K,), or None.

    Returns:
        Y, (N, K, H, W), channels-last.
    """
    y = torch.ops.aten.convolution(x, weight, bias, *_SAME_3X3, False, (0, 0), 1)
    return y.contiguous(memory_format=_NHWC)  # type: ignore[no-any-return]


def backward(dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """The operator without a kernel: computes the gradients of `forward`.

    Args:
        dy: dL/dY, (N, K, H, W).
        x: X, as given to `forward`.
        weight: g, as given to `forward`.
        needs: which of the two gradients to compute.

    Returns:
        dL/dX and dL/dg; a gradient that is not needed is an empty tensor of shape (0,).
    """
    dx, dweight = native_gradients(dy, x, weight, needs)
    return (
        dx.contiguous(memory_format=_NHWC) if needs[0] else x.new_empty(0),
        dweight.contiguous(memory_format=_NHWC) if needs[1] else weight.new_empty(0),
    )


def native_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's differentiable operator; use only the gradients that are needed."""
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, *_SAME_3X3, False, (0, 0), 1, [*needs, False]
    )
    return dx, dweight


def forward_pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator without a kernel: convolves with padding 1 and takes the maxima of squares.

    The arguments are those of `forward`.

    Returns:
        The maxima, (N, K, H // 2, W // 2), and their places, as of `pooling.max_pool`.
    """
    return max_pool(forward(x, weight, bias))


def backward_pooled(
    dy: Tensor, places: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """The operator without a kernel: computes the gradients of `forward_pooled`.

    Args:
        dy: dL/dY of the maxima.
        places: of the maxima.
        x: X, as given to `forward_pooled`.
        weight: g, as given to `forward_pooled`.
        needs: which of the two gradients to compute.

    Returns:
        dL/dX and dL/dg, as of `backward`.
    """
    return backward(unpool(dy, places, x.shape), x, weight, needs)


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return x.new_empty(shape).to(memory_format=_NHWC)


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    dx, dweight = x.new_empty(0), weight.new_empty(0)
    if needs[0]:
        dx = torch.empty_like(x, memory_format=_NHWC)
    if needs[1]:
        dweight = torch.empty_like(weight, memory_format=_NHWC)
    return dx, dweight


def _fake_forward_pooled(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    y = x.new_empty((x.shape[0], weight.shape[0], x.shape[2] // 2, x.shape[3] // 2))
    y = y.to(memory_format=_NHWC)
    return y, torch.empty_like(y, dtype=torch.uint8)


def _fake_backward_pooled(
    dy: Tensor, places: Tensor, x: Tensor, weight: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    return _fake_backward(dy, x, weight, needs)


KERNELS = Kernels(functools.partial(load_on_cpu, "convolution"))
KERNELS.register(_LIBRARY, "winograd", forward, _fake_forward)
KERNELS.register(_LIBRARY, "winograd_backward", backward, _fake_backward)
KERNELS.register(_LIBRARY, "winograd_pool", forward_pooled, _fake_forward_pooled)
KERNELS.register(_LIBRARY, "winograd_pool_backward", backward_pooled, _fake_backward_pooled)


# Operations are counted as those of a direct convolution, whatever computes it.
@register_flop_formula([torch.ops.custom_ops.winograd, torch.ops.custom_ops.winograd_pool])
def _flops(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    images, channels, height, width = x
    return 2 * images * height * width * channels * weight[0] * 9


@register_flop_formula(torch.ops.custom_ops.winograd_backward)
def _flops_backward(
    dy: list[int], x: list[int], weight: list[int], needs: list[bool], **_: Any
) -> int:
    return sum(needs) * _flops(x, weight)


@register_flop_formula(torch.ops.custom_ops.winograd_pool_backward)
def _flops_backward_pooled(
    dy: list[int],
    places: list[int],
    x: list[int],
    weight: list[int],
    needs: list[bool],
    **_: Any,
) -> int:
    return sum(needs) * _flops(x, weight)
