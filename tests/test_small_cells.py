"""MinGRU, MinLSTM, QRNN, MGU and CfC: against plain loops written from the sources' formulas, what is special in each,
and their layers. Gradients, bits and kernels against reference: test_cells.py."""

from __future__ import annotations

from math import exp, tanh

import helpers
import numpy as np
import pytest
from helpers import FURTHER, assert_same, problem

import elman
from elman import functional, reference

implementation = helpers.implementation

NAMES = ("min-gru", "min-lstm", "qrnn", "mgu", "mgu-no-reset", "cfc", "cfc-no-gate", "cfc-pure")
T, B, I, H = 5, 3, 2, 4


def sigmoid(a):
    return 1 / (1 + exp(-a))


def min_g(a):
    return a + 0.5 if a >= 0 else sigmoid(a)


def literal_unit(name, sx, sh, b_hh, old, dt, units):
    """(what comes out, new state) of one unit. sx: W_ih x + b_ih of its gates, sh: W_hh h without b_hh."""
    if name == "min-gru":
        hidden, gate = sx
        z = sigmoid(gate)
        return ((1 - z) * old + z * min_g(hidden),) * 2
    if name == "min-lstm":
        hidden, f, i = sx
        f, i = sigmoid(f), sigmoid(i)
        return (f / (f + i) * old + i / (f + i) * min_g(hidden),) * 2
    if name == "qrnn":
        z, f, o = tanh(sx[0]), sigmoid(sx[1]), sigmoid(sx[2])
        c = f * z + (1 - f) * old
        return o * c, c
    if name.startswith("mgu"):
        f = sigmoid(sx[0] + sh[0] + b_hh[0])
        n = tanh(sx[1] + f * (sh[1] + b_hh[1]) if name == "mgu" else sx[1] + sh[1])
        return ((1 - f) * n + f * old,) * 2
    a = [x + h + b for x, h, b in zip(sx, sh, b_hh, strict=True)]
    if name == "cfc-pure":
        (ff1,), (w_tau, A) = a, units
        return (-A * exp(-dt * (abs(w_tau) + abs(ff1))) * ff1 + A,) * 2
    ff1, ff2, t_interp = tanh(a[0]), tanh(a[1]), sigmoid(a[2] * dt + a[3])
    return (ff1 * (1 - t_interp) + t_interp * ff2 if name == "cfc" else ff1 + t_interp * ff2,) * 2


def literal(name, p):
    """y and the last state, number by number."""
    W_ih, W_hh, b_ih, b_hh, *units = p.weights[0]
    T, B, I = p.x.shape
    H, G = p.state[0].shape[2], p.cell.gates
    y, state = np.zeros((T, B, H)), p.state[0][0].copy()
    for b in range(B):
        for t in range(T):
            old = state[b].copy()
            for u in range(H):
                rows = [k * H + u for k in range(G)]
                sx = [sum(W_ih[r, i] * p.x[t, b, i] for i in range(I)) + b_ih[r] for r in rows]
                sh = [] if W_hh is None else [sum(W_hh[r, j] * old[j] for j in range(H)) for r in rows]
                dt = None if p.row is None else p.row[t, b]
                b_h = [] if b_hh is None else b_hh[rows]
                y[t, b, u], state[b, u] = literal_unit(name, sx, sh, b_h, old[u], dt, [w[u] for w in units])
    return {"y": y, p.cell.parts[0]: state[None]}


def take_weights(layer, weights):
    with layer.edit() as params:
        assert params.keys() == weights.keys()
        for name, a in weights.items():
            params[name][...] = a


@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_number_by_number(implementation, name):
    p = problem(FURTHER[name], T, B, I, H, seed=3)
    y, state, _ = p.forward(implementation)
    assert_same({"y": y, p.cell.parts[0]: state[0]}, literal(name, p), 1e-14)


# ------------------------------------------------------------------------------------------------- minGRU and minLSTM


