"""The diagnostics against closed forms, central differences and each other; the pictures; the worked example."""

import copy
import importlib
import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS
from processes import output_of

import elman
from elman import diagnostics, reference

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rnn(w_hh, nonlinearity="tanh", dtype=np.float64, **options):
    """An RNN with identity or given input weights and no biases."""
    H = len(w_hh)
    layer = elman.RNN(H, H, nonlinearity=nonlinearity, bias=False, dtype=dtype, **options)
    layer.load_params({"weight_ih_l0": np.eye(H, dtype=dtype), "weight_hh_l0": np.asarray(w_hh, dtype)})
    return layer


def orthogonal(H, seed=0):
    q, _ = np.linalg.qr(draw(H, H, seed=seed))
    return q


# ------------------------------------------------------------------------------------------------------ gradient norms


@DTYPES
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diagonal_relu_network_gives_powers(backend, dtype):
    """All inputs are positive, so every unit is on and dL/dh_t = a^(T - 1 - t) / sqrt(B H)."""
    a = np.array([0.5, 0.9, 1.0, 1.1])
    layer = rnn(np.diag(a), "relu", dtype, backend=backend)
    found = diagnostics.gradient_norms(layer, np.ones((20, 3, 4), dtype))
    powers = a ** np.arange(19, -1, -1)[:, None]
    assert list(found.norms) == ["h_l0"] and found.norms["h_l0"].dtype == np.float64
    np.testing.assert_allclose(
        found.norms["h_l0"], np.sqrt((powers**2).mean(axis=1)), rtol=1e-5 if dtype == np.float32 else 1e-13
    )


@pytest.mark.parametrize(
    "scale, factor", [(1.0, 1.0), (0.5, 0.5**99), (1.5, 1.5**99)], ids=["keeps", "fades", "explodes"]
)
def test_orthogonal_weights_keep_the_norm_and_scaled_ones_do_not(scale, factor):
    layer = rnn(scale * orthogonal(8))  # at h = 0 tanh is the identity
    norms = diagnostics.gradient_norms(layer, np.zeros((100, 2, 8))).norms["h_l0"]
    np.testing.assert_allclose(norms, scale ** np.arange(99.0, -1, -1), rtol=1e-12)
    assert norms[0] == pytest.approx(factor)


def test_the_gradient_of_every_step_is_added():
    """h_t = a h_{t-1} + x_t and dy = 1 everywhere: a geometric series."""
    found = diagnostics.gradient_norms(rnn([[0.5]], "relu"), np.ones((10, 1, 1)), dy=np.ones((10, 1, 1)))
    np.testing.assert_allclose(found.norms["h_l0"], 2 - 0.5 ** np.arange(9.0, -1, -1), rtol=1e-14)


def test_gradients_beyond_what_squares_hold():
    norms = diagnostics.gradient_norms(rnn([[1e-10]], "relu"), np.ones((30, 1, 1))).norms["h_l0"]
    np.testing.assert_allclose(norms, 1e-10 ** np.arange(29.0, -1, -1), rtol=1e-12)
    norms = diagnostics.gradient_norms(rnn([[1e100]], "relu"), np.ones((4, 1, 1))).norms["h_l0"]
    np.testing.assert_allclose(norms, [1e300, 1e200, 1e100, 1])


CASES = {
    "rnn": lambda **o: elman.RNN(3, 4, **o),
    "rnn-2": lambda **o: elman.RNN(3, 4, 2, nonlinearity="sigmoid", **o),
    "lstm": lambda **o: elman.LSTM(3, 4, **o),
    "lstm-2-bi": lambda **o: elman.LSTM(3, 4, 2, bidirectional=True, **o),
    "gru-2": lambda **o: elman.GRU(3, 4, 2, **o),
    "gru-before-bi": lambda **o: elman.GRU(3, 4, reset_after=False, bidirectional=True, bias=False, **o),
    "lstm-proj-2-bi": lambda **o: elman.LSTM(3, 4, 2, bidirectional=True, proj_size=2, peephole=True, **o),
    "rnn-leak": lambda **o: elman.RNN(3, 4, leak=0.5, **o),
}


