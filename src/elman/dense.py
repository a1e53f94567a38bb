"""Dense: the output layer o_t = V h_t + c, on every step or on one. The arithmetic is that of _affine.py."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from ._affine import Affine
from ._parameters import Parametrised

__all__ = ["Dense"]


class Dense(Parametrised):
    """An affine map of the last axis: y = x @ weight.T + bias, as torch.nn.Linear (textbooks: o_t = V h_t + c).

    in_features, out_features : at least 1.
    bias : False leaves c out.
    dtype : float32 or float64, of weights, inputs and outputs.
    seed : None (random) or an integer, for the initial weights: uniform in +-1/sqrt(in_features), as torch.nn.Linear.

    `params` is {"weight": (out_features, in_features), "bias": (out_features,)}. TypeError, ValueError: an argument of
    the wrong kind or size, named in the message.

    >>> head = Dense(128, 10)
    >>> o = head(y)                          # y (T, B, 128) -> o (T, B, 10)
    >>> o, tape = head.forward(y)            # training
    >>> dy, grads = head.backward(tape, do)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
    ):
        self.in_features = check.integer("in_features", in_features, 1, check.MOST)
        self.out_features = check.integer("out_features", out_features, 1, check.MOST)
        self.bias = check.boolean("bias", bias)
        self.dtype = check.dtype_of("dtype", dtype)
        rng = np.random.default_rng(None if seed is None else check.integer("seed", seed, 0))
        bound = self.in_features**-0.5
        arrays = {"weight": rng.uniform(-bound, bound, (self.out_features, self.in_features))}
        if self.bias:
            arrays["bias"] = rng.uniform(-bound, bound, self.out_features)
        self._start(arrays)

    def __repr__(self) -> str:
        bias = "" if self.bias else ", bias=False"
        dtype = "" if self.dtype == np.float32 else f", dtype='{self.dtype}'"
        return f"Dense({self.in_features}, {self.out_features}{bias}{dtype})"

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """x (..., in_features), of any rank from 1 -> y (..., out_features), a new array; nothing is kept.

        TypeError: another float type. ValueError: another last axis.
        """
        affine = self._snapshot.packed
        y = affine(x)
        return affine(self._checked(x)) if y is None else y

    def forward(self, x: ArrayLike) -> tuple[np.ndarray, Tape]:
        """The same y, and a tape for `backward` that holds its own copy of x."""
        x, snapshot = self._checked(x).copy(), self._snapshot
        return snapshot.packed(x), Tape(snapshot, x)

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The gradients of a loss: dx = dy V, dV = sum of dy^T x, dc = sum of dy, over all leading axes.

        tape : from `forward` of this layer, since when the weights have not changed; it may be used again.
        dy : (..., out_features), the loss gradient of that y.
        grads : None, or a dict with the names of `params` whose arrays the gradients are added to.

        Returns (dx, grads): dx like x, and grads as given, or a new dict of arrays that share no memory.
        TypeError, ValueError: a wrong argument, or a tape of other weights; nothing has changed then.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape.snapshot is not self._snapshot:
            raise ValueError("tape: expected one made by this layer with its present weights, got another")
        dy = check.array("dy", dy, self.dtype, (*tape.x.shape[:-1], self.out_features), contiguous=True)
        if grads is not None:
            self._checked_grads(grads, (("dy", dy),))
        dx, dweight, dbias = tape.snapshot.packed.backward(tape.x, dy)
        new = {"weight": dweight} if dbias is None else {"weight": dweight, "bias": dbias}
        return dx, self._accumulated(grads, new)

    def _checked(self, x):
        shape, _ = check.shape_and_dtype("x", x)
        return check.array("x", x, self.dtype, (*shape[:-1], self.in_features), contiguous=True)

    def _packed(self, params):
        arrays = params._arrays  # for the kernels alone
        return Affine(arrays["weight"], arrays.get("bias"))


class Tape:
    """What `Dense.forward` keeps for `backward`: the weights of that moment and a copy of x, neither ever written."""

    __slots__ = ("snapshot", "x")

    def __init__(self, snapshot, x):
        self.snapshot = snapshot
        self.x = x
