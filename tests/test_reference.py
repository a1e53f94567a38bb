"""The NumPy equations, proved first: everything else is compared with them.

Gradients against central differences for every argument; outputs against values worked out by hand and ONNX Runtime;
lengths, resets and steps against plain runs. The checks are functions of the module under test, so that each of them
can be shown to fail: a copy of the module with a bug planted in its source must not pass.
"""

import functools
import re
import warnings

import helpers
import numpy as np
import pytest
from helpers import CELLS, COUPLED, assert_same, mutant, problem

from elman import reference

T, B, I, H = 5, 4, 2, 3  # small, and all different
LENGTHS = [3, 0, 5, 1]
RESET = np.zeros((T, B), bool)
RESET[0, 0] = RESET[2, 0] = True  # at the start, and at the last step of a sequence of 3
RESET[4, 0] = RESET[0, 1] = True  # past the end of the sequence of 3, and of the one of 0
RESET[1, 2] = RESET[3, 2] = RESET[4, 2] = True  # two steps in a row
RESET[1, 3] = True  # right behind the end of the sequence of 1
MASKS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET},
    "lengths+reset": {"lengths": LENGTHS, "reset": RESET},
}

each_cell = pytest.mark.parametrize("cell", [pytest.param(c, id=name) for name, c in CELLS.items()])
each_D = pytest.mark.parametrize("D", [1, 2], ids=["forward", "bidirectional"])


# ------------------------------------------------------------------------------------------------ central differences


def numerical_gradients(module, p, step=1e-5):
    """The gradient of L = sum(y * dy) + sum(state * dstate) by central differences, for each element of each argument.

    The differences are taken of the outputs, before they are summed: the sum's rounding would drown them.
    """
    cotangent = np.concatenate([np.where(p.inside, p.dy, 0).ravel()] + [d.ravel() for d in p.dstate])

    def outputs():
        y, state, _ = p.forward(module, training=False)
        return np.concatenate([y.ravel()] + [part.ravel() for part in state])

    active = outputs() > 0
    kinked = p.cell.options.get("nonlinearity") == "relu"
    assert not kinked or (active.any() and not active.all()), "both sides of the kink"
    gradients = {}
    for name, a in p.arguments().items():
        gradients[name] = np.zeros_like(a)
        for index in np.ndindex(a.shape):
            if name == "x" and not p.inside[index[:2]]:
                continue  # NaN, and its gradient is 0
            value = a[index]
            a[index] = value + step
            above = outputs()
            a[index] = value - step
            below = outputs()
            a[index] = value
            for moved in (above, below):
                assert not kinked or ((moved > 0) == active).all(), "a kink of relu within the step: take another seed"
            gradients[name][index] = (above - below) @ cotangent / (2 * step)
    return gradients


@functools.cache
def gradient_problem(name, D, masks):
    """A problem, and its gradients by differences."""
    p = problem(CELLS[name], T, B, I, H, D, **MASKS[masks])
    return p, numerical_gradients(reference, p)


def check_gradients(module, name, D, masks, tolerance=1e-8):
    p, expected = gradient_problem(name, D, masks)
    for argument, e in expected.items():
        assert np.abs(e).max() > 0.01, f"the gradient of {argument} is too small to show anything"
    _, _, tape = p.forward(module)
    got = p.backward(module, tape)
    assert_same(got, expected, tolerance)
    assert not got["x"][~p.inside[:, :, 0]].any(), "dx past the end"


@pytest.mark.parametrize("masks", MASKS)
@each_D
@pytest.mark.parametrize("name", CELLS)
def test_gradients(name, D, masks):
    check_gradients(reference, name, D, masks)


BUGS = [  # cell, masks, function of elman.reference, the right source, the wrong one
    ("rnn-tanh", "plain", "_linear_backward", "da.T @ x", "-da.T @ x"),
    ("rnn-tanh", "plain", "_rnn_cell", "_linear_backward(da, h, W_hh)", "_linear_backward(da, h_t, W_hh)"),
    ("rnn-tanh", "plain", "_backward", "direct_part[t, rows, columns[i]]", "direct_part[t - 1, rows, columns[i]]"),
    ("rnn-tanh", "plain", "_backward", "dafter[i] + direct_part", "direct_part"),
    ("rnn-tanh", "plain", "_backward", "total += addend", "total[...] = addend"),
    ("rnn-tanh", "plain", "_backward", "dx[t, rows] += dx_t", "dx[t, rows] = dx_t"),
    ("rnn-tanh", "reset", "_backward", "np.where(cut, 0, _clip(limit, new + beside))", "_clip(limit, new + beside)"),
    ("rnn-tanh", "lengths", "_backward", "dx[t, rows] += dx_t", "dx[t, :] += dx_t.mean(axis=0)"),
    ("rnn-relu", "plain", "_rnn_cell", "da = dh_t * slope(h_t)", "da = dh_t"),
    ("rnn-sigmoid", "plain", "_rnn_cell", "da = dh_t * slope(h_t)", "da = dh_t * slope(h)"),
    ("lstm", "plain", "_lstm_step_backward", "df = dc_t * c\n", "df = dc_t * c_t\n"),
    ("lstm", "plain", "_lstm_step_backward", "di = dc_t * g", "di = -dc_t * g"),
    ("lstm", "plain", "_lstm_step_backward", "(1 - g**2)", "(1 + g**2)"),
    ("lstm", "plain", "_lstm_step_backward", "dc = dc_t * f", "dc = dc_t"),
    ("lstm", "plain", "_lstm_step_backward", "dc_t = dc_t + dh_t", "dc_t = dh_t"),
    ("lstm", "plain", "_lstm_step_backward", "[da_i, da_f, da_g, da_o]", "[da_i, da_g, da_f, da_o]"),
    ("lstm", "plain", "_backward", "[part[rows] for part in dstate_t]", "[0 * part[rows] for part in dstate_t]"),
    ("gru-after", "plain", "_gru_after_step_backward", "(h - n)", "(n - h)"),
    ("gru-after", "plain", "_gru_after_step_backward", "dah_n = da_n * r", "dah_n = da_n"),
    ("gru-after", "plain", "_gru_after_step_backward", "dh = dh + dh_t * z", "dh = dh"),
    ("gru-after", "plain", "_gru_after_step_backward", "dr = da_n * ah_n", "dr = da_n * h"),
    ("gru-before", "plain", "_gru_before_step_backward", "dr = drh * h", "dr = drh * n"),
    ("gru-before", "plain", "_gru_before_step_backward", "drh * r", "drh"),
    ("gru-before", "plain", "_gru_before_step_backward", "(da_n, r * h, W_hn)", "(da_n, h, W_hn)"),
    ("rnn-any", "plain", "_clip_backward", "np.where(np.abs(a) < limit, da, 0)", "da"),
    ("lstm-any", "plain", "_lstm_any", " + peep(p_i, da_i)", ""),
    ("lstm-any", "plain", "_lstm_any", "(da_o, c_t))]", "(da_o, c))]"),
    ("lstm-any", "plain", "_lstm_any", "output.backward(c_t, dh_t * o)", "output.backward(c, dh_t * o)"),
    ("gru-after-any", "plain", "_gru_after_any", "da_n * ah_n", "da_n * h"),
    ("gru-before-any", "plain", "_gru_before_any", "drh * r", "drh"),
]


