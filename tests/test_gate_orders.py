"""Orders of gates: literal positions, round trips of every row, and other systems' loops that equal elman's layers."""

import numpy as np
import pytest

import elman
from elman.gate_orders import ORDERS, from_order, to_order

ROWS = [(system, cell) for system, orders in ORDERS.items() for cell in orders]

# cells.md 2.1 as it is written there: elman's block k is the system's block perm[k].
PERMUTATIONS = {
    "lstm": {
        "elman": "0123",
        "pytorch": "0123",
        "keras": "0123",
        "onnx": "0231",
        "onednn": "0123",
        "tflite": "0123",
        "haste": "0213",
        "flashrnn": "0123",
        "flax": "0123",
        "equinox": "0123",
        "thinc": "1032",
        "dynet": "0132",
        "rtneural": "0123",
        "ncnn": "0132",
        "openvino": "1023",
    },
    "gru": {
        "elman": "012",
        "pytorch": "012",
        "keras": "102",
        "onnx": "102",
        "onednn": "102",
        "haste": "102",
        "flashrnn_W": "012",
        "flashrnn_R": "120",
        "flax": "012",
        "equinox": "012",
        "dynet": "102",
        "rtneural": "102",
        "rnnoise": "102",
        "ncnn": "012",
        "openvino": "102",
        "lyra": "012",
        "rust-lstm": "012",
    },
    "gru_bias": {"elman": "0123", "onednn": "1023", "flashrnn": "1230", "ncnn": "0123"},
    "peephole": {"elman": "012", "onnx": "021", "onednn": "012", "tflite": "012"},
}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("cell", PERMUTATIONS)
def test_positions(cell):
    """Which of the system's blocks comes where; of the signs only z's in the two systems that mix the other way."""
    found = {}
    for system in (system for system, orders in ORDERS.items() if cell in orders):
        G = len(ORDERS[system][cell])
        blocks = from_order(np.arange(1.0, G + 1), cell, system)
        found[system] = "".join(str(int(abs(k)) - 1) for k in blocks)
        signs = [1, -1, 1] if cell == "gru" and system in ("dynet", "rust-lstm") else [1] * G
        np.testing.assert_array_equal(np.sign(blocks), signs, err_msg=system)
    assert found == PERMUTATIONS[cell]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("system", "cell"), ROWS)
def test_round_trips(system, cell, dtype):
    G, H = len(ORDERS[system][cell]), 3
    rng = np.random.default_rng(1)
    for shape, axis in [((G * H, 5), 0), ((5, G * H), 1), ((5, G * H), -1), ((G * H,), 0), ((2, 5, G, H), 2)]:
        a = rng.standard_normal(shape).astype(dtype)
        before = a.copy()
        for there, back in [(to_order, from_order), (from_order, to_order)]:
            moved = there(a, cell, system, axis=axis)
            again = back(moved, cell, system, axis=axis)
            assert moved.shape == a.shape and moved.dtype == again.dtype == dtype
            np.testing.assert_array_equal(again, a)
            assert not np.shares_memory(moved, a) and not np.shares_memory(again, moved)
            assert np.array_equal(moved, a) == (ORDERS[system][cell] == ORDERS["elman"][cell])
        np.testing.assert_array_equal(a, before)


def test_directions_of_a_rotation():
    """An order that is not its own inverse tells the two functions apart."""
    np.testing.assert_array_equal(from_order(np.array([1.0, 2, 3, 4]), "lstm", "onnx"), [1, 3, 4, 2])  # i o f g
    np.testing.assert_array_equal(to_order(np.array([1.0, 2, 3, 4]), "lstm", "onnx"), [1, 4, 2, 3])  # i f g o


