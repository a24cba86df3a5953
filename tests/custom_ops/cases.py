"""What the tests of LayerNorm and its kernels share."""

import pytest
import torch
from torch import Tensor

VARIANTS = {  # with weight, with bias
    "affine": (True, True),
    "no_bias": (True, False),
    "no_weight": (False, True),
    "none": (False, False),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def plain(
    x: Tensor,
    row: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation as one would write it down; in float64 it is the truth."""
    dims = tuple(range(-len(row), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias
