"""Losses: each returns its value together with the gradient that `backward` of the output layer takes.

No autograd: `loss, dlogits = softmax_cross_entropy(logits, targets)`, then `head.backward(tape, dlogits)`. What all of
them share:

* The loss is a Python float, accumulated in float64; the gradient is a new array in the shape and dtype of the first
  argument, which is not changed. NaN and infinity travel through without a warning.
* `reduction` is "mean" or "sum". The mean over nothing at all is nan, the sum 0, as in PyTorch.
* `lengths`: (B,) integers 0 to T, for predictions (T, B, ...). Positions past a sequence's end are never read, in
  neither argument, count nothing in the mean and get gradient 0. None: every position counts.
* Floats are not cast silently: integers and lists become the dtype they are needed in, float64 beside float32 is
  refused (TypeError). All arguments are checked first; ValueError and TypeError name the one that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _checks, _config, _kernels, _positions
from ._types import Array

__all__ = [
    "binary_cross_entropy",
    "ctc",
    "huber",
    "mean_absolute_error",
    "mean_squared_error",
    "softmax_cross_entropy",
]

REDUCTIONS = ("mean", "sum")
FEW = 64  # classes
_CTC = {np.dtype(np.float32): _kernels.ctc["float"], np.dtype(np.float64): _kernels.ctc["double"]}


def softmax_cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    class_weights: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """Cross-entropy of softmax(logits) against classes or probabilities, and its gradient.

        p = softmax(logits),  L = sum or mean over all positions of -log p[target],  dL/dlogits = p - onehot(target)

    (the gradient divided by the number of positions for the mean); Bishop, "Pattern Recognition and Machine Learning"
    (2006), eq. 4.108-4.109. With probabilities q: -sum_c w_c q_c log p_c, and p * sum_c w_c q_c - w q. The largest
    logit is subtracted first, so huge logits do not overflow.

    Args:
        logits: (..., C) float32 or float64, any number of leading axes; C classes. Not changed.
        targets: (...) integers 0 to C-1, for instance (T, B) for logits (T, B, C); or (..., C) probabilities, one-hot
            for instance: floats of the dtype of logits, integers or bool, each row with sum 1 (to 0.001).
        lengths: (B,) integers, for logits (T, B, ..., C): steps past a sequence's end are never read.
        class_weights: (C,) numbers, 0 or above: w, the weight of each class; None is 1 for all. As in PyTorch, the
            mean over integer targets divides by the sum of the targets' weights, that over probabilities by the
            number of positions.
        label_smoothing: 0 to 1, the part of each target that is spread evenly over all classes (Szegedy et al. 2016).
        reduction: "mean" over all positions (PyTorch's default), or "sum".

    Returns:
        (loss, dlogits): the loss in nats, a Python float accumulated in float64 (divide by log 2 for bits), and its
        gradient, a new array with the shape and dtype of logits. The mean over no position at all, or over targets
        whose weights are all 0, is nan, as in PyTorch. A logit of -inf means probability 0, which costs nothing where
        the target's is 0 too (PyTorch: nan if the target is given as probabilities); +inf and NaN make the loss nan.

    Raises:
        TypeError: logits that are not floats, targets that are not integers (bool is refused) or probabilities.
        ValueError: a target outside 0 to C-1, rows that are not probabilities, shapes that do not agree, weights or
            label_smoothing out of range, an unknown reduction.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    logits = _positions.floats("logits", logits, classes=True)
    weights = None if class_weights is None else _positions.weights("class_weights", class_weights, [logits.shape[-1:]])
    smoothing = _checks.number("label_smoothing", label_smoothing, 0, 1)
    if not smoothing:
        found = _kernels.softmax_cross_entropy(logits, targets, lengths, weights, reduction == "mean")
        if found is not None:
            return found
    inside = _positions.inside(lengths, logits.shape[:-1])
    targets = _positions.classes_or_probabilities("logits", targets, logits, inside)
    with np.errstate(all="ignore"):
        losses, dlogits, count = softmax_terms(_positions.rows(logits, inside), targets, weights, smoothing)
        return _reduced(losses, dlogits, logits, inside, reduction, count)


def binary_cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    pos_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """Cross-entropy of sigmoid(logits) against 0 or 1, element by element, and its gradient.

        p = sigmoid(logits),  L = sum or mean over all elements of -(w y log p + (1 - y) log(1 - p))
        dL/dlogits = (1 - y) p - w y (1 - p)

    It takes logits, not probabilities: torch.nn.functional.binary_cross_entropy_with_logits, Keras' from_logits=True
    (Bishop 2006, eq. 4.90-4.91). The logarithms are computed from the logits, so huge logits do not overflow.

    Args:
        logits: float32 or float64 of any shape, what the output layer gives without an activation. Not changed.
        targets: y, in the shape of logits: 0 to 1, in the dtype of logits, integers or bool.
        lengths: (B,) integers, for logits (T, B, ...): steps past a sequence's end are never read.
        pos_weight: w, the weight of the positive targets, 0 or above: a number, or (C,) for logits (..., C). The mean
            divides by the number of elements, whatever the weights, as in PyTorch.
        label_smoothing: 0 to 1, s: y (1 - s) + s / 2 stands for y, as in keras.losses.BinaryCrossentropy.
        reduction: "mean" over all elements, or "sum".

    Returns:
        (loss, dlogits): a Python float, in nats, and a new array with the shape and dtype of logits. An infinite logit
        that is right costs 0, one that is wrong infinity (PyTorch: nan for both).

    Raises:
        TypeError, ValueError: an argument of another kind, shape or range.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    logits = _positions.floats("logits", logits)
    inside = _positions.inside(lengths, logits.shape)
    y = _positions.probabilities(targets, logits, inside)
    smoothing = _checks.number("label_smoothing", label_smoothing, 0, 1)
    y = y * (1 - smoothing) + smoothing / 2
    w: Any = 1.0
    if pos_weight is not None:
        w = np.broadcast_to(_positions.weights("pos_weight", pos_weight, [(), logits.shape[-1:]]), logits.shape)
        w = _positions.true(w, inside)
    with np.errstate(all="ignore"):
        x = _positions.true(logits, inside).astype(np.float64)
        tail = np.log1p(np.exp(-np.abs(x)))
        cost_of_1, cost_of_0 = tail + np.maximum(-x, 0), tail + np.maximum(x, 0)  # -log p, -log(1 - p)
        losses = _product(w * y, cost_of_1) + _product(1 - y, cost_of_0)
        gradient = (1 - y) * np.exp(-cost_of_1) - w * y * np.exp(-cost_of_0)
        return _reduced(losses, gradient, logits, inside, reduction, losses.size)


def mean_squared_error(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """The squared error over all elements, and its gradient: L = mean or sum of (x - y)^2, dL/dx = 2 (x - y).

    Without a factor 1/2, as torch.nn.functional.mse_loss.

    Args:
        predictions: x, float32 or float64 of any shape. Not changed.
        targets: y, in the shape and dtype of predictions (integers and lists are converted).
        lengths: (B,) integers, for predictions (T, B, ...): steps past a sequence's end are never read.
        reduction: "mean" over all elements, or "sum".

    Returns:
        (loss, dpredictions): a Python float, and a new array with the shape and dtype of predictions (for the mean
        divided by the number of elements).

    Raises:
        TypeError, ValueError: an argument of another kind, shape or dtype; shapes are not broadcast.
    """
    return _regression(predictions, targets, lengths, reduction, lambda d: (d * d, 2 * d))


def mean_absolute_error(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """The absolute error over all elements, and its gradient: L = mean or sum of |x - y|, dL/dx = sign(x - y).

    The gradient where x = y is 0, as in torch.nn.functional.l1_loss. Arguments, result and errors as
    `mean_squared_error`.
    """
    return _regression(predictions, targets, lengths, reduction, lambda d: (np.abs(d), np.sign(d)))


def huber(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    delta: float = 1.0,
    lengths: npt.ArrayLike | None = None,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """Squared where the error is small, absolute where it is large (Huber 1964), and its gradient.

        d = x - y,  L = mean or sum of  d^2 / 2 if |d| <= delta, else delta (|d| - delta / 2),
        dL/dx = d clipped to +-delta

    as torch.nn.functional.huber_loss. `delta` is above 0 and finite; the other arguments, the result and the errors
    are those of `mean_squared_error`.
    """
    delta = _checks.number("delta", delta, 0, np.finfo(np.float64).max)
    if delta == 0:
        raise ValueError("delta: expected above 0, got 0.0")

    def terms(d: Array) -> tuple[Array, Array]:
        size = np.abs(d)
        return np.where(size <= delta, d * d / 2, delta * (size - delta / 2)), np.clip(d, -delta, delta)

    return _regression(predictions, targets, lengths, reduction, terms)


def ctc(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike | Sequence[npt.ArrayLike],
    *,
    lengths: npt.ArrayLike | None = None,
    target_lengths: npt.ArrayLike | None = None,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """Connectionist temporal classification (Graves, Fernandez, Gomez and Schmidhuber 2006), and its gradient.

    The loss of a sequence is -log of the probability that softmax(logits), read step by step, spells its target after
    equal neighbours are merged and blanks are taken out: eq. 6-8 of the paper in logarithms, in float64. The gradient
    by a logit is p - (the probability that the path is in that class at that step, given the target), eq. 16. Words,
    defaults and results of torch.nn.functional.ctc_loss, except that this takes logits and that one their log_softmax.

    Args:
        logits: (T, B, C) float32 or float64, C classes with the blank. Not changed.
        targets: (B, S) integers 0 to C-1 without the blank, or a list of B arrays of any lengths.
        lengths: (B,) integers 0 to T, the true steps of logits; None: T. Steps past the end are never read.
        target_lengths: (B,) integers 0 to S: how much of each row of targets counts, the rest is never read; None: S.
            Not with a list of arrays of different lengths, which says it itself.
        blank: which class is the blank.
        zero_infinity: whether a sequence that cannot spell its target (too short) has loss 0, not infinity.
        reduction: "mean" divides each sequence's loss by its target length (at least 1) and takes the mean over the
            sequences, as PyTorch; "sum" adds the losses.

    Returns:
        (loss, dlogits): a Python float, in nats, and a new array with the shape and dtype of logits. A sequence that
        cannot spell its target has gradient 0, with either `zero_infinity` (PyTorch: nan, if False). No step and an
        empty target cost 0.

    Raises:
        TypeError, ValueError: an argument of another kind, shape or range; a blank among the targets.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    zero_infinity = _checks.boolean("zero_infinity", zero_infinity)
    logits = _positions.floats("logits", logits, classes=True)
    if logits.ndim != 3:
        raise ValueError(f"logits: expected shape (T, B, C), got {logits.shape}")
    T, B, C = logits.shape
    ends = np.full(B, T, np.intp) if lengths is None else _checks.lengths("lengths", lengths, T, B)
    blank = _checks.integer("blank", blank, 0, C - 1)
    targets, counts = _positions.ctc_targets(targets, target_lengths, B, C, blank)

    weights = np.ones(B) if reduction == "sum" else 1 / (B * np.maximum(counts, 1))
    losses, dlogits = np.empty(B), np.empty_like(logits)
    _CTC[logits.dtype](logits, ends, targets, counts, blank, weights, _config.get_num_threads(), losses, dlogits)
    if zero_infinity:
        losses[np.isposinf(losses)] = 0
    loss = float((losses * weights).sum()) if B or reduction == "sum" else float("nan")
    return loss, dlogits


def softmax_terms(rows, targets, weights, smoothing):
    """Cross-entropy per row: the losses (N,) in float64, their gradient (N, C) in the dtype of rows, and what the mean
    divides by. targets: classes (N,) as intp, or probabilities (N, C) in float64; weights: None, or (C,)."""
    # NumPy takes a short last axis row by row: few classes are turned to the front, and are then three times faster.
    classes = np.ascontiguousarray(rows.T) if rows.shape[1] < FEW else rows.T
    peak = classes.max(axis=0)
    p = np.exp(classes - peak)
    total = p.sum(axis=0, dtype=np.float64)
    p /= total.astype(p.dtype)
    drows = np.ascontiguousarray(p.T)
    count = len(rows)
    integers = targets.ndim == 1
    if integers and weights is not None:
        count = float(weights[targets].sum())
    # In float64 from here on: the difference of two huge float32 logits need not fit float32.
    if integers and not smoothing:
        picked = np.arange(len(rows)), targets
        losses = np.log(total) - (rows[picked].astype(np.float64) - peak)
        drows[picked] -= 1
        if weights is not None:
            losses = _product(weights[targets], losses)
            drows *= weights[targets, None].astype(drows.dtype)
        return losses, drows, count
    q = targets
    if integers:
        q = np.zeros(rows.shape)
        q[np.arange(len(q)), targets] = 1
    if smoothing:
        q = q * (1 - smoothing)
        q += smoothing / rows.shape[1]
    if weights is not None:
        q = q * weights
    # In place: to take new memory for every step of this costs several times what the arithmetic does.
    costs = rows.astype(np.float64, order="C")
    costs -= peak[:, None]
    np.subtract(np.log(total)[:, None], costs, out=costs)
    costs *= q
    costs[q == 0] = 0  # even if the cost is infinite
    losses = costs.sum(axis=1)
    gradient = np.multiply(drows, q.sum(axis=1, keepdims=True), out=costs)
    gradient -= q
    return losses, gradient.astype(rows.dtype), count


def _regression(
    predictions: npt.ArrayLike,
    targets: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
    reduction: str,
    terms: Callable[[Array], tuple[Array, Array]],
) -> tuple[float, Array]:
    """A loss that is a function of x - y: `terms` gives its value and its derivative, element by element."""
    _checks.choice("reduction", reduction, REDUCTIONS)
    x = _positions.floats("predictions", predictions)
    inside = _positions.inside(lengths, x.shape)
    with np.errstate(all="ignore"):
        losses, gradient = terms(_positions.differences(x, targets, inside))
        return _reduced(losses, gradient, x, inside, reduction, losses.size)


def _reduced(losses, gradient, predictions, inside, reduction, count):
    """The pair that every loss returns: the sum of the losses, or that divided by `count`, and the gradient likewise,
    in its place among the predictions. losses: float64; gradient: a new array of the true positions, of any float."""
    loss = float(losses.sum())
    if reduction == "mean":
        loss = loss / count if count else float("nan")
        gradient /= count
    if inside is None:
        return loss, gradient.astype(predictions.dtype, copy=False).reshape(predictions.shape)
    everywhere = np.zeros_like(predictions)
    everywhere[inside] = gradient.reshape(-1, *predictions.shape[2:])
    return loss, everywhere


def _product(weight, cost):
    """weight * cost, and 0 where the weight is 0, even if the cost is infinite."""
    return np.where(weight == 0, 0, weight * cost)
