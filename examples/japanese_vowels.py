"""Many to one, ragged: who says "ae"? Nine speakers, 640 utterances of 7 to 29 steps, told apart by scikit-learn's
words.

    python examples/japanese_vowels.py [--quick] [--plot japanese_vowels.png]

The data are the Japanese Vowels of Kudo, Toyama and Shimbo (1999), which sktime ships: twelve LPC cepstrum coefficients
at each step, 270 utterances to learn from and 370 for the test. The classifier takes a list of arrays of different
lengths as it is; but for the number of epochs and the learning rate it has its defaults.

Result on two cores, in a second: 95.9 % of the 370 are right (34.9 % if only the first step of each is heard).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np


def read_utterances(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """A list of utterances (T_i, 12), and the speakers (N,), 1 to 9. split : "train" or "test"."""
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError:
        raise SystemExit("japanese_vowels.py needs sktime for its data: pip install sktime") from None
    table, speakers = load_japanese_vowels(split=split, return_X_y=True)
    rows = table.to_numpy()  # of twelve series each
    return [np.stack([series.to_numpy(np.float32) for series in row], axis=1) for row in rows], speakers.astype(int)


def draw(heard: np.ndarray, accuracies: list[float], y: np.ndarray, predicted: np.ndarray) -> Any:
    """The figure: how much must be heard, and who is taken for whom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(heard, accuracies, marker=".")
    left.axhline(np.bincount(y).max() / len(y), color="gray", linestyle="--", label="the most frequent speaker for all")
    left.set(xlabel="steps of each utterance that are heard", ylabel="accuracy", ylim=(0, 1.02))
    left.legend(loc="lower right")
    table = np.zeros((9, 9), int)
    np.add.at(table, (y - 1, predicted - 1), 1)
    right.imshow(table, cmap="Blues", extent=(0.5, 9.5, 9.5, 0.5))
    for (i, j), count in np.ndenumerate(table):
        if count:
            right.text(j + 1, i + 1, count, ha="center", va="center", color="white" if i == j else "black", fontsize=8)
    right.set(xlabel="taken for speaker", ylabel="speaker", xticks=range(1, 10), yticks=range(1, 10))
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="many to one, ragged: the speakers of Japanese Vowels")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, in a second")
    parser.add_argument("--plot", metavar="FILE", help="draw accuracy and mistakes into this file (needs matplotlib)")
    options = parser.parse_args(arguments)
    (x, y), (x_test, y_test) = read_utterances("train"), read_utterances("test")
    from elman.sklearn import RNNClassifier

    start = time.perf_counter()
    classifier = RNNClassifier(epochs=20 if options.quick else 100, learning_rate=3e-3, random_state=0)
    classifier.fit(x, y)
    accuracy = classifier.score(x_test, y_test)
    first_step = classifier.score([utterance[:1] for utterance in x_test], y_test)
    print(f"{accuracy:.1%} of {len(y_test)} utterances are right, ", end="")
    print(f"{first_step:.1%} by their first step ({time.perf_counter() - start:.1f} s)")

    predicted = classifier.predict(x_test)
    for length in (7, 12, 17, 22):
        these = [i for i, utterance in enumerate(x_test) if length <= len(utterance) < length + 5]
        print(f"  {length} to {length + 4} steps: {(predicted[these] == y_test[these]).mean():.1%} of {len(these)}")
    if options.plot:
        heard = np.arange(1, 30)
        accuracies = [classifier.score([utterance[:n] for utterance in x_test], y_test) for n in heard]
        draw(heard, accuracies, y_test, predicted).savefig(options.plot, dpi=100)
    return {"accuracy": accuracy, "first_step": first_step}


if __name__ == "__main__":
    main()
