"""The kernel of CTC against `reference.ctc`, on every instruction set; the loss itself is in test_losses.py."""

import numpy as np
import pytest

from elman import _kernels, reference
from elman.losses import ctc

C_TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def compiled(logits, targets, lengths, counts, blank=0, scale=None, threads=1):
    """The losses (B,) and the gradient (T, B, C), as `reference.ctc`; whatever is not written stays 77."""
    B = logits.shape[1]
    losses, dlogits = np.full(B, 77.0), np.full_like(logits, 77)
    scale = np.ones(B) if scale is None else scale
    kernel = _kernels.ctc[C_TYPES[logits.dtype]]
    lengths, targets, counts = (np.ascontiguousarray(a, np.intp) for a in (lengths, targets, counts))
    kernel(logits, lengths, targets, counts, blank, scale, threads, losses, dlogits)
    return losses, dlogits


def problem(T, B, C, S, dtype=np.float64, seed=0, spread=2.0):
    """Random lengths, and targets that often repeat a class."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((T, B, C)) * spread).astype(dtype)
    blank = int(rng.integers(C))
    targets = (blank + rng.integers(1, max(2, min(C, 4)), (B, S))) % C
    lengths = np.where(rng.random(B) < 0.6, T, rng.integers(0, T + 1, B))
    counts = np.where(rng.random(B) < 0.6, S, rng.integers(0, S + 1, B))
    return logits, targets, lengths, counts, blank


def assert_same(got, expected, dtype):
    (losses, dlogits), (wanted, dwanted) = got, expected
    np.testing.assert_allclose(losses, wanted, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(dlogits, dwanted, rtol=0, atol=1e-12 if dtype == np.float64 else 1e-7)


SHAPES = [
    (12, 40, 5, 4),
    (30, 20, 3, 9),
    (64, 6, 9, 31),
    (7, 20, 130, 2),
    (3, 5, 2000, 1),
    (16, 8, 17, 15),
    (9, 4, 2, 4),
]


@each_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_against_the_reference(shape, dtype, isa):
    """With sequences that are too short for their targets and others that are not, in every batch."""
    logits, targets, lengths, counts, blank = case = problem(*shape, dtype)
    lengths[0], counts[0] = shape[3] - 1, shape[3]
    expected = reference.ctc(*case)
    logits, targets = logits.copy(), targets.copy()
    logits[np.arange(len(logits))[:, None] >= lengths] = np.nan  # never read
    targets[np.arange(shape[3]) >= counts[:, None]] = 2**40
    got = compiled(logits, targets, lengths, counts, blank)
    assert_same(got, expected, dtype)
    assert np.isinf(got[0][0]) and np.isfinite(got[0]).any() and np.abs(got[1]).max() > 0.1
    scale = np.linspace(-1, 2, shape[1])
    assert_same(compiled(*case, scale=scale), (expected[0], expected[1] * scale[:, None]), dtype)


@each_dtype
@pytest.mark.parametrize("S", range(20))
def test_states_of_every_remainder_of_a_vector(S, dtype, isa):
    case = problem(2 * S + 3, 6, S % 7 + 2, S, dtype, seed=S)
    assert_same(compiled(*case), reference.ctc(*case), dtype)


@pytest.mark.parametrize("shape", [(5, 3, 4, 0), (0, 4, 3, 2), (0, 4, 3, 0), (6, 0, 4, 2), (0, 0, 1, 0), (4, 3, 1, 0)])
def test_nothing_there(shape, isa):
    case = problem(*shape)
    losses, dlogits = compiled(*case)
    assert_same((losses, dlogits), reference.ctc(*case), np.float64)
    assert dlogits.shape == shape[:3]
    if shape[0] == 0:
        assert np.array_equal(losses, np.where(case[3] == 0, 0, np.inf))


def test_just_long_enough_and_one_step_too_short(isa):
    """Equal neighbours need a blank between them: 1 1 2 2 needs six steps. Then there is one path alone."""
    logits, _, _, _, _ = problem(6, 2, 4, 4)
    targets, counts = np.array([[1, 1, 2, 2]] * 2), np.array([4, 4])
    losses, dlogits = compiled(logits, targets, np.array([6, 5]), counts)
    log_p = logits[:, 0] - np.log(np.exp(logits[:, 0]).sum(axis=1, keepdims=True))
    path = [1, 0, 1, 2, 0, 2]
    assert losses[0] == pytest.approx(-log_p[range(6), path].sum(), rel=1e-14)
    np.testing.assert_allclose(dlogits[:, 0], np.exp(log_p) - np.eye(4)[path], atol=1e-15)
    assert losses[1] == np.inf and not dlogits[:, 1].any()


def test_equal_logits_cost_log_of_the_classes(isa):
    """The logarithm inside, over its whole range: within two units in the last place."""
    for classes in (*range(1, 300), 4095, 4096, 4097, 50_000):
        one = np.ones(1, int)
        losses, _ = compiled(np.full((1, 1, classes), 3.0), np.zeros((1, 0), int), one, 0 * one)
        assert abs(losses[0] - np.log(classes)) <= 2 * np.spacing(np.log(classes))
    assert compiled(np.full((9, 1, 1), 3.0), np.zeros((1, 0), int), 9 * one, 0 * one)[0][0] == 0


@each_dtype
def test_not_a_number_infinity_and_huge_logits(dtype, isa):
    """Each in a sequence of its own, and the others keep their bits."""
    logits, targets, lengths, counts, blank = problem(12, 12, 5, 3, dtype)
    lengths[:], counts[:] = 12, 3
    clean = compiled(logits, targets, lengths, counts, blank)
    huge = np.finfo(dtype).max
    target = targets[:, 1]
    other = [next(c for c in range(5) if c != blank and c not in row) for row in targets]
    logits[5, 0, 2] = np.nan
    logits[11, 1, other[1]] = np.nan
    logits[0, 2, blank] = np.inf
    logits[5, 3] = -np.inf
    logits[5, 4, other[4]] = -np.inf
    logits[3:9, 5, blank] = -np.inf
    logits[:, 6, target[6]] = -np.inf  # there is no path
    logits[4, 7, target[7]] = huge
    logits[4, 8, other[8]] = -huge
    logits[:, 9] *= 1e30
    logits[:, 10] *= 1e3
    got = compiled(logits, targets, lengths, counts, blank)
    with np.errstate(over="ignore"):
        expected = reference.ctc(logits, targets, lengths, counts, blank)
    exact = np.arange(12) != 9  # of 1e30 the two agree to so many digits, but what is left of a probability is not
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-13)
    np.testing.assert_allclose(got[1][:, exact], expected[1][:, exact], rtol=0, atol=1e-7)
    assert np.isnan(got[0][:4]).all() and np.isnan(got[1][:, :4]).all() and got[0][6] == np.inf
    assert np.isfinite(got[0][[4, 5, 7, 8, 9, 10, 11]]).all() and np.isfinite(got[1][:, 4:]).all()
    assert got[0][11] == clean[0][11] and np.array_equal(got[1][:, 11], clean[1][:, 11])


@each_dtype
def test_the_same_bits_in_any_batch_on_any_threads(dtype, isa):
    """Enough work for threads; more columns of targets, float64 and the batch change no bit."""
    logits, targets, lengths, counts, blank = case = problem(100, 40, 30, 20, dtype)
    losses, dlogits = compiled(*case)
    for threads in (2, 3, 64):
        again = compiled(*case, threads=threads)
        assert np.array_equal(again[0], losses) and np.array_equal(again[1], dlogits)
    wider = np.pad(targets, ((0, 0), (0, 13)))
    wide = compiled(logits.astype(np.float64), wider, lengths, counts, blank)
    assert np.array_equal(wide[0], losses) and np.array_equal(wide[1].astype(dtype), dlogits)
    for b in range(0, 40, 7):
        part = slice(b, b + 1)
        n = lengths[b]
        alone = compiled(logits[:n, part].copy(), targets[part], lengths[part], counts[part], blank)
        assert alone[0][0] == losses[b] and np.array_equal(alone[1], dlogits[:n, part])
    assert np.isfinite(losses).sum() > 20


def test_the_gradient_is_that_of_the_losses(isa):
    """Central differences, of the kernel alone."""
    logits, targets, lengths, counts, blank = problem(9, 6, 4, 3, seed=4)
    weights = np.linspace(0.5, 2, 6)
    losses, dlogits = compiled(logits, targets, lengths, counts, blank, scale=weights)
    finite = np.isfinite(losses)
    assert finite.sum() >= 4
    for place in np.ndindex(*logits.shape):
        sides = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[place] += step
            sides.append((weights * compiled(moved, targets, lengths, counts, blank)[0])[finite].sum())
        assert dlogits[place] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-9)


def test_long_sequences_keep_their_gradient():
    """3000 steps back by shares: the probabilities of each step still sum to 1, so each row of the gradient to 0."""
    logits, targets, _, _, _ = problem(3000, 1, 20, 100, seed=1)
    targets = targets % 19 + 1
    value, gradient = ctc(logits, targets, reduction="sum")
    assert np.isfinite(value) and np.abs(gradient).max() > 0.5
    assert np.abs(gradient.sum(axis=2)).max() < 1e-12
