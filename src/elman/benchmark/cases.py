"""The one table of what is timed: every shape of the figures to beat, and the numbers that go in.

A new shape is one line in CASES; test_bench.py and table.py follow it. Shapes: T steps, B sequences, I inputs,
H hidden units, all of each layer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

import elman

LAYERS = {"rnn": elman.RNN, "lstm": elman.LSTM, "gru": elman.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Case:
    work: str  # "step": one step of a stream; "forward": inference over whole sequences; "train": forward + BPTT
    cell: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    dtype: str = "float32"
    lengths: tuple[int, int] | None = None  # ragged: uniform between these two; the longest has T
    label: str = ""  # whose shape it is
    slow: bool = False  # only with --bench-all: a second or more for each contestant

    @property
    def name(self) -> str:
        parts = [self.work, self.cell.upper(), f"T{self.T}" * (self.work != "step"), f"B{self.B}"]
        parts += [f"{self.I}->{self.H}" + f"x{self.layers}" * (self.layers > 1)]
        parts += [self.dtype * (self.dtype != "float32"), "ragged" * (self.lengths is not None)]
        return " ".join(filter(None, parts)) + f" ({self.label})" * bool(self.label)

    @property
    def operations(self) -> int:
        """Multiplications and additions of the products with the weights; padding is no work."""
        rows = self.T * self.B if self.lengths is None else int(inputs(self).lengths.sum())
        weights = GATES[self.cell] * self.H * sum((self.H if k else self.I) + self.H for k in range(self.layers))
        return 2 * rows * weights * (3 if self.work == "train" else 1)  # backward: for dx and dh, and for dW


@dataclass(frozen=True, eq=False)
class Inputs:
    x: np.ndarray  # (T, B, I); for a step (B, I)
    state: tuple[np.ndarray, ...]  # the initial h, for LSTM (h, c), each (layers, B, H)
    dy: np.ndarray  # (T, B, H), zero past the end of a sequence
    lengths: np.ndarray | None  # (B,)
    params: dict[str, np.ndarray]  # PyTorch's names, shapes and gate orders

    def astype(self, dtype: str) -> Inputs:
        params = {name: a.astype(dtype) for name, a in self.params.items()}
        state = tuple(part.astype(dtype) for part in self.state)
        return Inputs(self.x.astype(dtype), state, self.dy.astype(dtype), self.lengths, params)


@functools.lru_cache(maxsize=1)
def inputs(case: Case) -> Inputs:
    """Random inputs and weights, the same for every contestant."""
    rng = np.random.default_rng(1)
    T, B, I, H = case.T, case.B, case.I, case.H
    x = rng.standard_normal((T, B, I))
    state = tuple(rng.uniform(-0.5, 0.5, (case.layers, B, H)) for _ in range(2 if case.cell == "lstm" else 1))
    dy = rng.standard_normal((T, B, H))
    lengths = None
    if case.lengths is not None:
        lengths = rng.integers(case.lengths[0], case.lengths[1], B, endpoint=True)
        lengths[B // 2] = T
        dy *= np.arange(T)[:, None, None] < lengths[:, None]
    params = dict(LAYERS[case.cell](I, H, case.layers, dtype=np.float64, seed=2).params)
    return Inputs(x[0] if case.work == "step" else x, state, dy, lengths, params).astype(case.dtype)


CASES = [
    Case("step", "lstm", 1, 1, 32, 32),
    Case("step", "lstm", 1, 1, 128, 128, label="silero"),
    Case("step", "lstm", 1, 1, 512, 512),
    Case("step", "gru", 1, 1, 32, 32),
    Case("step", "gru", 1, 1, 256, 256),
    Case("forward", "lstm", 100, 1, 32, 32),
    Case("forward", "lstm", 100, 1, 64, 128),
    Case("forward", "lstm", 100, 1, 512, 512),
    Case("forward", "lstm", 100, 8, 128, 128),
    Case("forward", "lstm", 100, 32, 64, 64),
    Case("forward", "lstm", 100, 32, 256, 256),
    Case("forward", "lstm", 50, 64, 512, 512, slow=True),
    Case("forward", "gru", 100, 1, 32, 32),
    Case("forward", "gru", 100, 32, 64, 64),
    Case("forward", "rnn", 100, 32, 256, 256),
    Case("train", "lstm", 100, 1, 64, 128),
    Case("train", "lstm", 100, 32, 64, 64),
    Case("train", "lstm", 100, 32, 256, 256),
    Case("train", "lstm", 100, 16, 32, 64, dtype="float64"),
    Case("train", "gru", 100, 1, 64, 128),
    Case("train", "gru", 100, 32, 64, 64),
    Case("train", "rnn", 100, 8, 128, 128),
    Case("forward", "lstm", 500, 32, 64, 128, lengths=(50, 500)),
    Case("train", "lstm", 500, 32, 64, 128, lengths=(50, 500)),
    Case("train", "rnn", 24, 32, 1, 25, label="Darts"),
    Case("train", "lstm", 48, 32, 40, 40, layers=2, label="DeepAR"),
    Case("train", "lstm", 365, 256, 15, 20, label="hydrology"),
    Case("train", "lstm", 128, 2, 512, 128, label="CleanRL"),
]