@pytest.mark.parametrize("name, masks, function, right, wrong", BUGS, ids=[f"{b[0]}:{b[4].strip()}" for b in BUGS])
def test_gradients_reveal_a_planted_bug(name, masks, function, right, wrong):
    with pytest.raises(AssertionError, match="Not equal to tolerance|past the end"):
        check_gradients(mutant(reference, function, right, wrong), name, 2, masks)


# ------------------------------------------------------------------------------------------------------ values by hand

# One step, I = 1, H = 2, with k and j counting rows and columns from 0:
#     weight_ih[k] = (-1)^k (k + 1) / 8    weight_hh[k, j] = (k - 3 j) / 16    x = 1.5
#     bias_ih[k] = k / 32                  bias_hh[k] = (3 - k) / 16           h = (0.25, -0.5)    c = (1, -0.75)
# and weight_c?[k] = (n - 2 k) / 8 for n = 0, 1, 2 and ? = i, f, o, where there are peepholes.
# For the RNN the sums are 0.1875 + 0 + 0.09375 + 0.1875 = 0.46875 and -0.375 + 0.03125 + 0.078125 + 0.125 = -0.140625.
# The rest was evaluated from the equations of cells.md one number at a time, with 30 digits (mpmath).
BY_HAND = {
    "rnn-tanh": [[0.437188785141712324, -0.139705302828314218]],
    "rnn-relu": [[0.46875, 0.0]],
    "rnn-sigmoid": [[0.615087855516066491, 0.464901571373388467]],
    "lstm": [[0.645765309833468106, -0.0982716673603206955], [1.15550838556624298, -0.632587108593283153]],
    "gru-after": [[0.419772029176725981, -0.674713120679301161]],
    "gru-before": [[0.417294276630654423, -0.688668033983901863]],
    "rnn-any": [[0.422200650927521361, -0.131349270200480571]],
    "lstm-any": [[0.446744723395101383, -0.0756321887793029881], [1.20471650406595295, -0.708210758285088794]],
    "gru-after-any": [[0.331429606285099773, -0.503164228954486385]],
    "gru-before-any": [[0.375871801540652768, -0.600002004008157216]],
}


