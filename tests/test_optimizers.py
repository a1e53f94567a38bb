"""The optimisers and clipping against literal values, NumPy equations and PyTorch; nothing half-changed after an error.

The kernels have no fused multiply-adds, so the equations in NumPy give the same bits on every instruction set.
"""

import copy
import io
import math
import sys
import threading
import types

import numpy as np
import pytest

import elman
from elman import _kernels
from elman._parameters import Parametrised
from elman.dense import Dense
from elman.optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value

FLOATS = [np.float32, np.float64]

# Every branch of every rule; the words are those of torch.optim too.
RULES = {
    "SGD": (SGD, {"lr": 0.1}),
    "SGD-decay": (SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "SGD-momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "SGD-nesterov": (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "RMSprop": (RMSprop, {}),
    "RMSprop-momentum": (RMSprop, {"momentum": 0.9, "alpha": 0.9, "weight_decay": 0.01}),
    "RMSprop-centered": (RMSprop, {"centered": True, "eps": 1e-5}),
    "RMSprop-both": (RMSprop, {"centered": True, "momentum": 0.5, "eps": 1e-5, "weight_decay": 0.1}),
    "Adam": (Adam, {}),
    "Adam-options": (Adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "AdamW": (AdamW, {}),
    "AdamW-options": (AdamW, {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-5, "weight_decay": 0.3}),
}
every_rule = pytest.mark.parametrize("rule", RULES)


def numpy_step(rule, o, t, w, g, moments):
    """The equations of the class's docstring for one array: the new weight and the new moments, by name."""
    momentum, decay = o.get("momentum", 0.0), o.get("weight_decay", 0.01 if rule is AdamW else 0.0)
    m = dict.fromkeys(["momentum_buffer", "square_avg", "grad_avg", "exp_avg", "exp_avg_sq"], np.zeros_like(w))
    m.update(moments)
    g = g + (0.0 if rule is AdamW else decay) * w
    if rule is SGD:
        lr = o.get("lr", 1e-3)
        if not momentum:
            return w - lr * g, {}
        buffer = momentum * m["momentum_buffer"] + g
        return w - lr * (g + momentum * buffer if o.get("nesterov") else buffer), {"momentum_buffer": buffer}
    if rule is RMSprop:
        alpha = o.get("alpha", 0.99)
        new = {"square_avg": alpha * m["square_avg"] + (1 - alpha) * (g * g)}
        square = new["square_avg"]
        if o.get("centered"):
            new["grad_avg"] = alpha * m["grad_avg"] + (1 - alpha) * g
            square = np.maximum(0, square - new["grad_avg"] ** 2)
        move = g / (np.sqrt(square) + o.get("eps", 1e-8))
        if momentum:
            move = new["momentum_buffer"] = momentum * m["momentum_buffer"] + move
        return w - o.get("lr", 1e-2) * move, new
    (beta1, beta2), lr = o.get("betas", (0.9, 0.999)), o.get("lr", 1e-3)
    new = {"exp_avg": beta1 * m["exp_avg"] + (1 - beta1) * g}
    new["exp_avg_sq"] = beta2 * m["exp_avg_sq"] + (1 - beta2) * (g * g)
    root = math.sqrt(1 - beta2**t)
    step = lr * root / (1 - beta1**t) * new["exp_avg"] / (np.sqrt(new["exp_avg_sq"]) + o.get("eps", 1e-8) * root)
    shrink = 1 - lr * decay if rule is AdamW else 1.0
    return w * shrink - step, new


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


@pytest.mark.parametrize("dtype", FLOATS)
@every_rule
def test_kernels_against_numpy(rule, dtype, isa):
    """The same bits, over sizes below, at and above every vector width, and gradients of all sizes."""
    kind, options = RULES[rule]
    layers = [Dense(n, m, dtype=dtype, seed=n) for n, m in ((1, 1), (3, 5), (16, 17), (7, 19))]
    optimizer = kind(layers, **options)
    expected, moments = weights(*layers), [{k: {} for k in layer.params} for layer in layers]
    for t in range(1, 13):
        grads = [drawn(layer, 10 * t + i, 10.0 ** (t % 5 - 3)) for i, layer in enumerate(layers)]
        optimizer.step(grads)
        for i, params in enumerate(expected):
            for k, w in params.items():
                params[k], moments[i][k] = numpy_step(kind, options, t, w, grads[i][k], moments[i][k])
                assert params[k].dtype == dtype
        assert same(weights(*layers), expected)
    state = optimizer.state_dict()
    names = {f"{i}.{k}.{m}": a for i, d in enumerate(moments) for k, by_name in d.items() for m, a in by_name.items()}
    assert same([names], [state]) and {k for k in state if "." in k} == set(names)


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 4e-6), (np.float64, 1e-13)])
@every_rule
def test_rules_against_pytorch(rule, dtype, rtol):
    """60 steps with gradients of many sizes and a changing lr."""
    torch = pytest.importorskip("torch")
    kind, options = RULES[rule]
    layers = [Dense(5, 7, dtype=dtype, seed=1), elman.LSTM(4, 3, dtype=dtype, seed=2)]
    theirs = [{k: torch.tensor(w, requires_grad=True) for k, w in layer.params.items()} for layer in layers]
    optimizer = kind(layers, **options)
    expected = getattr(torch.optim, kind.__name__)([w for params in theirs for w in params.values()], **options)
    assert optimizer.lr == expected.param_groups[0]["lr"]
    first = optimizer.lr
    for step in range(60):
        grads = [drawn(layer, 10 * step + i, 10.0 ** (-(step % 5))) for i, layer in enumerate(layers)]
        for params, given in zip(theirs, grads, strict=True):
            for k, w in params.items():
                w.grad = torch.tensor(given[k])
        optimizer.lr = expected.param_groups[0]["lr"] = first * (1 + math.cos(step)) / 2  # what a schedule does
        optimizer.step(grads)
        expected.step()
        for layer, params in zip(layers, theirs, strict=True):
            for k, w in layer.params.items():
                assert w.dtype == dtype
                np.testing.assert_allclose(w, params[k].detach().numpy(), rtol=rtol, atol=rtol, err_msg=k)


