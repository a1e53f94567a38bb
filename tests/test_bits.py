"""The promise about bits: a sequence has one result, whatever batch, padding, chunking, threads or memory surround it.

Everything here is compared byte by byte, on every instruction set this machine has. What a sequence has of its own are
its outputs, its final state, and the gradients of its x and of its initial state. Weight gradients belong to the whole
batch: they are the same with any number of threads, every time.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import test_kernels
from helpers import CELLS, problem
from test_kernels import assert_same_bytes, each_cell, each_D, each_dtype, moved

import elman
from elman import functional as F

isa = test_kernels.isa

# I and H from 1 to beyond every limit: vectors (2 to 16 lanes), tiles of 4 vectors and 4 panels at once, UNIT_BLOCK 48,
# rows that are written at a time (64).
SIZES = [(257, 1), (1, 2), (17, 15), (64, 16), (15, 17), (2, 31), (33, 33), (130, 48), (16, 49), (48, 63), (63, 64)]
SIZES += [(31, 65), (49, 130), (65, 257)]
SOME_SIZES = [(1, 2), (17, 15), (33, 33), (16, 49)]

each_size = pytest.mark.parametrize("I, H", SIZES, ids=lambda n: str(n))
some_sizes = pytest.mark.parametrize("I, H", SOME_SIZES, ids=lambda n: str(n))


def packed_problem(name, T, B, I, H, D, dtype, **masks):
    """A problem whose weights are laid out once for all calls."""
    p = problem(CELLS[name], T, B, I, H, D, dtype, **masks)
    return dataclasses.replace(p, weights=p.cell.run(F, "pack", p.weights))


def results(p, training=True):
    """Outputs, final states, and the gradients that each sequence has of its own."""
    y, state, tape = p.forward(F, training=training)
    found = {"y": y} | dict(zip(p.cell.parts, state))
    if training:
        dx, dstate, _ = p.cell.run(F, "backward", tape, p.dy, p.cell.state(p.dstate))
        found |= {"dx": dx} | {f"d{part}0": a for part, a in zip(p.cell.parts, p.cell.parts_of(dstate))}
    return found


def part_of(p, sequences=slice(None), steps=slice(None)):
    """The problem of some of the sequences and steps."""
    return dataclasses.replace(
        p,
        x=p.x[steps, sequences],
        state=[part[:, sequences] for part in p.state],
        dy=p.dy[steps, sequences],
        dstate=[part[:, sequences] for part in p.dstate],
        lengths=None if p.lengths is None else p.lengths[sequences],
        reset=None if p.reset is None else p.reset[steps, sequences],
    )


def rows(found, sequences=slice(None), steps=slice(None)):
    """What some of the sequences have in the results of a batch; of y and dx, some of the steps."""
    return {name: a[steps if name in ("y", "dx") else slice(None), sequences] for name, a in found.items()}


def assert_has_bits(found):
    """Not all zero, and finite: equal bytes would else mean nothing."""
    for name, a in found.items():
        assert np.isfinite(a).all() and a.any(), name


# -------------------------------------------------------------------------------------------- alone, in a batch, ragged


@each_size
@each_D
@each_dtype
@each_cell
def test_a_sequence_alone_and_in_batches(isa, name, dtype, D, I, H):
    p = packed_problem(name, 3 if H < 100 else 2, 70, I, H, D, dtype)
    whole = results(p)
    assert_has_bits(whole)
    inferred = results(p, training=False)
    assert_same_bytes(inferred, {key: whole[key] for key in inferred})
    for b in (0, 5, 63, 64, 69):  # on both sides of the borders of tiles and of TASK_ROWS
        assert_same_bytes(results(part_of(p, [b])), rows(whole, [b]))
    for start, size in [(68, 2), (1, 3), (61, 4), (2, 5), (60, 6), (3, 7), (5, 13), (4, 64), (5, 65)]:
        if H < 100 or size < 10:
            some = slice(start, start + size)
            assert_same_bytes(results(part_of(p, some)), rows(whole, some))


@pytest.mark.parametrize("I, H", [(5, 17), (33, 49)], ids=lambda n: str(n))
@each_dtype
@each_cell
def test_every_size_of_a_batch_from_1_to_70(isa, name, dtype, I, H):
    p = packed_problem(name, 2, 70, I, H, 2, dtype)
    whole = results(p)
    for size in range(1, 70):
        start = 7 * size % (71 - size)
        some = slice(start, start + size)
        assert_same_bytes(results(part_of(p, some)), rows(whole, some))


@each_dtype
@each_cell
def test_the_order_of_a_batch(isa, name, dtype):
    p = packed_problem(name, 3, 70, 5, 17, 2, dtype)
    order = np.random.default_rng(0).permutation(70)
    assert_same_bytes(results(part_of(p, order)), rows(results(p), order))


@each_size
@each_D
@each_dtype
@each_cell
def test_padding(isa, name, dtype, D, I, H):
    """More steps than a sequence has change nothing, and neither does the argument `lengths`."""
    T, B = 3, 5
    p = packed_problem(name, T, B, I, H, D, dtype)
    plain = results(p)
    for more in (0, 3):
        padding = ((0, more), (0, 0), (0, 0))
        x, dy = (np.pad(a, padding, constant_values=np.nan) for a in (p.x, p.dy))
        padded = results(dataclasses.replace(p, x=x, dy=dy, lengths=np.full(B, T)))
        assert_same_bytes(rows(padded, steps=slice(T)), plain)
        assert not padded["y"][T:].any() and not padded["dx"][T:].any()


@pytest.mark.parametrize("resets", [False, True], ids=["plain", "reset"])
@some_sizes
@each_D
@each_dtype
@each_cell
def test_a_sequence_alone_and_in_a_ragged_batch(isa, name, dtype, D, I, H, resets):
    T, B = 9, 70
    rng = np.random.default_rng(I)
    lengths = rng.integers(0, T + 1, B)
    reset = rng.random((T, B)) < 0.3 if resets else None
    p = packed_problem(name, T, B, I, H, D, dtype, lengths=lengths, reset=reset)
    whole = results(p)
    for b in range(0, B, 5):
        alone = dataclasses.replace(part_of(p, [b], slice(lengths[b])), lengths=None)
        assert_same_bytes(results(alone), rows(whole, [b], slice(lengths[b])))


@some_sizes
@each_dtype
@each_cell
def test_each_direction_is_a_layer_of_one_direction(isa, name, dtype, I, H):
    """The first of two directions; and the second, on the sequence back to front."""
    p = problem(CELLS[name], 5, 7, I, H, 2, dtype)
    y, state, _ = p.forward(F)
    for d, time in enumerate((slice(None), slice(None, None, -1))):
        one = dataclasses.replace(
            p, x=p.x[time], state=[part[[d]] for part in p.state], weights=[p.weights[d]], dy=None, dstate=[None]
        )
        y_d, state_d, _ = one.forward(F)
        assert y_d[time].tobytes() == y[:, :, d * H : (d + 1) * H].tobytes()
        assert [part.tobytes() for part in state_d] == [part[[d]].tobytes() for part in state]


# ------------------------------------------------------------------------------------------ in pieces, and step by step


def in_pieces(p, borders):
    """The results of a problem that goes through forward piece by piece, and back through backward."""
    state, dstate, ys, tapes, dxs = p.state, p.dstate, [], [], []
    pieces = [slice(a, b) for a, b in zip([0, *borders], [*borders, len(p.x)])]
    for piece in pieces:
        y, state, tape = dataclasses.replace(part_of(p, steps=piece), state=state).forward(F)
        ys.append(y)
        tapes.append(tape)
    for piece, tape in zip(reversed(pieces), reversed(tapes)):
        dx, dstate, _ = p.cell.run(F, "backward", tape, p.dy[piece], p.cell.state(dstate))
        dstate = p.cell.parts_of(dstate)
        dxs.insert(0, dx)
    found = {"y": np.concatenate(ys)} | dict(zip(p.cell.parts, state)) | {"dx": np.concatenate(dxs)}
    return found | {f"d{part}0": a for part, a in zip(p.cell.parts, dstate)}


@pytest.mark.parametrize("B", [1, 6, 66])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "reset"])
@some_sizes
@each_dtype
@each_cell
def test_pieces_of_carried_state(isa, name, dtype, I, H, resets, B):
    T = 12
    reset = np.random.default_rng(B).random((T, B)) < 0.2 if resets else None
    p = packed_problem(name, T, B, I, H, 1, dtype, reset=reset)
    whole = results(p)
    for borders in ([1], [4, 4, 11], range(1, T)):  # one piece of no steps at all
        assert_same_bytes(in_pieces(p, borders), whole)


@each_size
@each_dtype
@each_cell
def test_pieces_of_carried_state_at_every_size(isa, name, dtype, I, H):
    p = packed_problem(name, 5, 3, I, H, 1, dtype)
    assert_same_bytes(in_pieces(p, [2, 3]), results(p))


def stacked(p, layers):
    """The weights of `layers` layers, of which the upper ones take the outputs of the lower: the first is p's."""
    H = p.state[0].shape[2]
    others = [problem(p.cell, 0, 0, H, H, 1, p.x.dtype, seed=layer).weights for layer in range(1, layers)]
    return [p.cell.run(F, "pack", weights) for weights in [p.weights, *others]]


