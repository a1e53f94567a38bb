"""Activations, clipping, coupled gates and peepholes: each one and together.

tests/test_reference.py and test_kernels.py have one cell of each kind in their lists; here are all activations in all
places, what the options mean (against formulas written once more), and what is refused.
"""

import itertools
import math

import numpy as np
import pytest
from helpers import CELLS, assert_same, problem
from test_kernels import check_with_some_seed, isa  # noqa: F401  (a fixture)
from test_reference import numerical_gradients

import elman
from elman import functional as F
from elman import reference

ENTRIES = [
    "tanh", "sigmoid", "relu", ("affine", 0.5, 0.125), "leakyrelu", ("leakyrelu", -0.25), ("thresholdedrelu", 0.25),
    ("thresholdedrelu", -0.5), ("scaledtanh", 1.5, 0.5), "hardsigmoid", ("hardsigmoid", -0.5, 0.25), ("elu", 0.5),
    ("elu", -0.75), "softsign", "softplus",
]  # fmt: skip
BY_FORMULA = {
    "tanh": lambda x: math.tanh(x),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0),
    "affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "leakyrelu": lambda x, alpha=0.01: x if x >= 0 else alpha * x,
    "thresholdedrelu": lambda x, alpha=1.0: x if x > alpha else 0,
    "scaledtanh": lambda x, alpha=1.0, beta=1.0: alpha * math.tanh(beta * x),
    "hardsigmoid": lambda x, alpha=0.2, beta=0.5: max(0, min(1, alpha * x + beta)),
    "elu": lambda x, alpha=1.0: x if x >= 0 else alpha * (math.exp(x) - 1),
    "softsign": lambda x: x / (1 + abs(x)),
    "softplus": lambda x: math.log(1 + math.exp(x)),
}
BARE = [name for name in BY_FORMULA if name not in ENTRIES]  # with the alpha and beta that ONNX gives them
T, B, I, H = 4, 3, 2, 5
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=str)
each_backend = pytest.mark.parametrize("module", [reference, F], ids=["reference", "compiled"])


def cell_of(name, **options):
    cell = CELLS[name]
    return cell._replace(options=options, units=cell.units if options.pop("peephole", True) else ())


def values(module, entry, x):
    """phi(x) by an RNN whose weights hand on its input."""
    one = [(np.ones((1, 1), x.dtype), np.zeros((1, 1), x.dtype), None, None)]
    return module.rnn_forward(x.reshape(1, -1, 1), None, one, nonlinearity=entry)[0].ravel()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("entry", ENTRIES + BARE, ids=str)
def test_values_of_every_activation(isa, entry, dtype):  # noqa: F811
    x = np.concatenate([np.linspace(-6, 6, 241), [1e-6, -1e-6, 3e-3, -3e-3]]).astype(dtype)
    name, *numbers = (entry,) if isinstance(entry, str) else entry
    expected = [BY_FORMULA[name](float(value), *numbers) for value in x]
    tolerance = {"float32": 3e-7, "float64": 1e-15}[dtype]
    for module in (reference, F):
        np.testing.assert_allclose(values(module, entry, x), expected, rtol=4 * tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_entry
def test_nan_and_infinity_go_through_every_activation(isa, entry, dtype):  # noqa: F811
    x = np.array([np.nan, np.inf, -np.inf, 0], dtype)
    got, expected = values(F, entry, x), values(reference, entry, x)
    assert np.isnan(expected[0])
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps)


@each_entry
def test_slopes_by_differences(entry):
    """Of the reference, in all three places of an LSTM at once, with and without clipping. Two steps: what has no bound
    grows fast."""
    for clip in (None, 0.75):
        p = problem(cell_of("lstm-any", activations=(entry,) * 3, clip=clip), 2, B, I, H, seed=3)
        expected = numerical_gradients(reference, p)
        assert np.abs(expected["weight_ih[0]"]).max() > 1e-3
        assert_same(p.backward(reference, p.forward(reference)[2]), expected, 1e-7)


