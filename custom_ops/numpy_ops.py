"""The layers of a multilayer perceptron in plain NumPy, with their gradients derived by hand.

Shapes: S samples (rows), M input features, N output features, C classes. `dout` is always dL/dY,
the
gradient of the scalar loss with respect to the output of the layer, in the shape of this output.
`backward(dout)` returns dL/dX in the shape of the input. Calls keep the dtype of their arrays:
float32 in, float32 out.

**With the names of the course.** These layers were written for practical 1 of the University of
Amsterdam's Deep Learning course, which has its own tests. The tests run with these names:

    from functools import partialmethod
    from custom_ops.numpy_ops import ELU, CrossEntropy, Linear, Softmax

    class LinearModule(Linear):
        __init__ = partialmethod(Linear.__init__, dtype=float)
    ELUModule, SoftMaxModule, CrossEntropyModule = ELU, Softmax, CrossEntropy

The tests' central differences need float64. The course's optimiser uses the arrays in `params` and
`grads`. Its losses take one-hot rows or class indices, like the losses here.
"""

from collections import UserDict
from collections.abc import MutableMapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Targets = npt.NDArray[np.floating[Any] | np.integer[Any]]
_Saved = TypeVar("_Saved", Array, npt.NDArray[np.bool_])


class _Layer(Generic[_Saved]):
    """Stores values for `backward` between the two passes."""

    _saved: _Saved | None = None

    def _from_forward(self) -> _Saved:
        if self._saved is None:
            raise RuntimeError(f"{self!r}.backward() has nothing saved: call forward(x) first")
        return self._saved

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Arrays(UserDict[str, Array]):
    """Arrays by name; an assignment fills the array in place, so that its layer changes."""

    def __init__(self, **arrays: Array) -> None:
        self.data = arrays

    def __setitem__(self, name: str, value: Array) -> None:
        self.data[name][...] = value


class Linear(_Layer[Array]):
    """Y = X Wᵀ + b, or Y_sn = Σ_m X_sm W_nm + b_n.

    Since ∂Y_sn/∂X_sm = W_nm, ∂Y_sn/∂W_nm = X_sm and ∂Y_sn/∂b_n = 1, the chain rule gives

        dL/dX = dL/dY W        (S, M) = (S, N) (N, M)
        dL/dW = (dL/dY)ᵀ X     (N, M) = (N, S) (S, M)
        dL/db = 1ᵀ dL/dY       (N,)   = (1, S) (S, N)

    Args:
        in_features: M.
        out_features: N.
        weight_std: standard deviation of the initial weight.
        rng: source of the weight; None takes a fresh, unseeded one.
        dtype: floating dtype of the parameters and of their gradients.

    Attributes:
        weight: W, (out_features, in_features), drawn from Normal(0, weight_std).
        bias: b, (out_features,), zero at first.
        grad_weight: dL/dW of the last `backward`, zero at first.
        grad_bias: dL/db of the last `backward`, zero at first.
        params: these arrays by name, "weight" and "bias".
        grads: their gradients by the same names.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_std: float = 1e-4,
        rng: np.random.Generator | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        rng = np.random.default_rng() if rng is None else rng
        draw = rng.normal(0.0, weight_std, size=(out_features, in_features))
        self.weight: Array = draw.astype(dtype)
        self.bias: Array = np.zeros(out_features, dtype)
        self.grad_weight: Array = np.zeros_like(self.weight)
        self.grad_bias: Array = np.zeros_like(self.bias)

    def forward(self, x: Array) -> Array:
        """Returns Y, (S, N), of X, (S, M).

        Raises:
            ValueError: X is not a matrix of in_features columns.
        """
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"{self!r} expected x of shape (samples, {self.weight.shape[1]}), got {x.shape}: "
                "flatten each sample to one row"
            )
        self._saved = x
        y: Array = x @ self.weight.T
        y += self.bias
        return y

    def backward(self, dout: Array) -> Array:
        """Sets grad_weight and grad_bias in place; returns dL/dX, (S, M), of dL/dY, (S, N).

        Raises:
            RuntimeError: `forward` has not run.
        """
        x = self._from_forward()
        np.matmul(dout.T, x, out=self.grad_weight)
        np.sum(dout, axis=0, out=self.grad_bias)
        return dout @ self.weight

    @property
    def params(self) -> MutableMapping[str, Array]:
        """W and b, the arrays themselves: a change affects the layer."""
        return _Arrays(weight=self.weight, bias=self.bias)

    @property
    def grads(self) -> MutableMapping[str, Array]:
        """dL/dW and dL/db, the arrays themselves."""
        return _Arrays(weight=self.grad_weight, bias=self.grad_bias)

    def __repr__(self) -> str:
        out_features, in_features = self.weight.shape
        return f"Linear(in_features={in_features}, out_features={out_features})"


class ELU(_Layer[Array]):
    """Exponential linear unit: Y = X where X > 0, alpha (e^X - 1) elsewhere.

    Element by element, so dL/dX = dL/dY ∘ h'(X), with h' = 1 where X > 0 and alpha e^X elsewhere.

    Args:
        alpha: minus the limit of Y for X towards -∞.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = float(alpha)  # a NumPy scalar would promote float32

    def forward(self, x: Array) -> Array:
        """Returns Y in the shape of X; expm1 is exact near 0, where e^X - 1 loses digits."""
        self._saved = x
        return np.where(x > 0, x, self.alpha * np.expm1(np.minimum(x, 0)))

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX. Raises RuntimeError before `forward`."""
        x = self._from_forward()
        return np.where(x > 0, dout, dout * (self.alpha * np.exp(np.minimum(x, 0))))

    def __repr__(self) -> str:
        return f"ELU(alpha={self.alpha})"


class ReLU(_Layer[npt.NDArray[np.bool_]]):
    """Y = max(X, 0), so dL/dX = dL/dY where X > 0, and 0 elsewhere."""

    def forward(self, x: Array) -> Array:
        """Returns Y in the shape of X."""
        self._saved = x > 0
        return np.maximum(x, 0)

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX. Raises RuntimeError before `forward`."""
        return dout * self._from_forward()


