"""The floating-point mode: the kernels have their own, the caller's comes back untouched, and subnormal numbers,
which cost many CPUs as much as a hundred multiplications, slow nothing down.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import platform
import statistics
import sys
import threading
import time

import numpy as np
import pytest
from helpers import CELLS, assert_same, problem
from processes import output_of

import elman
from elman import functional as F
from elman import reference

DTYPES = ("float32", "float64")
FUNCTIONS = ("exp", "sigmoid", "tanh")
IS_GLIBC = platform.libc_ver()[0] == "glibc"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(params=DTYPES)
def dtype(request):
    return np.dtype(request.param)


def libm():
    """The C library's functions of the floating-point environment."""
    if not sys.platform.startswith("linux"):
        pytest.skip("calls the C library of Linux")
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    if not hasattr(library, "fegetround"):
        pytest.skip("this C library has no fegetround")
    return library


def control_word():
    """The register that holds rounding, traps and the treatment of subnormals, without its sticky flags."""
    if not (IS_X86 and IS_GLIBC):
        pytest.skip("knows where MXCSR is in glibc's fenv_t on x86-64 only")
    environment = (ctypes.c_uint32 * 16)()
    assert libm().fegetenv(environment) == 0
    return environment[7] & ~0x3F  # MXCSR follows the 28 bytes of the x87 unit; its low six bits are the flags


@pytest.fixture(autouse=True)
def _the_usual_mode():
    """Every test begins and ends with it, so that what one leaves behind does not hide what the next should see."""
    default = ctypes.c_void_p(-1)  # glibc's FE_DFL_ENV
    if IS_GLIBC:
        libm().fesetenv(default)
    yield
    if IS_GLIBC:
        libm().fesetenv(default)


def keeps_subnormals():
    """Whether arithmetic takes and gives subnormal numbers, in both dtypes."""
    return all(
        (np.array([info.tiny]) * info.dtype.type(0.5) > 0).all() and (np.array([info.tiny / 2]) * 2 == info.tiny).all()
        for info in (np.finfo(np.float32), np.finfo(np.float64))
    )


ROUNDINGS = {"up": 0x800, "down": 0x400, "towards zero": 0xC00} if IS_X86 else {}
ROUNDINGS = ROUNDINGS or {"up": 0x400000, "down": 0x800000, "towards zero": 0xC00000}  # fenv.h of aarch64


@contextlib.contextmanager
def rounding(direction):
    """The caller's rounding direction within the block; checked to be still there at its end."""
    library = libm()
    before = library.fegetround()
    assert library.fesetround(ROUNDINGS[direction]) == 0 and rounded(1, 2**-60) == ROUNDED[direction]
    try:
        yield
        after = library.fegetround(), rounded(1, 2**-60)
    finally:
        library.fesetround(before)
    assert after == (ROUNDINGS[direction], ROUNDED[direction]), "the rounding direction was changed"


def rounded(a, b):
    """The last places of a + b and of -a - b, which tell the direction."""
    a, b = np.array([a], np.float64), np.array([b], np.float64)
    return bool((a + b > 1)[0]), bool((-a - b < -1)[0])


ROUNDED = {"up": (True, False), "down": (False, True), "towards zero": (False, False)}


def everything(cell, dtype, T=6, B=9, threads=1):
    """Functions that call each kind of kernel once and return bytes."""
    p = problem(CELLS[cell], T, B, 5, 37, D=2, dtype=dtype)
    one = problem(CELLS[cell], T, B, 5, 37, D=1, dtype=dtype)
    numbers = np.linspace(-12, 12, 99).astype(dtype)

    def forward_and_backward():
        with elman.threads(threads):
            return b"".join(a.tobytes() for a in p.results(F).values())

    def step():
        state = [a.copy() for a in one.state]
        y = CELLS[cell].run(F, "step", one.x[0], CELLS[cell].state(state), [one.weights])
        return b"".join(a.tobytes() for a in (y, *state))

    def elementwise():
        return b"".join(getattr(F, name)(numbers).tobytes() for name in FUNCTIONS)

    return [forward_and_backward, step, elementwise]