@pytest.mark.parametrize("dtype", FLOATS)
def test_centered_rmsprop_where_the_variance_rounds_below_zero(dtype):
    """Under a constant gradient square_avg - grad_avg^2 goes to 0 and, rounded, below."""
    layer = Dense(8, 8, bias=False, dtype=dtype, seed=0)
    grads, below = drawn(layer, 1), False
    optimizer = RMSprop(layer, alpha=0.5, lr=1e-9, centered=True)
    for _ in range(80):
        optimizer.step(grads)
        state = optimizer.state_dict()
        below |= bool((state["0.weight.square_avg"] - state["0.weight.grad_avg"] ** 2 < 0).any())
    assert below and np.isfinite(layer.params["weight"]).all()


def test_bits_do_not_depend_on_threads():
    """A step that is large enough for two threads (update in csrc/optimizers.inc), whose tasks start within arrays."""
    results = []
    for threads in (1, 2, 3):
        layer = elman.RNN(5, 997, seed=0)
        optimizer, expected, moments = Adam(layer), weights(layer)[0], {k: {} for k in layer.params}
        with elman.threads(threads):
            for t in (1, 2):
                grads = drawn(layer, t)
                optimizer.step(grads)
                if threads == 1:
                    for k, w in expected.items():
                        expected[k], moments[k] = numpy_step(Adam, {}, t, w, grads[k], moments[k])
        if threads == 1:
            assert same(weights(layer), [expected])
        results.append((weights(layer), [optimizer.state_dict()]))
    for got, state in results[1:]:
        assert same(got, results[0][0]) and same(state, results[0][1])


