"""One to many: from one letter to a whole name.

    python examples/one_to_many.py [--quick] [--plot one_to_many.png]

A character model hears the first letter and goes on by itself, each letter it draws being its next input. The data
are the names of the functions in the modules of Python's own standard library, read from their source; one in ten is
kept for the test.

Result with Python 3.11 on two cores, in 8 s: 3105 names; the perplexity of 345 others is 4.56 per letter (12.37 by the
counts of letter pairs, 28 by a guess). "g" becomes get_set, get_delete_optional, get_dir, get_section.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

import elman

LETTERS = "\n_abcdefghijklmnopqrstuvwxyz"  # the first one ends a name


def read_names() -> list[np.ndarray]:
    """Names in small letters, each once, in random order, as the places of their letters in LETTERS, with the end."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    source = "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    names = sorted({name.strip("_").lower() for name in re.findall(r"\bdef ([A-Za-z_]{5,30})\(", source)} - {""})
    random.Random(0).shuffle(names)
    return [np.array([LETTERS.index(letter) for letter in name + "\n"]) for name in names]


def make_model(hidden: int = 128) -> elman.Sequential:
    embedding, head = elman.Embedding(len(LETTERS), 32, seed=0), elman.Dense(hidden, len(LETTERS), seed=2)
    return elman.Sequential([embedding, elman.LSTM(32, hidden, seed=1), elman.Dropout(0.3), head])


def bigram_perplexity(training: list[np.ndarray], test: list[np.ndarray]) -> float:
    """Of the model that knows only how often one letter follows another."""
    counts = np.ones((len(LETTERS), len(LETTERS)))
    for name in training:
        np.add.at(counts, (name[:-1], name[1:]), 1)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(np.exp(-np.concatenate([logs[name[:-1], name[1:]] for name in test]).mean()))


def generate(model: elman.Sequential, first: str, rng: np.random.Generator, temperature: float = 0.7) -> str:
    """A name that begins with this letter. temperature : 1 draws as the model says, less prefers what is likely."""
    name, state = first, model.zero_state(1)
    while name[-1] != LETTERS[0] and len(name) < 30:
        logits = model.step(np.array([LETTERS.index(name[-1])]), state)[0].astype(np.float64)
        name += LETTERS[rng.choice(len(LETTERS), p=elman.softmax(logits / temperature))]
    return name.rstrip()


def draw(history: elman.History, bigram: float, model: elman.Sequential, name: np.ndarray) -> Any:
    """The figure: how it learned, and what it expects after each letter of a name that it has not seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(history.epoch, np.exp(history.history["loss"]), label="names to learn from (with dropout)")
    left.plot(history.epoch, np.exp(history.history["val_loss"]), label="names not seen")
    left.axhline(bigram, color="gray", linestyle="--", label="letter pairs")
    left.set(xlabel="epoch", ylabel="perplexity per letter")
    left.legend(fontsize=8)
    logits = model(name[:-1, None])[:, 0].astype(np.float64)
    right.imshow(elman.softmax(logits).T, cmap="Blues", aspect="auto", vmin=0, vmax=1)
    right.plot(np.arange(len(name) - 1), name[1:], "r.", label="what comes")
    letters = ["end", *LETTERS[1:]]
    right.set_yticks(range(len(LETTERS)), letters, fontsize=7)
    right.set_xticks(range(len(name) - 1), [letters[i] for i in name[:-1]])
    right.set(xlabel="letters read so far", title="probability of the next letter")
    right.legend(fontsize=8, loc="lower right")
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="one to many: names from their first letter")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer names, in a second")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw learning and expectations into this file (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    quick = options.quick
    start, names = time.perf_counter(), read_names()[: 1500 if quick else None]
    cut, hidden = len(names) * 9 // 10, 32 if quick else 128
    training, test = names[:cut], names[cut:]

    model = make_model(hidden)
    x, y = [name[:-1] for name in training], [name[1:] for name in training]
    x_test, y_test = [name[:-1] for name in test], [name[1:] for name in test]
    adam, epochs = elman.Adam(model, lr=1e-2 if quick else 3e-3), 4 if quick else 20
    history = model.fit(
        x,
        y,
        loss="softmax_cross_entropy",
        optimizer=adam,
        epochs=epochs,
        validation_data=(x_test, y_test) if options.plot else None,
        seed=0,
        verbose=0,
    )
    found = model.evaluate(x_test, y_test, metrics=["perplexity"])["perplexity"]

    bigram, rng = bigram_perplexity(training, test), np.random.default_rng(0)
    print(f"{len(training)} names; perplexity of {len(test)} others: {found:.2f}, of letter pairs {bigram:.2f}")
    for first in "acdfgprsw":
        print(f"  {first} -> {', '.join(generate(model, first, rng) for _ in range(4))}")
    print(f"{time.perf_counter() - start:.1f} s")
    if options.plot:
        name = next(name for name in test if len(name) > 12)
        draw(history, bigram, model, name).savefig(options.plot, dpi=100)
    return {"perplexity": found, "bigram_perplexity": bigram}


if __name__ == "__main__":
    main()
