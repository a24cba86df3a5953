# ruff: noqa: E501 - a fault is a line, in the letters of its formula
"""Every fault of a convolution that the checker knows is made by code, and named by the checker.

The code is that of a student: loops, columns, a kernel that is turned. A fault is a change of it.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.autograd import Function

from custom_ops import check as checker
from custom_ops.faults import EXERCISES

CODE = """
class Conv2dModule:
    def __init__(self, in_channels, out_channels, size, stride, padding):
        self.params = {"weight": None, "bias": None}
        self.size, self.stride, self.padding = size, stride, padding

    def padded(self, x):
        z = self.padding
        return np.pad(x, ((0, 0), (0, 0), (z, z), (z, z)))

    def columns(self, x, t):
        S, C, height, width = x.shape
        U, P, Q = self.size, (height - self.size) // t + 1, (width - self.size) // t + 1
        columns = np.zeros((S, P, Q, C * U * U))
        for p, q in np.ndindex(P, Q):
            columns[:, p, q] = x[:, :, t * p : t * p + U, t * q : t * q + U].reshape(S, -1)
        return columns

    def forward(self, x):
        self.x = x
        w, b = self.params["weight"], self.params["bias"]
        y = self.columns(self.padded(x), self.stride) @ w.reshape(len(w), -1).T + b
        return y.transpose(0, 3, 1, 2)

    def backward(self, dout):
        self.grads = {"weight": self.dw(dout), "bias": dout.sum((0, 2, 3))}
        return self.dx(dout)

    def dw(self, dout):
        x, w, U, t = self.padded(self.x), self.params["weight"], self.size, self.stride
        (S, O, P, Q), C = dout.shape, x.shape[1]
        terms = []
        for s in range(S):
            term = np.zeros(w.shape)
            for p, q in np.ndindex(P, Q):
                seen = x[s, :, t * p : t * p + U, t * q : t * q + U]
                term += dout[s, :, p, q, None, None, None] * seen
            terms.append(term)
        dw = sum(terms)
        return dw

    def dx(self, dout):
        x, w, U, t, z = self.padded(self.x), self.params["weight"], self.size, self.stride, self.padding
        dx = np.zeros(x.shape)
        for p, q in np.ndindex(dout.shape[2:]):
            term = 0
            for o in range(len(w)):
                term = term + dout[:, o, p, q, None, None, None] * w[o]
            dx[:, :, t * p : t * p + U, t * q : t * q + U] += term
        return dx[:, :, z : x.shape[2] - z, z : x.shape[3] - z]
