"""Adam, and gradient clipping by norm and by value.

An optimiser holds layers and takes the gradients that their `backward` returned; it never computes one. All
arguments are checked before any weight, moment or gradient changes.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from . import _checks
from ._parameters import Parametrised, same_names
from ._types import Array

__all__ = ["Adam", "clip_grad_norm", "clip_grad_value"]

Grads: TypeAlias = "Mapping[str, Array] | Sequence[Mapping[str, Array]]"  # of one layer, or of several


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with the words, defaults and equations of torch.optim.Adam.

        m = beta1 * m + (1 - beta1) * g                         # m and v start at 0
        v = beta2 * v + (1 - beta2) * g^2
        weight -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)      # t = 1, 2, ...

        optimizer = elman.Adam([lstm, head], lr=2e-3)
        optimizer.step([lstm_grads, head_grads])

    Args:
        layers: a layer, or a list of different layers: anything with `params` and `edit`, as LSTM or Dense.
        lr: learning rate, 0 or above. The attribute `lr` may be set between steps, for a schedule.
        betas: how slowly the mean and the mean square forget, each at least 0 and below 1.
        eps: added to the denominator, 0 or above.

    The moments have the dtypes of the weights. Weights may be edited or loaded between the steps.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.
    """

    def __init__(
        self,
        layers: Parametrised | Sequence[Parametrised],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._single = _is_layer(layers)
        self._layers = _layers([layers] if self._single else layers)
        self.lr = lr
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected two numbers, got {betas!r}")
        self._betas = tuple(_number("betas", beta, 0, 1) for beta in betas)
        self._eps = _number("eps", eps, 0)
        self._steps = 0
        self._moments = [
            {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in layer.params.items()} for layer in self._layers
        ]

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _number("lr", value, 0)

    def __repr__(self) -> str:
        kinds = ", ".join(type(layer).__name__ for layer in self._layers)
        return f"Adam([{kinds}], lr={self._lr}, betas={self._betas}, eps={self._eps})"

    def step(self, grads: Grads) -> None:
        """Changes the weights of all layers by one step, through `layer.edit()`.

        Args:
            grads: what `backward` returned: for one layer a dict with the keys, shapes and dtypes of `layer.params`,
                for a list of layers a list of dicts in the same order. Not changed.

        Raises:
            TypeError, ValueError: other keys, shapes or dtypes; a gradient that is NaN, infinite, or too large for
                its square to be finite; a step after which a weight would not be finite. Nothing has changed then.
        """
        all_grads = self._checked(grads)
        t = self._steps + 1
        step_size = self._lr / (1 - self._betas[0] ** t)
        root = math.sqrt(1 - self._betas[1] ** t)
        moments = []
        with contextlib.ExitStack() as edits, np.errstate(all="ignore"):  # an error leaves every layer as it was
            # One order for all optimisers: two that share layers would else wait for each other for ever.
            drafts = {id(layer): edits.enter_context(layer.edit()) for layer in sorted(self._layers, key=id)}
            for i, layer in enumerate(self._layers):
                weights = drafts[id(layer)]
                moments.append({})
                for name, g in all_grads[i].items():
                    m, v = moments[i][name] = self._moved(self._moments[i][name], g)
                    weights[name] -= step_size * m / (np.sqrt(v) / root + self._eps)
                    if not np.isfinite(weights[name]).all():
                        raise ValueError(f"{self._where(i)}{name}: this step would make a weight infinite or NaN")
        self._moments = moments
        self._steps = t

    def _moved(self, moments, g):
        """The two moments after the gradient g, as new arrays."""
        (m, v), (beta1, beta2) = moments, self._betas
        m = m * beta1
        m += (1 - beta1) * g
        square = g * g
        square *= 1 - beta2
        square += v * beta2
        return m, square

    def _checked(self, grads):
        """The gradients as one dict of arrays per layer."""
        if self._single and isinstance(grads, Mapping):
            grads = [grads]
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._layers):
            wanted = "a dict" if self._single else f"a list of {len(self._layers)} dicts, one per layer"
            raise TypeError(f"grads: expected {wanted}, got {_checks._kind(grads)}")
        return [self._checked_dict(i, given) for i, given in enumerate(grads)]

    def _checked_dict(self, i, given):
        params = self._layers[i].params
        same_names(self._where(i)[:-2], given, params)
        grads = {k: _checks.array(self._where(i) + k, given[k], w.dtype, w.shape) for k, w in params.items()}
        for name, g in grads.items():
            _check_finite(self._where(i) + name, g)
        return grads

    def _where(self, i):
        return "grads: " if self._single else f"grads[{i}]: "


