"""Embedding, Dropout, TDNN, Pooling and Activation: central differences, PyTorch as witness, lengths, tapes, errors."""

import copy
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
from helpers import mutant

from elman import (
    GRU,
    LSTM,
    RNN,
    TDNN,
    Activation,
    Dense,
    Dropout,
    Embedding,
    Pooling,
    log_softmax,
    softmax,
)

LENGTHS = [5, 0, 3, 1]
RTOL = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_gradients(layer, x, seed=9, **options):
    """backward against central differences of sum(y * dy): by x and by every weight."""
    y, tape = layer.forward(x, **options)
    dy = draw(*y.shape, seed=seed)
    dx, grads = layer.backward(tape, dy)
    wanted = {} if x.dtype.kind == "i" else {"x": (x, dx)}
    wanted |= {name: (w, grads[name]) for name, w in getattr(layer, "params", {}).items()}
    assert wanted

    def loss(name, value):
        other = copy.deepcopy(layer)
        if name != "x":
            other.load_params({**other.params, name: value})
        return float((other.forward(value if name == "x" else x, **options)[0] * dy).sum())

    for name, (at, got) in wanted.items():
        numeric = np.empty(at.shape)
        for i in np.ndindex(at.shape):
            high, low = at.copy(), at.copy()
            high[i] += 1e-5
            low[i] -= 1e-5
            numeric[i] = (loss(name, high) - loss(name, low)) / 2e-5
        assert got.shape == at.shape and np.abs(numeric).max() > 1e-2
        np.testing.assert_allclose(got, numeric, rtol=1e-7, atol=1e-8, err_msg=name)


def layers():
    """One of each, with an input for it."""
    ids = np.random.default_rng(1).integers(0, 4, (5, 4))
    return [
        (Embedding(4, 3, dtype="f8", seed=0), ids, {}),
        (Embedding(4, 3, padding_idx=2, dtype="f8", seed=0), ids[:, 0], {}),
        (TDNN(2, 3, 3, dtype="f8", seed=0), draw(5, 4, 2), {"lengths": LENGTHS}),
        (TDNN(2, 3, 2, 2, False, bias=False, dtype="f8", seed=0), draw(5, 4, 2), {}),
        (TDNN(2, 3, 4, 3, dtype="f8", seed=0), draw(5, 2), {"lengths": 4}),
        (Activation("relu"), draw(5, 4, 2), {}),
        (Activation("tanh"), draw(5, 4), {}),
        (Activation("sigmoid"), draw(5), {}),
        (Dropout(0.4), draw(5, 4, 2), {"rng": 3}),
        *((Pooling(mode), draw(5, 4, 2), {"lengths": LENGTHS}) for mode in ("last", "mean", "max")),
        *((Pooling(mode), draw(5, 2), {}) for mode in ("last", "mean", "max")),
        *((Pooling(mode, bidirectional=True), draw(5, 4, 6), {"lengths": LENGTHS}) for mode in ("last", "mean", "max")),
        (Pooling("last", bidirectional=True), draw(5, 2), {}),
    ]


each_layer = pytest.mark.parametrize("layer, x, options", layers(), ids=lambda value: repr(value)[:30])


@each_layer
def test_gradients_by_central_differences(layer, x, options):
    if getattr(layer, "padding_idx", None) is None:
        check_gradients(layer, x, **options)
    else:  # the gradient that padding does not get is the only difference
        y, tape = layer.forward(x)
        dy = np.ones_like(y)
        grads = layer.backward(tape, dy)[1]["weight"]
        np.testing.assert_array_equal(grads[:, 0], np.bincount(x, minlength=4) * (np.arange(4) != 2))
        assert (x == 2).any() and not layer.params["weight"][2].any()


@pytest.mark.parametrize(
    "cls, right, wrong",
    [
        (
            TDNN,
            "dpadded[start + steps.start : start + steps.stop] += ",
            "dpadded[start + steps.start : start + steps.stop] -= ",
        ),
        (TDNN, "zip(self._starts(), parts)", "zip(range(9), parts)"),
        (TDNN, "backward(self._seen(padded, steps)", "backward(self._seen(padded[::-1], steps)"),
        (Pooling, "np.maximum(n, 1).astype(dtype)", "np.maximum(n, 2).astype(dtype)"),
        (Pooling, "np.maximum(n - 1, 0), np", "np.maximum(n - 1, 1), np"),
        (Pooling, "dy = np.where(n[:, None] == 0, dtype.type(0), dy)", "pass"),
    ],
)
def test_a_planted_bug_is_revealed(cls, right, wrong):
    broken = getattr(mutant(sys.modules[cls.__module__], cls.__name__, right, wrong), cls.__name__)
    if cls is TDNN:
        layer = broken(2, 3, 3, 2, dtype="f8", seed=0)
    else:
        layer = broken("mean" if "astype" in right else "last")
    with pytest.raises(AssertionError):
        check_gradients(layer, draw(5, 4, 2), lengths=LENGTHS)
        check_alone_and_in_a_batch(layer)


