"""What happens to gradients on their way through time, and to the outputs of two directions."""

from functools import partial

import numpy as np
import pytest
from helpers import CELLS, assert_same, problem

import elman
from elman import functional as F
from elman import reference

T, B, I, H = 11, 4, 3, 5
LENGTHS = [11, 4, 0, 7]
KINDS = {"lstm": elman.LSTM, "gru": elman.GRU, "rnn": elman.RNN}
each_backend = pytest.mark.parametrize("backend", ["compiled", "reference"])
each_kind = pytest.mark.parametrize("kind", KINDS)
each_module = pytest.mark.parametrize("module", [reference, F], ids=["reference", "compiled"])


def numbers(layer, T=T, B=B, seed=0):
    rng = np.random.default_rng(seed)
    width = layer.forward(np.zeros((1, 1, I), layer.dtype))[0]
    width = sum(y.shape[-1] for y in width) if isinstance(width, tuple) else width.shape[-1]
    x, dy = (rng.standard_normal((T, B, n)).astype(layer.dtype) for n in (I, width))
    dstate = tuple(rng.standard_normal(part.shape).astype(layer.dtype) for part in parts(layer.zero_state(B)))
    return x, dy, dstate


def parts(state):
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def bundled(layer, given):
    return tuple(given) if isinstance(layer, elman.LSTM) else given[0]


def gradients(layer, tape, dy, dstate, **keywords):
    dx, dstate, grads = layer.backward(tape, dy, bundled(layer, dstate), **keywords)
    return {"x": dx} | {f"state {i}": part for i, part in enumerate(parts(dstate))} | dict(grads)


# -------------------------------------------------------------------------------------------------- cuts through time


def by_hand(layer, x, dy, dstate, burn_in, k, lengths):
    """The pieces one after another, each a call of its own; the state's gradient stops between them, except for
    sequences that are over."""
    starts = [s for s in range(min(burn_in, T), T, k or T)] or [min(burn_in, T)]
    ends = np.full(B, T) if lengths is None else np.array(lengths)
    state, pieces = None, []
    if starts[0]:
        _, state = layer(x[: starts[0]], lengths=np.minimum(ends, starts[0]))
    for start, end in zip(starts, [*starts[1:], T], strict=True):
        _, state, tape = layer.forward(x[start:end], state, lengths=np.clip(ends - start, 0, end - start))
        pieces.append((start, end, tape))
    total, dxs = {}, []
    for start, end, tape in reversed(pieces):
        dx, dstate, grads = layer.backward(tape, dy[start:end], bundled(layer, parts(dstate)))
        dxs.insert(0, dx)
        total = {name: total.get(name, 0) + a for name, a in grads.items()}
        if start:
            over = ends <= (start if start > starts[0] else 0)
            dstate = [np.where(over[:, None], part, 0) for part in parts(dstate)]
    dx = np.concatenate([np.zeros((starts[0], B, I), layer.dtype), *dxs])
    return {"x": dx} | {f"state {i}": part for i, part in enumerate(parts(dstate))} | total


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "lengths"])
@pytest.mark.parametrize("burn_in, k", [(0, 4), (3, None), (3, 2), (0, 1), (0, 11), (0, 99), (11, None), (20, 3)])
@each_kind
@each_backend
def test_pieces(backend, kind, burn_in, k, lengths):
    layer = KINDS[kind](I, H, 2, dtype="float64", seed=1, backend=backend)
    x, dy, dstate = numbers(layer)
    y, state, tape = layer.forward(x, lengths=lengths, tbptt=k, burn_in=burn_in)
    whole_y, whole_state, whole_tape = layer.forward(x, lengths=lengths)
    np.testing.assert_array_equal(y, whole_y)
    for part, whole in zip(parts(state), parts(whole_state), strict=True):
        np.testing.assert_array_equal(part, whole)
    got = gradients(layer, tape, dy, dstate)
    assert_same(got, by_hand(layer, x, dy, dstate, burn_in, k, lengths), 1e-13)
    whole = gradients(layer, whole_tape, dy, dstate)
    cuts = burn_in > 0 or (k is not None and k < T)
    assert np.array_equal(got["weight_hh_l0"], whole["weight_hh_l0"]) != cuts


