"""What the options of a cell cost, beside the plain cell of the same size: `python bench/options.py`. One thread, the
contestants of a row take turns; medians.
"""

import statistics
import time
from functools import partial

import numpy as np

import elman

OPTIONS = {
    "LSTM": [
        {"peephole": True},
        {"coupled": "f=1-i"},
        {"clip": 3.0},
        {"cell_clip": 3.0},
        {"grad_clip": 1.0},
        {"activations": ("hardsigmoid", "softsign", "relu")},
        {"activations": ("sigmoid", "softplus", ("elu", 0.5)), "peephole": True, "clip": 3.0},
        {"layer_norm": "gate"},
        {"layer_norm": "joint"},
        {"layer_norm": "joint_shift"},
    ],
    "GRU": [
        {"clip": 3.0},
        {"activations": ("hardsigmoid", "softplus")},
        {"reset_after": False, "clip": 3.0},
        {"layer_norm": "joint"},
    ],
    "RNN": [{"nonlinearity": "relu"}, {"nonlinearity": "softplus"}, {"nonlinearity": ("elu", 0.3)}],
}
SIZES = [(100, 1, 64, 128), (100, 16, 64, 64), (100, 32, 128, 256)]  # T, B, I, H
ROUNDS = 21


def medians(calls):
    """Microseconds of each call; they take turns, so that a noisy machine disturbs all alike."""
    times = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, into in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return [statistics.median(each) * 1e6 for each in times]


def trained(layer, x, dy):
    _, _, tape = layer.forward(x)
    layer.backward(tape, dy)


def main():
    elman.set_num_threads(1)
    print(f"{'times the plain cell':112}{'forward':>10}{'training':>10}")
    for T, B, I, H in SIZES:
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal((T, B, n), dtype=np.float32) for n in (I, H))
        for name, options in OPTIONS.items():
            kind = getattr(elman, name)
            plain = [{"reset_after": False} if "reset_after" in option else {} for option in options]
            for option, without in zip(options, plain, strict=True):
                layers = [kind(I, H, seed=0, **each) for each in (without, option)]
                calls = [partial(layer, x) for layer in layers]
                steps = [partial(trained, layer, x, dy) for layer in layers]
                ratios = [after / before for before, after in (medians(calls), medians(steps))]
                print(f"{f'{name} T{T} B{B} {I}->{H} {option}':112}{ratios[0]:10.2f}{ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
