"""docs/cells.md, written by bench/cells.py: it lists every entry, its gradients are right, nothing in it is slow."""

import inspect
import re
import sys
from pathlib import Path

import pytest

import elman

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import cells  # noqa: E402

ENTRIES = {entry.name: entry for entry in cells.ENTRIES}
ROWS = re.findall(r"^\| `(.*?)` \| .* \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$",
                  (ROOT / "docs" / "cells.md").read_text(), re.M)  # fmt: skip


def test_the_table_lists_every_entry():
    assert [name for name, *_ in ROWS] == list(ENTRIES)


def test_what_a_call_can_be_asked_for_stands_below_the_table():
    assert (ROOT / "docs" / "cells.md").read_text().endswith(f"|\n{cells.TAIL}")
    for function, name in (
        ("forward", "tbptt"), ("forward", "burn_in"), ("forward", "return_all"), ("backward", "dc"),
    ):  # fmt: skip
        assert f"{name}=" in cells.TAIL and name in inspect.signature(getattr(elman.LSTM, function)).parameters


@pytest.mark.parametrize("name", ENTRIES)
def test_gradients(name):
    entry = ENTRIES[name]
    if not entry.trains:
        with pytest.raises(TypeError):
            cells.gradient_error(entry)
        return
    error = cells.gradient_error(entry)
    if not entry.is_gradient:
        assert error > 1e-3  # what is limited is no gradient
        return
    assert 0 < error < 1e-7
    (stated,) = (float(row[-1]) for row in ROWS if row[0] == name)
    assert error < 10 * stated


def test_nothing_in_it_is_slow():
    for name, _, call, _, training, _ in ROWS:
        figures = [call, training] if ENTRIES[name].trains else [call]
        assert all(0 < float(figure) <= ENTRIES[name].limit for figure in figures), name
