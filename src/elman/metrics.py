"""Metrics: one number that says how good predictions are, for a whole data set at once or batch by batch.

    accuracy(predictions, targets, lengths)             # all at once
    running = Running("accuracy")                       # or batch by batch: the same bits
    for x, y, n in batches:
        running.update(model(x), y, n)
    running.compute()

Every metric is a function of a mean over positions. `Running` keeps the sum of what is averaged as an exact whole
number, so that neither the size nor the order of the batches changes a bit of the result.

`lengths`: None, or (B,) integers 0 to T for predictions (T, B, ...): positions past a sequence's end are never read and
count nothing. Predictions are float32 or float64 (integers and lists become float64); what does not fit raises a
ValueError or TypeError that names the argument. Over no position at all every metric is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import _checks, _positions
from .losses import softmax_terms

__all__ = ["Running", "accuracy", "binary_accuracy", "mae", "perplexity", "rmse"]


def accuracy(predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> float:
    """The fraction of positions where the largest score is that of the target class.

    predictions : (..., C) scores of C classes, logits or probabilities. Of equal ones the first is the largest; a row
        with a NaN in it is wrong.
    targets : (...) integers 0 to C-1, or (..., C) one-hot or probabilities, whose largest counts.
    """
    return _at_once("accuracy", predictions, targets, lengths)


def binary_accuracy(predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> float:
    """The fraction of elements where the logit's sign is right: above 0 (probability above 1/2) means 1.

    predictions : logits of any shape, what `losses.binary_cross_entropy` takes. NaN is wrong.
    targets : 0 and 1 (or probabilities, where above 1/2 means 1) in the same shape, in the dtype of predictions,
        integers or bool.
    """
    return _at_once("binary_accuracy", predictions, targets, lengths)


def perplexity(predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> float:
    """exp of the mean cross-entropy: between how many equally likely classes the model is in doubt.

    predictions : (..., C) logits.
    targets : as `losses.softmax_cross_entropy` takes them: (...) integers, or (..., C) probabilities.
    """
    return _at_once("perplexity", predictions, targets, lengths)


def mae(predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> float:
    """The mean absolute error over all elements; predictions and targets of one shape and dtype."""
    return _at_once("mae", predictions, targets, lengths)


def rmse(predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> float:
    """The root of the mean squared error over all elements; predictions and targets of one shape and dtype."""
    return _at_once("rmse", predictions, targets, lengths)


class Running:
    """A metric over many batches.

    metric : one of the functions of this module, or its name.

    >>> running = Running("mae")
    >>> running.update([1.0, 2.0], [0.0, 0.0])
    >>> running.update([6.0], [0.0])
    >>> running.compute()
    3.0
    """

    def __init__(self, metric: str | Callable[..., float]) -> None:
        name = getattr(metric, "__name__", "") if callable(metric) else metric
        if callable(metric) and metric is not globals().get(name):
            raise ValueError(f"metric: expected a function of elman.metrics, got {metric!r}")
        self._name = _checks.choice("metric", name, tuple(_METRICS))
        self._total = 0  # of all finite values, in units of 2**-UNIT
        self._special = 0.0  # the sum of those that are not finite
        self._count = 0

    def __repr__(self) -> str:
        return f"<{self._name} over {self._count} positions: {self.compute()}>"

    def update(self, predictions: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> None:
        """Adds a batch; the arguments are those of the metric. After an error nothing has been added."""
        per_position, _ = _METRICS[self._name]
        values = per_position(predictions, targets, lengths).ravel()
        finite = np.isfinite(values)
        with np.errstate(all="ignore"):
            self._special += float(values[~finite].sum())
        for start in range(0, len(values), MOST):
            block = slice(start, start + MOST)
            self._total += _exact_sum(values[block][finite[block]])
        self._count += len(values)

    def compute(self) -> float:
        """The metric over all that was added until now; nan if that is no position."""
        _, of_mean = _METRICS[self._name]
        if not self._count:
            return math.nan
        with np.errstate(all="ignore"):
            return float(of_mean(self._total / (self._count << UNIT) + self._special))  # a quotient of integers


UNIT = 1126  # every float64 is a multiple of 2**-1074; frexp's exponent of the smallest is -1073, and 53 bits below
MOST = 2**25  # so many sums of 27 bits are exact in float64


def _exact_sum(values):
    """The sum of finite float64 values, as an integer in units of 2**-UNIT."""
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    place = exponent.astype(np.intp) + (UNIT - 53)  # in bincount's own types: its conversions are slow
    high = np.bincount(place, (whole >> 26).astype(np.float64))
    low = np.bincount(place, (whole & (2**26 - 1)).astype(np.float64))
    return sum(((int(high[k]) << 26) + int(low[k])) << int(k) for k in np.flatnonzero((high != 0) | (low != 0)))


def _at_once(name, predictions, targets, lengths):
    running = Running(name)
    running.update(predictions, targets, lengths)
    return running.compute()


# What is averaged, at the true positions, in float64


def _right(predictions, targets, lengths):
    scores, targets = _scores(predictions, targets, lengths)
    if targets.ndim == 2:
        targets = targets.argmax(axis=1)
    return ((scores.argmax(axis=1) == targets) & ~np.isnan(scores).any(axis=1)).astype(np.float64)


def _right_sign(predictions, targets, lengths):
    logits = _positions.floats("predictions", predictions)
    inside = _positions.inside(lengths, logits.shape)
    positive = _positions.probabilities(targets, logits, inside) > 0.5
    logits = _positions.true(logits, inside)
    return (((logits > 0) == positive) & ~np.isnan(logits)).astype(np.float64)


def _surprise(predictions, targets, lengths):
    scores, targets = _scores(predictions, targets, lengths)
    with np.errstate(all="ignore"):
        return softmax_terms(scores, targets, None, 0.0)[0]


def _absolute(predictions, targets, lengths):
    return np.abs(_differences(predictions, targets, lengths))


def _squared(predictions, targets, lengths):
    with np.errstate(all="ignore"):
        return np.square(_differences(predictions, targets, lengths))


def _scores(predictions, targets, lengths):
    scores = _positions.floats("predictions", predictions, classes=True)
    inside = _positions.inside(lengths, scores.shape[:-1])
    targets = _positions.classes_or_probabilities("predictions", targets, scores, inside)
    return _positions.rows(scores, inside), targets


def _differences(predictions, targets, lengths):
    predictions = _positions.floats("predictions", predictions)
    return _positions.differences(predictions, targets, _positions.inside(lengths, predictions.shape))


_METRICS = {  # what is averaged, and the metric as a function of its mean
    "accuracy": (_right, float),
    "binary_accuracy": (_right_sign, float),
    "perplexity": (_surprise, np.exp),
    "mae": (_absolute, float),
    "rmse": (_squared, np.sqrt),
}
