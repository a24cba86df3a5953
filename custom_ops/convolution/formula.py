"""Two-dimensional convolution and its gradients, derived by hand.

For X (S, C, H, W), a weight K (O, C, U, V) and a bias b (O,),

    Y_sopq = b_o + Σ_cuv K_ocuv X_{s, c, i(p, u), j(q, v)}

where i(p, u) = stride p + dilation u - padding is the row of the image under row u of the kernel at
position p, counted from 0. j(q, v) is the column, defined in the same way. X outside the image is
0. As in every deep learning library, this is a cross-correlation: the kernel isn't flipped.

**As a matrix product.** `unfold` writes the elements under the kernel at (p, q) into a column,

    A_{s, cuv, pq} = X_{s, c, i(p, u), j(q, v)},

so that Y_s = K A_s + b with K as a matrix of O rows and C U V columns.

**Gradients.** Y is linear in each of b, K and A, with ∂Y_sopq/∂b_o = 1,
∂Y_sopq/∂K_ocuv = A_{s, cuv, pq} and ∂Y_sopq/∂A_{s, cuv, pq} = K_ocuv. The chain rule sums over
all elements of Y that depend on one of them:

    dL/db_o = Σ_spq dL/dY_sopq
    dL/dK_ocuv = Σ_spq dL/dY_sopq A_{s, cuv, pq}          dL/dK = Σ_s dL/dY_s A_sᵀ
    dL/dA_{s, cuv, pq} = Σ_o K_ocuv dL/dY_sopq            dL/dA_s = Kᵀ dL/dY_s

An element X_scij occurs in A once for every (u, p) and (v, q) that reach it. So its gradient is the
sum over these positions. `fold`, the transpose of `unfold`, computes it:

    dL/dX_scij = Σ_{u, p: i(p, u) = i} Σ_{v, q: j(q, v) = j} dL/dA_{s, cuv, pq}

Together with Kᵀ this is the transposed convolution. For one 3 x 3 image and a 2 x 2 kernel, counted
from 1, examples of these sums are

    Y_21 = K_11 X_21 + K_12 X_22 + K_21 X_31 + K_22 X_32
    dL/dK_11 = dL/dY_11 X_11 + dL/dY_12 X_12 + dL/dY_21 X_21 + dL/dY_22 X_22
    dL/dX_12 = dL/dY_11 K_12 + dL/dY_12 K_11.

**Padding "same".** Y is as large as X for stride 1 if dilation (U - 1) rows of zeros are added, and
columns in the same way. Half of them are the padding above; if their number is odd, one more is
below the image, and to its right. The zeros do not depend on X, so dL/dX is the gradient of the
padded image without the zeros.

**Groups.** With G groups, the channels of X and Y are divided into G blocks. Each block is a
separate convolution with its O/G rows of K.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), chapter 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from custom_ops.functions import wide

Pair = tuple[int, int]


@dataclass(frozen=True)  # not a tuple, which torch.vmap would treat as several inputs
class Geometry:
    """The positions of the kernel on the image, with (height, width) for each value."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    extra: Pair = (0, 0)  # zeros below and to the right, besides the padding

    def output_size(self, image: torch.Size, kernel: torch.Size) -> list[int]:
        """Size of the output: the number of positions of the kernel on the padded image."""
        return [
            (size + 2 * padding + extra - dilation * (width - 1) - 1) // stride + 1
            for size, width, stride, padding, extra, dilation in zip(
                image[-2:],
                kernel[-2:],
                self.stride,
                self.padding,
                self.extra,
                self.dilation,
                strict=True,
            )
        ]


def matrix(weight: Tensor, geometry: Geometry) -> Tensor:
    """K as one matrix a group, (G, O/G, C/G U V), in at least float32."""
    rows = len(weight) // geometry.groups
    return wide(weight).reshape(geometry.groups, rows, weight.shape[1:].numel())


def unfold(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A, (S, G, C/G U V, P Q), in at least float32."""
    g, (below, right) = geometry, geometry.extra
    x = F.pad(x, (0, right, 0, below)) if below or right else x
    columns = F.unfold(wide(x), weight.shape[2:], g.dilation, g.padding, g.stride)
    return columns.reshape(len(x), g.groups, weight.shape[1:].numel(), columns.shape[-1])


def fold(columns: Tensor, image: torch.Size, weight: Tensor, geometry: Geometry) -> Tensor:
    """Sums the elements of `columns`, in the shape of A, at their positions in the image."""
    g, (samples, groups, rows, places) = geometry, columns.shape
    columns = columns.reshape(samples, groups * rows, places)
    below, right = g.extra
    size = (image[-2] + below, image[-1] + right)
    folded = F.fold(columns, size, weight.shape[2:], g.dilation, g.padding, g.stride)
    return F.pad(folded, (0, -right, 0, -below)) if below or right else folded


def samples_last(columns: Tensor) -> Tensor:
    """(S, G, N, L) as (G, N, S L), so that one product also sums over samples."""
    samples, groups, rows, places = columns.shape
    return columns.permute(1, 2, 0, 3).reshape(groups, rows, samples * places)
