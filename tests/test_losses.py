"""softmax_cross_entropy against literal values, central differences, exact logarithms and PyTorch."""

import math

import numpy as np
import pytest

from elman.losses import softmax_cross_entropy


def case(shape, classes, dtype=np.float64, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((*shape, classes)) * spread).astype(dtype), rng.integers(0, classes, shape)


def test_literal_values():
    """By hand: softmax of (log 1, log 2, log 5) is (1, 2, 5) / 8."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]])
    loss, dlogits = softmax_cross_entropy(logits, [2, 0], reduction="sum")
    assert type(loss) is float
    assert loss == pytest.approx(math.log(8 / 5) + math.log(8), rel=1e-14)
    np.testing.assert_allclose(dlogits, [[1 / 8, 2 / 8, -3 / 8], [-7 / 8, 2 / 8, 5 / 8]], rtol=1e-13)
    mean, dmean = softmax_cross_entropy(logits, [2, 0])
    assert mean == pytest.approx(loss / 2, rel=1e-15)
    np.testing.assert_allclose(dmean, dlogits / 2, rtol=1e-15)


def test_equal_logits_cost_log_of_the_classes():
    loss, dlogits = softmax_cross_entropy(np.full((5, 3, 7), 4.0, np.float32), np.zeros((5, 3), int))
    assert loss == pytest.approx(math.log(7), rel=1e-7)
    assert dlogits.shape == (5, 3, 7) and dlogits.dtype == np.float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (2, 3, 2)])
def test_gradient_by_central_differences(shape, reduction):
    logits, targets = case(shape, 5, seed=len(shape))
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction=reduction)
    assert dlogits.shape == logits.shape
    numeric, step = np.empty_like(logits), 1e-5
    for i in np.ndindex(logits.shape):
        high, low = logits.copy(), logits.copy()
        high[i] += step
        low[i] -= step
        high, low = (softmax_cross_entropy(x, targets, reduction=reduction)[0] for x in (high, low))
        numeric[i] = (high - low) / (2 * step)
    assert np.abs(numeric).max() > 1e-3  # the differences carry something to compare
    np.testing.assert_allclose(dlogits, numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 2e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_pytorch(dtype, rtol, reduction):
    torch = pytest.importorskip("torch")
    logits, targets = case((7, 6), 11, dtype, seed=3)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(x.reshape(-1, 11), torch.tensor(targets.ravel()), reduction=reduction)
    expected.backward()
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction=reduction)
    assert loss == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(dlogits, x.grad.numpy(), rtol=rtol, atol=rtol * np.abs(dlogits).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_are_stable(dtype):
    big = np.finfo(dtype).max
    logits = np.array([[1e4, 1e4 - 1], [-1e4, 1e4], [big, -big]], dtype)
    loss, dlogits = softmax_cross_entropy(logits, [1, 0, 0], reduction="sum")
    assert loss == pytest.approx(math.log1p(math.e) + 2e4, rel=1e-6)
    np.testing.assert_allclose(dlogits[1:], [[-1, 1], [0, 0]])
    if dtype == np.float32:  # a loss that float32 cannot hold
        assert softmax_cross_entropy(np.array([big, -big], dtype), 1)[0] == pytest.approx(2 * float(big))


def test_infinities_and_nan_travel_without_warnings(recwarn):
    loss, dlogits = softmax_cross_entropy([[0.0, -np.inf, 0.0]], [2])
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dlogits, [[0.5, 0, -0.5]])
    assert softmax_cross_entropy([[0.0, -np.inf]], [1])[0] == np.inf
    assert math.isnan(softmax_cross_entropy([[0.0, np.nan]], [0])[0])
    assert math.isnan(softmax_cross_entropy([[0.0, np.inf]], [0])[0])
    assert not recwarn.list


def test_the_sum_is_accumulated_in_float64():
    """2**20 equal float32 losses: their mean is one of them to float64 accuracy."""
    logits = np.tile(np.array([0.3, -1.2, 0.7], np.float32), (2**20, 1))
    one = softmax_cross_entropy(logits[:1], [1])[0]
    assert softmax_cross_entropy(logits, np.ones(2**20, int))[0] == pytest.approx(one, rel=1e-12)


def test_inputs_are_not_changed_and_may_be_read_only_or_strided():
    logits, targets = case((6, 4), 5)
    plain = softmax_cross_entropy(logits, targets)
    backwards = np.asfortranarray(logits)[::-1]
    backwards.flags.writeable = False
    before = logits.copy()
    loss, dlogits = softmax_cross_entropy(backwards, targets[::-1])
    assert loss == pytest.approx(plain[0], rel=1e-14)
    np.testing.assert_allclose(dlogits[::-1], plain[1], rtol=1e-14)
    assert np.array_equal(logits, before) and not np.shares_memory(dlogits, logits)


def test_nothing_to_predict():
    for shape in [(0, 3), (4, 0)]:
        loss, dlogits = softmax_cross_entropy(np.zeros((*shape, 5), np.float32), np.zeros(shape, int))
        assert math.isnan(loss) and dlogits.shape == (*shape, 5)
        assert softmax_cross_entropy(np.zeros((*shape, 5)), np.zeros(shape, int), reduction="sum")[0] == 0.0


def test_one_class_costs_nothing():
    loss, dlogits = softmax_cross_entropy(np.array([[7.0], [-3.0]]), [0, 0])
    assert loss == 0 and not dlogits.any()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.uint64])
def test_any_integer_type_of_targets(kind):
    logits, targets = case((6,), 5)
    assert softmax_cross_entropy(logits, targets.astype(kind))[0] == softmax_cross_entropy(logits, targets)[0]


LOGITS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "logits, targets, options, error, words",
    [
        (LOGITS, [0, 1, 2, 3], {}, ValueError, r"targets: expected 0 to 2 .*got 3 at \(3,\)"),
        (LOGITS, [0, -1, 2, 0], {}, ValueError, r"targets: expected 0 to 2 .*got -1 at \(1,\)"),
        (LOGITS[0], 3, {}, ValueError, r"targets: expected 0 to 2 .*got 3$"),
        (LOGITS, [0, 1, 2], {}, ValueError, r"targets: expected shape \(4,\).*got \(3,\)"),
        (LOGITS, np.zeros((4, 1), int), {}, ValueError, r"targets: expected shape"),
        (LOGITS, np.zeros(4), {}, TypeError, "targets: expected integers, got float64"),
        (LOGITS, np.zeros(4, bool), {}, TypeError, "targets: expected integers, got bool"),
        (LOGITS, None, {}, TypeError, "targets: expected integers"),
        (LOGITS, [[0], [0, 1]], {}, ValueError, "targets: expected an array"),
        (LOGITS.astype(np.float16), [0] * 4, {}, TypeError, "logits: expected float32 or float64, got float16"),
        (LOGITS.astype(complex), [0] * 4, {}, TypeError, "logits"),
        (LOGITS > 0, [0] * 4, {}, TypeError, "logits"),
        ("text", 0, {}, ValueError, "logits: expected shape"),
        (["a", "b"], 0, {}, TypeError, "logits: expected float32 or float64"),
        (np.float32(3), 0, {}, ValueError, "logits: expected shape"),
        (np.zeros((4, 0)), [0] * 4, {}, ValueError, "logits: expected shape"),
        ([[1.0], [1.0, 2.0]], [0, 0], {}, ValueError, "logits: expected an array"),
        (LOGITS, [0] * 4, {"reduction": "none"}, ValueError, "reduction: expected one of 'mean', 'sum'"),
        (LOGITS, [0] * 4, {"reduction": None}, ValueError, "reduction"),
    ],
)
def test_errors_name_the_argument(logits, targets, options, error, words):
    with pytest.raises(error, match=words):
        softmax_cross_entropy(logits, targets, **options)
