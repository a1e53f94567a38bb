"""Sequential: central differences through all layers, names, state, lengths, steps, copies, errors."""

import copy
import pickle

import numpy as np
import pytest

import elman
from elman import GRU, LSTM, RNN, TDNN, Activation, Adam, Dense, Dropout, Embedding, Pooling, Sequential

LENGTHS = [6, 0, 4, 1]


def draw(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tagger(dtype="f8"):
    return Sequential(
        [
            Dense(3, 4, dtype=dtype, seed=0),
            Activation("tanh"),
            TDNN(4, 4, 2, dtype=dtype, seed=1),
            LSTM(4, 5, 2, dropout=0.3, dtype=dtype, seed=2),
            Dropout(0.3, seed=3),
            GRU(5, 3, dtype=dtype, seed=4),
            Dense(3, 2, dtype=dtype, seed=5),
        ]
    )


def classifier(dtype="f8"):
    layers = [Embedding(5, 3, dtype=dtype, seed=0), RNN(3, 4, bidirectional=True, dtype=dtype, seed=1)]
    return Sequential([*layers, Pooling("mean"), Dense(8, 2, dtype=dtype, seed=2)])


def stream(dtype="f4"):
    parts = [Embedding(9, 4, dtype=dtype, seed=0), LSTM(4, 6, 2, dtype=dtype, seed=1), Dropout(0.5)]
    return Sequential([*parts, GRU(6, 5, dtype=dtype, seed=2), Activation("relu"), Dense(5, 9, dtype=dtype, seed=3)])


IDS = np.random.default_rng(5).integers(0, 5, (6, 4))


@pytest.mark.parametrize("model, x", [(tagger(), draw(6, 4, 3)), (classifier(), IDS)], ids=["tagger", "classifier"])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_by_central_differences(model, x, lengths):
    y, tape = model.forward(x, lengths=lengths, rng=7)
    dy = draw(*y.shape, seed=9)
    dx, grads = model.backward(tape, dy)
    assert list(grads) == list(model.params)
    wanted = {name: (w, grads[name]) for name, w in model.params.items()}
    if x.dtype.kind == "f":
        wanted["x"] = x, dx
    else:
        assert dx is None
    other = copy.deepcopy(model)

    def loss(name, value):
        if name != "x":
            other.load_params({**model.params, name: value})
        return float((other.forward(value if name == "x" else x, lengths=lengths, rng=7)[0] * dy).sum())

    for name, (at, got) in wanted.items():
        some = np.random.default_rng(1).permutation(at.size)[:12]
        numeric = []
        for i in some:
            high, low = at.copy(), at.copy()
            high.flat[i] += 1e-5
            low.flat[i] -= 1e-5
            numeric.append((loss(name, high) - loss(name, low)) / 2e-5)
        other.load_params(model.params)
        np.testing.assert_allclose(got.flat[some], numeric, rtol=1e-6, atol=1e-8, err_msg=name)
        assert np.abs(got).max() > 1e-4, name


def test_it_is_its_layers_in_a_row():
    model, x = tagger("f4"), draw(6, 4, 3, dtype=np.float32)
    y = x
    for i, layer in enumerate(model.layers):
        y = layer(y)[0] if i in (3, 5) else layer(y)
    np.testing.assert_array_equal(model(x), y)
    assert len(model) == 7 and model[3] is model.layers[3] and model.dtype == np.float32
    names = [f"{i}.{name}" for i in (0, 2, 3, 5, 6) for name in model[i].params]
    assert list(model.params) == names and names[4] == "3.weight_ih_l0"
    for name, w in model.params.items():
        i, own = name.split(".")
        np.testing.assert_array_equal(w, model[int(i)].params[own])
    with pytest.raises(ValueError):
        model.params["0.weight"][0, 0] = 1


def test_dropout_only_in_forward_and_repeatable():
    model, x = tagger("f4"), draw(6, 4, 3, dtype=np.float32)
    y = model(x)
    first, again, other = (model.forward(x, rng=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, y)
    np.testing.assert_array_equal(model(x), y)
    np.testing.assert_array_equal(model.forward(x, rng=np.random.default_rng(1))[0], first)


@pytest.mark.parametrize("model, x", [(tagger(), draw(6, 4, 3)), (classifier(), IDS - 0)], ids=["tagger", "classifier"])
def test_what_is_past_the_ends_has_no_effect(model, x):
    past = np.arange(6)[:, None] >= LENGTHS
    clean, _ = model.forward(x, lengths=LENGTHS, rng=0)
    clean_grads = model.backward(model.forward(x, lengths=LENGTHS, rng=0)[1], np.ones_like(clean))[1]
    x = x.copy()
    x[past] = np.nan if x.dtype.kind == "f" else -1
    y, tape = model.forward(x, lengths=LENGTHS, rng=0)
    np.testing.assert_array_equal(y, clean)
    np.testing.assert_array_equal(
        model(x, lengths=LENGTHS), model(np.where(x == x, np.maximum(x, -9), 0) * 1, lengths=LENGTHS)
    )
    dy = np.ones_like(y)
    if y.ndim == 3:
        assert not y[past].any() and not model(x, lengths=LENGTHS)[past].any()
        dy[past] = np.nan
    _, grads = model.backward(tape, dy)
    for name, g in grads.items():
        assert np.isfinite(g).all() and np.array_equal(g, clean_grads[name]), name
    for b, n in enumerate(LENGTHS):  # alone, without a batch
        alone = model(x[:n, b])
        np.testing.assert_allclose(
            model(x, lengths=LENGTHS)[..., b, :][: None if y.ndim == 2 else n], alone, atol=1e-13
        )
        padded = model(x[:, b], lengths=n)
        np.testing.assert_allclose(padded if y.ndim == 2 else padded[:n], alone, atol=1e-13)


def test_state_is_carried_on_request():
    model, x = stream(), np.random.default_rng(0).integers(0, 9, (7, 3))
    whole, end = model(x, return_state=True)
    first, state = model(x[:4], return_state=True)
    second, state = model(x[4:], state, return_state=True)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    for got, expected in zip(state, end, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert isinstance(state[0], elman.LSTMState) and state[1].shape == (1, 3, 5)
    assert not np.array_equal(model(x[4:]), second)
    y, tape = model.forward(x[4:], model.forward(x[:4], rng=0)[1].state, rng=1)
    assert len(tape.state) == 2 and tape.state[1].shape == (1, 3, 5) and y.shape == second.shape
    stepwise = model.zero_state(3)
    for t in range(7):
        np.testing.assert_allclose(model.step(x[t], stepwise), whole[t], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(stepwise[1], end[1])
    lone = model.zero_state()
    np.testing.assert_allclose(model.step(x[0, 0], lone), whole[0, 0], rtol=0, atol=1e-6)


def test_weights_change_together_or_not_at_all():
    model = classifier()
    before = dict(model.params)

    def unchanged():
        return all(np.array_equal(model.params[name], w) for name, w in before.items())

    with model.edit() as p:
        p["3.weight"] *= 2
        p["0.weight"][:] = 1
        assert unchanged()
    assert np.array_equal(model[3].params["weight"], 2 * before["3.weight"]) and (model[0].params["weight"] == 1).all()
    np.testing.assert_array_equal(model.params["1.weight_ih_l0"], before["1.weight_ih_l0"])
    model.load_params(before)
    assert unchanged()
    with pytest.raises(ValueError, match="0.weight: expected finite values"):
        with model.edit() as p:
            p["3.bias"] += 1  # good, and comes later
            p["1.weight_ih_l0"] += 1
            p["0.weight"][0, 0] = np.inf
    with pytest.raises(ValueError, match="mapping: expected exactly the names of params, got no 3.bias"):
        model.load_params({name: w for name, w in before.items() if name != "3.bias"})
    with pytest.raises(ValueError, match="3.bias: expected shape"):
        model.load_params({**before, "0.weight": before["0.weight"] + 1, "3.bias": np.zeros(3)})
    with pytest.raises(RuntimeError, match="inside an edit"):
        with model.edit():
            with model[1].edit():
                pass
    assert unchanged()


def test_optimizers_take_a_model_as_a_layer():
    model, parts = classifier(), classifier()
    grads = model.backward(model.forward(IDS)[1], np.ones((4, 2)))[1]
    Adam(model, lr=0.1).step(grads)
    layers = [parts[i] for i in (0, 1, 3)]
    own = [{name.split(".")[1]: g for name, g in grads.items() if name[0] == str(i)} for i in (0, 1, 3)]
    Adam(layers, lr=0.1).step(own)
    for name, w in parts.params.items():
        np.testing.assert_array_equal(model.params[name], w)


def test_tapes():
    model, dy = classifier(), np.ones((4, 2))
    _, tape = model.forward(IDS)
    grads = model.backward(tape, dy)[1]
    given = {name: np.full_like(g, 3) for name, g in grads.items()}
    assert model.backward(tape, dy, given)[1] is given
    for name, g in grads.items():
        np.testing.assert_allclose(given[name], g + 3)
    for wrong, error in ((None, TypeError), (model[3].forward(np.ones((2, 8)))[1], TypeError)):
        with pytest.raises(error, match="tape: expected what forward of this model returned"):
            model.backward(wrong, dy)
    with pytest.raises(ValueError, match="tape: expected one of this model"):
        copy.deepcopy(model).backward(tape, dy)
    with model[0].edit() as p:
        p["weight"] += 1
    before = {name: g.copy() for name, g in given.items()}
    with pytest.raises(ValueError, match=r"layers\[0\], Embedding: tape: "):
        model.backward(tape, dy, given)
    assert all(np.array_equal(given[name], g) for name, g in before.items())


@pytest.mark.parametrize("model, x", [(tagger("f4"), draw(6, 4, 3, dtype=np.float32)), (classifier("f4"), IDS)])
def test_copies(model, x):
    y, _ = model.forward(x, rng=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.astype(np.float32)):
        assert np.array_equal(other.forward(x, rng=1)[0], y) and repr(other) == repr(model)
        with other.edit() as p:
            p["0.weight"] += 1
        assert np.array_equal(model.forward(x, rng=1)[0], y) and not np.array_equal(other(x), model(x))
    wide = model.astype("f8")
    assert wide.dtype == np.float64 and all(w.dtype == np.float64 for w in wide.params.values())
    np.testing.assert_allclose(wide(x.astype("f8") if x.dtype == np.float32 else x), model(x), atol=1e-5)
    again = eval(repr(model))
    again.load_params(model.params)
    np.testing.assert_array_equal(again(x), model(x))
    with pytest.raises(AttributeError, match="layers"):
        model.layers = ()


def test_a_model_within_a_model_stands_for_its_layers(tmp_path):
    whole = tagger("f4")
    inner = Sequential([whole[2], Sequential([whole[3], whole[4]])])
    model = Sequential([whole[0], whole[1], inner, Sequential([*whole.layers[5:]])])
    assert model.layers == whole.layers and list(model.params) == list(whole.params) and repr(model) == repr(whole)
    x = draw(6, 4, 3, dtype=np.float32)
    y, tape = model.forward(x, lengths=LENGTHS, rng=1)
    np.testing.assert_array_equal(y, whole.forward(x, lengths=LENGTHS, rng=1)[0])
    Adam(model, lr=0.1).step(model.backward(tape, np.ones_like(y))[1])
    np.testing.assert_array_equal(inner.params["0.weight"], model.params["2.weight"])  # one layer, one weight
    np.testing.assert_array_equal(model(x), whole(x))
    elman.save(tmp_path / "model.safetensors", model)
    np.testing.assert_array_equal(elman.load(tmp_path / "model.safetensors")(x), whole(x))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.astype("f4")):
        np.testing.assert_array_equal(other(x), whole(x))
    stepwise = Sequential([Sequential([*stream().layers[:3]]), *stream().layers[3:]])
    ids, state = np.array([3, 1]), stepwise.zero_state(2)
    np.testing.assert_allclose(stepwise.step(ids, state), stream()(ids[None])[0], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"layers\[1\]: expected no layer over time behind Pooling"):
        Sequential([Sequential([Pooling("max")]), GRU(3, 2)])


class Other(Sequential):
    """It might compute something else than its layers in a row."""


X = np.zeros((5, 2, 3), np.float32)
HEAD = Dense(3, 3)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Sequential([]), TypeError, "layers: expected a list of layers"),
        (lambda: Sequential(HEAD), TypeError, "layers: expected a list of layers"),
        (lambda: Sequential([HEAD, np.tanh]), TypeError, r"layers\[1\]: expected a layer"),
        (lambda: Sequential([HEAD, HEAD]), ValueError, r"layers\[1\]: expected different layers"),
        (lambda: Sequential([Sequential([HEAD]), HEAD]), ValueError, r"layers\[1\]: expected different layers"),
        (lambda: Sequential([Other([HEAD])]), TypeError, r"layers\[0\]: .* got a subclass of Sequential: Other"),
        (lambda: Sequential([LSTM(3, 3, batch_first=True)]), ValueError, r"layers\[0\]: expected batch_first=False"),
        (lambda: Sequential([Pooling("max"), LSTM(3, 3)]), ValueError, r"layers\[1\]: expected no layer over time"),
        (lambda: Sequential([HEAD, Dense(3, 3, dtype="f8")]), TypeError, "layers: expected one dtype"),
        (lambda: Sequential([Dense(2, 3), HEAD])(X), ValueError, r"layers\[0\], Dense: x: expected shape"),
        (lambda: Sequential([HEAD])(X.astype("f8")), TypeError, r"layers\[0\], Dense: x: expected dtype float32"),
        (lambda: Sequential([HEAD])(X, lengths=[6, 1]), ValueError, "lengths: expected 0 to 5"),
        (lambda: Sequential([HEAD])(X, lengths=[1, 1, 1]), ValueError, "lengths: expected shape"),
        (lambda: Sequential([GRU(3, 2)])(X, [None, None]), ValueError, "state: expected a tuple with 1 states"),
        (lambda: Sequential([GRU(3, 2)])(X, np.zeros((1, 2, 2))), TypeError, "state: expected a tuple"),
        (
            lambda: Sequential([GRU(3, 2)])(X, (np.zeros((1, 3, 2)),)),
            (TypeError, ValueError),
            r"layers\[0\], GRU: state",
        ),
        (lambda: Sequential([LSTM(3, 2)])(X, LSTM(3, 2).zero_state(2)), ValueError, "state: expected a tuple with 1"),
        (lambda: Sequential([HEAD])(X, return_state=1), TypeError, "return_state"),
        (lambda: Sequential([HEAD]).forward(X, rng=0.5), TypeError, "rng"),
        (lambda: Sequential([HEAD, Pooling("max")]).step(X[0], ()), ValueError, r"step: layers\[1\], Pooling"),
        (lambda: Sequential([TDNN(3, 3, 2)]).step(X[0], ()), ValueError, r"step: layers\[0\], TDNN"),
        (lambda: Sequential([GRU(3, 2, bidirectional=True)]).step(X[0], (None,)), ValueError, r"step: layers\[0\]"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


class Doubled:
    """A layer of one's own, without weights, that gives twice the features."""

    def __call__(self, x):
        return self.forward(x)[0]

    def forward(self, x):
        return np.concatenate([x, x], axis=-1), None

    def backward(self, tape, dy):
        raise NotImplementedError


TWO = {"bidirectional": True}


@pytest.mark.parametrize(
    "layers, words",
    [
        (
            lambda: [GRU(2, 4), Dense(5, 2)],
            r"\[1\]: expected .* the 4 features of GRU\(2, 4\), got Dense\(5, 2\), .* 5$",
        ),
        (lambda: [Dense(3, 2), GRU(2, 4, merge=None, **TWO)], r"\[1\]: expected merge other than None, .*got GRU"),
        (lambda: [elman.AUGRU(2, 4), Dense(4, 2)], r"\[0\]: expected a layer that takes x alone, got AUGRU"),
        (lambda: [GRU(2, 4, **TWO), Dense(4, 2)], r"\[1\]: expected .* the 8 features of GRU.*, got Dense"),
        (
            lambda: [GRU(2, 4, merge="sum", **TWO), Dense(8, 2)],
            r"\[1\]: expected .* the 4 features of GRU.*, got Dense",
        ),
        (lambda: [LSTM(2, 4, proj_size=3), Dense(4, 2)], r"\[1\]: expected .* the 3 features of LSTM.*, got Dense"),
        (lambda: [elman.Jordan(2, 4, 3), TDNN(4, 2, 2)], r"\[1\]: expected .* the 3 features of Jordan.*, got TDNN"),
        (lambda: [TDNN(2, 3, 2), GRU(2, 4)], r"\[1\]: expected .* the 3 features of TDNN.*, got GRU\(2, 4\)"),
        (lambda: [Embedding(9, 3), GRU(9, 4)], r"\[1\]: expected .* the 3 features of Embedding\(9, 3\), got GRU"),
        (
            lambda: [Dense(2, 3), Activation("relu"), Dropout(0.1), Pooling("max"), Dense(2, 1)],
            r"\[4\]: expected .* the 3 features of Dense\(2, 3\), got Dense\(2, 1\), which takes 2",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_when_the_model_is_made(layers, words):
    with pytest.raises(ValueError, match=f"^layers{words}"):
        Sequential(layers())


@pytest.mark.parametrize(
    "layer",
    [GRU(2, 4), GRU(2, 4, merge="mean", **TWO), Dense(2, 4), TDNN(2, 4, 2)],
)
def test_a_reverse_direction_is_pooled_only_where_there_is_one(layer):
    words = r"layers\[2\]: expected Pooling with bidirectional=True behind .* merge='concat', got (GRU|Dense|TDNN)"
    with pytest.raises(ValueError, match=words):
        Sequential([layer, Dropout(0.1), Pooling("last", bidirectional=True)])
    assert len(Sequential([layer, Pooling("mean", bidirectional=True)])) == 2  # which is the same with either


@pytest.mark.parametrize(
    "name", ["RNN", "GRU", "LSTM", "IndRNN", "SRU", "SLSTM", "MinGRU", "MinLSTM", "QRNN", "MGU", "CfC"]
)
@pytest.mark.parametrize("options, width", [({}, 4), (TWO, 8), ({"merge": "mul", **TWO}, 4)])
def test_layers_that_fit_are_not_refused(name, options, width):
    model = Sequential([Dense(3, 2), getattr(elman, name)(2, 4, 2, **options), Pooling("max"), Dense(width, 5)])
    assert model(X).shape == (2, 5)


def test_of_layers_that_elman_does_not_know_nothing_is_asked():
    model = Sequential([Dense(3, 2), Doubled(), Pooling("last", bidirectional=True), Dense(4, 5)])
    assert model(X).shape == (2, 5)
    assert Sequential([Embedding(4, 2), Dense(2, 3)])(np.ones((5, 2), int)).shape == (5, 2, 3)


@pytest.mark.parametrize("model, x", [(tagger("f4"), draw(6, 4, 3, dtype=np.float32)), (classifier(), IDS)])
def test_saved_and_loaded(model, x, tmp_path):
    elman.save(tmp_path / "model.safetensors", model)
    other = elman.load(tmp_path / "model.safetensors")
    assert repr(other) == repr(model)
    np.testing.assert_array_equal(other(x, lengths=LENGTHS), model(x, lengths=LENGTHS))


def test_lengths_that_leave_nothing_out():
    """The same bits as without them, forward and backward, behind layers that take lengths and that do not."""
    model = Sequential([Dense(3, 4, seed=0), GRU(4, 5, seed=1), Dense(5, 2, seed=2)])
    x = np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)
    (y, tape), (y_full, tape_full) = model.forward(x), model.forward(x, lengths=[4, 4, 4])
    assert np.array_equal(y, y_full) and np.array_equal(y, model(x, lengths=[4, 4, 4]))
    (dx, grads), (dx_full, grads_full) = model.backward(tape, y), model.backward(tape_full, y)
    assert np.array_equal(dx, dx_full) and all(np.array_equal(g, grads_full[name]) for name, g in grads.items())
    assert list(grads) == list(model.params)
    with pytest.raises(ValueError, match="dy"):
        model.backward(tape_full, y[:3])
