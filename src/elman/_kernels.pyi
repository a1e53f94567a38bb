"""The compiled kernels behind `elman.functional`, which checks, allocates and then calls these. Not public.

A function that takes arrays is fused: index it with "float" or "double" first, `forward["float"](...)`.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_F = TypeVar("_F")

class _Fused(Generic[_F]):
    """A function for two dtypes."""

    def __getitem__(self, c_type: str) -> _F: ...

@final
class Memory:
    """Bytes from a cache line on, to be written by one kernel and read by another."""

    size: int
    def __new__(cls, size: int) -> Memory: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Packed:
    """One layer's weights in the layout of one instruction set, as long as this object lives."""

    I: int
    H: int
    R: int
    D: int
    cell_number: int
    is_double: bool
    isa: str
    lanes: int
    gates: int
    states: int
    slots: int
    units: int
    carries_h: bool
    def __init__(
        self,
        cell_number: int,
        is_double: bool,
        I: int,
        H: int,
        R: int,
        D: int,
        activations: tuple[tuple[int, float, float], ...] = (),
        coupled: int = 0,
        peepholes: bool = False,
        is_projected: bool = False,
        by_deviation: bool = False,
        clip: float = ...,
        cell_clip: float = ...,
        proj_clip: float = ...,
        stay: float = 0.0,
    ) -> None: ...
    def pack(self, d: int, dense: tuple[_Array | None, ...]) -> None:
        """Lay out one direction's weights."""

    def pack_transposed(self, d: int, dense: tuple[_Array | None, ...]) -> None:
        """And for backward."""

    def padded(self, n: int) -> int:
        """n rounded up to whole vectors."""

    def tape_size(self, rows: int, recompute: bool) -> int:
        """Bytes of a tape for so many true pairs of step and sequence."""

    def new_tape(self, spare: deque[Memory], rows: int, recompute: bool) -> Memory:
        """Memory for it."""

@final
class Stack:
    """Layers, one on top of the other, ready for inference; `step` and `call` are for plain arguments."""

    def __new__(
        cls,
        layers: Sequence[Packed],
        dtype: np.dtype[Any],
        threads: Callable[[], int],
        zoneout: tuple[float, float] = (0.0, 0.0),
        begin: Callable[[], list[_Array]] | None = None,
    ) -> Stack: ...
    def step(self, x: object, state: object, out: object, row: object = None) -> _Array | None: ...
    def step_many(self, x: object, states: tuple[object, ...], out: object, threads: int) -> _Array | None: ...
    def call(
        self, x: object, state: object, batch_first: bool, threads: int, row: object = None
    ) -> list[_Array] | None: ...

forward: _Fused[Any]
backward: _Fused[Any]
infer: _Fused[Any]
elementwise: _Fused[Any]
gate: _Fused[Any]
multiply_add: _Fused[Any]
read: _Fused[Any]
update: _Fused[Any]
ctc: _Fused[Any]

def sum_of_squares(arrays: list[_Array]) -> float | None: ...
def softmax_cross_entropy(
    logits: object, targets: object, lengths: object, weights: _Array | None, is_mean: bool
) -> tuple[float, _Array] | None: ...
def cell_names() -> tuple[str, ...]:
    """The cells, in the order of their numbers."""

def compiler() -> str:
    """Name and version of the compiler that built this module."""

def isa_built() -> tuple[str, ...]:
    """Names of the instruction sets in this build, best last."""

def isa_usable() -> tuple[str, ...]:
    """Names of those that this CPU and operating system can run, best last."""

def isa() -> str:
    """Name of the instruction set that newly packed weights are laid out for."""

def select_isa(name: str) -> None:
    """Use this one of isa_usable() from now on. What is packed already keeps its own."""