def clip_grad_norm(grads: Grads, max_norm: float) -> float:
    """Scales all gradients by one factor so that their common Euclidean norm is at most max_norm.

    If norm > max_norm, every g becomes g * max_norm / norm (Pascanu, Mikolov and Bengio 2013, algorithm 1);
    torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm in the denominator, this does not.

    Args:
        grads: a dict of float32 or float64 arrays, or a list of such dicts (then one norm over all), changed in place.
        max_norm: above 0; infinity only measures.

    Returns:
        The norm before clipping, a Python float accumulated in float64. If a gradient is NaN or infinite the norm is
        too, and nothing is changed: skip that step, or let `Adam.step` refuse it.

    Raises:
        TypeError, ValueError: gradients that are not writable float arrays, an array given twice, a wrong max_norm.
            Nothing has changed then.
    """
    max_norm = _number("max_norm", max_norm, 0, open_below=True, infinite=True)
    arrays = _arrays(grads)
    norm = _norm(arrays)
    if math.isfinite(norm) and norm > max_norm:
        with np.errstate(all="ignore"):
            for g in arrays:
                g *= max_norm / norm
    return norm


def clip_grad_value(grads: Grads, clip_value: float) -> None:
    """Clamps every entry of every gradient to [-clip_value, clip_value], like torch.nn.utils.clip_grad_value_.

    Args:
        grads: a dict of float32 or float64 arrays, or a list of such dicts, changed in place. NaN stays NaN.
        clip_value: above 0.

    Raises:
        TypeError, ValueError: gradients that are not writable float arrays, an array given twice, a wrong
            clip_value. Nothing has changed then.
    """
    clip_value = _number("clip_value", clip_value, 0, open_below=True)
    for g in _arrays(grads):
        with np.errstate(all="ignore"):
            limit = g.dtype.type(clip_value)
        np.clip(g, -limit, limit, out=g)


def _norm(arrays):
    """The Euclidean norm over all arrays, in float64; scaled where the plain squares overflow or vanish."""
    with np.errstate(all="ignore"):
        total = sum(_sum_of_squares(g) for g in arrays)
        if 1e-280 < total < math.inf:
            return math.sqrt(total)
        peak = float(np.max([np.abs(g).max(initial=0) for g in arrays], initial=0))
        if peak == 0 or not math.isfinite(peak):
            return peak
        return peak * math.sqrt(sum(_sum_of_squares(g, peak) for g in arrays))


def _sum_of_squares(g, unit=1.0):
    flat = g.ravel().astype(np.float64)
    if unit != 1.0:
        flat /= unit
    return float(np.einsum("i,i", flat, flat))  # not np.dot: its threads spin, and a busy machine stands still


def _check_finite(name, g):
    """Refuses a gradient that would leave the mean square infinite or NaN for ever."""
    limit = math.sqrt(np.finfo(g.dtype).max)
    if g.size and not (g.max() < limit and g.min() > -limit):  # false for NaN too
        bad = np.argwhere(~(np.abs(g) < limit))[0]
        where = ", ".join(str(i) for i in bad)
        raise ValueError(f"{name}: expected finite values below {limit:.1e}, got {g[tuple(bad)]:.3g} at ({where})")


def _arrays(grads):
    """All arrays of a dict or of a list of dicts, checked to be writable, of float dtypes, and each there once."""
    single = isinstance(grads, Mapping)
    if not single and not isinstance(grads, (list, tuple)):
        raise TypeError(f"grads: expected a dict of arrays or a list of such dicts, got {_checks._kind(grads)}")
    arrays, seen = [], []
    for i, given in enumerate([grads] if single else grads):
        where = "grads" if single else f"grads[{i}]"
        if not isinstance(given, Mapping):
            raise TypeError(f"{where}: expected a dict of arrays, got {_checks._kind(given)}")
        for key, g in given.items():
            name = f"{where}: {key}"
            if not isinstance(g, np.ndarray) or g.dtype not in _checks.FLOATS:
                raise TypeError(f"{name}: expected an array of float32 or float64, got {_checks._kind(g)}")
            if not g.flags.writeable:
                raise ValueError(f"{name}: expected a writable array, got a read-only one")
            for other_name, other in seen:
                if other is g or _checks.overlap(other, g):
                    raise ValueError(f"{name}: expected memory of its own, got an array that overlaps {other_name}")
            seen.append((name, g))
            arrays.append(g)
    return arrays


def _is_layer(value):
    return hasattr(value, "params") and hasattr(value, "edit")


def _layers(value):
    if not isinstance(value, (list, tuple)) or not value:
        raise TypeError(f"layers: expected a layer or a list of layers, got {_checks._kind(value)}")
    for i, layer in enumerate(value):
        if not _is_layer(layer):
            raise TypeError(f"layers[{i}]: expected a layer (with params and edit), got {_checks._kind(layer)}")
        if any(layer is other for other in value[:i]):
            raise ValueError(f"layers[{i}]: expected different layers, got one twice")
    return tuple(value)


def _number(name, value, low, high=math.inf, *, open_below=False, infinite=False):
    """A float in [low, high), or in (low, high) with `open_below`; infinity only with `infinite`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    inside = (low < number if open_below else low <= number) and (number < high or (infinite and number == high))
    if not inside:
        wanted = f"{'above' if open_below else 'at least'} {low}"
        wanted += f" and below {high}" if high < math.inf else "" if infinite else " and finite"
        raise ValueError(f"{name}: expected {wanted}, got {number}")
    return number