def loss_with(layer, x, dy, alive, at=None):
    """The sum of y * dy of the equations, run step by step with `at` = (k, d, t, part, b, j, amount) added to a state
    the moment it has been computed; part "c" is added after h was made of it."""
    T, B, _ = x.shape
    R, D = getattr(layer, "proj_size", 0) or layer.hidden_size, 2 if layer.bidirectional else 1
    cell = type(layer).__name__.lower()
    names = {"rnn": ["nonlinearity", "leak"], "gru": ["reset_after"], "lstm": []}[cell]
    options = {name: getattr(layer, name) for name in names}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    further = ("weight_ci", "weight_cf", "weight_co", "weight_hr") if "weight_hr_l0" in layer.params else ()
    for k in range(layer.num_layers):
        y = np.zeros((T, B, D * R))
        for d in range(D):
            name = f"l{k}" + "_reverse" * d
            w = tuple(layer.params.get(f"{kind}_{name}") for kind in (*kinds, *further))
            state = None
            for t in range(T)[:: -1 if d else 1]:
                forward = getattr(reference, f"{cell}_forward")
                _, state, _ = forward(x[t : t + 1], state, [w], lengths=alive[t].astype(int), **options)
                parts = [p.copy() for p in (state if isinstance(state, tuple) else (state,))]
                if at is not None and at[:3] == (k, d, t):
                    _, _, _, part, b, j, amount = at
                    parts["hc".index(part)][0, b, j] += amount
                y[t, :, d * R : (d + 1) * R] = np.where(alive[t][:, None], parts[0][0], 0)
                state = tuple(parts) if isinstance(state, tuple) else parts[0]
        x = y
    return float((y * dy).sum())


@pytest.mark.parametrize("name", CASES)
def test_gradient_norms_by_central_differences(name):
    layer = CASES[name](seed=1, dtype=np.float64)
    D = 2 if layer.bidirectional else 1
    R = getattr(layer, "proj_size", 0) or 4
    x, dy = draw(5, 2, 3), draw(5, 2, R * D, seed=1)
    lengths = [5, 3]
    alive = np.arange(5)[:, None] < lengths
    dy = np.where(alive[:, :, None], dy, 0)
    found = diagnostics.gradient_norms(layer, x, dy, lengths).norms
    parts = "hc" if isinstance(layer, elman.LSTM) else "h"
    names = {f"{p}_l{k}" + "_reverse" * d: (k, d, p) for k in range(layer.num_layers) for d in range(D) for p in parts}
    assert list(found) == list(names)
    for key, (k, d, part) in names.items():
        for t in range(5):
            gradient = np.zeros((2, 4 if part == "c" else R))
            for b, j in np.ndindex(gradient.shape):
                if alive[t, b]:
                    high, low = (loss_with(layer, x, dy, alive, (k, d, t, part, b, j, e)) for e in (1e-5, -1e-5))
                    gradient[b, j] = (high - low) / 2e-5
            assert found[key][t] == pytest.approx(np.linalg.norm(gradient), rel=1e-6, abs=1e-9), (key, t)
    assert max(found[key].max() for key in found) > 0.1
    if part == "c":
        assert found["c_l0"][-1] == 0 and found["c_l0"][0] > 0


@pytest.mark.parametrize("name", ["rnn-2", "lstm-2-bi", "gru-before-bi"])
def test_both_backends_and_all_layouts_agree(name):
    x, dy_seed = draw(6, 3, 3, dtype=np.float32), 2
    made = CASES[name](seed=1)
    dy = draw(6, 3, made(x)[0].shape[2], seed=dy_seed, dtype=np.float32)
    lengths = [6, 0, 4]
    expected = diagnostics.gradient_norms(made, x, dy, lengths).norms
    others = {"backend": "reference"}, {"batch_first": True}, {"dtype": np.float64}
    for options in others:
        layer = CASES[name](**({"seed": 1} | options))
        dtype, swap = (
            options.get("dtype", np.float32),
            (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a),
        )
        got = diagnostics.gradient_norms(layer, swap(x.astype(dtype)), swap(dy.astype(dtype)), lengths).norms
        assert got.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_allclose(got[key], values, rtol=1e-4, atol=1e-6, err_msg=str((options, key)))
    alone = diagnostics.gradient_norms(made, x[:, 2], dy[:, 2], 4).norms
    batch = diagnostics.gradient_norms(made, x[:, 2:], dy[:, 2:], [4]).norms
    assert all(np.array_equal(alone[key], values) and values.any() for key, values in batch.items() if "c_" not in key)


