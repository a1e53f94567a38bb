"""docs/cells.md, written by bench/cells.py: it lists every entry, its gradients are right, nothing in it is slow."""

import re
import sys
from pathlib import Path

import pytest

import elman
from elman import _options

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import cells  # noqa: E402

ENTRIES = {entry.name: entry for entry in cells.ENTRIES}
ROWS = {
    name: numbers.split(" | ")
    for name, numbers in re.findall(
        r"^\| `(.*?)` \| .* \| ((?:\S+ \| ){6}\S+) \|$", (ROOT / "docs" / "cells.md").read_text(), re.M
    )
}


def test_the_table_lists_every_entry():
    assert list(ROWS) == list(ENTRIES)


def test_every_entry_says_what_it_is():
    assert len(ENTRIES) == len(cells.ENTRIES)
    for entry in cells.ENTRIES:
        assert entry.equation and entry.source and "|" not in entry.equation + entry.source, entry.name


def test_every_cell_and_every_activation_is_an_entry():
    layers = [entry.make(3, 4, seed=0) for entry in cells.ENTRIES]
    assert {layer._family for layer in layers} >= {*_options.FORMS}
    chosen = [layer.nonlinearity for layer in layers if type(layer) is elman.RNN]
    assert {entry if isinstance(entry, str) else entry[0] for entry in chosen} == {*_options.ACTIVATIONS}


@pytest.mark.parametrize("name", ENTRIES)
def test_gradients(name):
    entry = ENTRIES[name]
    if not entry.trains:
        with pytest.raises(TypeError):
            cells.gradient_error(entry)
        return
    error = cells.gradient_error(entry)
    if not entry.is_gradient:
        assert error > 1e-3  # what is limited or cut is no gradient
        return
    assert 0 < error < 1e-7
    assert error < 10 * float(ROWS[name][-1])


def test_nothing_in_the_table_is_slow():
    for name, (_, call, _, training, small_call, small_training, _) in ROWS.items():
        figures = [call, training, small_call, small_training] if ENTRIES[name].trains else [call, small_call]
        assert all(0 < float(figure) <= ENTRIES[name].limit for figure in figures), name


def too_slow(entries, H):
    """What of these takes too long, with the figures of a call and of a training step. Of what is above its limit at
    first the shortest of three measurements counts: a busy machine makes slower, never faster."""
    found = {}
    for _ in range(3):
        plain = [ENTRIES[like[0]] for like in (cells.LSTM, cells.GRU, cells.RNN)]
        all_of_them = plain + [entry for entry in entries if entry not in plain]
        with elman.threads(1):
            speeds = cells.measured(all_of_them, H, rounds=10)
        for entry, (_, call, _, training) in zip(all_of_them, speeds, strict=True):
            before = found.get(entry.name, (call, training))
            found[entry.name] = tuple(map(min, before, (call, training)))
        entries = [entry for entry in entries if max(found[entry.name]) > entry.limit]
        if not entries:
            break
    return {entry.name: found[entry.name] for entry in entries}


@pytest.mark.slow
@pytest.mark.parametrize("H", [cells.LARGE, cells.SMALL])
def test_nothing_is_slow(H):
    assert too_slow(cells.ENTRIES, H) == {}


@pytest.mark.slow
def test_a_slow_cell_is_found():
    wasteful = ENTRIES["GRU(I, H)"]._replace(name="half as wide as it says", products=3)
    assert list(too_slow([wasteful], cells.LARGE)) == ["half as wide as it says"]