@each_backend
def test_no_gradient_comes_from_the_burn_in(backend):
    layer = elman.LSTM(I, H, dtype="float64", seed=1, backend=backend)
    x, dy, dstate = numbers(layer)
    _, _, tape = layer.forward(x, burn_in=5)
    got = gradients(layer, tape, dy, dstate)
    dy[:5] = np.nan
    assert_same(gradients(layer, tape, dy, dstate), got, 0)
    assert not got["x"][:5].any() and got["x"][5:].all() and not got["state 0"].any()


def test_pieces_with_resets_dropout_and_batch_first():
    """Everything else at the same time: as the same forward whole, but for the cuts."""
    layer = elman.GRU(I, H, 3, dropout=0.5, batch_first=True, dtype="float64", seed=1)
    x, dy, dstate = numbers(elman.GRU(I, H, 3, dtype="float64"))
    reset = np.zeros((B, T), bool)
    reset[:, 4] = reset[:, 8] = True  # where the cuts are, so that they change nothing
    arguments = {"x": x.swapaxes(0, 1), "reset": reset, "rng": 7}
    y, _, tape = layer.forward(**arguments, tbptt=4)
    whole_y, _, whole_tape = layer.forward(**arguments)
    np.testing.assert_array_equal(y, whole_y)
    got, whole = (gradients(layer, t, dy.swapaxes(0, 1), dstate) for t in (tape, whole_tape))
    assert_same(got, whole, 1e-13)


@pytest.mark.parametrize("option", [{"tbptt": 3}, {"burn_in": 3}], ids=str)
def test_two_directions_cannot_be_cut(option):
    with pytest.raises(ValueError, match=f"^{next(iter(option))}: expected bidirectional=False"):
        elman.GRU(I, H, bidirectional=True).forward(np.zeros((T, B, I), np.float32), **option)


@pytest.mark.parametrize(
    "option, error", [({"tbptt": 0}, ValueError), ({"tbptt": 2.0}, TypeError), ({"burn_in": -1}, ValueError)]
)
def test_wrong_cuts_are_refused(option, error):
    with pytest.raises(error, match=f"^{next(iter(option))}"):
        elman.GRU(I, H).forward(np.zeros((T, B, I), np.float32), **option)


# ------------------------------------------------------------------------------------------------ clipping on the way


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru-after", "gru-before", "lstm-any"])
@pytest.mark.parametrize("D", [1, 2])
@each_module
def test_grad_clip_step_by_step(module, D, name):
    """Against calls of one step each, whose dstate is clipped by hand."""
    cell, limit = CELLS[name], 0.125
    p = problem(cell, 5, B, I, H, 1)
    _, _, tape = p.forward(module)
    dx, dstate, [dweights] = cell.run(module, "backward", tape, p.dy, cell.state(p.dstate), grad_clip=limit)
    state, tapes = cell.state(p.state), []
    for t in range(5):
        _, state, tape_t = cell.run(module, "forward", p.x[t : t + 1], state, p.weights)
        tapes.append(tape_t)
    back, total = cell.state(p.dstate), 0
    for t in reversed(range(5)):
        dx_t, back, [dw_t] = cell.run(module, "backward", tapes[t], p.dy[t : t + 1], back)
        np.testing.assert_allclose(dx[t], dx_t[0], rtol=0, atol=1e-13)
        clipped = [np.clip(part, -limit, limit) for part in cell.parts_of(back)]
        assert any((np.abs(part) > limit).any() for part in cell.parts_of(back)), "nothing to clip"
        back = cell.state(clipped)
        total = [a + b for a, b in zip(dw_t, total or [0] * len(dw_t), strict=True)]
    assert_same(dict(enumerate(cell.parts_of(dstate))), dict(enumerate(cell.parts_of(back))), 1e-13)
    assert_same(dict(enumerate(dweights)), dict(enumerate(total)), 1e-13)
    if D == 2:  # the second direction clips too: both backends, the same numbers
        p = problem(cell, 5, B, I, H, 2, lengths=[5, 2, 0, 3])
        results = []
        for one in (reference, F):
            dx, _, dweights = cell.run(one, "backward", p.forward(one)[2], p.dy, cell.state(p.dstate), grad_clip=limit)
            results.append({"dx": dx} | {f"{d}{i}": w for d in range(2) for i, w in enumerate(dweights[d])})
        assert_same(results[1], results[0], 1e-12)


