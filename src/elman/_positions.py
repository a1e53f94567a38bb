"""What losses and metrics do before their arithmetic: check predictions and targets, and pick the true positions.

`inside` is None (every position counts) or a mask (T, B) of the steps before each sequence's end; what lies outside is
neither checked nor read.
"""

from __future__ import annotations

import numpy as np

from . import _checks


def floats(name, value, classes=False):
    """Predictions of any rank, dense; floats keep their dtype, integers and lists become float64. With `classes` the
    last axis holds at least one."""
    if type(value) is np.ndarray and value.dtype in _checks.FLOATS and value.ndim:  # the common case costs one look
        flags = value.flags
        if flags.c_contiguous and flags.aligned and value.dtype.isnative and value.shape[-1]:
            return value
    shape, _ = _checks.shape_and_dtype(name, value)
    if classes and (len(shape) < 1 or shape[-1] < 1):
        raise ValueError(f"{name}: expected shape (..., C) with C at least 1, got {shape}")
    return _checks.floats(name, value, contiguous=True)


def inside(lengths, shape):
    """The mask for positions of this shape, (T, B, ...); None if it were all true."""
    if lengths is None:
        return None
    if len(shape) < 2:
        raise ValueError(f"lengths: expected None without the axes (T, B), got lengths for positions {shape}")
    T, B = shape[:2]
    ends = _checks.lengths("lengths", lengths, T, B)
    return None if (ends == T).all() else np.arange(T)[:, None] < ends


def true(a, inside):
    """The true positions of a, (..., F): `a` itself, or a copy (N, ..., F)."""
    return a if inside is None else a[inside]


def rows(scores, inside):
    """The true positions of scores (..., C) as (N, C)."""
    return true(scores, inside).reshape(-1, scores.shape[-1])


def differences(predictions, targets, inside):
    """predictions - targets at the true positions, in float64."""
    targets = _checks.array("targets", targets, predictions.dtype, predictions.shape)
    with np.errstate(all="ignore"):
        return true(predictions, inside).astype(np.float64) - true(targets, inside)


def classes_or_probabilities(name, value, scores, inside):
    """Targets of scores (..., C), called `name`: classes (N,) as intp, or probabilities (N, C) in float64."""
    got, dtype = _checks.shape_and_dtype("targets", value)
    if got == scores.shape:
        q = probabilities(value, scores, inside).reshape(-1, scores.shape[-1])
        wrong = ~(np.abs(q.sum(axis=1) - 1) <= 1e-3)
        if wrong.any():
            raise ValueError(f"targets: expected probabilities with sum 1, got a sum of {q[wrong][0].sum():g}")
        return q
    if dtype.kind not in "iu" and not (0 in got and isinstance(value, (list, tuple))):
        raise TypeError(f"targets: expected integers, got {dtype}")
    shape, classes = scores.shape[:-1], scores.shape[-1]
    if got != shape:
        wanted = f"{shape} (that of {name} without the classes), or {scores.shape} for probabilities"
        raise ValueError(f"targets: expected shape {wanted}, got {got}")
    a = np.asarray(value)
    _check_range("targets", a, 0, classes - 1, f"the classes of {name}", inside)
    return true(a, inside).reshape(-1).astype(np.intp)


def probabilities(value, like, inside):
    """Targets from 0 to 1 in the shape and dtype of `like` (integers and bool are converted): the true positions in
    float64."""
    a = np.asarray(value)
    a = _checks.array("targets", a.astype(like.dtype) if a.dtype == np.bool_ else value, like.dtype, like.shape)
    _check_range("targets", a, 0, 1, "probabilities", inside)
    return true(a, inside).astype(np.float64)


def weights(name, value, shapes):
    """Numbers from 0 on in one of these shapes, as float64."""
    shape, dtype = _checks.shape_and_dtype(name, value)
    if dtype not in _checks.FLOATS and dtype.kind not in "iu":
        raise TypeError(f"{name}: expected numbers, got {dtype}")
    if shape not in shapes:
        raise ValueError(f"{name}: expected shape {' or '.join(map(str, shapes))}, got {shape}")
    a = np.asarray(value, np.float64)
    if not (np.isfinite(a) & (a >= 0)).all():
        raise ValueError(f"{name}: expected finite numbers, 0 or above, got {value}")
    return a


def ctc_targets(value, counts, B, classes, blank):
    """The targets of ctc: (B, S) as intp, the blank past a target's end, and their lengths (B,)."""
    if counts is None and isinstance(value, (list, tuple)):
        if len(value) != B:
            raise ValueError(f"targets: expected {B} targets, one for each sequence, got {len(value)}")
        parts = [_row(f"targets[{i}]", part) for i, part in enumerate(value)]
        counts = np.array([len(part) for part in parts], np.intp)
        a = np.full((B, counts.max(initial=0)), blank, np.int64)  # intp might cut a class to one in range
        for i, part in enumerate(parts):
            a[i, : len(part)] = part
    else:
        shape, _ = _checks.shape_and_dtype("targets", value)
        a = np.array(_checks._whole_numbers("targets", value, (B, shape[1] if len(shape) == 2 else "S")))
        S = a.shape[1]
        counts = np.full(B, S) if counts is None else np.array(_checks._whole_numbers("target_lengths", counts, (B,)))
        _check_range("target_lengths", counts, 0, S, "the columns of targets", None)
        counts = counts.astype(np.intp)
    valid = np.arange(a.shape[1]) < counts[:, None]
    _check_range("targets", a, 0, classes - 1, "the classes of logits", valid)
    blanks = np.argwhere(valid & (a == blank))
    if len(blanks):
        b, i = blanks[0]
        raise ValueError(f"targets: expected no blank ({blank}) among them, got one for sequence {b} at {i}")
    return np.where(valid, a, blank).astype(np.intp), counts


def _row(name, value):
    shape, _ = _checks.shape_and_dtype(name, value)
    return _checks._whole_numbers(name, value, (shape[0] if len(shape) == 1 else "S",))


def _check_range(name, a, least, most, what, inside):
    """ValueError naming the first true position of `a` that is not from `least` to `most` (NaN is not)."""
    good = (a >= least) & (a <= most)
    if good.all():
        return
    wrong = ~good
    if inside is not None:
        wrong &= inside.reshape(inside.shape + (1,) * (a.ndim - 2))
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {first}" if first else ""
        raise ValueError(f"{name}: expected {least} to {most} ({what}), got {a[first]}{where}")
