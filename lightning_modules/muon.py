"""Muon for convolutions: momentum whose updates are made orthogonal."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from custom_ops.torch_seam import foreach_add, foreach_add_, foreach_mul_

# Quintic iteration that brings singular values in (0, 1] near 1 in a few steps [1]_.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_AT_ONCE = 3  # iterations


class Muon(Optimizer):
    """Muon [1]_ for the filters of convolutions, Nesterov SGD for everything else.

    A filter bank W (out, in, h, w) is treated as a matrix (out, in h w). Its update is the momentum
    of its gradient G, made orthogonal: the nearest matrix whose singular values are all 1. So the
    update has the same size in every direction of G. Before the update, W is scaled to the
    Frobenius norm sqrt(out). If batch normalisation follows, this scale only changes the angle of a
    step of size ``lr`` [2]_:

        M <- momentum M + G,    U = G + momentum M,
        W <- sqrt(out) W / |W| - lr orthogonal(U).

    Matrices (linear layers) and vectors (biases) use Nesterov SGD with their own rates.

    Args:
        params: parameters; their number of dimensions selects the rule.
        lr: rate of the filters.
        momentum: of the filters.
        head_lr: rate of matrices.
        bias_lr: rate of vectors.
        sgd_momentum: of matrices and vectors.
        weight_decay: fraction by which a full-rate step without momentum shrinks matrices and
            vectors.
        iterations: number of Newton-Schulz iterations in `orthogonalize`.

    Raises:
        ValueError: if a rate is negative, a momentum not in [0, 1) or there is no iteration.

    .. [1] K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
       https://kellerjordan.github.io/posts/muon/.
    .. [2] K. Jordan, airbench94_muon, https://github.com/KellerJordan/cifar10-airbench.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.24,
        momentum: float = 0.6,
        head_lr: float = 0.02,
        bias_lr: float = 100.0,
        sgd_momentum: float = 0.85,
        weight_decay: float = 0.0,
        iterations: int = 3,
    ) -> None:
        rates = {"filters": lr, "head": head_lr, "biases": bias_lr}
        if not all(rate >= 0 for rate in (*rates.values(), weight_decay)):
            found = {**rates, "weight_decay": weight_decay}
            raise ValueError(f"Muon's rates must not be negative, got {found}")
        if iterations < 1:
            raise ValueError(f"Muon's iterations must be at least 1, got {iterations}")
        for name, value in {"momentum": momentum, "sgd_momentum": sgd_momentum}.items():
            if not 0 <= value < 1:
                raise ValueError(f"Muon's {name} must be in [0, 1), got {value}")
        kinds: dict[str, list[Tensor]] = {kind: [] for kind in rates}
        for p in params:
            kinds["filters" if p.ndim > 2 else "head" if p.ndim == 2 else "biases"].append(p)
        groups = [
            {"params": found, "kind": kind, "lr": rates[kind], "peak_lr": rates[kind]}
            for kind, found in kinds.items()
            if found
        ]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "head_lr": head_lr,
            "bias_lr": bias_lr,
            "sgd_momentum": sgd_momentum,
            "weight_decay": weight_decay,
            "iterations": iterations,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes a step and returns the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                step = self._step_filters if group["kind"] == "filters" else self._step_sgd
                step(params, group)
        return loss

    def _step_filters(self, params: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._nesterov(params, [p.grad for p in params], group["momentum"])
        for p, update in zip(params, updates, strict=True):
            p.mul_(len(p) ** 0.5 / (p.norm() + 1e-7))
            direction = orthogonalize(update.flatten(1), group["iterations"])
            p.add_(direction.view_as(p), alpha=-group["lr"])

    def _step_sgd(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients: list[Any] = [p.grad for p in params]
        if group["weight_decay"] and group["peak_lr"]:
            decay = group["weight_decay"] / group["peak_lr"]
            gradients = foreach_add(gradients, params, alpha=decay)  # type: ignore[assignment]
        updates = self._nesterov(params, gradients, group["sgd_momentum"])
        foreach_add_(params, updates, alpha=-group["lr"])

    def _nesterov(
        self, params: list[Tensor], gradients: list[Any], momentum: float
    ) -> list[Tensor]:
        for p, gradient in zip(params, gradients, strict=True):
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(gradient)
        buffers = [self.state[p]["momentum"] for p in params]
        foreach_mul_(buffers, momentum)
        foreach_add_(buffers, gradients)
        return list(foreach_add(gradients, buffers, alpha=momentum))


def orthogonalize(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Brings the singular values of a matrix near 1, by Newton-Schulz in float32.

    An iteration is X <- P X with P = a I + b G + c G² and G = X Xᵀ. P is symmetric, so that
    the next G is P G P. The iterations multiply only square matrices, and X comes last:

        X_3 = (P_3 P_2 P_1) X_0.

    This takes half as many operations for 3 iterations of a matrix of 256 x 2304. After 3, G is
    computed from X again: rounding errors in its null space grow twelvefold with each iteration.

    Args:
        matrix: (rows, columns), of any floating dtype.
        iterations: 3 bring most singular values to 0.7-1.2, 5 nearly all.

    Returns:
        Approximately U V^T, from the singular value decomposition U S V^T; float32.
    """
    x = matrix.float()
    x = x / (x.norm() + 1e-7)
    with torch.autocast(x.device.type, enabled=False):
        for done in range(0, iterations, _AT_ONCE):
            x = _iterate(x, min(_AT_ONCE, iterations - done))
    return x


def _iterate(x: Tensor, iterations: int) -> Tensor:
    wide = len(x) <= x.shape[1]
    gram = x @ x.T if wide else x.T @ x
    product = factor = _factor(gram)
    for _ in range(iterations - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ x if wide else x @ product


def _factor(gram: Tensor) -> Tensor:
    """P of G."""
    a, b, c = _COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