@pytest.mark.parametrize("entry, other", list(zip(ENTRIES, ENTRIES[4:] + ENTRIES[:4], strict=True)), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_with_every_activation(isa, entry, other, dtype):  # noqa: F811
    """In every place of every cell."""
    for name, options in (
        ("rnn-any", {"nonlinearity": entry}),
        ("gru-after-any", {"activations": (entry, other)}),
        ("gru-before-any", {"activations": (other, entry), "reset_after": False}),
        ("lstm-any", {"activations": (entry, other, entry)}),
        ("lstm-any", {"activations": (other, entry, other), "peephole": False}),
    ):
        cell = cell_of(name, **options, clip=1.5)
        check_with_some_seed(lambda seed, cell=cell: problem(cell, 6, 5, 3, 19, 2, dtype, seed=seed), 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_entry
def test_slopes_of_the_kernels(isa, entry, dtype):  # noqa: F811
    """Over all that an activation does: where it saturates, beside its kinks, and far out."""
    x = np.concatenate([np.linspace(-7, 7, 280), [-30, 30]]).astype(dtype).reshape(1, -1, 1)
    one = [(np.ones((1, 1), dtype), np.zeros((1, 1), dtype), None, None)]
    slopes = []
    for module in (F, reference):
        _, _, tape = module.rnn_forward(x, None, one, nonlinearity=entry)
        slopes.append(module.rnn_backward(tape, np.ones_like(x))[0])
    tolerance = {"float32": 4e-7, "float64": 1e-15}[dtype]  # 1 - y^2 has that much rounding
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=10 * tolerance, atol=tolerance)


COMBINATIONS = list(
    itertools.product((None, "f=1-i", "i=1-f"), (None, 0.75), (None, 0.5), (True, False), (None, [6, 0, 3, 1]))
)


@pytest.mark.parametrize("coupled, clip, cell_clip, peephole, lengths", COMBINATIONS, ids=str)
def test_every_combination_of_an_lstm(isa, coupled, clip, cell_clip, peephole, lengths):  # noqa: F811
    options = {"coupled": coupled, "clip": clip, "cell_clip": cell_clip, "peephole": peephole}
    cell = cell_of("lstm-any", **options)
    reset = np.random.default_rng(1).random((6, 4)) < 0.2
    check_with_some_seed(lambda seed: problem(cell, 6, 4, 3, 18, 2, "float32", True, lengths, reset, seed), 1)


@pytest.mark.parametrize("coupled, clip, cell_clip, peephole, lengths", COMBINATIONS[::3], ids=str)
def test_gradients_of_combinations_by_differences(coupled, clip, cell_clip, peephole, lengths):
    cell = cell_of("lstm-any", coupled=coupled, clip=clip, cell_clip=cell_clip, peephole=peephole)
    p = problem(cell, 6, 4, I, 3, lengths=lengths, seed=5)
    assert_same(p.backward(reference, p.forward(reference)[2]), numerical_gradients(reference, p), 1e-7)


# --------------------------------------------------------------------------------------------------- what they mean


def lstm_by_formula(w, x, h, c, coupled=None, clip=np.inf, cell_clip=np.inf):
    W, R, b, rb, p_i, p_f, p_o = w
    a = [part for part in np.split(W @ x + b + R @ h + rb, 4)]
    sigmoid, limited = (lambda z: 1 / (1 + np.exp(-z))), (lambda z: np.minimum(np.maximum(z, -clip), clip))
    i, f = sigmoid(limited(a[0] + p_i * c)), sigmoid(limited(a[1] + p_f * c))
    f = 1 - i if coupled == "f=1-i" else f
    i = 1 - f if coupled == "i=1-f" else i
    c = np.minimum(np.maximum(f * c + i * np.tanh(limited(a[2])), -cell_clip), cell_clip)
    return sigmoid(limited(a[3] + p_o * c)) * np.tanh(c), c


@pytest.mark.parametrize(
    "options", [{}, {"coupled": "f=1-i"}, {"coupled": "i=1-f"}, {"clip": 0.5}, {"cell_clip": 0.25}]
)
@each_backend
def test_lstm_as_in_the_formulas(module, options):
    p = problem(cell_of("lstm-any", **options), 3, 1, I, H, seed=2)
    h, c = p.state[0][0, 0], p.state[1][0, 0]
    y, _, _ = p.forward(module)
    for t in range(3):
        h, c = lstm_by_formula(p.weights[0], p.x[t, 0], h, c, **options)
        np.testing.assert_allclose(y[t, 0], h, rtol=1e-13)
    plain = problem(cell_of("lstm-any"), 3, 1, I, H, seed=2).forward(module)[0]
    assert not options or np.abs(plain - y).max() > 1e-3, "the option does something"


@pytest.mark.parametrize("coupled, unused", [("f=1-i", slice(H, 2 * H)), ("i=1-f", slice(0, H))])
@each_backend
def test_the_gate_that_is_no_more_has_no_effect(module, coupled, unused):
    p = problem(cell_of("lstm-any", coupled=coupled), T, B, I, H)
    y, _, tape = p.forward(module)
    gradients = p.backward(module, tape)
    for name in ("weight_ih[0]", "weight_hh[0]", "bias_ih[0]"):
        assert not gradients[name][unused].any() and gradients[name].any()
    for w in p.weights[0][:4]:
        w[unused] = 7
    np.testing.assert_array_equal(p.forward(module)[0], y)


@each_backend
def test_defaults_are_the_plain_cells(module):
    """Asked for by name, and with a clip that clips nothing: the same numbers."""
    for name, options in (
        ("lstm", {"activations": ["sigmoid", "tanh", "tanh"], "clip": 1e30}),
        ("gru-after", {"activations": ["sigmoid", "tanh"], "clip": 1e30}),
        ("gru-before", {"activations": ["sigmoid", "tanh"], "clip": 1e30, "reset_after": False}),
        ("rnn-relu", {"nonlinearity": "relu", "clip": 1e30}),
    ):
        plain = problem(CELLS[name], T, B, I, H, 2)
        same = problem(CELLS[name]._replace(options=options), T, B, I, H, 2)
        assert_same(same.results(module), plain.results(module), 1e-14)


# ---------------------------------------------------------------------------------------------------------- the layers


LAYERS = [
    elman.LSTM(3, 6, 2, peephole=True, coupled="i=1-f", clip=2, cell_clip=1.5, bidirectional=True, seed=1),
    elman.LSTM(3, 6, bias=False, peephole=True, activations=("hardsigmoid", "softsign", ("elu", 0.5)), seed=1),
    elman.GRU(3, 6, 2, activations=(("hardsigmoid", 0.25, 0.5), "relu"), seed=1),
    elman.GRU(3, 6, reset_after=False, clip=1.5, seed=1),
    elman.RNN(3, 6, 2, activations=(("leakyrelu", 0.1),), bidirectional=True, seed=1),
    elman.RNN(3, 6, nonlinearity="softplus", clip=1, seed=1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers_agree_with_the_reference(layer):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((7, 4, 3)), rng.standard_normal((7, 4, layer.hidden_size * (1 + layer.bidirectional)))
    settings = {name: getattr(layer, name) for name in ("num_layers", "bidirectional", "bias", *layer._cell_options)}
    settings |= {"peephole": True} if getattr(layer, "peephole", False) else {}
    slow = type(layer)(3, 6, **settings, dtype="float64", backend="reference")
    fast = layer.astype("float64")
    slow.load_params(dict(fast.params))
    assert list(slow.params) == list(layer.params)
    results = []
    for one in (fast, slow):
        y, state, tape = one.forward(x, lengths=[7, 2, 0, 5])
        dx, dstate, grads = one.backward(tape, dy)
        assert grads.keys() == one.params.keys()
        results.append({"y": y, "dx": dx, **grads})
        np.testing.assert_array_equal(one(x, lengths=[7, 2, 0, 5])[0], y)
    assert_same(results[0], results[1], 1e-12)
    unused = "weight_ci" if getattr(layer, "coupled", None) == "i=1-f" else "none"
    assert all(np.abs(results[0][name]).max() > 1e-4 for name in layer.params if not name.startswith(unused))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers_stream_the_same_bits(layer):
    if layer.bidirectional:
        return
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    y, _ = layer(x)
    state = layer.zero_state()
    np.testing.assert_array_equal(np.stack([layer.step(x_t, state) for x_t in x]), y)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_repr_makes_the_same_layer(layer):
    again = eval(repr(layer), {name: getattr(elman, name) for name in ("LSTM", "GRU", "RNN")})
    assert repr(again) == repr(layer)
    assert {n: a.shape for n, a in again.params.items()} == {n: a.shape for n, a in layer.params.items()}


def test_names_and_shapes_of_peepholes():
    layer = elman.LSTM(3, 6, peephole=True, bidirectional=True)
    names = [n for n in layer.params if "_c" in n]
    assert names == [f"weight_c{gate}_l0{way}" for way in ("", "_reverse") for gate in "ifo"]
    assert all(layer.params[n].shape == (6,) for n in names)


REFUSED = [
    (elman.LSTM, {"activations": "tanh"}, TypeError, "activations: expected one for each of gates, candidate, output"),
    (elman.LSTM, {"activations": ("tanh",)}, ValueError, "activations: expected 3"),
    (elman.LSTM, {"activations": ("sigmoid", "tan", "tanh")}, ValueError, "activations: candidate: expected one of"),
    (
        elman.LSTM,
        {"activations": ("sigmoid", ("tanh", 1), "tanh")},
        ValueError,
        "activations: candidate: expected nothing",
    ),
    (elman.LSTM, {"activations": ("sigmoid", ("elu", np.nan), "tanh")}, ValueError, "activations: candidate"),
    (elman.LSTM, {"activations": ("sigmoid", ("elu", np.inf), "tanh")}, ValueError, "activations: candidate"),
    (elman.LSTM, {"activations": ("sigmoid", ("elu", "1"), "tanh")}, TypeError, "activations: candidate"),
    (elman.LSTM, {"activations": (None, "tanh", "tanh")}, ValueError, "activations: gates"),
    (elman.LSTM, {"coupled": "f=i"}, ValueError, "coupled: expected one of 'f=1-i', 'i=1-f'"),
    (elman.LSTM, {"coupled": True}, ValueError, "coupled"),
    (elman.LSTM, {"clip": 0}, ValueError, "clip: expected above 0 and finite"),
    (elman.LSTM, {"clip": -1}, ValueError, "clip"),
    (elman.LSTM, {"clip": np.inf}, ValueError, "clip"),
    (elman.LSTM, {"clip": True}, TypeError, "clip"),
    (elman.LSTM, {"cell_clip": np.nan}, ValueError, "cell_clip"),
    (elman.LSTM, {"peephole": 1}, TypeError, "peephole"),
    (elman.GRU, {"activations": ("sigmoid", "tanh", "tanh")}, ValueError, "activations: expected 2"),
    (elman.RNN, {"nonlinearity": "tan"}, ValueError, "nonlinearity: expected one of"),
    (elman.RNN, {"nonlinearity": "relu", "activations": ("tanh",)}, ValueError, "activations: expected either"),
    (elman.RNN, {"activations": ("tanh", "tanh")}, ValueError, "activations: expected one"),
]


@pytest.mark.parametrize("kind, options, error, message", REFUSED, ids=str)
def test_wrong_options_are_refused(kind, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kind(3, 4, **options)


@each_backend
def test_packed_weights_go_with_their_options(module):
    p = problem(CELLS["lstm"], T, B, I, H)
    packed = module.lstm_pack(p.weights, clip=1.5)
    module.lstm_forward(p.x, None, packed, clip=1.5)
    with pytest.raises(ValueError, match="^weights: expected weights packed for"):
        module.lstm_forward(p.x, None, packed, clip=1.25)
    with pytest.raises(ValueError, match="^weights: expected weights packed for"):
        module.lstm_forward(p.x, None, packed)


@each_backend
def test_peepholes_are_all_or_none(module):
    p = problem(CELLS["lstm-any"], T, B, I, H, 2)
    with pytest.raises(TypeError, match=r"^weights\[0\]: expected .*weight_ci, weight_cf, weight_co"):
        module.lstm_forward(p.x, None, [p.weights[0][:6], p.weights[1]])
    with pytest.raises(TypeError, match=r"^weights\[1\]"):
        module.lstm_forward(p.x, None, [p.weights[0], p.weights[1][:4]])
    with pytest.raises(ValueError, match=r"^weights\[0\]: weight_co"):
        module.lstm_forward(p.x, None, [(*p.weights[0][:6], np.zeros(H + 1)), p.weights[1]])


@each_backend
def test_a_stack_has_peepholes_in_all_layers_or_in_none(module):
    without, with_them = (problem(CELLS[name], T, B, I, I).weights for name in ("lstm", "lstm-any"))
    for options in ({}, {"clip": 5}):
        for stack in ([without, with_them], [with_them, without]):
            state = (np.zeros((2, B, I)), np.zeros((2, B, I)))
            with pytest.raises(ValueError, match=r"^stack\[1\]: expected peepholes in all layers or in none"):
                module.lstm_step(np.ones((B, I)), state, stack, **options)
            assert not state[0].any()


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_beyond_floats_are_refused(value):
    with pytest.raises(ValueError, match="^clip"):
        elman.LSTM(3, 4, clip=value)
    with pytest.raises(ValueError, match="^activations"):
        elman.LSTM(3, 4, activations=("sigmoid", ("elu", value), "tanh"))
    with pytest.raises(ValueError, match="^activations"):
        elman.GRU(3, 4, activations=("sigmoid", ("elu", 1e300)))
