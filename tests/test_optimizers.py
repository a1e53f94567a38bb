"""Adam and clipping against literal values and PyTorch; nothing half-changed after an error."""

import copy
import math
import threading

import numpy as np
import pytest

from elman.dense import Dense
from elman.optimizers import Adam, clip_grad_norm, clip_grad_value

FLOATS = [np.float32, np.float64]


def drawn(layer, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {k: (rng.standard_normal(w.shape) * scale).astype(w.dtype) for k, w in layer.params.items()}


def weights(*layers):
    return [{k: w.copy() for k, w in layer.params.items()} for layer in layers]


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_adam_literal_values():
    """Two steps by hand. Step 1 moves by lr * sign(g); with eps = 0 and betas (0.5, 0.75), step 2 with gradient 4 after
    2: m = 0.5 * 1 + 0.5 * 4, v = 0.75 * 1 + 0.25 * 16, divided by 1 - 0.5^2 and 1 - 0.75^2."""
    layer = Dense(1, 1, bias=False, dtype=np.float64)
    layer.load_params({"weight": [[3.0]]})
    optimizer = Adam(layer, lr=0.1, betas=(0.5, 0.75), eps=0.0)
    optimizer.step({"weight": np.array([[2.0]])})
    assert layer.params["weight"][0, 0] == pytest.approx(2.9, rel=1e-15)
    optimizer.step({"weight": np.array([[4.0]])})
    expected = 2.9 - 0.1 * (2.5 / 0.75) / math.sqrt(4.75 / 0.4375)
    assert layer.params["weight"][0, 0] == pytest.approx(expected, rel=1e-15)


def test_adam_defaults_and_eps():
    """First step with the default betas and lr: lr * g / (|g| + eps); with g = eps it is half of lr."""
    layer = Dense(1, 1, bias=False, dtype=np.float64)
    layer.load_params({"weight": [[0]]})
    Adam(layer).step({"weight": np.array([[1e-8]])})
    assert layer.params["weight"][0, 0] == pytest.approx(-0.5e-3, rel=1e-12)


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 2e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("options", [{}, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}])
def test_adam_against_pytorch(dtype, rtol, options):
    torch = pytest.importorskip("torch")
    layers = [Dense(5, 7, dtype=dtype, seed=1), Dense(7, 3, dtype=dtype, seed=2)]
    theirs = [{k: torch.tensor(w, requires_grad=True) for k, w in layer.params.items()} for layer in layers]
    optimizer = Adam(layers, **options)
    expected = torch.optim.Adam([w for params in theirs for w in params.values()], **options)
    for step in range(30):
        grads = [drawn(layer, 10 * step + i, 10.0 ** (-(step % 5))) for i, layer in enumerate(layers)]
        for params, given in zip(theirs, grads, strict=True):
            for k, w in params.items():
                w.grad = torch.tensor(given[k])
        if step == 20:  # a schedule sets the attribute
            optimizer.lr = expected.param_groups[0]["lr"] = 0.005
        optimizer.step(grads)
        expected.step()
    for layer, params in zip(layers, theirs, strict=True):
        for k, w in layer.params.items():
            assert w.dtype == dtype
            np.testing.assert_allclose(w, params[k].detach().numpy(), rtol=rtol, atol=rtol, err_msg=k)


def test_adam_finds_a_minimum():
    """Least squares with a known solution."""
    layer, truth = Dense(3, 2, dtype=np.float64, seed=0), Dense(3, 2, dtype=np.float64, seed=1)
    x = np.random.default_rng(2).standard_normal((50, 3))
    optimizer = Adam(layer, lr=0.05)
    for _ in range(400):
        y, tape = layer.forward(x)
        _, grads = layer.backward(tape, (y - truth(x)) / len(x))
        optimizer.step(grads)
    np.testing.assert_allclose(layer(x), truth(x), atol=1e-3)


def test_adam_takes_one_layer_or_a_list():
    one, other = Dense(3, 2, seed=0), Dense(3, 2, seed=0)
    grads = drawn(one, 5)
    before = {k: g.copy() for k, g in grads.items()}
    Adam(one, lr=0.1).step(grads)
    Adam([other], lr=0.1).step([grads])
    assert same(weights(one), weights(other)) and same([grads], [before])
    shown = "Adam([Dense, Dense], lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"
    assert repr(Adam([one, other], lr=0.1)) == shown


