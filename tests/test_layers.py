"""RNN, LSTM and GRU against a plain composition of reference calls, in every option."""

import copy
import itertools
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from elman import reference
from elman._state import LSTMState
from elman.layers import GRU, LSTM, RNN

CELLS = {
    "rnn_tanh": (RNN, {}),
    "rnn_relu": (RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (RNN, {"nonlinearity": "sigmoid"}),
    "lstm": (LSTM, {}),
    "gru": (GRU, {}),
    "gru_reset_before": (GRU, {"reset_after": False}),
}
THREE = ["rnn_tanh", "lstm", "gru"]
TOLERANCE = {np.dtype(np.float32): dict(rtol=1e-4, atol=2e-5), np.dtype(np.float64): dict(rtol=1e-10, atol=1e-12)}

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def make(cell, *sizes, **options):
    kind, cell_options = CELLS[cell]
    options = {"seed": 0, "dtype": np.float64} | cell_options | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dropout acts between layers")
        return kind(*(sizes or (3, 4)), **options)


def normal(*shape, dtype=np.float64, seed=1):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def parts_of(state):
    return [state] if isinstance(state, np.ndarray) else list(state)


def state_of(layer, parts):
    return tuple(parts) if isinstance(layer, LSTM) else parts[0]


def some_state(layer, B, seed=2):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    count = 2 if isinstance(layer, LSTM) else 1
    return state_of(layer, [normal(rows, B, layer.hidden_size, dtype=layer.dtype, seed=seed + k) for k in range(count)])


def close(actual, expected, what=""):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    np.testing.assert_allclose(actual, expected, **TOLERANCE[expected.dtype], err_msg=what)


def same(actual, expected):
    """Equal bytes in an equal structure."""
    if isinstance(expected, np.ndarray):
        assert isinstance(actual, np.ndarray)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            same(actual[name], expected[name])
    else:
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected):
            same(a, e)


def plain(layer, x, state=None, lengths=None, reset=None, kept=None):
    """What the layer has to do, from reference calls alone: y, state, and a function for the gradients."""
    cell = type(layer).__name__.lower()
    forward, backward = getattr(reference, f"{cell}_forward"), getattr(reference, f"{cell}_backward")
    options = {name: getattr(layer, name) for name in ("nonlinearity", "reset_after") if hasattr(layer, name)}
    D, p = 2 if layer.bidirectional else 1, layer.dropout
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names = [[[f"{kind}_l{k}{end}" for kind in kinds] for end in ("", "_reverse")[:D]] for k in range(layer.num_layers)]
    tapes, finals, y = [], [], x
    for k in range(layer.num_layers):
        given = None if state is None else state_of(layer, [part[k * D : (k + 1) * D] for part in parts_of(state)])
        weights = [tuple(layer.params.get(name) for name in direction) for direction in names[k]]
        y, final, tape = forward(y, given, weights, lengths=lengths, reset=reset, **options)
        if kept is not None and k < layer.num_layers - 1:
            y = np.where(kept[k], y / (1 - p), 0).astype(y.dtype)
        tapes.append(tape)
        finals.append(parts_of(final))

    def gradients(dy, dstate=None):
        grads, initial = {}, []
        for k in reversed(range(layer.num_layers)):
            if kept is not None and k < layer.num_layers - 1:
                dy = np.where(kept[k], dy / (1 - p), 0).astype(dy.dtype)
            given = None if dstate is None else state_of(layer, [a[k * D : (k + 1) * D] for a in parts_of(dstate)])
            dy, before, dweights = backward(tapes[k], dy, given)
            initial.insert(0, parts_of(before))
            for direction, arrays in zip(names[k], dweights):
                grads.update((name, a) for name, a in zip(direction, arrays) if a is not None)
        return dy, [np.concatenate(column) for column in zip(*initial)], grads

    return y, [np.concatenate(column) for column in zip(*finals)], gradients


def check_against_plain(layer, T, B, lengths=None, reset=None, with_state=True):
    dtype = layer.dtype
    D = 2 if layer.bidirectional else 1
    x = normal(T, B, layer.input_size, dtype=dtype)
    dy = normal(T, B, D * layer.hidden_size, dtype=dtype, seed=5)
    state = some_state(layer, B) if with_state else None
    dstate = some_state(layer, B, seed=7) if with_state else None
    expected_y, expected_state, gradients = plain(layer, x, state, lengths, reset)
    expected_dx, expected_dstate, expected_grads = gradients(dy, dstate)

    y, final = layer(x, state, lengths=lengths, reset=reset)
    y2, final2, tape = layer.forward(x, state, lengths=lengths, reset=reset)
    dx, initial, grads = layer.backward(tape, dy, dstate)
    same((y2, parts_of(final2)), (y, parts_of(final)))
    close(y, expected_y, "y")
    close(dx, expected_dx, "dx")
    for actual, expected in ((final, expected_state), (initial, expected_dstate)):
        assert isinstance(actual, LSTMState if isinstance(layer, LSTM) else np.ndarray)
        for a, e in zip(parts_of(actual), expected, strict=True):
            close(a, e, "state")
    assert type(grads) is dict and list(grads) == list(layer.params)
    for name, a in grads.items():
        close(a, expected_grads[name], name)


