"""`elman demo`: a recurrent network learns to write, one character at a time, from real text.

The whole of a training program in one file, and nothing that a user could not write: text to streams, truncated
backpropagation through time with carried state, loss, clipping, Adam, sampling with `step`. `import elman` never
imports it.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .dense import Dense
from .layers import GRU, LSTM, RNN
from .losses import softmax_cross_entropy
from .optimizers import Adam, clip_grad_norm

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
STEPS = 32  # of one truncated backpropagation through time
STREAMS = 16  # pieces of the text that are read side by side
LEARNING_RATE = 1e-2  # falls to a tenth of this over the training
MAX_NORM = 1.0  # of all gradients together
LOOKS = 6  # at the held-out text, the one before training not counted
HELD_OUT_SHARE, HELD_OUT_USED, HELD_OUT_STREAMS = 0.1, 40_000, 64
LEAST_TEXT, MOST_BYTES = 5_000, 32 * 2**20
MOST_SYMBOLS, RAREST = 512, 1e-5  # the vocabulary; rarer characters become UNKNOWN
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
TEMPERATURE, SAMPLE_LINES, SAMPLE_CHARACTERS = 0.6, 7, 500
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data", "__pycache__"}

DESCRIPTION = """\
Trains a character-level network on real text and shows what it has learnt: bits per character on text that was held
out (beside the unigram entropy of that text, which is what a model without memory could reach at best), a sample of
its writing, how far the compiled kernels are from the NumPy reference on one batch, and how much faster they are."""

EPILOG = """\
--save writes names and arrays only (no pickle). To use the network again:

    import numpy as np, elman
    with np.load("net.npz", allow_pickle=False) as f:
        data = dict(f)
    size, hidden = len(data["vocabulary"]), data["head.weight"].shape[1]
    layer, head = elman.LSTM(size, hidden), elman.Dense(hidden, size)      # or RNN, GRU: str(data["cell"]) says which
    for net, prefix in (layer, "layer."), (head, "head."):
        net.load_params({k.removeprefix(prefix): w for k, w in data.items() if k.startswith(prefix)})

Input and output number k stand for the character data["vocabulary"][k]; number 0 is any character that is not in it.
"""


class DemoError(Exception):
    """A file or an argument that cannot be used; the message is for the user."""


def add_command(commands):
    """Adds `demo` to argparse's subparsers."""
    parser = commands.add_parser(
        "demo",
        help="train a character-level network on real text, in under a minute",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help=f"a text to learn from, in UTF-8, {LEAST_TEXT:,} characters or more "
        "(default: the source of Python's standard library)",
    )
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="kind of recurrent layer (default: %(default)s)")
    parser.add_argument("--hidden", type=_whole(1, 4096), default=128, metavar="N", help="hidden units (%(default)s)")
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", help="how long to train (30, or without limit if --steps is given)"
    )
    parser.add_argument(
        "--steps", type=_whole(1), metavar="N", help="train N steps; the same seed then gives the same network"
    )
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of all random numbers (%(default)s)")
    parser.add_argument("--save", metavar="FILE", help="write the trained network to FILE, see below")
    parser.add_argument("--backend", choices=("compiled", "reference"), default="compiled", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run_reporting_errors)


def _run_reporting_errors(arguments):
    try:
        return run(arguments)
    except DemoError as error:
        message = str(error)
    except MemoryError:
        message = f"not enough memory for --hidden {arguments.hidden}"
    print(f"elman demo: error: {message}", file=sys.stderr)
    return 2