"""

# dL/dX by a convolution of dL/dY with the kernel, flipped and with its channels transposed.
CONVOLVED = (
    CODE[: CODE.index("    def dx(")]
    + """    def dx(self, dout):
        w, U, t, z = self.params["weight"], self.size, self.stride, self.padding
        (S, O, P, Q), (_, C, height, width) = dout.shape, self.x.shape
        wide = np.zeros((S, O, height + 2 * z - U + 1, width + 2 * z - U + 1))
        wide[:, :, : t * P : t, : t * Q : t] = dout
        edge = U - 1 - z
        wide = np.pad(wide, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
        turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        return (self.columns(wide, 1) @ turned.reshape(C, -1).T).transpose(0, 3, 1, 2)
"""
)


class Case(NamedTuple):
    """A change of the code that makes a fault."""

    quantity: str
    text: str
    old: str
    new: str
    code: str = CODE


MATRIX, COLUMNS = "w.reshape(len(w), -1).T", "self.columns(self.padded(x), self.stride)"
LAST, ROWS = "y.transpose(0, 3, 1, 2)", "dout.transpose(0, 2, 3, 1).reshape(-1, O)"
FLIPPED, SWAPPED = "[:, :, ::-1, ::-1]", ".transpose(0, 1, 3, 2)"
RETURN_DW, RETURN_DX = "return dw", "return dx[:, :, z : x.shape[2] - z, z : x.shape[3] - z]"
PLACE = "[:, :, t * p : t * p + U, t * q : t * q + U] += term"
SEEN = "x[s, :, t * p : t * p + U, t * q : t * q + U]"
PART, TURNED = "None] * w[o]", "w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)"
SPREAD = "wide[:, :, : t * P : t, : t * Q : t] = dout"
BIAS = "dout.sum((0, 2, 3))"
CASES = [
    Case("forward", "b is not added", " + b\n", "\n"),
    Case("forward", "the kernel is flipped: that is the convolution of mathematics, here W is laid on X as it is", MATRIX, f"w{FLIPPED}.reshape(len(w), -1).T"),
    Case("forward", "rows and columns of the kernel are swapped", MATRIX, f"w{SWAPPED}.reshape(len(w), -1).T"),
    Case("forward", "the padding is forgotten", COLUMNS, "self.columns(x, self.stride)"),
    Case("forward", "the stride is ignored", COLUMNS, "self.columns(self.padded(x), 1)"),
    Case("forward", "stride and padding are ignored", COLUMNS, "self.columns(x, 1)"),
    Case("forward", "W is reshaped to (C U V, O): reshape it to (O, C U V), then transpose", MATRIX, "w.reshape(-1, len(w))"),
    Case("forward", "the channels are last: transpose (S, P, Q, O) to (S, O, P, Q)", LAST, "y"),
    Case("forward", "it is reshaped from (S, P, Q, O), which mixes channels and pixels: transpose", LAST, "y.reshape(len(x), len(w), *y.shape[1:3])"),
    Case("forward", "samples and channels are swapped: transpose (O, S, P, Q) to (S, O, P, Q)", LAST, "y.transpose(3, 0, 1, 2)"),
    Case("forward", "it is reshaped from (O, S, P, Q), which mixes samples and channels: transpose", LAST, "(y.reshape(-1, len(w)).T).reshape(len(x), len(w), *y.shape[1:3])"),
    Case("dL/dX", "the kernel is the wrong way round: flip it where you convolve dL/dY with it, and not where you add windows up", PART, f"None] * w{FLIPPED}[o]"),
    Case("dL/dX", "the kernel is the wrong way round: flip it where you convolve dL/dY with it, and not where you add windows up", TURNED, "w.transpose(1, 0, 2, 3)", CONVOLVED),
    Case("dL/dX", "rows and columns of the kernel are swapped", PART, f"None] * w{SWAPPED}[o]"),
    Case("dL/dX", "W is reshaped to (C, O, U, V), which mixes its channels: transpose", TURNED, f"w.reshape(C, O, U, U){FLIPPED}", CONVOLVED),
    Case("dL/dX", "windows overwrite each other: add what overlaps, with +=", PLACE, PLACE.replace("+=", "=")),
    Case("dL/dX", "only the last output channel is in it: add over o", "term = term + dout", "term = dout"),
    Case("dL/dX", "the gradient of the padding is not cut off", RETURN_DX, "return dx"),
    Case("dL/dX", "the padding is forgotten, or cut off below and to the right alone: cut it off at all four sides", RETURN_DX, "return dx[:, :, : self.x.shape[2], : self.x.shape[3]]"),
    Case("dL/dX", "the padding is cut off above and to the left alone: cut it off at all four sides", RETURN_DX, "return dx[:, :, 2 * z :, 2 * z :]"),
    Case("dL/dX", "the stride is ignored: the windows are one pixel apart", PLACE, "[:, :, p : p + U, q : q + U] += term"),
    Case("dL/dX", "the stride is ignored: put zeros between the elements of dL/dY", SPREAD, "wide = dout", CONVOLVED),
    Case("dL/dW", "the kernel is flipped", RETURN_DW, f"return dw{FLIPPED}"),
    Case("dL/dW", "rows and columns of the kernel are swapped", RETURN_DW, f"return dw{SWAPPED}"),
    Case("dL/dW", "its channels are swapped: transpose (C, O, U, V) to (O, C, U, V)", RETURN_DW, f"return (self.columns(x, t).reshape(-1, C * U * U).T @ {ROWS}).reshape(C, U, U, O).transpose(0, 3, 1, 2)"),
    Case("dL/dW", "it is reshaped from (C U V, O), which mixes its channels: transpose", RETURN_DW, f"return (self.columns(x, t).reshape(-1, C * U * U).T @ {ROWS}).reshape(w.shape)"),
    Case("dL/dW", "it is not summed over the samples", "sum(terms)", "np.stack(terms)"),
    Case("dL/dW", "only the last sample is in it: add over s", "dw = sum(terms)", "dw = term"),
    Case("dL/dW", "only the last position is in it: add over p and q", "term += dout", "term = dout"),
    Case("dL/dW", "the sum is over the kernel (u, v), not over the positions (p, q)", RETURN_DW, "return np.einsum('sopq,spqcuv->ocpq', dout, self.columns(x, t).reshape(S, P, Q, C, U, U))"),
    Case("dL/dW", "the stride is ignored: the windows are one pixel apart", SEEN, "x[s, :, p : p + U, q : q + U]"),
    Case("dL/db", "it is not summed over samples and pixels", BIAS, "dout"),
    Case("dL/db", "it is not summed over the pixels", BIAS, "dout.sum(0)"),
    Case("dL/db", "it is not summed over the samples", BIAS, "dout.sum((2, 3))"),
    Case("dL/db", "the sum is over the channels, not over the samples", BIAS, "dout.sum((1, 2, 3))"),
    Case("dL/db", "the sum is over the channels, not over the pixels", BIAS, "dout.sum((0, 1))"),
    Case("dL/db", "it is a mean over samples and pixels, not a sum", BIAS, "dout.mean((0, 2, 3))"),
]  # fmt: skip
(EXERCISE,) = (exercise for exercise in EXERCISES if exercise.name == "Conv2d")


def layer_of(code: str) -> Any:
    found: dict[str, Any] = {"np": np}
    exec(code, found)
    return found["Conv2dModule"]


def function_of(layer: Any) -> type[Function]:
    """The layer as a Function."""

    class Conv2dFunction(Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
            ctx.layer = layer(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
            ctx.layer.params = {"weight": weight.numpy(), "bias": bias.numpy()}
            return torch.tensor(ctx.layer.forward(x.numpy()))

        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            dx = ctx.layer.backward(dout.numpy())
            found = (dx, ctx.layer.grads["weight"], ctx.layer.grads["bias"])
            return (*(torch.tensor(gradient.copy()) for gradient in found), None, None)

    return Conv2dFunction


def wrong_in(kind: type) -> dict[str, str]:
    module: Any = SimpleNamespace(**{kind.__name__: kind})
    found = {quantity: wrong for _, quantity, wrong in checker.check(module)}
    assert found
    return {quantity: wrong for quantity, wrong in found.items() if wrong}


def test_the_list_has_every_known_fault() -> None:
    known = {(quantity, text) for quantity, text, _ in EXERCISE.faults}
    assert {(case.quantity, case.text) for case in CASES} == known


@pytest.mark.parametrize("code", [CODE, CONVOLVED])
def test_right_code_is_right(code: str) -> None:
    assert wrong_in(layer_of(code)) == {}
    assert wrong_in(function_of(layer_of(code))) == {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.quantity}-{case.text[:30]}")
def test_a_fault_is_named(case: Case) -> None:
    assert case.code.count(case.old) == 1
    layer = layer_of(case.code.replace(case.old, case.new))
    assert wrong_in(layer) == {case.quantity: case.text}
    found = wrong_in(function_of(layer))
    (shapes,) = {wrong.shape for name, text, wrong in EXERCISE.faults if (name, text) == case[:2]}
    right = EXERCISE.expected[case.quantity].shape
    if case.quantity == "forward" and shapes != right:  # then PyTorch refuses dL/dY
        assert found["forward"] == case.text
    elif shapes == right:
        assert found == {case.quantity: case.text}


def test_a_gradient_of_another_shape_is_named_though_pytorch_refuses_it() -> None:
    layer = layer_of(CODE.replace(RETURN_DX, "return dx"))
    assert wrong_in(function_of(layer)) == {"dL/dX": "the gradient of the padding is not cut off"}


def test_a_gradient_that_pytorch_would_sum_is_not_right() -> None:
    layer = layer_of(CODE.replace(BIAS, "dout"))
    assert wrong_in(function_of(layer)) == {"dL/db": "it is not summed over samples and pixels"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (RETURN_DX, "return dx[:, :, z:-z, z:-z]"),
        ("= size, stride, padding", "= 3, 2, 1"),
    ],
)
def test_code_for_one_geometry_alone_is_not_right(old: str, new: str) -> None:
    (wrong,) = wrong_in(layer_of(CODE.replace(old, new))).values()
    assert "padding 0" in wrong or "it raises" in wrong


def test_a_forward_pass_alone_is_checked() -> None:
    code = CODE.replace(
        "    def backward(self, dout):\n",
        "    def backward(self, dout):\n        raise NotImplementedError\n",
    )
    assert wrong_in(layer_of(code)) == {"backward": "not filled in yet"}
    code = code.replace("raise NotImplementedError", "raise ValueError('no')").replace(
        " + b\n", "\n"
    )
    found = wrong_in(layer_of(code))
    assert found == {"forward": "b is not added", "backward": "it raises ValueError: no"}
