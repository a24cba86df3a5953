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