def check_values(module, name, dtype=np.float64):
    cell = CELLS[name]
    k, j = np.arange(cell.gates * 2), np.arange(2)
    weights = [((-1.0) ** k * (k + 1) / 8)[:, None], (k[:, None] - 3 * j) / 16, k / 32, (3 - k) / 16]
    weights += [(n - 2 * j) / 8 for n in range(len(cell.units))]
    weights = [tuple(w.astype(dtype) for w in weights)]
    state = [np.array([[part]], dtype) for part in ([0.25, -0.5], [1, -0.75])[: len(cell.parts)]]
    y, after, _ = cell.run(module, "forward", np.array([[[1.5]]], dtype), cell.state(state), weights)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y[0, 0], BY_HAND[name][0], rtol=tolerance, atol=0)
    for part, expected in zip(cell.parts_of(after), BY_HAND[name], strict=True):
        np.testing.assert_allclose(part[0, 0], expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_values_by_hand(name, dtype):
    check_values(reference, name, dtype)


@pytest.mark.parametrize(
    "name, function, right, wrong",
    [
        ("rnn-tanh", "_linear", "W.T + b", "W.T - b"),
        ("rnn-sigmoid", "_sigmoid", "-np.abs(x)", "np.abs(x)"),
        ("lstm", "_lstm_step", "f * c + i * g", "f * c - i * g"),
        ("lstm", "_lstm_step", "a_i, a_f, a_g, a_o", "a_i, a_f, a_o, a_g"),
        ("gru-after", "_gru_after_step", "(1 - z) * n + z * h", "(1 - z) * h + z * n"),
        ("gru-after", "_gru_after_step", "r * ah_n", "ah_n"),
        ("gru-before", "_gru_before_step", "_linear(r * h, W_hn, b_hn)", "r * _linear(h, W_hn, b_hn)"),
    ],
)
def test_values_reveal_a_planted_bug(name, function, right, wrong):
    with pytest.raises(AssertionError):
        check_values(mutant(reference, function, right, wrong), name)


def test_a_gradient_by_hand():
    """One step of an RNN with one unit: h_1 = tanh(a), a = 0.5 * 1 + 0.1 - 0.3 * 0.2 + 0.05 = 0.59, and L = 2 h_1."""
    x, h0 = np.array([[[1.0]]]), np.array([[[0.2]]])
    weights = [(np.array([[0.5]]), np.array([[-0.3]]), np.array([0.1]), np.array([0.05]))]
    y, h, tape = reference.rnn_forward(x, h0, weights)
    assert y[0, 0, 0] == h[0, 0, 0] == pytest.approx(np.tanh(0.59), rel=1e-15)
    dx, dh0, [dweights] = reference.rnn_backward(tape, np.array([[[2.0]]]))
    da = 2 * (1 - np.tanh(0.59) ** 2)
    assert dx.item() == pytest.approx(da * 0.5, rel=1e-14)
    assert dh0.item() == pytest.approx(da * -0.3, rel=1e-14)
    assert [d.item() for d in dweights] == pytest.approx([da * 1.0, da * 0.2, da, da], rel=1e-14)


# ------------------------------------------------------------------------------------- ONNX Runtime as another witness

ONNX = {  # operator, its activations for one direction, other attributes, canonical gate k = ONNX gate order[k]
    "rnn-tanh": ("RNN", ["Tanh"], {}, [0]),
    "rnn-relu": ("RNN", ["Relu"], {}, [0]),
    "rnn-sigmoid": ("RNN", ["Sigmoid"], {}, [0]),
    "lstm": ("LSTM", ["Sigmoid", "Tanh", "Tanh"], {}, [0, 3, 1, 2]),
    "gru-after": ("GRU", ["Sigmoid", "Tanh"], {"linear_before_reset": 1}, [1, 0, 2]),
    "gru-before": ("GRU", ["Sigmoid", "Tanh"], {"linear_before_reset": 0}, [1, 0, 2]),
    "rnn-any": ("RNN", ["ScaledTanh"], {"clip": 0.875}, [0]),
    "lstm-any": ("LSTM", ["Sigmoid", "ScaledTanh", "Softsign"], {"clip": 1.5}, [0, 3, 1, 2]),
    "lstm-coupled": ("LSTM", ["Sigmoid", "Tanh", "Tanh"], {"clip": 1.5, "input_forget": 1}, [0, 3, 1, 2]),
    "gru-after-any": ("GRU", ["HardSigmoid", "Softsign"], {"linear_before_reset": 1, "clip": 1.5}, [1, 0, 2]),
    "gru-before-any": ("GRU", ["Sigmoid", "ScaledTanh"], {"linear_before_reset": 0, "clip": 1.25}, [1, 0, 2]),
}


@pytest.mark.parametrize("lengths", [None, [4, 7, 1]], ids=["plain", "lengths"])
@each_D
@pytest.mark.parametrize("name", ONNX)
def test_outputs_of_onnxruntime(name, D, lengths):
    """float32 only: ONNX Runtime has no float64 GRU. No length is 0: there it returns zeros, not the initial state."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    cell = CELLS.get(name, COUPLED)
    T, B, I, H = 7, 3, 5, 4
    p = problem(cell, T, B, I, H, D, np.float32, lengths=lengths)
    operator, activations, attributes, order = ONNX[name]

    def reordered(blocks):
        return np.concatenate([np.split(blocks, cell.gates)[k] for k in order])

    feeds = {
        "X": np.where(p.inside, p.x, 0),
        "W": np.stack([reordered(w[0]) for w in p.weights]),
        "R": np.stack([reordered(w[1]) for w in p.weights]),
        "B": np.stack([np.concatenate([reordered(w[2]), reordered(w[3])]) for w in p.weights]),
        "sequence_lens": np.full(B, T, np.int32) if lengths is None else np.array(lengths, np.int32),
    }
    feeds.update({f"initial_{part}": a for part, a in zip(cell.parts, p.state, strict=True)})
    if cell.units:
        feeds["P"] = np.stack([np.concatenate([w[4], w[6], w[5]]) for w in p.weights])  # i, o, f
    chosen = cell.options.get("activations", (cell.options.get("nonlinearity"),))
    numbers = [a[1:] for a in chosen if isinstance(a, tuple)] * D
    names = ["Y"] + [f"Y_{part}" for part in cell.parts]
    node = onnx.helper.make_node(
        operator,
        list(feeds),
        names,
        hidden_size=H,
        direction="forward" if D == 1 else "bidirectional",
        activations=activations * D,
        **(
            {"activation_alpha": [a[0] for a in numbers], "activation_beta": [a[1] for a in numbers]} if numbers else {}
        ),
        **attributes,
    )
    kinds = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int32): onnx.TensorProto.INT32}
    graph = onnx.helper.make_graph(
        [node],
        name,
        [onnx.helper.make_tensor_value_info(n, kinds[a.dtype], a.shape) for n, a in feeds.items()],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    Y, *state = session.run(None, feeds)

    expected = {"y": Y.transpose(0, 2, 1, 3).reshape(T, B, D * H)} | dict(zip(cell.parts, state, strict=True))
    y, state, _ = p.forward(reference)
    assert_same({"y": y} | dict(zip(cell.parts, state, strict=True)), expected, 1e-6)


# ------------------------------------------------------------------------------------------ time: unfolding and pieces


@each_cell
def test_unfolding(cell):
    """T steps at once, one step at a time, and in two pieces with the state carried over."""
    p = problem(cell, T, B, I, H)
    y, state, _ = p.forward(reference)

    carried = [part.copy() for part in p.state]
    for t in range(T):
        y_t = cell.run(reference, "step", p.x[t], cell.state(carried), [p.weights])
        np.testing.assert_allclose(y_t, y[t], rtol=0, atol=1e-14)
    np.testing.assert_allclose(carried, state, rtol=0, atol=1e-14)

    carried = cell.state(p.state)
    pieces = []
    for x in (p.x[:2], p.x[2:]):
        piece, carried, _ = cell.run(reference, "forward", x, carried, p.weights)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces), y, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cell.parts_of(carried), state, rtol=0, atol=1e-14)


@each_cell
def test_gradients_in_pieces(cell):
    """BPTT over two pieces, the second one's dstate handed to the first, is BPTT over the whole."""
    p = problem(cell, T, B, I, H)
    whole = p.backward(reference, p.forward(reference)[2])

    _, state, tape_1 = cell.run(reference, "forward", p.x[:2], cell.state(p.state), p.weights)
    _, _, tape_2 = cell.run(reference, "forward", p.x[2:], state, p.weights)
    dx_2, dstate, [dw_2] = cell.run(reference, "backward", tape_2, p.dy[2:], cell.state(p.dstate))
    dx_1, dstate, [dw_1] = cell.run(reference, "backward", tape_1, p.dy[:2], dstate)
    got = {"x": np.concatenate([dx_1, dx_2])}
    got.update({f"{part}0": d for part, d in zip(cell.parts, cell.parts_of(dstate), strict=True)})
    got.update({name: a + b for name, a, b in zip(list(whole)[-len(dw_1) :], dw_1, dw_2, strict=True)})
    assert_same(got, whole, 1e-14)


@each_cell
def test_step_runs_a_stack(cell):
    """step through two layers is forward through one after the other; `out` receives y."""
    lower, upper = problem(cell, T, B, I, H), problem(cell, T, B, H, H, seed=1)
    between, state_1, _ = lower.forward(reference)
    y, state_2, _ = cell.run(reference, "forward", between, cell.state(upper.state), upper.weights)
    state = [np.concatenate(both) for both in zip(lower.state, upper.state, strict=True)]
    out = np.empty((B, H))
    stack = [lower.weights, cell.run(reference, "pack", upper.weights)]
    for t in range(T):
        assert cell.run(reference, "step", lower.x[t], cell.state(state), stack, out=out) is out
        np.testing.assert_allclose(out, y[t], rtol=0, atol=1e-14)
    expected = [np.concatenate(both) for both in zip(state_1, cell.parts_of(state_2), strict=True)]
    np.testing.assert_allclose(state, expected, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------- lengths and resets


def one(p, b, times):
    """Sequence b of a problem alone, and only the steps `times`, without masks."""
    return helpers.Problem(
        cell=p.cell,
        x=p.x[times, b : b + 1],
        state=[part[:, b : b + 1].copy() for part in p.state],
        weights=p.weights,
        dy=p.dy[times, b : b + 1],
        dstate=[part[:, b : b + 1].copy() for part in p.dstate],
    )


def check_lengths(module, cell, D):
    """A ragged batch is each of its sequences alone; the gradients of the weights are the sum of theirs."""
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS)
    ragged = p.results(module)
    total = {name: np.zeros_like(a) for name, a in ragged.items() if "[" in name}
    for b, n in enumerate(LENGTHS):
        alone = one(p, b, slice(n)).results(module)
        for name, a in alone.items():
            if name in total:
                total[name] += a
            else:
                got = ragged[name][:, b : b + 1]
                if name in ("y", "dx"):
                    assert not got[n:].any(), f"{name} past the end"
                    got = got[:n]
                np.testing.assert_allclose(got, a, rtol=0, atol=1e-13, err_msg=name)
    assert_same({name: ragged[name] for name in total}, total, 1e-13)


def check_reset(module, cell, D):
    """A reset splits a sequence into pieces that know nothing of each other, in both directions."""
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS, reset=RESET)
    whole = p.results(module)
    total = {name: np.zeros_like(a) for name, a in whole.items() if "[" in name}
    for b, n in enumerate(LENGTHS):
        cuts = [0] + [t for t in range(1, n) if RESET[t, b]] + [n]
        first, last = 0, len(cuts) - 2
        for k, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
            # The first direction enters by the first piece (unless reset at 0) and leaves by the last, the second
            # the other way round.
            enters = [k == first and not (n and RESET[0, b]), k == last][:D]
            leaves = [k == last, k == first][:D]
            piece = one(p, b, slice(start, stop))
            for d in range(D):
                for part, dpart in zip(piece.state, piece.dstate, strict=True):
                    part[d] = part[d] if enters[d] else 0
                    dpart[d] = dpart[d] if leaves[d] else 0
            alone = piece.results(module)
            for name, a in alone.items():
                if name in total:
                    total[name] += a
                    continue
                if name in ("y", "dx"):
                    pairs = [(whole[name][start:stop, b : b + 1], a)]
                elif name in cell.parts:
                    pairs = [(whole[name][d, b], a[d, 0]) for d in range(D) if leaves[d]]
                else:
                    pairs = [(whole[name][d, b], a[d, 0]) for d in range(D) if enters[d]]
                for got, expected in pairs:
                    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13, err_msg=name)
        if n and RESET[0, b]:
            for part in cell.parts:
                assert not whole[f"d{part}0"][0, b].any(), "the initial state's gradient, where a reset overrides it"
    assert_same({name: whole[name] for name in total}, total, 1e-13)


