"""Threads: the GIL, many callers at once, the pool, fork, signals, and the functions that set how many are used.

What concerns a whole process (fork, signals, the number of its threads) runs in a fresh one, with a time limit.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
import textwrap
import threading
import time

import numpy as np
import pytest
from processes import output_of

import elman
from elman import functional as F

LONG = 60  # seconds that nothing here takes unless it hangs

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which is Linux's")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="this operating system has no fork")


@pytest.fixture(autouse=True)
def _same_number_of_threads_afterwards():
    before = elman.get_num_threads()
    yield
    elman.set_num_threads(before)


def lstm_weights(I, H, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    return [tuple((rng.standard_normal(shape) * H**-0.5).astype(np.float32) for shape in shapes)]


def inputs(T, B, I, seed=1):
    return np.random.default_rng(seed).standard_normal((T, B, I)).astype(np.float32)


def forward_and_backward(x, weights):
    """All results of one layer as bytes."""
    y, (h, c), tape = F.lstm_forward(x, None, weights)
    dx, (dh, dc), dweights = F.lstm_backward(tape, y, (h, c))
    return b"".join(a.tobytes() for a in (y, h, c, dx, dh, dc, *dweights[0]))


def in_python_threads(n, function):
    """function(i) in n Python threads that start together: the results, or the first exception."""
    results, together = [None] * n, threading.Barrier(n)

    def run(i):
        try:
            together.wait(LONG)
            results[i] = function(i)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "a thread hangs"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def in_fresh_process(code, **keywords):
    """Runs code after a common beginning; what it printed."""
    beginning = """
        import os, signal, sys, threading, time
        import numpy as np
        import elman
        from elman import functional as F
        from test_threads import forward_and_backward, inputs, lstm_weights
    """
    return output_of(textwrap.dedent(beginning) + textwrap.dedent(code), **keywords)


# ---------------------------------------------------------------------------------------------- the setting


def test_set_num_threads_sets_the_process():
    elman.set_num_threads(3)
    assert elman.get_num_threads() == elman.config()["num_threads"] == 3
    assert in_python_threads(1, lambda i: elman.get_num_threads()) == [3]
    elman.set_num_threads(np.int64(5))
    assert elman.get_num_threads() == 5


def test_the_context_manager_nests_and_restores():
    elman.set_num_threads(3)
    with elman.threads(5):
        assert elman.get_num_threads() == 5
        with elman.threads(1):
            assert elman.get_num_threads() == 1
        assert elman.get_num_threads() == 5
        elman.set_num_threads(4)
        assert elman.get_num_threads() == 5
    assert elman.get_num_threads() == 4


def test_the_context_manager_restores_after_an_exception():
    elman.set_num_threads(3)
    with pytest.raises(KeyError), elman.threads(7):
        raise KeyError
    assert elman.get_num_threads() == 3


def test_the_context_manager_affects_only_its_python_thread():
    elman.set_num_threads(3)
    inside, seen = threading.Barrier(2), []

    def other():
        inside.wait(LONG)
        seen.append(elman.get_num_threads())
        with elman.threads(9):
            inside.wait(LONG)
            inside.wait(LONG)
        seen.append(elman.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    with elman.threads(7):
        inside.wait(LONG)
        inside.wait(LONG)
        seen.append(elman.get_num_threads())
        inside.wait(LONG)
        thread.join(LONG)
    assert seen == [3, 7, 3]


def test_the_context_manager_affects_only_its_task():
    elman.set_num_threads(3)

    async def task(n):
        with elman.threads(n):
            await asyncio.sleep(0.001)
            return elman.get_num_threads()

    async def all_tasks():
        return await asyncio.gather(*map(task, (4, 5, 6)))

    assert asyncio.run(all_tasks()) == [4, 5, 6]
    assert elman.get_num_threads() == 3


def enter(n):
    with elman.threads(n):
        pass


@pytest.mark.parametrize("function", [elman.set_num_threads, enter], ids=["set_num_threads", "threads"])
@pytest.mark.parametrize(
    "wrong, error",
    [(0, ValueError), (-1, ValueError), (1025, ValueError), (2**80, ValueError)]
    + [(value, TypeError) for value in (1.0, 1.5, "2", True, np.True_, None, [2])],
)
def test_a_wrong_number_is_refused_and_changes_nothing(function, wrong, error):
    elman.set_num_threads(3)
    with pytest.raises(error, match="^n: expected "):
        function(wrong)
    assert elman.get_num_threads() == 3


# ---------------------------------------------------------------------------------------------- the GIL


def longest_standstill(call):
    """While call() runs: the longest time for which another Python thread did not get a turn, and the whole time."""
    turns, stop = [], threading.Event()

    def count():
        while not stop.is_set():
            turns.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        time.sleep(0.01)
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    turns = [start, *(t for t in turns if start < t < end), end]
    return max(b - a for a, b in zip(turns, turns[1:])), end - start


def long_calls():
    """Calls that spend 0.1 s or more in one kernel."""
    weights, x = lstm_weights(512, 512), inputs(100, 32, 512)
    packed = F.lstm_pack(weights)
    _, _, tape = F.lstm_forward(x[:30], None, packed)
    packed.for_backward()
    state = tuple(np.zeros((1, 3000, 512), np.float32) for _ in "hc")
    x_step, numbers = inputs(1, 3000, 512)[0], np.linspace(-9, 9, 20_000_000)
    return {
        "forward": lambda: F.lstm_forward(x, None, packed, training=False),
        "backward": lambda: F.lstm_backward(tape, None, None),
        "step": lambda: F.lstm_step(x_step, state, [packed]),
        "tanh": lambda: F.tanh(numbers),
    }


@pytest.mark.parametrize("what", ["forward", "backward", "step", "tanh"])
def test_the_gil_is_released_in(what):
    call = long_calls()[what]
    with elman.threads(1):
        measured = []
        for _ in range(6):
            standstill, whole = longest_standstill(call)
            measured.append((standstill, whole))
            if whole > 0.03 and standstill < whole / 3:
                return
    pytest.fail(f"no other thread ran during the call (longest standstill, whole call): {measured}")


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there may be no GIL to hold")
def test_a_held_gil_is_noticed():
    numbers = range(5_000_000)
    standstill, whole = longest_standstill(lambda: sum(numbers))  # one call of C code, which keeps the GIL
    assert whole > 0.03
    assert standstill > whole / 3


# ---------------------------------------------------------------------------------------------- many callers


def test_one_packed_layer_in_many_python_threads():
    """Also the first backward calls, which all find that the transposed weights are still to be laid out."""
    weights, x = lstm_weights(40, 150), inputs(12, 20, 40)
    expected = forward_and_backward(x, weights)
    for _ in range(8):
        packed = F.lstm_pack(weights)
        assert set(in_python_threads(6, lambda i: forward_and_backward(x, packed))) == {expected}  # noqa: B023


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(n):
    weights, x = F.lstm_pack(lstm_weights(64, 128)), inputs(20, 24, 64)
    with elman.threads(1):
        expected = forward_and_backward(x, weights)
    with elman.threads(n):
        assert forward_and_backward(x, weights) == expected


def test_one_layer_object_in_many_python_threads():
    lstm = elman.LSTM(48, 96, 2, bidirectional=True, seed=1)
    x = inputs(15, 16, 48)

    def use(i):
        with elman.threads(1 + i % 3):
            y, state = lstm(x)
            y2, state2, tape = lstm.forward(x)
            dx, dstate, grads = lstm.backward(tape, y)
        return b"".join(a.tobytes() for a in (y, *state, y2, *state2, dx, *dstate, *grads.values()))

    expected = use(0)
    assert set(in_python_threads(5, use)) == {expected}


def test_streams_in_many_python_threads_share_one_layer():
    lstm = elman.LSTM(24, 40, 2, seed=1)
    x = inputs(300, 3, 24)

    def stream(i):
        state = lstm.zero_state(3)
        return b"".join(lstm.step(x_t, state).tobytes() for x_t in x)

    assert set(in_python_threads(4, stream)) == {lstm(x)[0].tobytes()}


def test_calls_beside_an_edit_see_all_of_the_old_weights_or_all_of_the_new():
    lstm, x = elman.LSTM(16, 64, 2, seed=1), inputs(10, 4, 16)
    first = {name: a.copy() for name, a in lstm.params.items()}
    second = {name: a * np.float32(0.5) for name, a in first.items()}
    allowed = set()
    for params in (second, first):
        lstm.load_params(params)
        allowed.add(lstm(x)[0].tobytes())
    assert len(allowed) == 2

    def work(i):
        if i == 0:
            for k in range(60):
                lstm.load_params((first, second)[k % 2])
            return allowed
        return {lstm(x)[0].tobytes() for _ in range(150)}

    for seen in in_python_threads(3, work):
        assert seen <= allowed


# ---------------------------------------------------------------------------------------------- the pool


def test_callers_that_all_want_threads_complete():
    packed, x = F.lstm_pack(lstm_weights(64, 128)), inputs(30, 32, 64)
    with elman.threads(1):
        expected = forward_and_backward(x, packed)

    def use(i):
        with elman.threads(2):
            return {forward_and_backward(x, packed) for _ in range(6)}

    for got in in_python_threads(4, use):
        assert got == {expected}


def test_a_busy_pool_keeps_nobody_waiting():
    """A short call made soon after a long one, which has the pool, is done long before it."""
    packed = F.lstm_pack(lstm_weights(256, 256))
    x = {"long": inputs(600, 64, 256), "short": inputs(6, 24, 256)}

    def use(i):
        name = ("long", "short")[i]
        time.sleep(0.03 * i)
        start = time.perf_counter()
        with elman.threads(2):
            F.lstm_forward(x[name], None, packed, training=False)
        return start, time.perf_counter()

    seen = []
    for _ in range(5):
        (start, end), (_, short_end) = in_python_threads(2, use)
        seen.append((short_end - start) / (end - start))
        if seen[-1] < 0.6:
            return
    pytest.fail(f"the short calls ended at these fractions of the long one's time: {seen}")


@linux
def test_only_work_that_pays_starts_a_thread():
    out = in_fresh_process("""
        count = lambda: len(os.listdir("/proc/self/task"))
        elman.set_num_threads(4)
        before = count()
        packed, x = F.lstm_pack(lstm_weights(32, 32)), inputs(100, 1, 32)
        for _ in range(50):
            forward_and_backward(x, packed)
            forward_and_backward(x[:2].repeat(16, 1), packed)
        after_small = count()
        forward_and_backward(inputs(20, 32, 256), F.lstm_pack(lstm_weights(256, 256)))
        print(before, after_small, count())
    """)
    before, after_small, after_large = map(int, out.split())
    assert after_small == before, "small calls started threads"
    assert before < after_large <= before + 3, "a large call started none, or more than it may use"


@linux
def test_one_thread_means_one_thread():
    out = in_fresh_process("""
        elman.set_num_threads(1)
        before = len(os.listdir("/proc/self/task"))
        forward_and_backward(inputs(20, 32, 256), F.lstm_pack(lstm_weights(256, 256)))
        print(len(os.listdir("/proc/self/task")) - before)
    """)
    assert out == "0"


def test_idle_workers_burn_no_cpu():
    """0.5 s of spinning by a single worker would show as 0.5 s."""
    out = in_fresh_process("""
        elman.set_num_threads(4)
        forward_and_backward(inputs(20, 32, 256), F.lstm_pack(lstm_weights(256, 256)))
        start = time.process_time()
        time.sleep(0.5)
        print(time.process_time() - start)
    """)
    assert float(out) < 0.05


# ---------------------------------------------------------------------------------------------- fork

FORK = """
    def child_agrees(work, expected, seconds=20):
        '''Forks; whether work() gives `expected` in the child. A child that hangs is killed and does not agree.'''
        pid = os.fork()
        if pid == 0:
            os._exit(0 if work() == expected else 3)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False

    elman.set_num_threads(2)
    weights = lstm_weights(64, 128)
    packed, x = F.lstm_pack(weights), inputs(20, 24, 64)
    work = lambda: forward_and_backward(x, packed)
    expected = work()
