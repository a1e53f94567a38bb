"""Initialisers: their distributions by tests that can fail, orthogonality, fans, and `initialize` on every layer."""

import copy
import pickle

import numpy as np
import pytest

import elman
from elman import initializers
from elman.initializers import (
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    identity,
    initialize,
    orthogonal,
)

# (out, in, taps) -> the variance: the published one; fans as Keras' compute_fans, whose kernels are (taps, in, out)
VARIANCE = {
    glorot_uniform: lambda o, i, k: 2 / (i * k + o * k),
    glorot_normal: lambda o, i, k: 2 / (i * k + o * k),
    he_uniform: lambda o, i, k: 2 / (i * k),
    he_normal: lambda o, i, k: 2 / (i * k),
}
each_random = pytest.mark.parametrize("f", VARIANCE, ids=lambda f: f.__name__)
EVERY = [*VARIANCE, orthogonal(), orthogonal(2.0), identity(), identity(0.5)]


def standard_errors(f, shape):
    """How far the mean, the variance and the fourth moment of one draw are from what they should be."""
    a = f(shape, 0, dtype=np.float64).ravel()
    o, i, *taps = shape
    a /= np.sqrt(VARIANCE[f](o, i, int(np.prod(taps))))
    fourth, variance_of_fourth = (9 / 5, 144 / 25) if "uniform" in f.__name__ else (3, 96)
    expected = [(a, 0, 1), (a**2, 1, fourth - 1), (a**4, fourth, variance_of_fourth)]
    return [(values.mean() - mean) / np.sqrt(variance / a.size) for values, mean, variance in expected]


@each_random
@pytest.mark.parametrize("shape", [(400, 300), (50, 2000), (2000, 50), (60, 40, 50)])
def test_the_distribution(f, shape):
    """100 000 numbers: a variance off by 3 % is 6 standard errors away, normal for uniform more than a hundred."""
    assert max(map(abs, standard_errors(f, shape))) < 4


@each_random
def test_the_edge_of_the_distribution(f):
    """Uniform: within the published limit and close to it on both sides. Normal: not cut off."""
    o, i = 300, 400
    a = f((o, i), 3, dtype=np.float64)
    if "uniform" in f.__name__:
        limit = np.sqrt(6 / (o + i)) if f is glorot_uniform else np.sqrt(6 / i)
        assert 0.999 * limit < a.max() <= limit and -limit <= a.min() < -0.999 * limit
    else:
        outside = (np.abs(a) > 2 * np.sqrt(VARIANCE[f](o, i, 1))).mean()
        assert outside == pytest.approx(0.0455, rel=0.1)


@each_random
def test_out_and_in_are_not_mixed_up(f):
    """A wide matrix and a tall one: alike for Glorot, not for He, whose fan is the input."""
    wide, tall = f((10, 1000), 0).std(), f((1000, 10), 0).std()
    assert wide / tall == pytest.approx(1 if "glorot" in f.__name__ else 0.1, rel=0.05)


@each_random
@pytest.mark.parametrize("shape", [(30, 20), (8, 6, 5)])
def test_against_pytorch(f, shape):
    """The limit or the standard deviation that torch.nn.init takes from the same shape."""
    torch = pytest.importorskip("torch")
    theirs = {
        glorot_uniform: torch.nn.init.xavier_uniform_,
        glorot_normal: torch.nn.init.xavier_normal_,
        he_uniform: lambda a: torch.nn.init.kaiming_uniform_(a, nonlinearity="relu"),
        he_normal: lambda a: torch.nn.init.kaiming_normal_(a, nonlinearity="relu"),
    }[f]
    torch.manual_seed(0)
    reference = np.stack([theirs(torch.empty(*shape, dtype=torch.float64)).numpy() for _ in range(200)])
    ours = np.stack([f(shape, seed, dtype=np.float64) for seed in range(200)])
    assert ours.std() == pytest.approx(reference.std(), rel=0.02)
    if "uniform" in f.__name__:
        assert np.abs(ours).max() == pytest.approx(np.abs(reference).max(), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (64, 64), (7, 3), (3, 7), (4, 3, 5)])
@pytest.mark.parametrize("gain", [1.0, -2.5])
def test_orthogonal(shape, gain):
    a = orthogonal(gain)(shape, 0, dtype=np.float64)
    assert a.shape == shape
    flat = a.reshape(shape[0], -1)
    product = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-12)


