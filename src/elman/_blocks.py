"""What the layers without recurrence share: their tape, their axes, and products that stay on one thread.

Shapes: T steps, B sequences, then the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks as check

# Multiplications up to which OpenBLAS, NumPy's usual BLAS, does not wake its threads (interface/gemm.c: 4 * 65536).
# They spin while they wait: where another process has the other cores, a product of 0.1 ms takes 16.
ALONE = 262144


class Tape:
    """What `forward` keeps for `backward`. Opaque; never written to, so it can be used again."""

    __slots__ = ("_layer", "_snapshot", "_kept")

    def __init__(self, layer: Any, kept: Any, snapshot: Any = None):
        self._layer, self._kept, self._snapshot = layer, kept, snapshot

    def __repr__(self) -> str:
        return f"<tape of {self._layer!r}>"

    def of(self, layer: Any) -> Any:
        """What was kept, if this is a tape of that layer and its present weights."""
        if self._layer is not layer:
            raise ValueError(f"tape: expected one of this layer, got one of another, {self._layer!r}")
        if self._snapshot is not vars(layer).get("_snapshot"):
            raise ValueError("tape: expected one made with the present weights, got one made before they changed")
        return self._kept


def kept(tape: Any, layer: Any) -> Any:
    if not isinstance(tape, Tape):
        raise TypeError(f"tape: expected what forward of this layer returned, got {type(tape).__name__}")
    return tape.of(layer)


def no_weights(grads: Any) -> Any:
    """`grads=` and the result of `backward` in a layer without weights: an empty dict."""
    if grads is None:
        return {}
    if len(grads):
        raise ValueError(f"grads: expected no names, since this layer has no weights, got {', '.join(map(str, grads))}")
    return grads


def with_batch(x: np.ndarray, lengths: Any) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """x (T, B, I) or (T, I) as (T, B, I), its checked lengths (B,) or None, and whether x had a batch."""
    if x.ndim not in (2, 3):
        raise ValueError(f"x: expected shape (T, B, features) or (T, features), got {x.shape}")
    batched = x.ndim == 3
    if not batched:
        x = x[:, None]
        lengths = None if lengths is None else [check.integer("lengths", lengths, 0, len(x))]
    return x, check.lengths("lengths", lengths, *x.shape[:2]), batched


def past_the_ends(lengths: np.ndarray, T: int) -> np.ndarray:
    """(T, B) bool: where sequence b has no step t."""
    return np.arange(T)[:, None] >= lengths


def product(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """rows (N, K) @ weight (K, M)"""
    K, M = weight.shape
    count, columns = _block(K, M)
    if len(rows) <= count and M <= columns:
        return rows @ weight
    result = np.empty((len(rows), M), weight.dtype)
    whole = len(rows) // count * count  # NumPy goes through full blocks by itself
    for first in range(0, M, columns):
        some = slice(first, first + columns)
        full = rows[:whole].reshape(-1, count, K)
        np.matmul(full, weight[:, some], out=result[:whole].reshape(-1, count, M)[:, :, some])
        np.matmul(rows[whole:], weight[:, some], out=result[whole:, some])
    return result


def outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a.T (M, N) @ b (N, K): the sum of the outer products of the rows."""
    M, K = a.shape[1], b.shape[1]
    count, columns = _block(K, M)
    if len(a) <= count and M <= columns:
        return a.T @ b
    result = np.zeros((M, K), a.dtype)
    for block, some in blocks(len(a), K, M):
        result[some] += a[block, some].T @ b[block]
    return result


def blocks(N: int, K: int, M: int) -> list[tuple[slice, slice]]:
    """N rows, and M columns of K multiplications each, in slices that are small enough for BLAS to stay on this thread:
    how many threads it has then makes no difference to the bits."""
    count, columns = _block(K, M)
    return [
        (slice(start, start + count), slice(first, first + columns))
        for start in range(0, N, count)
        for first in range(0, M, columns)
    ]


def _block(K: int, M: int) -> tuple[int, int]:
    """The rows and columns of such a block."""
    count = ALONE // max(1, K * M)
    return (count, max(1, M)) if count >= 4 else (32, max(1, ALONE // (32 * max(1, K))))
