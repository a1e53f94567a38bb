"""The cells that have no functions of their own, and every cell with noise: gradients of the reference by central
differences, kernels against reference, and the promise about bits."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import CELLS, FURTHER, assert_same, problem

import elman
from elman import functional, reference

NOISY = {f"{name} with noise": cell for name, cell in (CELLS | FURTHER).items()}
ALL = FURTHER | NOISY
T, B, I, H = 6, 7, 3, 5
LENGTHS = [6, 0, 3, 1, 6, 4, 2]


def made(name, D=1, dtype=np.float64, T=T, B=B, I=I, H=H, ragged=True, seed=0, **keywords):
    """A problem with everything at once; with noise where the name says so."""
    rng = np.random.default_rng(seed + 1)
    lengths = [LENGTHS[b % 7] * T // 6 for b in range(B)] if ragged else None
    reset = rng.random((T, B)) < 0.2 if ragged else None
    p = problem((CELLS | ALL)[name], T, B, I, H, D, dtype, lengths=lengths, reset=reset, seed=seed, **keywords)
    if not name.endswith("with noise"):
        return p
    R, letters = p.cell.outputs or H, p.cell.parts
    has_h = letters[0] != "c"
    has_c = "c" in letters and len(letters) < 4
    p.noise["zoneout"] = (
        rng.random((T, B, D * R)) < 0.3 if has_h else 0.0,
        0.25 if has_c and len(letters) == 2 else rng.random((T, B, D * H)) < 0.3 if has_c else 0.0,
    )
    if not p.cell.family or p.cell.form.is_recurrent:
        p.noise["recurrent_mask"] = ((rng.random((D, B, R)) < 0.7) / 0.7).astype(dtype)
    return p


def loss(p, module):
    y, state, _ = p.forward(module, training=False)
    total = (np.where(p.inside, y, 0) * np.where(p.inside, p.dy, 0)).sum()
    return total + sum((a * d).sum() for a, d in zip(state, p.dstate))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_gradients_by_central_differences(name, D):
    p = made(name, D, T=4, B=4, I=3, H=4)
    _, _, tape = p.forward(reference)
    gradients = p.backward(reference, tape)
    rng = np.random.default_rng(0)
    worst = 0.0
    for argument, a in p.arguments().items():
        g = gradients[argument]
        assert g.shape == a.shape, argument
        for at in rng.permutation(a.size)[:12]:
            where, eps = np.unravel_index(at, a.shape), 1e-6
            if np.isnan(a[where]):
                assert g[where] == 0, argument
                continue
            old = a[where]
            values = []
            for move in (eps, -eps):
                a[where] = old + move
                values.append(loss(p, reference))
            a[where] = old
            wanted = (values[0] - values[1]) / (2 * eps)
            worst = max(worst, abs(g[where] - wanted) / (1 + abs(wanted)))
            assert abs(g[where] - wanted) < 2e-8 * (1 + abs(wanted)) * 10, (argument, where, g[where], wanted)
    assert 0 < worst  # something was compared


@pytest.mark.parametrize("sizes", [(6, 7, 3, 5), (9, 5, 17, 33), (2, 1, 1, 1), (70, 3, 4, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_kernels_against_reference(name, D, dtype, sizes):
    p = made(name, D, dtype, *sizes)
    tolerance = 3e-5 if dtype == np.float32 else 1e-12
    if "norm" in name and dtype == np.float32:  # what is divided by a small spread has lost digits before
        tolerance = 2e-4
    expected = p.results(reference)
    assert_same(p.results(functional), expected, tolerance)
    _, _, tape = p.forward(functional, recompute=True)
    again = p.backward(functional, tape)
    _, _, tape = p.forward(functional)
    for argument, g in p.backward(functional, tape).items():
        assert g.tobytes() == again[argument].tobytes(), argument


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_bits_alone_in_a_batch_and_on_threads(name, dtype):
    """Large enough for threads, and every sequence alone."""
    T, B, I, H = 11, 24, 33, 64
    p = made(name, 2, dtype, T, B, I, H)
    found = {}
    for threads in (1, 3):
        with elman.threads(threads):
            found[threads] = p.results(functional)
    for key, a in found[1].items():
        assert a.tobytes() == found[3][key].tobytes(), key
    for b in (0, 2, 5):
        alone = made(name, 2, dtype, T, B, I, H)
        for field in ("x", "dy", "lengths", "reset", "row"):
            a = getattr(alone, field)
            setattr(alone, field, None if a is None else a[b : b + 1] if field == "lengths" else a[:, b : b + 1])
        alone.state = [a[:, b : b + 1] for a in alone.state]
        alone.dstate = [a[:, b : b + 1] for a in alone.dstate]
        for key, a in alone.noise.items():
            if key == "zoneout":
                alone.noise[key] = tuple(z[:, b : b + 1] if isinstance(z, np.ndarray) else z for z in a)
            else:
                alone.noise[key] = a[:, b : b + 1]
        got = alone.results(functional)
        for key in ("y", *p.cell.parts, "dx", *(f"d{part}0" for part in p.cell.parts)):
            assert got[key].tobytes() == found[1][key][:, b : b + 1].tobytes(), key


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ALL)
def test_steps_are_the_whole(name, module):
    p = made(name, ragged=False, dtype=np.float32)
    p.noise.pop("recurrent_mask", None)
    if "zoneout" in p.noise:
        p.noise["zoneout"] = tuple(0.25 if isinstance(z, np.ndarray) or z else 0.0 for z in p.noise["zoneout"])
    y, state, _ = p.forward(module, training=False)
    carried = [a.copy() for a in p.state]
    weights = p.cell.run(module, "pack", p.weights)
    for t in range(T):
        keywords = {**p.noise, **({} if p.row is None else {"row": p.row[t]})}
        y_t = p.cell.run(module, "step", p.x[t], p.cell.state(carried), [weights], **keywords)
        assert y_t.tobytes() == y[t].tobytes()
    for a, b in zip(carried, state):
        assert a.tobytes() == b.tobytes()


def gates_of(p, module):
    state = p.cell.state(p.state)
    masks = {"lengths": p.lengths, "reset": p.reset, **p.noise} | ({} if p.row is None else {"row": p.row})
    y, _, tape, gates = p.cell.run(module, "forward", p.x, state, p.weights, return_all=("gates",), **masks)
    assert tape is not None
    *_, quiet = p.cell.run(
        module, "forward", p.x, state, p.weights, return_all=["gates"], training=False, recompute=True, **masks
    )
    assert quiet.tobytes() == gates.tobytes()
    return gates


HAVE_GATES = [
    name
    for name, cell in (CELLS | ALL).items()
    if (cell.form.returns[-1:] == ("gates",) if cell.family else cell.name != "rnn")
]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", HAVE_GATES)
def test_gates_of_every_step(name, dtype, ragged):
    p = made(name, 2, dtype, H=19, ragged=ragged)
    found, expected = gates_of(p, functional), gates_of(p, reference)
    assert found.shape == (T, B, 2, p.cell.gates, 19)
    tolerance = (2e-4 if "norm" in name else 3e-5) if dtype == np.float32 else 1e-12
    assert_same({"gates": found}, {"gates": expected}, tolerance)
    assert (np.ptp(expected, axis=(0, 1, 4)) > 1e-2).all()  # each one counts
    for b in range(B):
        end = T if p.lengths is None else p.lengths[b]
        assert not found[end:, b].any() and not expected[end:, b].any()
