"""Every cell and option: equation, source, speed and the error of its gradients. `python bench/cells.py` prints the
table, and what is above its limit; `--write docs/cells.md` puts it into the documentation too. It takes a minute.

Speed: float32, one thread and its own time; the contestants take turns, and of each the shortest time counts, since
what else the machine does only adds to it. What a cell asks for is what the plain LSTM, GRU or RNN takes, by the ratio
of what is counted: the multiplications of the products, and the sigmoids and tanhs as ACTIVATION of them each.
Whoever wants further arrays asks for a copy of them too, which is timed beside it.
tests/test_cells_table.py computes the errors as well, and with -m slow the speeds.
"""

import argparse
import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import elman

T, B = 100, 32
LARGE, SMALL = 128, 32  # of I and H
ACTIVATION = 50  # multiplications that take as long as a function of a unit (as in csrc/rows.inc)
ROUNDS = 20


class Entry(NamedTuple):
    name: str  # as the user writes it
    make: Callable[..., Any]  # (I, H, **dtype and seed) -> layer
    equation: str
    source: str
    like: str  # the plain cell that it is measured against
    products: float  # multiplications of a unit and step, as multiples of H (I counts as H)
    activations: float  # functions like sigmoid or tanh of a unit and step
    limit: float = 1.5  # how many times what its arithmetic asks for it may take
    is_gradient: bool = True  # whether what comes back is the gradient
    trains: bool = True  # whether there is a backward
    asked: Mapping[str, Any] = {}  # keywords of a call and of forward
    trained: Callable[[int], Mapping[str, Any]] = lambda T: {}  # of forward alone
    sees_c: bool = False  # whether the loss does

    def work(self, H):
        """Of a unit and step."""
        return self.products * H + self.activations * ACTIVATION


def of(name, **options):
    return partial(getattr(elman, name), **options)