def run(arguments):
    """The whole demo. Returns the exit code 0, or lets KeyboardInterrupt through after reporting what was reached."""
    from . import __version__

    out = Screen(sys.stdout)
    try:
        target = _checked_target(arguments.save, arguments.file)
        text = read_text(arguments.file)
        network = Network(arguments.cell, text.vocabulary, arguments.hidden, arguments.seed, arguments.backend)
        out.print(f"elman {__version__} demo: {type(network.layer).__name__} learns to write")
        out.print(f"  text      {text.description}")
        out.print(f"            {len(text.vocabulary) - 1} different characters, the last tenth of the text held out")
        out.print(f"  network   {network.layer!r}")
        out.print(f"            and {network.head!r}: {network.size:,} weights, {_machine(arguments.backend)}")
        seconds = arguments.seconds or (math.inf if arguments.steps else 30.0)
        trainer = Trainer(network, text, seconds, arguments.steps)
        try:
            trainer.run(out)
        except KeyboardInterrupt:
            out.print(f"  interrupted after {trainer.summary()}")
            _save(network, target, out)
            raise
        out.print(f"  {trainer.summary()}")
        _save(network, target, out)

        out.print(f"\nwhat it writes (temperature {TEMPERATURE})")
        write(network, np.random.default_rng(arguments.seed), out)
        out.print(f"\nkernels and NumPy reference on one batch ({STEPS} steps of {trainer.streams.shape[1]} sequences)")
        compare(network, trainer.batch(), out)
        return 0
    except KeyboardInterrupt:
        out.end_line()
        raise


# ------------------------------------------------------------------------------------------------------------- text


class Text(NamedTuple):
    description: str
    vocabulary: str  # character number k; number 0 is UNKNOWN
    train: np.ndarray  # (N,) uint16 numbers of characters
    held_out: np.ndarray


def read_text(path=None):
    """The text of a file, or of the standard library, as numbers; the last tenth is held out."""
    characters, description = _read_file(path) if path is not None else _read_standard_library()
    if len(characters) < LEAST_TEXT:
        raise DemoError(f"{description}: too little text, {LEAST_TEXT:,} characters or more are needed")
    codes = np.frombuffer(characters.encode("utf-32-le"), np.uint32)
    split = len(codes) - int(len(codes) * HELD_OUT_SHARE)
    counts = np.bincount(codes[:split])
    counts[ord(UNKNOWN) :][:1] = 0
    frequent = np.argsort(-counts, kind="stable")[: MOST_SYMBOLS - 1]
    kept = np.sort(frequent[counts[frequent] > split * RAREST])
    numbers = np.zeros(sys.maxunicode + 1, np.uint16)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return Text(
        description, UNKNOWN + "".join(map(chr, kept)), numbers[codes[:split]].copy(), numbers[codes[split:]].copy()
    )


def _read_file(path):
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DemoError(f"cannot read {path!r}: {error.strerror or error}") from None
    cut = len(data) > MOST_BYTES
    if not data:
        raise DemoError(f"{path!r} is empty")
    if b"\0" in data:
        raise DemoError(f"{path!r} is not a text: it contains a zero byte")
    if cut:  # perhaps within a character, whose bytes after the first all start with the bits 10
        end = MOST_BYTES
        while end and data[end] & 0xC0 == 0x80:
            end -= 1
        data = data[:end]
    try:
        characters = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at {error.start:,}"
        raise DemoError(f"{path!r} is not UTF-8 text ({place}); `iconv -t utf-8` converts others") from None
    characters = characters.replace("\r\n", "\n")
    first = "the first " if cut else ""
    return characters, f"{os.path.basename(path)!r}, {first}{len(characters):,} characters"


def _read_standard_library():
    """All .py files of the running interpreter's library, in sorted order, that can be read; no tests, no tables."""
    root = Path(sysconfig.get_path("stdlib"))
    parts, size = [], 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(files):
            if not name.endswith(".py") or size > MOST_BYTES:
                continue
            try:
                parts.append(Path(folder, name).read_text(encoding="utf-8").replace("\0", ""))
                size += len(parts[-1])
            except (OSError, UnicodeDecodeError):
                continue
    what = f"{len(parts)} files of {root}, {size:,} characters"
    if size < LEAST_TEXT:
        raise DemoError(f"the source of the standard library is not here ({what}); name a FILE to learn from")
    return "".join(parts), what


def side_by_side(codes, streams, most=None):
    """(N,) numbers of characters as (length, streams): consecutive pieces, each read downwards."""
    length = len(codes) // streams
    return np.ascontiguousarray(codes[: length * streams].reshape(streams, length).T[:most])


# ---------------------------------------------------------------------------------------------------------- network


