"""The one table of what is timed, and the numbers that go in.

A new shape is one line in CASES; `elman bench` and `pytest --benchmark-only` follow it. Shapes: T steps, B sequences,
I inputs, H hidden units of each layer and direction, D directions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layers import GRU, LSTM, RNN

LAYERS: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Case:
    # "step": one step of a stream; "step_many": of B streams whose states are held apart; "forward": inference over
    # whole sequences; "train": forward + BPTT
    work: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"
    lengths: tuple[int, int] | None = None  # ragged: uniform between these two; the longest has T
    label: str = ""  # whose shape it is
    target: float | None = None  # how many times as fast as the best peer it is meant to be
    slow: bool = False  # only with --all: about a second or more for each contestant

    @property
    def name(self) -> str:
        parts = [self.work, self.cell.upper(), f"T{self.T}" * (not self.is_step), f"B{self.B}"]
        parts += [f"{self.I}->{self.H}" + f"x{self.layers}" * (self.layers > 1), "both ways" * self.bidirectional]
        parts += [self.dtype * (self.dtype != "float32"), "ragged" * (self.lengths is not None)]
        return " ".join(filter(None, parts)) + f" ({self.label})" * bool(self.label)

    @property
    def is_step(self) -> bool:
        return self.work in ("step", "step_many")

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def rows(self) -> int:
        """The true (step, sequence) pairs."""
        return self.T * self.B if self.lengths is None else int(sum(drawn_lengths(self)))

    @property
    def weights(self) -> list[tuple[int, int]]:
        """Of each direction of each layer: numbers in weight_ih and in weight_hh."""
        rows = GATES[self.cell] * self.H
        inputs = [self.directions * self.H if k else self.I for k in range(self.layers)]
        return [(rows * n, rows * self.H) for n in inputs for _ in range(self.directions)]

    @property
    def operations(self) -> int:
        """Multiplications and additions of the products with the weights; padding is no work."""
        products = 3 if self.work == "train" else 1  # backward: for dx and dh, and for dW
        return 2 * self.rows * products * sum(map(sum, self.weights))


@dataclass(frozen=True, eq=False)
class Inputs:
    x: np.ndarray  # (T, B, I); for steps (B, I)
    state: tuple[np.ndarray, ...]  # the initial h, for LSTM (h, c), each (layers*D, B, H)
    dy: np.ndarray  # (T, B, D*H), zero past the end of a sequence
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
    T, B, I, H, D = case.T, case.B, case.I, case.H, case.directions
    x = rng.standard_normal((T, B, I))
    state = tuple(rng.uniform(-0.5, 0.5, (case.layers * D, B, H)) for _ in range(2 if case.cell == "lstm" else 1))
    dy = rng.standard_normal((T, B, D * H))
    ends = None
    if case.lengths is not None:
        ends = drawn_lengths(case)
        dy *= np.arange(T)[:, None, None] < ends[:, None]
    layer = LAYERS[case.cell](I, H, case.layers, bidirectional=case.bidirectional, dtype=np.float64, seed=2)
    return Inputs(x[0] if case.is_step else x, state, dy, ends, dict(layer.params)).astype(case.dtype)


def drawn_lengths(case: Case) -> np.ndarray:
    """(B,) the random lengths of a ragged case; one of them is T."""
    assert case.lengths is not None
    drawn = np.random.default_rng(3).integers(case.lengths[0], case.lengths[1], case.B, endpoint=True)
    drawn[case.B // 2] = case.T
    return drawn


CASES = [
    # One step of a stream
    Case("step", "lstm", 1, 1, 32, 32, target=12),
    Case("step", "lstm", 1, 1, 64, 64, target=12),
    Case("step", "lstm", 1, 1, 1, 24, label="NAM", target=12),
    Case("step", "lstm", 1, 1, 128, 128, label="silero", target=4),
    Case("step", "lstm", 1, 1, 512, 512, target=1.15),
    Case("step", "lstm", 1, 1, 640, 640, layers=2, label="Parakeet"),
    Case("step", "gru", 1, 1, 32, 32, target=12),
    Case("step", "gru", 1, 1, 24, 24, label="RNNoise", target=12),
    Case("step", "gru", 1, 1, 114, 96, label="RNNoise"),
    Case("step", "gru", 1, 1, 128, 128, target=4),
    Case("step", "gru", 1, 1, 256, 256, label="DeepFilterNet"),
    Case("step", "gru", 1, 1, 256, 256, layers=3, label="RNNoise"),
    Case("step", "gru", 1, 1, 512, 512, target=1.15),
    Case("step", "rnn", 1, 1, 32, 32, target=12),
    Case("step", "rnn", 1, 1, 128, 128, target=4),
    Case("step", "rnn", 1, 1, 512, 512, target=1.15),
    Case("step_many", "lstm", 1, 64, 128, 128, label="64 voices"),
    Case("step_many", "gru", 1, 64, 96, 96, label="64 voices"),
    # One sequence
    Case("forward", "lstm", 100, 1, 32, 32, target=2),
    Case("forward", "lstm", 100, 1, 64, 128, target=1.5),
    Case("forward", "lstm", 100, 1, 256, 256, target=1.3),
    Case("forward", "lstm", 100, 1, 512, 512),
    Case("forward", "lstm", 480, 1, 1, 24, label="NAM"),
    Case("forward", "lstm", 26, 1, 512, 256, bidirectional=True, label="CRNN"),
    Case("forward", "lstm", 75, 1, 512, 512, layers=2, label="EnCodec"),
    Case("forward", "lstm", 150, 1, 64, 96, label="Tesseract"),
    Case("forward", "lstm", 150, 1, 96, 384, label="Tesseract"),
    Case("forward", "gru", 100, 1, 32, 32, target=2),
    Case("forward", "gru", 100, 1, 64, 128, target=1.5),
    Case("forward", "gru", 100, 1, 256, 256, target=1.3),
    Case("forward", "rnn", 100, 1, 32, 32, target=2),
    Case("forward", "rnn", 100, 1, 64, 128, target=1.5),
    Case("forward", "rnn", 100, 1, 256, 256, target=1.3),
    # A batch
    Case("forward", "lstm", 100, 8, 128, 128, target=1.4),
    Case("forward", "lstm", 100, 32, 64, 64, target=1.4),
    Case("forward", "lstm", 100, 32, 256, 256, target=1.05),
    Case("forward", "lstm", 50, 64, 512, 512, target=1.05, slow=True),
    Case("forward", "lstm", 589, 4, 60, 128, layers=2, bidirectional=True, label="pyannote"),
    Case("forward", "gru", 100, 8, 128, 128, target=1.5),
    Case("forward", "gru", 100, 32, 64, 64, target=1.5),
    Case("forward", "gru", 100, 32, 256, 256, target=1.15),
    Case("forward", "gru", 50, 64, 512, 512, target=1.15, slow=True),
    Case("forward", "rnn", 100, 8, 128, 128, target=1.5),
    Case("forward", "rnn", 100, 32, 64, 64, target=1.5),
    Case("forward", "rnn", 100, 32, 256, 256, target=1.15),
    Case("forward", "rnn", 50, 64, 512, 512, target=1.15, slow=True),
    Case("forward", "lstm", 500, 32, 64, 128, lengths=(50, 500), target=1.8),
    Case("forward", "gru", 500, 32, 64, 128, lengths=(50, 500), target=1.8),
    # Forward and backpropagation through time
    Case("train", "lstm", 100, 1, 32, 32, target=2.5),
    Case("train", "lstm", 100, 1, 64, 128, target=2.5),
    Case("train", "lstm", 100, 8, 128, 128, target=1.5),
    Case("train", "lstm", 100, 32, 64, 64, target=1.5),
    Case("train", "lstm", 100, 32, 256, 256, target=1.2),
    Case("train", "lstm", 50, 64, 512, 512, target=1.2, slow=True),
    Case("train", "gru", 100, 1, 64, 128, target=5),
    Case("train", "gru", 100, 8, 128, 128, target=5),
    Case("train", "gru", 100, 32, 64, 64, target=5),
    Case("train", "gru", 100, 32, 256, 256, slow=True),
    Case("train", "rnn", 100, 1, 64, 128, target=5),
    Case("train", "rnn", 100, 8, 128, 128, target=5),
    Case("train", "rnn", 100, 32, 64, 64, target=5),
    Case("train", "rnn", 100, 32, 256, 256, slow=True),
    Case("train", "lstm", 100, 16, 32, 64, dtype="float64", target=5),
    Case("train", "gru", 100, 16, 32, 64, dtype="float64", target=5),
    Case("train", "lstm", 500, 32, 64, 128, lengths=(50, 500), target=3),
    Case("train", "gru", 500, 32, 64, 128, lengths=(50, 500), target=3, slow=True),
    Case("train", "rnn", 24, 32, 1, 25, label="Darts", target=8),
    Case("train", "lstm", 48, 32, 40, 40, layers=2, label="DeepAR", target=8),
    Case("train", "lstm", 365, 256, 15, 20, label="hydrology", target=2),
    Case("train", "lstm", 128, 2, 512, 128, label="CleanRL", target=2),
    Case("train", "lstm", 72, 128, 1, 128, layers=2, label="NeuralForecast", target=2, slow=True),
    Case("train", "lstm", 50, 50, 65, 128, layers=2, label="char-rnn", target=2),
    Case("train", "gru", 32, 32, 512, 512, label="sample-factory", target=2, slow=True),
    Case("train", "lstm", 70, 80, 400, 1150, label="AWD-LSTM", slow=True),
]