def check_steps(p, layers):
    """`*_step` T times, through all layers at once, against one forward call for each layer."""
    stack = stacked(p, layers)
    T, B, H = p.dy.shape
    parts = [np.concatenate([part] * layers) for part in p.state]
    y, after = p.x, []
    for layer, weights in enumerate(stack):
        state = p.cell.state([part[[layer]] for part in parts])
        y, state, _ = p.cell.run(F, "forward", y, state, weights)
        after.append(p.cell.parts_of(state))
    out = np.empty((B, H), p.x.dtype)
    for t in range(T):
        p.cell.run(F, "step", p.x[t], p.cell.state(parts), stack, out=out if t % 2 else None)
        stepped = out if t % 2 else parts[0][-1]
        assert stepped.tobytes() == y[t].tobytes(), f"step {t}"
    for part, expected in zip(parts, zip(*after)):
        assert part.tobytes() == np.concatenate(expected).tobytes()


@each_size
@each_dtype
@each_cell
def test_steps(isa, name, dtype, I, H):
    for B in (1, 4):
        check_steps(problem(CELLS[name], 3, B, I, H, 1, dtype), layers=1)


@pytest.mark.parametrize("B", [1, 2, 3, 7, 65])
@pytest.mark.parametrize("layers", [2, 3])
@each_dtype
@each_cell
def test_steps_through_a_stack(isa, name, dtype, layers, B):
    for I, H in SOME_SIZES:
        check_steps(problem(CELLS[name], 5, B, I, H, 1, dtype), layers)


