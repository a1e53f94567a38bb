"""What is special in sLSTM, AUGRU, ESN and in cells of one's own."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from helpers import FURTHER, assert_same, problem

import elman
from elman import functional, reference
from elman.esn import spectral_radius_of

# -------------------------------------------------------------------------------------------------------------- sLSTM


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def slstm_in_loops(x, weights, state=None):
    """The equations of xlstm/blocks/slstm/src/vanilla/slstm.py, number by number, on one sequence x (T, I): there the
    batch is one sequence, so that its test of the whole batch is one of this row."""
    W, R, b_x, b_h = weights
    H = R.shape[1]
    y, c, n, m = ([0.0] * H for _ in range(4)) if state is None else map(list, state)
    outputs = []
    for x_t in x:
        raw = [W[k] @ x_t + R[k] @ np.array(y) + b_x[k] + b_h[k] for k in range(4 * H)]
        starts = all(v == 0 for v in n)
        for u in range(H):
            i_raw, f_raw, z_raw, o_raw = (raw[k * H + u] for k in range(4))
            logfplusm = m[u] + math.log(sigmoid(f_raw))
            m_new = i_raw if starts else max(i_raw, logfplusm)
            igate = min(math.exp(i_raw - m_new), 1.0)
            fgate = min(math.exp(logfplusm - m_new), 1.0)
            c[u] = fgate * c[u] + igate * math.tanh(z_raw)
            n[u] = fgate * n[u] + igate
            m[u] = m_new
            y[u] = sigmoid(o_raw) * c[u] / n[u]
        outputs.append(list(y))
    return np.array(outputs), [np.array(part) for part in (y, c, n, m)]


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_slstm_is_that_of_its_source(backend):
    layer = elman.SLSTM(3, 5, dtype=np.float64, seed=0, backend=backend)
    with layer.edit() as p:
        for a in p.values():
            a *= 3  # so that both gates win
    rng = np.random.default_rng(1)
    x = 2 * rng.standard_normal((40, 2, 3))
    y, state, _, gates = layer.forward(x, return_all=("gates",))
    for b in range(2):
        expected, final = slstm_in_loops(x[:, b], list(layer.params.values()))
        np.testing.assert_allclose(y[:, b], expected, rtol=1e-11, atol=1e-13)
        for part, wanted in zip(state, final, strict=True):
            np.testing.assert_allclose(part[0, b], wanted, rtol=1e-11, atol=1e-13)
    i, f = gates[1:, :, 0, 0], gates[1:, :, 0, 1]
    assert (np.maximum(i, f) == 1).all() and (i < 1).any() and (f < 1).any()


def test_slstm_gradients_are_those_of_its_source_under_torch():
    """Autograd through slstm_forward_pointwise, where the whole batch begins at once; all four final states count."""
    torch = pytest.importorskip("torch")
    layer = elman.SLSTM(3, 5, dtype=np.float64, seed=0)
    with layer.edit() as p:
        for a in p.values():
            a *= 3
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((12, 4, 3)), rng.standard_normal((12, 4, 5))
    dstate = [rng.standard_normal((1, 4, 5)) for _ in range(4)]
    W, R, b_x, b_h = weights = [torch.tensor(a, requires_grad=True) for a in layer.params.values()]
    xs = torch.tensor(x, requires_grad=True)
    h = c = n = m = torch.zeros(4, 5, dtype=torch.float64)
    loss = 0
    for x_t, dy_t in zip(xs, torch.tensor(dy), strict=True):
        iraw, fraw, zraw, oraw = (x_t @ W.T + h @ R.T + b_x + b_h).view(4, 4, 5).unbind(1)
        logfplusm = m + torch.nn.functional.logsigmoid(fraw)
        m = iraw if torch.all(n == 0.0) else torch.max(iraw, logfplusm)
        igate = torch.minimum(torch.exp(iraw - m), torch.ones_like(iraw))
        fgate = torch.minimum(torch.exp(logfplusm - m), torch.ones_like(iraw))
        c = fgate * c + igate * torch.tanh(zraw)
        n = fgate * n + igate
        h = torch.sigmoid(oraw) * c / n
        loss = loss + (h * dy_t).sum()
    loss = loss + sum((part * torch.tensor(d[0])).sum() for part, d in zip((h, c, n, m), dstate, strict=True))
    loss.backward()
    _, _, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, dy, tuple(dstate))
    np.testing.assert_allclose(dx, xs.grad.numpy(), rtol=1e-10, atol=1e-12)
    for found, weight in zip(grads.values(), weights, strict=True):
        np.testing.assert_allclose(found, weight.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_row_of_an_slstm_begins_for_itself(backend):
    """Beside a sequence that is under way, after a reset, and with a c that is not 0 although n is."""
    layer = elman.SLSTM(2, 4, dtype=np.float64, seed=3, backend=backend)
    weights = list(layer.params.values())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3, 2))
    parts = [rng.standard_normal((1, 3, 4)) for _ in range(4)]
    parts[2] = np.abs(parts[2]) + 0.5
    parts[2][0, 1] = 0  # begins; c of it stays and is multiplied by f
    parts[3][0, 1] = 5  # and its m would win, if it did not begin
    reset = np.zeros((6, 3), bool)
    reset[3, 2] = True
    y, _ = layer(x, tuple(parts), reset=reset)
    for b in range(2):
        expected, _ = slstm_in_loops(x[:, b], weights, [part[0, b] for part in parts])
        np.testing.assert_allclose(y[:, b], expected, rtol=1e-11)
    expected, _ = slstm_in_loops(x[3:, 2], weights)
    np.testing.assert_allclose(y[3:, 2], expected, rtol=1e-11)


def test_slstm_kernels_against_reference_where_rows_begin():
    for dtype, tolerance in ((np.float32, 3e-5), (np.float64, 1e-12)):
        p = problem(FURTHER["slstm"], 7, 5, 3, 19, 2, dtype, lengths=[7, 0, 3, 7, 1])
        p.state[2][:, :3] = 0
        p.state[2][:, 3, :17] = 0  # not the whole row
        assert_same(p.results(functional), p.results(reference), tolerance)


def test_slstm_survives_what_would_overflow_without_m():
    layer = elman.SLSTM(1, 3, seed=0)
    with layer.edit() as p:
        p["bias_ih_l0"][:3] = 500  # exp(500) is infinite
        p["bias_ih_l0"][3:6] = 50
    x = np.ones((200, 2, 1), np.float32)
    y, state, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, np.ones_like(y))
    for a in (y, *state, dx, *grads.values()):
        assert np.isfinite(a).all()
    assert np.abs(y).max() > 0.01 and (np.abs(y) < 1).all()


def test_the_gradient_of_an_slstm_does_not_depend_on_its_m():
    """c and n are in units of e^m: as long as only h is looked at, m has no gradient of its own."""
    layer = elman.SLSTM(2, 4, dtype=np.float64, seed=0)
    x = np.random.default_rng(0).standard_normal((5, 3, 2))
    h, c, n, m = layer(x)[1]
    y, _, tape = layer.forward(x, (h, c, n, m))
    moved, _, tape_moved = layer.forward(x, (h, c * np.e**2, n * np.e**2, m - 2))
    np.testing.assert_allclose(moved, y, rtol=1e-12)
    dx, dstate, _ = layer.backward(tape, np.ones_like(y))
    dx_moved, dstate_moved, _ = layer.backward(tape_moved, np.ones_like(y))
    np.testing.assert_allclose(dx_moved, dx, rtol=1e-10)
    np.testing.assert_allclose(dstate_moved.c * np.e**2, dstate.c, rtol=1e-10)
    np.testing.assert_allclose(dstate.m, dstate.c * c + dstate.n * n, rtol=1e-9, atol=1e-15)


def test_slstm_state():
    layer = elman.SLSTM(3, 4, 2, bidirectional=True, batch_first=True, seed=0)
    x = np.random.default_rng(0).standard_normal((5, 6, 3), np.float32)
    y, state, c, gates = layer(x, return_all=("c", "gates"))
    assert type(state) is elman.SLSTMState and state._fields == ("h", "c", "n", "m")
    assert y.shape == (5, 6, 8) and c.shape == (5, 6, 8) and gates.shape == (5, 6, 2, 4, 4)
    assert {part.shape for part in state} == {(4, 5, 4)}
    assert np.array_equal(c[:, -1, :4], state.c[2])
    other = state.copy()
    other.n[:] = 0
    assert state.n.all() and type(other) is elman.SLSTMState
    assert repr(state).startswith("SLSTMState(h=<float32 (4, 5, 4)>, c=")
    stream = elman.SLSTM(3, 4, 2, seed=0)
    zero = stream.zero_state()
    assert type(zero) is elman.SLSTMState and zero.m.shape == (2, 4)
    whole, _ = stream(x[0])
    assert np.array_equal(np.stack([stream.step(x_t, zero) for x_t in x[0]]), whole)
    many = [stream.zero_state() for _ in range(5)]
    assert np.array_equal(stream.step_many(x[:, 0], many), stream(x[:, :1].swapaxes(0, 1))[0][0])


def test_what_has_no_meaning_in_an_slstm_is_refused():
    with pytest.raises(ValueError, match="zoneout: c: expected 0, since of SLSTM c, n and m have meaning"):
        elman.SLSTM(3, 4, zoneout=(0.0, 0.5))
    with pytest.raises(ValueError, match="train_state: expected False, since of SLSTM c, n and m"):
        elman.SLSTM(3, 4, train_state=True)
    layer = elman.SLSTM(3, 4, zoneout=(0.5, 0.0), seed=0)  # of h it has
    x = np.ones((3, 1, 3), np.float32)
    assert not np.array_equal(layer(x)[0], elman.SLSTM(3, 4, seed=0)(x)[0])
    p = problem(FURTHER["slstm"], 2, 2, 3, 4)
    for module in (functional, reference):
        with pytest.raises(ValueError, match="zoneout: c: expected 0"):
            module.cell_forward("slstm", p.x, None, p.weights, zoneout=(0.0, 0.5))


def test_slstm_learns():
    """To carry the first input over 20 steps."""
    model = elman.Sequential([elman.SLSTM(1, 16, seed=0), elman.Pooling("last"), elman.Dense(16, 1, seed=1)])
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (64, 20, 1)).astype(np.float32)
    history = model.fit(x, x[:, 0], loss="mean_squared_error", lr=1e-2, epochs=60, seed=0, verbose=0)
    assert history.history["loss"][-1] < 0.05 < 0.5 < history.history["loss"][0]


# -------------------------------------------------------------------------------------------------------------- AUGRU


@pytest.mark.parametrize("reset_after", [True, False])
def test_augru_is_a_gru_without_attention_and_steps_whole_with_all(reset_after):
    augru = elman.AUGRU(3, 4, 2, reset_after=reset_after, seed=0, dtype=np.float64)
    gru = elman.GRU(3, 4, 2, reset_after=reset_after, dtype=np.float64)
    gru.load_params(augru.params)
    x = np.random.default_rng(0).standard_normal((6, 5, 3))
    y, _ = augru(x, attention=np.zeros((6, 5)))
    np.testing.assert_allclose(y, gru(x)[0], rtol=1e-13)
    one = elman.AUGRU(3, 4, reset_after=reset_after, seed=0, dtype=np.float64)
    h0 = np.random.default_rng(1).standard_normal((1, 5, 4))
    W, U, b, b_h = one.params.values()
    h = h0[0]
    for t in range(6):
        ax, r = x[t] @ W.T + b, None
        r = 1 / (1 + np.exp(-(ax[:, :4] + h @ U[:4].T + b_h[:4])))
        if reset_after:
            h = np.tanh(ax[:, 8:] + r * (h @ U[8:].T + b_h[8:]))  # nothing of the old h stays
        else:
            h = np.tanh(ax[:, 8:] + (r * h) @ U[8:].T + b_h[8:])
    np.testing.assert_allclose(one(x, h0, attention=np.ones((6, 5)))[1][0], h, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------------- ESN


def test_esn_is_the_leaky_equation():
    esn = elman.ESN(2, 30, leak=0.3, seed=0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((20, 2))
    p, h, expected = esn.params, np.zeros(30), []
    for x_t in x:
        h = (1 - 0.3) * h + 0.3 * np.tanh(p["weight_hh_l0"] @ h + p["weight_ih_l0"] @ x_t + p["bias_ih_l0"])
        expected.append(h)
    np.testing.assert_allclose(esn(x)[0], expected, rtol=1e-12)
    assert not p["bias_hh_l0"].any()


@pytest.mark.parametrize("H", [1, 4, 50, 130])
def test_esn_weights(H):
    esn = elman.ESN(
        3, H, 2, spectral_radius=1.25, density=0.2, input_scaling=0.5, bidirectional=True, seed=0, dtype=np.float64
    )
    for name, a in esn.params.items():
        if name.startswith("weight_hh"):
            assert abs(np.abs(np.linalg.eigvals(a)).max() - 1.25) < 1e-10
            assert (a != 0).sum() == max(1, round(0.2 * H * H))
        elif not name.startswith("bias_hh"):
            assert np.abs(a).max() <= 0.5 and (H < 50 or np.abs(a).max() > 0.45)
    again = elman.ESN(
        3, H, 2, spectral_radius=1.25, density=0.2, input_scaling=0.5, bidirectional=True, seed=0, dtype=np.float64
    )
    assert all(np.array_equal(again.params[name], a) for name, a in esn.params.items())


def test_the_spectral_radius_of_a_large_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    for W in (rng.standard_normal((200, 200)), np.array([[0.0, -3.0], [2.0, 0.0]]), np.array([[2.0, 1.0], [0.0, 2.0]])):
        exact = np.abs(np.linalg.eigvals(W)).max()  # complex pairs, and one without a basis of eigenvectors
        monkeypatch.setattr("elman.esn._EXACT", 0)
        assert abs(spectral_radius_of(W) / exact - 1) < 2e-5


def test_esn_forgets_how_it_began():
    esn = elman.ESN(1, 100, spectral_radius=0.8, seed=0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((200, 2, 1))
    x[:, 1] = x[:, 0]
    h0 = np.random.default_rng(1).standard_normal((1, 2, 100))
    y, _ = esn(x, h0)
    assert np.abs(y[0, 0] - y[0, 1]).max() > 0.1 and np.abs(y[-1, 0] - y[-1, 1]).max() < 1e-9


def test_esn_has_the_ways_of_a_layer(tmp_path):
    esn = elman.ESN(2, 20, 2, batch_first=True, leak=0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 9, 2), np.float32)
    reset = np.zeros((3, 9), bool)
    reset[0, 4] = True
    y, h = esn(x, lengths=[9, 4, 0], reset=reset)
    assert np.array_equal(y[0, 4:], esn(x[0, 4:])[0]) and not y[1, 4:].any() and not h[:, 2].any()
    state = esn.zero_state(3)
    steps = [esn.step(x_t, state) for x_t in x.swapaxes(0, 1)]
    assert np.array_equal(np.stack(steps, axis=1), esn(x)[0])
    elman.save(tmp_path / "esn.safetensors", esn)
    again = elman.load(tmp_path / "esn.safetensors")
    assert np.array_equal(again(x)[0], esn(x)[0]) and again.leak == 0.5
    assert np.array_equal(pickle.loads(pickle.dumps(esn))(x)[0], esn(x)[0])
    assert repr(esn) == "ESN(2, 20, num_layers=2, leak=0.5, batch_first=True)"


def test_esn_is_not_trained():
    esn = elman.ESN(2, 20, seed=0)
    for call in (lambda: esn.forward(np.zeros((3, 2))), lambda: esn.backward(None)):
        with pytest.raises(TypeError, match="fit_readout"):
            call()
    model = elman.Sequential([esn, elman.Dense(20, 1)])
    with pytest.raises(TypeError, match="fit_readout"):
        model.fit(np.zeros((4, 3, 2), np.float32), np.zeros((4, 3, 1), np.float32), loss="mean_squared_error")


def test_arguments_of_esn():
    for wrong, message in (
        ({"spectral_radius": 0}, "spectral_radius"),
        ({"density": 0.0}, "density: expected above 0"),
        ({"density": 1.5}, "density"),
        ({"leak": 2.0}, "leak"),
        ({"input_scaling": -1.0}, "input_scaling"),
        ({"nonlinearity": "step"}, "nonlinearity"),
    ):
        with pytest.raises(ValueError, match=message):
            elman.ESN(1, 10, **wrong)
    with pytest.raises(ValueError, match="density: expected more than 1e-06.*none in a cycle"):
        elman.ESN(1, 700, density=1e-6, seed=0)
    esn, x = elman.ESN(1, 10, seed=0), np.zeros((5, 1), np.float32)
    for wrong, message in (
        ({"ridge": 0}, "ridge"),
        ({"warmup": -1}, "warmup"),
        ({"warmup": 5}, "warmup: expected steps"),
        ({"lengths": 0}, "warmup: expected steps"),
        ({"y": np.zeros((4, 1), np.float32)}, "y: expected shape"),
        ({"y": np.full((5, 1), np.nan, np.float32)}, "y: expected finite"),
        ({"x": np.full((5, 1), np.nan, np.float32)}, "x: expected finite"),
    ):
        with pytest.raises(ValueError, match=message):
            esn.fit_readout(**({"x": x, "y": x} | wrong))
    pair = elman.ESN(1, 10, bidirectional=True, merge=None, seed=0)
    with pytest.raises(ValueError, match="merge is None"):
        pair.fit_readout(x, x)


def mackey_glass(steps, tau=17):
    """The series of Mackey and Glass (1977), dx/dt = 0.2 x(t - tau) / (1 + x(t - tau)^10) - 0.1 x(t), by Euler's
    method with ten steps for each unit of time."""
    x = [1.2] * (tau * 10)
    for _ in range(steps * 10):
        x.append(x[-1] + 0.1 * (0.2 * x[-tau * 10] / (1 + x[-tau * 10] ** 10) - 0.1 * x[-1]))
    return np.array(x[-steps * 10 :: 10])


def narma_10(u):
    """y_t of the nonlinear moving average of order 10 (Atiya and Parlos 2000), driven by u in 0 ... 0.5."""
    y = np.zeros(len(u))
    for t in range(9, len(u) - 1):
        y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_esn_predicts_mackey_glass(dtype):
    """Ten steps ahead, on steps that it has not seen. Naive: it stays as it is."""
    series = mackey_glass(3000)
    series = ((series - series.mean()) / series.std()).astype(dtype)[:, None]
    x, y = series[:-10], series[10:]
    esn = elman.ESN(1, 300, leak=0.5, density=0.05, seed=0, dtype=dtype)
    readout = esn.fit_readout(x[:2000], y[:2000], ridge=1e-4, warmup=100)
    model = elman.Sequential([esn, readout])
    found = model(x)[2000:]

    def nrmse(prediction):
        return np.sqrt(np.mean((prediction - y[2000:]) ** 2)) / y[2000:].std()

    assert readout.dtype == dtype and nrmse(x[2000:]) > 0.9 and nrmse(found) < 0.03
    state = model.zero_state(1)
    streamed = [model.step(x_t[None], state)[0] for x_t in x[:2010]]
    np.testing.assert_allclose(streamed[2000:], found[:10], rtol=1e-3, atol=1e-4)


def test_esn_follows_narma_10():
    """Naive: the mean, whose normalised error is 1; the present y, which no input tells, has about as much."""
    rng = np.random.default_rng(0)
    u = rng.uniform(0, 0.5, (4000, 1))
    y = narma_10(u[:, 0])[:, None]
    esn = elman.ESN(1, 300, spectral_radius=0.95, input_scaling=0.3, seed=0, dtype=np.float64)
    readout = esn.fit_readout(u[:3000], y[:3000], ridge=1e-7, warmup=100)
    found = readout(esn(u)[0])[3000:]
    error = np.sqrt(np.mean((found - y[3000:]) ** 2)) / y[3000:].std()
    naive = np.sqrt(np.mean((y[2999:-1] - y[3000:]) ** 2)) / y[3000:].std()
    assert naive > 0.6 and error < 0.35


def test_the_readout_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    esn = elman.ESN(2, 15, seed=0, dtype=np.float64, bidirectional=True, batch_first=True)
    x, y, lengths = rng.standard_normal((4, 12, 2)), rng.standard_normal((4, 12, 3)), np.array([12, 7, 2, 0])
    past = np.arange(12) >= lengths[:, None]
    x[past] = y[past] = np.nan
    states, _ = esn(x, lengths=lengths)
    counts = ~past & (np.arange(12) >= 3)
    ridge = linear_model.Ridge(alpha=0.25).fit(states[counts], y[counts])
    readout = esn.fit_readout(x, y, ridge=0.25, warmup=3, lengths=lengths)
    np.testing.assert_allclose(readout.params["weight"], ridge.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(readout.params["bias"], ridge.intercept_, rtol=1e-9, atol=1e-12)
    no_batch = esn.fit_readout(x[1], y[1], lengths=7)
    one_of_one = esn.fit_readout(x[1:2], y[1:2], lengths=[7])
    np.testing.assert_allclose(no_batch.params["weight"], one_of_one.params["weight"], rtol=1e-9)


# ------------------------------------------------------------------------------------------------ cells of one's own


class OwnLSTM:
    """The LSTM once more, so that all that elman does with it can be compared."""

    state = ("h", "c")

    @staticmethod
    def weights(I, H):
        return {"W": (4 * H, I), "U": (4 * H, H), "b": (4 * H,)}

    @staticmethod
    def step(x_t, state, weights):
        (h, c), (W, U, b) = state, weights
        i, f, g, o = np.split(x_t @ W.T + h @ U.T + b, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        g = np.tanh(g)
        c_t = f * c + i * g
        return (o * np.tanh(c_t), c_t), (i, f, g, o, c_t)

    @staticmethod
    def step_backward(dstate_t, x_t, state, weights, saved):
        (dh_t, dc_t), (h, c), (W, U, _), (i, f, g, o, c_t) = dstate_t, state, weights, saved
        dc_t = dc_t + dh_t * o * (1 - np.tanh(c_t) ** 2)
        da = [dc_t * g * i * (1 - i), dc_t * c * f * (1 - f), dc_t * i * (1 - g**2), dh_t * np.tanh(c_t) * o * (1 - o)]
        da = np.concatenate(da, axis=1)
        return da @ W, (da @ U, dc_t * f), (da.T @ x_t, da.T @ h, da.sum(axis=0))


def both(**arguments):
    """A layer of OwnLSTM and the LSTM, with the same weights, and the names of theirs."""
    own = elman.Custom(3, 5, 2, cell=OwnLSTM, dtype=np.float64, seed=0, **arguments)
    layer = elman.LSTM(3, 5, 2, dtype=np.float64, seed=0, backend="reference", **arguments)
    names = {}
    with layer.edit() as p:
        for name in p:
            kind, end = name.split("_l")
            names[name] = {"weight_ih": "W", "weight_hh": "U", "bias_ih": "b"}.get(kind, "") + "_l" + end
            if names[name] in own.params:
                p[name] = own.params[names[name]]
            elif kind == "bias_hh":
                p[name] = np.zeros_like(p[name])
            else:
                p[name] = own.params[name]  # an initial state
                names[name] = name
    return own, layer, names


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bidirectional": True, "merge": "mul", "batch_first": True},
        {"dropout": 0.5, "input_dropout": 0.25, "zoneout": (0.25, 0.5)},
        {"grad_clip": 0.05, "train_state": True},
    ],
    ids=["plain", "bidirectional", "noise", "clipped"],
)
def test_a_cell_of_ones_own_in_all_that_a_layer_does(arguments):
    own, layer, names = both(**arguments)
    rng = np.random.default_rng(0)
    shape = (4, 6) if "batch_first" in arguments else (6, 4)
    x, reset, dy = rng.standard_normal((*shape, 3)), rng.random(shape) < 0.2, rng.standard_normal((*shape, 5))
    keywords = {"lengths": [6, 2, 0, 5], "reset": reset}
    assert_close(own(x, **keywords)[0], layer(x, **keywords)[0])
    more = {"rng": 7} if arguments.get("bidirectional") else {"rng": 7, "tbptt": 3, "burn_in": 1}
    y, state, tape = own.forward(x, **keywords, **more)
    expected, expected_state, expected_tape = layer.forward(x, **keywords, **more)
    assert_close(y, expected)
    assert type(state) is tuple and len(state) == 2
    dx, dstate, grads = own.backward(tape, dy)
    dx_expected, dstate_expected, grads_expected = layer.backward(expected_tape, dy)
    for a, b in zip((*state, dx, *dstate), (*expected_state, dx_expected, *dstate_expected), strict=True):
        assert_close(a, b)
    compared = [assert_close(grads[names[name]], g) for name, g in grads_expected.items() if names[name] in grads]
    assert len(compared) == len(own.params)


def assert_close(a, b):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_cell_of_ones_own_streams_trains_and_is_copied():
    own, layer, _ = both()
    x = np.random.default_rng(0).standard_normal((6, 4, 3))
    state, y = own.zero_state(4), own(x)[0]
    assert all(np.array_equal(own.step(x_t, state), y_t) for x_t, y_t in zip(x, y, strict=True))
    states = [own.zero_state() for _ in range(4)]
    assert_close(own.step_many(x[0], states), y[0])
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own)), own.astype(np.float32).astype(np.float64)):
        np.testing.assert_allclose(other(x)[0], y, rtol=1e-5, atol=1e-7)
    model = elman.Sequential(
        [elman.Custom(1, 12, cell=OwnLSTM, seed=0), elman.Pooling("last"), elman.Dense(12, 1, seed=1)]
    )
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (32, 5, 1)).astype(np.float32)
    history = model.fit(signs, signs[:, 0], loss="mean_squared_error", lr=2e-2, epochs=40, seed=0, verbose=0)
    assert history.history["loss"][-1] < 0.1 < 0.5 < history.history["loss"][0]
    assert repr(own).startswith("Custom(3, 5, num_layers=2, cell=<class")
    with pytest.raises(TypeError, match="Custom"):
        elman.save("nowhere", own)


def changed(**functions):
    return type("Changed", (OwnLSTM,), {name: staticmethod(f) for name, f in functions.items()})


def state_of(*names):
    return type("Changed", (OwnLSTM,), {"state": names})


def weights_of(**shapes):
    return changed(weights=lambda I, H: shapes)


def test_what_is_wrong_with_a_cell_of_ones_own_is_said():
    def call(cell, **keywords):
        layer = elman.Custom(3, 4, cell=cell, seed=0, **keywords)
        _, _, tape = layer.forward(np.zeros((2, 2, 3), np.float32))
        layer.backward(tape)

    def backward_with(change):
        return changed(step_backward=lambda *a: change(*OwnLSTM.step_backward(*a)))

    for cell, message in (
        (object(), "cell: expected a function step"),
        (type("C", (OwnLSTM,), {"state": "h"}), "cell: state: expected a tuple"),
        (state_of("c"), r"cell: state: expected 'h' first, which is what comes out, got \('c',\)"),
        (state_of("c", "h"), "cell: state: expected 'h' first"),
        (state_of("n", "m", "c"), "cell: state: expected 'h' first"),
        (state_of("a", "h"), "cell: state: expected 'h' first"),
        (state_of("h", "n", "c"), r"cell: state: expected 'c' as the second part, .*, got \('h', 'n', 'c'\)"),
        (state_of("h", "h"), "cell: state: expected each name once"),
        (state_of(), "cell: state: expected a tuple"),
        (changed(weights=lambda I, H: [(H, I)]), "cell: weights: expected a dict"),
        (weights_of(), "cell: weights: expected at least one"),
        (weights_of(h0=(4,)), "cell: weights: expected another name than that of an initial state, got 'h0'"),
        (weights_of(c0=(4,)), "cell: weights: expected another name .* got 'c0'"),
        (weights_of(W="abc"), r"cell: weights\(3, 4\): W: expected a tuple of integers, got 'abc'"),
        (weights_of(W=4), r"cell: weights\(3, 4\): W: expected a tuple of integers, got 4"),
        (weights_of(W=(4, 2.0)), r"cell: weights\(3, 4\): W: size: expected an integer, got 2.0"),
        (weights_of(W=(-1,)), r"cell: weights\(3, 4\): W: size: expected at least 1, got -1"),
        (weights_of(W=(0, 4)), r"cell: weights\(3, 4\): W: size: expected at least 1, got 0"),
        (changed(weights=lambda I, H: {f"W{I}": (H,)}), r"cell: weights\(3, 4\): expected the names \['W1'\]"),
        (changed(step=lambda x, s, w: s), "step: state: expected"),
        (changed(step=lambda x, s, w: (x, x, x)), r"step: expected \(state, saved\)"),
        (
            changed(step=lambda x, s, w: ((s[0], x), None)),
            r"step: state: c: expected float32 \(2, 4\), got .* \(2, 3\)",
        ),
        (changed(step=lambda x, s, w: ((s[0], s[1].astype(float)), None)), "step: state: c: expected float32"),
        (backward_with(lambda dx, ds, dw: (dx, ds)), r"step_backward: expected \(dx_t, dstate, dweights\)"),
        (backward_with(lambda dx, ds, dw: (dx.T, ds, dw)), "step_backward: dx_t: expected"),
        (backward_with(lambda dx, ds, dw: (dx, ds[:1], dw)), r"step_backward: dstate: expected \(h, c\)"),
        (backward_with(lambda dx, ds, dw: (dx, ds, (dw[0], dw[0], dw[2]))), "step_backward: dweights: U: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            call(cell)
    for name, value in (
        ("bias", False), ("recurrent_dropout", 0.5), ("weight_dropout", 0.5), ("backend", "compiled"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            call(OwnLSTM, **{name: value})
    call(OwnLSTM)


CHECKED = {
    "rnn": lambda: (elman.RNN(3, 4, 2, leak=0.5, seed=0), {}),
    "lstm": lambda: (elman.LSTM(3, 4, peephole=True, proj_size=2, seed=0), {"lengths": [5, 2, 0]}),
    "slstm": lambda: (elman.SLSTM(3, 4, 2, bidirectional=True, merge="mul", dropout=0.5, seed=0), {}),
    "augru": lambda: (elman.AUGRU(3, 4, reset_after=False, seed=0), {"attention": np.full((5, 3), 0.25)}),
    "pair": lambda: (elman.GRU(3, 4, bidirectional=True, merge=None, seed=0), {}),
    "own": lambda: (elman.Custom(3, 4, 2, cell=OwnLSTM, train_state=True, seed=0), {}),
}


@pytest.mark.parametrize("name", CHECKED)
def test_check_gradients_of_what_is_right(name):
    layer, arguments = CHECKED[name]()
    before = dict(layer.params)
    errors = elman.diagnostics.check_gradients(layer, np.random.default_rng(0).standard_normal((5, 3, 3)), **arguments)
    assert set(errors) >= {"x", *layer.params} and 0 < max(errors.values()) < 1e-7
    assert all(np.array_equal(a, layer.params[name]) for name, a in before.items())


@pytest.mark.parametrize("wrong", ["x", "state: h", "state: c", "W_l0", "U_l0", "b_l0"])
def test_check_gradients_tells_which_is_wrong(wrong):
    place = ["x", "state: h", "state: c", "W_l0", "U_l0", "b_l0"].index(wrong)

    def step_backward(dstate_t, x_t, state, weights, saved):
        dx, dstate, dweights = OwnLSTM.step_backward(dstate_t, x_t, state, weights, saved)
        parts = [dx, *dstate, *dweights]
        parts[place] = parts[place] * 1.001
        return parts[0], tuple(parts[1:3]), tuple(parts[3:])

    layer = elman.Custom(3, 4, cell=changed(step_backward=step_backward), seed=0)
    with pytest.raises(ValueError, match="wrong gradients") as caught:
        elman.diagnostics.check_gradients(layer, np.random.default_rng(0).standard_normal((5, 3, 3)))
    said, right = str(caught.value).split(". Right: ")
    assert f"{wrong}: at (" in said
    if not wrong.startswith("state"):  # what is wrong with a state goes back into everything
        assert said.count(": at (") == 1 and len(right.split(", ")) == 5


@pytest.mark.parametrize("cell", ["MinLSTM", "MinGRU", "SRU", "GRU"])
def test_what_a_gate_keeps_out_leaves_the_state_alone(cell):
    """One sequence has an outlier that saturates the gates; what it carries on is the reference's, not a sum's rest."""
    x = np.random.default_rng(0).standard_normal((10, 32, 3)).astype(np.float32)
    x[3] *= 1e8
    options = {"activations": ("sigmoid", "relu")} if cell == "GRU" else {}
    layer = getattr(elman, cell)(3, 8, seed=0, **options)
    reference = getattr(elman, cell)(3, 8, backend="reference", **options)
    reference.load_params(layer.params)
    y, expected = layer(x)[0], reference(x)[0]
    assert (np.abs(y - expected) <= 1e-3 * (1 + np.abs(expected))).all()
