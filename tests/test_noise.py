"""What is random inside the recurrence, and initial states that are learned, as the layers have them. (The gradients
are checked in test_cells.py and test_cells_table.py.)"""

from __future__ import annotations

import numpy as np
import pytest

import elman

T, B, I, H = 7, 5, 3, 8
NOISE = [
    {"zoneout": (0.3, 0.2)},
    {"input_dropout": 0.4},
    {"recurrent_dropout": 0.4},
    {"weight_dropout": 0.4},
    {"dropout": 0.3, "zoneout": (0.1, 0.0), "recurrent_dropout": 0.2, "weight_dropout": 0.2, "input_dropout": 0.1},
]
each_noise = pytest.mark.parametrize("noise", NOISE, ids=lambda noise: "+".join(noise))
each_backend = pytest.mark.parametrize("backend", ["compiled", "reference"])


def x_of(seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((T, B, I)).astype(dtype)


@each_noise
def test_a_seed_says_everything_and_threads_nothing(noise):
    layer = elman.LSTM(I, 64, 2, bidirectional=True, seed=1, **noise)
    x = np.random.default_rng(0).standard_normal((40, 32, I)).astype(np.float32)
    found = []
    for threads in (1, 3):
        with elman.threads(threads):
            y, _, tape = layer.forward(x, rng=5)
            found.append((y.tobytes(), layer.backward(tape, np.ones_like(y))[0].tobytes()))
    assert found[0] == found[1]
    assert layer.forward(x, rng=6)[0].tobytes() != found[0][0]
    again = elman.LSTM(I, 64, 2, bidirectional=True, seed=1, **noise)
    assert layer.forward(x)[0].tobytes() == again.forward(x)[0].tobytes()


@each_noise
def test_both_backends_draw_the_same(noise):
    results = []
    for backend in ("compiled", "reference"):
        layer = elman.LSTM(I, H, 2, seed=1, dtype=np.float64, backend=backend, **noise)
        y, _, tape = layer.forward(x_of(dtype=np.float64), rng=5)
        dx, _, grads = layer.backward(tape, y)
        results.append([y, dx, *grads.values()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("noise", NOISE[1:4], ids=lambda noise: "+".join(noise))
def test_dropout_is_for_training_only(noise):
    plain = elman.LSTM(I, H, 2, seed=1)
    layer = elman.LSTM(I, H, 2, seed=1, **noise)
    layer.load_params(plain.params)
    assert layer(x_of())[0].tobytes() == plain(x_of())[0].tobytes()
    assert layer.forward(x_of(), rng=0)[0].tobytes() != plain(x_of())[0].tobytes()


@each_backend
def test_zoneout_by_its_formula(backend):
    """In evaluation h' = p h + (1 - p) h_new, and c alike; in training a unit has the one or the other."""
    p_h, p_c = 0.3, 0.2
    plain = elman.LSTM(I, H, seed=1, dtype=np.float64, backend=backend)
    layer = elman.LSTM(I, H, seed=1, dtype=np.float64, backend=backend, zoneout=(p_h, p_c))
    x = x_of(dtype=np.float64)
    h, c = np.zeros((2, 1, B, H))
    y, state = layer(x)
    trained, _, _ = layer.forward(x, rng=0)
    for t in range(T):
        new, (_, c_new) = plain(x[t : t + 1], (h, c))
        h, c = p_h * h + (1 - p_h) * new, p_c * c + (1 - p_c) * c_new
        np.testing.assert_allclose(y[t], h[0], rtol=1e-12)
    np.testing.assert_allclose(state.c, c, rtol=1e-12)
    stream = layer.zero_state(B)
    for t in range(T):
        assert layer.step(x[t], stream).tobytes() == y[t].tobytes()
    same = (trained[1:] == trained[:-1]).mean()  # these kept their h
    assert 0.15 < same < 0.45
    always = elman.LSTM(I, H, seed=1, zoneout=(1.0, 1.0), backend=backend)
    assert not always(x_of())[0].any() and not always.forward(x_of(), rng=0)[0].any()


@each_backend
def test_variational_masks_are_the_same_at_all_steps(backend):
    """What the input's mask drops has no gradient, at no step; the others all have the same factor."""
    layer = elman.RNN(I, H, seed=1, input_dropout=0.5, backend=backend)
    x = x_of()
    y, _, tape = layer.forward(x, rng=3)
    dx = layer.backward(tape, np.ones_like(y))[0]
    dropped = (dx == 0).all(axis=0)
    assert 0 < dropped.mean() < 1 and np.array_equal(dropped, (dx == 0).any(axis=0))
    poisoned = np.where(dropped, np.nan, x).astype(np.float32)
    assert layer.forward(poisoned, rng=3)[0].tobytes() == y.tobytes()


def test_dropconnect_drops_weights_for_a_whole_call():
    layer = elman.LSTM(I, H, seed=1, weight_dropout=0.5)
    y, _, tape = layer.forward(x_of(), rng=3)
    dropped = layer.backward(tape, np.ones_like(y))[2]["weight_hh_l0"] == 0
    assert 0.4 < dropped.mean() < 0.6
    with layer.edit() as p:
        p["weight_hh_l0"][dropped] = 1000
    assert layer.forward(x_of(), rng=3)[0].tobytes() == y.tobytes()
    with layer.edit() as p:
        p["weight_hh_l0"][~dropped] *= 2
    thinned = elman.LSTM(I, H, seed=1)
    with thinned.edit() as p:
        p["weight_hh_l0"][dropped] = 0
        p["weight_hh_l0"] *= 2
    np.testing.assert_array_equal(thinned(x_of())[0], y)


@each_backend
@pytest.mark.parametrize("D", [1, 2])
def test_a_learned_initial_state(backend, D):
    layer = elman.LSTM(I, H, 2, bidirectional=D == 2, train_state=True, seed=1, dtype=np.float64, backend=backend)
    rng = np.random.default_rng(0)
    with layer.edit() as p:
        for name in p:
            if name[:2] in ("h0", "c0"):
                assert not p[name].any()
                p[name] = rng.standard_normal(H)
    rows = [f"l{k}{way}" for k in range(2) for way in ("", "_reverse")[:D]]
    begun = [np.stack([layer.params[f"{letter}0_{row}"] for row in rows])[:, None].repeat(B, axis=1) for letter in "hc"]
    x = x_of(dtype=np.float64)
    y, state = layer(x)
    assert y.tobytes() == layer(x, begun)[0].tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(layer.zero_state(B), begun, strict=True))
    assert layer.zero_state().h.shape == (2 * D, H)
    lengths = [7, 0, 3, 1, 7]
    _, _, tape = layer.forward(x, lengths=lengths)
    dy = rng.standard_normal(y.shape)
    _, dstate, grads = layer.backward(tape, dy, (begun[0], begun[1]))
    for letter, part in zip("hc", dstate, strict=True):
        for row, of_row in zip(rows, part, strict=True):
            np.testing.assert_allclose(grads[f"{letter}0_{row}"], of_row.sum(axis=0), rtol=1e-12)
    for partial in ((None, begun[1]), (begun[0], None), (None, None)):
        assert layer(x, partial)[0].tobytes() == y.tobytes()
    _, _, tape = layer.forward(x, (begun[0], None))
    grads = layer.backward(tape, dy)[2]
    assert not grads["h0_l0"].any() and grads["c0_l0"].any()


def test_what_has_no_meaning_is_refused():
    for make, words in [
        (lambda: elman.GRU(2, 3, zoneout=(0.0, 0.1)), "zoneout: c: expected 0, since GRU has no such state"),
        (lambda: elman.SRU(2, 3, zoneout=(0.1, 0.0)), "zoneout: h: expected 0, since SRU has no such state"),
        (lambda: elman.IndRNN(2, 3, recurrent_dropout=0.1), "recurrent_dropout: expected 0, since IndRNN has no"),
        (lambda: elman.SRU(2, 3, weight_dropout=0.1), "weight_dropout: expected 0, since SRU has no recurrent product"),
        (lambda: elman.LSTM(2, 3, proj_size=3), "proj_size: expected less than hidden_size = 3, got 3"),
        (lambda: elman.LSTM(2, 3, proj_clip=1.0), "proj_clip: expected None without a projection"),
        (lambda: elman.LSTM(2, 3, zoneout=(0.1, 1.5)), "zoneout: c: expected"),
        (lambda: elman.RNN(2, 3, leak=1.5), "leak: expected"),
        (lambda: elman.SRU(2, 3, bias=False), "bias: expected True, since the biases of SRU belong to its gates"),
        (
            lambda: elman.AUGRU(2, 3).step(
                np.zeros((1, 2), np.float32), np.zeros((1, 1, 3), np.float32), attention=None
            ),
            "attention",
        ),
        (
            lambda: elman.AUGRU(2, 3).step(
                np.zeros((1, 2), np.float32), np.zeros((1, 1, 3), np.float32), attention=np.zeros(2, np.float32)
            ),
            r"attention: expected shape \(1,\), got",
        ),
        (
            lambda: elman.AUGRU(2, 3).step(
                np.zeros((1, 2), np.float32), np.zeros((1, 1, 3), np.float32), attention=np.zeros(1)
            ),
            "attention: expected dtype float32, got float64",
        ),
        (lambda: elman.reference.cell_pack("rnn", [], coupled="f=1-i"), "coupled: expected none"),
        (lambda: elman.AUGRU(2, 3)(np.zeros((4, 1, 2), np.float32), attention=None), "attention: expected an array"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            make()
    with pytest.raises(TypeError, match="zoneout: expected a pair"):
        elman.LSTM(2, 3, zoneout=0.1)


@pytest.mark.parametrize("D", [1, 2])
def test_projection_as_pytorch(D):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(I, H, 2, bidirectional=D == 2, proj_size=3, dtype=torch.float64)
    ours = elman.LSTM(I, H, 2, bidirectional=D == 2, proj_size=3, dtype=np.float64)
    ours.load_params(theirs.state_dict())
    assert list(ours.params) == list(theirs.state_dict())
    x = torch.tensor(x_of(dtype=np.float64), requires_grad=True)
    y, (h, c) = theirs(x)
    got, state, tape = ours.forward(x.detach().numpy())
    (y.sin().sum() + (h**2).sum() + c.exp().sum()).backward()
    dx, _, grads = ours.backward(tape, np.cos(got), (2 * state.h, np.exp(state.c)))
    for a, b in [(got, y), (state.h, h), (state.c, c), (dx, x.grad)]:
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9, atol=1e-12)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), rtol=1e-9, atol=1e-11, err_msg=name)


def test_gates_of_no_step():
    layer = elman.GRU(3, 4)
    for lengths, T in (([0, 0], 3), (None, 0)):
        *_, gates = layer(np.ones((T, 2, 3), np.float32), lengths=lengths, return_all=("gates",))
        assert gates.shape == (T, 2, 1, 3, 4) and not gates.any()


@pytest.mark.parametrize("layer_norm", ["gate", "joint", "joint_shift"])
def test_what_overflows_in_the_padding_of_a_norm_stays_there(layer_norm):
    """H = 17: the units that fill up the last vector run away while those that are there do not."""
    identity = ("affine", 1.0, 1.0)
    found = []
    for H in (16, 17):
        layer = elman.LSTM(3, H, layer_norm=layer_norm, activations=(("affine", 1.0, 2.0), identity, identity), seed=1)
        with layer.edit() as p:
            for name in p:
                p[name] *= 0.05
                if name.startswith("bias_ih"):
                    p[name] = np.repeat(np.array([-1.9, -1.9, -1.0, -1.9], np.float32), H)
                elif name.startswith("weight_norm"):
                    p[name][...] = 0.01
        x = np.random.default_rng(0).standard_normal((400, 2, 3)).astype(np.float32)
        y, _, tape = layer.forward(x)
        grads = layer.backward(tape, np.ones_like(y))[2]
        found.append(np.isfinite(y).all() and all(np.isfinite(g).all() for g in grads.values()))
    assert found == [True, True]