@each_kind
def test_grad_clip_of_a_layer(kind):
    x, dy, dstate = numbers(KINDS[kind](I, H, dtype="float64"))
    results = []
    for backend in ("compiled", "reference"):
        layer = KINDS[kind](I, H, dtype="float64", seed=1, backend=backend, grad_clip=0.0625)
        results.append(gradients(layer, layer.forward(x)[2], dy, dstate))
        assert all(np.abs(results[-1][f"state {i}"]).max() == 0.0625 for i in range(len(dstate)))
    assert_same(results[0], results[1], 1e-12)


# -------------------------------------------------------------------------------------------- the gradient of every c


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "lengths"])
@pytest.mark.parametrize("D", [1, 2])
@each_module
def test_dc_by_differences(module, D, lengths):
    """c after every step by calls of one step each; the loss is the sum of c * dc."""
    p = problem(CELLS["lstm"], 4, B, I, H, D, lengths=None if lengths is None else np.minimum(lengths, 4))
    dc = np.where(p.inside, np.random.default_rng(3).standard_normal((4, B, D * H)), np.nan)
    dx, (dh, dc0), dweights = module.lstm_backward(p.forward(module)[2], dc=dc)

    def loss():
        total = 0.0
        for d in range(D):
            for b in range(B):
                steps = range(4 if lengths is None else min(lengths[b], 4))
                state = tuple(part[d : d + 1, b : b + 1] for part in p.state)
                for t in steps if d == 0 else reversed(steps):
                    _, state, _ = reference.lstm_forward(p.x[t : t + 1, b : b + 1], state, [p.weights[d]])
                    total += (state[1][0, 0] * dc[t, b, d * H : (d + 1) * H]).sum()
        return total

    for a, got in ((p.x, dx), (p.state[0], dh), (p.state[1], dc0), (p.weights[D - 1][1], dweights[D - 1][1])):
        for index in [tuple(np.random.default_rng(i).integers(0, n) for n in a.shape) for i in range(12)]:
            value = a[index]
            if np.isnan(value):
                assert got[index] == 0
                continue
            a[index] = value + 1e-5
            above = loss()
            a[index] = value - 1e-5
            below = loss()
            a[index] = value
            assert got[index] == pytest.approx((above - below) / 2e-5, rel=1e-6, abs=1e-8)


@each_backend
def test_dc_of_a_layer(backend):
    layer = elman.LSTM(I, H, 2, batch_first=True, dtype="float64", seed=1, backend=backend)
    x, dy, dstate = numbers(elman.LSTM(I, H, 2, dtype="float64"))
    _, _, tape = layer.forward(x.swapaxes(0, 1))
    dc = np.zeros((B, T, H))
    dc[:, -1] = 1
    through_state = layer.backward(tape, None, (None, np.stack([np.zeros((B, H)), np.ones((B, H))])))
    got = layer.backward(tape, dc=dc)
    assert_same({"x": got[0], **got[2]}, {"x": through_state[0], **through_state[2]}, 1e-14)


def test_dc_is_refused():
    gru, lstm = elman.GRU(I, H), elman.LSTM(I, H)
    x = np.zeros((T, B, I), np.float32)
    with pytest.raises(ValueError, match="^dc: expected None, since GRU has no cell state"):
        gru.backward(gru.forward(x)[2], dc=np.zeros((T, B, H), np.float32))
    with pytest.raises(ValueError, match="^dc: expected shape"):
        lstm.backward(lstm.forward(x)[2], dc=np.zeros((T, B, H + 1), np.float32))


# --------------------------------------------------------------------------------------------------- two directions


MERGED = {
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "mean": lambda a, b: (a + b) / 2,
}