def check_second_direction(module, cell, D=2):
    """The second direction is the first one on the reversed sequence, with weights and states of its own."""
    both = problem(cell, T, B, I, H, D)
    results = both.results(module)
    y, dx = np.empty_like(results["y"]), np.zeros_like(results["dx"])
    for d, order in enumerate((slice(None), slice(None, None, -1))):
        columns = slice(d * H, (d + 1) * H)
        single = helpers.Problem(
            cell=cell,
            x=both.x[order],
            state=[part[d : d + 1] for part in both.state],
            weights=both.weights[d : d + 1],
            dy=both.dy[order, :, columns],
            dstate=[part[d : d + 1] for part in both.dstate],
        ).results(module)
        y[:, :, columns] = single.pop("y")[order]
        dx += single.pop("dx")[order]
        for name, a in single.items():
            got = results[name.replace("[0]", f"[{d}]")]
            np.testing.assert_allclose(got if "[" in name else got[d : d + 1], a, rtol=0, atol=1e-13, err_msg=name)
    assert_same({"y": results["y"], "dx": results["dx"]}, {"y": y, "dx": dx}, 1e-13)


@each_cell
def test_the_second_direction_is_the_first_reversed(cell):
    check_second_direction(reference, cell)


@each_cell
@each_D
def test_lengths_are_each_sequence_alone(cell, D):
    check_lengths(reference, cell, D)