def test_the_reverse_direction_is_the_forward_one_read_backwards():
    both = elman.GRU(3, 4, bidirectional=True, seed=0, dtype=np.float64)
    reverse = elman.GRU(3, 4, dtype=np.float64)
    reverse.load_params({name: both.params[f"{name}_reverse"] for name in reverse.params})
    x = draw(7, 2, 3)
    for T in (7, 4):
        found = diagnostics.gradient_norms(both, x, lengths=[T, T]).norms
        backwards = diagnostics.gradient_norms(reverse, x[:T][::-1]).norms["h_l0"][::-1]
        np.testing.assert_allclose(found["h_l0_reverse"][:T], backwards, rtol=1e-12)
        assert found["h_l0"][T - 1] == pytest.approx(1) and found["h_l0_reverse"][0] == pytest.approx(1)
        assert not found["h_l0"][T:].any() and not found["h_l0_reverse"][T:].any()


def test_the_default_gradient_has_norm_one_whatever_the_lengths():
    found = diagnostics.gradient_norms(rnn(np.eye(4)), np.zeros((9, 3, 4)), lengths=[9, 0, 5]).norms["h_l0"]
    np.testing.assert_allclose(found, [1] * 5 + [0.5**0.5] * 4, rtol=1e-12)


EACH = {
    "gradient_norms": diagnostics.gradient_norms,
    "gate_saturation": diagnostics.gate_saturation,
    "activation_statistics": diagnostics.activation_statistics,
}


@pytest.mark.parametrize("name", EACH)
def test_the_layer_is_not_changed_and_padding_never_read(name):
    layer = elman.LSTM(3, 4, 2, dropout=0.5, bidirectional=True, seed=0)
    plain = elman.LSTM(3, 4, 2, bidirectional=True, seed=0)
    x, lengths = draw(6, 3, 3, dtype=np.float32), np.array([6, 0, 4])
    x[np.arange(6)[:, None] >= lengths] = np.nan
    x.flags.writeable = False
    before = copy.deepcopy(layer)
    found = EACH[name](layer, x, lengths=lengths)
    again = EACH[name](plain, x, lengths=lengths)
    assert str(found) == str(again) and "nan" not in str(found)  # dropout does not act
    assert all(np.array_equal(a, before.params[key]) for key, a in layer.params.items())
    ones = np.ones((4, 2, 3), np.float32)
    assert np.array_equal(layer.forward(ones)[0], before.forward(ones)[0])  # its generator has not moved


# --------------------------------------------------------------------------------------------------- recurrent weights


def test_eigenvalues_and_singular_values_that_are_known():
    turn = 0.8 * np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    found = diagnostics.spectral_radius(rnn(turn))
    assert found.radius == {"weight_hh_l0": pytest.approx(0.8, rel=1e-14)}
    np.testing.assert_allclose(sorted(found.eigenvalues["weight_hh_l0"], key=np.angle), 0.8 * np.exp([-1j, 1j]))
    np.testing.assert_allclose(diagnostics.singular_values(rnn(turn)).values["weight_hh_l0"], [0.8, 0.8])

    shear = rnn([[0.0, 2.0], [0.0, 0.0]])  # no eigenvalue but 0, and yet it doubles
    assert diagnostics.spectral_radius(shear).radius["weight_hh_l0"] == 0
    np.testing.assert_allclose(diagnostics.singular_values(shear).values["weight_hh_l0"], [2, 0])

    diagonal = rnn(np.diag([0.1, -3.0, 2.0]))
    np.testing.assert_allclose(diagnostics.spectral_radius(diagonal).eigenvalues["weight_hh_l0"], [-3, 2, 0.1])
    np.testing.assert_allclose(diagnostics.singular_values(diagonal).values["weight_hh_l0"], [3, 2, 0.1])


