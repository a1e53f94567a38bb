"""A bar on the terminal for the batches of an epoch: tqdm's where it is installed, else a plain one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

WIDTH = 30  # characters of a bar
PAUSE = 0.1  # seconds between two looks of it


def with_bar(batches: Sequence[Any], title: str, shown: bool) -> Iterator[Any]:
    """The batches, with a bar on stderr while they are used, which leaves nothing behind. There is none where stderr is
    no terminal but a file or a pipe, or nothing that can be written to; a notebook has tqdm's."""
    if not shown:
        return iter(batches)
    try:
        on_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # None (a program without a console), what has `write` alone, a closed file
        return iter(batches)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _plain(batches, title) if on_terminal else iter(batches)
    return iter(tqdm(batches, desc=title, leave=False, disable=None))


def _plain(batches, title):
    line, last = "", 0.0
    try:
        for done, batch in enumerate(batches):
            if time.monotonic() - last > PAUSE:
                filled = WIDTH * done // len(batches)
                line = f"{title} [{'=' * filled}{' ' * (WIDTH - filled)}] {done}/{len(batches)}"
                print(f"\r{line}", end="", file=sys.stderr, flush=True)
                last = time.monotonic()
            yield batch
    finally:
        print(f"\r{' ' * len(line)}\r", end="", file=sys.stderr, flush=True)
