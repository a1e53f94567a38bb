"""Dense against literal values, central differences and torch.nn.Linear; its weights, tapes and errors."""

import copy
import pickle

import numpy as np
import pytest
from processes import output_of

from elman import _config
from elman.dense import Dense

SHAPES = [(), (1,), (5,), (4, 3), (2, 3, 4), (0, 3), (3, 0)]
RTOL = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def draw(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_literal_values():
    layer = Dense(2, 3, dtype=np.float64)
    layer.load_params({"weight": [[1, 2], [3, 4], [5, 6]], "bias": [10, 20, 30]})
    x = np.array([[1.0, -1.0], [0.5, 2.0]])
    y, tape = layer.forward(x)
    np.testing.assert_array_equal(y, [[9, 19, 29], [14.5, 29.5, 44.5]])
    np.testing.assert_array_equal(layer(x), y)
    dx, grads = layer.backward(tape, [[1.0, 0, 0], [0, 1, -1]])
    np.testing.assert_array_equal(dx, [[1, 2], [-2, -2]])
    np.testing.assert_array_equal(grads["weight"], [[1, -1], [0.5, 2], [-0.5, -2]])
    np.testing.assert_array_equal(grads["bias"], [1, 1, -1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", SHAPES)
def test_gradients_by_central_differences(leading, bias):
    layer = Dense(3, 4, bias, np.float64, seed=1)
    x, dy = draw((*leading, 3)), draw((*leading, 4), seed=2)
    y, tape = layer.forward(x)
    assert y.shape == (*leading, 4)
    dx, grads = layer.backward(tape, dy)
    assert dx.shape == x.shape and list(grads) == list(layer.params)

    def loss(name, value):
        other = copy.deepcopy(layer)
        if name != "x":
            other.load_params({**other.params, name: value})
        return float((other(value if name == "x" else x) * dy).sum())

    for name, at, got in [("x", x, dx)] + [(k, w, grads[k]) for k, w in layer.params.items()]:
        numeric = np.empty(at.shape)
        for i in np.ndindex(at.shape):
            high, low = at.copy(), at.copy()
            high[i] += 1e-3  # the loss is linear in each entry, so a large step costs nothing
            low[i] -= 1e-3
            numeric[i] = (loss(name, high) - loss(name, low)) / 2e-3
        assert np.abs(numeric).max(initial=0) > 1e-2 or 0 in leading
        np.testing.assert_allclose(got, numeric, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("bias", [True, False])
def test_against_pytorch(dtype, bias):
    torch = pytest.importorskip("torch")
    layer = Dense(19, 7, bias, dtype, seed=3)
    linear = torch.nn.Linear(19, 7, bias, dtype=getattr(torch, dtype.name))
    linear.load_state_dict({k: torch.tensor(w) for k, w in layer.params.items()})
    x, dy = draw((6, 5, 19), dtype), draw((6, 5, 7), dtype, 1)
    tx = torch.tensor(x, requires_grad=True)
    ty = linear(tx)
    ty.backward(torch.tensor(dy))
    y, tape = layer.forward(x)
    dx, grads = layer.backward(tape, dy)
    pairs = [(y, ty.detach()), (dx, tx.grad)] + [(grads[k], w.grad) for k, w in linear.named_parameters()]
    assert len(pairs) == 4 if bias else 3
    for got, expected in pairs:
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected.numpy(), rtol=RTOL[dtype], atol=RTOL[dtype])
    layer.load_params(linear.state_dict())  # PyTorch's names, shapes and order
    np.testing.assert_array_equal(layer(x), y)


def test_initialisation_is_pytorchs():
    """Uniform in +-1/sqrt(in): bounds, spread and centre, which a normal or a wider draw would miss."""
    params = Dense(64, 500, seed=0).params
    for w in params.values():
        assert np.abs(w).max() <= 0.125 and np.abs(w).max() > 0.12
        assert w.std() == pytest.approx(0.125 / 3**0.5, rel=0.05) and abs(w.mean()) < 0.01
    assert {k: w.shape for k, w in params.items()} == {"weight": (500, 64), "bias": (500,)}
    same, other, fresh = Dense(64, 500, seed=0).params, Dense(64, 500, seed=1).params, Dense(64, 500).params
    assert np.array_equal(same["weight"], params["weight"])
    assert not np.array_equal(other["weight"], params["weight"])
    assert not np.array_equal(fresh["weight"], params["weight"])
    assert list(Dense(2, 3, bias=False).params) == ["weight"]


def test_tape_keeps_its_own_x_and_serves_again():
    layer, x, dy = Dense(3, 2, seed=0), draw((4, 3), np.float32), draw((4, 2), np.float32)
    _, tape = layer.forward(x)
    first = layer.backward(tape, dy)
    x[:] = np.nan
    first[0][:] = first[1]["weight"][:] = 7
    again, third = layer.backward(tape, dy), layer.backward(tape, dy)
    for a, b in [(again[0], third[0]), *zip(again[1].values(), third[1].values(), strict=True)]:
        assert np.isfinite(a).all() and np.array_equal(a, b) and not np.shares_memory(a, b)


def test_tape_of_other_weights_is_refused():
    layer, dy = Dense(3, 2, seed=0), np.ones((4, 2), np.float32)
    _, tape = layer.forward(np.ones((4, 3), np.float32))
    grads = {k: np.zeros_like(w) for k, w in layer.params.items()}
    for other in (copy.deepcopy(layer), Dense(3, 2, seed=0)):
        with pytest.raises(ValueError, match="tape: "):
            other.backward(tape, dy, grads)
    with layer.edit() as p:
        p["weight"] *= 0.5
    with pytest.raises(ValueError, match="tape: "):
        layer.backward(tape, dy, grads)
    assert not any(g.any() for g in grads.values())
    with pytest.raises(TypeError, match="tape: expected what forward returned, got NoneType"):
        layer.backward(None, dy)


def test_grads_accumulate():
    layer, x, dy = Dense(3, 2, dtype=np.float64, seed=0), draw((4, 3)), draw((4, 2))
    _, tape = layer.forward(x)
    dx, new = layer.backward(tape, dy)
    grads = {k: np.full(w.shape, 10.0) for k, w in layer.params.items()}
    arrays = dict(grads)
    dx_again, returned = layer.backward(tape, dy, grads)
    assert returned is grads and np.array_equal(dx, dx_again)
    for k, g in grads.items():
        assert g is arrays[k]
        np.testing.assert_allclose(g, new[k] + 10)


@pytest.mark.parametrize("dtype", RTOL)
def test_bias_gradient_does_not_drift_over_long_sums(dtype):
    layer = Dense(1, 1, dtype=dtype)
    _, tape = layer.forward(np.zeros((2**18, 1), dtype))
    _, grads = layer.backward(tape, np.full((2**18, 1), 0.1, dtype))
    assert grads["bias"][0] == pytest.approx(2**18 * float(dtype.type(0.1)), rel=1e-6)


def test_weights_are_read_only_and_change_at_once():
    layer, x = Dense(3, 2, dtype=np.float64, seed=0), draw((4, 3))
    y, before = layer(x), layer.params["weight"].copy()
    with pytest.raises(ValueError):
        layer.params["weight"][0, 0] = 1
    with pytest.raises(TypeError):
        layer.params["weight"] = before
    with layer.edit() as p:
        p["weight"] *= 2
        p["bias"][:] = 0
        assert np.array_equal(layer(x), y)
    np.testing.assert_allclose(layer(x), x @ (2 * before).T)
    with pytest.raises(ValueError, match="bias"):
        layer.load_params({"weight": before, "bias": [np.nan, 0]})
    np.testing.assert_allclose(layer(x), x @ (2 * before).T)


@pytest.mark.parametrize("bias", [True, False])
def test_copies(bias):
    layer, x = Dense(3, 2, bias, seed=0), draw((4, 3), np.float32)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.astype(np.float32)):
        assert np.array_equal(other(x), y) and repr(other) == repr(layer)
        with other.edit() as p:
            p["weight"] += 1
        assert np.array_equal(layer(x), y) and not np.array_equal(other(x), y)
    wide = layer.astype(np.float64)
    assert wide.dtype == np.float64 and type(wide) is Dense
    assert all(w.dtype == np.float64 and np.array_equal(w, layer.params[k]) for k, w in wide.params.items())
    np.testing.assert_allclose(wide(x.astype(np.float64)), y, rtol=1e-5, atol=1e-6)
    with wide.edit() as p:
        p["weight"][0, 0] = 1e300
    with pytest.raises(ValueError, match="weight: expected finite values"):
        wide.astype(np.float32)


def test_settings_can_be_read_and_are_fixed():
    layer = Dense(3, 2, False)
    assert (layer.in_features, layer.out_features, layer.bias, layer.dtype) == (3, 2, False, np.float32)
    for name in ("in_features", "out_features", "bias", "dtype"):
        with pytest.raises(AttributeError, match=name):
            setattr(copy.deepcopy(layer), name, 4)
    assert repr(layer) == "Dense(3, 2, bias=False)" and repr(layer.astype("f8"))[-18:] == ", dtype='float64')"


def test_inputs_may_be_strided_read_only_lists_or_integers():
    layer = Dense(3, 2, dtype=np.float64, seed=0)
    x = draw((3, 5, 4)).T
    x.flags.writeable = False
    np.testing.assert_allclose(layer(x), layer(np.ascontiguousarray(x)), rtol=1e-13)
    np.testing.assert_array_equal(layer([1, 2, 3]), layer(np.array([1.0, 2.0, 3.0])))
    np.testing.assert_array_equal(layer(np.arange(3)), layer([0.0, 1.0, 2.0]))


def test_nan_and_infinity_travel_without_warnings(recwarn):
    layer = Dense(2, 1, dtype=np.float64)
    layer.load_params({"weight": [[1, -1]], "bias": [0]})
    y, tape = layer.forward([[np.inf, 1.0], [np.inf, np.inf], [np.nan, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(y[:, 0], [np.inf, np.nan, np.nan, 1])
    layer.backward(tape, np.full((4, 1), np.inf))
    assert not recwarn.list


X = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((0, 2), ValueError, "in_features: expected 1 to 16777216, got 0"),
        ((3.0, 2), TypeError, "in_features: expected an integer"),
        ((3, -1), ValueError, "out_features"),
        ((3, True), TypeError, "out_features"),
        ((3, 2, 1), TypeError, "bias: expected True or False"),
        ((3, 2, True, np.float16), TypeError, "dtype: expected float32 or float64"),
        ((3, 2, True, None), TypeError, "dtype"),
        ((3, 2, True, np.float32, -1), ValueError, "seed"),
        ((3, 2, True, np.float32, 0.5), TypeError, "seed"),
    ],
)
def test_constructor_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        Dense(*arguments)


def test_a_short_call_keeps_the_lock_of_the_interpreter(monkeypatch):
    """Threads are asked for where it is released: from a million multiplications on, and a head of 2000 classes has
    8 for each of them. Beside a busy thread of Python a call would else wait 5 ms for the lock."""
    asked = []
    monkeypatch.setattr(_config, "get_num_threads", lambda: asked.append(True) or 1)
    dense = Dense(8, 2000, seed=0)
    dense(np.ones((60, 8), np.float32))
    assert not asked
    dense(np.ones((63, 8), np.float32))
    assert asked


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize(
    "x, error, words",
    [
        (np.zeros((4, 2), np.float32), ValueError, r"x: expected shape \(4, 3\), got \(4, 2\)"),
        (np.float32(1), ValueError, "x: expected"),
        (np.zeros((4, 3)), TypeError, "x: expected dtype float32, got float64"),
        (np.zeros((4, 3), bool), TypeError, "x: "),
        (None, (TypeError, ValueError), "x: "),
        (np.ndarray, TypeError, "x: expected dtype float32, got object"),
        ([[1.0], [1.0, 2.0]], ValueError, "x: "),
    ],
)
def test_input_errors(call, x, error, words):
    with pytest.raises(error, match=words):
        getattr(Dense(3, 2), call)(x)


@pytest.mark.parametrize(
    "dy, grads, error, words",
    [
        (np.zeros((4, 3), np.float32), "good", ValueError, r"dy: expected shape \(4, 2\), got \(4, 3\)"),
        (np.zeros((4, 2)), "good", TypeError, "dy: expected dtype float32"),
        (None, "good", (TypeError, ValueError), "dy: "),
        ("ones", {}, ValueError, "grads: "),
        ("ones", 3, TypeError, "grads: "),
        ("ones", {"weight": np.zeros((2, 3), np.float32)}, ValueError, "grads: .*bias"),
        ("ones", {"weight": np.zeros((2, 3)), "bias": np.zeros(2, np.float32)}, TypeError, "grads: weight"),
        ("ones", {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}, ValueError, "grads: bias"),
    ],
)
def test_backward_errors_change_nothing(dy, grads, error, words):
    layer = Dense(3, 2, seed=0)
    _, tape = layer.forward(X + 1)
    dy = np.ones((4, 2), np.float32) if isinstance(dy, str) else dy
    if grads == "good":
        grads = {k: np.zeros_like(w) for k, w in layer.params.items()}
    with pytest.raises(error, match=words):
        layer.backward(tape, dy, grads)
    assert not isinstance(grads, dict) or not any(g.any() for g in grads.values())


def test_grads_may_not_share_memory():
    layer = Dense(2, 2, seed=0)
    _, tape = layer.forward(np.ones((2, 2), np.float32))
    buffer = np.zeros(6, np.float32)
    layer.backward(tape, np.ones((2, 2), np.float32), {"weight": buffer[:4].reshape(2, 2), "bias": buffer[4:]})
    with pytest.raises(ValueError, match="overlaps"):
        layer.backward(tape, np.ones((2, 2), np.float32), {"weight": buffer[:4].reshape(2, 2), "bias": buffer[2:4]})


@pytest.mark.parametrize("sizes", [(256, 1000), (128, 2000), (64, 1100), (40, 9)], ids=str)
def test_the_threads_of_blas_change_no_bits(sizes):
    """However large the weight is: see _blocks."""
    code = f"""
        import zlib, numpy as np, elman
        rng = np.random.default_rng(0)
        x, y = (rng.standard_normal((200, n)).astype(np.float32) for n in {sizes})
        dense = elman.Dense(*{sizes}, seed=1)
        out, tape = dense.forward(x)
        dx, grads = dense.backward(tape, y)
        print([zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in (out, dx, *grads.values())])
    """
    assert output_of(code) == output_of(code, environment={"OPENBLAS_NUM_THREADS": "2"})
