"""The states of cells that have several parts. (A GRU's or an RNN's state is the array h itself.)"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LSTMState(NamedTuple):
    """The state of an LSTM: unpacks and indexes as `(h, c)`.

    h, c : float32 or float64 arrays (num_layers * D, B, H), or (num_layers * D, H) without a batch; D is 2 in a
        bidirectional layer, else 1. Row `2 * layer + direction`, or `layer`, as in PyTorch.

    >>> h, c = lstm.zero_state(3)
    """

    h: np.ndarray
    c: np.ndarray

    def copy(self) -> LSTMState:
        """A state with arrays of its own, for another stream or for later."""
        return LSTMState(self.h.copy(), self.c.copy())

    def __repr__(self) -> str:
        return f"LSTMState(h={_shown(self.h)}, c={_shown(self.c)})"


class SLSTMState(NamedTuple):
    """The state of an sLSTM: unpacks and indexes as `(h, c, n, m)`.

    h, c, n, m : the output, the cell, the sum of gates that normalises it, and the exponent that both are divided by:
        arrays as those of `LSTMState`. A sequence whose n are all 0 is at its beginning.

    >>> h, c, n, m = slstm.zero_state(3)
    """

    h: np.ndarray
    c: np.ndarray
    n: np.ndarray
    m: np.ndarray

    def copy(self) -> SLSTMState:
        """A state with arrays of its own, for another stream or for later."""
        return SLSTMState(*(part.copy() for part in self))

    def __repr__(self) -> str:
        return f"SLSTMState({', '.join(f'{name}={_shown(part)}' for name, part in self._asdict().items())})"


def _shown(part):
    return f"<{part.dtype} {part.shape}>" if isinstance(part, np.ndarray) else repr(part)
