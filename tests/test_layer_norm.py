"""Layer normalisation inside the recurrence: against the formulas of TFLite, haste and DyNet, each written once more in
the gate order and layout of its source; against PyTorch's layer_norm with autograd; and what is refused.

Central differences, kernels against reference, bits, steps: test_cells.py has these cells in its list.
"""

import math

import numpy as np
import pytest
from helpers import FURTHER, assert_same, problem
from test_kernels import isa  # noqa: F401  (a fixture)

import elman
from elman import functional, reference

T, B, I, H = 7, 3, 4, 5
BOTH = [("compiled", functional), ("reference", reference)]
LSTM_NORMS = ("gate", "joint", "joint_shift")
LAYERS = {f"lstm-{norm}": (elman.LSTM, {"layer_norm": norm}) for norm in LSTM_NORMS} | {
    "lstm-gate-peephole": (elman.LSTM, {"layer_norm": "gate", "peephole": True}),
    "gru-joint": (elman.GRU, {"layer_norm": "joint"}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", [name for name, _ in BOTH])


def make(name, *sizes, **options):
    """A layer whose norms' weights are not at their start."""
    cls, own = LAYERS[name]
    layer = cls(*(sizes or (I, H)), seed=0, **{"dtype": np.float64} | own | options)
    rng = np.random.default_rng(1)
    with layer.edit() as p:
        for a in p.values():
            if a.ndim == 1:
                a += 0.4 * rng.standard_normal(a.shape)
    return layer


def inputs(T=T, B=B, I=I, seed=2):
    return np.random.default_rng(seed).standard_normal((T, B, I))


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def norm(values, eps, beside=0.0):
    """Of a list of numbers."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / (math.sqrt(variance + eps) + beside) for v in values]


def product(W, v):
    return [sum(w * e for w, e in zip(row, v, strict=True)) for row in W.tolist()]


def blocks(a, count, order=None):
    """A parameter's blocks of H, in another order."""
    parts = np.split(a, count)
    return parts if order is None else [parts[k] for k in order]


# ------------------------------------------------------------------------------------------- the sources' equations


def tflite(p, x, peephole):
    """Each gate by itself, peepholes inside its norm, the bias behind."""
    h, c, y = [0.0] * H, [0.0] * H, []
    W, R = blocks(p["weight_ih_l0"], 4), blocks(p["weight_hh_l0"], 4)
    gamma, b = blocks(p["weight_norm_l0"], 4), blocks(p["bias_ih_l0"], 4)

    def gate(k, x_t, seen=None):
        s = [a + e for a, e in zip(product(W[k], x_t), product(R[k], h), strict=True)]
        if seen is not None and peephole:
            s = [a + w * e for a, w, e in zip(s, p[f"weight_c{'if o'[k]}_l0"], seen, strict=True)]
        return [n * g + e for n, g, e in zip(norm(s, 1e-8), gamma[k], b[k], strict=True)]

    for x_t in x:
        i, f, g = gate(0, x_t, c), gate(1, x_t, c), gate(2, x_t)
        c = [sigmoid(f[u]) * c[u] + sigmoid(i[u]) * math.tanh(g[u]) for u in range(H)]
        o = gate(3, x_t, c)
        h = [sigmoid(o[u]) * math.tanh(c[u]) for u in range(H)]
        y.append(h)
    return y


def haste_lstm(p, x, shifts):
    """layer_norm_lstm.py: kernel (I, 4H), blocks i g f o. With shifts DyNet's VanillaLSTMBuilder, blocks i f o g."""
    order = (0, 1, 3, 2) if shifts else (0, 2, 1, 3)

    def reordered(name):
        return np.concatenate(blocks(p[name + "_l0"], 4, order))

    kernel, recurrent = reordered("weight_ih"), reordered("weight_hh")
    gamma_x, gamma_h, bias = (reordered(name) for name in ("weight_norm_ih", "weight_norm_hh", "bias_ih"))
    beta_x, beta_h = (reordered(name) if shifts else [0.0] * 4 * H for name in ("bias_norm_ih", "bias_norm_hh"))
    gamma_c, beta_c = p["weight_norm_c_l0"], p["bias_norm_c_l0"]
    h, c, y = [0.0] * H, [0.0] * H, []
    for x_t in x:
        eps = (1e-30, 1e-8) if shifts else (1e-5,)  # DyNet adds 1e-8 to the deviation; 1e-30 against 0 / 0 where h is 0
        of_x, of_h = norm(product(kernel, x_t), *eps), norm(product(recurrent, h), *eps)
        v = [bias[k] + (of_x[k] * gamma_x[k] + beta_x[k]) + (of_h[k] * gamma_h[k] + beta_h[k]) for k in range(4 * H)]
        if shifts:
            i, f, o, g = (v[k * H : (k + 1) * H] for k in range(4))
        else:
            i, g, f, o = (v[k * H : (k + 1) * H] for k in range(4))
        c = [sigmoid(f[u]) * c[u] + sigmoid(i[u]) * math.tanh(g[u]) for u in range(H)]
        of_c = norm(c, *eps)
        h = [sigmoid(o[u]) * math.tanh(of_c[u] * gamma_c[u] + beta_c[u]) for u in range(H)]
        y.append(h)
    return y


def haste_gru(p, x):
    """layer_norm_gru.py: blocks z r g."""
    order = (1, 0, 2)

    def reordered(name):
        return np.concatenate(blocks(p[name + "_l0"], 3, order))

    kernel, recurrent = reordered("weight_ih"), reordered("weight_hh")
    gamma = reordered("weight_norm_ih"), reordered("weight_norm_hh")
    bias, recurrent_bias = reordered("bias_ih"), reordered("bias_hh")
    h, y = [0.0] * H, []
    for x_t in x:
        vx = [n * g + e for n, g, e in zip(norm(product(kernel, x_t), 1e-5), gamma[0], bias, strict=True)]
        vh = [n * g + e for n, g, e in zip(norm(product(recurrent, h), 1e-5), gamma[1], recurrent_bias, strict=True)]
        z = [sigmoid(vx[u] + vh[u]) for u in range(H)]
        r = [sigmoid(vx[H + u] + vh[H + u]) for u in range(H)]
        g = [math.tanh(vx[2 * H + u] + r[u] * vh[2 * H + u]) for u in range(H)]
        h = [z[u] * h[u] + (1 - z[u]) * g[u] for u in range(H)]
        y.append(h)
    return y


@each_backend
@each_layer
def test_equations_of_the_sources(name, backend):
    layer = make(name, backend=backend)
    p, x = dict(layer.params), inputs(B=1)[:, 0]
    expected = {
        "lstm-gate": lambda: tflite(p, x, False),
        "lstm-gate-peephole": lambda: tflite(p, x, True),
        "lstm-joint": lambda: haste_lstm(p, x, False),
        "lstm-joint_shift": lambda: haste_lstm(p, x, True),
        "gru-joint": lambda: haste_gru(p, x),
    }[name]()
    np.testing.assert_allclose(layer(x)[0], expected, rtol=0, atol=2e-13)


def test_the_three_norms_of_an_lstm_are_different_functions():
    x, results = inputs(), []
    for name in ("lstm-gate", "lstm-joint", "lstm-joint_shift"):
        results.append(make(name)(x)[0])
    for k in range(3):
        assert np.abs(results[k] - results[k - 1]).max() > 0.01


# --------------------------------------------------------------------------------------------------------- PyTorch


def in_torch(torch, name, p, x, state):
    """y and the final state of one layer, from torch.nn.functional.layer_norm alone."""
    norm = torch.nn.functional.layer_norm
    h, c = state if len(state) == 2 else (state[0], None)
    y = []

    def joint(what, v):
        if name == "lstm-joint_shift":
            away = v - v.mean(1, keepdim=True)
            deviation = ((away**2).mean(1, keepdim=True) + 1e-30).sqrt()
            return away / (deviation + 1e-8) * p[f"weight_norm_{what}_l0"] + p[f"bias_norm_{what}_l0"]
        return norm(v, v.shape[1:], p[f"weight_norm_{what}_l0"], p.get(f"bias_norm_{what}_l0"), eps=1e-5)

    for x_t in x:
        ax, ah = x_t @ p["weight_ih_l0"].T, h @ p["weight_hh_l0"].T
        if name == "gru-joint":
            x_r, x_z, x_n = (joint("ih", ax) + p["bias_ih_l0"]).chunk(3, 1)
            h_r, h_z, h_n = (joint("hh", ah) + p["bias_hh_l0"]).chunk(3, 1)
            z = torch.sigmoid(x_z + h_z)
            h = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h
        elif name.startswith("lstm-joint"):
            i, f, g, o = (joint("ih", ax) + joint("hh", ah) + p["bias_ih_l0"]).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(joint("c", c))
        else:
            s = list((ax + ah).chunk(4, 1))
            gamma, b = p["weight_norm_l0"].chunk(4), p["bias_ih_l0"].chunk(4)
            w = {k: p.get(f"weight_c{k}_l0", torch.zeros(1)) for k in "ifo"}

            def a(k, seen, s=s, gamma=gamma, b=b):
                return norm(s[k] + seen, s[k].shape[1:], gamma[k], b[k], eps=1e-8)

            i, f, g = a(0, w["i"] * c), a(1, w["f"] * c), a(2, 0)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(a(3, w["o"] * c)) * torch.tanh(c)
        y.append(h)
    return torch.stack(y), (h,) if c is None else (h, c)


@each_backend
@each_layer
def test_gradients_of_pytorch(name, backend):
    torch = pytest.importorskip("torch")
    I, H, B = 6, 19, 4
    layer = make(name, I, H, backend=backend)
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, T, B, 1))[0] * np.ones(I) + inputs(T, B, I), rng.standard_normal((T, B, H))
    count = 2 if isinstance(layer, elman.LSTM) else 1
    state, dstate = (tuple(rng.standard_normal((count, 1, B, H))) for _ in range(2))
    bundled = [s if count == 2 else s[0] for s in (state, dstate)]
    y, after, tape = layer.forward(x, bundled[0])
    dx, dbefore, grads = layer.backward(tape, dy, bundled[1])

    leaves = {key: torch.from_numpy(a.copy()).requires_grad_() for key, a in layer.params.items()}
    starts = [torch.from_numpy(a[0].copy()).requires_grad_() for a in state]
    of_x = torch.from_numpy(x.copy()).requires_grad_()
    expected, last = in_torch(torch, name, leaves, of_x, starts)
    torch.autograd.backward([expected, *last], [torch.from_numpy(a) for a in (dy, *(d[0] for d in dstate))])

    def same(got, tensor):
        wanted = tensor.detach().numpy()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * (1 + np.abs(wanted).max()))

    same(y, expected)
    same(dx, of_x.grad)
    for got, dgot, tensor, start in zip(
        after if count == 2 else [after], dbefore if count == 2 else [dbefore], last, starts, strict=True
    ):
        same(got[0], tensor)
        same(dgot[0], start.grad)
    assert grads.keys() == leaves.keys()
    for key, leaf in leaves.items():
        same(grads[key], leaf.grad)