def test_adam_keeps_nothing_of_the_gradients_and_copies_go_their_own_way():
    layer = Dense(3, 2, seed=0)
    optimizer, kept = Adam(layer, lr=0.1), drawn(layer, 1)
    given = {k: g.copy() for k, g in kept.items()}
    optimizer.step(given)
    for g in given.values():
        g[:] = 1e6
    twin = copy.deepcopy(optimizer)
    before = weights(layer)
    twin.step(kept)
    assert same(weights(layer), before)
    optimizer.step(kept)
    assert same(weights(layer), weights(*twin._layers)) and not same(weights(layer), before)


def test_adam_outdates_tapes():
    layer = Dense(3, 2, seed=0)
    _, tape = layer.forward(np.ones((4, 3), np.float32))
    Adam(layer).step(drawn(layer, 1))
    with pytest.raises(ValueError, match="tape: "):
        layer.backward(tape, np.ones((4, 2), np.float32))


def wrong(**changes):
    """The right gradients of Dense(3, 2) with some entries changed; None removes one."""
    grads = {**drawn(Dense(3, 2), 4), **changes}
    return {k: g for k, g in grads.items() if g is not None}


@pytest.mark.parametrize(
    "bad, error, words",
    [
        (wrong(bias=None), ValueError, r"grads\[1\]: .*no bias"),
        (wrong(extra=np.zeros(2, np.float32)), ValueError, r"grads\[1\]: .*'extra'"),
        (wrong(bias=np.zeros(3, np.float32)), ValueError, r"grads\[1\]: bias: expected shape \(2,\)"),
        (wrong(bias=np.zeros(2)), TypeError, r"grads\[1\]: bias: expected dtype float32, got float64"),
        (
            wrong(bias=np.array([0, np.nan], np.float32)),
            ValueError,
            r"grads\[1\]: bias: .*finite.*nan at \(1\)",
        ),
        (wrong(bias=np.array([-np.inf, 0], np.float32)), ValueError, r"grads\[1\]: bias: .*-inf at \(0\)"),
        (wrong(bias=np.array([0, 1e30], np.float32)), ValueError, r"grads\[1\]: bias: .*1e\+30"),
        ([1, 2], TypeError, r"grads\[1\]: expected"),
        (None, TypeError, r"grads\[1\]: expected"),
    ],
)
def test_adam_changes_nothing_after_an_error(bad, error, words):
    layers = [Dense(3, 2, seed=0), Dense(3, 2, seed=1)]
    optimizer, clean = Adam(layers, lr=0.1), copy.deepcopy(layers)
    good = drawn(layers[0], 3)
    before = weights(*layers)
    with pytest.raises(error, match=words):
        optimizer.step([good, bad])
    assert same(weights(*layers), before)
    for grads in [[good], [good] * 3, good, None, 3]:
        with pytest.raises(TypeError, match="grads: expected a list of 2 dicts"):
            optimizer.step(grads)
    optimizer.step([good, good])  # the moments and the step count are untouched as well
    Adam(clean, lr=0.1).step([good, good])
    assert same(weights(*layers), weights(*clean))