@each_layer
def test_call_tape_and_accumulation(layer, x, options):
    """A call gives forward's y (Dropout apart), a tape serves twice and survives edits of x, grads are added to."""
    y, tape = layer.forward(x, **options)
    lengths = {name: value for name, value in options.items() if name == "lengths"}
    expected = x if isinstance(layer, Dropout) else y
    np.testing.assert_array_equal(layer(x, **lengths), expected)
    assert not np.shares_memory(layer(x, **lengths), x)
    dy, before = draw(*y.shape), x.copy()
    dx, grads = layer.backward(tape, dy)
    x[:], y[:] = 0, 0
    given = {name: np.full_like(g, 10) for name, g in grads.items()}
    again, returned = layer.backward(tape, dy, given)
    assert returned is given and (dx is again is None or np.array_equal(dx, again))
    for name, g in grads.items():
        np.testing.assert_allclose(given[name], g + 10)
    x[:] = before
    with pytest.raises(TypeError, match="tape: "):
        layer.backward(None, dy)
    with pytest.raises(ValueError, match="tape: "):
        copy.deepcopy(layer).backward(tape, dy)
    with pytest.raises(ValueError, match="dy: "):
        layer.backward(tape, dy[..., None])
    with pytest.raises(TypeError, match="dy: "):
        layer.backward(tape, dy.astype(np.float32))
    with pytest.raises(ValueError, match="grads: "):
        layer.backward(tape, dy, {"other": np.zeros(3)})
    if hasattr(layer, "edit"):
        with layer.edit() as p:
            p["weight"] *= 1.5
        with pytest.raises(ValueError, match="tape: "):
            layer.backward(tape, dy)


@each_layer
def test_copies_and_repr(layer, x, options):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), eval(repr(layer))):
        assert repr(other) == repr(layer) and type(other) is type(layer)
        if hasattr(layer, "params"):
            other.load_params(layer.params)
        np.testing.assert_array_equal(other.forward(x, **options)[0], layer.forward(x, **options)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("causal, kernel_size, dilation", [(True, 3, 2), (False, 3, 2), (False, 4, 1), (True, 1, 5)])
def test_tdnn_against_pytorch(causal, kernel_size, dilation, dtype):
    torch = pytest.importorskip("torch")
    layer = TDNN(5, 4, kernel_size, dilation, causal, dtype=dtype, seed=3)
    conv = torch.nn.Conv1d(5, 4, kernel_size, dilation=dilation, padding=0 if causal else "same")
    conv = conv.to(getattr(torch, np.dtype(dtype).name))
    conv.load_state_dict({k: torch.tensor(w) for k, w in layer.params.items()})
    x, dy = draw(9, 3, 5, dtype=dtype), draw(9, 3, 4, dtype=dtype, seed=1)
    tx = torch.tensor(x, requires_grad=True)
    columns = tx.permute(1, 2, 0)
    if causal:
        columns = torch.nn.functional.pad(columns, ((kernel_size - 1) * dilation, 0))
    ty = conv(columns).permute(2, 0, 1)
    ty.backward(torch.tensor(dy))
    y, tape = layer.forward(x)
    dx, grads = layer.backward(tape, dy)
    pairs = [(y, ty.detach()), (dx, tx.grad)] + [(grads[k], w.grad) for k, w in conv.named_parameters()]
    assert len(pairs) == 4
    for got, expected in pairs:
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=RTOL[got.dtype] * 10)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_embedding_against_pytorch(padding_idx):
    torch = pytest.importorskip("torch")
    layer = Embedding(7, 5, padding_idx, seed=0)
    theirs = torch.nn.Embedding(7, 5, padding_idx)
    theirs.load_state_dict({"weight": torch.tensor(layer.params["weight"])})
    x, dy = np.random.default_rng(0).integers(0, 7, (6, 4)), draw(6, 4, 5, dtype=np.float32)
    ty = theirs(torch.tensor(x))
    ty.backward(torch.tensor(dy))
    y, tape = layer.forward(x)
    np.testing.assert_array_equal(y, ty.detach().numpy())
    np.testing.assert_allclose(layer.backward(tape, dy)[1]["weight"], theirs.weight.grad.numpy(), rtol=0, atol=1e-6)


