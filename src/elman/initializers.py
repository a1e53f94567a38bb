"""Initialisers: how weights start, and `initialize`, which applies them to a layer.

    initialize(rnn, input="glorot_uniform", recurrent=identity(), bias=0, seed=0)

An initialiser is called as f(shape, rng, dtype=np.float32) and returns a new array: shape is (out, in), for a
convolution (out, in, ...) with the taps behind; rng is a `numpy.random.Generator` or a whole number. The numbers are
drawn in float64 and rounded to dtype, so one seed gives the same weights in both, up to rounding.

Fans, as in Keras and PyTorch: fan_in = in * taps, fan_out = out * taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from . import _checks, _positions
from ._parameters import Parametrised
from ._types import Array

__all__ = [
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "initialize",
    "orthogonal",
]

Initializer: TypeAlias = Callable[..., Array]  # f(shape, rng, dtype=np.float32)


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator | int, dtype: DTypeLike = np.float32) -> Array:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, eq. 16; for tanh and sigmoid."""
    shape, rng, dtype = _arguments(shape, rng, dtype)
    limit = math.sqrt(6 / sum(_fans(shape)))
    return rng.uniform(-limit, limit, shape).astype(dtype)


def glorot_normal(shape: tuple[int, ...], rng: np.random.Generator | int, dtype: DTypeLike = np.float32) -> Array:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)): Glorot and Bengio 2010, eq. 12.

    Not cut off at two standard deviations, as in PyTorch; Keras cuts and keeps the standard deviation.
    """
    shape, rng, dtype = _arguments(shape, rng, dtype)
    return rng.normal(0, math.sqrt(2 / sum(_fans(shape))), shape).astype(dtype)


def he_uniform(shape: tuple[int, ...], rng: np.random.Generator | int, dtype: DTypeLike = np.float32) -> Array:
    """Uniform in +-sqrt(6 / fan_in): He, Zhang, Ren and Sun 2015, eq. 10; for relu."""
    shape, rng, dtype = _arguments(shape, rng, dtype)
    limit = math.sqrt(6 / _fans(shape)[0])
    return rng.uniform(-limit, limit, shape).astype(dtype)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator | int, dtype: DTypeLike = np.float32) -> Array:
    """Normal with standard deviation sqrt(2 / fan_in): He, Zhang, Ren and Sun 2015, eq. 10; for relu.

    Not cut off at two standard deviations, as in PyTorch; Keras cuts and keeps the standard deviation.
    """
    shape, rng, dtype = _arguments(shape, rng, dtype)
    return rng.normal(0, math.sqrt(2 / _fans(shape)[0]), shape).astype(dtype)


def orthogonal(gain: float = 1.0) -> Initializer:
    """An initialiser: gain times a random (uniformly distributed) orthogonal matrix (Saxe, McClelland, Ganguli 2014).

    If the matrix is not square, its rows or its columns, whichever are fewer, are orthonormal; taps of a convolution
    count as columns, as in PyTorch.
    """
    return partial(_orthogonal, gain=_positions.number("gain", gain, -_LARGEST, _LARGEST))


def identity(gain: float = 1.0) -> Initializer:
    """An initialiser: gain times the identity matrix, for the recurrent weights of a relu RNN with biases 0 (IRNN: Le,
    Jaitly and Hinton 2015). Two axes; ones on the diagonal, zeros elsewhere, if the matrix is not square."""
    return partial(_identity, gain=_positions.number("gain", gain, -_LARGEST, _LARGEST))


def initialize(
    layer: Parametrised,
    *,
    input: str | float | Initializer | None = None,
    recurrent: str | float | Initializer | None = None,
    bias: float | Initializer | None = None,
    seed: int | None = None,
) -> None:
    """Gives a layer new weights, all at once through `layer.edit()`; the same seed gives the same weights.

    layer : a recurrent layer, Dense, or anything else with `params` and `edit`.
    input : for "weight" and "weight_ih_l{k}": an initialiser, its name ("glorot_uniform", "orthogonal", ...), or a
        number that every weight is set to. None leaves them as they are.
    recurrent : likewise for "weight_hh_l{k}".
    bias : for "bias" and "bias_ih_l{k}": a number, or a function like an initialiser that takes the shape (out,).
        "bias_hh_l{k}", which is added to it, becomes 0.
    seed : None (random) or a whole number.

    The weights of a recurrent layer with G gates are G blocks of H rows, and every gate is initialised for itself: an
    orthogonal LSTM has four orthogonal (H, H) matrices, and fan_out of an input weight is H. (Keras takes the gates
    of an input kernel as one matrix: its fan_out is G * H.) Other weights, such as peepholes, stay.

    TypeError, ValueError: a wrong argument, or an initialiser that returns another shape or dtype, or what is not
    finite. Nothing has changed then.

    >>> initialize(lstm, input="glorot_uniform", recurrent="orthogonal", bias=0, seed=1)
    """
    if not (hasattr(layer, "params") and hasattr(layer, "edit")):
        raise TypeError(f"layer: expected a layer (with params and edit), got {type(layer).__name__}")
    wanted = {
        "input": _initializer("input", input),
        "recurrent": _initializer("recurrent", recurrent),
        "bias": _initializer("bias", bias),
    }
    rng = np.random.default_rng(None if seed is None else _checks.integer("seed", seed, 0))
    gates = getattr(layer, "_gates", 1)
    with layer.edit() as p:
        for name, old in layer.params.items():
            role = _role(name)
            if role is None or wanted[role] is None:
                continue
            if name.startswith("bias_hh"):
                p[name] = np.zeros_like(old)
                continue
            block = (old.shape[0] // gates, *old.shape[1:])
            new = [wanted[role](block, rng, dtype=old.dtype) for _ in range(gates)]
            p[name] = np.concatenate([_checks.array(f"{role}: {name}", a, old.dtype, block) for a in new])


_LARGEST = float(np.finfo(np.float32).max)


def _role(name):
    """Which argument of `initialize` a parameter belongs to."""
    if name == "weight" or name.startswith("weight_ih"):
        return "input"
    if name.startswith("weight_hh"):
        return "recurrent"
    return "bias" if name == "bias" or name.startswith(("bias_ih", "bias_hh")) else None


def _initializer(name: str, value: Any) -> Initializer | None:
    """What the user chose as f(shape, rng, dtype), or None."""
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        return _NAMED[_checks.choice(name, value, tuple(_NAMED))]
    return partial(_constant, value=_positions.number(name, value, -_LARGEST, _LARGEST))


def _constant(shape, rng, dtype=np.float32, *, value):
    return np.full(shape, value, dtype)


def _orthogonal(shape, rng, dtype=np.float32, *, gain):
    shape, rng, dtype = _arguments(shape, rng, dtype)
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.where(np.diag(r) < 0, -1, 1)  # makes the factors unique, and with that q uniformly distributed
    return (gain * (q if rows >= columns else q.T)).reshape(shape).astype(dtype)


def _identity(shape, rng, dtype=np.float32, *, gain):
    shape, _, dtype = _arguments(shape, rng, dtype)
    if len(shape) != 2:
        raise ValueError(f"shape: expected (out, in), got {shape}")
    return gain * np.eye(*shape, dtype=dtype)


def _arguments(shape, rng, dtype):
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"shape: expected (out, in), got {shape!r}")
    shape = tuple(_checks.integer("shape", n, 1, _checks.MOST) for n in shape)
    if len(shape) < 2:
        raise ValueError(f"shape: expected two axes or more, (out, in, ...), got {shape}")
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng(_checks.integer("rng", rng, 0))
    return shape, rng, _checks.dtype_of("dtype", dtype)


def _fans(shape):
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


_NAMED: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "he_normal": he_normal,
    "orthogonal": orthogonal(),
    "identity": identity(),
}
