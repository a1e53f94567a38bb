"""PyTorch as a second witness, where it has the cell: outputs, final states and every gradient."""

import helpers
import numpy as np
import pytest
from helpers import CELLS, assert_same, mutant, problem

from elman import reference

torch = pytest.importorskip("torch")

implementation = helpers.implementation

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}  # of 1 + the largest element of an array
SHAPES = {"T7-B5-I3-H4": (7, 5, 3, 4), "T12-B2-I9-H17": (12, 2, 9, 17), "T1-B1-I1-H1": (1, 1, 1, 1)}
NAMES = ("rnn-tanh", "rnn-relu", "lstm", "gru-after")

each_name = pytest.mark.parametrize("name", NAMES)
each_D = pytest.mark.parametrize("D", [1, 2], ids=["forward", "bidirectional"])


def run_torch(p):
    """What `Problem.results` gives, computed by PyTorch."""
    T, B, I = p.x.shape
    D, H = p.state[0].shape[0], p.state[0].shape[2]
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[p.cell.name]
    options = {"nonlinearity": p.cell.options["nonlinearity"]} if p.cell.name == "rnn" else {}
    bias = p.weights[0][2] is not None
    layer = kind(I, H, bias=bias, bidirectional=D == 2, dtype=torch.from_numpy(p.x).dtype, **options)
    with torch.no_grad():
        for parameter, values in zip(layer.parameters(), flat(p.weights), strict=True):
            parameter.copy_(torch.from_numpy(values))

    x = torch.from_numpy(np.where(p.inside, p.x, 0)).requires_grad_()
    state = [torch.from_numpy(part.copy()).requires_grad_() for part in p.state]
    lengths = torch.full((B,), T) if p.lengths is None else torch.from_numpy(p.lengths)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, after = layer(packed, p.cell.state(state))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    after = p.cell.parts_of(after)

    cotangents = [torch.from_numpy(d) for d in (np.where(p.inside, p.dy, 0), *p.dstate)]
    torch.autograd.backward([y, *after], cotangents)
    results = {"y": y.detach().numpy()}
    results.update({part: a.detach().numpy() for part, a in zip(p.cell.parts, after, strict=True)})
    leaves = [x, *state, *layer.parameters()]
    results.update({f"d{name}": leaf.grad.numpy() for name, leaf in zip(p.arguments(), leaves, strict=True)})
    return results


def flat(weights):
    return [w for direction in weights for w in direction if w is not None]


def check(module, p):
    dtype = p.x.dtype.type
    assert_same(p.results(module), run_torch(p), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@each_D
@each_name
def test_outputs_and_gradients(implementation, name, D, shape, dtype):
    check(implementation, problem(CELLS[name], *SHAPES[shape], D, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@each_D
@each_name
def test_lengths(implementation, name, D, dtype):
    """In no order. PyTorch refuses a length of 0."""
    check(implementation, problem(CELLS[name], 7, 5, 3, 4, D, dtype, lengths=[3, 7, 1, 5, 2]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@each_D
@each_name
def test_without_bias(implementation, name, D, dtype):
    check(implementation, problem(CELLS[name], 7, 5, 3, 4, D, dtype, bias=False, lengths=[3, 7, 1, 5, 2]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "name, function, right, wrong",
    [
        ("rnn-tanh", "_linear_backward", "da.T @ x", "-da.T @ x"),
        ("rnn-relu", "_rnn_cell", "_linear_backward(da, h, W_hh)", "_linear_backward(da, h_t, W_hh)"),
        ("lstm", "_lstm_step", "a_i, a_f, a_g, a_o", "a_f, a_i, a_g, a_o"),
        ("lstm", "_lstm_step_backward", "df = dc_t * c\n", "df = dc_t * c_t\n"),
        ("lstm", "_lstm_step_backward", "do = dh_t", "do = -dh_t"),
        ("gru-after", "_gru_after_step", "(1 - z) * n + z * h", "(1 - z) * h + z * n"),
        ("gru-after", "_gru_after_step_backward", "dr = da_n * ah_n", "dr = da_n * h"),
        ("gru-after", "_backward", "direct_part[t, rows, columns[i]]", "direct_part[t - 1, rows, columns[i]]"),
    ],
    ids=lambda value: value.strip() if isinstance(value, str) and " " in value else None,
)
def test_the_tolerance_reveals_a_planted_bug(name, function, right, wrong, dtype):
    p = problem(CELLS[name], 7, 5, 3, 4, 2, dtype, lengths=[3, 7, 1, 5, 2])
    check(reference, p)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(mutant(reference, function, right, wrong), p)
