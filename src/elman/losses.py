"""Losses: each returns its value together with the gradient that `backward` of the output layer takes.

No autograd: `loss, dlogits = softmax_cross_entropy(logits, targets)`, then `head.backward(tape, dlogits)`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import _checks
from ._types import Array

__all__ = ["softmax_cross_entropy"]


def softmax_cross_entropy(
    logits: npt.ArrayLike, targets: npt.ArrayLike, *, reduction: str = "mean"
) -> tuple[float, Array]:
    """Cross-entropy of softmax(logits) against integer classes, and its gradient.

        p = softmax(logits),  L = sum or mean over all positions of -log p[target],  dL/dlogits = p - onehot(target)

    (the gradient divided by the number of positions for the mean); Bishop, "Pattern Recognition and Machine Learning"
    (2006), eq. 4.108-4.109. The largest logit is subtracted first, so huge logits do not overflow.

    Args:
        logits: (..., C) float32 or float64, any number of leading axes; C classes. Not changed.
        targets: (...) integers 0 to C-1, for instance (T, B) for logits (T, B, C).
        reduction: "mean" over all positions (PyTorch's default), or "sum".

    Returns:
        (loss, dlogits): the loss in nats, a Python float accumulated in float64 (divide by log 2 for bits), and its
        gradient, a new array with the shape and dtype of logits. The mean over no position at all is nan, as in
        PyTorch. A logit of -inf means probability 0; +inf and NaN make the loss nan.

    Raises:
        TypeError: logits that are not floats, targets that are not integers (bool is refused).
        ValueError: a target outside 0 to C-1, shapes that do not agree, an unknown reduction.
    """
    _checks.choice("reduction", reduction, ("mean", "sum"))
    logits = _logits(logits)
    classes = logits.shape[-1]
    targets = _targets(targets, logits.shape[:-1], classes)

    rows = logits.reshape(-1, classes)
    picked = np.arange(len(rows)), targets.reshape(-1)
    with np.errstate(all="ignore"):
        peak = rows.max(axis=1, keepdims=True)
        dlogits = np.exp(rows - peak)
        total = dlogits.sum(axis=1, keepdims=True, dtype=np.float64)
        # In float64 from here on: the difference of two huge float32 logits need not fit float32.
        losses = np.log(total[:, 0]) - (rows[picked].astype(np.float64) - peak[:, 0])
        loss = float(losses.sum())
        dlogits /= total.astype(dlogits.dtype)
        dlogits[picked] -= 1
    if reduction == "mean":
        count = len(rows)
        loss = loss / count if count else float("nan")
        dlogits /= max(count, 1)
    return loss, dlogits.reshape(logits.shape)


def _logits(value):
    """Logits of any rank; floats keep their dtype, integers and lists become float64."""
    shape, dtype = _shape_and_dtype("logits", value)
    if len(shape) < 1 or shape[-1] < 1:
        raise ValueError(f"logits: expected shape (..., C) with C at least 1, got {shape}")
    if dtype not in _checks.FLOATS:
        if dtype.kind not in "iu":
            raise TypeError(f"logits: expected float32 or float64, got {dtype}")
        dtype = np.dtype(np.float64)
    return _checks.array("logits", value, dtype, shape, contiguous=True)


def _targets(value, shape, classes):
    """Targets of the given shape as intp, each one a class."""
    got, dtype = _shape_and_dtype("targets", value)
    a = np.asarray(value)
    if dtype.kind not in "iu" and not (a.size == 0 and isinstance(value, (list, tuple))):
        raise TypeError(f"targets: expected integers, got {dtype}")
    if got != shape:
        raise ValueError(f"targets: expected shape {shape} (that of logits without the classes), got {got}")
    if a.size and (int(a.min()) < 0 or int(a.max()) >= classes):
        bad = tuple(int(i) for i in np.argwhere((a < 0) | (a >= classes))[0])
        where = f" at {bad}" if bad else ""
        raise ValueError(f"targets: expected 0 to {classes - 1} (the classes of logits), got {int(a[bad])}{where}")
    return a.astype(np.intp)


def _shape_and_dtype(name, value):
    try:
        a = np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    return a.shape, a.dtype
