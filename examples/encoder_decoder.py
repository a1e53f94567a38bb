"""Encoder and decoder: a sequence into one of another length. Dates as people write them into ISO form.

    python examples/encoder_decoder.py [--quick] [--plot attention.png]

The dates are generated: days from 1930 to 2029 in the ways of WAYS below, "3 May 1999", "May 3rd, 99" or "Monday,
03.05.1999", to be written as "1999-05-03". Every fifth day is kept for the test, in all its ways. Dots put the day
first, slashes the month; a year of two digits is the one from 1930 to 2029.

Result on one core, in 25 s: learned from 20000 dates; of 4000 others, on days that it has not seen, 100.00 % are right
in every character.
"""

from __future__ import annotations

import argparse
import datetime
import time
from typing import Any

import numpy as np

import elman

FIRST, LAST = datetime.date(1930, 1, 1), datetime.date(2029, 12, 31)
WAYS = (
    "{day} {month} {year}",
    "{day} {mon} {yy:02}",
    "{month} {day}{th}, {yy:02}",
    "{month} {day}, {year}",
    "{mon} {day}, {year}",
    "the {day}{th} of {month} {year}",
    "{weekday}, {day:02}.{number:02}.{year}",
    "{weekday}, {day} {month} {year}",
    "{wd} {day} {mon} {year}",
    "{day}.{number}.{yy:02}",
    "{number}/{day}/{year}",
    "{number:02}/{day:02}/{yy:02}",
    "{day}-{mon}-{year}",
    "{year}, {month} {day}",
)
WRITTEN = "0123456789-"  # the characters of an ISO date, tokens 0 to 10
END, START = len(WRITTEN), len(WRITTEN) + 1


def write(day: datetime.date, way: str) -> str:
    """A date in words: write(datetime.date(1999, 5, 3), WAYS[2]) is "May 3rd, 99"."""
    th = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    month, weekday = f"{day:%B}", f"{day:%A}"
    names = {"month": month, "mon": month[:3], "weekday": weekday, "wd": weekday[:3], "th": th}
    return way.format(day=day.day, number=day.month, year=day.year, yy=day.year % 100, **names)


def make_dates(count: int, held_out: bool, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """So many dates as people write them, and in ISO form."""
    days = np.arange((LAST - FIRST).days + 1)
    days = rng.choice(days[(days % 5 == 0) == held_out], count)
    dates = [FIRST + datetime.timedelta(int(day)) for day in days]
    ways = rng.integers(len(WAYS), size=count)
    return [write(date, WAYS[way]) for date, way in zip(dates, ways)], [date.isoformat() for date in dates]


def read(text: str) -> np.ndarray:
    """The codes of its characters, 0 to 94."""
    return np.array([ord(c) - 32 for c in text])


def tokens(date: str) -> np.ndarray:
    return np.array([WRITTEN.index(c) for c in date])


def text(tokens: np.ndarray) -> str:
    return "".join(WRITTEN[token] for token in tokens)


def make_model(hidden: int = 64) -> elman.Seq2Seq:
    return elman.Seq2Seq(
        [elman.Embedding(95, 32, seed=0), elman.GRU(32, hidden, bidirectional=True, seed=1)],
        [elman.Embedding(len(WRITTEN) + 2, 32, seed=2), elman.GRU(32, 2 * hidden, seed=3)],
        [elman.Dense(4 * hidden, hidden, seed=4), elman.Activation("tanh"), elman.Dense(hidden, END + 1, seed=5)],
        attention=elman.DotAttention(),
        start=START,
        end=END,
    )


def draw(model: elman.Seq2Seq, source: str) -> Any:
    """A figure of where the decoder looks while it writes."""
    from matplotlib.figure import Figure

    x = read(source)[:, None]
    written = model.decode(x)[0]
    _, weights = model(x, written[:, None], return_weights=True)
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(weights[:, 0], cmap="Greys", vmin=0)
    ax.set_xticks(range(len(source)), list(source))
    ax.set_yticks(range(len(written) + 1), [*text(written), "end"])
    ax.set(xlabel="reads", ylabel="writes")
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="encoder and decoder: dates into ISO form")
    parser.add_argument("--quick", action="store_true", help="fewer dates and a smaller model, in seconds")
    parser.add_argument("--plot", metavar="FILE", help="draw the attention into this file (needs matplotlib)")
    options = parser.parse_args(arguments)
    quick, start, rng = options.quick, time.perf_counter(), np.random.default_rng(0)
    sources, dates = make_dates(4000 if quick else 20000, False, rng)
    test_sources, test_dates = make_dates(300 if quick else 4000, True, rng)

    model = make_model(32 if quick else 64)
    model.fit(
        [read(source) for source in sources],
        [tokens(date) for date in dates],
        loss="softmax_cross_entropy",
        optimizer=elman.Adam(model, lr=5e-3 if quick else 3e-3),
        epochs=5 if quick else 8,
        clip_norm=1.0,
        seed=0,
        verbose=0 if quick else 1,
    )
    written = [text(w) for w in model.predict([read(source) for source in test_sources], batch_size=256, max_length=12)]
    right = float(np.mean([w == date for w, date in zip(written, test_dates)]))

    print(f"learned from {len(dates)} dates; of {len(test_dates)} others {right:.2%} are right in every character")
    for source, w, date in list(zip(test_sources, written, test_dates))[:8]:
        print(f"  {source:30} {w}{'' if w == date else f', should be {date}'}")
    print(f"{time.perf_counter() - start:.0f} s")
    if options.plot:
        draw(model, "Monday, 3 May 1999").savefig(options.plot, dpi=100)
    return {"exact": right}


if __name__ == "__main__":
    main()
