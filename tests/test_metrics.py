"""Metrics against their definitions in plain Python; the same bits in batches of any size and order."""

import fractions
import math

import numpy as np
import pytest

from elman import metrics
from elman.losses import softmax_cross_entropy, softmax_terms
from elman.metrics import Running, accuracy, binary_accuracy, mae, perplexity, rmse

T, B, C = 6, 9, 4
LENGTHS = np.array([6, 0, 3, 1, 5, 2, 6, 4, 0])
INSIDE = np.arange(T)[:, None] < LENGTHS
ALL = [accuracy, binary_accuracy, perplexity, mae, rmse]
each_metric = pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def problem(metric, dtype=np.float64, seed=0):
    """Predictions (T, B, C) and targets for one metric, of very different sizes, so that the order of a sum matters."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, B, C)) * 10 ** rng.uniform(-3, 3, (T, B, 1))
    if metric in (accuracy, perplexity):
        return x.astype(dtype) / 100, rng.integers(0, C, (T, B))
    if metric is binary_accuracy:
        return x.astype(dtype), rng.integers(0, 2, (T, B, C))
    return x.astype(dtype), rng.standard_normal((T, B, C)).astype(dtype)


def by_definition(metric, rows, targets):
    """Of true positions only: the exact mean by fractions, one position after the other."""
    if metric is accuracy:
        values = [float(max(range(C), key=list(row).__getitem__) == t) for row, t in zip(rows, targets, strict=True)]
    elif metric is binary_accuracy:
        values = [float((x > 0) == t) for x, t in zip(rows.ravel(), targets.ravel(), strict=True)]
    elif metric is perplexity:
        values = [softmax_terms(row[None], np.array([t]), None, 0)[0][0] for row, t in zip(rows, targets, strict=True)]
    else:
        d = [float(x) - float(y) for x, y in zip(rows.ravel(), targets.ravel(), strict=True)]
        values = [abs(v) if metric is mae else v * v for v in d]
    mean = float(sum(map(fractions.Fraction, values)) / len(values))
    return {perplexity: np.exp, rmse: math.sqrt}.get(metric, float)(mean)


@each_metric
@each_dtype
def test_the_definition(metric, dtype):
    x, y = problem(metric, dtype)
    value = metric(x, y)
    assert type(value) is float
    assert value == by_definition(metric, x.reshape(-1, C), y.reshape(T * B, -1).squeeze())
    assert metric(x, y) != metric(-x, y)


@each_metric
@each_dtype
def test_lengths(metric, dtype):
    """Only true positions count; what is past the end is never read."""
    x, y = problem(metric, dtype, seed=1)
    expected = by_definition(metric, x[INSIDE], y[INSIDE])
    assert expected != metric(x, y)
    assert metric(x, y, LENGTHS) == expected
    x[~INSIDE] = np.nan
    y[~INSIDE] = np.nan if y.dtype.kind == "f" else -9
    assert metric(x, y, lengths=LENGTHS) == expected
    assert metric(x, y, lengths=list(LENGTHS)) == expected


@each_metric
@each_dtype
def test_batches_of_any_size_and_order_give_the_same_bits(metric, dtype):
    x, y = problem(metric, dtype, seed=2)
    whole = metric(x, y, LENGTHS)
    for size in (1, 2, 4, 5, B):
        for starts in (range(0, B, size), reversed(range(0, B, size))):
            running = Running(metric)
            for start in starts:
                batch = slice(start, start + size)
                running.update(x[:, batch], y[:, batch], LENGTHS[batch])
            assert running.compute() == whole


def test_float_sums_would_not_do():
    """The test above can fail: plain sums of these values depend on the batches."""
    x, y = problem(rmse, seed=2)
    squares = ((x - y) ** 2).swapaxes(0, 1)
    sums = {sum(squares[i : i + n].sum() for i in range(0, B, n)) for n in (1, 2, 4, 5, B)}
    assert len(sums) > 1


def test_the_sum_is_exact():
    """Where float64 forgets: 1e300 - and a half, and the smallest number there is."""
    tiny = 5e-324
    running = Running("mae")
    running.update([1e300, tiny, 3.0], [0.0, 0.0, 0.0])
    assert running.compute() == 1e300 / 3
    many = np.array([1.0] + [2.0**-53] * 2**20)
    assert many.sum() != 1 + 2.0**-33
    running = Running(mae)
    for part in np.array_split(many, 7):
        running.update(part, np.zeros_like(part))
    assert running.compute() == float(fractions.Fraction(1 + 2.0**-33) / len(many))
    assert mae([tiny, tiny], [0.0, 0.0]) == tiny
    assert mae([np.finfo(float).max] * 5, [0.0] * 5) == np.finfo(float).max


def test_the_sum_in_blocks(monkeypatch):
    x, y = problem(mae)
    expected = mae(x, y)
    monkeypatch.setattr(metrics, "MOST", 17)
    assert mae(x, y) == expected


def test_literals():
    assert accuracy([[0.1, 0.9], [2.0, 1.0], [0.0, 5.0]], [1, 1, 1]) == 2 / 3
    assert accuracy([[0.1, 0.9], [2.0, 1.0]], [[0, 1], [1, 0]]) == 1
    assert accuracy([[1.0, 1.0]], [0]) == 1 and accuracy([[1.0, 1.0]], [1]) == 0  # the first of equal ones
    assert accuracy([[np.nan, 1.0], [0.0, np.nan], [0.0, 1.0]], [0, 1, 1]) == 1 / 3
    assert binary_accuracy([np.nan, np.nan], [0, 1]) == 0
    assert binary_accuracy([[-0.1], [0.2], [3.0]], [[False], [True], [False]]) == 2 / 3
    assert binary_accuracy([0.0, 0.0], [0, 1]) == 0.5
    assert binary_accuracy([1.0, -1.0], [0.9, 0.2]) == 1
    assert perplexity(np.zeros((3, 7)), [0, 3, 6]) == pytest.approx(7, rel=1e-14)
    assert perplexity(np.log([[0.25, 0.75]]), [[0.5, 0.5]]) == pytest.approx((16 / 3) ** 0.5, rel=1e-14)
    assert mae([1, 2, 6], [0, 0, 0]) == 3 and rmse([3.0, 4.0], [0.0, 0.0]) == 12.5**0.5


def test_perplexity_is_exp_of_the_loss():
    x, y = problem(perplexity, seed=4)
    assert perplexity(x, y, LENGTHS) == pytest.approx(math.exp(softmax_cross_entropy(x, y, lengths=LENGTHS)[0]))


@each_metric
def test_nothing_at_all(metric):
    x, y = problem(metric)
    assert math.isnan(metric(x[:0], y[:0])) and math.isnan(metric(x, y, [0] * B))
    running = Running(metric)
    assert math.isnan(running.compute())
    running.update(x[:0], y[:0])
    running.update(x, y)
    assert running.compute() == metric(x, y)


@each_metric
def test_nan_and_infinity_are_not_hidden(metric, recwarn):
    x, y = problem(metric)
    clean = metric(x, y)
    correct = [i for i in np.ndindex(T, B) if metric in (accuracy, binary_accuracy) and metric(x[i][None], y[i][None])]
    where = correct[0] if correct else (2, 3)
    x[where] = np.nan
    value = metric(x, y)
    assert value < clean if correct else math.isnan(value)
    running = Running(metric)
    for t in range(T):
        running.update(x[t], y[t])
    np.testing.assert_equal(running.compute(), value)
    if metric in (mae, rmse, perplexity):
        x[where] = [np.inf, 0, 0, 0] if metric is not perplexity else -np.inf
        y[where] = 1
        assert metric(x, y) == math.inf or metric is perplexity and math.isnan(metric(x, y))
    assert not recwarn.list


def test_a_name_or_a_function():
    for metric in ALL:
        by_name = Running(metric.__name__)
        by_name.update(*problem(metric))
        assert by_name.compute() == metric(*problem(metric))
        assert metric.__name__ in repr(by_name) and str(metric(*problem(metric))) in repr(by_name)


def test_errors_name_the_argument_and_add_nothing():
    running = Running(mae)
    running.update([1.0], [0.0])
    with pytest.raises(ValueError, match=r"targets: expected shape \(2,\), got \(1,\)"):
        running.update([1.0, 2.0], [0.0])
    assert running.compute() == 1.0
    for wrong in ("loss", None, len, lambda x: x):
        with pytest.raises(ValueError, match="metric: expected"):
            Running(wrong)
    x, y = problem(accuracy)
    with pytest.raises(ValueError, match="targets: expected 0 to 3 .*the classes of predictions"):
        accuracy(x, y + 1)
    with pytest.raises(TypeError, match="targets: expected integers, got float64"):
        perplexity(x, y.astype(float))
    with pytest.raises(TypeError, match="predictions: expected float32 or float64, got float16"):
        mae(x.astype(np.float16), x)
    with pytest.raises(TypeError, match="targets: expected dtype float64, got float32"):
        rmse(x, x.astype(np.float32))
    with pytest.raises(ValueError, match="targets: expected 0 to 1"):
        binary_accuracy(x, x)
    with pytest.raises(ValueError, match="lengths: expected 0 to 6"):
        accuracy(x, y, [7] * B)
    with pytest.raises(ValueError, match="predictions: expected shape"):
        accuracy(np.float64(1), 0)
