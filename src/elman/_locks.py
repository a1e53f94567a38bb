"""A lock that a forked child finds open: the thread that may have held it stayed in the parent."""

from __future__ import annotations

import os
import threading

_renewing = threading.Lock()


class ForkSafeLock:
    """A `threading.Lock` to hold by `with lock.held():`, made anew in each forked child."""

    __slots__ = ("_lock", "_process")

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    def held(self) -> threading.Lock:
        if self._process != os.getpid():
            with _renewing:
                if self._process != os.getpid():
                    self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock


def _after_fork_in_child() -> None:
    global _renewing
    _renewing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
