"""`elman demo`: what it prints is what it computed; it learns; interrupts, files and arguments end it politely."""

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from elman import demo
from elman.__main__ import main
from elman.reference import lstm_forward

posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")
needs_ordinary_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)


@pytest.fixture
def corpus(tmp_path):
    """A text with much more structure than its letters' frequencies show."""
    rng = np.random.default_rng(0)
    names, verbs = ["anna", "bob", "clara", "dmitri"], ["meets", "calls", "thanks"]
    lines = [
        f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(names)} at {rng.integers(1, 12)}." for _ in range(900)
    ]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small(path, *more):
    return ["demo", str(path), "--hidden", "24", "--steps", "60", *map(str, more)]


def quick(path, *more):
    return ["demo", str(path), "--hidden", "4", "--steps", "3", *map(str, more)]


def code_and_error(capsys, arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    assert captured.err.startswith("elman demo: error: ") and captured.err.count("\n") == 1
    return code, captured.err


# ------------------------------------------------------------------------------------------------------ the main job


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_it_learns_and_says_so(cell, backend, corpus, capsys):
    assert main(small(corpus, "--cell", cell, "--backend", backend)) == 0
    shown = capsys.readouterr().out
    assert cell.upper() in shown.splitlines()[0] and "\r" not in shown and "\x1b" not in shown
    entropy = float(re.search(r"unigram entropy is ([\d.]+)", shown)[1])
    bits = [float(b) for b in re.findall(r"^ +[\d.]+ s +([\d.]+)  #", shown, re.M)]
    assert len(bits) == demo.LOOKS + 1
    assert bits[0] > entropy > bits[-1] + 0.5, "bits per character fall well below the unigram entropy"
    final = float(re.search(r"60 steps, .*: ([\d.]+) bits per held-out", shown)[1])
    assert final == pytest.approx(bits[-1], abs=0.006)
    outputs, gradients = map(float, re.search(r"outputs (\S+) .*gradients (\S+) ", shown).groups())
    assert outputs == gradients == 0 if backend == "reference" else 0 <= outputs < 1e-4 and 0 < gradients < 1e-3
    ours, theirs, times = map(float, re.search(r"kernels (\S+) ms, reference (\S+) ms: (\S+) times", shown).groups())
    assert times == pytest.approx(theirs / ours, rel=0.1, abs=0.1)
    sample = re.findall(r"^  \| (.*)$", shown, re.M)
    assert 1 <= len(sample) <= demo.SAMPLE_LINES and len("".join(sample)) > 40
    assert set("".join(sample)) <= set(corpus.read_text())
    assert all(len(line) <= 100 for line in shown.splitlines()) and len(shown.splitlines()) <= 30


def test_the_entropy_is_that_of_the_same_characters(corpus):
    text = demo.read_text(str(corpus))
    trainer = demo.Trainer(demo.Network("rnn", text.vocabulary, 4), text, math.inf, 1)
    characters = [text.vocabulary[k] for k in trainer.held_out[1:].ravel()]
    assert len(characters) > 0.8 * 0.1 * corpus.stat().st_size
    shares = [characters.count(c) / len(characters) for c in set(characters)]
    assert trainer.entropy == pytest.approx(-sum(p * math.log2(p) for p in shares), rel=1e-12)


@pytest.mark.parametrize("text, bits", [("aabb", 1.0), ("aaab", 0.8112781244591328), ("aaaa", 0.0), ("abcd" * 4, 2.0)])
def test_unigram_entropy_literal_values(text, bits):
    assert demo.unigram_entropy(np.frombuffer(text.encode(), np.uint8)) == pytest.approx(bits, abs=1e-15)


def test_the_held_out_part_is_never_trained_on(corpus):
    text = demo.read_text(str(corpus))
    characters = corpus.read_text()
    train, held_out = ("".join(text.vocabulary[k] for k in codes) for codes in (text.train, text.held_out))
    assert train + held_out == characters
    assert len(text.held_out) == len(characters) // 10
    trainer = demo.Trainer(demo.Network("rnn", text.vocabulary, 4), text, math.inf, 1)
    assert np.array_equal(trainer.streams.T.ravel(), text.train[: trainer.streams.size])


def test_bits_are_those_of_one_long_call(corpus):
    """Beyond one piece, so a state that is not carried shows."""
    text = demo.read_text(str(corpus))
    network = demo.Network("lstm", text.vocabulary, 8, seed=1)
    with network.layer.edit() as p:
        p["weight_hh_l0"] *= 5
    codes = demo.side_by_side(text.held_out, 3, 2 * demo.STEPS + 7)
    p = network.layer.params
    weights = [tuple(p[f"{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))]
    y, _, _ = lstm_forward(np.eye(len(text.vocabulary), dtype=np.float32)[codes[:-1]], None, weights, training=False)
    logits = (y @ network.head.params["weight"].T + network.head.params["bias"]).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.mean([logs[t, b, codes[t + 1, b]] for t in range(len(logs)) for b in range(3)]) / math.log(2)
    assert network.bits(codes) == pytest.approx(expected, rel=1e-6)


def test_the_state_is_carried_until_the_text_begins_again(corpus, monkeypatch):
    monkeypatch.setattr(demo, "LEARNING_RATE", 0.0)
    text = demo.read_text(str(corpus))
    network = demo.Network("gru", text.vocabulary, 8, seed=1)
    trainer = demo.Trainer(network, text, math.inf, 100)
    pieces = (len(trainer.streams) - 1) // demo.STEPS
    assert pieces >= 3
    for n in range(1, pieces + 1):
        codes, targets, _ = trainer.batch()
        assert np.array_equal(codes[1:], targets[:-1])
        trainer.step()
        _, expected = network.layer(network.one_hot(trainer.streams[: n * demo.STEPS]))
        np.testing.assert_allclose(trainer.state, expected, atol=1e-5)
    assert trainer.batch()[2] is None
    assert np.array_equal(trainer.batch()[0], trainer.streams[: demo.STEPS])


def test_the_difference_printed_is_a_real_one(corpus, capsys, monkeypatch):
    """A planted bug in one gradient of the kernels' side is named and has its size."""

    class Broken(demo.LSTM):
        def backward(self, *arguments):
            dx, dstate, grads = super().backward(*arguments)
            if self.backend != "reference" or not hasattr(self, "trained"):
                grads["weight_hh_l0"][:] *= 1.25
            return dx, dstate, grads

        def load_params(self, mapping):
            super().load_params(mapping)
            self.trained = True

    monkeypatch.setitem(demo.CELLS, "lstm", Broken)
    assert main(quick(corpus, "--backend", "reference")) == 0
    assert "gradients 2.5e-01 (weight_hh_l0)" in capsys.readouterr().out


def test_the_furthest_array_is_named_and_nan_is_furthest():
    truth = {"a": np.array([1.0, -4.0]), "b": np.array([100.0]), "c": np.zeros(2)}
    assert demo._furthest({**truth, "a": np.array([1.0, -3.0])}, truth) == (0.25, "a")
    assert demo._furthest({**truth, "c": np.array([0.0, 0.5])}, truth) == (0.5, "c")
    found, name = demo._furthest({**truth, "a": np.array([9.0, 9.0]), "b": np.array([np.nan])}, truth)
    assert math.isnan(found) and name == "b"


def test_the_sample_comes_from_step_and_ends_its_line(corpus):
    """A network that always continues `a` by `b` and `b` by `a` writes just that, and wraps at the width."""
    network = demo.Network("rnn", demo.UNKNOWN + "\nab", 4)
    a, b = 2, 3
    with network.layer.edit() as p, network.head.edit() as q:
        for w in [*p.values(), *q.values()]:
            w[:] = 0
        p["weight_ih_l0"][0, a] = p["weight_ih_l0"][1, b] = p["weight_ih_l0"][0, 1] = 5
        q["weight"][b, 0] = q["weight"][a, 1] = 60
        q["weight"][0] = 100  # UNKNOWN is never written
    shown = Stream()
    demo.write(network, np.random.default_rng(0), demo.Screen(shown))
    lines = shown.text.splitlines()
    assert len(lines) == demo.SAMPLE_LINES or len("".join(lines)) >= demo.SAMPLE_CHARACTERS
    assert "".join(line[4:] for line in lines).startswith("bababababa") and max(map(len, lines)) <= 80
    assert shown.text.endswith("\n") and set("".join(line[4:] for line in lines)) == {"a", "b"}


# -------------------------------------------------------------------------------------------------- seeds and saving


def saved(path, *arguments):
    assert main([*arguments, "--save", str(path)]) == 0
    with np.load(path, allow_pickle=False) as f:
        return dict(f)


def test_same_seed_and_steps_same_network(corpus, tmp_path):
    first, again = (saved(tmp_path / f"{k}.npz", *small(corpus, "--seed", 3)) for k in "ab")
    other = saved(tmp_path / "c.npz", *small(corpus, "--seed", 4))
    assert first.keys() == again.keys() == other.keys()
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first["layer.weight_hh_l0"], other["layer.weight_hh_l0"])


def test_saved_network_loads_as_the_help_says(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = saved(tmp_path / "net.npz", *small(corpus))
    assert f"saved to {tmp_path / 'net.npz'}" in capsys.readouterr().out
    assert str(data["cell"]) == "lstm"
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    recipe = textwrap.dedent(printed[printed.index("    import numpy") : printed.index("Input and output number")])
    names = {}
    exec(recipe, names)
    text = demo.read_text(str(corpus))
    assert "".join(data["vocabulary"]) == text.vocabulary
    layer, head = names["layer"], names["head"]
    assert all(np.array_equal(w, data[f"layer.{k}"]) for k, w in layer.params.items())
    streams = demo.side_by_side(text.held_out, 7, 60)
    y, _ = layer(np.eye(len(text.vocabulary), dtype=np.float32)[streams[:-1]])
    loss, _ = demo.softmax_cross_entropy(head(y), streams[1:])
    assert loss / math.log(2) < demo.unigram_entropy(streams) - 0.5


def test_saving_is_atomic(corpus, tmp_path, capsys, monkeypatch):
    target = tmp_path / "net.npz"
    target.write_bytes(b"precious")

    def half(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    code, error = code_and_error(capsys, quick(corpus, "--save", target))
    assert code == 2 and "No space left" in error
    assert target.read_bytes() == b"precious" and sorted(os.listdir(tmp_path)) == ["corpus.txt", "net.npz"]


@posix
def test_saving_replaces_the_file_as_a_whole(corpus, tmp_path):
    """Who has the old file open goes on reading the old one: it is never written into."""
    target = tmp_path / "net.npz"
    target.write_bytes(b"precious")
    with open(target, "rb") as old:
        assert "cell" in saved(target, *quick(corpus))
        assert old.read() == b"precious"


@pytest.mark.parametrize(
    "target, words",
    [
        ("missing/net.npz", "No such file or directory"),
        ("corpus.txt/net.npz", "cannot write"),
        (".", "is not a file"),
        (os.devnull, "is not a file"),
        ("corpus.txt", "is the text to learn from"),
        pytest.param("locked/net.npz", "Permission denied", marks=needs_ordinary_user),
        pytest.param("locked.npz", "Permission denied", marks=needs_ordinary_user),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(target, words, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.Trainer, "run", lambda *_: pytest.fail("trained first"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    (tmp_path / "locked.npz").touch(mode=0o400)
    before = sorted(os.listdir(tmp_path))
    code, error = code_and_error(capsys, quick(corpus, "--save", target))
    assert code == 2 and "--save" in error and words in error
    assert sorted(os.listdir(tmp_path)) == before


# ------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"too short\n" * 100, "too little text, 5,000 characters or more are needed"),
        (b"text " * 2000 + b"\0", "is not a text: it contains a zero byte"),
        ("caf\xe9 ".encode("latin-1") * 2000, r"is not UTF-8 text \(byte 0xe9 at 3\)"),
        ("directory", "Is a directory|Permission denied"),
        pytest.param("locked", "Permission denied", marks=needs_ordinary_user),
    ],
)
def test_files_that_are_no_text(content, words, tmp_path, capsys):
    path = tmp_path / "given"
    if content == "directory":
        path.mkdir()
    elif content == "locked":
        path.touch(mode=0)
    elif content is not None:
        path.write_bytes(content)
    code, error = code_and_error(capsys, quick(path))
    assert code == 2 and re.search(words, error) and "given" in error


def test_vocabulary(tmp_path):
    """Line ends, a byte order mark, several scripts; rare characters and U+FFFD itself are number 0."""
    path = tmp_path / "text"
    body = f"naïve Привет 日本\t{demo.UNKNOWN}\r\n"
    path.write_bytes(("\ufeff" + body * 2000 + "Ω").encode())
    text = demo.read_text(str(path))
    assert text.vocabulary == demo.UNKNOWN + "".join(sorted(set(body) - {"\r", demo.UNKNOWN}))
    assert text.vocabulary[1:3] == "\t\n" and "\ufeff" not in text.vocabulary
    line = body.replace("\r", "")
    assert "".join(text.vocabulary[k] for k in text.train[: len(line)]) == line
    assert text.held_out[-1] == 0 and text.held_out[-2] != 0


def test_vocabulary_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST_SYMBOLS", 4)
    path = tmp_path / "text"
    path.write_text("aaaabbbccd" * 1000)
    text = demo.read_text(str(path))
    assert text.vocabulary == demo.UNKNOWN + "abc" and (text.train == 0).mean() == 0.1


@pytest.mark.parametrize("most", range(10_000, 10_004))
def test_a_long_file_is_cut_between_characters(most, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST_BYTES", most)
    path = tmp_path / "text"
    path.write_text("ab日c" * 9000, encoding="utf-8")
    text = demo.read_text(str(path))
    count = len(text.train) + len(text.held_out)
    assert most - 3 <= len(("ab日c" * 9000)[:count].encode()) <= most
    assert text.description == f"'text', the first {count:,} characters"


def test_standard_library_with_broken_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda name: str(tmp_path))
    code, error = code_and_error(capsys, ["demo"])
    assert code == 2 and "name a FILE" in error and str(tmp_path) in error
    (tmp_path / "good.py").write_text("import this\n" * 1000)
    (tmp_path / "latin.py").write_bytes(b"\xff" * 9000)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to("nowhere")
    for name in demo.SKIPPED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "other.py").write_text("Z" * 9000)
    text = demo.read_text()
    assert text.description.startswith("1 files of ") and "12,000 characters" in text.description
    assert "Z" not in text.vocabulary


def test_the_real_standard_library():
    text = demo.read_text()
    assert len(text.train) > 1_000_000 and 90 < len(text.vocabulary) < 200
    assert 4 < demo.unigram_entropy(text.held_out) < 5.5


# --------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--cell", "transformer"], "--cell: invalid choice"),
        (["--hidden", "0"], "--hidden: expected 1 to 4096, got 0"),
        (["--hidden", "4097"], "--hidden: expected 1 to 4096"),
        (["--hidden", "many"], "--hidden: expected a whole number, got 'many'"),
        (["--seconds", "0"], "--seconds: expected more than 0"),
        (["--seconds", "-3"], "--seconds: expected more than 0"),
        (["--seconds", "nan"], "--seconds: expected more than 0"),
        (["--seconds", "inf"], "--seconds: expected more than 0"),
        (["--seconds", "soon"], "--seconds: expected a number of seconds, got 'soon'"),
        (["--steps", "0"], "--steps: expected 1 or more"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
        (["--seed", "1.5"], "--seed: expected a whole number"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_arguments(arguments, words, corpus, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", str(corpus), *arguments])
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and words in captured.err and captured.out == ""


def test_help_and_version(capsys):
    from elman import __version__

    for arguments, words in [
        (["--version"], f"elman {__version__}\n"),
        (["--help"], "demo"),
        (["demo", "-h"], "--cell"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0 and words in capsys.readouterr().out
    assert main([]) == 0
    assert "usage: elman" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["dance"])
    assert exit_.value.code == 2


def test_seconds_bound_the_training(corpus, capsys):
    start = time.perf_counter()
    assert main(["demo", str(corpus), "--hidden", "4", "--seconds", "0.3"]) == 0
    assert 0.3 < time.perf_counter() - start < 20
    looks = [float(look) for look in re.findall(r"^ +([\d.]+) s +[\d.]+  #", capsys.readouterr().out, re.M)]
    assert len(looks) >= 2 and looks[0] == 0 and 0.3 <= looks[-1] < 10


def test_out_of_memory_is_an_error_and_no_traceback(corpus, capsys, monkeypatch):
    def hungry(*arguments):
        raise MemoryError

    monkeypatch.setattr(demo, "Network", hungry)
    code, error = code_and_error(capsys, quick(corpus))
    assert code == 2 and "not enough memory for --hidden 4" in error


def test_import_elman_does_not_import_the_demo():
    code = "import sys, elman; sys.exit(len({'elman.demo', 'argparse'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -------------------------------------------------------------------------------------------------------- the screen


class Stream:
    """What sys.stdout looks like to Screen."""

    def __init__(self, terminal=False, encoding="utf-8"):
        self.text, self.encoding, self._terminal = "", encoding, terminal

    def isatty(self):
        return self._terminal

    def write(self, text):
        text.encode(self.encoding)
        self.text += text

    def flush(self):
        pass


def visible(text):
    """The lines that a terminal shows after this text, of which a carriage return overwrites."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_bar_is_drawn_over_itself_and_removed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Stream(terminal=True)
    screen = demo.Screen(stream)
    screen.print("first")
    for fraction, status in [(0.25, "a long status"), (0.5, "short")]:
        screen._next = 0
        screen.bar(fraction, status)
    assert visible(stream.text) == ["first", f"  [{'#' * 15}{'-' * 15}]  50%  short"]
    screen.bar(0.9, "too soon after the last one to be drawn")
    assert "too soon" not in stream.text
    screen.print("second")
    assert visible(stream.text) == ["first", "second", ""]


@pytest.mark.parametrize("draw", ["bar", "text"])
def test_an_interrupt_within_a_write_leaves_nothing_behind(draw, monkeypatch):
    class Interrupted(Stream):
        def flush(self):
            self.flush = lambda: None
            raise KeyboardInterrupt

    stream = Interrupted(terminal=True)
    screen = demo.Screen(stream)
    with pytest.raises(KeyboardInterrupt):
        screen.bar(0.5, "status") if draw == "bar" else screen.write("status")
    screen.print("interrupted")
    assert visible(stream.text) == (["interrupted", ""] if draw == "bar" else ["status", "interrupted", ""])


@pytest.mark.parametrize("columns", [1, 5, 10, 20, 40, 80, 200])
def test_bar_fits_any_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Stream(terminal=True)
    demo.Screen(stream).bar(0.5, "12 of 30 s, 2.22 bits in training, 123,456 characters/s")
    assert len(stream.text.lstrip("\r")) < columns


def test_no_bar_where_there_is_no_terminal():
    stream = Stream()
    screen = demo.Screen(stream)
    screen.bar(0.5, "status")
    screen.print("line")
    assert stream.text == "line\n"


def test_what_the_stream_cannot_encode_is_replaced():
    stream = Stream(encoding="ascii")
    demo.Screen(stream).print("naïve \N{SNOWMAN}")
    assert stream.text == "na?ve ?\n"


# -------------------------------------------------------------------------------------------------------- interrupts

PROGRAM = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed on this terminal is for this process
from elman.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A process on a pseudo-terminal of its own."""

    def __init__(self, *arguments):
        import pty
        import termios

        self._attributes = termios.tcgetattr
        self.master, self._slave = pty.openpty()
        self.before = self._attributes(self._slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "90", "TERM": "xterm"},
        )
        self.text = ""

    def read_until(self, pattern, seconds=60):
        """Reads what the process writes until the pattern has come, or with None until the process has ended."""
        import select

        end = time.monotonic() + seconds
        while pattern is None or not re.search(pattern, self.text):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            ended = self.process.poll() is not None
            if select.select([self.master], [], [], 0.0 if ended else 0.1)[0]:
                self.text += os.read(self.master, 65536).decode()
            elif ended:
                assert pattern is None, f"ended before {pattern!r}: {self.text!r}"
                return

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def is_clean(self):
        """Nothing but text on the screen, the cursor at the start of a line, the terminal's modes as they were."""
        assert "\x1b" not in self.text and "Traceback" not in self.text, self.text
        shown = visible(self.text)
        assert shown[-1] == "" and not any("characters/s" in line for line in shown), shown
        assert self._attributes(self._slave) == self.before
        return "\n".join(shown)


@pytest.fixture
def terminal(request):
    opened = []

    def start(*arguments):
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@posix
@pytest.mark.parametrize("how, code", [("ctrl-c", 130), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_while_training(how, code, corpus, tmp_path, terminal):
    target = tmp_path / "net.npz"
    run = terminal("demo", str(corpus), "--hidden", "8", "--seconds", "600", "--save", str(target))
    run.read_until(r"\r  \[[#-]+\] +\d+%  \d+ of 600 s, [\d.]+ bits in training, [\d,]+ characters/s")
    if how == "ctrl-c":
        os.write(run.master, b"\x03")
    else:
        run.process.send_signal(how)
    run.read_until(None)
    assert run.process.returncode == code
    shown = run.is_clean()
    assert re.search(r"interrupted after [\d.]+ s, [\d,]+ steps, .*: [\d.]+ bits per held-out character\n", shown)
    assert shown.rstrip().endswith(f"saved to {target}") and "what it writes" not in shown
    with np.load(target, allow_pickle=False) as f:
        assert f["layer.weight_hh_l0"].shape == (32, 8)
    assert sorted(os.listdir(tmp_path)) == ["corpus.txt", "net.npz"]


@posix
def test_whole_run_on_a_terminal(corpus, terminal):
    run = terminal(*small(corpus))
    run.read_until(None)
    assert run.process.returncode == 0
    assert "\r  [" in run.text and "times faster" in run.is_clean()


@pytest.mark.parametrize("where", ["read_text", "write", "compare"])
def test_interrupt_elsewhere(where, corpus, capsys, monkeypatch):
    def interrupted(*arguments):
        if where != "read_text":
            arguments[-1].write("half a li")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, where, interrupted)
    assert main(quick(corpus)) == 130
    captured = capsys.readouterr()
    assert captured.err == "" and (where == "read_text" or captured.out.endswith("half a li\n"))


@posix
def test_main_leaves_the_signal_handlers_alone(corpus):
    def ours(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, ours), signal.getsignal(signal.SIGINT)
    try:
        assert main(quick(corpus)) == 0
        assert signal.getsignal(signal.SIGTERM) is ours and signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


@posix
def test_a_reader_that_leaves(corpus):
    """`elman demo | head -1` ends soon and says nothing."""
    command = [sys.executable, "-m", "elman", "demo", str(corpus), "--hidden", "4", "--seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"elman ")
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(60) == 1
    assert error == b""


def test_python_m_elman(corpus):
    result = subprocess.run(
        [sys.executable, "-m", "elman", *quick(corpus)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "times faster" in result.stdout and result.stderr == ""
    assert Path(str(corpus)).name in result.stdout