def test_subnormal_numbers_count_as_zero():
    """As in all kernels: the mean square of a gradient of 1e-20 is 0, which eps = 1e-8 hides."""
    layer = Dense(40, 1, bias=False, seed=0)
    optimizer, before = Adam(layer), layer.params["weight"].astype(np.float64)
    optimizer.step({"weight": np.full((1, 40), 1e-20, np.float32)})
    assert not optimizer.state_dict()["0.weight.exp_avg_sq"].any()
    np.testing.assert_allclose(layer.params["weight"], before - 1e-3 * 1e-20 / 1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@every_rule
def test_training_resumes_bit_for_bit(rule, dtype):
    """Through a file without pickles, into layers and an optimiser made with other numbers."""
    kind, options = RULES[rule]

    def steps(layers, optimizer, start, end):
        for t in range(start, end):
            optimizer.lr = 0.1 / (1 + t) if t < 20 else optimizer.lr
            optimizer.step([drawn(layer, 10 * t + i) for i, layer in enumerate(layers)])

    def network():
        return [elman.GRU(3, 5, dtype=dtype, seed=1), Dense(5, 2, dtype=dtype, seed=2)]

    whole = network()
    steps(whole, kind(whole, **options), 0, 40)
    first = network()
    interrupted = kind(first, **options)
    steps(first, interrupted, 0, 25)
    file = io.BytesIO()
    np.savez(file, **interrupted.state_dict())
    file.seek(0)
    second = network()
    for layer, old in zip(second, first, strict=True):
        layer.load_params(old.params)
    resumed = kind(second, **{**options, "lr": 7.0, "weight_decay": 5.0})
    resumed.load_state_dict(np.load(file))
    assert repr(resumed) == repr(interrupted)
    steps(second, resumed, 25, 40)
    assert same(weights(*second), weights(*whole)) and not same(weights(*second), weights(*first))


def test_state_is_copied_both_ways():
    layer = Dense(3, 2, seed=0)
    optimizer, twin = Adam(layer), Adam(Dense(3, 2, seed=0))
    optimizer.step(drawn(layer, 1))
    state = optimizer.state_dict()
    assert list(state) == [
        "step", "lr", "betas", "eps", "weight_decay",
        "0.weight.exp_avg", "0.weight.exp_avg_sq", "0.bias.exp_avg", "0.bias.exp_avg_sq",
    ]  # fmt: skip
    assert state["step"] == 1 and state["0.weight.exp_avg"].shape == (2, 3) and state["betas"].tolist() == [0.9, 0.999]
    kept = copy.deepcopy(state)
    twin.load_state_dict(state)
    for a in state.values():
        if isinstance(a, np.ndarray):
            a[...] = 0.5
    assert same([optimizer.state_dict()], [kept]) and same([twin.state_dict()], [kept])


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"step": None}, ValueError, "state: expected exactly the names of state_dict.*no step"),
        ({"0.bias.exp_avg": None}, ValueError, "state: .*no 0.bias.exp_avg"),
        ({"extra": 3}, ValueError, "state: .*unexpected 'extra'"),
        ({"step": -1}, ValueError, "state: step: expected"),
        ({"step": 1.5}, TypeError, "state: step: expected an integer"),
        ({"lr": math.nan}, ValueError, "state: lr: expected at least 0"),
        ({"lr": "x"}, TypeError, "state: lr: expected a number"),
        ({"betas": np.array([0.9, 1.0])}, ValueError, "state: betas"),
        ({"betas": 0.9}, TypeError, "state: betas: expected two numbers"),
        ({"0.bias.exp_avg": np.zeros(3, np.float32)}, ValueError, r"state: 0.bias.exp_avg: expected shape \(2,\)"),
        ({"0.bias.exp_avg": np.zeros(2)}, TypeError, "state: 0.bias.exp_avg: expected dtype float32"),
        ({"0.bias.exp_avg_sq": np.array([0, np.inf], np.float32)}, ValueError, "state: 0.bias.exp_avg_sq: .*finite"),
    ],
)
def test_a_wrong_state_changes_nothing(changes, error, words):
    layer = Dense(3, 2, seed=0)
    optimizer = Adam(layer)
    optimizer.step(drawn(layer, 1))
    before = optimizer.state_dict()
    bad = {**before, "lr": 0.5, "0.weight.exp_avg": np.ones((2, 3), np.float32), **changes}
    with pytest.raises(error, match=words):
        optimizer.load_state_dict({k: v for k, v in bad.items() if v is not None})
    assert same([optimizer.state_dict()], [before])
    with pytest.raises(TypeError, match="state: expected a mapping"):
        optimizer.load_state_dict([before])