@each_cell
@each_D
def test_reset_splits_a_sequence(cell, D):
    check_reset(reference, cell, D)


@pytest.mark.parametrize(
    "check, function, right, wrong",
    [
        (check_lengths, "_forward", "t < ends", "t <= ends"),
        (check_lengths, "_forward", "rows = np.flatnonzero(t < ends)", "rows = np.arange(B)"),
        (check_second_direction, "_times", "reversed(range(T))", "range(T)"),
        (check_second_direction, "_forward", "_filled(checked[direction], form)", "_filled(checked[0], form)"),
        (check_reset, "_cuts", "begins[1:]", "begins[:-1]"),
        (check_reset, "_cuts", " & (np.arange(1, T)[:, None] < ends)", ""),
        (check_reset, "_cuts", "if direction == 0", "if direction < 2"),
        (check_reset, "_forward", "np.where(cut, 0, part[rows])", "part[rows]"),
        (check_reset, "_backward", "np.where(cut, 0, _clip(limit, new + beside))", "_clip(limit, new + beside)"),
    ],
)
def test_masks_reveal_a_planted_bug(check, function, right, wrong):
    check(reference, CELLS["lstm"], 2)
    with pytest.raises((AssertionError, IndexError)):
        check(mutant(reference, function, right, wrong), CELLS["lstm"], 2)


@each_cell
@each_D
def test_what_lies_past_the_end_does_not_matter(cell, D):
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS, reset=RESET)
    expected = p.results(reference)
    assert np.isnan(p.x).any() and np.isnan(p.dy).any()
    for anything in (0.0, 1e300, np.inf):
        p.x[:] = np.where(p.inside, p.x, anything)
        p.dy[:] = np.where(p.inside, p.dy, -anything)
        assert_same(p.results(reference), expected, 0)
    for a in expected.values():
        assert np.isfinite(a).all()


@each_cell
@each_D
def test_a_reset_kills_nan(cell, D):
    """Sequence 0 is NaN through its steps 0 and 1, and anew from step 2 on: nothing of it gets there, nor back."""
    p = problem(cell, T, B, I, H, D, reset=np.arange(T)[:, None] * np.ones((1, B)) == 2)
    clean = p.results(reference)
    p.x[:2, 0] = np.nan
    for part in p.state:
        part[0, 0] = np.nan
    y, state, tape = p.forward(reference)
    np.testing.assert_array_equal(y[2:], clean["y"][2:])
    np.testing.assert_array_equal(y[:, 1:], clean["y"][:, 1:])
    assert np.isnan(y[:2, 0]).all()
    np.testing.assert_array_equal(state[0][0], clean["h"][0])
    got = p.backward(reference, tape)
    np.testing.assert_array_equal(got["x"][2:], clean["dx"][2:])
    np.testing.assert_array_equal(got["x"][:, 1:], clean["dx"][:, 1:])

    # NaN in the later piece does not come back into the earlier one, in either direction.
    p = problem(cell, T, B, I, H, D, reset=p.reset)
    p.x[2:, 0] = np.nan
    y, _, tape = p.forward(reference)
    np.testing.assert_array_equal(y[:2], clean["y"][:2])
    np.testing.assert_array_equal(p.backward(reference, tape)["x"][:2], clean["dx"][:2])


@each_cell
def test_a_reset_at_the_first_step_overrides_the_initial_state(cell):
    p = problem(cell, T, B, I, H, reset=np.arange(T)[:, None] * np.ones((1, B)) == 0)
    for part in p.state:
        part[:] = np.nan
    got = p.results(reference)
    p.reset = None
    for part in p.state:
        part[:] = 0
    expected = p.results(reference)
    for part in cell.parts:
        assert not got.pop(f"d{part}0").any() and expected.pop(f"d{part}0").any()
    assert_same(got, expected, 0)