class Network:
    """One recurrent layer that reads one-hot characters, and Dense on top: the logits of the character that follows."""

    def __init__(self, cell, vocabulary, hidden, seed=0, backend="compiled"):
        self.cell = cell
        self.vocabulary = vocabulary
        more = {"forget_bias": 1.0} if cell == "lstm" else {}  # remembers from the start: learns faster
        self.layer = CELLS[cell](len(vocabulary), hidden, seed=seed, backend=backend, **more)
        self.head = Dense(hidden, len(vocabulary), seed=seed + 1)
        self._one_hot = np.eye(len(vocabulary), dtype=np.float32)

    @property
    def size(self):
        return sum(w.size for part in (self.layer, self.head) for w in part.params.values())

    def one_hot(self, codes):
        """(...,) numbers -> (..., V)"""
        return self._one_hot[codes]

    def gradients(self, x, targets, state):
        """x (T, B, V), targets (T, B) -> loss in nats, final state, gradients of layer and head."""
        y, state, tape = self.layer.forward(x, state)
        logits, head_tape = self.head.forward(y)
        loss, dlogits = softmax_cross_entropy(logits, targets)
        dy, head_grads = self.head.backward(head_tape, dlogits)
        _, _, layer_grads = self.layer.backward(tape, dy)
        return loss, state, [layer_grads, head_grads]

    def bits(self, streams):
        """Bits per character over (length, B) numbers, each predicted from all before it in its stream."""
        total, state = 0.0, None
        for t in range(0, len(streams) - 1, STEPS):
            piece = streams[t : t + STEPS + 1]
            y, state = self.layer(self.one_hot(piece[:-1]), state)
            total += softmax_cross_entropy(self.head(y), piece[1:], reduction="sum")[0]
        return total / streams[1:].size / math.log(2)

    def arrays(self):
        """What --save writes."""
        parts = {"layer": self.layer.params, "head": self.head.params}
        named = {f"{part}.{name}": w for part, params in parts.items() for name, w in params.items()}
        return {"cell": np.array(self.cell), "vocabulary": np.array(list(self.vocabulary)), **named}


def unigram_entropy(codes):
    """Bits per character of the best prediction that knows how frequent each character is, and nothing else."""
    p = np.bincount(codes.ravel()) / codes.size
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum()) + 0.0  # not -0.0


# --------------------------------------------------------------------------------------------------------- training


