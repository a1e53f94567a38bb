"""What the layers without recurrence share: their tape and their axes.

Shapes: T steps, B sequences, then the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks as check


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
