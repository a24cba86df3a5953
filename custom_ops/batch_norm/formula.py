"""Pooling, batch normalisation and GELU in one: the definition and its gradients.

For images X, (N, C, H, W), with gamma (weight) and beta (bias) for each channel, None for 1 and 0:

    P = X, or the maxima of its 2x2 squares; a last odd row or column is left out
    r_c = (var_c + eps)^(-1/2)          mean_c and var_c of the M pixels of P in channel c
    X̂_mc = (P_mc - mean_c) r_c
    Z_mc = gamma_c X̂_mc + beta_c
    Y_mc = Z_mc Φ(Z_mc)                 GELU, with Φ(z) = P(normal number < z)

**Gradients.** With φ = Φ', the density e^(-z²/2) / √(2π), the product rule gives
dY/dZ = Φ(Z) + Z φ(Z). So, with D = dL/dZ,

    D_mc = dL/dY_mc (Φ(Z_mc) + Z_mc φ(Z_mc))
    dL/dbeta_c = Σ_m D_mc
    dL/dgamma_c = Σ_m D_mc X̂_mc.

A channel is normalised as a row of `layer_norm.formula`, which derives the step from X̂ to P: there
G = gamma D, and both means over the channel are sums that the parameters need anyway:

    dL/dP_mc = gamma_c r_c (D_mc - 1/M dL/dbeta_c - X̂_mc 1/M dL/dgamma_c).

A maximum passes its gradient to the pixel that it came from; the others have the gradient 0
(`custom_ops.pooling`).

**Passes over memory.** Forward, the sums of a channel must be known before Y, and so it is backward
with dL/dP: two passes each, the fewest possible. PyTorch takes about four forward and six backward,
and keeps Z and eight bytes for the place of a maximum. P is enough to compute X̂ and Z again, and
places take a byte.

Sources: S. Ioffe and C. Szegedy, Batch normalization, 2015, arXiv:1502.03167; D. Hendrycks and
K. Gimpel, Gaussian error linear units, 2016, arXiv:1606.08415.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from custom_ops.functions import wide


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor]:
    """Computes Y by differentiable operations.

    Args:
        x: X, (N, C, H, W).
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        eps: added to the variance.
        pool: whether to take the maxima of 2x2 squares first.

    Returns:
        Y in the dtype of X; and mean, var (biased) and r of each channel, (3, C), at least float32.
    """
    p = F.max_pool2d(x, 2) if pool else x
    x_hat, statistics = standardise(p, eps)
    z = affine(x_hat, weight, bias)
    return (z * below(z)).to(x.dtype), statistics


def standardise(p: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """X̂, and mean, var and r of each channel, (3, C), all at least float32."""
    var, mean = torch.var_mean(wide(p), (0, 2, 3), correction=0)
    rstd = (var + eps).rsqrt()
    return (wide(p) - over_pixels(mean)) * over_pixels(rstd), torch.stack([mean, var, rstd])


def affine(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Z = gamma X̂ + beta."""
    z = x_hat if weight is None else x_hat * over_pixels(wide(weight))
    return z if bias is None else z + over_pixels(wide(bias))


def gradients(
    dy: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes dL/dP, dL/dgamma and dL/dbeta by differentiable operations.

    Args:
        dy: dL/dY, in the shape of P.
        x_hat: X̂.
        rstd: r, (C,).
        weight: gamma or None.
        bias: beta or None.

    Returns:
        The gradients, at least float32.
    """
    z = affine(x_hat, weight, bias)
    dz = dy * (below(z) + z * density(z))
    dweight, dbias = (dz * x_hat).sum((0, 2, 3)), dz.sum((0, 2, 3))
    pixels = z.numel() // z.shape[1]
    dp = dz - over_pixels(dbias / pixels) - x_hat * over_pixels(dweight / pixels)
    return affine(dp * over_pixels(rstd), weight, None), dweight, dbias


def below(z: Tensor) -> Tensor:
    """Φ(z), the probability that a normal number is smaller."""
    beyond: Tensor = torch.special.erfc(z * -math.sqrt(0.5))
    return beyond / 2


def density(z: Tensor) -> Tensor:
    """φ(z), the density of normal numbers."""
    return (z.square() / -2).exp() / math.sqrt(2 * math.pi)


def over_pixels(channels: Tensor) -> Tensor:
    """(C,) as (C, 1, 1), which fits every pixel of images."""
    return channels[:, None, None]