LAYERS = {
    "rnn": lambda **options: elman.RNN(17, 33, 3, **options),
    "lstm": lambda **options: elman.LSTM(17, 33, 3, **options),
    "gru": lambda **options: elman.GRU(17, 33, 3, **options),
    "gru-before": lambda **options: elman.GRU(17, 33, 3, reset_after=False, **options),
}


@each_dtype
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_called_trained_stepped_and_in_pieces(isa, layer, dtype):
    layer = LAYERS[layer](dtype=dtype, seed=1)
    T, B = 6, 7
    x = np.random.default_rng(0).standard_normal((T, B, 17)).astype(dtype)
    y, state = layer(x)

    def bytes_of(y, state):
        return [y.tobytes()] + [part.tobytes() for part in (state if isinstance(state, tuple) else [state])]

    expected = bytes_of(y, state)
    assert bytes_of(*layer.forward(x)[:2]) == expected
    state = layer.zero_state(B)
    assert bytes_of(np.stack([layer.step(x_t, state) for x_t in x]), state) == expected
    first, state = layer(x[:2])
    second, state = layer(x[2:], state)
    assert bytes_of(np.concatenate([first, second]), state) == expected
    for b in range(B):
        assert layer(x[:, b])[0].tobytes() == y[:, b].tobytes()


