"""Maxima of 2x2 squares, and the place of each in its square.

    P_m = max of X_i over the pixels i of square m
    dL/dX_i = dL/dP_m if i is the place of P_m, else 0

A last odd row or column belongs to no square and has the gradient 0. The place is the first of
equal maxima. PyTorch keeps it in eight bytes; here it takes one: 0 to 3, row by row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the maxima of squares.

    Args:
        x: X, (N, C, H, W).

    Returns:
        P, (N, C, H // 2, W // 2), and the places as uint8, both channels-last.
    """
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    row, column = indices // x.shape[3], indices % x.shape[3]
    places = (row % 2 * 2 + column % 2).to(torch.uint8)
    nhwc = torch.channels_last
    return pooled.contiguous(memory_format=nhwc), places.contiguous(memory_format=nhwc)


def unpool(dp: Tensor, places: Tensor, image: torch.Size) -> Tensor:
    """Puts the pixels of dP where those of P came from, and 0 elsewhere, in the shape of X."""
    in_square = torch.arange(4, device=places.device).view(2, 2)
    squares = torch.where(places[..., None, None] == in_square, dp[..., None, None], 0)
    n, c, down, across = dp.shape
    whole = squares.transpose(3, 4).reshape(n, c, 2 * down, 2 * across)
    return F.pad(whole, (0, image[3] - 2 * across, 0, image[2] - 2 * down))
