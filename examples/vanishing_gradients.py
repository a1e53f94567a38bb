"""Why a plain RNN forgets, in one table: what is left of a gradient 100 steps back, and what helps.

    python examples/vanishing_gradients.py [--plot vanishing.png]

Four networks hear a pulse and then nothing. A tanh RNN as it is initialised loses the gradient of the pulse, with
orthogonal recurrent weights it keeps it, with weights 15 % larger it explodes, which clipping tames, and an LSTM whose
forget gates start open remembers. (Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013; Saxe,
McClelland and Ganguli 2014; Gers, Schmidhuber and Cummins 2000.)
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

import elman
from elman import diagnostics

INPUTS, HIDDEN, STEPS = 2, 32, 101
BACK = (1, 10, 50, 100)  # steps


def pulse(seed: int) -> np.ndarray:
    """x (T, B, I)"""
    x = np.zeros((STEPS, 8, INPUTS))
    x[0] = 1e-5 * np.random.default_rng(seed).standard_normal(x[0].shape)
    return x


def tanh_rnn(scale: float, seed: int) -> elman.RNN:
    """Its recurrent weights are orthogonal, times a number."""
    rnn = elman.RNN(INPUTS, HIDDEN, bias=False, dtype=np.float64, seed=seed)
    orthogonal, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((HIDDEN, HIDDEN)))
    with rnn.edit() as p:
        p["weight_hh_l0"] = scale * orthogonal
    return rnn


def networks(seed: int = 0) -> dict[str, elman.RNN | elman.LSTM]:
    return {
        "tanh RNN": elman.RNN(INPUTS, HIDDEN, dtype=np.float64, seed=seed),
        "orthogonal": tanh_rnn(1.0, seed),
        "orthogonal x 1.15": tanh_rnn(1.15, seed),
        "LSTM": elman.LSTM(INPUTS, HIDDEN, forget_bias=5.0, dtype=np.float64, seed=seed),
    }


def measure(seed: int = 0) -> dict[str, tuple[np.ndarray, diagnostics.MemoryLength]]:
    """For each network the norm of the gradient that reaches its memory at each step (h, or c of the LSTM), from a
    gradient of norm 1 at the end, and how long it remembers the pulse."""
    found = {}
    for name, layer in networks(seed).items():
        norms = diagnostics.gradient_norms(layer, pulse(seed)).norms
        found[name] = norms.get("c_l0", norms["h_l0"]), diagnostics.memory_length(layer, pulse(seed))
    return found


def train(max_norm: float, seed: int, epochs: int = 200, lr: float = 0.005) -> tuple[float, float]:
    """Teach the exploding network to tell at the end the sign of the pulse, by gradient descent: the mean squared
    error of the last epoch, and the largest norm of a gradient before it was clipped."""
    rnn, x = tanh_rnn(1.15, seed), pulse(seed)
    head = elman.Dense(HIDDEN, 1, dtype=np.float64, seed=seed)
    targets = np.sign(x[0, :, :1])
    largest = 0.0
    for _ in range(epochs):
        y, _, tape = rnn.forward(x)
        outputs, head_tape = head.forward(y[-1])
        error = outputs - targets
        dy = np.zeros_like(y)
        dy[-1], head_grads = head.backward(head_tape, 2 / len(targets) * error)
        _, _, rnn_grads = rnn.backward(tape, dy)
        largest = max(largest, elman.clip_grad_norm([rnn_grads, head_grads], max_norm))
        for layer, grads in ((rnn, rnn_grads), (head, head_grads)):
            with layer.edit() as p:
                for name, g in grads.items():
                    p[name] -= lr * g
    return float((error**2).mean()), largest


def draw(found: dict[str, tuple[np.ndarray, diagnostics.MemoryLength]]) -> Any:
    """The figure: gradients on the left, memories on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    diagnostics.GradientNorms({name: norms for name, (norms, _) in found.items()}).plot(left)
    left.set_ylim(1e-16, 1e9)
    for name, (_, memory) in found.items():
        right.plot(memory.response / memory.response.max(), label=name)
    right.set(xlabel="steps after the pulse", ylabel="response, of its largest", yscale="log", ylim=(1e-6, 2))
    right.legend()
    return figure


def main(arguments: list[str] | None = None, seeds: int = 10) -> None:
    parser = argparse.ArgumentParser(description="vanishing and exploding gradients, and what helps")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves into this file (needs matplotlib)")
    options = parser.parse_args(arguments)

    found = measure()
    print("what is left of a gradient of norm 1, so many steps back")
    print(f"{'':18}" + "".join(f"{back:>10}" for back in BACK) + "   remembers a pulse for")
    for name, (norms, memory) in found.items():
        length = f"{memory.length} steps" if memory.length is not None else f"more than {STEPS - 1} steps"
        print(f"{name:18}" + "".join(f"{norms[STEPS - 1 - back]:10.2g}" for back in BACK) + f"   {length}")

    print(f"\nthe exploding one learns to tell the sign of the pulse (error below 0.01), of {seeds} times")
    for what, max_norm in (("unclipped", math.inf), ("clipped to norm 1", 1.0)):
        errors, largest = zip(*(train(max_norm, seed) for seed in range(seeds)))
        print(f"{what:18}{sum(error < 0.01 for error in errors)} times   largest gradient {max(largest):.2g}")

    if options.plot:
        draw(found).savefig(options.plot, dpi=100)
        print(f"\ndrawn into {options.plot}")


if __name__ == "__main__":
    main()