@pytest.mark.parametrize("merge", MERGED)
@each_kind
@each_backend
def test_merged_outputs(backend, kind, merge):
    layer = KINDS[kind](I, H, bidirectional=True, merge=merge, dtype="float64", seed=1, backend=backend)
    concat = KINDS[kind](I, H, bidirectional=True, dtype="float64", seed=1, backend=backend)
    x, dy, dstate = numbers(layer)
    expected, final = concat(x, lengths=LENGTHS)
    y, state = layer(x, lengths=LENGTHS)
    np.testing.assert_allclose(y, MERGED[merge](expected[..., :H], expected[..., H:]), rtol=1e-15)
    for part, e in zip(parts(state), parts(final), strict=True):
        np.testing.assert_array_equal(part, e)
    trained, _, tape = layer.forward(x, lengths=LENGTHS)
    np.testing.assert_array_equal(trained, y)
    back, forth = expected[..., H:], expected[..., :H]
    scale = {"sum": (1, 1), "mean": (0.5, 0.5), "mul": (back, forth)}[merge]
    both = np.concatenate([dy * scale[0], dy * scale[1]], axis=-1)
    assert_same(
        gradients(layer, tape, dy, dstate),
        gradients(concat, concat.forward(x, lengths=LENGTHS)[2], both, dstate),
        1e-13,
    )


@pytest.mark.parametrize("merge", MERGED)
@each_backend
def test_merged_layers_on_top_of_each_other(backend, merge):
    """Two layers as one, and as two of one layer."""
    layer = elman.LSTM(
        I, H, 2, bidirectional=True, merge=merge, batch_first=True, dtype="float64", seed=1, backend=backend
    )
    assert layer.params["weight_ih_l1"].shape == (4 * H, H)
    single = [
        elman.LSTM(n, H, bidirectional=True, merge=merge, batch_first=True, dtype="float64", backend=backend)
        for n in (I, H)
    ]
    for k, one in enumerate(single):
        one.load_params({n: layer.params[n.replace("_l0", f"_l{k}")] for n in one.params})
    x, dy, _ = numbers(elman.LSTM(I, H, dtype="float64"))
    x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
    y, _, tape = layer.forward(x)
    between, _, tape_0 = single[0].forward(x)
    expected, _, tape_1 = single[1].forward(between)
    np.testing.assert_array_equal(y, expected)
    dx, _, grads = layer.backward(tape, dy)
    dbetween, _, grads_1 = single[1].backward(tape_1, dy)
    dx_0, _, grads_0 = single[0].backward(tape_0, dbetween)
    np.testing.assert_array_equal(dx, dx_0)
    for name in grads_0:
        np.testing.assert_array_equal(grads[name], grads_0[name])
        np.testing.assert_array_equal(grads[name.replace("_l0", "_l1")], grads_1[name])


@pytest.mark.parametrize("train_state", [False, True])
@pytest.mark.parametrize("merge", ["concat", *MERGED, None, "one way"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "qrnn"])
def test_quick_calls_are_the_careful_ones(kind, merge, train_state, monkeypatch):
    """With directions that are merged, and with initial states that are learned, which an edit changes."""
    options = {"bidirectional": True, "merge": merge} if merge != "one way" else {"num_layers": 2}
    make = (KINDS | {"qrnn": elman.QRNN})[kind]
    layer, turned = (make(I, H, train_state=train_state, batch_first=b, seed=1, **options) for b in (False, True))
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        with layer.edit() as params:
            for name in params:
                if name.startswith(("h0", "c0")):
                    params[name] = rng.standard_normal(params[name].shape).astype(np.float32)
        turned.load_params(layer.params)
        x = rng.standard_normal((T, B, I)).astype(np.float32)
        given = [rng.standard_normal(part.shape).astype(np.float32) for part in parts(layer(x)[1])]
        states = [None, bundled(layer, given)]
        if kind == "lstm":
            states += [(None, given[1]), (given[0], None)]
        for state in states:
            expected, last, _ = layer.forward(x, state)
            careful = layer(x.tolist(), state)
            single = layer(x[:, 1].tolist(), None)
            with monkeypatch.context() as m:
                m.setattr(elman.layers.Recurrent, "_infer", None)
                quick, other = layer(x, state), turned(x.swapaxes(0, 1).copy(), state)
                alone = layer(x[:, 1].copy())
            for y, s in (careful, quick, ([a.swapaxes(0, 1) for a in parts(other[0])], other[1])):
                for a, e in zip((*parts(y), *parts(s)), (*parts(expected), *parts(last)), strict=True):
                    assert a.shape == e.shape and a.tobytes() == e.tobytes()
            for y, e in zip(parts(alone[0]), parts(single[0]), strict=True):
                assert y.flags.c_contiguous and y.tobytes() == e.tobytes()
            if state is None:
                for y, e in zip(parts(alone[0]), parts(expected), strict=True):
                    assert y.tobytes() == e[:, 1].tobytes()
        assert train_state == any(part.any() for part in parts(layer.zero_state(1)))


