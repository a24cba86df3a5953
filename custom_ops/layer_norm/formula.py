"""Layer normalisation and its gradients: the one definition, in elementary torch operations.

A row X_s holds the M elements of the last `ndim` dimensions; gamma (weight) and beta (bias) have
the shape of a row; None means 1 and 0. With the mean and the biased
variance of the row,

    r_s = (var_s + eps)^(-1/2)
    X̂_si = (X_si - mean_s) r_s
    Y_si = gamma_i X̂_si + beta_i.

**Mean in two parts.** A float32 mean has an error of up to half a unit in its last place. If the
mean is large and the spread is small, this error is larger than the spread. So mean_s = hi + lo: hi
is the rounded mean of X, lo is the mean of the remainder X - hi, and X - mean_s is computed as
(X - hi) - lo. The variance is the mean square of this: it is never negative, and equals
mean((X - hi)²) - lo². On a constant row, X - hi is a few units in the last place of X. If a mean is
computed as a sum divided by M, as on the CPU, lo equals X - hi exactly, and Y = beta exactly.

**Gradients.** For gamma and beta,

    dL/dgamma_i = Σ_s dL/dY_si X̂_si
    dL/dbeta_i = Σ_s dL/dY_si.

For X, with ∂mean_s/∂X_sj = 1/M and ∂var_s/∂X_sj = 2/M (X_sj - mean_s), the quotient rule gives

    ∂X̂_si/∂X_sj = r_s / M (M δ_ij - 1 - X̂_si X̂_sj),

and 0 between different rows. Put G_si = dL/dX̂_si = gamma_i dL/dY_si and sum over i: δ_ij picks
one term, and the other two are means over the row, which do not depend on j:

    dL/dX_sj = Σ_i G_si r_s / M (M δ_ij - 1 - X̂_si X̂_sj)
             = r_s (G_sj - mean_i(G_si) - X̂_sj mean_i(G_si X̂_si)).

So S rows need O(S M) time and memory; no M x M Jacobian is formed.

**Tangents.** The Jacobian of X̂ is symmetric in i and j. So the map from dX to the change of X̂ is
the map from G to dL/dX: with P(v) = r (v - mean(v) - X̂ mean(v X̂)) for each row,

    dL/dX = P(gamma ∘ dL/dY)   and   dY = gamma ∘ P(dX) + dgamma ∘ X̂ + dbeta.

**Precision.** Statistics, products and sums are computed in float32 for half types and in the dtype
of X otherwise. `statistics` expects X from `widen`, and X̂ has the same dtype; gradients, tangents
and parameters may have any dtype.
"""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """X contiguous and in the dtype of its statistics: at least float32."""
    return x.contiguous().to(torch.promote_types(x.dtype, torch.float32))


def statistics(x: Tensor, ndim: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres the rows of X and measures them.

    Args:
        x: X, widened; its last `ndim` dimensions are a row.
        ndim: number of dimensions of a row, at least 1.
        eps: added to the variance.

    Returns:
        X - mean in the shape of X, then hi, lo and r, with rows reduced to size 1.
    """
    row = _row(ndim)
    hi = x.mean(row, keepdim=True)
    centred = x - hi
    lo = centred.mean(row, keepdim=True).detach()  # rounding: hi has the derivative of the mean
    centred -= lo
    rstd = (centred * centred).mean(row, keepdim=True).add_(eps).rsqrt_()
    return centred, hi, lo, rstd


def standardise(x: Tensor, ndim: int, eps: float) -> tuple[Tensor, Tensor]:
    """X̂ and r as functions of X that autograd can differentiate, both at least float32."""
    centred, _, _, rstd = statistics(widen(x), ndim, eps)
    return centred * rstd, rstd


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float) -> Tensor:
    """Y in the shape and dtype of X, differentiable any number of times in any direction."""
    x_hat, _ = standardise(x, ndim, eps)
    return affine(x_hat, weight, bias).to(x.dtype)


def affine(x_hat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Y = gamma ∘ X̂ + beta in the dtype of X̂; without gamma and beta, X̂ itself."""
    weight = None if weight is None else weight.to(x_hat.dtype)
    bias = None if bias is None else bias.to(x_hat.dtype)
    if weight is None:
        return x_hat if bias is None else x_hat + bias
    return x_hat * weight if bias is None else torch.addcmul(bias, x_hat, weight)


def grad_input(dy: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, ndim: int) -> Tensor:
    """dL/dX = P(gamma ∘ dL/dY), in the dtype of X̂."""
    return _project(affine(dy.to(x_hat.dtype), weight, None), x_hat, rstd, ndim)


def grad_weight(dy: Tensor, x_hat: Tensor, ndim: int) -> Tensor:
    """dL/dgamma = Σ_s dL/dY_s ∘ X̂_s, in the shape of a row and the dtype of X̂."""
    return _sum_rows(dy * x_hat, ndim)


def grad_bias(dy: Tensor, ndim: int) -> Tensor:
    """dL/dbeta = Σ_s dL/dY_s, in the shape of a row, at least float32."""
    return _sum_rows(dy, ndim)


def tangent(
    dx: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
    x_hat: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    ndim: int,
) -> Tensor:
    """Returns dY = gamma ∘ P(dX) + dgamma ∘ X̂ + dbeta in the dtype of X̂; None stands for 0."""
    dy = affine(_project(dx.to(x_hat.dtype), x_hat, rstd, ndim), weight, dbias)
    return dy if dweight is None else dy + x_hat * dweight.to(x_hat.dtype)


def _project(v: Tensor, x_hat: Tensor, rstd: Tensor, ndim: int) -> Tensor:
    """P(v) = r (v - mean(v) - X̂ mean(v X̂)). In place, vmap could not widen v to a batch of X̂."""
    row = _row(ndim)
    slope = (v * x_hat).mean(row, keepdim=True)
    return torch.addcmul(v - v.mean(row, keepdim=True), x_hat, slope, value=-1) * rstd


def _row(ndim: int) -> list[int]:
    """The dimensions of a row; a list, because TorchScript has no tuples of variable length."""
    return [dim - ndim for dim in range(ndim)]


def _sum_rows(t: Tensor, ndim: int) -> Tensor:
    dtype = torch.promote_types(t.dtype, torch.float32)
    batch = tuple(range(t.ndim - ndim))
    return t.sum(batch, dtype=dtype) if batch else t.to(dtype)  # sum(()) would sum over all