def test_adam_refuses_a_step_to_infinity_and_changes_nothing():
    layers = [Dense(3, 2, seed=0), Dense(3, 2, seed=1)]
    optimizer = Adam(layers, lr=1e37)
    with layers[1].edit() as p:
        p["bias"][1] = -3.4e38
    before = weights(*layers)
    with pytest.raises(ValueError, match=r"grads\[1\]: bias: .*infinite"):
        optimizer.step([{k: np.ones_like(w) for k, w in layer.params.items()} for layer in layers])
    assert same(weights(*layers), before) and optimizer._steps == 0


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"layers": []}, TypeError, "layers: expected a layer or a list of layers"),
        ({"layers": None}, TypeError, "layers"),
        ({"layers": [3]}, TypeError, r"layers\[0\]"),
        ({"layers": "twice"}, ValueError, r"layers\[1\]: expected different layers"),
        ({"lr": -1}, ValueError, "lr: expected at least 0 and finite, got -1"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": math.inf}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr: expected a number"),
        ({"lr": True}, TypeError, "lr"),
        ({"betas": 0.9}, TypeError, "betas: expected two numbers"),
        ({"betas": (0.9,)}, TypeError, "betas"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected at least 0 and below 1, got 1"),
        ({"betas": (-0.1, 0.9)}, ValueError, "betas"),
        ({"eps": -1e-8}, ValueError, "eps"),
    ],
)
def test_adam_constructor_errors(arguments, error, words):
    layer = Dense(3, 2)
    given = {"layers": layer, **arguments}
    if given["layers"] == "twice":
        given["layers"] = [layer, layer]
    with pytest.raises(error, match=words):
        Adam(**given)


def test_lr_is_checked_when_set():
    optimizer = Adam(Dense(3, 2), lr=0.5)
    with pytest.raises(ValueError, match="lr: "):
        optimizer.lr = -0.1
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("dtype", FLOATS)
def test_clip_by_norm_literal_values(dtype):
    grads = {"a": np.array([3.0, 0.0], dtype), "b": np.array([[4.0]], dtype)}
    norm = clip_grad_norm(grads, 1)
    assert type(norm) is float and norm == 5.0
    np.testing.assert_allclose(grads["a"], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(grads["b"], [[0.8]], rtol=1e-6)
    before = {k: g.copy() for k, g in grads.items()}
    assert clip_grad_norm(grads, 2.0) == pytest.approx(1.0, rel=1e-6) and same([grads], [before])
    assert clip_grad_norm(grads, math.inf) == pytest.approx(1.0, rel=1e-6) and same([grads], [before])
    assert clip_grad_norm({}, 1.0) == clip_grad_norm([], 1.0) == 0.0
    assert clip_grad_norm({"a": np.zeros(3, dtype)}, 1.0) == 0.0


def test_clip_by_norm_is_global_over_all_dicts():
    dicts = [{"a": np.array([3.0])}, {"a": np.array([4.0], np.float32), "b": np.zeros((0, 2))}]
    assert clip_grad_norm(dicts, 2.5) == 5.0
    np.testing.assert_allclose([dicts[0]["a"][0], dicts[1]["a"][0]], [1.5, 2.0])
    assert dicts[1]["a"].dtype == np.float32


def test_clip_by_norm_adds_in_float64():
    """2**24 ones and one more: float32 squares would add to 2**24."""
    grads = {"a": np.ones(2**24 + 1, np.float32)}
    assert clip_grad_norm(grads, 1e9) == math.sqrt(2**24 + 1)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310])
def test_clip_by_norm_over_the_whole_range(size):
    grads = {"a": np.array([3.0, -4.0]) * size}
    assert clip_grad_norm(grads, size) == pytest.approx(5 * size, rel=1e-9)
    np.testing.assert_allclose(grads["a"], np.array([0.6, -0.8]) * size, rtol=1e-9)
    wide = {"a": np.array([3e38, 3e38], np.float32)}
    assert clip_grad_norm(wide, 1.0) == pytest.approx(3e38 * 2**0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["a", "b"])