@pytest.mark.parametrize("cell", ["min_gru", "min_lstm"])
def test_the_slope_of_g_at_its_kink_is_that_above(implementation, cell):
    gates = {"min_gru": 2, "min_lstm": 3}[cell]
    weights = [(np.zeros((gates, 1)), None, np.zeros(gates), None)]
    _, _, tape = implementation.cell_forward(cell, np.zeros((1, 1, 1)), None, weights)
    _, _, [(_, _, db, _)] = implementation.cell_backward(tape, np.ones((1, 1, 1)))
    assert db[0] == 0.5  # the share of the new, 0.5, times 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_min_lstm_divides_gates_too_small_for_the_dtype(implementation, dtype):
    """sigmoid(f) / (sigmoid(f) + sigmoid(i)) for both below every number that there is: e^(f - i) decides."""
    for a_f, a_i in [(-2000, -2001), (-2001, -2000), (-3000, 5), (5, -3000), (-1e9, -1e9), (-800, -802.5), (40, 41)]:
        weights = [(np.zeros((3, 1), dtype), None, np.array([1.5, a_f, a_i], dtype), None)]
        state = np.full((1, 1, 1), 5, dtype)
        y, _, tape = implementation.cell_forward("min_lstm", np.zeros((1, 1, 1), dtype), state, weights)
        f = 0.5 if a_f > 30 and a_i > 30 else 1 / (1 + np.exp(np.float64(min(max(a_i - a_f, -700), 700))))
        if max(a_f, a_i) == 5:
            f = float(a_f > 0)
        np.testing.assert_allclose(y[0, 0, 0], 5 * f + 2 * (1 - f), rtol=4e-7 if dtype == np.float32 else 1e-12)
        dx, dstate, [(_, _, db, _)] = implementation.cell_backward(tape, np.ones((1, 1, 1), dtype))
        np.testing.assert_allclose(dstate[0, 0, 0], f, rtol=4e-7 if dtype == np.float32 else 1e-12)
        slope = 3 * f * (1 - f)  # by a_f; sigmoid(-a) is 1 where a is so small
        wanted = [slope if a_f < 0 else 0, -slope if a_i < 0 else 0]
        np.testing.assert_allclose(db[1:], wanted, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_min_lstm_at_the_end_of_the_dtype(implementation, dtype):
    """e^(f - i) decides for every finite number, however large."""
    most = np.finfo(dtype).max
    for a_f, a_i, share in [
        (-1e32, -2e32, 1), (-2e32, -1e32, 0), (-most / 2, -most, 1), (-most, -most / 2, 0), (-most, -most, 0.5),
        (-most, most, 0), (most, -most, 1), (most, most, 0.5), (-1e32, -5, 0), (-np.inf, 5, 0), (5, -np.inf, 1),
    ]:  # fmt: skip
        x = np.array([[[0, a_f, a_i]]], dtype)
        weights = [(np.eye(3, dtype=dtype), None, np.zeros(3, dtype), None)]
        if not np.isfinite(x).all():  # 0 * infinity is none
            weights, x = [(np.zeros((3, 1), dtype), None, x.reshape(3), None)], np.zeros((1, 1, 1), dtype)
        state = np.full((1, 1, 1), 3, dtype)
        y, _, _, gates = implementation.cell_forward("min_lstm", x, state, weights, return_all=("gates",))
        assert y.item() == 3 * share + 0.5 * (1 - share)
        assert gates.ravel().tolist() == [0.5, share, 1 - share]


def test_min_cells_stay_positive():
    for kind in (elman.MinGRU, elman.MinLSTM):
        y, _ = kind(3, 8, 2, seed=0, dtype=np.float64)(np.random.default_rng(0).standard_normal((20, 4, 3)) * 10)
        assert (y > 0).all()


# ---------------------------------------------------------------------------------------------------------------- QRNN


@pytest.mark.parametrize("share", [0.25, None])
def test_zoneout_of_a_qrnn_is_in_its_gate(implementation, share):
    """The authors multiply F by a Bernoulli(1 - p) mask in training, 1 - p in evaluation; h is made of that c."""
    p = problem(FURTHER["qrnn"], T, B, I, H, seed=1)
    stays = np.random.default_rng(2).random((T, B, H)) < 0.4 if share is None else share
    p.noise["zoneout"] = (0.0, stays)
    y, (c_last,), _ = p.forward(implementation)
    W, _, bias, _ = p.weights[0]
    c, wanted = p.state[0][0], []
    for t in range(T):
        Z, F, O = np.split(p.x[t] @ W.T + bias, 3, axis=1)
        F = 1 / (1 + np.exp(-F)) * (1 - (stays[t] if share is None else share))
        c = F * np.tanh(Z) + (1 - F) * c
        wanted.append(c / (1 + np.exp(-O)))
    np.testing.assert_allclose(y, wanted, rtol=1e-13)
    np.testing.assert_allclose(c_last[0], c, rtol=1e-13)


def test_gradients_of_a_qrnn_with_a_share_that_stays(implementation):
    """With masks of 0 and 1, which test_cells.py has, f (1 - sigmoid) and f (1 - f) are the same."""
    p = problem(FURTHER["qrnn"], T, B, I, H, D=2, lengths=[5, 2, 0], seed=1)
    p.noise["zoneout"] = (0.0, 0.25)
    _, _, tape = p.forward(implementation)
    gradients = p.backward(implementation, tape)

    def loss():
        y, (c,), _ = p.forward(implementation)
        return (np.where(p.inside, y * p.dy, 0)).sum() + (c * p.dstate[0]).sum()

    for name in ("bias_ih[0]", "bias_ih[1]", "weight_ih[0]", "c0"):
        a, g = p.arguments()[name], gradients[name]
        for at in range(0, a.size, 2):
            a.flat[at] += 1e-6
            above = loss()
            a.flat[at] -= 2e-6
            wanted = (above - loss()) / 2e-6
            a.flat[at] += 1e-6
            assert abs(g.flat[at] - wanted) < 1e-7 * (1 + abs(wanted)), name


def test_zoneout_of_a_qrnn_layer_in_training_and_after_it():
    layer = elman.QRNN(2, 64, zoneout=(0.0, 0.5), seed=0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((30, 8, 2))
    y, c, _, every = layer.forward(x, rng=1, return_all=("c",))
    before = np.concatenate([np.zeros((1, 8, 64)), every[:-1]])
    assert 0.45 < (every == before).mean() < 0.55
    W, bias = layer.params["weight_ih_l0"], layer.params["bias_ih_l0"]
    a = x @ W.T + bias
    o = 1 / (1 + np.exp(-a[..., 128:]))
    np.testing.assert_allclose(y, o * every, rtol=1e-12, atol=1e-15)  # h sees the c that stays
    state, quiet = layer.zero_state(8), layer(x)[0]
    for t in range(30):
        assert layer.step(x[t], state).tobytes() == quiet[t].tobytes()
    plain = elman.QRNN(2, 64, dtype=np.float64)
    take_weights(plain, layer.params)
    assert abs(quiet - plain(x)[0]).max() > 1e-3


# ----------------------------------------------------------------------------------------------------------------- MGU


def test_the_bias_that_an_mgu_without_reset_gate_has_not(implementation):
    p = problem(FURTHER["mgu-no-reset"], T, B, I, H, D=2, seed=1)
    first = p.results(implementation)
    p.weights = [(*arrays[:3], arrays[3].copy()) for arrays in p.weights]
    for arrays in p.weights:
        arrays[3][H:] += 100
    second = p.results(implementation)
    for name, a in first.items():
        assert a.tobytes() == second[name].tobytes(), name
    for d in range(2):
        db = first[f"dbias_hh[{d}]"]
        assert (db[H:] == 0).all() and (db[:H] != 0).all()
        assert np.array_equal(db[:H], first[f"dbias_ih[{d}]"][:H])


def test_the_gates_of_an_mgu(implementation):
    for name in ("mgu", "mgu-no-reset"):
        p = problem(FURTHER[name], T, B, I, H, seed=1)
        y, _, _, gates = implementation.cell_forward(p.cell.family, p.x, p.state[0], p.weights, return_all=("gates",))
        f, n = gates[:, :, 0, 0], gates[:, :, 0, 1]
        before = np.concatenate([p.state[0], y[:-1]])
        np.testing.assert_allclose(y, (1 - f) * n + f * before, rtol=1e-12, atol=1e-15)


Y_FROM_GATES = {  # the state before, and the number of the row or the share of c that stays, behind them
    "min-gru": lambda g, z, old, _: (1 - z) * old + z * g,
    "min-lstm": lambda g, f, i, old, _: f * old + i * g,
    "qrnn": lambda z, f, o, old, stay: o * (f * (1 - stay) * z + (1 - f * (1 - stay)) * old),
    "sru": lambda u, f, r, s, old, _: r * np.tanh(f * old + (1 - f) * u) + (1 - r) * s,
    "augru-after": lambda r, z, n, old, a: n + (1 - a) * z * (old - n),
    "augru-before": lambda r, z, n, old, a: n + (1 - a) * z * (old - n),
    "cfc": lambda p, q, a, t, old, _: (1 - t) * p + t * q,
    "cfc-no-gate": lambda p, q, a, t, old, _: p + t * q,
}


@pytest.mark.parametrize("name", Y_FROM_GATES)
def test_what_comes_out_is_made_of_the_gates(implementation, name):
    p = problem(FURTHER[name], T, B, I, H, seed=1)
    form, options, stay = p.cell.form, dict(p.cell.options), 0.0
    every = form.returns  # "gates", and c where that is the state
    if name == "qrnn":
        options["zoneout"], stay = (0.0, 0.25), 0.25
    if form.row:
        options["row"] = p.row
    y, last, _, *arrays = implementation.cell_forward(
        p.cell.family, p.x, p.state[0], p.weights, return_all=every, **options
    )
    state = arrays[0] if every[0] == "c" else y
    assert np.array_equal(state[-1], last[0])
    gates = [arrays[-1][:, :, 0, k] for k in range(p.cell.gates)]
    before = np.concatenate([p.state[0], state[:-1]])
    number = p.row[..., None] if form.row else stay
    np.testing.assert_allclose(y, Y_FROM_GATES[name](*gates, before, number), rtol=1e-11, atol=1e-14)
    if name == "min-lstm":
        np.testing.assert_allclose(gates[1] + gates[2], 1, rtol=1e-14)
    if name.startswith("cfc"):
        W, U, b, b_h = p.weights[0]
        a, b = np.split(p.x @ W.T + b + before @ U.T + b_h, 4, axis=-1)[2:]
        np.testing.assert_allclose(gates[2], a, rtol=1e-11)
        np.testing.assert_allclose(gates[3], 1 / (1 + np.exp(-(a * number + b))), rtol=1e-11)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("key", ["attention", "timespans"])
def test_gates_of_layers_that_take_a_number(backend, key):
    def made(**options):
        kind = elman.AUGRU if key == "attention" else elman.CfC
        return kind(I, H, 2, seed=0, backend=backend, **options)

    rng = np.random.default_rng(0)
    x, a = rng.standard_normal((T, B, I), dtype=np.float32), rng.random((T, B), dtype=np.float32)
    layer, turned = made(), made(batch_first=True)
    y, h, gates = layer(x, return_all=("gates",), **{key: a})
    assert gates.shape == (T, B, 1, layer._gates, H)
    assert layer(x, **{key: a})[0].tobytes() == y.tobytes()
    y_trained, _, _, trained = layer.forward(x, return_all=("gates",), tbptt=2, burn_in=1, **{key: a})
    assert trained.tobytes() == gates.tobytes() and y_trained.tobytes() == y.tobytes()
    *_, other = turned(x.swapaxes(0, 1), return_all=["gates"], **{key: a.T})
    assert other.swapaxes(0, 1).tobytes() == gates.tobytes()
    *_, single = layer(x[:, 1], return_all=("gates",), **{key: a[:, 1]})
    if backend == "compiled":
        assert single.tobytes() == gates[:, 1].tobytes()
    for wrong, error in ((("c",), ValueError), ("gates", TypeError)):
        with pytest.raises(error, match="return_all: expected"):
            layer(x, return_all=wrong, **{key: a})
        with pytest.raises(error, match="return_all: expected"):
            layer.forward(x, return_all=wrong, **{key: a})


# ----------------------------------------------------------------------------------------------------------------- CfC

MODES = ("default", "no_gate", "pure")


def dense_weights(layer, scale=0.5):
    """Random ones, since those of the pure form start at 0 and 1."""
    rng = np.random.default_rng(5)
    with layer.edit() as params:
        for a in params.values():
            a[...] = scale * rng.standard_normal(a.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_timespans_of_none_are_ones(mode, backend):
    layer = elman.CfC(I, H, 2, mode=mode, seed=0, backend=backend)
    dense_weights(layer)
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    ones = np.ones((T, B), np.float32)
    (y, h), (y_ones, h_ones) = layer(x), layer(x, timespans=ones)
    assert y.tobytes() == y_ones.tobytes() and h.tobytes() == h_ones.tobytes()
    assert abs(layer(x, timespans=2 * ones)[0] - y).max() > 1e-3
    y_again, _, tape = layer.forward(x)
    _, _, tape_ones = layer.forward(x, timespans=ones)
    assert y_again.tobytes() == y.tobytes()
    without, given = layer.backward(tape, np.ones_like(y)), layer.backward(tape_ones, np.ones_like(y))
    assert len(without) == 3 and len(given) == 4 and given[3].shape == (T, B)
    for name, g in without[2].items():
        assert g.tobytes() == given[2][name].tobytes()
    state, state_ones = layer.zero_state(B), layer.zero_state(B)
    states = [layer.zero_state() for _ in range(B)]
    for t in range(T):
        assert layer.step(x[t], state).tobytes() == y[t].tobytes()
        assert layer.step(x[t], state_ones, timespans=ones[t]).tobytes() == y[t].tobytes()
        assert layer.step_many(x[t], states).tobytes() == y[t].tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["TB", "BT", "T"])
def test_gradients_of_a_cfc_layer_by_central_differences(mode, layout):
    options = {"bidirectional": layout != "T", "batch_first": layout == "BT"}
    layer = elman.CfC(I, H, 2, mode=mode, dtype=np.float64, seed=0, **options)
    dense_weights(layer)
    rng = np.random.default_rng(1)
    sizes = {"TB": (T, B), "BT": (B, T), "T": (T,)}[layout]
    x, dt = rng.standard_normal((*sizes, I)), rng.uniform(0.2, 2, sizes)
    lengths = 4 if layout == "T" else [5, 2, 0]
    y, h, tape = layer.forward(x, timespans=dt, lengths=lengths)
    dy, dh = rng.standard_normal(y.shape), rng.standard_normal(h.shape)
    dx, _, grads, ddt = layer.backward(tape, dy, dh)
    arrays = {"x": x, "timespans": dt} | {name: None for name in grads}
    found = {"x": dx, "timespans": ddt, **grads}

    def loss():
        y, h = layer(x, timespans=dt, lengths=lengths)
        return (y * dy).sum() + (h * dh).sum()

    for name, a in arrays.items():
        for at in rng.permutation(found[name].size)[:6]:
            values = []
            for move in (1e-6, -2e-6):
                if a is None:
                    with layer.edit() as params:
                        params[name].flat[at] += move
                else:
                    a.flat[at] += move
                values.append(loss())
            if a is None:
                with layer.edit() as params:
                    params[name].flat[at] += 1e-6
            else:
                a.flat[at] += 1e-6
            wanted = (values[0] - values[1]) / 2e-6
            assert abs(found[name].flat[at] - wanted) < 2e-7 * (1 + abs(wanted)), name
    assert abs(ddt).max() > 1e-3


def test_truncation_cuts_the_gradient_of_timespans_too():
    layer = elman.CfC(I, H, seed=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, dt = rng.standard_normal((T, B, I)), rng.uniform(0.5, 2, (T, B))
    dy = np.zeros((T, B, H))
    dy[3:] = rng.standard_normal((2, B, H))
    _, _, tape = layer.forward(x, timespans=dt, tbptt=2, burn_in=1)
    ddt = layer.backward(tape, dy)[3]
    assert (ddt[:3] == 0).all() and (ddt[3:] != 0).all()


def test_a_tau_of_zero_has_gradient_zero(implementation):
    """As torch.abs."""
    p = problem(FURTHER["cfc-pure"], T, B, I, H)
    p.weights[0][4][:2] = 0, -0.0
    _, _, tape = p.forward(implementation)
    gradient = p.backward(implementation, tape)["weight_tau[0]"]
    assert (gradient[:2] == 0).all() and (gradient[2:] != 0).all()


def test_how_a_pure_cfc_starts():
    params = elman.CfC(I, H, 2, mode="pure", seed=0).params
    assert (params["weight_tau_l1"] == 0).all() and (params["weight_a_l1"] == 1).all()
    assert params["weight_ih_l0"].shape == (H, I) and params["weight_ih_l0"].any()


# -------------------------------------------------------------------------------------------------------------- layers

LAYERS = {
    "min-gru": (elman.MinGRU, {}),
    "min-lstm": (elman.MinLSTM, {}),
    "qrnn": (elman.QRNN, {}),
    "mgu": (elman.MGU, {}),
    "mgu-no-reset": (elman.MGU, {"reset_gate": False}),
    "cfc": (elman.CfC, {}),
    "cfc-no-gate": (elman.CfC, {"mode": "no_gate"}),
    "cfc-pure": (elman.CfC, {"mode": "pure"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_and_bidirectional(name):
    """Both backends give the same, and so do two layers, one on the other."""
    kind, options = LAYERS[name]
    rng = np.random.default_rng(0)
    x, reset = rng.standard_normal((T, B, I)), rng.random((T, B)) < 0.2
    lengths = [5, 0, 3]
    layer = kind(I, H, 2, bidirectional=True, seed=0, dtype=np.float64, **options)
    dense_weights(layer)
    other = kind(I, H, 2, bidirectional=True, dtype=np.float64, backend="reference", **options)
    take_weights(other, layer.params)
    dy, d_last = rng.standard_normal((T, B, 2 * H)), rng.standard_normal((4, B, H))
    results = []
    for each in (layer, other):
        y, state, tape = each.forward(x, lengths=lengths, reset=reset)
        y_call, state_call = each(x, lengths=lengths, reset=reset)
        assert y_call.tobytes() == y.tobytes() and state_call.tobytes() == state.tobytes()
        dx, dstate, grads = each.backward(tape, dy, d_last)
        results.append({"y": y, "state": state, "dx": dx, "dstate": dstate, **grads})
    assert_same(results[0], results[1], 1e-12)
    below = kind(I, H, bidirectional=True, dtype=np.float64, **options)
    above = kind(2 * H, H, bidirectional=True, dtype=np.float64, **options)
    for k, one in enumerate((below, above)):
        take_weights(one, {n.replace(f"_l{k}", "_l0"): a for n, a in layer.params.items() if f"_l{k}" in n})
    middle, first = below(x, lengths=lengths, reset=reset)
    y, second = above(middle, lengths=lengths, reset=reset)
    assert y.tobytes() == results[0]["y"].tobytes()
    assert np.array_equal(np.concatenate([first, second]), results[0]["state"])


@pytest.mark.parametrize("name", [*LAYERS, "sru"])
def test_a_state_goes_from_call_to_call_and_step_to_step(name):
    kind, options = (LAYERS | {"sru": (elman.SRU, {})})[name]
    layer = kind(I, H, 2, seed=0, **options)
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    y, last = layer(x)
    first, state = layer(x[:2])
    kept = state.copy()
    second, after = layer(x[2:], state)
    assert np.concatenate([first, second]).tobytes() == y.tobytes() and after.tobytes() == last.tobytes()
    assert state.tobytes() == kept.tobytes()
    for t in range(2, T):
        assert layer.step(x[t], state).tobytes() == y[t].tobytes()
    assert state.tobytes() == last.tobytes()


def test_what_has_no_meaning_is_refused():
    for kind in (elman.MinGRU, elman.MinLSTM, elman.QRNN):
        with pytest.raises(ValueError, match="recurrent_dropout: .* no recurrent product"):
            kind(I, H, recurrent_dropout=0.5)
        with pytest.raises(ValueError, match="weight_dropout: .* no recurrent product"):
            kind(I, H, weight_dropout=0.5)
    for kind in (elman.MinGRU, elman.MinLSTM, elman.MGU, elman.CfC):
        with pytest.raises(ValueError, match="zoneout: c: .* no such state"):
            kind(I, H, zoneout=(0.0, 0.5))
    with pytest.raises(ValueError, match="zoneout: h: .* no such state"):
        elman.QRNN(I, H, zoneout=(0.5, 0.0))
    with pytest.raises(ValueError, match="mode: expected .*'pure'"):
        elman.CfC(I, H, mode="gated")
    with pytest.raises(ValueError, match="timespans: expected shape"):
        elman.CfC(I, H, dtype=np.float64)(np.zeros((T, B, I)), timespans=np.ones((T, 1)))
    augru = elman.AUGRU(I, H)
    with pytest.raises(TypeError, match="^step_many: AUGRU needs attention, which only `step` takes"):
        augru.step_many(np.zeros((1, I), np.float32), [augru.zero_state()])
    state = augru.zero_state(2)
    with pytest.raises(TypeError, match=r"^attention: expected an array of shape \(2,\), got None"):
        augru.step(np.zeros((2, I), np.float32), state, attention=None)
    for wrong, error, message in (
        (0.5, ValueError, rf"expected shape \(B, {I}\) or \({I},\), got \(\)"),
        (None, TypeError, "expected dtype float32, got object"),
        ([[1.0], [1.0, 2.0]], ValueError, "expected an array, got list"),
        (np.zeros((T, 2, I), np.float32), ValueError, rf"expected shape \(B, {I}\) or \({I},\)"),
        (np.zeros((2, I + 1), np.float32), ValueError, rf"expected shape \(B, {I}\)"),
    ):
        with pytest.raises(error, match=f"^x_t: {message}"):
            augru.step(wrong, state, attention=np.ones(2, np.float32))
    weights = [(np.ones((3 * H, I)), np.ones((3 * H, H)), None, None)]
    x, state = np.ones((2, I)), np.zeros((1, 2, H))
    for module in (functional, reference):
        for wrong, error, message in (
            (None, TypeError, r"attention: expected an array of shape \(2,\), got None"),
            (np.ones(3), ValueError, r"attention: expected shape \(2,\), got \(3,\)"),
        ):
            with pytest.raises(error, match=f"^{message}$"):
                module.cell_step("augru_reset_after", x, state, [weights], row=wrong)
        with pytest.raises(
            ValueError, match="^row: expected None, since gru_reset_after takes no number .* got ndarray$"
        ):
            module.cell_forward("gru_reset_after", x[None], state, weights, row=np.ones((1, 2)))
        with pytest.raises(TypeError, match="^tape: expected the tape of cell_forward, got NoneType"):
            module.cell_backward(None)
        y = module.cell_step("augru_reset_after", x, state.copy(), [weights], row=[0.25, 0.75])
        wanted = module.cell_step("augru_reset_after", x, state.copy(), [weights], row=np.array([0.25, 0.75]))
        assert y.tobytes() == wanted.tobytes()
    for family in ("min_gru", "min_lstm", "qrnn", "mgu", "mgu_no_reset", "cfc_default", "cfc_no_gate", "cfc_pure"):
        for module in (functional, reference):
            for option in ({"clip": 1.0}, {"activations": ("relu",)}, {"coupled": "f=1-i"}):
                with pytest.raises(ValueError, match=f"{family} has no such option"):
                    module.cell_pack(family, [], **option)
