"""Activation: relu, tanh or sigmoid of every entry. softmax: from logits to probabilities."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike

from . import _checks as check
from . import functional
from ._blocks import Tape, kept, no_weights

__all__ = ["Activation", "log_softmax", "softmax"]


def softmax(x: ArrayLike, axis: int = -1) -> np.ndarray:
    """exp(x) divided by its sum along an axis: the probabilities of classes from their logits.

    The largest logit is subtracted first, so huge logits do not overflow; computed in float64, given in x's dtype.

    x : float32 or float64 of any shape but (); integers and lists become float64. -inf is probability 0. A NaN, +inf or
        nothing but -inf along the axis makes all of it NaN, as in PyTorch.
    axis : of the classes.

    TypeError: another dtype. ValueError: an axis that x lacks.

    >>> softmax([0.0, 0.0, -np.inf])
    array([0.5, 0.5, 0. ])
    """
    shifted, dtype = _shifted(x, axis)
    with np.errstate(all="ignore"):
        p = np.exp(shifted)
        return (p / p.sum(axis=axis, keepdims=True)).astype(dtype)


def log_softmax(x: ArrayLike, axis: int = -1) -> np.ndarray:
    """log(softmax(x)), finite where the probability itself would round to 0. Arguments and errors as `softmax`."""
    shifted, dtype = _shifted(x, axis)
    with np.errstate(all="ignore"):
        return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(dtype)


def _shifted(x: ArrayLike, axis: int) -> tuple[np.ndarray, np.dtype]:
    """x less its largest entry along the axis, in float64; and the dtype of x."""
    a = check.floats("x", x)
    if not a.ndim:
        raise ValueError("x: expected at least one axis, got shape ()")
    check.integer("axis", axis, -a.ndim, a.ndim - 1)
    with np.errstate(all="ignore"):
        return a.astype(np.float64) - a.max(axis=axis, keepdims=True, initial=-np.inf), a.dtype


class Activation:
    """A nonlinearity of every entry: "relu" is max(x, 0), "tanh", "sigmoid" is 1 / (1 + exp(-x)).

    The loss functions take logits: no activation goes before `softmax_cross_entropy` and `binary_cross_entropy`.
    Probabilities of classes come from `softmax` and `Sequential.predict_proba`.

    >>> model = Sequential([Dense(8, 32), Activation("relu"), Dense(32, 1)])
    """

    def __init__(self, kind: str):
        self._kind = check.choice("kind", kind, ("relu", "tanh", "sigmoid"))

    @property
    def kind(self) -> str:
        """ "relu", "tanh" or "sigmoid"."""
        return self._kind

    def __repr__(self) -> str:
        return f"Activation({self.kind!r})"

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """x, float32 or float64 of any shape -> y like x, a new array. NaN stays NaN."""
        x = check.floats("x", x)
        if self.kind == "relu":
            return np.maximum(x, 0)
        y: np.ndarray = getattr(functional, self.kind)(x)
        return y

    def forward(self, x: ArrayLike) -> tuple[np.ndarray, Tape]:
        """The same y, and a tape for `backward` that holds its own copy of it."""
        y = self(x)
        return y, Tape(self, y.copy())

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """dx = dy * [y > 0], dy * (1 - y^2) or dy * y * (1 - y). Returns (dx, {}).

        TypeError, ValueError: dy of another shape or dtype than x, a tape of another layer.
        """
        y = kept(tape, self)
        dy = check.array("dy", dy, y.dtype, y.shape)
        with np.errstate(all="ignore"):
            if self.kind == "relu":
                dx = dy.copy()
                bits = dx.view(f"i{dx.itemsize}")  # times 0 or 1: NaN dies too, in a tenth of the time of np.where
                bits *= ~(y <= 0)  # a NaN in y lets dy through, as in PyTorch
            else:
                dx = dy * (1 - y * y if self.kind == "tanh" else y * (1 - y))
        return dx, no_weights(grads)