"""


def after_fork(code):
    in_fresh_process(textwrap.dedent(FORK) + textwrap.dedent(code))


@posix
def test_a_forked_child_works_and_the_parent_goes_on():
    after_fork("""
        for _ in range(3):
            assert child_agrees(work, expected)
            assert work() == expected
    """)


@linux
@posix
def test_a_forked_child_has_threads_of_its_own():
    after_fork("""
        count = lambda: len(os.listdir("/proc/self/task"))
        assert child_agrees(lambda: (count(), work(), count()), (1, expected, 2))
    """)


@posix
def test_a_grandchild_works():
    after_fork("""
        assert child_agrees(lambda: child_agrees(work, expected) and work(), expected)
    """)


@posix
def test_a_child_works_that_was_forked_inside_another_threads_kernel_call():
    after_fork("""
        stop = False

        def others():
            long_x = inputs(60, 24, 64)
            while not stop:
                forward_and_backward(long_x, packed)

        thread = threading.Thread(target=others)
        thread.start()
        try:
            for i in range(15):
                time.sleep(0.003 + 0.001 * (i % 7))
                assert child_agrees(work, expected), f"fork {i}"
            assert work() == expected
        finally:
            stop = True
            thread.join()
    """)


@posix
def test_a_child_works_that_was_forked_while_another_thread_lays_out_weights():
    after_fork("""
        stop = False

        def others():
            big, big_x = lstm_weights(512, 512), inputs(1, 1, 512)
            while not stop:
                forward_and_backward(big_x, big)

        thread = threading.Thread(target=others)
        thread.start()
        try:
            for i in range(15):
                time.sleep(0.003 + 0.001 * (i % 7))
                assert child_agrees(lambda: forward_and_backward(x, weights), expected, 10), f"fork {i}"
        finally:
            stop = True
            thread.join()
    """)


@posix
def test_a_child_edits_a_layer_that_was_forked_within_another_threads_edit():
    after_fork("""
        layer = elman.RNN(1, 1, seed=0)
        inside, forked = threading.Event(), threading.Event()

        def edit():
            with layer.edit() as p:
                inside.set()
                forked.wait(20)
                p["bias_ih_l0"][:] = 1

        def child_edits():
            with layer.edit() as p:
                p["bias_ih_l0"][:] = 2
            return float(layer.params["bias_ih_l0"][0])

        thread = threading.Thread(target=edit)
        thread.start()
        inside.wait(20)
        try:
            assert child_agrees(child_edits, 2.0, 10)
        finally:
            forked.set()
            thread.join()
        assert layer.params["bias_ih_l0"][0] == 1
    """)


def results_for_seed(seed):
    return forward_and_backward(inputs(20, 24, 64, seed), lstm_weights(64, 128))


@posix
def test_a_multiprocessing_pool_of_forked_workers():
    in_fresh_process("""
        import multiprocessing
        from test_threads import results_for_seed

        elman.set_num_threads(2)
        expected = [results_for_seed(seed) for seed in range(6)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(results_for_seed, range(6)).get(40) == expected
    """)


# ---------------------------------------------------------------------------------------------- signals


@posix
def test_an_interrupt_during_a_long_call_comes_after_it():
    out = in_fresh_process("""
        elman.set_num_threads(2)
        packed, x = F.lstm_pack(lstm_weights(256, 256)), inputs(2500, 16, 256)
        expected = F.lstm_forward(x, None, packed, training=False)[0]
        out = np.zeros_like(expected)

        def interrupt():
            while not out[0].any():  # until the call has written its first outputs
                time.sleep(0.001)
            print("still running:", not out[-1].any())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            F.lstm_forward(x, None, packed, training=False, out=out)
            time.sleep(5)
            raise SystemExit("never interrupted")
        except KeyboardInterrupt:
            pass
        assert (out == expected).all()  # the call was complete
        assert (F.lstm_forward(x, None, packed, training=False)[0] == expected).all()  # and so is the next
    """)
    assert out == "still running: True"


@linux
def test_workers_leave_signals_to_the_program():
    out = in_fresh_process("""
        elman.set_num_threads(3)
        before = set(os.listdir("/proc/self/task"))
        forward_and_backward(inputs(20, 32, 256), F.lstm_pack(lstm_weights(256, 256)))
        for task in set(os.listdir("/proc/self/task")) - before:
            status = open(f"/proc/self/task/{task}/status").read()
            blocked = int(status.split("SigBlk:")[1].split()[0], 16)
            print(bool(blocked >> (signal.SIGINT - 1) & 1), bool(blocked >> (signal.SIGTERM - 1) & 1))
    """)
    assert out.split() and set(out.split()) == {"True"}


# ---------------------------------------------------------------------------------------------- free threading


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter always has a GIL")
def test_importing_leaves_the_gil_off():
    code = """
        import sys, warnings
        warnings.simplefilter("error")
        import numpy
        before = sys._is_gil_enabled()
        import elman
        print(before, sys._is_gil_enabled())
    """
    assert output_of(code, environment={"PYTHON_GIL": None}) == "False False"
