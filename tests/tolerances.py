"""The one table of tolerances, and the one comparison that reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """A difference may be as large as the larger of the two."""

    absolute: float  # times the largest |expected| of the array, or times 1 if that is less
    ulps: float  # units in the last place of the element that is expected


# About four times the worst that tests/test_kernels.py sees on any instruction set. What is expected
# is computed in float64 from the same numbers, so in float32 the difference is the error of the kernels alone.
TABLE = {
    ("forward", "float32"): Tolerance(5e-6, 4),
    ("forward", "float64"): Tolerance(1e-14, 4),
    ("backward", "float32"): Tolerance(1e-5, 4),  # of x and the initial state
    ("backward", "float64"): Tolerance(2e-14, 4),
    ("weights", "float32"): Tolerance(1e-5, 4),  # of weights and biases
    ("weights", "float64"): Tolerance(2e-14, 4),
}


def operation_of(name):
    """The row of the table for an array of `Problem.results`."""
    return "weights" if name.startswith(("dweight", "dbias")) else "backward" if name.startswith("d") else "forward"


def excess(got, expected, tolerance):
    """By how much each difference exceeds the tolerance: an array, above 1 where it does."""
    with np.errstate(all="ignore"):
        size = np.abs(expected, where=np.isfinite(expected), out=np.zeros(expected.shape)).max(initial=1)
        ulp = np.spacing(np.abs(expected).astype(got.dtype)).astype(np.float64)
        bound = np.fmax(tolerance.absolute * size, tolerance.ulps * ulp)
        ratio = np.abs(got.astype(np.float64) - expected) / bound
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return np.where(same, 0, np.where(np.isfinite(ratio), ratio, np.inf))


def assert_close(got, expected):
    """Every array of `got` (float32 or float64) has the name, shape and values of its twin in `expected` (float64)."""
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        g = got[name]
        assert g.shape == e.shape, f"{name}: shape {g.shape}, expected {e.shape}"
        tolerance = TABLE[operation_of(name), str(g.dtype)]
        ratio = excess(g, e, tolerance)
        if ratio.max(initial=0) > 1:
            at = np.unravel_index(ratio.argmax(), ratio.shape)
            count = np.count_nonzero(ratio > 1)
            raise AssertionError(
                f"{name}{list(map(int, at))}: got {g[at]!r}, expected {e[at]!r}: {ratio[at]:.3g} times the tolerance "
                f"of {tolerance} ({count} of {g.size} elements are beyond it)"
            )