def test_a_state_with_another_set_of_moments_is_refused():
    layer = Dense(3, 2)
    with_momentum = SGD(layer, momentum=0.9)
    with pytest.raises(ValueError, match="no momentum, no nesterov|momentum_buffer"):
        with_momentum.load_state_dict(SGD(layer).state_dict())
    with pytest.raises(ValueError, match="state: momentum: expected as in SGD"):
        with_momentum.load_state_dict({**with_momentum.state_dict(), "momentum": 0.0})
    with pytest.raises(ValueError, match="state: centered: expected as in RMSprop"):
        RMSprop(layer).load_state_dict({**RMSprop(layer).state_dict(), "centered": True})


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


def test_all_layers_change_at_once():
    """While one layer's new weights are packed, the other still has its old ones."""
    layers = [Dense(3, 2, seed=0), Dense(3, 2, seed=1)]
    optimizer, before, seen = Adam(layers), weights(*layers), []
    vars(layers[1])["_packed"] = lambda params: seen.append(weights(*layers))
    optimizer.step([drawn(layer, 1) for layer in layers])
    assert len(seen) == 1 and same(seen[0], before) and not same(weights(*layers), before)


def test_a_failure_to_pack_changes_nothing():
    layers = [Dense(3, 2, seed=0), Dense(3, 2, seed=1)]
    optimizer, grads = Adam(layers), [drawn(layer, 1) for layer in layers]
    state, before = optimizer.state_dict(), weights(*layers)

    def out_of_memory(params):
        raise MemoryError

    vars(layers[1])["_packed"] = out_of_memory
    with pytest.raises(MemoryError):
        optimizer.step(grads)
    assert same(weights(*layers), before) and same([optimizer.state_dict()], [state])
    del vars(layers[1])["_packed"]
    optimizer.step(grads)
    assert not same(weights(*layers), before)


def test_new_weights_are_read_only_and_old_ones_stay():
    layer = elman.LSTM(3, 4, seed=0)
    before = layer.params
    values = {k: w.copy() for k, w in before.items()}
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    y = layer(x)[0]
    Adam(layer, lr=0.1).step(drawn(layer, 1))
    assert same([before], [values]) and not same([layer.params], [values])
    for w in layer.params.values():
        assert not w.flags.writeable
        with pytest.raises(ValueError):
            w.flags.writeable = True
    fresh = elman.LSTM(3, 4, seed=5)
    fresh.load_params(layer.params)
    assert np.array_equal(layer(x)[0], fresh(x)[0]) and not np.array_equal(layer(x)[0], y)


class Two:
    """Something else with `params` and `edit`: two layers under one roof."""

    def __init__(self):
        self.parts = {"a": Dense(3, 2, seed=0), "b": Dense(2, 2, seed=1)}

    @property
    def params(self):
        return {f"{k}.{name}": w for k, layer in self.parts.items() for name, w in layer.params.items()}

    def edit(self):
        return Editing(self)


class Editing:
    def __init__(self, two):
        self.two = two

    def __enter__(self):
        self.draft = dict(self.two.params)
        return self.draft

    def __exit__(self, kind, *_):
        for k, layer in self.two.parts.items():
            if kind is None:
                layer.load_params({name: self.draft[f"{k}.{name}"] for name in layer.params})