def test_a_state_that_takes_part_in_no_step():
    """Length 0: the initial state comes out and its gradient goes back as it is, and a NaN in it touches no weight."""
    p = problem(CELLS["lstm"], T, B, I, H, 2, lengths=LENGTHS)
    p.state[0][:, 1] = np.nan
    results = p.results(reference)
    np.testing.assert_array_equal(results["h"][:, 1], p.state[0][:, 1])
    np.testing.assert_array_equal(results["c"][:, 1], p.state[1][:, 1])
    np.testing.assert_array_equal(results["dh0"][:, 1], p.dstate[0][:, 1])
    np.testing.assert_array_equal(results["dc0"][:, 1], p.dstate[1][:, 1])
    assert all(np.isfinite(a).all() for name, a in results.items() if "[" in name)


# --------------------------------------------------------------------------------------------------- arguments left out


@each_cell
@each_D
@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(cell, D, T, B):
    p = problem(cell, T, B, I, H, D)
    results = p.results(reference)
    assert results["y"].shape == (T, B, D * H) and results["dx"].shape == (T, B, I)
    for k, part in enumerate(cell.parts):
        np.testing.assert_array_equal(results[part], p.state[k])
        np.testing.assert_array_equal(results[f"d{part}0"], p.dstate[k])
    for name, a in p.arguments().items():
        assert results[f"d{name}"].shape == a.shape
        assert "[" not in name or not results[f"d{name}"].any()
    y_t = cell.run(reference, "step", np.zeros((0, I)), cell.state([np.zeros((1, 0, H))] * 2), [p.weights[:1]])
    assert y_t.shape == (0, H)


@each_cell
@each_D
def test_no_bias_is_a_bias_of_zeros(cell, D):
    p = problem(cell, T, B, I, H, D, bias=False)
    without = p.results(reference)
    zeros = np.zeros(cell.gates * H)
    p.weights = [(w_ih, w_hh, zeros, zeros, *rest) for w_ih, w_hh, _, _, *rest in p.weights]
    expected = {name: a for name, a in p.results(reference).items() if "bias" not in name}
    assert_same(without, expected, 0)
    _, _, tape = problem(cell, T, B, I, H, D, bias=False).forward(reference)
    assert all(dw[2] is None and dw[3] is None for dw in cell.run(reference, "backward", tape)[2])


@each_cell
@each_D
def test_none_is_zeros(cell, D):
    p = problem(cell, T, B, I, H, D)
    for part in p.state + p.dstate:
        part[:] = 0
    p.dy[:] = 0
    forward = [cell.run(reference, "forward", p.x, state, p.weights) for state in (None, cell.state(p.state))]
    np.testing.assert_array_equal(forward[0][0], forward[1][0])
    tape = forward[0][2]
    for dy, dstate in [(None, None), (p.dy, None), (None, cell.state(p.dstate))]:
        dx, dstate0, dweights = cell.run(reference, "backward", tape, dy, dstate)
        assert not dx.any() and not any(part.any() for part in cell.parts_of(dstate0))
        assert not any(d.any() for dw in dweights for d in dw)


def test_none_as_a_part_of_a_state():
    p = problem(CELLS["lstm"], T, B, I, H, 2)
    p.state[0][:] = 0
    p.dstate[1][:] = 0
    expected = p.results(reference)
    p.state[0] = p.dstate[1] = None
    assert_same(p.results(reference), expected, 0)


@each_cell
@each_D
def test_without_training_and_with_packed_weights(cell, D):
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS, reset=RESET)
    y, state, _ = p.forward(reference)
    given = p.weights
    p.weights = cell.run(reference, "pack", given)
    expected = {name: w.copy() for name, w in p.arguments().items()}
    for packed, w in zip(sum(p.weights, ()), sum(given, ()), strict=True):
        w[:] = np.nan  # the packed weights are copies ...
        assert not packed.flags.writeable  # ... that stay what they are
    out = np.full_like(y, np.nan)
    got, after, tape = p.forward(reference, training=False, out=out)
    assert got is out and tape is None
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(after, state)
    assert_same(p.arguments(), expected, 0)


# ------------------------------------------------------------------------------------------------------- memory, dtypes


@each_cell
@each_D
def test_the_tape_can_be_used_again_and_guards_what_it_needs(cell, D):
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS, reset=RESET)
    y, state, tape = p.forward(reference)
    expected = {name: a.copy() for name, a in p.backward(reference, tape).items()}
    y[:] = 7
    for a in state + list(p.arguments().values()) + [p.lengths, p.reset]:
        a[:] = 1
    first = p.backward(reference, tape)
    assert_same(first, expected, 0)
    for a in first.values():
        a[:] = 3
    assert_same(p.backward(reference, tape), expected, 0)


@each_cell
@each_D
def test_nothing_shares_memory_and_no_argument_changes(cell, D):
    p = problem(cell, T, B, I, H, D, lengths=LENGTHS, reset=RESET)
    given = list(p.arguments().values()) + [p.dy, *p.dstate, p.lengths, p.reset]
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    y, state, tape = p.forward(reference)
    got = [y, *state, *p.backward(reference, tape).values()]
    for k, a in enumerate(got):
        assert a.flags.writeable and a.base is None or not any(np.shares_memory(a, other) for other in got[:k])
        assert not any(np.shares_memory(a, other) for other in got[:k] + given)
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)