# -------------------------------------------------------------------------------------------- what the norms promise


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-4), (np.float64, 1e-12)], ids=["float32", "float64"])
@pytest.mark.parametrize("H", [1, 16, 21])
@pytest.mark.parametrize("name", [name for name in FURTHER if "norm" in name])
def test_every_instruction_set(isa, name, H, dtype, tolerance):  # noqa: F811
    cell = FURTHER[name]._replace(outputs=0)
    p = problem(cell, T, B, I, H, 2, dtype, lengths=[7, 2, 5])
    assert_same(p.results(functional), p.results(reference), tolerance)


@pytest.mark.parametrize("H", [1, 5, 16, 33, 100])
@pytest.mark.parametrize("name", [name for name in LAYERS if "peephole" not in name])
def test_a_shift_or_a_factor_of_the_products_changes_nothing(name, H):
    """Exactly what a norm takes away, were there no eps: over the true units, whatever they are padded to."""
    layer, x = make(name, I, H, dtype=np.float32), inputs().astype(np.float32)
    wanted = layer(x[:1])[0]  # one step: h is 0, so that W_ih x stands alone in its norm
    with layer.edit() as p:
        p["weight_ih_l0"][...] = 64 * p["weight_ih_l0"] + 0.25
    np.testing.assert_allclose(layer(x[:1])[0], wanted, rtol=0, atol=2e-3 if H > 1 else 2e-2)