def test_anything_with_params_and_edit_will_do():
    two, layers = Two(), [Dense(3, 2, seed=0), Dense(2, 2, seed=1)]
    assert not isinstance(two, Parametrised)
    one, other = AdamW(two), AdamW(layers)
    for step in range(3):
        grads = [drawn(layer, step) for layer in layers]
        one.step({f"{k}.{name}": g for k, d in zip("ab", grads, strict=True) for name, g in d.items()})
        other.step(grads)
    assert same(weights(*two.parts.values()), weights(*layers))
    before = weights(*two.parts.values())
    with pytest.raises(ValueError, match="grads: b.bias: expected finite"):
        one.step({k: np.full_like(w, np.nan if k == "b.bias" else 1) for k, w in two.params.items()})
    assert same(weights(*two.parts.values()), before) and one.state_dict()["step"] == 3


def test_weights_that_change_their_shape_are_refused():
    two = Two()
    optimizer = SGD(two, momentum=0.9)
    two.parts["b"] = Dense(5, 4, seed=1)
    with pytest.raises(ValueError, match="b.weight: expected shape"):
        optimizer.step({k: np.ones_like(w) for k, w in two.params.items()})


def test_gradients_in_other_forms():
    """Lists, integers, strided and read-only arrays, another order, another kind of mapping: the same step."""
    layer, plain = Dense(3, 2, seed=0), Dense(3, 2, seed=0)
    grads = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3) - 2, "bias": np.array([1, -1], np.float32)}
    wide = np.zeros((2, 6), np.float32)
    wide[:, ::2] = grads["weight"]
    wide.flags.writeable = False
    one, other = SGD(layer, 0.1, 0.9), SGD(plain, 0.1, 0.9)
    one.step({"bias": [1, -1], "weight": wide[:, ::2]})
    one.step({"bias": np.array([1, -1]), "weight": np.asfortranarray(grads["weight"])})
    one.step(types.MappingProxyType(grads))
    for _ in range(3):
        other.step(grads)
    assert same(weights(layer), weights(plain))


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
    assert same(weights(*layers), before) and optimizer.state_dict()["step"] == 0


@pytest.mark.parametrize("dtype", FLOATS)
@every_rule
@pytest.mark.parametrize("place", [0, 5, 12])
def test_every_rule_refuses_what_is_not_finite(rule, dtype, place):
    """In the first vector, in the middle and in the last, partial one; and large squares, but for SGD."""
    kind, options = RULES[rule]
    layer = Dense(13, 1, dtype=dtype, seed=0)
    optimizer = kind(layer, **options)
    optimizer.step(drawn(layer, 0))
    state, before = optimizer.state_dict(), weights(layer)
    large = math.sqrt(np.finfo(dtype).max) * 1.01
    for bad in (np.nan, np.inf, -np.inf, large):
        grads = drawn(layer, 1)
        grads["weight"][0, place] = bad
        if bad == large and kind is SGD:
            continue
        with pytest.raises(ValueError, match=rf"grads: weight: expected finite values.* at \(0, {place}\)"):
            optimizer.step(grads)
        assert same(weights(layer), before) and same([optimizer.state_dict()], [state])
    optimizer.step(drawn(layer, 1))
    assert not same(weights(layer), before)