@each_cell
@each_D
def test_float32_stays_float32(cell, D):
    single = problem(cell, T, B, I, H, D, np.float32, lengths=LENGTHS, reset=RESET)
    double = problem(cell, T, B, I, H, D, np.float64, lengths=LENGTHS, reset=RESET)
    got = single.results(reference)
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}
    assert_same({name: a.astype(np.float64) for name, a in got.items()}, double.results(reference), 1e-6)


@each_cell
def test_any_layout_is_read(cell):
    p = problem(cell, T, B, I, H, 2)
    expected = p.results(reference)
    p.x = np.asfortranarray(p.x)
    p.dy = p.dy[:, :, ::-1].copy()[:, :, ::-1]
    p.state = [np.repeat(part, 2, axis=1)[:, ::2] for part in p.state]
    p.weights = [tuple(np.asfortranarray(w) for w in ws) for ws in p.weights]
    assert_same(p.results(reference), expected, 1e-14)


# ---------------------------------------------------------------------------------------------------- extreme numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_elementwise_functions(dtype):
    big = np.finfo(dtype).max
    x = np.array([-np.inf, -big, -1000, -1, -0.0, 0, 1, 1000, big, np.inf, np.nan], dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        s, t, e = reference.sigmoid(x), reference.tanh(x), reference.exp(x)
    one = 1 / (1 + np.exp(np.float64(-1)))
    close = {"rtol": 2 * np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(s, [0, 0, 0, 1 - one, 0.5, 0.5, one, 1, 1, 1, np.nan], **close)
    np.testing.assert_allclose(t, [-1, -1, -1, -np.tanh(1), 0, 0, np.tanh(1), 1, 1, 1, np.nan], **close)
    np.testing.assert_allclose(e, [0, 0, 0, 1 / np.e, 1, 1, np.e, np.inf, np.inf, np.inf, np.nan], **close)
    assert s.dtype == t.dtype == e.dtype == dtype
    x = np.linspace(-30, 30, 1001).astype(dtype)
    exact = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    np.testing.assert_allclose(reference.sigmoid(x), exact.astype(np.float64), rtol=4 * np.finfo(dtype).eps)
    assert reference.exp(x.reshape(7, 11, 13)).shape == (7, 11, 13) and reference.tanh(dtype(2)).shape == ()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_large_numbers_saturate_silently(name, dtype):
    """No warning, whatever np.seterr says. Weights of one sign: their products overflow, but nothing is inf - inf."""
    cell = CELLS[name]
    p = problem(cell, T, B, I, H, 2, dtype)
    p.x[:] = np.finfo(dtype).max / 2
    p.weights = [tuple(np.abs(w) + 3 for w in ws) for ws in p.weights]
    for part in p.state:
        part[:] = 0.5
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        y, state, tape = p.forward(reference)
        p.backward(reference, tape)
        carried = cell.state([part[:1] for part in state])
        cell.run(reference, "step", p.x[0], carried, [p.weights[:1]])
    gate, after = SATURATED[name]
    h, c = 0.5, 0.5
    for y_t in y[:2, :, :H]:
        h, c = after(gate, h, c)
        np.testing.assert_allclose(y_t, np.full((B, H), h), rtol=1e-6)


SIGMOID = 1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(-1.25))  # at the clips below
SATURATED = {  # a gate that is open as far as it goes, and what a step makes of it
    "rnn-tanh": (1, lambda s, h, c: (1, 0)),
    "rnn-relu": (1, lambda s, h, c: (np.inf, 0)),
    "rnn-sigmoid": (1, lambda s, h, c: (1, 0)),
    "lstm": (1, lambda s, h, c: (s * np.tanh(s * c + s * 1), s * c + s * 1)),
    "gru-after": (1, lambda s, h, c: ((1 - s) * 1 + s * h, 0)),
    "gru-before": (1, lambda s, h, c: ((1 - s) * 1 + s * h, 0)),
    "rnn-any": (1, lambda s, h, c: (1.25 * np.tanh(0.75 * 0.875), 0)),
    "lstm-any": (SIGMOID[0], lambda s, h, c: (s * softsign(c_t := s * c + s * 1.25 * np.tanh(0.75 * 1.5)), c_t)),
    "gru-after-any": (0.25 * 1.5 + 0.5, lambda s, h, c: ((1 - s) * softsign(1.5) + s * h, 0)),
    "gru-before-any": (SIGMOID[1], lambda s, h, c: ((1 - s) * 0.75 * np.tanh(1.25 * 1.25) + s * h, 0)),
}


def softsign(a):
    return a / (1 + abs(a))


@each_cell
def test_nan_and_infinity_travel(cell):
    p = problem(cell, T, B, I, H)
    clean = p.forward(reference)[0]
    p.x[2, 1, 0] = np.nan
    p.x[2, 2, 0] = np.inf
    y, state, _ = p.forward(reference)
    assert np.isnan(y[2:, 1]).all() and np.isnan(state[0][0, 1]).all()
    np.testing.assert_array_equal(y[:2], clean[:2])
    np.testing.assert_array_equal(y[:, [0, 3]], clean[:, [0, 3]])
    assert not np.array_equal(y[2, 2], clean[2, 2])
    if cell is not CELLS["rnn-relu"]:
        assert (np.abs(y[2, 2]) <= 1 + np.abs(p.state[0]).max()).all()


# ------------------------------------------------------------------------------------------------------ wrong arguments


def wrong_calls(cell):
    """(expected error, name of the argument, call) for one-directional problems; the calls change nothing."""
    p = problem(cell, T, B, I, H)
    parts = len(cell.parts)
    name = f"state: {cell.parts[-1]}"
    state = cell.state(p.state)
    good = {"x": p.x, "state": state, "weights": p.weights}
    tape = p.forward(reference)[2]
    other = CELLS["gru-after" if cell.name == "lstm" else "lstm"]
    other_tape = problem(other, T, B, I, H).forward(reference)[2]
    short = cell.state(p.state[:-1] + [p.state[-1][:, :-1]])
    single = cell.state(p.state[:-1] + [p.state[-1].astype(np.float32)])

    def forward(**changed):
        return lambda: cell.run(reference, "forward", **(good | changed))

    def backward(*arguments):
        return lambda: cell.run(reference, "backward", *arguments)

    def step(**changed):
        return lambda: cell.run(reference, "step", **({"x": p.x[0], "state": state, "stack": [p.weights]} | changed))

    two = problem(cell, T, B, I, H, 2).weights
    read_only = [part.copy() for part in p.state]
    read_only[-1].flags.writeable = False
    yield TypeError, "x", forward(x=p.x.astype(np.float32))
    yield ValueError, "x", forward(x=p.x[0])
    yield ValueError, "x", forward(x=p.x[:, :, :1])
    yield ValueError, name, forward(state=short)
    yield TypeError, name, forward(state=single)
    yield TypeError if parts == 1 else ValueError, "state", forward(state=tuple(p.state + p.state))
    yield TypeError, "weights", forward(weights=p.weights[0][0])
    yield ValueError, "weights[0]: weight_hh", forward(weights=[tuple(np.ones((7, 3)) for _ in range(4))])
    yield ValueError, "weights[1]: weight_ih", forward(weights=[two[0], (two[1][0][:, :1], *two[1][1:])])
    yield TypeError, "lengths", forward(lengths=np.ones(B))
    yield ValueError, "lengths", forward(lengths=[0, 1, 2, T + 1])
    yield ValueError, "reset", forward(reset=RESET[:, 1:])
    yield TypeError, "reset", forward(reset=RESET.astype(float))
    yield TypeError, "training", forward(training=1)
    yield ValueError, "out", forward(out=np.empty((T, B, H + 1)))
    yield TypeError, "out", forward(out=np.empty((T, B, H), np.float32))
    yield TypeError, "tape", backward(None, p.dy)
    yield TypeError, "tape", backward(other_tape, None)
    yield ValueError, "dy", backward(tape, p.dy[1:])
    yield TypeError, "dy", backward(tape, p.dy.astype(np.float32))
    yield ValueError, f"d{name}", backward(tape, None, short)
    yield TypeError, f"d{name}", backward(tape, None, single)
    yield ValueError, "x", step(x=p.x)
    yield ValueError, name, step(state=short)
    yield TypeError, name, step(state=single)
    yield ValueError, name, step(state=cell.state(read_only))
    yield TypeError, name, step(state=None if parts == 1 else (p.state[0], None))
    yield ValueError, "stack", step(stack=[])
    yield TypeError, "stack", step(stack=p.weights[0][0])
    yield ValueError, "stack[0]", step(stack=[two])
    yield ValueError, "stack[1]", step(stack=[p.weights, p.weights])  # I != H
    yield ValueError, "out", step(out=p.state[0][0])
    if cell.name == "rnn":
        yield ValueError, "nonlinearity", lambda: reference.rnn_forward(p.x, None, p.weights, nonlinearity="Tanh")
        yield ValueError, "nonlinearity", lambda: reference.rnn_pack(p.weights, nonlinearity=None)
    if cell.name == "gru":
        yield TypeError, "reset_after", lambda: reference.gru_forward(p.x, None, p.weights, reset_after=1)
        yield ValueError, "weights", forward(weights=reference.gru_pack(p.weights, reset_after=False))
        yield ValueError, "stack[0]", step(stack=[reference.gru_pack(p.weights, reset_after=False)])
    if cell.name == "lstm":
        yield ValueError, "state: c", step(state=(p.state[0], p.state[0]))


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru-after"])
def test_wrong_arguments(name):
    cell = CELLS[name]
    for error, argument, call in wrong_calls(cell):
        with pytest.raises(error, match=f"^{re.escape(argument)}"):
            call()


@pytest.mark.parametrize("value", [np.arange(3), [1, 2], np.ones(2, np.float16), "1", None], ids=repr)
def test_elementwise_functions_take_floats_only(value):
    for function in (reference.exp, reference.sigmoid, reference.tanh):
        with pytest.raises(TypeError, match="^x: expected float32 or float64"):
            function(value)


@each_cell
def test_a_refused_call_changes_nothing(cell):
    p = problem(cell, T, B, I, H)
    state = [part.copy() for part in p.state]
    out = np.full((B, H), 7.0)
    for changed in ({"x": p.x[0, :2]}, {"stack": [p.weights, p.weights]}, {"out": out[1:]}):
        arguments = {"x": p.x[0], "state": cell.state(state), "stack": [p.weights], "out": out} | changed
        with pytest.raises(ValueError):
            cell.run(reference, "step", **arguments)
    np.testing.assert_array_equal(state, p.state)
    whole = np.full((T, B, H), 7.0)
    with pytest.raises(ValueError, match="^lengths"):
        p.forward(reference, out=whole, lengths=[-1, 0, 0, 0])
    assert (out == 7).all() and (whole == 7).all()


def test_names():
    """elman.functional exports the same ones."""
    cells = [
        f"{cell}_{what}" for cell in ("rnn", "lstm", "gru", "cell") for what in ("pack", "forward", "backward", "step")
    ]
    assert sorted(reference.__all__) == sorted(cells + ["exp", "sigmoid", "tanh"])