class Trainer:
    """Truncated backpropagation through time over the streams of a text, until the seconds or the steps are over."""

    def __init__(self, network, text, seconds, steps):
        self.network = network
        self.seconds, self.steps = seconds, steps
        self.streams = side_by_side(text.train, min(STREAMS, len(text.train) // (2 * STEPS + 1)))
        count = min(HELD_OUT_STREAMS, len(text.held_out) // STEPS)
        self.held_out = side_by_side(text.held_out, count, HELD_OUT_USED // count + 1)
        self.entropy = unigram_entropy(self.held_out[1:])
        self.optimizer = Adam([network.layer, network.head], lr=LEARNING_RATE)
        self.done = 0
        self._start = None
        self._end = None
        self.state = None  # carried from one piece of the streams to the next
        self.looks = []  # (seconds, bits per character)
        self._at = 0
        self._recent = None  # a running mean of the loss in bits

    def batch(self):
        """The next piece of all streams: x and targets (T, B), and the state before it."""
        if self._at + STEPS >= len(self.streams):
            self._at, self.state = 0, None
        piece = self.streams[self._at : self._at + STEPS + 1]
        return piece[:-1], piece[1:], self.state

    def step(self):
        codes, targets, state = self.batch()
        loss, self.state, grads = self.network.gradients(self.network.one_hot(codes), targets, state)
        clip_grad_norm(grads, MAX_NORM)
        self.optimizer.lr = LEARNING_RATE * (1 - 0.9 * self.progress)
        self.optimizer.step(grads)
        self._at += STEPS
        self.done += 1
        bits = loss / math.log(2)
        self._recent = bits if self._recent is None else 0.95 * self._recent + 0.05 * bits

    @property
    def elapsed(self):
        """Seconds of training, the looks between included."""
        return 0.0 if self._start is None else (self._end or time.perf_counter()) - self._start

    @property
    def progress(self):
        """0 to 1; of the steps where they are given, so that a seed and a number of steps decide everything."""
        return min(1.0, self.done / self.steps if self.steps else self.elapsed / self.seconds)

    def run(self, out):
        count = self.held_out[1:].size
        entropy = f"their unigram entropy is {self.entropy:.2f} (|)"
        out.print(f"\nbits per character on {count:,} held-out characters; {entropy}")
        self._start = time.perf_counter()
        self._look(out)
        while self.progress < 1 and self.elapsed < self.seconds:
            self.step()
            if self.progress < 1 and self.progress >= len(self.looks) / LOOKS:
                self._look(out)
            out.bar(self.progress, self._status())
        self._end = time.perf_counter()
        self._look(out)

    def _look(self, out):
        bits = self.network.bits(self.held_out)
        self.looks.append((self.elapsed, bits))
        scale = 34 / max(self.looks[0][1], self.entropy)
        bar = list("#" * round(bits * scale) + " " * 36)
        bar[round(self.entropy * scale)] = "|"
        out.print(f"  {self.elapsed:6.1f} s  {bits:5.2f}  {''.join(bar).rstrip()}")

    def _status(self):
        goal = f"step {self.done:,} of {self.steps:,}" if self.steps else f"{self.elapsed:.0f} of {self.seconds:.0f} s"
        return f"{goal}, {self._recent:.2f} bits in training, {self._speed():,.0f} characters/s"

    def _speed(self):
        return self.done * STEPS * self.streams.shape[1] / max(self.elapsed, 1e-9)

    def summary(self):
        seen = self.done * STEPS * self.streams.shape[1]
        reached = f"{self.looks[-1][1]:.3f} bits per held-out character" if self.looks else "no look"
        return f"{self.elapsed:.1f} s, {self.done:,} steps, {seen:,} characters ({self._speed():,.0f}/s): {reached}"


# ---------------------------------------------------------------------------------------------- what has been learnt


def write(network, rng, out):
    """Characters drawn one at a time from what the network expects, each fed back through `step`."""
    layer, vocabulary = network.layer, network.vocabulary
    state, y = layer.zero_state(), np.empty(layer.hidden_size, np.float32)
    code = max(vocabulary.find("\n"), 0)
    column, lines = 0, 1
    out.write("  | ")
    for _ in range(SAMPLE_CHARACTERS):
        layer.step(network.one_hot(code), state, out=y)
        logits = network.head(y).astype(np.float64) / TEMPERATURE
        logits[0] = -np.inf  # UNKNOWN is not for writing
        p = np.cumsum(np.exp(logits - logits.max()))
        code = int(np.searchsorted(p, rng.random() * p[-1], side="right"))
        character = vocabulary[code]
        if character == "\n" or column >= out.width() - 5:
            if lines == SAMPLE_LINES:
                break
            out.write("\n  | ")
            column, lines = 0, lines + 1
        if character != "\n":
            shown = "    " if character == "\t" else character if character.isprintable() else " "
            out.write(shown)
            column += len(shown)
    out.end_line()


def compare(network, batch, out):
    """The kernels beside the NumPy reference on one batch: the time of both, and the largest differences of outputs
    and of all gradients, each in units of the largest entry of its array."""
    codes, targets, state = batch
    fast, x = network.layer, network.one_hot(codes)
    slow = type(fast)(fast.input_size, fast.hidden_size, backend="reference")
    slow.load_params(fast.params)
    logits, head_tape = network.head.forward(fast(x, state)[0])
    dy, _ = network.head.backward(head_tape, softmax_cross_entropy(logits, targets)[1])

    def both_ways(layer):
        y, final, tape = layer.forward(x, state)
        dx, dinitial, grads = layer.backward(tape, dy)
        return {"y": y, **_parts(final)}, {"x": dx, **_parts(dinitial), **grads}

    (outputs, grads), (true_outputs, true_grads) = both_ways(fast), both_ways(slow)
    forwards, where = _furthest(outputs, true_outputs)
    backwards, where_back = _furthest(grads, true_grads)
    ours = _median_seconds(lambda: both_ways(fast), 9)
    theirs = _median_seconds(lambda: both_ways(slow), 5)
    difference = f"outputs {forwards:.1e} ({where}), gradients {backwards:.1e} ({where_back})"
    out.print(f"  largest difference    {difference} of the largest entry")
    times = f"kernels {ours * 1e3:.2f} ms, reference {theirs * 1e3:.2f} ms"
    out.print(f"  forward and backward  {times}: {theirs / ours:.1f} times faster")


def _parts(state):
    return dict(zip("hc", state)) if isinstance(state, tuple) else {"h": state}


def _furthest(ours, theirs):
    """The largest difference over dicts of arrays, in units of the largest entry of the array, and its key."""
    found = []
    for name, b in theirs.items():
        largest = np.abs(b).max()
        found.append((np.abs(ours[name] - b).max() / (largest or 1), name))
    return max(found, key=lambda pair: (np.isnan(pair[0]), pair[0]))


def _median_seconds(call, repeats, patience=3.0):
    """The median time of some calls, fewer than `repeats` where they take long."""
    times = []
    while len(times) < repeats and sum(times) < patience:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _machine(backend):
    if backend == "reference":
        return "in NumPy"
    from ._config import config

    now = config()
    threads = now["num_threads"]
    return f"{now['isa']} kernels on {threads} thread{'s' * (threads > 1)}"


# ------------------------------------------------------------------------------------------------------------ saving


def _checked_target(path, source):
    """Where --save will write, or a DemoError if that would fail: found out before the training, not after it."""
    if path is None:
        return None
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise DemoError(f"--save: {path!r} is there and is not a file")
    if target.exists() and source is not None and os.path.exists(source) and target.samefile(source):
        raise DemoError(f"--save: {path!r} is the text to learn from")
    try:
        if target.exists():
            open(target, "r+b").close()
        draft = _draft(target)
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise DemoError(f"--save: cannot write {path!r}: {error.strerror or error}") from None
    return target


def _save(network, target, out):
    """Writes the whole file beside the target and renames it, so that the target is never half a file."""
    if target is None:
        return
    draft = _draft(target)
    try:
        with open(draft, "xb") as file:
            np.savez(file, **network.arrays())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise DemoError(f"--save: cannot write {str(target)!r}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
    out.print(f"  saved to {target}")


def _draft(target):
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


# ------------------------------------------------------------------------------------------------------------ screen


class Screen:
    """Lines on stdout and, if that is a terminal, one progress bar below them, drawn over itself.

    No cursor movement but the carriage return and no colours, so there is nothing to restore after an interrupt.
    """

    def __init__(self, stream):
        self._stream = stream
        self._terminal = stream.isatty()
        self._bar = 0  # characters of the bar on the present line
        self._line_open = False
        self._next = 0.0

    def width(self):
        return shutil.get_terminal_size().columns if self._terminal else 80

    def write(self, text):
        """Text as it comes, without a line end; what the stream cannot encode becomes a question mark."""
        self._line_open = not text.endswith("\n")
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def print(self, line):
        self.end_line()
        self.write(line + "\n")

    def end_line(self):
        """Removes the bar, or ends a line that was begun."""
        if self._bar:
            self.write("\r" + " " * (self._bar + 2) + "\r")  # 2: the ^C that a terminal shows
            self._bar = 0
            self._line_open = False
        elif self._line_open:
            self.write("\n")

    def bar(self, fraction, status):
        """Draws the bar, at most ten times a second; nothing if stdout is not a terminal."""
        now = time.perf_counter()
        if not self._terminal or now < self._next:
            return
        self._next = now + 0.1
        room = self.width() - 4  # the last columns stay free: some terminals wrap there
        cells = min(30, room - len(status) - 12)
        done = int(cells * fraction)
        drawn = f"  [{'#' * done}{'-' * (cells - done)}] " if cells >= 5 else "  "
        line = f"{drawn}{fraction:4.0%}  {status}"[: max(room, 0)]
        width_before, self._bar = self._bar, max(self._bar, len(line))  # first: an interrupt may come within write
        self.write("\r" + line.ljust(width_before))


def _whole(least, most=None):
    """An argparse type: a whole number in a range."""

    def number(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < least or (most is not None and value > most):
            wanted = f"{least} or more" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {value}")
        return value

    return number


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0 and finite, got {text}")
    return value
