"""Embedding: a row of a table for each integer."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from ._blocks import Tape, kept
from ._parameters import Parametrised

__all__ = ["Embedding"]


class Embedding(Parametrised):
    """A table of vectors, one for each integer, as torch.nn.Embedding: y[t, b] = weight[x[t, b]].

    num_embeddings : how many integers there are, 0 to num_embeddings - 1; at least 1.
    embedding_dim : E, the size of each vector; at least 1.
    padding_idx : None, or the integer whose vector starts at zero and gets no gradient.
    dtype : float32 or float64, of the weights and the output.
    seed : None (random) or an integer, for the initial weights: standard normal, as torch.nn.Embedding.

    `params` is {"weight": (num_embeddings, embedding_dim)}. TypeError, ValueError: an argument of the wrong kind or
    size, named in the message.

    >>> embedding = Embedding(1000, 32)
    >>> y = embedding([[3, 14], [15, 9]])    # (T, B) -> (T, B, 32)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
    ):
        self.num_embeddings = check.integer("num_embeddings", num_embeddings, 1, check.MOST)
        self.embedding_dim = check.integer("embedding_dim", embedding_dim, 1, check.MOST)
        if padding_idx is not None:
            padding_idx = check.integer("padding_idx", padding_idx, 0, self.num_embeddings - 1)
        self.padding_idx = padding_idx
        self.dtype = check.dtype_of("dtype", dtype)
        rng = np.random.default_rng(None if seed is None else check.integer("seed", seed, 0))
        weight = rng.standard_normal((self.num_embeddings, self.embedding_dim))
        if padding_idx is not None:
            weight[padding_idx] = 0
        self._start({"weight": weight})

    def __repr__(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        dtype = "" if self.dtype == np.float32 else f", dtype='{self.dtype}'"
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}{padding}{dtype})"

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """x, integers of any shape, (T, B) or (T,) for sequences -> y (*x.shape, embedding_dim), a new array.

        TypeError: not integers (bool is refused). ValueError: an integer outside 0 to num_embeddings - 1.
        """
        return np.take(self._snapshot.params["weight"], self._checked(x), axis=0)

    def forward(self, x: ArrayLike) -> tuple[np.ndarray, Tape]:
        """The same y, and a tape for `backward` that holds its own copy of x."""
        x, snapshot = self._checked(x), self._snapshot
        return np.take(snapshot.params["weight"], x, axis=0), Tape(self, x, snapshot)

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[None, Mapping[str, np.ndarray]]:
        """The gradient of a loss: each row of dweight is the sum of dy where x named that row.

        tape : from `forward` of this layer, since when the weights have not changed; it may be used again.
        dy : (*x.shape, embedding_dim), the loss gradient of that y.
        grads : None, or {"weight": array} that the gradient is added to.

        Returns (None, grads): integers have no gradient. The sums run in float64 in the order of x, so they are the
        same every time. TypeError, ValueError: a wrong argument, or a tape of other weights; nothing has changed then.
        """
        x = kept(tape, self)
        dy = check.array("dy", dy, self.dtype, (*x.shape, self.embedding_dim))
        if grads is not None:
            self._checked_grads(grads, (("dy", dy),))
        dweight = np.zeros((self.num_embeddings, self.embedding_dim), self.dtype)
        if x.size:
            # Few bits are sorted by counting.
            order = x.astype(np.min_scalar_type(self.num_embeddings)).argsort(axis=None, kind="stable")
            named = x.take(order)
            starts = np.flatnonzero(np.diff(named, prepend=-1))
            with np.errstate(all="ignore"):
                ordered = dy.reshape(-1, self.embedding_dim).take(order, axis=0).astype(np.float64)
                dweight[named[starts]] = np.add.reduceat(ordered, starts, axis=0)
        if self.padding_idx is not None:
            dweight[self.padding_idx] = 0
        return None, self._accumulated(grads, {"weight": dweight})

    def _checked(self, value):
        """x as integers of our own: what is checked stays what it is."""
        a = np.array(check._whole_numbers("x", value, check.shape_and_dtype("x", value)[0]))
        if a.size and (int(a.min()) < 0 or int(a.max()) >= self.num_embeddings):
            at = tuple(int(i) for i in np.argwhere((a < 0) | (a >= self.num_embeddings))[0])
            raise ValueError(f"x: expected 0 to {self.num_embeddings - 1}, got {int(a[at])} at {at}")
        return a.astype(np.intp, copy=False)