@each_dtype
@each_cell
def test_nan_meets_nan(isa, name, dtype):
    """Which of two NaN the machine hands on, compilers decide anew for every loop: all of them are made one."""
    T, B = 3, 7
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = problem(CELLS[name], T, B, 5, 17, dtype=dtype, seed=seed)
        bits = p.x.view(f"u{p.x.itemsize}")
        for a in (p.x, *p.state):
            a[rng.random(a.shape) < 0.1] = np.inf
            a[rng.random(a.shape) < 0.1] = -np.nan
        nan = np.isnan(p.x)
        bits[nan] += rng.integers(1, 1000, nan.sum()).astype(bits.dtype)  # other payloads
        packed = dataclasses.replace(p, weights=p.cell.run(F, "pack", p.weights))
        whole = results(packed, training=False)
        assert np.isnan(whole["y"]).any()
        assert_same_bytes({key: a for key, a in results(packed).items() if key in whole}, whole)
        for b in range(B):
            assert_same_bytes(results(part_of(packed, [b]), training=False), rows(whole, [b]))
        check_steps(p, 1)


@pytest.mark.parametrize("T, B, I, H", [(5, 70, 17, 33), (150, 2, 3, 5), (0, 3, 2, 2), (3, 0, 2, 2)], ids=str)
@each_D
@each_dtype
@each_cell
def test_gates_computed_again(isa, name, dtype, D, T, B, I, H):
    rng = np.random.default_rng(0)
    masks = {"lengths": rng.integers(0, T + 1, B), "reset": rng.random((T, B)) < 0.1}
    for more in ({}, masks):
        p = packed_problem(name, T, B, I, H, D, dtype, **more)
        kept, again = (p.forward(F, recompute=recompute)[2] for recompute in (False, True))
        slots, states = 1 + kept.weights.packed.slots, len(p.cell.parts)  # h beside the slots
        assert again.kept.size * slots == kept.kept.size * states
        before = again.kept.tobytes()
        expected = p.backward(F, kept)
        for threads in (1, 3):
            with elman.threads(threads):
                assert_same_bytes(p.backward(F, again), expected)
        assert again.kept.tobytes() == before


