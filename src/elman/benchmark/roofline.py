"""What the machine can do at most, measured, and what of it a case needs at least.

A bound says how long a case must take even if nothing but its products, its weights and its arrays cost anything. It
is the largest of three times, which may all pass at once:

compute      the multiplications and additions of the products with the weights (`Case.operations`), at the rate of
             multiply-adds of the case's dtype on the instruction set in use
weights      what is read again in every step, at the rate of the smallest memory that it fits into. A `step` reads
             the weights of all layers. A sequence reads weight_hh of each layer and direction T times, and as often
             again in backward; each stays in its memory until its T steps are done. weight_ih is read once, since
             the product with x can be made for many steps at a time.
activations  x and y of all layers are streamed once, at the rate of the smallest memory that they fit into together.
             For `train` also the tape, written and read, (gates + states) * H numbers a row, and dy, y and x again,
             and dx.

Neither exp and tanh nor the cost of a call are in it, so a small case stays far from its bound. Weights a little larger
than a memory can still be there in part, so a case can be a little better than its bound. With n threads every rate
counts n times, which memory that cores share will not reach.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import _kernels
from .cases import GATES, Case

C_TYPES = {"float32": "float", "float64": "double"}
USUAL_CACHES = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20}  # bytes, where the system does not tell
LARGEST_BUFFER = 256 << 20  # bytes
TURNS, TURN = 40, 0.002  # the best of so many turns of at least so many seconds counts: others disturb some of them
KINDS = ("compute", "weights", "activations")


@dataclass(frozen=True)
class Memory:
    name: str  # "L1", "L2", "L3", "DRAM"
    size: float  # bytes, infinite for DRAM
    rate: float  # bytes a second, read by one core


@dataclass(frozen=True)
class Limits:
    operations: dict[str, float]  # a second, of one core, for each dtype
    memories: tuple[Memory, ...]  # the smallest first

    def memory_of(self, size: float) -> Memory:
        """The smallest that `size` bytes fit into."""
        return next(memory for memory in self.memories if size <= memory.size)

    def report(self) -> dict[str, Any]:
        """For a JSON file, in GFLOP/s, bytes (None: no end) and GB/s."""
        return {
            "gflops": {dtype: round(rate / 1e9, 1) for dtype, rate in self.operations.items()},
            "memories": [
                {"name": m.name, "bytes": m.size if math.isfinite(m.size) else None, "gb_per_s": round(m.rate / 1e9, 1)}
                for m in self.memories
            ],
        }

    @staticmethod
    def of_report(report: dict[str, Any]) -> Limits:
        memories = (Memory(m["name"], m["bytes"] or math.inf, m["gb_per_s"] * 1e9) for m in report["memories"])
        return Limits({dtype: rate * 1e9 for dtype, rate in report["gflops"].items()}, tuple(memories))


@dataclass(frozen=True)
class Bound:
    seconds: dict[str, float]  # for each of KINDS
    weights_in: str  # the memory that the weights are read from

    @property
    def kind(self) -> str:
        """Which limit binds."""
        return max(KINDS, key=self.seconds.__getitem__)

    @property
    def least(self) -> float:
        """Seconds for one call."""
        return self.seconds[self.kind]

    @property
    def name(self) -> str:
        return {"compute": "FMA", "weights": self.weights_in, "activations": "stream"}[self.kind]


def bound(case: Case, limits: Limits, threads: int = 1) -> Bound:
    size = np.dtype(case.dtype).itemsize
    train = case.work == "train"
    compute = case.operations / limits.operations[case.dtype]

    if case.is_step:
        total = size * sum(map(sum, case.weights))
        memory = limits.memory_of(total)
        weights = total / memory.rate
    else:
        largest = max(size * w_hh for _, w_hh in case.weights)
        memory = limits.memory_of(largest)
        weights = sum(
            size * w_ih / limits.memory_of(size * w_ih).rate
            + (2 if train else 1) * case.T * size * w_hh / limits.memory_of(size * w_hh).rate
            for w_ih, w_hh in case.weights
        )

    outputs = case.directions * case.H
    x = size * case.rows * (case.I + (case.layers - 1) * outputs)  # of all layers
    y = size * case.rows * case.layers * outputs
    tape = y * (GATES[case.cell] + (2 if case.cell == "lstm" else 1))
    streamed = x + y + train * (2 * tape + 2 * x + 2 * y)
    activations = streamed / limits.memory_of(x + y + train * tape).rate

    times = {"compute": compute, "weights": weights, "activations": activations}
    return Bound({kind: seconds / threads for kind, seconds in times.items()}, memory.name)


# ---------------------------------------------------------------------------------------------------- the machine


def measure_limits() -> Limits:
    """Of the core that this runs on, with the instruction set in use; takes a second or two."""
    total = np.ones(64, np.float32)  # more than the lanes of any vector
    caches = cache_sizes()
    sizes = list(caches.values())
    # At least half of a cache is left to others, and more of one that other cores share.
    used = [min(size / 2, 4 * below) for size, below in zip(sizes, [sizes[0], *sizes], strict=False)]
    used.append(max(2 * sizes[-1], min(4 * sizes[-1], LARGEST_BUFFER)))
    buffer = _aligned(int(used[-1]))
    parts = [buffer[: int(size) // buffer.itemsize] for size in used]
    works = [partial(_kernels.read["float"], a=part, total=total) for part in parts]
    works += [partial(_kernels.multiply_add[c], total=total.astype(dtype)) for dtype, c in C_TYPES.items()]
    rates = _best(works)
    memories = zip([*caches, "DRAM"], [*sizes, math.inf], rates, strict=False)
    return Limits(dict(zip(C_TYPES, rates[len(parts) :], strict=True)), tuple(Memory(*memory) for memory in memories))


def cache_sizes() -> dict[str, int]:
    """Bytes of {"L1", "L2", "L3"} of this core, as the system tells them; what is not there is left out."""
    sizes: dict[str, int] = {}
    folder = "/sys/devices/system/cpu/cpu0/cache"
    for index in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        try:
            level, kind, size = (_text(f"{folder}/{index}/{name}") for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[-1:] in "KM" and size[:-1].isdigit():
            sizes[f"L{level}"] = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    if not sizes and hasattr(os, "sysconf"):
        names = {"L1": "SC_LEVEL1_DCACHE_SIZE", "L2": "SC_LEVEL2_CACHE_SIZE", "L3": "SC_LEVEL3_CACHE_SIZE"}
        for level, name in names.items():
            with contextlib.suppress(OSError, ValueError):  # a name that is not known here
                sizes[level] = os.sysconf(name)
    sizes = {level: size for level, size in sorted(sizes.items()) if size > 0}
    return sizes or USUAL_CACHES


def _best(works: list[Callable[[int], float]]) -> list[float]:
    """Operations or bytes a second of each, its best of some turns. `work(rounds)` returns how many it did."""
    rounds, best = [1] * len(works), [0.0] * len(works)
    for _ in range(TURNS):
        for i, work in enumerate(works):
            seconds = 0.0
            while seconds < TURN:
                start = time.perf_counter()
                done = work(rounds[i])
                seconds = time.perf_counter() - start
                rounds[i] *= 1 if seconds >= TURN else 2
            best[i] = max(best[i], done / seconds)
    return best


def _aligned(size: int) -> np.ndarray:
    """(size / 4,) ones, float32, beginning on a line of the cache and written to, or all pages would be one."""
    a = np.ones(size // 4 + 16, np.float32)
    start = -a.ctypes.data % 64 // 4
    return a[start : start + size // 4]


def _text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