def large(dtype=np.float32):
    """Work that is worth a second thread."""
    return everything("lstm", dtype, T=100, B=40, threads=2)[0]


# ---------------------------------------------------------------------------------------------- untouched


@pytest.mark.parametrize("cell", CELLS)
def test_the_mode_is_untouched(cell, dtype, isa):
    before = control_word()
    for call in everything(cell, dtype):
        call()
        assert control_word() == before


def test_subnormals_are_still_there_afterwards(dtype, isa):
    assert keeps_subnormals()
    for call in everything("gru-before", dtype):
        call()
        assert keeps_subnormals()


def test_the_mode_is_untouched_in_every_python_thread():
    seen = []

    def run():
        call = large()
        before = keeps_subnormals()
        call()
        seen.append((before, keeps_subnormals()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [(True, True)] * 3


def test_a_changed_mode_is_noticed():
    before = control_word()
    with rounding("up"):
        assert control_word() != before
    assert control_word() == before
    with pytest.raises(AssertionError, match="rounding"), rounding("up"):
        libm().fesetround(ROUNDINGS["down"])


# ---------------------------------------------------------------------------------------------- without effect


@pytest.mark.parametrize("direction", ROUNDINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_callers_rounding_has_no_effect_and_stays(cell, direction, dtype, isa):
    for call in everything(cell, dtype):
        expected = call()
        with rounding(direction):
            got = call()
        assert got == expected


@pytest.mark.parametrize("direction", ROUNDINGS)
def test_the_callers_rounding_has_no_effect_on_workers(direction):
    """A worker starts with the mode of the thread that starts it: the first call is made in a fresh process."""
    libm()
    code = f"""
        from test_fpmode import large, rounding
        call = large()
        with rounding({direction!r}):
            got = call()
        assert call() == got
    """
    output_of(code)


def test_traps_that_the_caller_wants_stay_and_kill_nothing():
    """With unmasked exceptions an infinity that comes up in a kernel would be a SIGFPE."""
    if not hasattr(libm(), "feenableexcept"):
        pytest.skip("this C library has no feenableexcept")
    if not IS_X86:
        pytest.skip("many other CPUs cannot trap")
    output_of("""
        import numpy as np
        from elman import functional as F
        from test_fpmode import libm
        every = 0x01 | 0x04 | 0x08 | 0x10  # invalid, division by zero, overflow, underflow
        x = np.array([-np.inf, np.inf, np.nan, 1e30, -1e30, 1e-30, -90, 90], np.float32)
        weights = [(x.reshape(1, 8), np.ones((1, 1), np.float32), None, None)]
        libm().feenableexcept(every)
        F.exp(x), F.sigmoid(x), F.tanh(x)
        _, _, tape = F.rnn_forward(x.reshape(1, 1, 8), None, weights)
        F.rnn_backward(tape)
        still = libm().fegetexcept()
        libm().fedisableexcept(every)
        assert still == every, still
    """)


# ---------------------------------------------------------------------------------------------- subnormals


SUBNORMAL = ("inputs and states", "weights", "gradients")


def scaled(cell, dtype, what, scale, T, B, I, H):
    """A problem without biases, whose inputs and states, or weights, or gradients are `scale` times the usual ones."""
    p = problem(CELLS[cell], T, B, I, H, dtype=dtype, bias=False)
    arrays = {"inputs and states": [p.x, *p.state], "weights": p.weights[0][:2], "gradients": [p.dy, *p.dstate]}
    for a in arrays[what]:
        a *= dtype.type(scale)
    return p


@pytest.mark.parametrize("what", SUBNORMAL)
@pytest.mark.parametrize("cell", CELLS)
def test_subnormals_give_what_the_reference_gives(cell, what, dtype, isa):
    p = scaled(cell, dtype, what, np.finfo(dtype).tiny / 64, 5, 3, 4, 19)
    got, expected = p.results(F), p.results(reference)
    if cell == "rnn-relu" and what != "gradients":  # its gradient jumps where a subnormal h is taken as zero
        got, expected = ({name: results[name] for name in ("y", "h")} for results in (got, expected))
    assert_same(got, expected, 1e-5 if dtype == np.float32 else 1e-13)


def test_a_decaying_state_ends_at_zero(dtype, isa):
    """It halves at every step, so it goes through all of the subnormals."""
    info, H = np.finfo(dtype), 7
    weights = [(np.zeros((H, 1), dtype), np.eye(H, dtype=dtype) / 2, None, None)]
    x, start = np.zeros((info.nmant + 6, 1, 1), dtype), np.full((1, 1, H), info.tiny * 4, dtype)
    y, h, _ = F.rnn_forward(x, start, weights, nonlinearity="relu")
    expected, _, _ = reference.rnn_forward(x, start, weights, nonlinearity="relu")
    assert (h == 0).all()
    np.testing.assert_allclose(y, expected, rtol=0, atol=info.tiny)


def slowdown(tiny, normal, attempts=6):
    """How many times longer tiny() takes than normal(), by turns; the least of a few attempts, for a noisy machine."""
    ratios = []
    for _ in range(attempts):
        times = {tiny: [], normal: []}
        for _ in range(9):
            for call, durations in times.items():
                start = time.perf_counter()
                call()
                durations.append(time.perf_counter() - start)
        ratios.append(statistics.median(times[tiny]) / statistics.median(times[normal]))
        if ratios[-1] < 1.5:
            break
    return min(ratios)


@pytest.mark.parametrize("what", SUBNORMAL)
@pytest.mark.parametrize("cell", CELLS)
def test_subnormals_cost_nothing(cell, what, dtype):
    def call(scale):
        p = scaled(cell, dtype, what, scale, 30, 4, 32, 64)
        p.weights = CELLS[cell].run(F, "pack", p.weights)

        def forward_and_backward():
            _, _, tape = p.forward(F)
            CELLS[cell].run(F, "backward", tape, p.dy, CELLS[cell].state(p.dstate))

        return forward_and_backward

    assert slowdown(call(np.finfo(dtype).tiny / 64), call(1)) < 1.5


def test_a_decayed_state_costs_nothing(dtype):
    """An LSTM that only forgets: c falls from normal numbers through all of the subnormals, or stays where it is."""
    H, T = 128, 400

    def call(forget):
        biases = np.repeat([-3e4, forget, 0, 0], H).astype(dtype)  # the input gate is shut
        packed = F.lstm_pack([(np.zeros((4 * H, 1), dtype), np.zeros((4 * H, H), dtype), biases, 0 * biases)])
        x, c = np.zeros((T, 1, 1), dtype), np.full((1, 1, H), np.finfo(dtype).tiny * 4, dtype)
        return lambda: F.lstm_forward(x, (None, c), packed, training=False)

    slow_decay = np.log(2 ** (20 / T) - 1) * -1  # sigmoid of it, T times, takes 20 bits away
    assert slowdown(call(slow_decay), call(3e4)) < 1.5


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("side", ["arguments", "results"])
def test_subnormals_cost_nothing_elementwise(name, side, dtype):
    info, n = np.finfo(dtype), 20_000
    border, least = np.log(float(info.tiny)), np.log(float(info.smallest_subnormal))
    if side == "arguments" or name == "tanh":  # tanh x is subnormal where x is
        x = np.full(n, info.tiny / 64, dtype)
    else:
        x = np.linspace(border, least, n).astype(dtype)
    normal, function = np.linspace(-3, 3, n).astype(dtype), getattr(F, name)
    assert slowdown(lambda: function(x), lambda: function(normal)) < 1.5


def test_a_slowdown_is_noticed():
    assert slowdown(lambda: time.sleep(0.02), lambda: time.sleep(0.002), attempts=2) > 1.5
