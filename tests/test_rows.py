"""Cells that take a number with each row, AUGRU and CfC: their quick ways, which must not differ from the careful ones
in a bit, and what is wrong with such a number."""

from __future__ import annotations

import time

import numpy as np
import pytest

import elman

T, B, I, H = 5, 3, 2, 7
KINDS = {
    "augru-after": ("attention", lambda **o: elman.AUGRU(I, H, seed=0, **o)),
    "augru-before": ("attention", lambda **o: elman.AUGRU(I, H, reset_after=False, seed=0, **o)),
    "cfc": ("timespans", lambda **o: elman.CfC(I, H, seed=0, **o)),
    "cfc-pure": ("timespans", lambda **o: elman.CfC(I, H, mode="pure", seed=0, **o)),
}


def made(name, dtype=np.float32, **options):
    """A layer, the name of the number, x (T, B, I) and the numbers (T, B)."""
    row_name, kind = KINDS[name]
    rng = np.random.default_rng(0)
    return kind(dtype=dtype, **options), row_name, *(rng.random(s).astype(dtype) for s in ((T, B, I), (T, B)))


def without(monkeypatch, *names):
    """What goes one of these ways fails from here on."""
    for name in names:
        monkeypatch.setattr(elman.layers.Recurrent, name, None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", KINDS)
def test_steps_and_calls_alone_in_a_batch_and_careful(name, dtype, monkeypatch):
    layer, key, x, a = made(name, dtype, num_layers=2)
    quick = [layer(x, **{key: a}), layer(x, **{key: list(a)})]  # a list goes the careful way
    for part, careful in zip(quick[0], quick[1], strict=True):
        assert part.tobytes() == careful.tobytes()
    y, last = quick[0]
    assert abs(layer(x, **{key: np.ones_like(a)})[0] - y).max() > 1e-3  # the numbers count
    state, careful = layer.zero_state(B), layer.zero_state(B)
    for t in range(T):
        assert layer.step(x[t], careful, **{key: a[t].tolist()}).tobytes() == y[t].tobytes()
    without(monkeypatch, "_infer", "_take_step")
    for t in range(T):
        assert layer.step(x[t], state, **{key: a[t]}).tobytes() == y[t].tobytes()
    assert state.tobytes() == careful.tobytes() == last.tobytes()
    for b in range(B):
        alone, h = layer(x[:, b].copy(), **{key: a[:, b].copy()})
        assert alone.tobytes() == y[:, b].tobytes() and h.tobytes() == last[:, b].tobytes()
        state = layer.zero_state()
        for t in range(T):
            number = float(a[t, b]) if t % 2 else a[t, b]  # a plain one, or one of NumPy's
            assert layer.step(x[t, b], state, **{key: number}).tobytes() == y[t, b].tobytes()
    first, state = layer(x[:2], **{key: a[:2]})
    second, state = layer(x[2:], state, **{key: a[2:]})
    assert np.concatenate([first, second]).tobytes() == y.tobytes() and state.tobytes() == last.tobytes()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_batch_first_and_both_directions(name, bidirectional, monkeypatch):
    layer, key, x, a = made(name, num_layers=2, bidirectional=bidirectional)
    turned, *_ = made(name, num_layers=2, bidirectional=bidirectional, batch_first=True)
    y, state, _ = layer.forward(x, **{key: a})
    without(monkeypatch, "_infer")
    assert layer(x, **{key: a})[0].tobytes() == y.tobytes()
    other, other_state = turned(x.swapaxes(0, 1).copy(), **{key: a.T.copy()})
    assert other.swapaxes(0, 1).tobytes() == y.tobytes() and other_state.tobytes() == state.tobytes()
    for sizes in ((0, B), (T, 0), (0, 0)):
        y, state = layer(np.ones((*sizes, I), np.float32), **{key: np.ones(sizes, np.float32)})
        assert y.shape == (*sizes, H * (1 + bidirectional)) and not state.any()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("name", KINDS)
def test_wrong_numbers(name, backend):
    layer, key, x, a = made(name, backend=backend)
    state = layer.zero_state(B)
    before = state.copy()
    memory = np.zeros(3 * B * H, np.float32)
    out, small = memory[: B * H].reshape(B, H), memory[H : H + B]
    for call, error, words in (
        (lambda: layer.step(x[0], state, **{key: a[0, :2]}), ValueError, rf"{key}: expected shape \(3,\), got \(2,\)"),
        (lambda: layer.step(x[0], state, **{key: a[:1]}), ValueError, rf"{key}: expected shape \(3,\)"),
        (lambda: layer.step(x[0], state, **{key: 0.5}), ValueError, rf"{key}: expected shape \(3,\), got \(\)"),
        (lambda: layer.step(x[0, 0], state[:, 0], **{key: a[0]}), ValueError, rf"{key}: expected shape \(\), got"),
        (lambda: layer.step(x[0], state, **{key: a[0].astype(float)}), TypeError, f"{key}: expected dtype float32"),
        (lambda: layer.step(x[0], state, **{key: "half"}), (TypeError, ValueError), f"{key}: "),
        (lambda: layer.step(x[0], state, out, **{key: small}), ValueError, f"out: .* overlaps {key}"),
        (lambda: layer.step(x[0], state, **{key: state[0, 1, :3]}), ValueError, f"state: .* overlaps {key}"),
        (lambda: layer(x, **{key: a[0]}), ValueError, rf"{key}: expected shape \(5, 3\), got \(3,\)"),
        (lambda: layer(x, **{key: a.T}), ValueError, rf"{key}: expected shape \(5, 3\)"),
        (lambda: layer(x, **{key: a.astype(float)}), TypeError, f"{key}: expected dtype float32"),
        (lambda: layer(x, **{key: 1.0}), ValueError, f"{key}: expected shape"),
    ):
        with pytest.raises(error, match=words):
            call()
        assert np.array_equal(state, before) and not memory.any()


def test_overlap_is_refused_by_the_functions_too():
    for module in (elman.functional, elman.reference):
        weights = [[np.ones((12, 2)), np.ones((12, 4)), np.zeros(12), np.zeros(12)]]
        h = np.zeros((1, 3, 4))
        with pytest.raises(ValueError, match="state: h: .* overlaps row"):
            module.cell_step("augru_reset_after", np.ones((3, 2)), h, [weights], row=h[0, 1, :3])
        memory = np.zeros((2, 3, 4))
        with pytest.raises(ValueError, match="out: .* overlaps row"):
            row = memory.reshape(-1)[:6].reshape(2, 3)
            module.cell_forward("augru_reset_after", np.ones((2, 3, 2)), h, weights, row=row, out=memory)


def test_a_step_with_a_number_costs_what_one_without_costs():
    """It once made its layers ready in each step, which took 20 times as long."""
    best = {}
    x, a = np.ones((1, I), np.float32), np.ones(1, np.float32)
    layer = elman.CfC(I, H, seed=0)
    state = layer.zero_state(1)
    for _ in range(20):
        for name, keywords in (("with", {"timespans": a}), ("without", {})):
            start = time.perf_counter()
            for _ in range(200):
                layer.step(x, state, **keywords)
            best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
    assert best["with"] < 4 * best["without"]