def test_embedding_sums_do_not_drift_and_start_as_pytorchs():
    layer = Embedding(2, 1)
    _, tape = layer.forward(np.zeros(2**18, int))
    _, grads = layer.backward(tape, np.full((2**18, 1), 0.1, np.float32))
    assert grads["weight"][0, 0] == pytest.approx(2**18 * float(np.float32(0.1)), rel=1e-7)
    weight = Embedding(100, 50, 7, seed=0).params["weight"]
    assert weight.std() == pytest.approx(1, abs=0.03) and not weight[7].any() and weight[6].all()
    assert layer(np.zeros((0, 3), int)).shape == (0, 3, 1) and layer(1).shape == (1,)
    assert layer.backward(layer.forward([])[1], np.zeros((0, 1), np.float32))[1]["weight"].shape == (2, 1)


@pytest.mark.parametrize(
    "layer",
    [
        TDNN(2, 3, 3, 2, False, dtype="f8", seed=0),
        *map(Pooling, ("last", "mean", "max")),
        Pooling("last", bidirectional=True),
    ],
    ids=repr,
)
def test_a_sequence_gives_the_same_in_any_batch(layer):
    check_alone_and_in_a_batch(layer)


def check_alone_and_in_a_batch(layer):
    """NaN past the ends of x and dy is never read; nothing comes out there."""
    x = draw(5, 4, 2)
    past = np.arange(5)[:, None] >= LENGTHS
    x[past] = np.nan
    y, tape = layer.forward(x, lengths=LENGTHS)
    dy = draw(*y.shape)
    if y.ndim == 3:
        dy[past] = np.nan
    dx, grads = layer.backward(tape, dy)
    assert np.isfinite(y).all() and np.isfinite(dx).all() and not dx[past].any()
    assert all(np.isfinite(g).all() for g in grads.values())
    for b, n in enumerate(LENGTHS):
        y_b, tape_b = layer.forward(x[:n, b])
        steps = slice(0, n)
        dx_b, _ = layer.backward(tape_b, dy[steps, b] if y.ndim == 3 else dy[b])
        np.testing.assert_allclose(y[steps, b] if y.ndim == 3 else y[b], y_b, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(dx[:n, b], dx_b, rtol=1e-13, atol=1e-15)
        assert y.ndim == 2 or not y[n:, b].any()


def test_pooling_by_hand():
    x = np.array([[[1.0, -5.0]], [[3.0, -2.0]], [[3.0, 9.0]]])
    for mode, y in [("last", [3, -2]), ("mean", [2, -3.5]), ("max", [3, -2])]:
        np.testing.assert_array_equal(Pooling(mode)(x, lengths=[2])[0], y)
        np.testing.assert_array_equal(Pooling(mode)(x[:0]), [[0, 0]])
    for mode, dx in [("last", [0, 0, 1]), ("mean", [1, 1, 1]), ("max", [0, 1, 0])]:  # max: the first of equals
        layer = Pooling(mode)
        got = layer.backward(layer.forward(x[:, :, :1])[1], [[3.0 if mode == "mean" else 1.0]])[0]
        np.testing.assert_array_equal(got[:, 0, 0], dx)


def test_pooling_of_both_directions_by_hand():
    x = np.arange(24.0).reshape(3, 2, 4)  # x[t, b] = 8 t + 4 b + (0, 1 | 2, 3)
    layer = Pooling("last", bidirectional=True)
    y, tape = layer.forward(x, lengths=[2, 3])
    np.testing.assert_array_equal(y, [[8, 9, 2, 3], [20, 21, 6, 7]])
    np.testing.assert_array_equal(layer(x, lengths=[0, 1]), [[0, 0, 0, 0], [4, 5, 6, 7]])
    dx, _ = layer.backward(tape, [[1.0, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(dx[:, 0], [[0, 0, 3, 4], [1, 2, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(dx[:, 1], [[0, 0, 7, 8], [0, 0, 0, 0], [5, 6, 0, 0]])


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_pooling_of_both_directions_is_the_final_state(cell, num_layers):
    """Of the layer itself, and PyTorch's h_n, forward and backward."""
    torch = pytest.importorskip("torch")
    layer = cell(3, 4, num_layers, bidirectional=True, dtype="f8", seed=0)
    pooling, x, n = Pooling("last", bidirectional=True), draw(5, 3, 3), [3, 5, 1]
    y, state, tape = layer.forward(x, lengths=n)
    pooled, pooled_tape = pooling.forward(y, lengths=n)
    h = state[0] if cell is LSTM else state
    np.testing.assert_array_equal(pooled, np.concatenate([h[-2], h[-1]], axis=1))
    dpooled = draw(3, 8, seed=1)
    dx, _, grads = layer.backward(tape, pooling.backward(pooled_tape, dpooled)[0])

    theirs = getattr(torch.nn, cell.__name__)(3, 4, num_layers, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict({name: torch.tensor(w) for name, w in layer.params.items()})
    tx = torch.tensor(x, requires_grad=True)
    _, h_n = theirs(torch.nn.utils.rnn.pack_padded_sequence(tx, n, enforce_sorted=False))
    h_n = h_n[0] if cell is LSTM else h_n
    expected = torch.cat((h_n[-2], h_n[-1]), 1)
    expected.backward(torch.tensor(dpooled))
    pairs = [(pooled, expected.detach()), (dx, tx.grad)] + [(grads[k], w.grad) for k, w in theirs.named_parameters()]
    assert len(pairs) == 2 + 8 * num_layers
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-13)


def test_dropout_scales_draws_and_repeats():
    layer, x = Dropout(0.25, seed=1), np.ones((100, 100), np.float32)
    y, _ = layer.forward(x, rng=7)
    kept = y != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02) and np.allclose(y[kept], 1 / 0.75)
    np.testing.assert_array_equal(layer.forward(x, rng=np.random.default_rng(7))[0], y)
    first, second = layer.forward(x)[0], layer.forward(x)[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(Dropout(0.25, seed=1).forward(x)[0], first)
    x[~kept] = np.nan
    assert np.isfinite(layer.forward(x, rng=7)[0]).all()
    assert not Dropout(1.0).forward(np.ones(9))[0].any() and Dropout(0.0).forward(np.ones(9))[0].all()


@pytest.mark.parametrize("kind", ["relu", "tanh", "sigmoid"])
def test_activation_against_numpy(kind):
    x = np.array([-800.0, -1, 0, 1, 800])
    with np.errstate(over="ignore"):
        expected = {"relu": np.maximum(x, 0), "tanh": np.tanh(x), "sigmoid": 1 / (1 + np.exp(-x))}[kind]
    np.testing.assert_allclose(Activation(kind)(x), expected, rtol=1e-14, atol=1e-300)
    strided = np.repeat(x, 2).reshape(1, -1)[:, ::2]
    np.testing.assert_allclose(Activation(kind)(strided)[0], expected, rtol=1e-14, atol=1e-300)
    assert np.isnan(Activation(kind)(np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax_against_pytorch(dtype, axis):
    torch = pytest.importorskip("torch")
    x = 10 * draw(4, 5, 3, dtype=dtype)
    x[0, 0, 0], x[1, 1, 1], x[2] = -np.inf, np.nan, 1e4 * x[2]
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        y, expected = ours(x, axis), theirs(torch.tensor(x, dtype=torch.float64), axis).numpy()
        assert y.dtype == dtype and np.isnan(y).sum() == x.shape[axis]
        np.testing.assert_allclose(y, expected, rtol=2e-7 if dtype == np.float32 else 1e-14)


def test_softmax_by_hand():
    x = np.log([[1.0, 2.0, 5.0]])
    before = x.copy()
    np.testing.assert_allclose(softmax(x), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)
    np.testing.assert_allclose(softmax(x + 700), softmax(x), rtol=1e-12)
    np.testing.assert_allclose(log_softmax(x), [[-np.log(8), -np.log(4), np.log(5 / 8)]], rtol=1e-15)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(softmax(x.T, 0), softmax(x).T)
    np.testing.assert_array_equal(softmax([1000, 0, 1000]), [0.5, 0, 0.5])
    np.testing.assert_array_equal(log_softmax([0, -1000]), [0, -1000])  # the probability itself is 0
    assert softmax([1, 2]).dtype == np.float64 and softmax(np.zeros((0, 3))).shape == (0, 3)
    assert softmax(np.zeros((3, 0), np.float32)).shape == (3, 0)
    np.testing.assert_array_equal(softmax([-np.inf, 0, -np.inf]), [0, 1, 0])
    assert np.isnan(softmax([-np.inf, -np.inf])).all() and np.isnan(softmax([np.inf, 0])).all()
    huge = np.array([3e38, -3e38], np.float32)
    np.testing.assert_array_equal(softmax(huge), [1, 0])


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Embedding(0, 2), ValueError, "num_embeddings"),
        (lambda: Embedding(2, 2.0), TypeError, "embedding_dim"),
        (lambda: Embedding(2, 2, 2), ValueError, "padding_idx: expected 0 to 1, got 2"),
        (lambda: TDNN(2, 2, 0), ValueError, "kernel_size"),
        (lambda: TDNN(2, 2, 1, 0), ValueError, "dilation"),
        (lambda: TDNN(2, 2, 1, 1, 1), TypeError, "causal"),
        (lambda: TDNN(2, 2, 1, dtype="f2"), TypeError, "dtype"),
        (lambda: Dropout(1.1), ValueError, "p: expected 0 to 1"),
        (lambda: Dropout("x"), TypeError, "p: "),
        (lambda: Pooling("min"), ValueError, "mode: expected one of 'last', 'mean', 'max'"),
        (lambda: Pooling("last", bidirectional=1), TypeError, "bidirectional: expected True or False"),
        (lambda: Activation(None), ValueError, "kind"),
        (lambda: Embedding(2, 2)([[0, 2]]), ValueError, r"x: expected 0 to 1, got 2 at \(0, 1\)"),
        (lambda: Embedding(2, 2)([-1]), ValueError, "x: expected 0 to 1, got -1"),
        (lambda: Embedding(2, 2)(np.zeros(3)), TypeError, "x: expected integers, got float64"),
        (lambda: Embedding(2, 2)(np.zeros(3, bool)), TypeError, "x: "),
        (lambda: Embedding(2, 2)([[0], [0, 1]]), ValueError, "x: "),
        (lambda: TDNN(2, 2, 1)(np.zeros((3, 4, 3), np.float32)), ValueError, "x: expected shape"),
        (lambda: TDNN(2, 2, 1)(np.zeros((3, 4, 2))), TypeError, "x: expected dtype float32"),
        (lambda: TDNN(2, 2, 1)(np.zeros(2, np.float32)), ValueError, "x: "),
        (lambda: TDNN(2, 2, 1)(np.zeros((3, 2, 2), np.float32), lengths=[4, 0]), ValueError, "lengths: "),
        (lambda: Pooling("max")(np.zeros((3, 2, 2)), lengths=[1.0, 0.0]), TypeError, "lengths: "),
        (lambda: Pooling("max")(np.zeros((3, 2)), lengths=[1, 2]), TypeError, "lengths: "),
        (lambda: Pooling("max")(np.zeros(3)), ValueError, "x: "),
        (lambda: Pooling("last", bidirectional=True)(np.zeros((4, 3))), ValueError, "x: expected an even .* got 3"),
        (lambda: Pooling("max")(np.zeros((3, 2, 2), np.float16)), TypeError, "x: expected float32 or float64"),
        (lambda: Dropout(0.5).forward(np.zeros(3), rng=-1), ValueError, "rng"),
        (lambda: Activation("relu")(["a"]), TypeError, "x: "),
        (lambda: softmax(1.0), ValueError, r"x: expected at least one axis, got shape \(\)"),
        (lambda: softmax([1.0], 1), ValueError, "axis: expected -1 to 0, got 1"),
        (lambda: softmax([1.0], 0.0), TypeError, "axis: expected an integer"),
        (lambda: log_softmax(np.zeros(3, np.float16)), TypeError, "x: expected float32 or float64, got float16"),
        (lambda: log_softmax([[1.0], [1.0, 2.0]]), ValueError, "x: expected an array, got list"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_tdnn_that_sees_one_step_is_dense():
    dense, tdnn = Dense(64, 64, seed=0), TDNN(64, 64, 1, seed=1)
    tdnn.load_params({"weight": dense.params["weight"][:, :, None], "bias": dense.params["bias"]})
    x = draw(50, 9, 64, dtype=np.float32)
    np.testing.assert_allclose(tdnn(x), dense(x), rtol=0, atol=1e-6)


def test_a_wide_kernel_takes_no_more_memory_than_a_piece():
    """What all kernel_size taps see of all steps would be kernel_size times x."""
    layer, x = TDNN(8, 8, 200, seed=0), np.ones((20_000, 2, 8), np.float32)  # 2.6 MB; seen at once 512
    tracemalloc.start()
    y, tape = layer.forward(x)
    layer.backward(tape, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