def test_layers_that_share_weights():
    """Two models with a layer in common, or a model and one of its layers: a weight cannot take two steps in one."""
    shared = Dense(2, 2)
    model, other = elman.Sequential([shared, Dense(2, 1)]), elman.Sequential([shared, Dense(2, 3)])
    for layers in ([model, other], [model, shared], [shared, model]):
        with pytest.raises(ValueError, match=r"layers\[1\]: expected layers that share no weights"):
            Adam(layers)
    assert len(Adam([model, Dense(2, 2)])._layers) == 2


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
        ({"weight_decay": -1}, ValueError, "weight_decay: expected at least 0"),
    ],
)
def test_adam_constructor_errors(arguments, error, words):
    layer = Dense(3, 2)
    given = {"layers": layer, **arguments}
    if given["layers"] == "twice":
        given["layers"] = [layer, layer]
    with pytest.raises(error, match=words):
        Adam(**given)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda layer: SGD(layer, -1), ValueError, "lr"),
        (lambda layer: SGD(layer, momentum=-0.1), ValueError, "momentum: expected at least 0"),
        (lambda layer: SGD(layer, momentum=math.nan), ValueError, "momentum"),
        (lambda layer: SGD(layer, momentum="much"), TypeError, "momentum: expected a number"),
        (lambda layer: SGD(layer, nesterov=True), ValueError, "nesterov: expected momentum above 0"),
        (lambda layer: SGD(layer, momentum=0.9, nesterov=1), TypeError, "nesterov: expected True or False"),
        (lambda layer: SGD(layer, weight_decay=-1), ValueError, "weight_decay"),
        (lambda layer: RMSprop(layer, alpha=1.0), ValueError, "alpha: expected at least 0 and below 1"),
        (lambda layer: RMSprop(layer, eps=-1), ValueError, "eps"),
        (lambda layer: RMSprop(layer, momentum=-1), ValueError, "momentum"),
        (lambda layer: RMSprop(layer, centered="yes"), TypeError, "centered: expected True or False"),
        (lambda layer: AdamW(layer, weight_decay=math.inf), ValueError, "weight_decay"),
        (lambda layer: AdamW([layer, 3]), TypeError, r"layers\[1\]"),
    ],
)
def test_constructor_errors(make, error, words):
    with pytest.raises(error, match=words):
        make(Dense(3, 2))


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