def test_orthogonal_is_uniformly_distributed():
    """The signs of LAPACK's factors are not: without their correction the diagonal's mean is far from 0."""
    a = np.stack([orthogonal()((4, 4), seed, dtype=np.float64) for seed in range(2000)])
    for entry in a.reshape(2000, -1).T:
        assert abs(entry.mean()) < 4 * 0.5 / np.sqrt(2000)  # an entry has variance 1/4
        assert entry.var() == pytest.approx(0.25, rel=0.12)
    signs = np.sign(np.linalg.det(a))
    assert abs(signs.mean()) < 0.1


def test_identity():
    assert np.array_equal(identity()((3, 3), 0), np.eye(3))
    assert np.array_equal(identity(0.5)((2, 3), 0, dtype=np.float64), [[0.5, 0, 0], [0, 0.5, 0]])


@pytest.mark.parametrize("f", EVERY)
def test_dtype_seed_and_generator(f):
    a = f((6, 4), 5)
    assert a.dtype == np.float32 and a.flags.writeable
    exact = f((6, 4), 5, dtype=np.float64)
    assert exact.dtype == np.float64 and np.array_equal(a, exact.astype(np.float32))
    assert np.array_equal(a, f((6, 4), np.random.default_rng(5), dtype="float32"))
    rng = np.random.default_rng(5)
    one, two = f((6, 4), rng), f((6, 4), rng)
    random = f not in EVERY[-2:]
    assert np.array_equal(a, one) and np.array_equal(one, two) != random
    again = pickle.loads(pickle.dumps(f))
    assert np.array_equal(again((6, 4), 5), a)


# -------------------------------------------------------------------------------------------------------- initialize


LAYERS = {
    "rnn": lambda: elman.RNN(3, 8, 2, bidirectional=True, seed=0),
    "lstm": lambda: elman.LSTM(3, 8, 2, dtype=np.float64, seed=0),
    "gru": lambda: elman.GRU(3, 8, bidirectional=True, seed=0),
    "dense": lambda: elman.Dense(3, 8, seed=0),
    "no-bias": lambda: elman.LSTM(3, 8, bias=False, seed=0),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)
GATES = {"rnn": 1, "lstm": 4, "gru": 3, "dense": 1, "no-bias": 4}


@each_layer
def test_every_gate_for_itself(kind):
    """Each block of H rows is one orthogonal matrix; no two are equal; input weights have the fans of one gate."""
    layer = LAYERS[kind]()
    calls = []

    def noted(shape, rng, dtype):
        calls.append(shape)
        return glorot_uniform(shape, rng, dtype)

    initialize(layer, input=noted, recurrent=orthogonal(0.5), bias=0.25, seed=1)
    blocks = []
    for name, a in layer.params.items():
        if name.startswith("weight_hh"):
            blocks += np.split(a, GATES[kind])
        elif name.startswith("bias_hh"):
            assert not a.any()
        elif name.startswith("bias"):
            assert (a == 0.25).all()
    for i, block in enumerate(blocks):
        assert block.shape == (8, 8)
        np.testing.assert_allclose(block @ block.T, 0.25 * np.eye(8), atol=1e-6)
        assert all(np.abs(block - other).max() > 0.01 for other in blocks[:i])
    inputs = [a for name, a in layer.params.items() if name == "weight" or name.startswith("weight_ih")]
    assert calls == [(8, a.shape[1]) for a in inputs for _ in range(GATES[kind])]
    for a in inputs:
        limit = np.sqrt(6 / (8 + a.shape[1]))
        assert 0.7 * limit < np.abs(a).max() <= limit


@each_layer
def test_the_same_seed_gives_the_same_weights(kind):
    one, two, other = LAYERS[kind](), LAYERS[kind](), LAYERS[kind]()
    words = {"input": "he_normal", "recurrent": "orthogonal", "bias": 0}
    initialize(one, **words, seed=3)
    initialize(two, input=he_normal, recurrent=orthogonal(), bias=0, seed=3)
    initialize(other, **words, seed=4)
    for name, a in one.params.items():
        assert np.array_equal(a, two.params[name])
        assert name.startswith("bias") or not np.array_equal(a, other.params[name])


@each_layer
def test_what_is_not_named_stays(kind):
    layer = LAYERS[kind]()
    before = dict(layer.params)
    initialize(layer)
    assert all(layer.params[name] is not None and np.array_equal(layer.params[name], a) for name, a in before.items())
    for role, prefixes in [("input", ("weight_ih", "weight")), ("recurrent", ("weight_hh",)), ("bias", ("bias",))]:
        layer = LAYERS[kind]()
        initialize(layer, **{role: 0.125})
        for name, a in layer.params.items():
            mine = name in prefixes or (name.startswith(prefixes) if role != "input" else "weight_ih" in name)
            assert np.array_equal(a, before[name]) != mine


