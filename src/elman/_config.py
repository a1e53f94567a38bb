"""What this process runs on: instruction set and threads, from the environment or from these functions."""

from __future__ import annotations

import contextlib
import contextvars
import os
import platform
from collections.abc import Iterator

from . import _checks, _kernels
from ._version import __version__

_threads_of_process = 1
_threads_of_context: contextvars.ContextVar[int | None] = contextvars.ContextVar("elman_threads", default=None)


def set_num_threads(n: int) -> None:
    """Let every call of this process use up to `n` threads (at least 1). Results never depend on it."""
    global _threads_of_process
    _threads_of_process = _checks.integer("n", n, 1, 1024)


def get_num_threads() -> int:
    """How many threads a call made here may use."""
    return _threads_of_context.get() or _threads_of_process


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Within the block, calls of this Python thread (or task) use up to `n` threads; others are not affected."""
    token = _threads_of_context.set(_checks.integer("n", n, 1, 1024))
    try:
        yield
    finally:
        _threads_of_context.reset(token)


def config() -> dict[str, object]:
    """What elman was built with and runs on, as a dict: `version`, `compiler`, `isa_built`, `isa_usable`, `isa`,
    `num_threads`."""
    return {
        "version": __version__,
        "compiler": _kernels.compiler(),
        "isa_built": _kernels.isa_built(),
        "isa_usable": _kernels.isa_usable(),
        "isa": _kernels.isa(),
        "num_threads": get_num_threads(),
    }


def show_config() -> None:
    """Print config()."""
    for name, value in config().items():
        print(f"{name:12} {', '.join(value) if isinstance(value, tuple) else value}")
    print(f"{'python':12} {platform.python_version()} on {platform.machine()}")


def usable_cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this operating system
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = map(int, file.read().split())  # "max 100000" without a quota: ValueError
        cores = min(cores, max(1, quota // period))
    return cores


def _read_environment() -> None:
    usable = _kernels.isa_usable()
    isa = os.environ.get("ELMAN_ISA") or usable[-1]
    if isa not in usable:
        raise ImportError(f"ELMAN_ISA: expected one of {', '.join(usable)} on this machine, got {isa!r}")
    _kernels.select_isa(isa)
    value = os.environ.get("ELMAN_NUM_THREADS")
    try:
        set_num_threads(int(value) if value else usable_cores())
    except ValueError:
        raise ImportError(f"ELMAN_NUM_THREADS: expected a whole number from 1 to 1024, got {value!r}") from None


_read_environment()