@pytest.mark.parametrize("masks", ["plain", "lengths", "reset", "lengths+reset"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("kind", [elman.RNN, elman.LSTM, elman.GRU])
def test_a_long_stack_is_called_as_it_is_trained(kind, bidirectional, batch_first, masks):
    """A call takes the layers in turns over pieces of time (csrc/stack.c), `forward` one after the other."""
    T, B = 600, 4
    rng = np.random.default_rng(0)
    layer = kind(3, 5, 3, bidirectional=bidirectional, batch_first=batch_first, seed=1)
    more = {}
    if "lengths" in masks:
        more["lengths"] = [600, 0, 257, 511]
    if "reset" in masks:
        more["reset"] = rng.random((B, T) if batch_first else (T, B)) < 0.01
    x = rng.standard_normal((B, T, 3) if batch_first else (T, B, 3)).astype(np.float32)
    state = layer.zero_state(B)
    for part in state if isinstance(state, tuple) else (state,):
        part[...] = rng.standard_normal(part.shape)
    for given in (None, state):
        y, after, _ = layer.forward(x, given, **more)
        for form in (np.ascontiguousarray, with_gaps):  # the quick way, and the one with care
            y_called, after_called = layer(form(x), given, **more)
            assert y_called.tobytes() == y.tobytes()
            assert np.array(after_called).tobytes() == np.array(after).tobytes()


def with_gaps(x):
    return np.repeat(x, 2, axis=-1)[..., ::2]


# -------------------------------------------------------------------------------- training, repetition, memory, threads


@some_sizes
@each_D
@each_dtype
@each_cell
def test_training_and_inference(isa, name, dtype, D, I, H):
    T, B = 4, 7
    reset = np.arange(T * B).reshape(T, B) % 5 == 0
    p = packed_problem(name, T, B, I, H, D, dtype, lengths=np.arange(B) % (T + 1), reset=reset)
    y, state, _ = p.forward(F)
    assert_same_bytes(results(p, training=False), {"y": y} | dict(zip(p.cell.parts, state)))


@some_sizes
@each_D
@each_dtype
@each_cell
def test_every_time(isa, name, dtype, D, I, H):
    """Whatever was in memory before: weight gradients too."""
    p = problem(CELLS[name], 5, 7, I, H, D, dtype, lengths=[5, 0, 3, 1, 5, 4, 2])
    first = p.results(F)
    for dirt in (np.nan, 1e30, 0):
        dirty = [np.full(2**n, dirt) for n in range(3, 18)]
        del dirty
        assert_same_bytes(p.results(F), first)


@each_D
@each_dtype
@each_cell
def test_any_address(isa, name, dtype, D):
    p = problem(CELLS[name], 5, 7, 17, 33, D, dtype)
    expected = p.results(F)
    for elements in (*range(1, 17), 0.25):  # 0.25: not even a multiple of the size of an element
        offset = int(elements * p.x.itemsize)
        odd = dataclasses.replace(
            p,
            x=moved(p.x, offset),
            dy=moved(p.dy, offset),
            state=[moved(part, offset) for part in p.state],
            dstate=[moved(part, offset) for part in p.dstate],
            weights=[tuple(moved(w, offset) for w in direction) for direction in p.weights],
        )
        assert_same_bytes(odd.results(F), expected)


WORTH_THREADS = 2.5e7  # multiplications that MOST threads are woken for: elman_worth_threads in csrc/pool.c
MOST = 5


def threaded_problem(name, D, B, I, H, ragged, dtype):
    """A problem that is worth MOST threads."""
    cell = CELLS[name]
    T = math.ceil(WORTH_THREADS / (D * B * cell.gates * H * (I + H)))
    lengths = None
    if ragged:
        T, lengths = 2 * T, np.random.default_rng(T).integers(T, 2 * T + 1, B)
    return problem(cell, T, B, I, H, D, dtype, lengths=lengths)


THREADED = [  # D, B, I, H, ragged
    (1, 45, 65, 130, True),
    (2, 70, 130, 49, False),
    (1, 3, 33, 245, False),  # one part: a team shares the products of each step
]
each_threaded = pytest.mark.parametrize("D, B, I, H, ragged", THREADED, ids=lambda value: str(value))


@each_threaded
@each_dtype
@each_cell
def test_any_number_of_threads(isa, name, dtype, D, B, I, H, ragged):
    """All results, weight gradients too."""
    p = threaded_problem(name, D, B, I, H, ragged, dtype)
    with elman.threads(1):
        expected = p.results(F)
    for n in range(2, MOST + 1):
        with elman.threads(n):
            assert_same_bytes(p.results(F), expected)


@pytest.mark.parametrize("B", [3, 45])
def test_threads_flush_subnormal_numbers_alike(isa, B):
    """What is too small for a normal float counts as zero in all threads or in none."""
    p = threaded_problem("rnn-relu", 1, B, 65, 245, False, "float32")
    p.x[:] = np.abs(p.x) * 1e-39
    p.weights = [(np.abs(w_ih) * 30, w_hh, None, None) for w_ih, w_hh, *_ in p.weights]
    p.state = [np.zeros_like(part) for part in p.state]
    results = []
    for n in (1, 2, MOST):
        with elman.threads(n):
            results.append(p.forward(F)[0])
    for y in results[1:]:
        assert y.tobytes() == results[0].tobytes()


def test_set_num_threads_changes_no_bit():
    before = elman.get_num_threads()
    p = threaded_problem("lstm", *THREADED[0], "float32")
    try:
        elman.set_num_threads(1)
        expected = p.results(F)
        elman.set_num_threads(MOST)
        assert_same_bytes(p.results(F), expected)
    finally:
        elman.set_num_threads(before)


COUNT_THREADS = """
import os, sys
import elman, test_bits
from elman import functional as F
p = test_bits.threaded_problem(sys.argv[1], *map(int, sys.argv[2:]), "float32")
before = len(os.listdir("/proc/self/task"))
with elman.threads(test_bits.MOST):
    _, _, tape = p.forward(F)
    forward = len(os.listdir("/proc/self/task"))
    p.backward(F, tape)
print(forward - before, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@each_threaded
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm"])
def test_the_threads_of_these_problems_are_started(name, D, B, I, H, ragged):
    path = os.pathsep.join([os.path.dirname(os.path.dirname(elman.__file__)), os.path.dirname(__file__)])
    arguments = [sys.executable, "-c", COUNT_THREADS, name, *(str(int(value)) for value in (D, B, I, H, ragged))]
    run = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(MOST - 1)] * 2


# ------------------------------------------------------------------------------------------------------- whole models


def assert_equal_bytes(got, expected):
    assert_same_bytes({"array": got}, {"array": expected})


def a_model(dtype):
    lstm, gru = elman.LSTM(5, 19, seed=0, dtype=dtype), elman.GRU(33, 7, seed=2, dtype=dtype)
    layers = [lstm, elman.Dense(19, 33, seed=1, dtype=dtype), gru, elman.Dense(7, 1, seed=3, dtype=dtype)]
    return elman.Sequential(layers)


@each_dtype
def test_a_model_alone_in_a_batch_in_pieces_and_streamed(isa, dtype):
    model, T, B = a_model(dtype), 6, 70
    x = np.random.default_rng(0).standard_normal((T, B, 5)).astype(dtype)
    whole = model(x)
    assert whole.std() > 0.01
    assert_equal_bytes(model.forward(x)[0], whole)
    for b in (0, 1, 69):
        assert_equal_bytes(model(x[:, b]), whole[:, b])
        state = model.zero_state()
        assert_equal_bytes(np.stack([model.step(x_t, state) for x_t in x[:, b]]), whole[:, b])
    first, state = model(x[:2, :3], return_state=True)
    assert_equal_bytes(np.concatenate([first, model(x[2:, :3], state)]), whole[:, :3])


@each_dtype
def test_layers_without_recurrence_on_any_number_of_threads(isa, dtype):
    """Rows as many as threads pay for, in odd numbers; and more than are summed at once."""
    layers = [elman.Dense(65, 63, seed=0, dtype=dtype), elman.TDNN(33, 17, 3, 2, seed=0, dtype=dtype)]
    for layer in layers:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((301, 7, layer.in_features)).astype(dtype)
        dy = rng.standard_normal((301, 7, layer.out_features)).astype(dtype)
        found = []
        for threads in (1, 2, 5):
            with elman.threads(threads):
                y, tape = layer.forward(x)
                dx, grads = layer.backward(tape, dy)
                found.append([y, dx, *grads.values()])
        assert all(np.abs(a).max() > 0.01 for a in found[0])
        for other in found[1:]:
            for one, a in zip(found[0], other, strict=True):
                assert_equal_bytes(one, a)
        for b in (0, 6):
            y, tape = layer.forward(x[:, b : b + 1])
            assert_equal_bytes(y, found[0][0][:, b : b + 1])
            assert_equal_bytes(layer.backward(tape, dy[:, b : b + 1])[0], found[0][1][:, b : b + 1])
