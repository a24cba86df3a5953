"""The operators of layer normalisation, and the choice of a kernel for a device.

``torch.ops.custom_ops.layer_norm_forward`` and ``..._backward`` are dispatcher operators without
derivatives; `function` defines the derivatives. `formula` defines the operators, and computes them
if no kernel is loaded; a kernel computes the same numbers faster.

``layer_norm`` is the operator with derivatives. ``layer_norm_gradients`` computes its gradients so
that they can be differentiated again. `function` implements both. They are operators so that C++
can replace the first and call the second.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from custom_ops.layer_norm import formula
from custom_ops.operators import Kernels, load_on_cpu

LIBRARY: Any = torch.library.Library("custom_ops", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define(
    "layer_norm_forward(Tensor x, Tensor? weight, Tensor? bias, int ndim, float eps)"
    " -> (Tensor y, Tensor statistics)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, int ndim,"
    " bool[3] needs) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, int ndim, float eps) -> Tensor")
LIBRARY.define(
    "layer_norm_gradients(Tensor dy, Tensor? x, Tensor? weight, int ndim, float eps,"
    " bool[3] needs) -> Tensor[]",
)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalises the rows of X.

    Args:
        x: X, (..., *row) with `ndim` dimensions in a row, of any floating dtype, strided anyhow.
        weight: gamma, in the shape of a row, of any floating dtype, or None for 1.
        bias: beta, in the shape of a row, of any floating dtype, or None for 0.
        ndim: number of dimensions of a row, at least 1.
        eps: added to the variance.

    Returns:
        Y, contiguous, in the shape and dtype of X; and hi, lo and r of each row, (3, rows), in
        the dtype of the sums: float32, or float64 for X of float64.

    Raises:
        TypeError, ValueError: see `check`.
    """
    check(x, weight, bias, ndim)
    centred, hi, lo, rstd = formula.statistics(formula.widen(x), ndim, eps)
    y = formula.affine(centred.mul_(rstd), weight, bias).to(x.dtype)
    return y, torch.stack([hi.flatten(), lo.flatten(), rstd.flatten()])


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ndim: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of X, gamma and beta from what `forward` returned.

    Args:
        dy: dL/dY, in the shape of X, strided anyhow.
        x: X, as given to `forward`.
        weight: gamma, as given to `forward`.
        statistics: as returned by `forward`.
        ndim: number of dimensions of a row.
        needs: which of the three gradients to compute.

    Returns:
        dL/dX in the shape and dtype of X; dL/dgamma and dL/dbeta in the shape of a row and the
        dtype of the sums. A gradient that is not needed is an empty tensor of shape (0,).
    """
    wide = formula.widen(x)
    rows = (*x.shape[: x.ndim - ndim], *[1] * ndim)
    hi, lo, rstd = (part.view(rows) for part in statistics)
    x_hat = (wide - hi).sub_(lo).mul_(rstd)
    dx, dweight, dbias = (wide.new_empty(0) for _ in needs)  # outputs must not share memory
    if needs[0]:
        dx = formula.grad_input(dy, x_hat, rstd, weight, ndim).to(x.dtype)
    if needs[1]:
        dweight = formula.grad_weight(dy, x_hat, ndim)
    if needs[2]:
        dbias = formula.grad_bias(dy, ndim).to(wide.dtype)
    return dx, dweight, dbias


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float
) -> tuple[Tensor, Tensor]:
    check(x, weight, bias, ndim)
    rows = x.shape[: x.ndim - ndim].numel()
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((3, rows), dtype=wide)


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    ndim: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    row = x.shape[x.ndim - ndim :]
    dx, dweight, dbias = (statistics.new_empty(row if need else 0) for need in needs)
    if needs[0]:
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, dweight, dbias


def check(x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int) -> None:
    """Refuses arguments that do not fit together, with the messages of the C++ kernel.

    Args:
        x: X.
        weight: gamma or None.
        bias: beta or None.
        ndim: number of dimensions of a row.

    Raises:
        TypeError: one is not of a real floating dtype.
        ValueError: X has no such row; gamma or beta is not in its shape, or on another device.
    """
    if not 0 < ndim <= x.ndim:
        raise ValueError(
            f"layer_norm expected ndim from 1 to {x.ndim}, the dimensions of x, got {ndim}"
        )
    row, dtype = x.shape[x.ndim - ndim :], x.dtype
    if not dtype.is_floating_point:
        remedy = "normalise x.real and x.imag" if dtype.is_complex else "call x.float()"
        raise TypeError(f"layer_norm expected x of a floating dtype, got {dtype}: {remedy}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if parameter.shape != row:
            raise ValueError(
                f"layer_norm expected {name} of shape {tuple(row)}, got {tuple(parameter.shape)}: "
                f"reshape {name} to normalized_shape or change normalized_shape"
            )
        if not parameter.dtype.is_floating_point:
            raise TypeError(
                f"layer_norm expected {name} of a floating dtype, got {parameter.dtype}: "
                f"call {name}.to(x.dtype)"
            )
        if parameter.device != x.device:
            raise ValueError(
                f"layer_norm expected {name} on {x.device}, where x is, got {parameter.device}: "
                f"call {name}.to(x.device)"
            )


def _load(device_type: str) -> bool:
    if device_type == "cuda" and importlib.util.find_spec("triton"):
        from custom_ops.layer_norm import triton_kernel  # noqa: PLC0415  nor is Triton everywhere

        return triton_kernel.register(LIBRARY)
    return load_on_cpu("layer_norm", device_type)


KERNELS = Kernels(_load)
KERNELS.register(LIBRARY, "layer_norm_forward", forward, _fake_forward)
KERNELS.register(LIBRARY, "layer_norm_backward", backward, _fake_backward)