@each_layer
def test_a_large_mean_costs_no_accuracy_beyond_its_rounding(name):
    """Products near 1000 with a spread of 1: the variance as the mean of squares minus the square of the mean would be
    wrong by a tenth in float32."""
    cls, options = LAYERS[name]
    layers = [cls(I, 64, seed=0, dtype=dtype, **options) for dtype in (np.float32, np.float64)]
    rng = np.random.default_rng(0)
    W = rng.integers(-64, 65, layers[0].params["weight_ih_l0"].shape) / 64.0
    W[:, 0] = 1000.0
    x = rng.integers(-16, 17, (1, B, I)) / 16.0  # their products are exact in float32
    x[..., 0] = 1.0
    results = []
    for layer in layers:
        with layer.edit() as p:
            p["weight_ih_l0"][...] = W
        results.append(layer(x.astype(layer.dtype))[0])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name, eps", [("lstm-gate", 1e-8), ("lstm-joint", 1e-5), ("gru-joint", 1e-5)])
@each_backend
def test_eps(name, eps, backend):
    """Products as small as sqrt(eps) show which it is."""
    cls, options = LAYERS[name]
    layer = cls(1, 4, seed=0, dtype=np.float64, backend=backend, **options)
    rows = len(layer.params["weight_ih_l0"])
    spread = np.tile([1.0, -1.0], rows // 2) * math.sqrt(eps)
    with layer.edit() as p:
        p["weight_ih_l0"][:, 0] = spread
    _, _, gates = layer(np.ones((1, 1)), return_all=("gates",))
    a = spread / math.sqrt(2 * eps)
    G = rows // 4
    candidate = np.tanh(a.reshape(G, 4)[2])
    np.testing.assert_allclose(gates.reshape(G, 4)[2], candidate, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("H", [5, 7, 24])
@each_backend
def test_a_row_of_equal_cells_has_norm_zero(backend, H, dtype):
    """All c at cell_clip: N(c) is 0 then, however small the eps, so h is o * tanh(beta) = 0."""
    layer = elman.LSTM(1, H, layer_norm="joint_shift", cell_clip=0.3, dtype=dtype, seed=0, backend=backend)
    y, (_, c) = layer(np.zeros((1, 1, 1)).astype(dtype), (None, np.full((1, 1, H), 100, dtype)))
    assert (c == dtype(0.3)).all() and np.abs(y).max() < 1e-6


def test_nan_stays_in_its_sequence_and_starts_of_zeros_are_fine():
    for name in LAYERS:
        layer, x = make(name, I, 19, dtype=np.float32), inputs().astype(np.float32)
        clean = layer(x)[0]
        x[2, 1, 0] = np.nan
        y = layer(x)[0]
        assert np.array_equal(y[:, [0, 2]], clean[:, [0, 2]]) and np.array_equal(y[:2], clean[:2])
        assert np.isnan(y[2:, 1]).all()
        zero = layer(np.zeros_like(x))[0]
        assert np.isfinite(zero).all()


# ------------------------------------------------------------------------------------------------------------ layers


@each_backend
@each_layer
def test_names_shapes_and_starts(name, backend):
    cls, options = LAYERS[name]
    layer = cls(I, H, 2, bidirectional=True, seed=0, backend=backend, **options)
    G = 4 if cls is elman.LSTM else 3
    own = {
        "lstm-gate": {"weight_norm": 4},
        "lstm-gate-peephole": {"weight_norm": 4, "weight_ci": 1, "weight_cf": 1, "weight_co": 1},
        "lstm-joint": {"weight_norm_ih": 4, "weight_norm_hh": 4, "weight_norm_c": 1, "bias_norm_c": 1},
        "gru-joint": {"weight_norm_ih": 3, "weight_norm_hh": 3, "bias_hh": 3},
    }
    own["lstm-joint_shift"] = own["lstm-joint"] | {"bias_norm_ih": 4, "bias_norm_hh": 4}
    wanted = {"weight_ih": 0, "weight_hh": 0, "bias_ih": G} | own[name]
    ends = [f"_l{k}{end}" for k in (0, 1) for end in ("", "_reverse")]
    assert set(layer.params) == {kind + end for kind in wanted for end in ends}
    for kind, count in wanted.items():
        for end in ends:
            a = layer.params[kind + end]
            if count:
                assert a.shape == (count * H,)
            if kind.startswith("bias"):
                assert not a.any()
            if kind.startswith("weight_norm"):
                assert (a == 1).all()
    y, state = layer(inputs().astype(np.float32))
    assert y.shape == (T, B, 2 * H)
    with_bias, without = (cls(I, H, seed=0, backend=backend, bias=bias, **options) for bias in (True, False))
    assert set(with_bias.params) - set(without.params) == {"bias_ih_l0"} | ({"bias_hh_l0"} if G == 3 else set())
    with with_bias.edit() as p:
        for key, a in without.params.items():
            p[key] = a
    assert np.array_equal(with_bias(y[..., :I])[0], without(y[..., :I])[0])  # biases start at 0
    assert f"layer_norm={options['layer_norm']!r}" in repr(layer)


@pytest.mark.parametrize("norm", LSTM_NORMS)
def test_forget_bias_and_initialize(norm):
    layer = elman.LSTM(I, H, layer_norm=norm, forget_bias=1.0, seed=0)  # haste's and DyNet's default
    assert layer.params["bias_ih_l0"].tolist() == [0] * H + [1] * H + [0] * 2 * H
    elman.initialize(layer, recurrent="orthogonal", bias=0.5)
    assert (layer.params["bias_ih_l0"] == 0.5).all()
    assert (layer.params["weight_norm_ih_l0" if norm != "gate" else "weight_norm_l0"] == 1).all()


@each_layer
def test_backends_agree_with_everything_at_once(name):
    """Stacked, bidirectional, ragged, with resets, noise, learned states, a projection and clips."""
    options = {"num_layers": 2, "bidirectional": True, "zoneout": (0.2, 0.1 if "lstm" in name else 0.0), "clip": 2.0}
    options |= {"dropout": 0.1, "input_dropout": 0.1, "recurrent_dropout": 0.2, "weight_dropout": 0.2}
    options |= {"train_state": True, "grad_clip": 5.0}
    if "lstm" in name:
        options |= {"proj_size": 3, "proj_clip": 0.9, "cell_clip": 1.5}
    x, lengths = inputs(), [7, 2, 5]
    reset = np.zeros((T, B), bool)
    reset[3] = True
    results = []
    for backend, _ in BOTH:
        layer = make(name, backend=backend, **options)
        y, state, tape = layer.forward(x, lengths=lengths, reset=reset, rng=0)
        dx, dstate, grads = layer.backward(tape, np.ones_like(y))
        results.append([y, dx, *grads.values(), layer(x, lengths=lengths, reset=reset)[0]])
        assert all(np.abs(g).max() > 0 for g in grads.values())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * (1 + np.abs(b).max()))


@each_layer
def test_gates_and_steps(name):
    x = inputs().astype(np.float32)
    found = {}
    for backend, _ in BOTH:
        layer = make(name, backend=backend, dtype=np.float32)
        y, _, gates = layer(x, return_all=("gates",))
        found[backend] = gates
        state = layer.zero_state(B)
        for t in range(T):
            assert layer.step(x[t], state).tobytes() == y[t].tobytes()
        if "lstm" in name:
            _, _, c = layer(x, return_all=("c",))
            i, f, g, _ = (gates[:, :, 0, k] for k in range(4))
            before = np.concatenate([np.zeros_like(c[:1]), c[:-1]])
            np.testing.assert_allclose(c, f * before + i * g, rtol=0, atol=1e-6)
        else:
            _, z, n = (gates[:, :, 0, k] for k in range(3))
            before = np.concatenate([np.zeros_like(y[:1]), y[:-1]])
            np.testing.assert_allclose(y, (1 - z) * n + z * before, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["compiled"], found["reference"], rtol=0, atol=1e-5)  # norms magnify rounding


@each_layer
def test_training_makes_the_loss_smaller(name):
    layer = make(name, I, 16, dtype=np.float32)
    x = inputs(12, 8).astype(np.float32)
    target = np.tanh(x.cumsum(axis=0)[..., :1]) / 2
    optimizer = elman.Adam(layer, lr=0.02)
    losses = []
    for _ in range(60):
        y, _, tape = layer.forward(x)
        away = y - target
        losses.append(float((away**2).mean()))
        _, _, grads = layer.backward(tape, 2 * away / away.size)
        optimizer.step(grads)
    assert losses[-1] < 0.5 * losses[0]


def test_rows_of_a_gate_that_is_no_more_have_no_effect():
    for coupled, k in (("f=1-i", 1), ("i=1-f", 0)):
        layer = make("lstm-gate", coupled=coupled)
        x = inputs()
        y, _, tape = layer.forward(x)
        _, _, grads = layer.backward(tape, np.ones_like(y))
        rows = slice(k * H, (k + 1) * H)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_norm_l0")
        assert all(not grads[name][rows].any() and grads[name].any() for name in names)
        with layer.edit() as p:
            for name in names:
                p[name][rows] = 7
        assert np.array_equal(layer(x)[0], y)


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (
            elman.LSTM,
            {"layer_norm": "batch"},
            "layer_norm: expected one of 'gate', 'joint', 'joint_shift', got 'batch'",
        ),
        (elman.GRU, {"layer_norm": "gate"}, "layer_norm: expected"),
        (elman.GRU, {"layer_norm": "joint", "reset_after": False}, "layer_norm: expected None with reset_after=False"),
        (elman.LSTM, {"layer_norm": "joint", "peephole": True}, "peephole: expected False, since the norm"),
        (elman.LSTM, {"layer_norm": "joint_shift", "coupled": "f=1-i"}, "coupled: expected None, since the norm"),
        (elman.LSTM, {"layer_norm": "joint", "forget_bias": 1.0, "bias": False}, "forget_bias: expected None"),
    ],
)
def test_refused(cls, options, message):
    with pytest.raises(ValueError) as error:
        cls(3, 4, **options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("module", [module for _, module in BOTH])
def test_functions_refuse_biases_inside_the_norms(module):
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((4 * H, I)), rng.standard_normal(4 * H)
    R, gamma = rng.standard_normal((4 * H, H)), np.ones(4 * H)
    x = inputs()
    with pytest.raises(ValueError, match="bias_hh: expected None, since this cell has none"):
        module.cell_forward("lstm_norm_gate", x, None, [(W, R, b, b, gamma)])
    with pytest.raises(TypeError, match="weight_norm"):
        module.cell_forward("lstm_norm_gate", x, None, [(W, R, b, None, None)])
    with pytest.raises(ValueError, match="coupled: expected none, since lstm_norm_joint has no such option"):
        module.cell_pack("lstm_norm_joint", [(W, R, b, None, gamma, gamma, b[:H], b[:H])], coupled="f=1-i")
    y, _, tape = module.cell_forward("lstm_norm_gate", x, None, [(W, R, None, None, gamma)])
    _, _, (gradients,) = module.cell_backward(tape, np.ones_like(y))
    assert [g is None for g in gradients] == [False, False, True, True, False]


@each_layer
def test_saved_and_loaded(name, tmp_path):
    layer = make(name, I, H, 2, bidirectional=True)
    elman.save(tmp_path / "layer.safetensors", layer)
    loaded = elman.load(tmp_path / "layer.safetensors")
    assert repr(loaded) == repr(layer) and loaded.layer_norm == layer.layer_norm
    x = inputs()
    assert np.array_equal(loaded(x)[0], layer(x)[0])
