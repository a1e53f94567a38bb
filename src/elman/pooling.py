"""Pooling: one vector for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike

from . import _checks as check
from ._blocks import Tape, kept, no_weights, past_the_ends, with_batch

__all__ = ["Pooling"]


class Pooling:
    """The last true step, the mean or the maximum over the true steps of each sequence: many-to-one.

    mode : "last", "mean" or "max".
    bidirectional : whether x comes from a bidirectional layer, (T, B, 2*H), the forward direction in the first H. Each
        direction's "last" is then where it ends: the forward one's at the last true step, the reverse one's at the
        first. These are the top layer's final states, what `Bidirectional(LSTM(64))` gives in Keras and
        `torch.cat((h_n[-2], h_n[-1]), 1)` in PyTorch. "mean" and "max" are the same with either.

    A sequence of length 0 gives zeros. Where several steps share a maximum, the first gets the gradient.

    >>> model = Sequential([LSTM(12, 64), Pooling("last"), Dense(64, 9)])
    >>> model = Sequential([LSTM(12, 64, bidirectional=True), Pooling("last", bidirectional=True), Dense(128, 9)])
    """

    def __init__(self, mode: str, *, bidirectional: bool = False):
        self._mode = check.choice("mode", mode, ("last", "mean", "max"))
        self._bidirectional = check.boolean("bidirectional", bidirectional)

    @property
    def mode(self) -> str:
        """ "last", "mean" or "max"."""
        return self._mode

    @property
    def bidirectional(self) -> bool:
        """Whether the second half of the features is a reverse direction's."""
        return self._bidirectional

    def __repr__(self) -> str:
        return f"Pooling({self.mode!r}{', bidirectional=True' if self.bidirectional else ''})"

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> np.ndarray:
        """x (T, B, H) -> y (B, H), or (T, H) -> (H,), a new array of x's dtype.

        lengths : (B,) integers 0 to T, without a batch one integer; x past the end is never read.

        TypeError: not float32 or float64. ValueError: a wrong shape or length; an odd H with bidirectional=True.
        """
        return self.forward(x, lengths=lengths)[0]

    def forward(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> tuple[np.ndarray, Tape]:
        """The same y, and a tape for `backward`."""
        x, ends, batched = with_batch(check.floats("x", x), lengths)
        T, B, H = x.shape
        if self.bidirectional and H % 2:
            raise ValueError(f"x: expected an even number of features, half of each direction, got {H}")
        n = np.full(B, T, np.intp) if ends is None else ends
        at = None  # the indices (of steps, ...) that y is taken from
        with np.errstate(all="ignore"):
            if self.mode == "mean" or T == 0:
                inside = ~past_the_ends(n, T)[:, :, None]
                y = (x.sum(axis=0, dtype=np.float64, where=inside) / np.maximum(n, 1)[:, None]).astype(x.dtype)
            else:
                if self.mode == "last" and ends is None and not self.bidirectional:
                    at = T - 1
                elif self.mode == "last":
                    at = np.maximum(n - 1, 0), np.arange(B)
                    if self.bidirectional:
                        steps = np.repeat(at[0][:, None], H, axis=1)
                        steps[:, H // 2 :] = 0
                        at = steps, np.arange(B)[:, None], np.arange(H)
                else:
                    largest = np.where(past_the_ends(n, T)[:, :, None], -np.inf, x).argmax(axis=0)
                    at = largest, np.arange(B)[:, None], np.arange(H)
                y = x[at] if isinstance(at, tuple) else x[at].copy()  # not a view
                if ends is not None:
                    y[n == 0] = 0
        return y if batched else y[0], Tape(self, (x.shape, x.dtype, n, at, batched))

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """dx (T, B, H): dy at the step it came from, or dy / length at every true step. Returns (dx, {}).

        TypeError, ValueError: dy of another shape than y or another dtype, a tape of another layer.
        """
        shape, dtype, n, at, batched = kept(tape, self)
        dy = check.array("dy", dy, dtype, shape[1:] if batched else shape[2:]).reshape(shape[1:])
        dx = np.zeros(shape, dtype)
        if not n.all():
            dy = np.where(n[:, None] == 0, dtype.type(0), dy)
        with np.errstate(all="ignore"):
            if at is None:
                dx[:] = dy / np.maximum(n, 1).astype(dtype)[:, None]
                dx[past_the_ends(n, len(dx))] = 0
            else:
                dx[at] = dy
        return dx if batched else dx[:, 0], no_weights(grads)