@pytest.mark.parametrize("kind, letters", [(elman.LSTM, "ifgo"), (elman.GRU, "rzn")])
def test_blocks_are_named_by_their_gate(kind, letters):
    layer = kind(2, 3, 2, bidirectional=True)
    scale = {"weight_hh_l0": 1, "weight_hh_l0_reverse": 10, "weight_hh_l1": 100, "weight_hh_l1_reverse": 1000}
    with layer.edit() as p:
        for name, s in scale.items():
            p[name] = np.concatenate([s * (i + 1) * np.eye(3, dtype=np.float32) for i in range(len(letters))])
    expected = {f"{name}[{letter}]": s * (i + 1.0) for name, s in scale.items() for i, letter in enumerate(letters)}
    assert diagnostics.spectral_radius(layer).radius == expected
    found = diagnostics.singular_values(layer).values
    assert {name: values.tolist() for name, values in found.items()} == {name: [s] * 3 for name, s in expected.items()}


# ------------------------------------------------------------------------------------------------------------- gates


def test_gates_set_by_their_biases():
    layer = elman.LSTM(1, 2)
    with layer.edit() as p:
        for name in p:
            p[name][:] = 0
        p["bias_ih_l0"][:] = [9, -9, -9, -9, 5, 5, 0, 9]  # i, f, g, o of two units each
    found = diagnostics.gate_saturation(layer, np.zeros((5, 3, 1), np.float32))
    assert found.closed == {"i_l0": 0.5, "f_l0": 1, "o_l0": 0}
    assert found.open == {"i_l0": 0.5, "f_l0": 0, "o_l0": 0.5}
    assert found.mean["i_l0"] == pytest.approx(0.5) and found.mean["o_l0"] == pytest.approx(0.75, abs=1e-3)
    all_open = diagnostics.gate_saturation(layer, np.zeros((5, 3, 1), np.float32), low=0.0, high=0.4)
    assert all_open.closed["f_l0"] == 0 and all_open.open["o_l0"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind, letters", [(elman.LSTM, "ifgo"), (elman.GRU, "rzn")])
def test_gates_step_by_step(kind, letters, backend):
    """Two layers, ragged, from the states that `step` leaves."""
    layer = kind(3, 4, 2, seed=0, dtype=np.float64, backend=backend)
    with layer.edit() as p:
        for a in p.values():
            a *= 4
    x, lengths = draw(12, 2, 3), [12, 5]
    gates = {}
    for b, n in enumerate(lengths):
        state = layer.zero_state()
        for t in range(n):
            before = (state.h if kind is elman.LSTM else state).copy()
            layer.step(x[t, b], state)
            after = state.h if kind is elman.LSTM else state
            for k in range(2):
                p = layer.params
                below = after[0] if k else x[t, b]
                a = p[f"weight_ih_l{k}"] @ below + p[f"weight_hh_l{k}"] @ before[k]
                a = 1 / (1 + np.exp(-a - p[f"bias_ih_l{k}"] - p[f"bias_hh_l{k}"]))
                for i, letter in enumerate(letters):
                    gates.setdefault(f"{letter}_l{k}", []).append(a[4 * i : 4 * i + 4])
    found = diagnostics.gate_saturation(layer, x, lengths, low=0.2, high=0.7)
    assert set(found.closed) == {name for name in gates if name[0] not in "gn"}
    for name in found.closed:
        values = np.array(gates[name])
        assert found.closed[name] == (values < 0.2).mean() and 0 < found.closed[name] < 1, name
        assert found.open[name] == (values > 0.7).mean() and 0 < found.open[name] < 1, name
        assert found.mean[name] == pytest.approx(values.mean(), rel=1e-12)


def test_gates_of_the_reverse_direction():
    both = elman.LSTM(3, 4, bidirectional=True, seed=0, dtype=np.float64)
    reverse = elman.LSTM(3, 4, dtype=np.float64)
    reverse.load_params({name: both.params[f"{name}_reverse"] for name in reverse.params})
    x = draw(7, 2, 3)
    found = diagnostics.gate_saturation(both, x, [4, 4]).mean
    backwards = diagnostics.gate_saturation(reverse, x[:4][::-1]).mean
    for name in backwards:
        assert found[f"{name}_reverse"] == pytest.approx(backwards[name], rel=1e-12)
        assert found[f"{name}_reverse"] != pytest.approx(found[name], rel=1e-3)


# ------------------------------------------------------------------------------------------------------- activations


def test_activations_are_those_of_the_output():
    layer = elman.RNN(3, 5, 2, nonlinearity="relu", seed=0, batch_first=True)
    with layer.edit() as p:
        p["bias_ih_l1"][2] = -100  # a dead unit
        p["weight_ih_l1"] *= 3
    x, lengths = draw(4, 9, 3, dtype=np.float32), [9, 0, 3, 1]
    found = diagnostics.activation_statistics(layer, x, lengths)
    assert list(found.layers) == ["h_l0", "h_l1"]
    y = layer(x, lengths=lengths)[0]
    values = np.concatenate([y[b, :n] for b, n in enumerate(lengths)])
    got = found.layers["h_l1"]
    assert got.mean == pytest.approx(values.mean(), rel=1e-5) and got.std == pytest.approx(values.std(), rel=1e-5)
    assert (got.minimum, got.maximum) == (0, values.max()) and got.dead == 0.2
    assert got.zero == (values == 0).mean() and got.saturated == (values > 0.95).mean()
    assert 0.2 <= got.zero < 0.9 and 0 < got.saturated < 1 and got.zero != found.layers["h_l0"].zero
    assert got.counts.sum() == values.size and got.edges[0] == 0 and got.edges[-1] == got.maximum


def test_activations_of_both_directions_and_negative_saturation():
    layer = elman.RNN(1, 3, bidirectional=True)
    with layer.edit() as p:
        for name in p:
            p[name][:] = 0
        p["bias_ih_l0"][:] = [-9, 0, 0]
        p["bias_ih_l0_reverse"][:] = 9
    found = diagnostics.activation_statistics(layer, np.ones((4, 1), np.float32)).layers
    assert found["h_l0"].saturated == pytest.approx(1 / 3) and found["h_l0"].zero == pytest.approx(2 / 3)
    assert found["h_l0_reverse"].mean == pytest.approx(1) and found["h_l0_reverse"].dead == 1
    exploding = rnn([[1e30]], "relu")
    with pytest.raises(ValueError, match="x: expected finite outputs, got NaN or infinity in h_l0"):
        diagnostics.activation_statistics(exploding, np.ones((20, 1, 1)))


# ------------------------------------------------------------------------------------------------------------ memory


@DTYPES
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("a, fraction, length", [(0.5, 0.01, 7), (0.9, 0.01, 44), (0.9, 0.1, 22), (0.1, 0.5, 1)])
def test_a_decay_falls_below_its_fraction_at_the_logarithm(nonlinearity, a, fraction, length, dtype):
    assert length == math.ceil(math.log(fraction) / math.log(a))
    layer = rnn([[a]], nonlinearity, dtype)
    found = diagnostics.memory_length(
        layer, np.full((60, 1), 0 if nonlinearity == "tanh" else 1, dtype), fraction=fraction
    )
    assert found.length == length and found.fraction == fraction
    np.testing.assert_allclose(found.response, dtype(a) ** np.arange(60.0), rtol=1e-5, atol=1e-8)


def test_a_delay_line_remembers_as_many_steps_as_it_has_units():
    line = rnn(np.eye(7, k=-1))
    with line.edit() as p:
        p["weight_ih_l0"] = np.diag([1.0] + [0] * 6)
    found = diagnostics.memory_length(line, steps=20)
    np.testing.assert_allclose(found.response, [1] * 7 + [0] * 13, atol=1e-8)
    assert found.length == 7 and found.response.shape == (20,)


def test_a_response_that_comes_back_counts():
    chain = np.diag([1e-3, 1e3], k=-1)
    layer = rnn(chain)
    with layer.edit() as p:
        p["weight_ih_l0"] = np.diag([1.0, 0, 0])
    found = diagnostics.memory_length(layer, steps=9)
    np.testing.assert_allclose(found.response[:4], [1, 1e-3, 1, 0], atol=1e-8)
    assert found.length == 3


def test_what_is_never_forgotten_and_what_is_never_heard():
    assert diagnostics.memory_length(rnn(np.eye(2), "relu"), np.ones((50, 3, 2))).length is None
    assert diagnostics.memory_length(rnn([[1.2]]), steps=50).length is None
    deaf = rnn([[1.0]])
    with deaf.edit() as p:
        p["weight_ih_l0"][:] = 0
    found = diagnostics.memory_length(deaf, steps=5)
    assert found.length == 0 and not found.response.any()
    assert diagnostics.memory_length(rnn([[1e200]], "relu"), np.ones((9, 1))).length is None  # overflows


def begun(layer):
    """With an initial state that is not 0."""
    with layer.edit() as p:
        for name in ("h0_l0", "c0_l0"):
            p[name] = np.full_like(p[name], 0.7)
    return layer


RESPONDING = CASES | {
    "lstm-norm": lambda **o: elman.LSTM(3, 4, 2, layer_norm="gate", **o),
    "gru-norm": lambda **o: elman.GRU(3, 4, layer_norm="joint", **o),
    "lstm-begun": lambda **o: begun(elman.LSTM(3, 4, train_state=True, **o)),
}


@pytest.mark.parametrize("name", RESPONDING)
def test_the_response_is_the_jacobian(name):
    """Its squares are those of dy_t/dx_0, which backward gives row by row."""
    layer = RESPONDING[name](seed=1, dtype=np.float64)
    x = draw(4, 2, 3)
    y, _, tape = layer.forward(x)
    squares = np.zeros(4)
    for t, j in np.ndindex(4, y.shape[2]):
        dy = np.zeros_like(y)
        dy[t, :, j] = 1  # the sequences do not mix
        squares[t] += (layer.backward(tape, dy)[0][0] ** 2).sum()
    np.testing.assert_allclose(diagnostics.memory_length(layer, x).response, np.sqrt(squares), rtol=1e-6, atol=1e-9)
    swapped = RESPONDING[name](seed=1, dtype=np.float64, batch_first=True)
    found = diagnostics.memory_length(swapped, x.swapaxes(0, 1)).response
    np.testing.assert_allclose(found, np.sqrt(squares), rtol=1e-6, atol=1e-9)


def test_a_share_that_stays_is_remembered():
    found = diagnostics.memory_length(rnn([[0.5]], "relu", zoneout=(0.5, 0.0)), np.ones((6, 1)))
    np.testing.assert_allclose(found.response, 0.5 * 0.75 ** np.arange(6), rtol=1e-7)  # h' = h / 2 + (h / 2 + x) / 2


def test_an_lstm_that_keeps_its_cell_remembers_longer():
    lengths = [diagnostics.memory_length(elman.LSTM(2, 8, forget_bias=b, seed=0), steps=400).length for b in (0, 2, 3)]
    assert 5 < lengths[0] < lengths[1] < lengths[2] < 400


# ------------------------------------------------------------------------------------------------------------ errors


X = np.zeros((4, 2, 3), np.float32)
TALL = elman.LSTM(3, 5)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: diagnostics.gradient_norms(elman.Dense(3, 3), X), TypeError, "layer: expected an RNN, LSTM or GRU"),
        (lambda: diagnostics.gradient_norms(TALL, X[:, :, :2]), ValueError, r"x: expected shape \(T, B, 3\)"),
        (lambda: diagnostics.gradient_norms(TALL, X[0, 0]), ValueError, r"x: expected shape \(T, B, 3\) or \(T, 3\)"),
        (lambda: diagnostics.gradient_norms(TALL, [[1.0], [1.0, 2.0]]), ValueError, "x: expected an array"),
        (lambda: diagnostics.gradient_norms(TALL, X.astype(float)), TypeError, "x: expected dtype float32"),
        (lambda: diagnostics.gradient_norms(TALL, X[:0]), ValueError, "x: expected at least one true step"),
        (lambda: diagnostics.gradient_norms(TALL, X, lengths=[0, 0]), ValueError, "x: expected at least one true step"),
        (lambda: diagnostics.gradient_norms(TALL, X, lengths=[5, 0]), ValueError, "lengths: expected 0 to 4"),
        (
            lambda: diagnostics.gradient_norms(TALL, X, X),
            ValueError,
            r"dy: expected shape \(4, 2, 5\), got \(4, 2, 3\)",
        ),
        (lambda: diagnostics.spectral_radius(None), TypeError, "layer: expected an RNN, LSTM or GRU, got NoneType"),
        (lambda: diagnostics.singular_values("lstm"), TypeError, "layer: expected an RNN, LSTM or GRU, got str"),
        (lambda: diagnostics.gate_saturation(elman.RNN(3, 3), X), TypeError, "layer: expected an LSTM or a GRU"),
        (lambda: diagnostics.gate_saturation(TALL, X, low=-0.1), ValueError, "low: expected 0 to 1, got -0.1"),
        (lambda: diagnostics.gate_saturation(TALL, X, high=math.nan), ValueError, "high: expected 0 to 1, got nan"),
        (lambda: diagnostics.gate_saturation(TALL, X, low=0.7, high=0.6), ValueError, "low: expected at most high=0.6"),
        (lambda: diagnostics.gate_saturation(TALL, X, low="0"), TypeError, "low: expected a number, got '0'"),
        (lambda: diagnostics.activation_statistics(TALL, X[:, :0]), ValueError, "x: expected at least one true step"),
        (lambda: diagnostics.memory_length(TALL, X[:0]), ValueError, "x: expected at least one true step"),
        (lambda: diagnostics.memory_length(TALL, steps=0), ValueError, "steps: expected 1 to"),
        (lambda: diagnostics.memory_length(TALL, fraction=0), ValueError, "fraction: expected above 0 and below 1"),
        (lambda: diagnostics.memory_length(TALL, fraction=True), TypeError, "fraction: expected a number, got True"),
        (lambda: diagnostics.memory_length(elman.Dense(3, 3)), TypeError, "layer: expected an RNN, LSTM or GRU"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


REFUSED = [("layer_norm", "joint"), ("zoneout", (0.5, 0.0)), ("train_state", True)]


@pytest.mark.parametrize("cls", [elman.LSTM, elman.GRU], ids=["lstm", "gru"])
@pytest.mark.parametrize("option, value", REFUSED, ids=[name for name, _ in REFUSED])
def test_what_would_be_measured_wrong_is_refused(option, value, cls):
    layer = cls(3, 5, **{option: value})
    for function in (diagnostics.gradient_norms, diagnostics.gate_saturation, diagnostics.activation_statistics):
        with pytest.raises(
            ValueError, match=f"^layer: expected one with {option}=.*, got {option}={re.escape(repr(value))}$"
        ):
            function(layer, X)
    assert len(diagnostics.spectral_radius(layer).radius) == len(diagnostics.singular_values(layer).values) > 0
    assert diagnostics.check_gradients(layer, draw(4, 2, 3), elements=3).keys() >= set(layer.params)


def test_a_projected_lstm_has_no_eigenvalues():
    layer = elman.LSTM(3, 5, proj_size=2, bidirectional=True)
    with pytest.raises(ValueError, match="^layer: expected one with proj_size=0, got proj_size=2"):
        diagnostics.spectral_radius(layer)
    assert diagnostics.singular_values(layer).values["weight_hh_l0[f]"].shape == (2,)


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2, "bidirectional": True},
        {"weight_dropout": 0.5, "recurrent_dropout": 0.5, "input_dropout": 0.5, "dropout": 0.5, "num_layers": 2},
        {"peephole": True, "coupled": "f=1-i", "clip": 0.5, "cell_clip": 0.2, "grad_clip": 0.01},
    ],
    ids=["proj", "noise", "limits"],
)
def test_options_that_are_honoured(options):
    """What is measured is what the layer returns."""
    layer = elman.LSTM(3, 4, dtype=np.float64, seed=1, **options)
    x, D = draw(6, 3, 3), 2 if layer.bidirectional else 1
    y, _, gates = layer(x, return_all=("gates",))
    top = layer.num_layers - 1
    statistics, means = diagnostics.activation_statistics(layer, x).layers, diagnostics.gate_saturation(layer, x).mean
    for d, h in enumerate(np.split(y, D, axis=2)):
        name = f"l{top}" + "_reverse" * d
        assert statistics[f"h_{name}"].mean == pytest.approx(h.mean(), abs=1e-14)
        assert means[f"o_{name}"] == pytest.approx(gates[:, :, d, 3].mean(), abs=1e-14)