def test_blocks_of_more_than_one_row():
    columns = np.array([[1.0, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])  # z z r r n n
    expected = [[3, 4, 1, 2, 5, 6], [9, 10, 7, 8, 11, 12]]
    np.testing.assert_array_equal(from_order(columns, "gru", "keras", axis=1), expected)
    np.testing.assert_array_equal(from_order(columns.T, "gru", "keras"), np.transpose(expected))
    expected = [[3, 4, -1, -2, 5, 6], [9, 10, -7, -8, 11, 12]]
    np.testing.assert_array_equal(from_order(columns, "gru", "dynet", axis=1), expected)


def test_containers():
    kernel, bias = np.arange(12.0).reshape(2, 6), np.arange(6.0)
    expected = from_order(kernel, "gru", "onnx", axis=-1), from_order(bias, "gru", "onnx")
    as_dict = from_order({"kernel": kernel, "bias": bias}, "gru", "onnx", axis=-1)
    as_tuple = from_order((kernel, bias), "gru", "onnx", axis=-1)
    as_list = from_order([kernel, bias], "gru", "onnx", axis=-1)
    assert type(as_dict) is dict and type(as_tuple) is tuple and type(as_list) is list
    assert list(as_dict) == ["kernel", "bias"]
    for found in (as_dict.values(), as_tuple, as_list):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def problem(G, H=4, I=3, T=6, B=2):
    rng = np.random.default_rng(7)
    weights = {"W": rng.standard_normal((G * H, I)), "R": rng.standard_normal((G * H, H))}
    biases = {"b": rng.standard_normal(G * H), "b_hh": rng.standard_normal(G * H)}
    return rng.standard_normal((T, B, I)), rng.standard_normal((B, H)), rng.standard_normal((B, H)), weights | biases


def load(layer, p):
    layer.load_params({f"{name}_l0": a for name, a in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), p)})
    return layer


@pytest.mark.parametrize("system", ["onnx", "thinc", "haste", "dynet", "openvino"])
def test_an_lstm_in_the_order_of_its_system(system):
    """A loop that cuts the blocks as the system has them gives what elman gives with the converted weights."""
    x, h, c, p = problem(4)
    layer = load(elman.LSTM(3, 4, dtype=np.float64), from_order(p, "lstm", system).values())
    y, state = layer(x, (h[None], c[None]))
    for t in range(len(x)):
        blocks = np.split(x[t] @ p["W"].T + h @ p["R"].T + p["b"] + p["b_hh"], 4, axis=1)
        if system == "onnx":
            i, o, f, g = blocks
        elif system == "thinc":
            f, i, o, g = blocks
        elif system == "haste":
            i, g, f, o = blocks
        elif system == "dynet":
            i, f, o, g = blocks
        else:
            f, i, g, o = blocks
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.c[0], c, rtol=0, atol=1e-13)


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_onnxruntime(operator):
    """elman's weights in ONNX' order, peepholes too, give its runtime's outputs (float32 only)."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    x = np.random.default_rng(3).standard_normal((6, 2, 3)).astype(np.float32)
    cell = operator.lower()
    layer = elman.LSTM(3, 4, seed=1, peephole=True) if cell == "lstm" else elman.GRU(3, 4, seed=1)
    with layer.edit() as params:
        for a in params.values():
            a *= 3  # so that a gate in a wrong place shows
    w = {name.removesuffix("_l0"): a for name, a in layer.params.items()}
    peepholes = [w.pop(f"weight_c{gate}") for gate in "ifo" if cell == "lstm"]
    w = to_order(w, cell, "onnx")
    feeds = {"X": x, "W": w["weight_ih"][None], "R": w["weight_hh"][None]}
    feeds["B"] = np.concatenate([w["bias_ih"], w["bias_hh"]])[None]
    names = list(feeds)
    if peepholes:
        feeds["P"] = to_order(np.concatenate(peepholes), "peephole", "onnx")[None]
        names += ["", "", "", "P"]
    chosen = {} if cell == "lstm" else {"linear_before_reset": 1}
    node = onnx.helper.make_node(operator, names, ["Y"], hidden_size=4, **chosen)
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(name, kind, a.shape) for name, a in feeds.items()]
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_tensor_value_info("Y", kind, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (Y,) = session.run(None, feeds)
    np.testing.assert_allclose(layer(x)[0], Y[:, 0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("system", ["dynet", "rust-lstm"])
def test_a_gru_that_mixes_the_other_way(system):
    """h' = (1 - z) * h + z * n, reset before the product, as both of them compute it."""
    x, h, _, p = problem(3)
    layer = load(elman.GRU(3, 4, dtype=np.float64, reset_after=False), from_order(p, "gru", system).values())
    y, _ = layer(x, h[None])
    order = "z r n" if system == "dynet" else "r z n"
    W, R, b, b_hh = (dict(zip(order.split(), np.split(a, 3))) for a in p.values())
    for t in range(len(x)):
        z, r = (sigmoid(x[t] @ W[k].T + h @ R[k].T + b[k] + b_hh[k]) for k in "zr")
        n = np.tanh(x[t] @ W["n"].T + (r * h) @ R["n"].T + b["n"] + b_hh["n"])
        h = (1 - z) * h + z * n
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-13)


