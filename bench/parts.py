"""What stands around the recurrence, in elman and in PyTorch: `python bench/parts.py`. One thread, medians of turns.

Forward and backward of a head, the losses, the norm of the gradients, a step of Adam, and a step of a small deployed
model. The results are compared before anything is timed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import elman
from elman.benchmark import measure

TURNS, TURN = 9, 0.05  # turns of each, and the seconds of one
Work = Callable[[], Any]  # gives what is compared, an array, a number or several


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def head(torch: Any, N: int, I: int, O: int) -> tuple[str, Work, Work]:
    dense, linear, x, dy = elman.Dense(I, O, seed=0), torch.nn.Linear(I, O), draw(N, I), draw(N, O)
    linear.load_state_dict({name: torch.tensor(w) for name, w in dense.params.items()})
    tx, tdy = torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def ours() -> Any:
        y, tape = dense.forward(x)
        dx, grads = dense.backward(tape, dy)
        return y, dx, grads["weight"]

    def theirs() -> Any:
        linear.zero_grad(set_to_none=True)
        tx.grad = None
        y = linear(tx)
        y.backward(tdy)
        return y.detach().numpy(), tx.grad.numpy(), linear.weight.grad.numpy()

    return f"Dense {N} rows {I}->{O}, forward + backward", ours, theirs


def with_gradient(torch: Any, loss: Callable[[Any], Any], x: np.ndarray) -> Work:
    tensor = torch.tensor(x, requires_grad=True)

    def run() -> Any:
        tensor.grad = None
        value = loss(tensor)
        value.backward()
        return value.item(), tensor.grad.numpy()

    return run


def cross_entropy(torch: Any, N: int, C: int) -> tuple[str, Work, Work]:
    x, y = draw(N, C), np.arange(N) % C
    ty = torch.tensor(y)
    theirs = with_gradient(torch, lambda t: torch.nn.functional.cross_entropy(t, ty), x)
    return f"softmax cross-entropy, {N} rows of {C}", lambda: elman.losses.softmax_cross_entropy(x, y), theirs


def ctc(torch: Any, T: int, B: int, C: int, S: int) -> tuple[str, Work, Work]:
    x, y = draw(T, B, C), np.random.default_rng(0).integers(1, C, (B, S))
    ty, steps, counts = torch.tensor(y), torch.full((B,), T), torch.full((B,), S)

    def loss(t: Any) -> Any:
        return torch.nn.functional.ctc_loss(torch.log_softmax(t, -1), ty, steps, counts)

    name = f"CTC T{T} B{B}, {C} classes, targets of {S}"
    return name, lambda: elman.losses.ctc(x, y), with_gradient(torch, loss, x)


def norm_and_adam(torch: Any) -> Iterator[tuple[str, Work, Work]]:
    lstm, theirs = elman.LSTM(8, 64, seed=0), torch.nn.LSTM(8, 64)
    grads = {name: draw(*w.shape) for name, w in lstm.params.items()}
    for name, weight in theirs.named_parameters():
        weight.grad = torch.tensor(grads[name])
    weights, fused = list(theirs.parameters()), torch.optim.Adam(theirs.parameters(), fused=True)
    adam = elman.Adam(lstm)
    yield (
        "norm of the gradients of LSTM 8->64",
        lambda: elman.clip_grad_norm(grads, math.inf),
        lambda: torch.nn.utils.clip_grad_norm_(weights, math.inf, foreach=True).item(),
    )
    yield "Adam of LSTM 8->64", lambda: adam.step(grads), lambda: fused.step()


def step(torch: Any, H: int) -> tuple[str, Work, Work]:
    model = elman.Sequential([elman.LSTM(1, H, seed=0), elman.Dense(H, 1, seed=1)])
    lstm, linear = torch.nn.LSTM(1, H), torch.nn.Linear(H, 1)
    for ours, other in zip(model.layers, (lstm, linear)):
        other.load_state_dict({name: torch.tensor(w) for name, w in ours.params.items()})
    x, state, tx, tstate = np.ones((1, 1), np.float32), model.zero_state(1), torch.ones(1, 1, 1), None

    def theirs() -> Any:
        nonlocal tstate
        with torch.inference_mode():
            y, tstate = lstm(tx, tstate)
            return linear(y)[0].numpy()

    return f"a step of LSTM 1->{H} and Dense {H}->1, B1", lambda: model.step(x, state), theirs


def cases(torch: Any) -> Iterator[tuple[str, Work, Work]]:
    for sizes in ((32, 64, 10), (512, 128, 28), (4096, 128, 80)):
        yield head(torch, *sizes)
    for sizes in ((32, 10), (512, 28), (4096, 80)):
        yield cross_entropy(torch, *sizes)
    for sizes in ((100, 32, 30, 20), (50, 8, 80, 12), (400, 16, 60, 60), (100, 1, 30, 20)):
        yield ctc(torch, *sizes)
    yield from norm_and_adam(torch)
    for H in (20, 64):
        yield step(torch, H)


def seconds(run: Work, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    try:
        import torch
    except ImportError:
        raise SystemExit("bench/parts.py compares with PyTorch: pip install torch") from None
    torch.set_num_threads(1)
    elman.set_num_threads(1)
    for title, value in measure.machine().items():
        print(f"{title:8}{value}")
    print(f"\n{'microseconds a call, one thread':45} {'elman':>9} {'torch':>9}  / torch")
    for name, *contestants in cases(torch):
        of_each = [found if isinstance(found, tuple) else (found,) for found in (run() for run in contestants)]
        for a, b in zip(*of_each, strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)
        repeats = [max(1, math.ceil(TURN / seconds(run, 3))) for run in contestants]
        turns = [[seconds(run, n) for run, n in zip(contestants, repeats)] for _ in range(TURNS)]
        ours, theirs = (1e6 * statistics.median(of_one) for of_one in zip(*turns))
        print(f"{name:45} {ours:9.1f} {theirs:9.1f}  {theirs / ours:7.2f}", flush=True)


if __name__ == "__main__":
    main()