# ---------------------------------------------------------------------------------------------------------- pictures


def results():
    layer = elman.LSTM(3, 4, 2, bidirectional=True, seed=0)
    x = draw(6, 2, 3, dtype=np.float32)
    return [
        diagnostics.gradient_norms(layer, x),
        diagnostics.spectral_radius(layer),
        diagnostics.singular_values(layer),
        diagnostics.gate_saturation(layer, x),
        diagnostics.activation_statistics(layer, x),
        diagnostics.memory_length(layer, x),
    ]


@pytest.mark.parametrize("found", results(), ids=lambda found: type(found).__name__)
def test_every_result_draws_itself(found):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert found.plot(axes) is axes
    assert axes.lines or axes.collections or axes.patches
    assert axes.get_ylabel()
    figure.canvas.draw()
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    own = found.plot()
    assert own.figure is not figure and own.get_ylabel() == axes.get_ylabel()
    importlib.import_module("matplotlib.pyplot").close(own.figure)


def test_the_curve_that_is_drawn_is_the_one_that_was_found():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    found = diagnostics.gradient_norms(rnn(np.eye(2) / 2), np.zeros((5, 1, 2)))
    axes = found.plot(figure.subplots())
    assert [line.get_label() for line in axes.lines] == ["h_l0"] and axes.get_yscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.norms["h_l0"])