# --------------------------------------------------------------------------------------- against the plain composition


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_backward(backend, cell, bidirectional, num_layers, ragged):
    layer = make(cell, 3, 4, num_layers, bidirectional=bidirectional, backend=backend)
    lengths = reset = None
    if ragged:
        lengths = [2, 0, 6, 5]
        reset = np.random.default_rng(0).random((6, 4)) < 0.3
        assert 3 < reset.sum() < 21
    check_against_plain(layer, 6, 4, lengths, reset, with_state=ragged)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_bias_and_dtype(backend, cell, bias, dtype):
    layer = make(cell, 5, 17, 2, bidirectional=True, bias=bias, dtype=dtype, backend=backend)
    check_against_plain(layer, 7, 3, [7, 1, 4])


@pytest.mark.parametrize("T, B", [(0, 3), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", THREE)
def test_empty(backend, cell, bidirectional, T, B):
    layer = make(cell, 3, 4, 2, bidirectional=bidirectional, backend=backend)
    check_against_plain(layer, T, B)
    check_against_plain(layer, T, B, lengths=np.full(B, T), reset=np.zeros((T, B), bool))
    if T == 0:
        state = some_state(layer, B)
        same(parts_of(layer(np.zeros((0, B, 3)), state)[1]), parts_of(state))


def test_pytorch_agrees(backend):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(3, 4, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    layer = make("gru", 3, 4, 2, bidirectional=True, batch_first=True, backend=backend)
    layer.load_params(theirs.state_dict())
    x, h0, dy = normal(2, 5, 3), normal(4, 2, 4), normal(2, 5, 8)
    tx, th0 = torch.tensor(x, requires_grad=True), torch.tensor(h0, requires_grad=True)
    ty, th = theirs(tx, th0)
    (ty * torch.tensor(dy)).sum().backward()
    y, h, tape = layer.forward(x, h0)
    dx, dh0, grads = layer.backward(tape, dy)
    close(y, ty.detach().numpy())
    close(h, th.detach().numpy())
    close(dx, tx.grad.numpy())
    close(dh0, th0.grad.numpy())
    for name, parameter in theirs.named_parameters():
        close(grads[name], parameter.grad.numpy(), name)


@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(sorted(CELLS)),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 19), st.integers(1, 3)),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(0, 5), max_size=5),
    more=st.integers(0, 2),
)
def test_a_sequence_in_a_ragged_batch_is_the_sequence_alone(backend, cell, sizes, bidirectional, lengths, more):
    layer = make(cell, *sizes, bidirectional=bidirectional, backend=backend)
    T, B = max(lengths, default=0) + more, len(lengths)
    x = normal(T, B, sizes[0])
    for b, n in enumerate(lengths):
        x[n:, b] = np.nan
    state = some_state(layer, B)
    y, final, tape = layer.forward(x, state, lengths=lengths)
    dy = normal(*y.shape)
    for b, n in enumerate(lengths):
        assert not y[n:, b].any()
        dy[n:, b] = np.nan
    dx, initial, grads = layer.backward(tape, dy, state)
    total = {name: np.zeros_like(a) for name, a in layer.params.items()}
    for b, n in enumerate(lengths):
        alone = state_of(layer, [part[:, b] for part in parts_of(state)])
        y_b, final_b, tape_b = layer.forward(x[:n, b], alone)
        dx_b, initial_b, _ = layer.backward(tape_b, dy[:n, b], alone, grads=total)
        close(y[:n, b], y_b)
        close(dx[:n, b], dx_b)
        assert not dx[n:, b].any()
        for whole, part in ((final, final_b), (initial, initial_b)):
            for a, e in zip(parts_of(whole), parts_of(part)):
                close(a[:, b], e)
    for name in total:
        close(grads[name], total[name], name)


@pytest.mark.parametrize("cell", CELLS)
def test_resets_make_independent_episodes_in_both_directions(backend, cell):
    layer = make(cell, 3, 4, 2, bidirectional=True, backend=backend)
    x, starts = normal(7, 1, 3), [0, 3, 4]
    reset = np.zeros((7, 1), int)
    reset[starts] = 1
    y, _ = layer(x, some_state(layer, 1), reset=reset)
    pieces = [layer(piece)[0] for piece in np.split(x, starts[1:])]
    pieces[-1] = layer(x[4:], reverse_only(layer, some_state(layer, 1)))[0]
    close(y, np.concatenate(pieces))


def reverse_only(layer, state):
    """The initial state as the last episode sees it: that of the reverse direction."""
    parts = [part.copy() for part in parts_of(state)]
    for part in parts:
        part[::2] = 0
    return state_of(layer, parts)


# ------------------------------------------------------------------------------------------------------ the axis order