class Tanh(_Layer[Array]):
    """Y = tanh(X), so dL/dX = dL/dY ∘ (1 - Y²)."""

    def forward(self, x: Array) -> Array:
        """Returns Y in the shape of X."""
        self._saved = np.tanh(x)
        return self._saved

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX. Raises RuntimeError before `forward`."""
        y = self._from_forward()
        dx: Array = dout * (1 - y * y)
        return dx


class Softmax(_Layer[Array]):
    """Y_sc = e^{X_sc} / Σ_k e^{X_sk} over the last axis.

    By the quotient rule, with N_s = Σ_k e^{X_sk} and ∂N_s/∂X_sc = e^{X_sc},

        ∂Y_sj/∂X_sc = (δ_jc e^{X_sj} N_s - e^{X_sj} e^{X_sc}) / N_s² = Y_sj (δ_jc - Y_sc),

    and the chain rule sums over j:

        dL/dX_sc = Y_sc (dL/dY_sc - Σ_j dL/dY_sj Y_sj).

    Subtracting the row maximum from X changes only the range of the exponentials.
    """

    def forward(self, x: Array) -> Array:
        """Returns Y in the shape of X: positive, every row of sum 1."""
        self._saved = _softmax(x)
        return self._saved

    def backward(self, dout: Array) -> Array:
        """Returns dL/dX. Raises RuntimeError before `forward`."""
        y = self._from_forward()
        dx: Array = y * (dout - (dout * y).sum(axis=-1, keepdims=True))
        return dx


class CrossEntropy:
    """L = -1/S Σ_sc T_sc log P_sc, for probabilities P and one-hot targets T, both (S, C).

    T may also be the indices of the classes, (S,).

    With T fixed, dL/dP = -1/S T ∘ 1/P; for a learnt T, dL/dT = -1/S log P. Entries T = 0 count as 0
    for every P, also if P has underflowed to 0. A *true* class with probability 0 gives an infinite
    loss. For training, use `SoftmaxCrossEntropy`, which never forms the quotient.
    """

    def forward(self, p: Array, t: Targets) -> float:
        """Returns L. Raises ValueError or IndexError unless T fits P."""
        t = _rows(self, p, t)
        true = t != 0
        return float(-np.sum(t[true] * np.log(p[true])) / len(p))

    def backward(self, p: Array, t: Targets) -> Array:
        """Returns dL/dP, (S, C), in the dtype of P. Raises as `forward`."""
        t = _rows(self, p, t)
        return np.divide(t, -len(p) * p, out=np.zeros_like(p), where=t != 0, casting="same_kind")

    def __repr__(self) -> str:
        return "CrossEntropy()"


class SoftmaxCrossEntropy:
    """`CrossEntropy` of the `Softmax` of logits X, (S, C): L = 1/S Σ_s (log Σ_k e^{X_sk} - X_st).

    X_st = Σ_c T_sc X_sc is the logit of the true class. With P = softmax(X), dL/dP_sc of
    `CrossEntropy` in the backward pass of `Softmax` gives

        dL/dX_sc = P_sc (-1/S T_sc / P_sc + 1/S Σ_j T_sj / P_sj P_sj) = 1/S (P_sc - T_sc),

    because Σ_j T_sj = 1. There is no logarithm of 0 and no division by P any more. T may also have
    any rows of sum 1, or be the indices of the classes, (S,).
    """

    def forward(self, logits: Array, t: Targets) -> float:
        """Returns L. Raises ValueError or IndexError unless T fits X."""
        t = _rows(self, logits, t)
        z = logits - logits.max(axis=-1, keepdims=True)
        true = np.multiply(t, z, out=np.zeros_like(z), where=t != 0)  # 0, not 0 · inf, elsewhere
        return float(np.mean(np.log(np.exp(z).sum(axis=-1)) - true.sum(axis=-1)))

    def backward(self, logits: Array, t: Targets) -> Array:
        """Returns dL/dX, (S, C), in the dtype of X. Raises as `forward`."""
        t = _rows(self, logits, t)
        grad = _softmax(logits)
        grad -= t
        grad /= len(t)
        return grad

    def __repr__(self) -> str:
        return "SoftmaxCrossEntropy()"


def _softmax(x: Array) -> Array:
    y: Array = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def _rows(loss: object, scores: Array, t: Targets) -> Targets:
    """T as rows of the shape of the scores."""
    if scores.ndim == 2 and t.shape == scores.shape[:1] and np.issubdtype(t.dtype, np.integer):
        classes = scores.shape[1]
        if ((t < 0) | (t >= classes)).any():  # NumPy would count negative indices from the end
            raise IndexError(
                f"{loss!r} expected class indices from 0 to {classes - 1}, got {t.min()} to "
                f"{t.max()}"
            )
        one_hot: Array = np.eye(classes, dtype=scores.dtype)[t]
        return one_hot
    if scores.ndim != 2 or scores.shape != t.shape:
        raise ValueError(
            f"{loss!r} expected scores (samples, classes) and one-hot targets of that shape, or "
            f"integer class indices (samples,), got {scores.shape} and {t.shape} of {t.dtype}"
        )
    return t