@each_backend
def test_directions_kept_apart(backend):
    layer = elman.GRU(I, H, bidirectional=True, merge=None, dtype="float64", seed=1, backend=backend)
    concat = elman.GRU(I, H, bidirectional=True, dtype="float64", seed=1, backend=backend)
    x, dy, dstate = numbers(concat)
    (forth, back), _ = layer(x)
    expected, _ = concat(x)
    np.testing.assert_array_equal(np.concatenate([forth, back], axis=-1), expected)
    assert not np.shares_memory(forth, back)
    (forth, back), _, tape = layer.forward(x)
    got = gradients(layer, tape, (dy[..., :H], dy[..., H:]), dstate)
    assert_same(got, gradients(concat, concat.forward(x)[2], dy, dstate), 0)
    dy[..., H:] = 0
    got = gradients(layer, tape, (dy[..., :H], None), dstate)
    assert_same(got, gradients(concat, concat.forward(x)[2], dy, dstate), 0)
    with pytest.raises(TypeError, match="^dy: expected a pair"):
        layer.backward(tape, dy)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"merge": "sum"}, "merge: 'sum' needs two directions"),
        ({"merge": None}, "merge: None needs two directions"),
        ({"merge": None, "bidirectional": True, "num_layers": 2}, "merge: None keeps the directions apart"),
        ({"merge": "max", "bidirectional": True}, "merge: expected one of"),
    ],
)
def test_wrong_merges_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        elman.GRU(I, H, **options)