def half(name, size, **options):
    """With a size of H // 2."""
    return lambda I, H, **given: getattr(elman, name)(I, H, **{size: H // 2}, **options, **given)


def activation(name, equation, source, *numbers):
    """An RNN with this one."""
    entry = f'("{name}", {", ".join(map(str, numbers))})' if numbers else f'"{name}"'
    chosen = (name, *numbers) if numbers else name
    return Entry(f"RNN(nonlinearity={entry})", of("RNN", nonlinearity=chosen), f"h' = {equation}", source, *RNN)


LSTM, GRU, RNN = ("LSTM(I, H)", 8, 5), ("GRU(I, H)", 6, 3), ("RNN(I, H)", 2, 1)  # like, products, activations
ENTRIES = [
    Entry(
        "LSTM(I, H)",
        of("LSTM"),
        "c' = f c + i g, h' = o tanh(c')",
        "Hochreiter and Schmidhuber 1997, Gers et al. 2000",
        *LSTM,
    ),
    Entry(
        "LSTM(peephole=True)",
        of("LSTM", peephole=True),
        "a_i + p_i c, a_f + p_f c, a_o + p_o c'",
        "Gers and Schmidhuber 2000",
        *LSTM,
    ),
    Entry('LSTM(coupled="f=1-i")', of("LSTM", coupled="f=1-i"), "f = 1 - i", "ONNX input_forget", *LSTM),
    Entry('LSTM(coupled="i=1-f")', of("LSTM", coupled="i=1-f"), "i = 1 - f", "Greff et al. 2017, TFLite CIFG", *LSTM),
    Entry("LSTM(clip=3)", of("LSTM", clip=3.0), "gates of clip(a)", "ONNX", *LSTM),
    Entry("LSTM(cell_clip=3)", of("LSTM", cell_clip=3.0), "c' = clip(f c + i g)", "TFLite", *LSTM),
    Entry(
        "LSTM(proj_size=H // 2)",
        half("LSTM", "proj_size"),
        "h' = W_hr (o tanh(c'))",
        "Sak et al. 2014",
        "LSTM(I, H)",
        4 + 2 + 0.5,
        5,
    ),
    Entry(
        "LSTM(proj_size=H // 2, proj_clip=1)",
        half("LSTM", "proj_size", proj_clip=1.0),
        "h' = clip(W_hr (o tanh(c')))",
        "TFLite",
        "LSTM(I, H)",
        4 + 2 + 0.5,
        5,
    ),
    Entry(
        "LSTM(activations=...)",
        of("LSTM", activations=("hardsigmoid", "softsign", "relu")),
        "any of ONNX's eleven, with alpha and beta",
        "ONNX",
        *LSTM,
    ),
    Entry(
        "LSTM(grad_clip=1)",
        of("LSTM", grad_clip=1.0),
        "dh, dc limited after each step",
        "Graves 2013",
        *LSTM,
        is_gradient=False,
    ),
    Entry(
        "LSTM(zoneout=(0.1, 0.1))",
        of("LSTM", zoneout=(0.1, 0.1)),
        "a unit keeps its old h or c",
        "Krueger et al. 2017",
        *LSTM,
    ),
    Entry(
        "LSTM(input_dropout=0.1)",
        of("LSTM", input_dropout=0.1),
        "x times a mask, the same at all steps",
        "Gal and Ghahramani 2016",
        *LSTM,
    ),
    Entry(
        "LSTM(recurrent_dropout=0.1)",
        of("LSTM", recurrent_dropout=0.1),
        "h times a mask, in W_hh h",
        "Gal and Ghahramani 2016",
        *LSTM,
    ),
    Entry(
        "LSTM(weight_dropout=0.1)",
        of("LSTM", weight_dropout=0.1),
        "W_hh times a mask",
        "Wan et al. 2013, Merity et al. 2018",
        *LSTM,
    ),
    Entry(
        "LSTM(train_state=True)",
        of("LSTM", train_state=True),
        "h0, c0 are weights",
        "Forcada and Carrasco 1995",
        *LSTM,
    ),
    Entry(
        "forward(tbptt=T // 4) of an LSTM",
        of("LSTM"),
        "dh_t = dc_t = 0 where a piece of so many steps ends; y as ever",
        "Williams and Peng 1990",
        *LSTM,
        is_gradient=False,
        trained=lambda T: {"tbptt": T // 4},
    ),
    Entry(
        "forward(burn_in=T // 4) of an LSTM",
        of("LSTM"),
        "dh_t = dc_t = 0 where these steps end, dx_t = 0 before; y as ever",
        "Kapturowski et al. 2019",
        *LSTM,
        is_gradient=False,
        trained=lambda T: {"burn_in": T // 4},
    ),
    Entry(
        'return_all=("c", "gates") of an LSTM',
        of("LSTM"),
        "c_t and i, f, g, o of every step besides y",
        "elman",
        *LSTM,
        asked={"return_all": ("c", "gates")},
    ),
    Entry(
        "backward(dc=...) of an LSTM",
        of("LSTM"),
        "dL/dc_t += dc_t: the loss sees c_t",
        "elman",
        *LSTM,
        sees_c=True,
    ),
    Entry(
        "LSTM(num_layers=2, dropout=0.1)",
        of("LSTM", num_layers=2, dropout=0.1),
        "what goes up a layer times a mask, drawn anew for each step",
        "Srivastava et al. 2014, Zaremba et al. 2014",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        "LSTM(bidirectional=True)",
        of("LSTM", bidirectional=True),
        "y = h forward and h backward, side by side",
        "Schuster and Paliwal 1997",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        "LSTM(bidirectional=True, merge=None)",
        of("LSTM", bidirectional=True, merge=None),
        "y = (h forward, h backward), two arrays",
        "Keras",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        'LSTM(bidirectional=True, merge="sum")',
        of("LSTM", bidirectional=True, merge="sum"),
        "y = h forward + h backward",
        "Schuster and Paliwal 1997, Keras",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        'LSTM(bidirectional=True, merge="mul")',
        of("LSTM", bidirectional=True, merge="mul"),
        "y = h forward * h backward",
        "Keras",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        'LSTM(bidirectional=True, merge="mean")',
        of("LSTM", bidirectional=True, merge="mean"),
        "y = (h forward + h backward) / 2",
        "Keras ave",
        "LSTM(I, H)",
        16,
        10,
    ),
    Entry(
        "GRU(I, H)",
        of("GRU"),
        "n = tanh(a_n + r (W_hn h + b_hn)), h' = (1 - z) n + z h",
        "Cho et al. 2014, cuDNN",
        *GRU,
    ),
    Entry(
        "GRU(reset_after=False)",
        of("GRU", reset_after=False),
        "n = tanh(a_n + W_hn (r h) + b_hn)",
        "Cho et al. 2014, ONNX",
        *GRU,
    ),
    Entry(
        "GRU(activations=...)", of("GRU", activations=("hardsigmoid", "softplus")), "any of ONNX's eleven", "ONNX", *GRU
    ),
    Entry("RNN(I, H)", of("RNN"), "h' = tanh(W_ih x + W_hh h + b)", "Elman 1990", *RNN),
    activation("tanh", "(e^a - e^-a) / (e^a + e^-a)", "Elman 1990"),
    activation("sigmoid", "1 / (1 + e^-a)", "ONNX"),
    activation("relu", "max(0, a)", "Le et al. 2015"),
    activation("affine", "alpha a + beta", "ONNX", 0.5, 0.1),
    activation("leakyrelu", "a if a >= 0, else alpha a", "ONNX", 0.1),
    activation("thresholdedrelu", "a if a > alpha, else 0", "ONNX", 0.5),
    activation("scaledtanh", "alpha tanh(beta a)", "ONNX, LeCun et al. 1998", 1.7159, 0.6667),
    activation("hardsigmoid", "max(0, min(1, alpha a + beta))", "ONNX", 0.2, 0.5),
    activation("elu", "a if a >= 0, else alpha (e^a - 1)", "ONNX, Clevert et al. 2016", 0.5),
    activation("softsign", "a / (1 + abs(a))", "ONNX"),
    activation("softplus", "log(1 + e^a)", "ONNX"),
    Entry("RNN(leak=0.5)", of("RNN", leak=0.5), "h' = (1 - leak) h + leak tanh(a)", "Jaeger et al. 2007", *RNN),
    Entry(
        "Jordan(I, H, H // 2)",
        half("Jordan", "output_size"),
        "h' = tanh(W_ih x + W_hh y + b), y' = g(W_hr h' + b_hr)",
        "Jordan 1986",
        "RNN(I, H)",
        2,
        1.5,
    ),
    Entry("IndRNN(I, H)", of("IndRNN"), "h' = tanh(W_ih x + b + u h)", "Li et al. 2018", "RNN(I, H)", 1, 1),
    Entry(
        "SRU(I, H)",
        of("SRU"),
        "c' = f c + (1 - f) u, h' = r c' + (1 - r) s; gates see c",
        "Lei et al. 2018",
        "LSTM(I, H)",
        4,
        3,
    ),
    Entry("AUGRU(I, H)", of("AUGRU"), "z~ = (1 - a_t) z in a GRU", "Zhou et al. 2019, oneDNN", *GRU),
    Entry("AUGRU(reset_after=False)", of("AUGRU", reset_after=False), "the same, reset before", "OpenVINO", *GRU),
    Entry(
        "MGU(I, H)",
        of("MGU"),
        "n = tanh(a_n + f (W_hn h + b_hn)), h' = (1 - f) n + f h",
        "Zhou et al. 2016, flax",
        "GRU(I, H)",
        4,
        2,
    ),
    Entry("MGU(reset_gate=False)", of("MGU", reset_gate=False), "n = tanh(a_n + W_hn h)", "flax", "GRU(I, H)", 4, 2),
    Entry(
        "MinGRU(I, H)", of("MinGRU"), "h' = (1 - z) h + z g(a); z, a of x alone", "Feng et al. 2024", "RNN(I, H)", 2, 2
    ),
    Entry(
        "MinLSTM(I, H)",
        of("MinLSTM"),
        "h' = (f h + i g(a)) / (f + i); f, i, a of x alone",
        "Feng et al. 2024",
        "RNN(I, H)",
        3,
        5,
    ),
    Entry(
        "QRNN(I, H)",
        of("QRNN"),
        "c' = f z + (1 - f) c, h' = o c'; z, f, o of x alone",
        "Bradbury et al. 2017",
        "RNN(I, H)",
        3,
        3,
    ),
    Entry(
        "QRNN(zoneout=(0, 0.1))",
        of("QRNN", zoneout=(0.0, 0.1)),
        "f is 0 for some units",
        "Bradbury et al. 2017",
        "RNN(I, H)",
        3,
        3,
    ),
    Entry(
        "CfC(I, H)",
        of("CfC"),
        "h' = (1 - t) tanh(p) + t tanh(q), t = sigmoid(a dt + b)",
        "Hasani et al. 2022",
        "LSTM(I, H)",
        8,
        3,
    ),
    Entry(
        'CfC(mode="no_gate")',
        of("CfC", mode="no_gate"),
        "h' = tanh(p) + t tanh(q)",
        "Hasani et al. 2022",
        "LSTM(I, H)",
        8,
        3,
    ),
    Entry(
        'CfC(mode="pure")',
        of("CfC", mode="pure"),
        "h' = A - A exp(-dt (abs(tau) + abs(p))) p",
        "Hasani et al. 2022",
        *RNN,
    ),
    Entry(
        "SLSTM(I, H)",
        of("SLSTM"),
        "c' = f c + i z, n' = f n + i, h' = o c' / n'; i, f exponential",
        "Beck et al. 2024",
        "LSTM(I, H)",
        8,
        5,
        2.5,
    ),
    Entry(
        'LSTM(layer_norm="gate")',
        of("LSTM", layer_norm="gate"),
        "gamma_k N(W_ik x + W_hk h + p_k c) + b_k",
        "TFLite",
        *LSTM,
        2.5,
    ),
    Entry(
        'LSTM(layer_norm="joint")',
        of("LSTM", layer_norm="joint"),
        "gamma_x N(W_ih x) + gamma_h N(W_hh h) + b; N(c')",
        "haste",
        *LSTM,
        2.5,
    ),
    Entry(
        'LSTM(layer_norm="joint_shift")',
        of("LSTM", layer_norm="joint_shift"),
        "the same with shifts",
        "DyNet",
        *LSTM,
        2.5,
    ),
    Entry(
        'GRU(layer_norm="joint")',
        of("GRU", layer_norm="joint"),
        "gamma_x N(W_ih x) + b, gamma_h N(W_hh h) + b_h",
        "haste",
        *GRU,
        2.5,
    ),
    Entry(
        "ESN(I, H)",
        of("ESN"),
        "h' = (1 - leak) h + leak tanh(W_ih x + W_hh h), not trained",
        "Jaeger 2001",
        *RNN,
        trains=False,
    ),
]


def beside(layer, T, B, dtype, rng):
    """The number that comes with each step, for a cell that takes one."""
    name = layer._form.row
    return {name: rng.uniform(0.1, 0.9, (T, B)).astype(dtype)} if name else {}


def parts(value):
    """Of a state, or of an output in two arrays."""
    return [value] if isinstance(value, np.ndarray) else list(value)


def gradient_error(entry):
    """The largest difference between the gradients of the compiled cell and central differences, relative to the
    largest entry of the array: float64, ragged, with noise as drawn from one seed."""
    T, B, I, H = 5, 3, 3, 6
    rng = np.random.default_rng(1)
    layer = entry.make(I, H, dtype=np.float64, seed=3)
    given = beside(layer, T, B, np.float64, rng) | {"lengths": [5, 2, 4], "rng": 7}
    x = rng.standard_normal((T, B, I))
    given |= {"return_all": ("c",)} if entry.sees_c else entry.asked
    y, state, tape, *_ = layer.forward(x, **given, **entry.trained(T))
    dys, dstates = ([rng.standard_normal(a.shape) for a in parts(each)] for each in (y, state))
    dc = rng.standard_normal((T, B, H)) if entry.sees_c else None
    dx, _, grads, *drow = layer.backward(tape, *(d[0] if len(d) == 1 else tuple(d) for d in (dys, dstates)), dc=dc)

    def loss():
        y, state, _, *more = layer.forward(x, **given)
        sums = [(a * d).sum() for a, d in zip((*parts(y), *parts(state)), (*dys, *dstates), strict=True)]
        return sum(sums) + ((more[0] * dc).sum() if entry.sees_c else 0)

    def difference(a, at, put):
        old, values = a[at], []
        for move in (1e-5, -1e-5):
            put(old + move)
            values.append(loss())
        put(old)
        return (values[0] - values[1]) / 2e-5

    worst = 0.0
    for a, gradient in ((x, dx), *((given[layer._form.row], d) for d in drow)):
        for at in rng.permutation(a.size)[:6]:
            where = np.unravel_index(at, a.shape)
            wanted = difference(a, where, partial(a.__setitem__, where))
            worst = max(worst, abs(wanted - gradient[where]) / np.abs(gradient).max())
    for name, gradient in grads.items():
        kept = layer.params[name]
        for at in rng.permutation(kept.size)[:6]:
            where = np.unravel_index(at, kept.shape)

            def put(value, name=name, where=where):
                with layer.edit() as p:
                    p[name][where] = value

            wanted = difference(kept, where, put)
            worst = max(worst, abs(wanted - gradient[where]) / max(np.abs(gradient).max(), 1e-3))
    return worst


def measured(entries, H, rounds=ROUNDS):
    """For each entry the time of a call, and of a training step: over that of the plain LSTM, over what it asks for.
    The plain cells must be among them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, B, H), dtype=np.float32)
    calls, steps, copies = [], [], []
    for entry in entries:
        layer = entry.make(H, H, seed=0)
        given = beside(layer, T, B, np.float32, rng) | entry.asked
        y, _, *further = layer(x, **given)
        copies.append(partial(copied, further))
        dys = [np.ones_like(a) for a in parts(y)]
        last = {"dc": np.ones((T, B, H), np.float32)} if entry.sees_c else {}
        calls.append(partial(layer, x, **given))
        dy = dys[0] if len(dys) == 1 else tuple(dys)
        steps.append(partial(train, layer, x, dy, given | entry.trained(T), last) if entry.trains else int)
    rows, asked = [], shortest(copies, rounds)
    for contestants in (calls, steps):
        times = shortest(contestants, rounds)
        plain = {entry.name: (entry.work(H), best) for entry, best in zip(entries, times, strict=True)}
        row = []
        for entry, best, copying in zip(entries, times, asked, strict=True):
            work, of_like = plain[entry.like]
            row.append((best / plain[LSTM[0]][1], best / (of_like * entry.work(H) / work + copying)))
        rows.append(row)
    return [(*call, *step) for call, step in zip(*rows, strict=True)]


def keep_memory():
    """glibc gives nothing back to the system from here on: what a contestant's output takes is not its neighbours' page
    faults. Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for what, size in ((-1, 1 << 30), (-3, 1 << 25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and the most that it takes
        if mallopt is not None:
            mallopt(what, size)


def shortest(contestants, rounds):
    """The time of each; they take turns."""
    keep_memory()
    times = [float("inf")] * len(contestants)
    for _ in range(rounds):
        for k, call in enumerate(contestants):
            call()  # so that memory and caches are its own, not the neighbour's
            start = time.thread_time()
            call()
            times[k] = min(times[k], time.thread_time() - start)
    return times


def copied(arrays):
    return [a.copy() for a in arrays]


def train(layer, x, dy, given, last):
    layer.backward(layer.forward(x, rng=0, **given)[2], dy, **last)


def table(entries, large, small, errors):
    """Markdown."""
    lines = [
        "| cell or option | equation | source | call | of what it asks | training | of what it asks "
        f"| H = {SMALL}: call | training | gradient error |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for entry, of_large, (_, call, _, training), error in zip(entries, large, small, errors, strict=True):
        numbers = [f"{number:.2f}" for number in (*of_large, call, training)] + [f"{error:.0e}"]
        if not entry.trains:
            numbers = [*numbers[:2], "-", "-", numbers[4], "-", "-"]
        if not entry.is_gradient:
            numbers[-1] = "-"
        lines.append(f"| `{entry.name}` | {' | '.join((entry.equation, entry.source, *numbers))} |")
    return "\n".join(lines)


HEAD = """# Cells and options

{date}, {machine}, one thread, float32, T = {T}, B = {B}, {LARGE} -> {LARGE}. *call* and *training* (forward and
backward) are times as multiples of the plain LSTM's. *of what it asks*: the time beside that of the nearest plain cell,
times the ratio of their multiplications ({ACTIVATION} for a sigmoid or the like), and that of a copy of further arrays
that are returned; up to 1.5 is the aim (2.5 for layer normalisation and sLSTM). The two columns of H = {SMALL} say the
same of {SMALL} -> {SMALL}.
*gradient error*: the largest difference from central differences, relative to the largest entry of the gradient
(compiled cell, float64, ragged batch); - where what comes back is another thing on purpose.
a is W_ih x + b_ih + W_hh h + b_hh, h' and c' are the new h and c.
Written by `python bench/cells.py --write docs/cells.md`; tests/test_cells_table.py computes the numbers anew.

"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE")
    file = parser.parse_args().write
    elman.set_num_threads(1)
    errors = [gradient_error(entry) if entry.is_gradient and entry.trains else 0 for entry in ENTRIES]
    large, small = measured(ENTRIES, LARGE), measured(ENTRIES, SMALL)
    text = table(ENTRIES, large, small, errors)
    print(text)
    if file:
        machine = f"{platform.machine()}, {elman.config()['isa']}"
        sizes = {"T": T, "B": B, "LARGE": LARGE, "SMALL": SMALL, "ACTIVATION": ACTIVATION}
        head = HEAD.format(date=date.today(), machine=machine, **sizes)
        with open(file, "w", encoding="utf-8") as out:
            out.write(f"{head}{text}\n")
    for H, speeds in ((LARGE, large), (SMALL, small)):
        for entry, (_, call, _, training) in zip(ENTRIES, speeds, strict=True):
            if max(call, training) > entry.limit:
                print(f"H = {H}: {entry.name} takes {call:.2f} and {training:.2f} of what it asks", file=sys.stderr)


if __name__ == "__main__":
    main()
