"""Gradients by hand beside central differences: the numbers, and three pictures of them.

A loss is a function of one array that returns a number. `check` draws a row for each gradient:

1. the gradient as an image, beside the one of central differences, in the same colours;
2. one against the other, a dot an element: on the diagonal they are equal;
3. the error over the step size h, both axes logarithmic.

The third has the shape of a V where a gradient is right. From the right it falls with h², as the
Taylor series that central differences cut off says; to the left it rises with eps / h, as rounding
of the loss counts for more the smaller the difference. A wrong gradient has the same error for
every h: no step size repairs it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes

Array = npt.NDArray[np.floating[Any]]
Loss = Callable[[Array], Any]

STEPS: Array = np.logspace(-11, -1, 31)  # three to a power of ten
_TOLERANCE = 1e-3  # a measured gradient in float32 has no more digits
_RIGHT, _WRONG, _GUIDE = "tab:blue", "tab:red", "0.45"


def central_differences(loss: Loss, x: Array, h: float = 1e-5) -> Array:
    """Measures dL/dx element by element: (L(x + h) - L(x - h)) / (2 h).

    Args:
        loss: of an array in the shape of x; it is called twice for each element.
        x: where to measure; it is not changed.
        h: the step size.

    Returns:
        dL/dx in the shape and dtype of x.
    """
    slope = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += h
        behind[place] -= h
        slope[place] = (loss(ahead) - loss(behind)) / (ahead[place] - behind[place])
    return slope


def error(found: Array, reference: Array) -> float:
    """The largest difference of two gradients, as a part of the largest element of the second."""
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def measure(loss: Loss, x: Array, steps: Array = STEPS) -> list[Array]:
    """Central differences for each step size."""
    return [central_differences(loss, x, float(h)) for h in steps]


def by_function(function: Callable[..., torch.Tensor], dout: Any, *inputs: Array) -> list[Array]:
    """The gradients that an operator of `custom_ops.functions` and its like gives.

    Args:
        function: takes a tensor for each input.
        dout: dL/dY, in the shape of the output.
        inputs: what to differentiate for.

    Returns:
        A gradient for each input.
    """
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    y = function(*tensors)
    dy = torch.as_tensor(dout, dtype=y.dtype)
    return [gradient.numpy() for gradient in torch.autograd.grad(y, tensors, dy)]


def draw_image(ax: Axes, gradient: Array, limit: float) -> None:
    """Draws a gradient as an image: red above zero, blue below, white at zero.

    Args:
        ax: where to draw.
        gradient: of any shape; all but the last dimension are the rows.
        limit: the value of the strongest red.
    """
    rows = gradient.reshape(-1, gradient.shape[-1])
    image = ax.imshow(rows, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set(xticks=[], yticks=[], xlabel=" x ".join(map(str, gradient.shape)))
    ax.figure.colorbar(image, ax=ax, fraction=0.08, pad=0.04).ax.tick_params(labelsize=7)


def draw_scatter(ax: Axes, gradient: Array, measured: Array, color: str = _RIGHT) -> None:
    """Draws a gradient against central differences: a dot for each element, and the diagonal."""
    limit = 1.15 * max(np.abs(gradient).max(), np.abs(measured).max())
    ax.axline((0, 0), slope=1, color=_GUIDE, linewidth=0.8)
    ax.plot(measured.ravel(), gradient.ravel(), "o", color=color, markersize=3.5, alpha=0.7)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    ax.set(xlabel="central differences", ylabel="by hand")
    ax.locator_params(nbins=4)


def draw_errors(
    ax: Axes,
    loss: Loss,
    x: Array,
    gradient: Array,
    color: str = _RIGHT,
    steps: Array = STEPS,
    measured: Sequence[Array] | None = None,
) -> None:
    """Draws the error over the step size, where it is least, and the two slopes of the V.

    A gradient by hand has no step size: where it is right, this is the error of the measurement.

    Args:
        ax: where to draw.
        loss: of an array in the shape of x.
        x: where the gradient is taken.
        gradient: by hand.
        color: of the curve.
        steps: the step sizes.
        measured: central differences for each of them, if they are known already.
    """
    measured = measure(loss, x, steps) if measured is None else measured
    found = np.array([error(gradient, other) for other in measured])
    eps = float(np.finfo(x.dtype).eps)
    shown = np.maximum(found, eps / 100)  # a logarithmic axis has no 0
    rounding = eps * abs(float(loss(x))) / np.abs(gradient).max() / steps
    if rounding.all():
        ax.loglog(steps, rounding, ":", color=_GUIDE, label="rounding, ε / h")
    anchor = int(np.abs(np.log(steps / steps.max() * 3)).argmin())
    if 10 * rounding[anchor] < found[anchor] < 1e-2:  # else there is nothing that falls with h²
        taylor = found[anchor] * (steps / steps[anchor]) ** 2
        ax.loglog(steps, taylor, "--", color=_GUIDE, label="Taylor series, h²")
    ax.loglog(steps, shown, ".-", color=color, linewidth=1, markersize=4)
    best = int(found.argmin())
    is_right = found[best] < _TOLERANCE
    if is_right:
        label = f"least: {found[best]:.0e} at h = {steps[best]:.0e}"
        ax.loglog(steps[best], shown[best], "*", color=color, markersize=11, label=label)
    else:
        text = f"never below {found[best]:.1g}"
        ax.text(0.5, 0.65, text, color=color, fontsize=8, ha="center", transform=ax.transAxes)
    ax.set(ylim=(eps / 100, 1e2), xlabel="step size h", ylabel="relative error")
    if ax.get_legend_handles_labels()[0]:
        place: Literal["upper center", "lower left"]
        place = "upper center" if is_right else "lower left"
        ax.legend(fontsize=7, loc=place, framealpha=0.9, borderpad=0.3)


def check(loss: Loss, x: Array, gradients: Mapping[str, Array], steps: Array = STEPS) -> None:
    """Draws a row for each gradient: two images, the scatter and the error over the step size.

    Args:
        loss: of an array in the shape of x.
        x: where the gradients are taken.
        gradients: what to draw, by title; red if further than a thousandth from what is measured.
        steps: the step sizes.
    """
    all_measured = measure(loss, x, steps)
    roomy = float(np.finfo(x.dtype).eps) ** (1 / 3)
    measured = all_measured[int(np.abs(np.log(steps / roomy)).argmin())]
    limit = float(np.abs(measured).max())
    size = (11.0, 2.5 * len(gradients))
    _, rows = plt.subplots(len(gradients), 4, figsize=size, squeeze=False, layout="constrained")
    for axes, (title, gradient) in zip(rows, gradients.items(), strict=True):
        color = _RIGHT if error(gradient, measured) < _TOLERANCE else _WRONG
        draw_image(axes[0], gradient, limit)
        draw_image(axes[1], measured, limit)
        draw_scatter(axes[2], gradient, measured, color)
        draw_errors(axes[3], loss, x, gradient, color, steps, all_measured)
        axes[0].set_title(title, fontsize=10, color=color)
        axes[1].set_title("central differences", fontsize=10)
        axes[2].set_title("one against the other", fontsize=10)
        axes[3].set_title("error over step size", fontsize=10)
        for ax in axes:
            ax.tick_params(labelsize=7)
            ax.xaxis.label.set_size(8)
            ax.yaxis.label.set_size(8)