# ------------------------------------------------------------------------------------------------ what every step had


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "lengths"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("options", [{}, {"peephole": True, "coupled": "f=1-i", "clip": 1.5}], ids=str)
@each_backend
def test_c_and_gates_of_every_step(backend, options, D, lengths, batch_first):
    """c against calls that end at each step, and gates against c: c_t = f * c + i * g, h_t = o * tanh(c_t)."""
    settings = {"bidirectional": D == 2, "batch_first": batch_first, "dtype": "float64", "seed": 1, "backend": backend}
    layer = elman.LSTM(I, H, 2, **settings, **options)
    x, _, _ = numbers(elman.LSTM(I, H, dtype="float64"))
    turn = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    y, (h, c_last), c, gates = layer(turn(x), lengths=lengths, return_all=("c", "gates"))
    plain_y, (plain_h, _) = layer(turn(x), lengths=lengths)
    np.testing.assert_array_equal(y, plain_y)
    np.testing.assert_array_equal(h, plain_h)
    trained = layer.forward(turn(x), lengths=lengths, return_all=["gates", "c"], recompute=True)
    np.testing.assert_array_equal(trained[3], gates)  # the same bits
    np.testing.assert_array_equal(trained[4], c)
    y, c, gates = turn(y), turn(c), turn(gates)
    assert c.shape == (T, B, D * H) and gates.shape == (T, B, D, 4, H)
    ends = np.full(B, T) if lengths is None else np.array(lengths)
    for b, d in np.ndindex(B, D):
        columns, end = slice(d * H, (d + 1) * H), ends[b]
        assert not c[end:, b].any() and not gates[end:, b].any()
        if end == 0:
            continue
        i, f, g, o = (gates[:end, b, d, k] for k in range(4))
        c_t = c[:end, b, columns]
        before = np.concatenate([np.zeros((1, H)), c_t[:-1]] if d == 0 else [c_t[1:], np.zeros((1, H))])
        np.testing.assert_allclose(c_t, f * before + i * g, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(y[:end, b, columns], o * np.tanh(c_t), rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(c_last[D + d, b], c_t[-1 if d == 0 else 0])


@pytest.mark.parametrize("reset_after", [True, False])
@each_backend
def test_gates_of_a_gru_in_pieces(backend, reset_after):
    layer = elman.GRU(I, H, reset_after=reset_after, dtype="float64", seed=1, backend=backend)
    x, _, _ = numbers(layer)
    y, _, _, gates = layer.forward(x, tbptt=3, burn_in=2, return_all=("gates",))
    r, z, n = (gates[:, :, 0, k] for k in range(3))
    before = np.concatenate([np.zeros((1, B, H)), y[:-1]])
    np.testing.assert_allclose(y, (1 - z) * n + z * before, rtol=1e-12, atol=1e-15)
    assert r.min() > 0 and r.max() < 1 and r.std() > 0.05
    np.testing.assert_allclose(layer(x, return_all=("gates",))[2], gates, rtol=1e-13)
    unbatched = layer(x[:, 1], return_all=("gates",))[2]
    np.testing.assert_allclose(unbatched, gates[:, 1], rtol=1e-13)


@pytest.mark.parametrize(
    "kind, value, error, message",
    [
        ("gru", ("c",), ValueError, "return_all: expected 'gates', got 'c'"),
        ("rnn", ("gates",), ValueError, "return_all: expected nothing"),
        ("lstm", ("h",), ValueError, "return_all: expected 'c' and 'gates', got 'h'"),
        ("lstm", "c", TypeError, "return_all: expected a tuple of names"),
    ],
)
@each_backend
def test_wrong_names_are_refused(backend, kind, value, error, message):
    layer = KINDS[kind](I, H, backend=backend)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=f"^{message}"):
            call(np.zeros((T, B, I), np.float32), return_all=value)


@pytest.mark.parametrize("cls", [partial(elman.CfC, mode="pure"), partial(elman.Jordan, output_size=2), elman.IndRNN])
def test_a_cell_that_offers_nothing_says_so_of_itself(cls):
    layer = cls(I, H)
    message = "^return_all: expected nothing, since this cell offers y alone of every step, got 'gates'$"
    with pytest.raises(ValueError, match=message):
        layer.forward(np.zeros((T, B, I), np.float32), return_all=("gates",))


# ---------------------------------------------------------------------------------------- several of these at once


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "lengths"])
@each_backend
def test_dc_and_grad_clip_in_pieces(backend, lengths):
    """Each piece gets its own steps of dc, and every piece clips."""
    layer = elman.LSTM(I, H, 2, dtype="float64", seed=1, backend=backend, grad_clip=0.0625)
    x, dy, _ = numbers(layer)
    dc = np.random.default_rng(5).standard_normal((T, B, H))
    _, _, tape = layer.forward(x, lengths=lengths, tbptt=4, burn_in=3)
    dx, _, grads = layer.backward(tape, dy, dc=dc)
    ends, total = np.full(B, T) if lengths is None else np.array(lengths), {}
    _, state = layer(x[:3], lengths=np.minimum(ends, 3))
    for start, end in ((3, 7), (7, 11)):
        clipped = np.clip(ends - start, 0, end - start)
        _, state, piece = layer.forward(x[start:end], state, lengths=clipped)
        dx_piece, _, grads_piece = layer.backward(piece, dy[start:end], dc=dc[start:end])
        np.testing.assert_allclose(dx[start:end], dx_piece, rtol=0, atol=1e-13)
        total = {name: total.get(name, 0) + a for name, a in grads_piece.items()}
    assert_same(dict(grads), total, 1e-13)
    free = elman.LSTM(I, H, 2, dtype="float64", seed=1, backend=backend)
    other = free.backward(free.forward(x, lengths=lengths, tbptt=4, burn_in=3)[2], dy, dc=dc)[0]
    assert np.abs(dx[7:] - other[7:]).max() > 1e-3 and np.abs(dx[3:7] - other[3:7]).max() > 1e-3


@each_backend
def test_without_a_batch(backend):
    """One sequence alone, and as a batch of one: with a length, pieces and dc."""
    layer = elman.LSTM(I, H, dtype="float64", seed=1, backend=backend)
    x, dy, _ = numbers(layer, B=1)
    dc = np.random.default_rng(5).standard_normal((T, 1, H))
    results = []
    for cut in (lambda a: a, lambda a: a[:, 0]):
        lengths = [9] if cut(x).ndim == 3 else 9
        y, _, tape, c = layer.forward(cut(x), lengths=lengths, tbptt=4, return_all=("c",))
        dx, _, grads = layer.backward(tape, cut(dy), dc=cut(dc))
        results.append({"y": y.reshape(T, H), "c": c.reshape(T, H), "dx": dx.reshape(T, I), **grads})
    assert_same(results[1], results[0], 0)
    assert not results[0]["y"][9:].any() and results[0]["y"][:9].all()