@pytest.mark.parametrize("found", results(), ids=lambda found: type(found).__name__)
def test_without_matplotlib_the_error_says_what_to_do(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot: needs matplotlib: pip install 'elman\[plot\]'"):
        found.plot()


def test_matplotlib_is_not_imported_before_it_draws():
    code = """
        import sys, elman, numpy as np
        found = elman.diagnostics.gradient_norms(elman.RNN(2, 2), np.ones((3, 2), np.float32))
        print([name for name in sys.modules if name.startswith("matplotlib")])
    """
    assert output_of(code) == "[]"


# -------------------------------------------------------------------------------------------------- the worked example


@pytest.fixture
def example():
    path = Path(__file__).parent.parent / "examples" / "vanishing_gradients.py"
    spec = importlib.util.spec_from_file_location("vanishing_gradients", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_shows_what_it_says(example):
    found = example.measure()
    first = {name: norms[0] for name, (norms, _) in found.items()}  # 100 steps before the last
    assert first["tanh RNN"] < 1e-20 and first["orthogonal"] == pytest.approx(1, abs=1e-6)
    assert first["orthogonal x 1.15"] > 1e5 and 0.1 < first["LSTM"] < 10
    memory = {name: memory.length for name, (_, memory) in found.items()}
    assert memory.pop("tanh RNN") < 20 and set(memory.values()) == {None}


def test_the_example_learns_with_clipping(example):
    error, largest = example.train(1.0, seed=0)
    assert error < 0.01 and largest > 20  # so much was clipped


def test_the_example_prints_its_table_and_draws(example, capsys, tmp_path):
    example.main([], seeds=1)
    printed = capsys.readouterr().out
    assert "orthogonal x 1.15" in printed and "clipped to norm 1" in printed and "nan" not in printed
    pytest.importorskip("matplotlib")
    example.draw(example.measure()).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