def test_clip_by_norm_returns_what_is_not_finite_and_changes_nothing(bad, place, recwarn):
    grads = {"a": np.array([30.0, 1.0]), "b": np.array([40.0])}
    grads[place][0] = bad
    before = {k: g.copy() for k, g in grads.items()}
    norm = clip_grad_norm(grads, 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert all(np.array_equal(g, before[k], equal_nan=True) for k, g in grads.items())
    assert not recwarn.list


@pytest.mark.parametrize("dtype", FLOATS)
def test_clipping_against_pytorch(dtype):
    torch = pytest.importorskip("torch")
    for clip, expected, limits in [
        (clip_grad_norm, torch.nn.utils.clip_grad_norm_, (0.5, 3.0, 1e3)),
        (clip_grad_value, torch.nn.utils.clip_grad_value_, (0.5, 3.0)),
    ]:
        for limit in limits:
            dicts = [drawn(Dense(5, 7, dtype=dtype), seed) for seed in (1, 2)]
            theirs = [torch.tensor(g, requires_grad=True) for d in dicts for g in d.values()]
            for w in theirs:
                w.grad = w.detach().clone()
            norm, wanted = clip(dicts, limit), expected(theirs, limit)
            assert norm == wanted or norm == pytest.approx(wanted.item(), rel=1e-6)
            for g, w in zip([g for d in dicts for g in d.values()], theirs, strict=True):
                np.testing.assert_allclose(g, w.grad.numpy(), rtol=3e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_clip_by_value_literal_values(dtype):
    grads = [{"a": np.array([-3, -0.5, 0, 0.5, np.inf, np.nan], dtype)}, {"b": np.array([[2.0, -np.inf]], dtype)}]
    assert clip_grad_value(grads, 1) is None
    np.testing.assert_array_equal(grads[0]["a"], np.array([-1, -0.5, 0, 0.5, 1, np.nan], dtype))
    np.testing.assert_array_equal(grads[1]["b"], [[1, -1]])


def test_clipping_writes_through_views():
    buffer = np.full((4, 4), 3.0, np.float32)
    clip_grad_value({"a": buffer[:, ::2]}, 1.0)
    np.testing.assert_array_equal(buffer, np.tile(np.float32([1, 3]), (4, 2)))
    assert clip_grad_norm({"a": buffer[::2].T}, 1.0) == pytest.approx(40**0.5)
    assert buffer[1, 1] == 3 and buffer[0, 1] == pytest.approx(3 / 40**0.5)


def frozen():
    a = np.full(2, 9.0)
    a.flags.writeable = False
    return a


SHARED = np.full(2, 9.0)


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
@pytest.mark.parametrize(
    "more, limit, error, words",
    [
        ({"b": frozen()}, 1.0, ValueError, "grads: b: expected a writable array"),
        ({"b": [1.0, 2.0]}, 1.0, TypeError, "grads: b: expected an array of float32 or float64, got a list"),
        ({"b": np.ones(2, int)}, 1.0, TypeError, "grads: b: "),
        ({"b": np.ones(2, np.float16)}, 1.0, TypeError, "grads: b: "),
        (
            {"b": SHARED, "c": SHARED},
            1.0,
            ValueError,
            "grads: c: expected memory of its own, got an array that overlaps grads: b",
        ),
        ({"b": SHARED[1:], "c": SHARED[:2]}, 1.0, ValueError, "grads: c: expected memory of its own"),
        ({}, 0, ValueError, "(max_norm|clip_value): expected above 0"),
        ({}, -1.0, ValueError, "max_norm|clip_value"),
        ({}, math.nan, ValueError, "max_norm|clip_value"),
        ({}, None, TypeError, "(max_norm|clip_value): expected a number"),
        ({}, True, TypeError, "max_norm|clip_value"),
    ],
)
def test_clipping_errors_change_nothing(clip, more, limit, error, words):
    grads = {"a": np.full(2, 9.0), **more}
    with pytest.raises(error, match=words):
        clip(grads, limit)
    assert grads["a"].tolist() == [9, 9] and SHARED.tolist() == [9, 9]
    with pytest.raises(error, match=words.replace("grads: ", r"grads\[0\]: ")):
        clip([grads], limit)


@pytest.mark.parametrize("clip", [clip_grad_norm, clip_grad_value])
@pytest.mark.parametrize("grads", [None, 3, np.ones(3), [np.ones(3)], "ab", {1: {"a": np.ones(2)}}])
def test_clipping_refuses_other_things(clip, grads):
    with pytest.raises(TypeError, match="grads"):
        clip(grads, 1.0)


def test_optimisers_that_share_layers_in_another_order_do_not_wait_for_each_other():
    a, b = Dense(2, 3, seed=0), Dense(2, 3, seed=1)

    def steps(*layers):
        optimizer = Adam(list(layers))
        for _ in range(300):
            optimizer.step([drawn(layer, 0) for layer in layers])

    threads = [threading.Thread(target=steps, args=order, daemon=True) for order in ((a, b), (b, a))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