@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_of_squares_against_exact_sums(dtype, isa):
    """Over sizes below, at and above every vector width and a block, alone and all together, beside another dtype."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(dtype) for n in (0, 1, 2, 7, 8, 9, 15, 16, 17, 33, 2047, 2048, 2049, 40000)]
    arrays.append(rng.standard_normal((3, 5)).astype(np.float32))
    for chosen in ([], arrays, *([a] for a in arrays)):
        exact = math.fsum(float(x) * float(x) for a in chosen for x in a.ravel())
        assert _kernels.sum_of_squares(chosen) == pytest.approx(exact, rel=2e-15)
    for poison in (np.nan, np.inf):
        for n, at in ((9, 8), (2049, 2048), (33, 0)):
            a = np.ones(n, dtype)
            a[at] = poison
            assert _kernels.sum_of_squares([a]) == pytest.approx(poison, nan_ok=True)


def test_what_sum_of_squares_leaves_to_numpy():
    a, other = np.ones((4, 6)), np.ones(2)
    assert _kernels.sum_of_squares([a[:2], other, a[2:]]) == 26
    for refused in ([a, a], [a, other, a[1]], [a[::2]], [a.T], [frozen()], [a.astype(">f8")], [a.astype(int)], [[1.0]]):
        assert _kernels.sum_of_squares(refused) is None


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
        ({"b": SHARED, "c": SHARED[:1]}, 1.0, ValueError, "grads: c: expected memory of its own"),
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


def test_models_that_share_layers_do_not_wait_for_each_other():
    """An optimiser takes the layers within models in the order in which one over the layers takes them."""
    layers = [Dense(2, 2, seed=seed) for seed in range(3)]
    owners = [elman.Sequential(layers), elman.Sequential(layers[::-1]), layers[::-1]]

    def steps(owner):
        optimizer = Adam(owner)
        grads = [drawn(x, 0) for x in owner] if isinstance(owner, list) else drawn(owner, 0)
        for _ in range(300):
            optimizer.step(grads)

    threads = [threading.Thread(target=steps, args=(owner,), daemon=True) for owner in owners]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # else a thread is seldom stopped between two locks
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(usual)


def test_a_step_inside_an_edit():
    """Refused, not waited for; and every layer is free again afterwards, whichever of them it took first."""
    a, b = Dense(2, 2, seed=0), Dense(2, 2, seed=1)
    model = elman.Sequential([a, b])
    before = [dict(layer.params) for layer in (a, b)]
    for edited in (a, b):
        with edited.edit(), pytest.raises(RuntimeError, match="step: this thread is inside an edit"):
            Adam(model).step(drawn(model, 0))
    for layer, weights in zip((a, b), before):
        assert all(np.array_equal(w, weights[name]) for name, w in layer.params.items())
        thread = threading.Thread(target=Adam(layer).step, args=(drawn(layer, 0),), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and not np.array_equal(layer.params["weight"], weights["weight"])


@pytest.mark.parametrize(
    "clip, name, limit", [(clip_grad_norm, "clip_grad_norm_", 0.2), (clip_grad_value, "clip_grad_value_", 0.01)]
)
def test_a_network_trains_as_in_pytorch(clip, name, limit):
    """LSTM and Dense, real gradients, clipped, AdamW: 25 steps, compared by the loss and the weights."""
    torch = pytest.importorskip("torch")
    lstm, head = elman.LSTM(3, 6, 2, dtype=np.float64, seed=0), Dense(6, 2, dtype=np.float64, seed=1)
    theirs = [torch.nn.LSTM(3, 6, 2, dtype=torch.float64), torch.nn.Linear(6, 2, dtype=torch.float64)]
    for layer, module in zip((lstm, head), theirs, strict=True):
        module.load_state_dict({k: torch.tensor(w) for k, w in layer.params.items()})
    parameters = [w for module in theirs for w in module.parameters()]
    optimizer, expected = AdamW([lstm, head], lr=0.05), torch.optim.AdamW(parameters, lr=0.05)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((7, 4, 3)), rng.standard_normal((7, 4, 2))
    losses, clipped = [], 0
    for _ in range(25):
        y, _, lstm_tape = lstm.forward(x)
        o, head_tape = head.forward(y)
        dy, head_grads = head.backward(head_tape, 2 * (o - target))
        _, _, lstm_grads = lstm.backward(lstm_tape, dy)
        before = lstm_grads["weight_hh_l1"].copy()
        clip([lstm_grads, head_grads], limit)
        clipped += not np.array_equal(before, lstm_grads["weight_hh_l1"])
        optimizer.step([lstm_grads, head_grads])
        losses.append(((o - target) ** 2).sum())

        expected.zero_grad()
        loss = ((theirs[1](theirs[0](torch.tensor(x))[0]) - torch.tensor(target)) ** 2).sum()
        loss.backward()
        getattr(torch.nn.utils, name)(parameters, limit)
        expected.step()
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-4)  # torch adds 1e-6 to the norm
    for layer, module in zip((lstm, head), theirs, strict=True):
        for k, w in layer.params.items():
            np.testing.assert_allclose(w, module.state_dict()[k].numpy(), rtol=1e-4, atol=1e-4)
    assert clipped > 20 and losses[-1] < 0.8 * losses[0]


def test_calls_during_steps_see_whole_weights():
    """Whatever a call in another thread returns belongs to the weights of one moment."""
    layer, twin = elman.GRU(3, 8, 2, seed=0), elman.GRU(3, 8, 2, seed=0)
    x = np.random.default_rng(0).standard_normal((20, 2, 3)).astype(np.float32)
    grads, seen, done = drawn(layer, 1), [], threading.Event()

    def call():
        while not done.is_set():
            seen.append(layer(x)[0].tobytes())

    thread = threading.Thread(target=call, daemon=True)
    optimizer, again = Adam(layer, lr=0.01), Adam(twin, lr=0.01)
    thread.start()
    while len(seen) < 3:
        pass
    for _ in range(150):
        optimizer.step(grads)
    done.set()
    thread.join(60)
    allowed = {twin(x)[0].tobytes()}
    for _ in range(150):
        again.step(grads)
        allowed.add(twin(x)[0].tobytes())
    assert set(seen) <= allowed and len(allowed) == 151


@pytest.mark.parametrize("cls", [elman.SGD, elman.RMSprop, elman.Adam, elman.AdamW])
def test_a_class_is_no_layer(cls):
    with pytest.raises(TypeError, match="^layers"):
        cls(elman.GRU)
