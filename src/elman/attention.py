"""Attention: for each query a mean of the memory's steps, weighted by how well they fit.

Shapes: T queries (steps of a decoder), S steps of the memory (an encoder's outputs), B sequences, Q and M features.
Products with weights are those of _affine.py; those of queries and memory are NumPy's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import functional
from ._affine import Affine
from ._blocks import Tape, kept, no_weights, past_the_ends
from ._parameters import Parametrised

__all__ = ["AdditiveAttention", "DotAttention"]

# Multiplications up to which OpenBLAS, NumPy's usual BLAS, does not wake its threads (interface/gemm.c: 4 * 65536).
# They spin while they wait: where another process has the other cores, a product of 0.1 ms takes 16.
ALONE = 262144


class Memory(NamedTuple):
    """What all queries share."""

    values: np.ndarray  # (S, B, M), a copy, zero past the ends
    keys: np.ndarray  # what the scores are made of, (S, B, M) or (S, B, U)
    past: np.ndarray | None  # (B, 1, S): where the sequences have ended
    snapshot: Any  # the weights that the keys were made with, and that the queries meet


class _Attention:
    """What both have in common: the weights are a softmax of the scores over a sequence's true steps."""

    def __call__(
        self, query: ArrayLike, memory: ArrayLike, *, lengths: ArrayLike | None = None, return_weights: bool = False
    ) -> Any:
        """query (T, B, Q), memory (S, B, M) -> context (T, B, M), a new array.

        lengths : (B,) integers 0 to S: memory past a sequence's end is never read and has weight 0. A sequence of
            length 0 gives the context 0.
        return_weights : True to get (context, weights), weights (T, B, S), each row with sum 1.

        TypeError: another float type. ValueError: a wrong shape or length.
        """
        check.boolean("return_weights", return_weights)
        query, memory, lengths = self._checked(query, memory, lengths)
        context, weights, _ = self._attend(query, self._remembered(memory, lengths))
        return (context, np.ascontiguousarray(weights.swapaxes(0, 1))) if return_weights else context

    def forward(
        self, query: ArrayLike, memory: ArrayLike, *, lengths: ArrayLike | None = None
    ) -> tuple[np.ndarray, Tape]:
        """The same context, and a tape for `backward` that holds its own copies."""
        query, memory, lengths = self._checked(query, memory, lengths)
        remembered = self._remembered(memory, lengths)
        context, weights, projected = self._attend(query, remembered)
        return context, Tape(self, (query.copy(), remembered, weights, projected), remembered.snapshot)

    def backward(
        self, tape: Tape, dcontext: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        """The gradients of a loss by the query, the memory and the weights.

        tape : from `forward` of this layer, since when the weights have not changed; it may be used again.
        dcontext : (T, B, M), the loss's gradient by the context.
        grads : None, or a dict with the names of `params` whose arrays the gradients are added to.

        Returns (dquery, dmemory, grads); dmemory is 0 past a sequence's end.
        TypeError, ValueError: a wrong argument, or a tape of other weights; nothing has changed then.
        """
        query, remembered, weights, projected = kept(tape, self)
        shape = (*query.shape[:2], remembered.values.shape[2])
        dcontext = check.array("dcontext", dcontext, query.dtype, shape)
        self._check_grads(grads, dcontext)
        values = remembered.values
        with np.errstate(all="ignore"):  # NaN and infinity travel without a warning
            d = dcontext.swapaxes(0, 1)
            dweights = _batched(d, values.transpose(1, 2, 0))
            dscores = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
            dquery, dvalues, new = self._scores_backward(query, remembered, projected, dscores)
            dmemory = _batched(weights.swapaxes(1, 2), d).swapaxes(0, 1) + dvalues
            return dquery, dmemory, self._given(grads, new)

    def _attend(self, query, remembered):
        """The context (T, B, M), the weights (B, T, S), and what `_scores_backward` wants to see again."""
        with np.errstate(all="ignore"):
            scores, projected = self._scores(query, remembered)
            weights = np.exp(scores - scores.max(axis=2, keepdims=True, initial=-np.inf, where=_true(remembered.past)))
            if remembered.past is not None:
                np.copyto(weights, 0, where=remembered.past)
            total = weights.sum(axis=2, keepdims=True)
            weights /= np.where(total == 0, 1, total)  # 0: no step at all
            context = _batched(weights, remembered.values.swapaxes(0, 1))
        return np.ascontiguousarray(context.swapaxes(0, 1)), weights, projected

    def _remembered(self, memory, lengths):
        past = None if lengths is None else past_the_ends(lengths, len(memory))
        values, snapshot = np.array(memory, order="C"), vars(self).get("_snapshot")
        if past is not None:
            values[past] = 0
        return Memory(values, self._keys(values, snapshot), None if past is None else past.T[:, None], snapshot)


class DotAttention(_Attention):
    """Attention by products: score[t, s] = query_t . memory_s, the "dot" of Luong, Pham and Manning 2015 (eq. 8), as
    keras.layers.Attention.

    It has no weights; query and memory have the same number of features, and are both float32 or both float64.

    >>> attention = DotAttention()
    >>> context = attention(h, memory, lengths=n)      # h (T, B, H), memory (S, B, H)
    """

    def __repr__(self) -> str:
        return "DotAttention()"

    def _checked(self, query, memory, lengths):
        query = check.floats("query", query)
        if query.ndim != 3:
            raise ValueError(f"query: expected shape (T, B, Q), got {query.shape}")
        memory = check.array("memory", memory, query.dtype, ("S", *query.shape[1:]))
        return query, memory, check.lengths("lengths", lengths, *memory.shape[:2])

    def _keys(self, values, snapshot):
        return values

    def _scores(self, query, remembered):
        return _batched(query.swapaxes(0, 1), remembered.keys.transpose(1, 2, 0)), None

    def _scores_backward(self, query, remembered, projected, dscores):
        dquery = _batched(dscores, remembered.keys.swapaxes(0, 1))
        dkeys = _batched(dscores.swapaxes(1, 2), query.swapaxes(0, 1))
        return np.ascontiguousarray(dquery.swapaxes(0, 1)), dkeys.swapaxes(0, 1), {}

    def _check_grads(self, grads, dcontext):
        no_weights(grads)

    def _given(self, grads, new):
        return no_weights(grads)


class AdditiveAttention(_Attention, Parametrised):
    """Attention by a small network: score[t, s] = v . tanh(W query_t + U memory_s), Bahdanau, Cho and Bengio 2015
    (appendix A.1.2).

    query_size, memory_size : Q and M, at least 1.
    units : of the small network, at least 1.
    dtype : float32 or float64, of weights, inputs and outputs.
    seed : None (random) or an integer, for the initial weights: uniform in +-1/sqrt(inputs), as torch.nn.Linear.

    `params` is {"weight_query": (units, Q), "weight_memory": (units, M), "weight_score": (units,)}: W, U and v.
    The tanh of (S, B, units) is made anew for each step of the query, in `backward` too, and never kept.

    >>> attention = AdditiveAttention(128, 256, 64)
    >>> context = attention(h, memory, lengths=n)      # h (T, B, 128), memory (S, B, 256) -> (T, B, 256)
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        units: int,
        *,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
    ):
        self.query_size = check.integer("query_size", query_size, 1, check.MOST)
        self.memory_size = check.integer("memory_size", memory_size, 1, check.MOST)
        self.units = check.integer("units", units, 1, check.MOST)
        self.dtype = check.dtype_of("dtype", dtype)
        rng = np.random.default_rng(None if seed is None else check.integer("seed", seed, 0))

        def uniform(*shape):
            return rng.uniform(-1, 1, shape) * shape[-1] ** -0.5

        self._start(
            {
                "weight_query": uniform(self.units, self.query_size),
                "weight_memory": uniform(self.units, self.memory_size),
                "weight_score": uniform(self.units),
            }
        )

    def __repr__(self) -> str:
        dtype = "" if self.dtype == np.float32 else f", dtype='{self.dtype}'"
        return f"AdditiveAttention({self.query_size}, {self.memory_size}, {self.units}{dtype})"

    def _checked(self, query, memory, lengths):
        query = check.array("query", query, self.dtype, ("T", "B", self.query_size), contiguous=True)
        memory = check.array("memory", memory, self.dtype, ("S", query.shape[1], self.memory_size))
        return query, memory, check.lengths("lengths", lengths, *memory.shape[:2])

    def _keys(self, values, snapshot):
        _, of_memory = snapshot.packed
        return of_memory(values)

    def _scores(self, query, remembered):
        keys, v = remembered.keys, remembered.snapshot.params["weight_score"]
        of_query, _ = remembered.snapshot.packed
        projected = of_query(query)
        scores = np.empty((keys.shape[1], len(query), len(keys)), self.dtype)
        for t, w_q in enumerate(projected):
            scores[:, t] = np.einsum("sbu,u->bs", functional.tanh(keys + w_q), v)
        return scores, projected

    def _scores_backward(self, query, remembered, projected, dscores):
        values, keys, v = remembered.values, remembered.keys, remembered.snapshot.params["weight_score"]
        dprojected, dkeys, dv = np.empty_like(projected), np.zeros_like(keys), np.zeros_like(v)
        for t, w_q in enumerate(projected):
            tanh = functional.tanh(keys + w_q)
            d = dscores[:, t].T[:, :, None]
            dv += (d * tanh).sum(axis=(0, 1))
            d = d * v * (1 - tanh * tanh)
            dprojected[t] = d.sum(axis=0)
            dkeys += d
        of_query, of_memory = remembered.snapshot.packed
        dquery, dweight_query, _ = of_query.backward(query, dprojected)
        dvalues, dweight_memory, _ = of_memory.backward(values, dkeys)
        return dquery, dvalues, {"weight_query": dweight_query, "weight_memory": dweight_memory, "weight_score": dv}

    def _packed(self, params):
        return Affine(params["weight_query"], None), Affine(params["weight_memory"], None)

    def _check_grads(self, grads, dcontext):
        if grads is not None:
            self._checked_grads(grads, (("dcontext", dcontext),))

    def _given(self, grads, new):
        return self._accumulated(grads, new)


def _true(past):
    return True if past is None else ~past


def _batched(a, b):
    """a (B, N, K) @ b (B, K, M), in blocks for which BLAS stays on this thread: how many it has changes no bit then."""
    N, (K, M) = a.shape[1], b.shape[1:]
    count = ALONE // max(1, K * M)
    count, width = (count, max(1, M)) if count >= 4 else (32, max(1, ALONE // (32 * max(1, K))))
    result = np.empty((len(a), N, M), a.dtype)
    for row, column in itertools.product(range(0, N, count), range(0, M, width)):
        rows, columns = slice(row, row + count), slice(column, column + width)
        np.matmul(a[:, rows], b[:, :, columns], out=result[:, rows, columns])
    return result