@pytest.mark.parametrize("cell, num_layers, bidirectional", list(itertools.product(THREE, (1, 2), (False, True))))
def test_batch_first_is_the_transposed_call(backend, cell, num_layers, bidirectional):
    options = dict(num_layers=num_layers, bidirectional=bidirectional, dropout=0.4 if num_layers == 2 else 0.0)
    layer = make(cell, 3, 4, backend=backend, **options)
    turned = make(cell, 3, 4, backend=backend, batch_first=True, **options)
    D = 2 if bidirectional else 1
    x, dy = normal(6, 4, 3), normal(6, 4, 4 * D)
    state, reset = some_state(layer, 4), np.random.default_rng(0).random((6, 4)) < 0.3
    arguments = dict(lengths=[6, 0, 3, 5])
    y, final, tape = layer.forward(x, state, reset=reset, rng=3, **arguments)
    dx, initial, grads = layer.backward(tape, dy, state)
    yt, final_t, tape_t = turned.forward(x.swapaxes(0, 1), state, reset=reset.T, rng=3, **arguments)
    dxt, initial_t, grads_t = turned.backward(tape_t, dy.swapaxes(0, 1), state)
    same((yt, dxt), (y.swapaxes(0, 1), dx.swapaxes(0, 1)))
    same((final_t, initial_t, grads_t), (final, initial, grads))
    called, _ = turned(np.ascontiguousarray(x.swapaxes(0, 1)), state, reset=reset.T, **arguments)
    same(called, layer(x, state, reset=reset, **arguments)[0].swapaxes(0, 1))
    for a in (yt, dxt, called):
        assert a.flags.c_contiguous and a.flags.writeable


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell, bidirectional", list(itertools.product(CELLS, (False, True))))
def test_unbatched_is_a_batch_of_one(backend, cell, bidirectional, batch_first):
    layer = make(cell, 3, 4, 2, bidirectional=bidirectional, dropout=0.5, batch_first=batch_first, backend=backend)
    axis = 0 if batch_first else 1
    x, state, reset = normal(5, 3), some_state(layer, 1), np.array([0, 1, 0, 0, 1])
    bare = state_of(layer, [part[:, 0] for part in parts_of(state)])
    dy = normal(5, 8 if bidirectional else 4)

    def one(a):
        return np.expand_dims(a, axis)

    y, final, tape = layer.forward(x, bare, lengths=4, reset=reset, rng=2)
    y1, final1, tape1 = layer.forward(one(x), state, lengths=[4], reset=one(reset), rng=2)
    same(one(y), y1)
    same([part[:, None] for part in parts_of(final)], parts_of(final1))
    dx, initial, grads = layer.backward(tape, dy, bare)
    dx1, initial1, grads1 = layer.backward(tape1, one(dy), state)
    same((one(dx), grads), (dx1, grads1))
    same([part[:, None] for part in parts_of(initial)], parts_of(initial1))
    same(one(layer(x, bare, lengths=np.int16(4))[0]), layer(one(x), state, lengths=[4])[0])
    for a in (y, dx, *parts_of(final)):
        assert a.flags.c_contiguous and a.flags.writeable


# --------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("cell", THREE)
def test_zero_state(backend, cell):
    layer = make(cell, 3, 4, 2, bidirectional=True, dtype=np.float32, backend=backend)
    for batch, shape in ((3, (4, 3, 4)), (0, (4, 0, 4)), (np.int64(2), (4, 2, 4)), (None, (4, 4))):
        state = layer.zero_state(batch)
        assert [(p.shape, p.dtype) for p in parts_of(state)] == [(shape, np.float32)] * len(parts_of(state))
        assert not any(p.any() for p in parts_of(state))
    state = layer.zero_state(2)
    other = state.copy()
    for a, b in zip(parts_of(state), parts_of(other), strict=True):
        assert not np.shares_memory(a, b)
    if cell == "lstm":
        assert not np.shares_memory(*state)


def test_lstm_state(backend):
    state = make("lstm", backend=backend).zero_state(2)
    h, c = state
    assert state[0] is state.h is h and state[1] is state.c is c and len(state) == 2
    assert repr(state) == "LSTMState(h=<float64 (1, 2, 4)>, c=<float64 (1, 2, 4)>)"
    for other in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state), state.copy()):
        assert type(other) is LSTMState
        same(other, state)
        assert not np.shares_memory(other.h, state.h)


@pytest.mark.parametrize("cell", THREE)
def test_the_forms_of_a_state(backend, cell):
    layer = make(cell, 3, 4, 2, dtype=np.float32, backend=backend)
    x = normal(3, 2, 3, dtype=np.float32)
    zero, ones = layer.zero_state(2), [np.ones((2, 2, 4), np.float32) for _ in parts_of(layer.zero_state(2))]
    same(layer(x, zero), layer(x))
    expected = layer(x, state_of(layer, ones))
    odd = [np.asfortranarray(ones[0]), np.ones((2, 2, 4), int).tolist()][: len(ones)]
    same(layer(x, state_of(layer, odd)), expected)
    if cell == "lstm":
        same(layer(x, LSTMState(*ones)), expected)
        same(layer(x, list(ones)), expected)
        same(layer(x, (None, ones[1])), layer(x, (zero[0], ones[1])))
        same(layer(x, (ones[0], None)), layer(x, (ones[0], zero[1])))
        _, _, tape = layer.forward(x)
        same(layer.backward(tape, None, (None, ones[1])), layer.backward(tape, None, (zero[0], ones[1])))


