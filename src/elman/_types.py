"""The types in the signatures of `elman.functional` and `elman.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]  # float32 or float64
Arrays: TypeAlias = tuple[Array, ...]
State: TypeAlias = "Array | Arrays | None"  # h, or (h, c); None, whole or in part, is zeros
Packed: TypeAlias = Any  # what `*_pack` returns
Tape: TypeAlias = Any  # what `*_forward` returns for `*_backward`
Weights: TypeAlias = (
    "Sequence[Sequence[Array | None]] | Packed"  # per direction (weight_ih, weight_hh, bias_ih, bias_hh, ...)
)
Gradients: TypeAlias = "list[tuple[Array | None, ...]]"  # the same form