def test_a_gru_with_kernels_in_columns_and_keras_biases():
    """Keras' GRU with reset_after=True: z, r, h in columns, bias (2, 3H)."""
    x, h, _, p = problem(3)
    kernel, recurrent, bias = p["W"].T, p["R"].T, np.stack([p["b"], p["b_hh"]])
    found = from_order([kernel, recurrent, bias], "gru", "keras", axis=-1)
    layer = load(elman.GRU(3, 4, dtype=np.float64), [found[0].T, found[1].T, *found[2]])
    y, _ = layer(x, h[None])
    for t in range(len(x)):
        xz, xr, xn = np.split(x[t] @ kernel + bias[0], 3, axis=1)
        hz, hr, hn = np.split(h @ recurrent + bias[1], 3, axis=1)
        z = sigmoid(xz + hz)
        h = z * h + (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn)
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-13)


def test_a_gru_with_four_biases_and_two_orders():
    """FlashRNN: W in r, z, n, R in n, r, z, the bias in hn, r, z, n."""
    x, h, _, p = problem(3)
    H = 4
    b = np.concatenate([p["b_hh"][:H], p["b"]])
    weight_ih, weight_hh = from_order(p["W"], "gru", "flashrnn_W"), from_order(p["R"], "gru", "flashrnn_R")
    bias = from_order(b, "gru_bias", "flashrnn")
    bias_hh = np.concatenate([np.zeros(2 * H), bias[3 * H :]])
    layer = load(elman.GRU(3, H, dtype=np.float64), [weight_ih, weight_hh, bias[: 3 * H], bias_hh])
    y, _ = layer(x, h[None])
    for t in range(len(x)):
        xr, xz, xn = np.split(x[t] @ p["W"].T, 3, axis=1)
        hn, hr, hz = np.split(h @ p["R"].T, 3, axis=1)
        b_hn, b_r, b_z, b_n = np.split(b, 4)
        z = sigmoid(xz + hz + b_z)
        h = z * h + (1 - z) * np.tanh(xn + b_n + sigmoid(xr + hr + b_r) * (hn + b_hn))
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-13)


@pytest.mark.parametrize("convert", [from_order, to_order])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((np.zeros(4), "rnn", "onnx"), {}, ValueError, "cell: expected one of 'lstm', 'gru', .* got 'rnn'"),
        ((np.zeros(4), "lstm", "torch"), {}, ValueError, "system: expected one of 'elman', 'pytorch', .* got 'torch'"),
        ((np.zeros(3), "gru", "thinc"), {}, ValueError, "system: expected .* got 'thinc'"),
        ((np.zeros(3), "gru", "flashrnn"), {}, ValueError, "'flashrnn_W', 'flashrnn_R', .* got 'flashrnn'"),
        ((np.zeros((6, 4)), "lstm", "onnx"), {}, ValueError, r"weights: .* multiple of 4 .*axis 0, got shape \(6, 4\)"),
        ((np.zeros((0, 4)), "lstm", "onnx"), {}, ValueError, r"weights: expected .* got shape \(0, 4\)"),
        (({"b": np.zeros(8), "W": np.zeros(7)}, "lstm", "onnx"), {}, ValueError, r"weights\['W'\]: expected"),
        (((np.zeros(8), np.zeros(7)), "lstm", "onnx"), {}, ValueError, r"weights\[1\]: expected"),
        ((np.zeros(4), "lstm", "onnx"), {"axis": 1}, ValueError, "axis: expected an axis of weights, .* 1, got 1"),
        ((np.zeros(4), "lstm", "onnx"), {"axis": -2}, ValueError, "axis: expected an axis of weights, .* got -2"),
        ((np.zeros(4), "lstm", "onnx"), {"axis": True}, TypeError, "axis: expected an integer, got True"),
        ((np.zeros(4), "lstm", "onnx"), {"axis": 0.0}, TypeError, "axis: expected an integer, got 0.0"),
        ((np.float64(1), "lstm", "onnx"), {}, ValueError, "axis: expected an axis of weights, which has 0, got 0"),
        ((np.zeros(4, np.float16), "lstm", "onnx"), {}, TypeError, "weights: expected float32 or float64, got float16"),
        ((None, "lstm", "onnx"), {}, TypeError, "weights: expected float32 or float64, got object"),
    ],
)
def test_errors(convert, arguments, options, error, words):
    with pytest.raises(error, match=words):
        convert(*arguments, **options)


def test_the_table_is_read_only():
    with pytest.raises(TypeError):
        ORDERS["mine"] = {}
    with pytest.raises(TypeError):
        ORDERS["onnx"]["lstm"] = ("i", "f", "g", "o")