@pytest.mark.parametrize("cell", THREE)
def test_only_step_changes_a_state_and_results_are_new(backend, cell):
    layer = make(cell, 3, 4, 2, backend=backend)
    state = some_state(layer, 2)
    before = [part.copy() for part in parts_of(state)]
    x = normal(3, 2, 3)
    for lengths in (None, [0, 0]):
        _, final, tape = layer.forward(x, state, lengths=lengths)
        _, initial, _ = layer.backward(tape, None, state)
        same(parts_of(state), before)
        for a, b in itertools.product(parts_of(final) + parts_of(initial), parts_of(state)):
            assert not np.shares_memory(a, b)
    arrays = parts_of(final) + parts_of(initial)
    assert all(a.flags.writeable for a in arrays)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))


# ---------------------------------------------------------------------------------------------------------------- step


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_sequence(backend, cell, num_layers, dtype):
    layer = make(cell, 5, 18, num_layers, dropout=0.5, dtype=dtype, backend=backend)
    x, state = normal(4, 3, 5, dtype=dtype), some_state(layer, 3)
    y, final = layer(x, state)
    moving = state_of(layer, [part.copy() for part in parts_of(state)])
    arrays = parts_of(moving)
    stepped = np.stack([layer.step(x_t, moving) for x_t in x])
    for a, e in zip([stepped, *arrays], [y, *parts_of(final)]):
        same(a, e) if backend == "compiled" else close(a, e)


@pytest.mark.parametrize("cell", THREE)
def test_unbatched_steps(backend, cell):
    layer = make(cell, 3, 4, 2, batch_first=True, backend=backend)
    x, state, out = normal(4, 3), layer.zero_state(), np.empty(4)
    y, final = layer(x)
    for t in range(4):
        if t % 2:
            assert layer.step(x[t], state, out) is out
            close(out, y[t])
        else:
            close(layer.step(x[t], state), y[t])
    for a, e in zip(parts_of(state), parts_of(final)):
        close(a, e)


@pytest.mark.parametrize("cell", THREE)
def test_step_arguments(backend, cell):
    layer = make(cell, 3, 4, 2, backend=backend)
    x = np.array([[1, 2, 3], [4, 5, 6]])
    expected = layer.step(x.astype(float), after := layer.zero_state(2))
    odd = {
        "integers": x,
        "list": x.tolist(),
        "fortran": np.asfortranarray(x.astype(float)),
        "strided": np.repeat(x.astype(float), 2, axis=1)[:, ::2],
        "byte-swapped": x.astype(">f8"),
        "read-only": np.frombuffer(x.astype(float).tobytes()).reshape(2, 3),
    }
    for name, value in odd.items():
        state = layer.zero_state(2)
        close(layer.step(value, state), expected, name)
        for a, e in zip(parts_of(state), parts_of(after)):
            close(a, e, name)
    wide = [np.zeros((2, 2, 7))[:, :, :4] for _ in parts_of(after)]  # dense in the last axis only
    out = np.full((2, 9), 7.0)
    result = layer.step(odd["list"], state_of(layer, wide), out=out[:, 2:6])
    close(np.array(result), expected)
    close(out[:, 2:6], expected)
    assert (out[:, :2] == 7).all() and (out[:, 6:] == 7).all()
    for a, e in zip(wide, parts_of(after)):
        close(a, e)
    result = layer.step(x, list(parts_of(layer.zero_state(2)))) if cell == "lstm" else expected
    close(result, expected)
    assert layer.step(np.zeros((0, 3)), layer.zero_state(0)).shape == (0, 4)


@pytest.mark.parametrize("cell", THREE)
def test_step_has_no_meaning_in_two_directions(backend, cell):
    layer = make(cell, bidirectional=True, backend=backend)
    with pytest.raises(ValueError, match="bidirectional"):
        layer.step(np.zeros((1, 3)), layer.zero_state(1))


# ------------------------------------------------------------------------------------------------- tape and gradients


@pytest.mark.parametrize("cell", THREE)
def test_a_tape_can_be_used_again_and_outlives_its_arguments(backend, cell):
    layer = make(cell, 3, 4, 2, bidirectional=True, dropout=0.5, backend=backend)
    x, state, dy = normal(5, 3, 3), some_state(layer, 3), normal(5, 3, 8)
    lengths, reset = np.array([5, 2, 4]), np.random.default_rng(0).integers(0, 2, (5, 3)).astype(np.uint8)
    y, final, tape = layer.forward(x, state, lengths=lengths, reset=reset, rng=1)
    expected = layer.backward(tape, dy, state)
    dstate = [part.copy() for part in parts_of(state)]
    for a in (x, y, *parts_of(state), *parts_of(final)):
        a[...] = np.nan
    lengths[...] = 1
    reset[...] = 1
    again = layer.backward(tape, dy, state_of(layer, dstate))
    same(again, expected)
    assert not any(np.shares_memory(again[2][n], expected[2][n]) for n in expected[2])


