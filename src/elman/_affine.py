"""Products with weights, by the kernels: y = x W^T + b for each row by itself, and the way back.

A row gives the same bits alone and among others, on any number of threads, as in the recurrent layers.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from . import _config, _kernels
from ._locks import ForkSafeLock

_CELL = _kernels.cell_names().index("affine")
_NOTHING = _kernels.Memory(1)  # what this cell keeps on its tape
_BACKWARD = {np.dtype(np.float32): _kernels.backward["float"], np.dtype(np.float64): _kernels.backward["double"]}
_packing = ForkSafeLock()
PIECE = 1024  # rows whose gradients the kernels sum at once: scratch is bounded, and long sums stay accurate


class Affine:
    """W (O, I) and b (O,) or None, dense and of one dtype, laid out once; never changed."""

    __slots__ = ("_dense", "_packed", "_stack", "_has_transposed", "_scratch")

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None):
        O, I = weight.shape
        self._dense = (weight, None, bias, None, None, None, None)  # as _kernels.Packed.pack takes them
        self._packed = _kernels.Packed(_CELL, weight.dtype == np.float64, I, O, O, 1)
        self._packed.pack(0, self._dense)
        self._stack = _kernels.Stack((self._packed,), weight.dtype, _config.get_num_threads)
        self._has_transposed = False
        self._scratch: deque[_kernels.Memory] = deque(maxlen=1)

    def __call__(self, x: Any) -> np.ndarray | None:
        """x (..., I) -> y (..., O), a new array; None where x is anything but an array of W's dtype with I features."""
        if not isinstance(x, np.ndarray) or x.ndim <= 2:
            return self._stack.step(x, (), None)
        if x.shape[-1] != self._packed.I:
            return None
        y = self._stack.step(x.reshape(-1, self._packed.I), (), None)
        return None if y is None else y.reshape(*x.shape[:-1], self._packed.H)

    def backward(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """x (..., I) and dy (..., O), both dense -> dx like x, dW (O, I) and db (O,), or None without a bias."""
        self._transpose()
        rows, drows = x.reshape(1, -1, self._packed.I), dy.reshape(1, -1, self._packed.H)
        dx = np.empty_like(rows)
        if rows.shape[1] <= PIECE:
            return dx.reshape(x.shape), *self._gradients(rows, drows, dx)
        sums: list[Any] = [None if a is None else np.zeros(a.shape) for a in (self._dense[0], self._dense[2])]
        for start in range(0, rows.shape[1], PIECE):
            piece = np.s_[:, start : start + PIECE]
            for i, part in enumerate(self._gradients(rows[piece], drows[piece], dx[piece])):
                if part is not None:
                    sums[i] += part
        dweight, dbias = (None if a is None else a.astype(x.dtype) for a in sums)
        return dx.reshape(x.shape), dweight, dbias

    def _gradients(self, rows, drows, dx):
        """dW and db of at most PIECE rows; writes their dx."""
        weight, bias = self._dense[0], self._dense[2]
        dweight, dbias = np.empty_like(weight), None if bias is None else np.empty_like(bias)
        _BACKWARD[weight.dtype](
            self._packed, rows, None, None, None, None, _config.get_num_threads(), _NOTHING, False, drows, None,
            math.inf, [], dx, [], None, [(dweight, None, dbias, None, None, None, None)], self._scratch,
        )  # fmt: skip
        return dweight, dbias

    def _transpose(self):
        if not self._has_transposed:
            with _packing.held():
                if not self._has_transposed:
                    self._packed.pack_transposed(0, self._dense)
                self._has_transposed = True
