"""Winograd's convolution F(2x2, 3x3): fewer products for a 3x3 kernel, derived both ways.

**One dimension.** Two outputs of a kernel of three, y_0 = d_0 g_0 + d_1 g_1 + d_2 g_2 and
y_1 = d_1 g_0 + d_2 g_1 + d_3 g_2, take six products. Four are enough:

    m_0 = (d_0 - d_2) g_0                     m_1 = (d_1 + d_2) (g_0 + g_1 + g_2) / 2
    m_3 = (d_1 - d_3) g_2                     m_2 = (d_2 - d_1) (g_0 - g_1 + g_2) / 2
    y_0 = m_0 + m_1 + m_2                     y_1 = m_1 - m_2 - m_3

Multiplied out, all other terms cancel. With one matrix for each side,

    y = Aᵀ [(G g) ∘ (Bᵀ d)].

**Two dimensions.** The same along the rows and along the columns of a 4x4 square d of pixels, of
which a 3x3 kernel g makes 2x2 outputs:

    Y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A,       U = G g Gᵀ,   V = Bᵀ d B,   M = U ∘ V.

16 products instead of 36. The squares of neighbouring outputs overlap by two pixels. Over the
channels, products are summed before Aᵀ . A, so that each of the 16 elements is a product of
matrices: M_tk = Σ_c V_tc U_ck for the tile t and the output channel k.

**Gradients.** Y is linear in M, M in U and in V, and these in g and in d. The transpose of
Y = Aᵀ M A is dL/dM = A dL/dY Aᵀ = Z. So, in turn,

    dL/dU_ck = Σ_t V_tc Z_tk                  dL/dg = Gᵀ dL/dU G
    dL/dV_tc = Σ_k U_ck Z_tk                  dL/dd = B dL/dV Bᵀ,

and dL/dX adds up dL/dd where squares overlap. That sum is itself a convolution, of dL/dY with the
kernel turned by 180° and its channels exchanged (`formula` derives this), so it has 2x2 tiles of
its own: the kernels in C++ compute dL/dX that way, without the overlapping sums.

**Rounding.** Every transform adds and subtracts, and rounds once more; V and Z are larger than d
and dL/dY. In bfloat16, the relative error of Y, dL/dX and dL/dg is about 4e-3; that of a direct
convolution is 1.7e-3, the rounding of the result alone. In float32 the errors are alike, but that
of dL/dg can be five times as large. Sums over channels are float32 in both.

This module computes the formulas in elementary operations, to be read and to test the kernels with.

Source: A. Lavin and S. Gray, Fast algorithms for convolutional neural networks, 2016,
arXiv:1509.09308.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_A = ((1.0, 0.0), (1.0, 1.0), (1.0, -1.0), (0.0, -1.0))
_B = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, -1.0, 1.0), (-1.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, -1.0))
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves with padding 1 and stride 1.

    Args:
        x: X, (N, C, H, W).
        weight: g, (K, C, 3, 3).
        bias: (K,), or None.

    Returns:
        Y, (N, K, H, W).
    """
    u, v = kernel_parts(weight), input_parts(x)
    tiles = _transformed(torch.einsum("kcab,ncpqab->nkpqab", u, v), _A)
    n, k, rows, columns = tiles.shape[:4]
    y = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, k, 2 * rows, 2 * columns)
    y = y[:, :, : x.shape[2], : x.shape[3]]
    return y if bias is None else y + bias[:, None, None]


def backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the gradients of a convolution.

    Args:
        dy: dL/dY, (N, K, H, W).
        x: X, (N, C, H, W).
        weight: g, (K, C, 3, 3).

    Returns:
        dL/dX in the shape of X, and dL/dg in the shape of g.
    """
    z = gradient_parts(dy)
    du = torch.einsum("nkpqab,ncpqab->kcab", z, input_parts(x))
    dv = torch.einsum("kcab,nkpqab->ncpqab", kernel_parts(weight), z)
    return _added(_back(dv, _B), x), _transformed(du, _G)


def kernel_parts(weight: Tensor) -> Tensor:
    """U = G g Gᵀ, (K, C, 4, 4)."""
    return _back(weight, _G)


def input_parts(x: Tensor) -> Tensor:
    """V = Bᵀ d B of all tiles, (N, C, rows, columns, 4, 4)."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
    return _transformed(padded.unfold(2, 4, 2).unfold(3, 4, 2), _B)


def gradient_parts(dy: Tensor) -> Tensor:
    """Z = A dL/dY Aᵀ of all tiles, (N, K, rows, columns, 4, 4)."""
    height, width = dy.shape[2:]
    padded = F.pad(dy, (0, width % 2, 0, height % 2))
    return _back(padded.unfold(2, 2, 2).unfold(3, 2, 2), _A)


def _transformed(parts: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Mᵀ x M."""
    m = parts.new_tensor(matrix)
    return m.mT @ parts @ m


def _back(parts: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """M x Mᵀ, the transpose of `_transformed`."""
    m = parts.new_tensor(matrix)
    return m @ parts @ m.mT


def _added(squares: Tensor, x: Tensor) -> Tensor:
    """Adds up 4x4 squares at their places, which overlap, in the shape of X."""
    n, c, rows, columns = squares.shape[:4]
    flat = squares.permute(0, 1, 4, 5, 2, 3).reshape(n, c * 16, rows * columns)
    added = F.fold(flat, (2 * rows + 2, 2 * columns + 2), 4, stride=2)
    return added[:, :, 1 : 1 + x.shape[2], 1 : 1 + x.shape[3]]