@pytest.mark.parametrize("cell", THREE)
def test_backward_without_some_gradients(backend, cell):
    layer = make(cell, 3, 4, 2, backend=backend)
    x, zero_dy = normal(5, 2, 3), np.zeros((5, 2, 4))
    _, final, tape = layer.forward(x)
    same(layer.backward(tape, None, final), layer.backward(tape, zero_dy, final))
    dx, dstate, grads = layer.backward(tape)
    for a in (dx, *parts_of(dstate), *grads.values()):
        assert not a.any()
    assert dx.shape == x.shape and list(grads) == list(layer.params)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", THREE)
def test_grads_are_accumulated(backend, cell, bias):
    layer = make(cell, 3, 4, 2, bias=bias, bidirectional=True, backend=backend)
    _, _, tape = layer.forward(normal(5, 2, 3))
    dy = normal(5, 2, 8)
    dx, dstate, new = layer.backward(tape, dy)
    given = {name: np.full(a.shape, 0.5) for name, a in reversed(dict(layer.params).items())}
    arrays = dict(given)
    dx2, dstate2, returned = layer.backward(tape, dy, grads=given)
    assert returned is given and all(given[name] is arrays[name] for name in arrays)
    same((dx2, dstate2), (dx, dstate))
    for name in new:
        same(given[name], 0.5 + new[name])
    flat = np.zeros(sum(a.size for a in new.values()))  # views of one buffer that do not overlap
    sections = np.split(flat, np.cumsum([a.size for a in new.values()])[:-1])
    views = {name: part.reshape(new[name].shape) for name, part in zip(new, sections)}
    layer.backward(tape, dy, grads=views)
    same(views, new)


def test_gradient_arrays_are_distinct(backend):
    layer = make("lstm", 3, 4, 2, bidirectional=True, backend=backend)
    _, _, tape = layer.forward(normal(5, 2, 3))
    dx, dstate, grads = layer.backward(tape, normal(5, 2, 8))
    arrays = [dx, *dstate, *grads.values()]
    assert all(a.flags.writeable for a in arrays)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))


def test_tapes_of_something_else_are_refused(backend):
    layer = make("lstm", 3, 4, 2, backend=backend)
    x = normal(5, 2, 3)
    _, _, tape = layer.forward(x)
    assert "T=5, B=2" in repr(tape) and "LSTM(3, 4" in repr(tape)
    twins = [
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        layer.astype(np.float64),
        make("lstm", 3, 4, 2, backend=backend),
        make("lstm", 3, 4, 2, backend="reference"),
        make("gru", 3, 4, 2, backend=backend),
    ]
    for twin in twins:
        with pytest.raises(ValueError, match="tape.*another"):
            twin.backward(tape)
        with pytest.raises(ValueError, match="tape.*another"):
            layer.backward(twin.forward(x)[2])
    for wrong in (None, 3, "tape", tape._pieces[0].tapes[0], (tape,), layer):
        with pytest.raises(TypeError, match="tape"):
            layer.backward(wrong)
    layer.backward(tape)
    changes = [lambda p: p.__setitem__("bias_ih_l0", np.ones(16)), lambda p: p["bias_ih_l0"].fill(1)]
    for change in changes:
        _, _, tape = layer.forward(x)
        with layer.edit() as p:
            change(p)
        with pytest.raises(ValueError, match="tape.*changed"):
            layer.backward(tape)
    _, _, tape = layer.forward(x)
    layer.load_params(layer.params)
    with pytest.raises(ValueError, match="tape.*changed"):
        layer.backward(tape)


# ------------------------------------------------------------------------------------------------------------- dropout


def masks(layer, T, B, seed):
    """The masks of forward(rng=seed): drawn as float32 in [0, 1), below `dropout` is dropped."""
    D = 2 if layer.bidirectional else 1
    shape = (layer.num_layers - 1, T, B, D * layer.hidden_size)
    return np.random.default_rng(seed).random(shape, np.float32) >= layer.dropout


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", THREE)
def test_dropout_is_a_mask_between_layers(backend, cell, bidirectional):
    layer = make(cell, 3, 4, 3, dropout=0.3, bidirectional=bidirectional, backend=backend)
    D = 2 if bidirectional else 1
    x, dy, state = normal(5, 4, 3), normal(5, 4, 4 * D), some_state(layer, 4)
    kept = masks(layer, 5, 4, seed=11)
    expected_y, expected_state, gradients = plain(layer, x, state, [5, 0, 3, 4], None, kept)
    y, final, tape = layer.forward(x, state, lengths=[5, 0, 3, 4], rng=11)
    close(y, expected_y)
    for a, e in zip(parts_of(final), expected_state):
        close(a, e)
    for a, e in zip(layer.backward(tape, dy, state), gradients(dy, state)):
        if isinstance(e, dict):
            for name in e:
                close(a[name], e[name], name)
        else:
            for a_part, e_part in zip(parts_of(a), parts_of(e)):
                close(a_part, e_part)