@pytest.mark.parametrize("merge", MERGED)
@each_backend
def test_merged_layers_with_dropout_by_differences(backend, merge):
    layer = elman.GRU(I, H, 3, bidirectional=True, merge=merge, dropout=0.5, dtype="float64", seed=1, backend=backend)
    x, dy, _ = numbers(layer)
    _, _, tape = layer.forward(x, rng=3)
    dx, _, grads = layer.backward(tape, dy)
    assert np.abs(layer.forward(x, rng=4)[0] - layer.forward(x, rng=3)[0]).max() > 1e-3
    direction = np.random.default_rng(6).standard_normal(x.shape)
    above, below = (layer.forward(x + step * direction, rng=3)[0] for step in (1e-6, -1e-6))
    assert (dx * direction).sum() == pytest.approx(((above - below) * dy).sum() / 2e-6, rel=1e-6)
    weights = {name: a.copy() for name, a in layer.params.items()}
    toward = {name: np.random.default_rng(7).standard_normal(a.shape) for name, a in weights.items()}
    losses = []
    for step in (1e-6, -1e-6):
        layer.load_params({name: a + step * toward[name] for name, a in weights.items()})
        losses.append((layer.forward(x, rng=3)[0] * dy).sum())
    slope = sum((grads[name] * toward[name]).sum() for name in weights)
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("coupled", [None, "f=1-i", "i=1-f"])
@each_backend
def test_gates_of_coupled_cells(backend, coupled):
    layer = elman.LSTM(I, H, coupled=coupled, peephole=True, dtype="float64", seed=1, backend=backend)
    x, _, _ = numbers(layer)
    y, _, c, gates = layer(x, return_all=("c", "gates"))
    i, f, g, o = (gates[:, :, 0, k] for k in range(4))
    before = np.concatenate([np.zeros((1, B, H)), c[:-1]])
    np.testing.assert_allclose(c, f * before + i * g, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(y, o * np.tanh(c), rtol=1e-12, atol=1e-15)
    assert np.allclose(i + f, 1) == (coupled is not None)
    p = layer.params  # i and f from their own equations where they are not coupled
    a = x @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"]
    a += np.concatenate([np.zeros((1, B, H)), y[:-1]]) @ p["weight_hh_l0"].T
    k, name = (1, "weight_cf_l0") if coupled == "i=1-f" else (0, "weight_ci_l0")
    alone = 1 / (1 + np.exp(-(a[..., k * H : (k + 1) * H] + p[name] * before)))
    np.testing.assert_allclose((i, f)[k], alone, rtol=1e-12)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["plain", "lengths"])
@each_backend
def test_gates_of_both_directions_of_a_gru(backend, lengths):
    layer = elman.GRU(I, H, bidirectional=True, dtype="float64", seed=1, backend=backend)
    x, _, _ = numbers(layer)
    y, _, gates = layer(x, lengths=lengths, return_all=("gates",))
    for b, end in enumerate([T] * B if lengths is None else lengths):
        for d in range(2 if end else 0):
            h = y[:end, b, d * H : (d + 1) * H]
            before = np.concatenate([np.zeros((1, H)), h[:-1]] if d == 0 else [h[1:], np.zeros((1, H))])
            _, z, n = (gates[:end, b, d, k] for k in range(3))
            np.testing.assert_allclose(h, (1 - z) * n + z * before, rtol=1e-12, atol=1e-15)


def test_names_are_asked_for_once():
    with pytest.raises(ValueError, match="^return_all: expected each name once"):
        elman.LSTM(I, H)(np.zeros((T, B, I), np.float32), return_all=("c", "c"))
    with pytest.raises(TypeError, match="^return_all: expected a tuple of names"):
        elman.LSTM(I, H)(np.zeros((T, B, I), np.float32), return_all=np.array(["c"]))