def test_irnn_carries_its_state():
    """Le, Jaitly and Hinton: identity, biases 0, relu: without input the state stays, its gradient too."""
    rnn = elman.RNN(2, 5, nonlinearity="relu", dtype=np.float64, seed=0)
    initialize(rnn, recurrent=identity(), bias=0)
    h = np.arange(1.0, 6).reshape(1, 1, 5)
    y, last, tape = rnn.forward(np.zeros((100, 1, 2)), h)
    assert np.array_equal(last, h)
    assert np.array_equal(rnn.backward(tape, None, np.ones((1, 1, 5)))[1], np.ones((1, 1, 5)))


def test_an_orthogonal_rnn_keeps_the_norm_of_the_gradient():
    rnn = elman.RNN(2, 32, nonlinearity="relu", dtype=np.float64, seed=0)
    initialize(rnn, input=0, recurrent="orthogonal", bias=100, seed=0)  # relu in its linear part
    _, last, tape = rnn.forward(np.zeros((1, 1, 2)))
    d = np.random.default_rng(0).standard_normal((1, 1, 32))
    assert (last > 0).all()
    assert np.linalg.norm(rnn.backward(tape, None, d)[1]) == pytest.approx(np.linalg.norm(d), rel=1e-12)


def test_a_function_of_ones_own_and_a_number():
    dense = elman.Dense(3, 2)
    initialize(dense, input=lambda shape, rng, dtype: np.full(shape, 7, dtype), bias=lambda shape, rng, dtype: [1, 2])
    assert (dense.params["weight"] == 7).all() and dense.params["bias"].tolist() == [1, 2]


WRONG = [
    ({"input": "glorot"}, ValueError, "input: expected one of 'glorot_uniform'"),
    ({"recurrent": [1]}, TypeError, "recurrent: expected a number"),
    ({"bias": np.nan}, ValueError, "bias: expected"),
    ({"bias": "he_normal"}, ValueError, "shape: expected two axes or more"),
    ({"seed": -1, "input": 0}, ValueError, "seed: expected at least 0"),
    ({"recurrent": orthogonal}, TypeError, "."),
    ({"recurrent": lambda shape, rng, dtype: np.zeros((2, 2), dtype)}, ValueError, "recurrent: weight_hh_l0: expected"),
    ({"recurrent": lambda shape, rng, dtype: np.zeros(shape)}, TypeError, "recurrent: weight_hh_l0: expected dtype"),
    (
        {"recurrent": lambda shape, rng, dtype: np.full(shape, np.inf, dtype)},
        ValueError,
        "weight_hh_l0: expected finite",
    ),
]


@pytest.mark.parametrize("options, error, words", WRONG)
def test_after_an_error_nothing_has_changed(options, error, words):
    layer = elman.GRU(3, 4, seed=0)
    before = copy.deepcopy(dict(layer.params))
    with pytest.raises(error, match=words):
        initialize(layer, **({"input": 1} | options))
    for name, a in before.items():
        assert np.array_equal(a, layer.params[name])


def test_wrong_arguments_of_initializers():
    with pytest.raises(TypeError, match="layer: expected a layer"):
        initialize({"weight": np.zeros((2, 2))}, input=0)
    for f in EVERY:
        with pytest.raises(ValueError, match="shape: expected two axes or more"):
            f((3,), 0)
        with pytest.raises(TypeError, match="shape: expected"):
            f(3, 0)
        with pytest.raises(ValueError, match="shape: expected 1 to"):
            f((0, 3), 0)
        with pytest.raises(TypeError, match="rng: expected an integer"):
            f((2, 3), None)
        with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
            f((2, 3), 0, dtype=np.float16)
    with pytest.raises(ValueError, match=r"shape: expected \(out, in\)"):
        identity()((2, 3, 4), 0)
    for factory in (orthogonal, identity):
        with pytest.raises(TypeError, match="gain: expected a number"):
            factory("1")
        with pytest.raises(ValueError, match="gain: expected"):
            factory(np.inf)


def test_every_public_initializer_is_known_by_name():
    names = set(initializers.__all__) - {"initialize"}
    for name in names:
        initialize(elman.RNN(2, 3), recurrent=name)