@pytest.mark.parametrize("cell", THREE)
def test_the_gradient_passes_through_the_mask(backend, cell):
    layer = make(cell, 2, 3, 2, dropout=0.4, backend=backend)
    x, dy, step = normal(3, 2, 2), normal(3, 2, 3), 1e-6
    _, _, tape = layer.forward(x, rng=5)
    dx, _, grads = layer.backward(tape, dy)

    def loss():
        return (layer.forward(x, rng=5)[0] * dy).sum()

    for index in np.ndindex(*x.shape):
        x[index] += step
        up = loss()
        x[index] -= 2 * step
        down = loss()
        x[index] += step
        np.testing.assert_allclose(dx[index], (up - down) / (2 * step), rtol=1e-5, atol=1e-8)
    name = "weight_ih_l1"
    for index in ((0, 0), (1, 2)):
        losses = []
        for sign in (1, -2):
            with layer.edit() as p:
                p[name][index] += sign * step
            losses.append(loss())
        with layer.edit() as p:
            p[name][index] += step
        np.testing.assert_allclose(grads[name][index], (losses[0] - losses[1]) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(backend, p):
    """With an identity on top and no recurrence, y shows the masks: 0, or the lower output over 1 - p."""
    layer = make("rnn_relu", 1, 50, 2, dropout=p, seed=4, backend=backend)
    with layer.edit() as w:
        for a in w.values():
            a[...] = 0
        w["weight_ih_l0"][...] = 1
        w["weight_ih_l1"][...] = np.eye(50)
    y = layer.forward(np.ones((40, 25, 1)))[0]
    values, counts = np.unique(y, return_counts=True)
    assert len(values) == 2 and values[0] == 0
    np.testing.assert_allclose(values[1], 1 / (1 - p), rtol=1e-12)
    assert abs(counts[0] / y.size - p) < 5 * (p * (1 - p) / y.size) ** 0.5
    per_unit = (y == 0).mean(axis=(0, 1))
    assert abs(per_unit - p).max() < 5 * (p * (1 - p) / 1000) ** 0.5 and len(np.unique(per_unit)) > 5
    assert (layer(np.ones((2, 2, 1)))[0] == 1).all()


def test_where_the_masks_come_from(backend):
    x = normal(6, 4, 3)

    def layer(seed=0):
        return make("gru", 3, 8, 2, dropout=0.5, seed=seed, backend=backend)

    def run(a, rng=None):
        return a.forward(x, rng=rng)[0].tobytes()

    a, b = layer(), layer()
    first, second = run(a), run(a)
    assert first != second and [run(b), run(b)] == [first, second]  # the layer's own generator starts from seed
    assert run(a, 3) == run(a, 3) == run(b, np.int64(3)) == run(b, np.random.default_rng(3)) != run(a, 4)
    generator = np.random.default_rng(3)
    assert run(a, generator) != run(a, generator)
    a, b = layer(), layer()
    run(a, 3)  # does not touch the layer's own
    a(x)
    assert run(a) == run(b)
    third = copy.deepcopy(a), pickle.loads(pickle.dumps(a))
    expected = run(a)
    assert [run(other) for other in third] == [expected] * 2  # a copy goes on where the layer was
    assert run(layer(None)) != run(layer(None))
    x32 = x.astype(np.float32)
    zeros = [np.asarray(y == 0) for y in (layer().forward(x, rng=1)[0], layer().astype("f4").forward(x32, rng=1)[0])]
    assert np.array_equal(*zeros)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_one_leaves_nothing_and_no_nan(backend, cell):
    layer = make(cell, 3, 4, 2, dropout=1.0, backend=backend)
    with np.errstate(all="raise"):
        y, _, tape = layer.forward(normal(5, 2, 3))
        dx, _, grads = layer.backward(tape, np.ones((5, 2, 4)))
    top = make(cell, 4, 4, backend=backend)
    top.load_params({name.replace("_l1", "_l0"): a for name, a in layer.params.items() if "_l1" in name})
    same(y, top(np.zeros((5, 2, 4)))[0])
    assert not dx.any() and not grads["weight_ih_l0"].any() and grads["weight_hh_l1"].any()
    assert np.isfinite(y).all()


def test_a_dropped_infinity_is_gone(backend):
    layer = make("rnn_relu", 1, 4, 2, dropout=1.0, backend=backend)
    with layer.edit() as p:
        p["weight_ih_l0"][...] = 1
        p["weight_hh_l0"][...] = 0
    y, _, _ = layer.forward(np.full((3, 1, 1), np.inf))
    assert np.isfinite(y).all()


def test_dropout_draws_from_many_threads(backend):
    layer = make("lstm", 3, 16, 2, dropout=0.5, backend=backend)
    x = normal(10, 4, 3)
    expected = {make("lstm", 3, 16, 2, dropout=0.5, backend=backend).forward(x, rng=r)[0].tobytes() for r in range(4)}
    got, own = set(), []

    def work(rng):
        for _ in range(5):
            got.add(layer.forward(x, rng=rng)[0].tobytes())
            own.append(layer.forward(x)[0].tobytes())

    run_threads(work, range(4))
    assert got == expected
    twin = make("lstm", 3, 16, 2, dropout=0.5, backend=backend)  # the same masks in some order, none twice
    assert sorted(own) == sorted(twin.forward(x)[0].tobytes() for _ in range(20)) and len(set(own)) == 20


def test_dropout_on_one_layer_warns(backend):
    with pytest.warns(UserWarning, match="num_layers=1") as caught:
        layer = LSTM(3, 4, dropout=0.5, backend=backend)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(layer)
        LSTM(3, 4, 2, dropout=0.5, backend=backend)


# -------------------------------------------------------------------------------------------------- the layer as object


def run_threads(work, arguments):
    errors = []

    def guarded(argument):
        try:
            work(argument)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(a,)) for a in arguments]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors


@pytest.mark.parametrize("cell", THREE)
def test_one_layer_in_many_threads(backend, cell):
    layer = make(cell, 3, 20, 2, backend=backend)
    xs = [normal(8, 3, 3, seed=s) for s in range(4)]
    dy = normal(8, 3, 20)
    expected = []
    for x in xs:
        y, final, tape = layer.forward(x)
        expected.append((y, final, *layer.backward(tape, dy)))

    def work(i):
        for _ in range(10):
            y, final, tape = layer.forward(xs[i])
            same((y, final, *layer.backward(tape, dy)), expected[i])
            state = layer.zero_state(3)
            for t in range(8):
                close(layer.step(xs[i][t], state), y[t])

    run_threads(work, range(4))


@pytest.mark.parametrize("cell", CELLS)
def test_pickle_and_copies(backend, cell):
    options = dict(bidirectional=True, batch_first=True, dropout=0.25, bias=False)
    layer = make(cell, 3, 4, 2, backend=backend, **options)
    with layer.edit() as p:
        p["weight_ih_l0"] *= 2
    x = normal(2, 5, 3)
    expected = layer(x)
    copies = [pickle.loads(pickle.dumps(layer, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    copies += [copy.deepcopy(layer), copy.copy(layer)]
    for other in copies:
        assert type(other) is type(layer) and repr(other) == repr(layer) and other.dtype is layer.dtype
        same(other(x), expected)
        assert not np.shares_memory(other.params["weight_ih_l0"], layer.params["weight_ih_l0"])
        with pytest.raises(ValueError):
            other.params["weight_ih_l0"][...] = 0
        with pytest.raises(AttributeError):
            other.dropout = 0.5
        with other.edit() as p:
            p["weight_ih_l0"][...] = 0
        same(layer(x), expected)
        assert other(x)[0].tobytes() != expected[0].tobytes()
        assert "params" not in vars(other)


def test_pickle_within_an_edit_and_of_a_subclass(backend):
    layer = Named(3, 4, backend=backend, dtype=np.float64, seed=0)
    layer.name = "first"
    with layer.edit():
        other = pickle.loads(pickle.dumps(layer))
    other.name = "second"
    with other.edit() as p:
        p["bias_ih_l0"] += 1
    assert (type(other), layer.name, other.name) == (Named, "first", "second")
    assert repr(other).startswith("Named(3, 4")


class Named(LSTM):
    name = ""


@pytest.mark.parametrize("cell", CELLS)
def test_astype(backend, cell):
    layer = make(cell, 3, 4, 2, bidirectional=True, dtype=np.float32, backend=backend)
    exact = layer.astype(np.float64)
    assert type(exact) is type(layer) and exact.dtype == np.float64 and layer.dtype == np.float32
    x = normal(5, 2, 3, dtype=np.float32)
    np.testing.assert_allclose(exact(x.astype(np.float64))[0], layer(x)[0], rtol=1e-5, atol=1e-6)
    for name, a in exact.params.items():
        assert a.dtype == np.float64 and np.array_equal(a, layer.params[name])
    back = exact.astype("float32")
    same(back(x), layer(x))
    assert layer.astype(np.float32) is not layer
    with pytest.raises(TypeError, match="dtype.*int"):
        layer.astype(int)
    with exact.edit() as p:
        p["weight_ih_l0"][0, 0] = 1e300
    with pytest.raises(ValueError, match="weight_ih_l0.*finite"):
        exact.astype(np.float32)


def test_same_seed_in_both_dtypes(backend):
    one, two = (make("gru", 3, 4, dtype=dtype, backend=backend) for dtype in (np.float32, np.float64))
    same(dict(one.params), dict(two.astype(np.float32).params))


def test_repr(backend):
    assert repr(LSTM(64, 128)) == "LSTM(64, 128)"
    assert repr(make("gru", 3, 4, dtype=np.float32, backend="reference")) == "GRU(3, 4, backend='reference')"
    layer = make("rnn_relu", 3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5, bias=False, backend=backend)
    assert repr(layer).startswith("RNN(3, 4, num_layers=2, nonlinearity='relu', bidirectional=True, batch_first=True, ")
    assert "dtype='float64'" in repr(layer)
    assert ", dropout=0.5, bias=False, dtype='float64'" in repr(layer)
    assert "reset_after=False" in repr(make("gru_reset_before", backend=backend))
    rebuilt = eval(repr(layer), {"RNN": RNN})
    assert repr(rebuilt) == repr(layer)


def test_settings_can_be_read_and_are_fixed(backend):
    layer = make("gru_reset_before", 3, 4, 2, dropout=0.5, backend=backend)
    names = "input_size hidden_size num_layers bidirectional batch_first dropout bias dtype backend reset_after".split()
    expected = [3, 4, 2, False, False, 0.5, True, np.float64, backend, False]
    assert [getattr(layer, name) for name in names] == expected
    for name in names:
        with pytest.raises(AttributeError, match=name):
            setattr(layer, name, getattr(layer, name))
    layer.note = "mine"
    layer.note = "still mine"


def test_third_positional_is_num_layers_and_no_more(backend):
    assert LSTM(3, 4, 2, backend=backend).num_layers == 2
    for kind in (RNN, LSTM, GRU):
        with pytest.raises(TypeError):
            kind(3, 4, 2, True)


def test_a_layer_is_freed(backend):
    """Layer, tape and state form no cycle, so memory goes at once."""
    layer = make("lstm", backend=backend)
    _, _, tape = layer.forward(normal(2, 1, 3))
    with layer.edit() as p:
        p["bias_ih_l0"] += 1
    snapshot = layer._snapshot
    count = sys.getrefcount(snapshot)
    del layer, tape
    assert sys.getrefcount(snapshot) == count - 1


# ------------------------------------------------------------------------------------------------------- step_many


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_many_streams_in_one_call_have_the_bits_of_each_alone(backend, kind, layers):
    layer = kind(5, 9, layers, seed=0, backend=backend)
    N, rng = 21, np.random.default_rng(0)
    alone = [layer.zero_state(1) for _ in range(N)]
    together = [layer.zero_state() if i % 3 else layer.zero_state(1) for i in range(N)]
    out = np.empty((N, 9), np.float32)
    for t in range(4):
        x = rng.standard_normal((N, 5)).astype(np.float32)
        y = layer.step_many(x if t else x.tolist(), together, out if t % 2 else None)
        assert (y is out) == bool(t % 2)
        expected = np.concatenate([layer.step(x[[i]], alone[i]) for i in range(N)])
        same_bits(y, expected, backend)
        for a, b in zip(alone, together):
            same_bits(np.ravel(a), np.ravel(b), backend)
    assert np.ravel(alone[0]).any()
    assert layer.step_many(np.empty((0, 5), np.float32), []).shape == (0, 9)


def same_bits(a, b, backend):
    """Equal bytes; the reference promises none (its BLAS sums in another order for another batch)."""
    if backend == "compiled":
        assert a.tobytes() == b.tobytes()
    else:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_many_streams_with_states_that_are_views(backend):
    layer = LSTM(5, 9, 2, seed=0, backend=backend)
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    both = np.zeros((3, 2, 2, 9), np.float32)  # of each stream, layer, part
    plain = [layer.zero_state() for _ in range(3)]
    y = layer.step_many(x, [(s[:, 0], s[:, 1]) for s in both])
    same_bits(y, layer.step_many(x, plain), backend)
    same_bits(both, np.stack([np.stack(s, axis=1) for s in plain]), backend)


def test_wrong_arguments_of_step_many_change_nothing(backend):
    layer = LSTM(5, 9, 2, seed=0, backend=backend)
    x = np.ones((3, 5), np.float32)
    states = [layer.zero_state() for _ in range(3)]
    twice = [states[0], states[1], states[0]]
    frozen = layer.zero_state()
    frozen.c.flags.writeable = False
    whole = np.zeros((3, 45), np.float32)
    cases = [
        (TypeError, "x: expected dtype", (x.astype(np.float64), states)),
        (ValueError, r"x: expected shape \(N, 5\)", (x[:, :4], states)),
        (ValueError, r"x: expected shape \(N, 5\)", (x[0], states)),
        (TypeError, "states: expected a list of 3 states, got ndarray", (x, np.zeros((3, 2, 9), np.float32))),
        (ValueError, "states: expected 3 states, one for each row of x, got 2", (x, states[:2])),
        (ValueError, r"states\[2\]: h: expected memory of its own", (x, twice)),
        (TypeError, r"states\[1\]: c: expected a NumPy array", (x, [states[0], (states[1].h, None), states[2]])),
        (TypeError, r"states\[1\]: expected \(h, c\)", (x, [states[0], states[1].h, states[2]])),
        (ValueError, r"states\[1\]: c: expected a writable array", (x, [states[0], frozen, states[2]])),
        (ValueError, r"states\[2\]: h: expected shape \(2, 1, 9\)", (x, [*states[:2], layer.zero_state(2)])),
        (ValueError, r"out: expected shape \(3, 9\)", (x, states, np.zeros((3, 8), np.float32))),
        (ValueError, "out: expected memory of its own, got .* overlaps x", (whole[:, :5], states, whole[:, 4:13])),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            layer.step_many(*arguments)
        assert not any(np.any(part) for state in states for part in state)
    with pytest.raises(ValueError, match="step_many: a bidirectional layer"):
        LSTM(5, 9, bidirectional=True, backend=backend).step_many(x, states)
