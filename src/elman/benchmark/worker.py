"""The process that contestants run in: it reads one request a line and answers each with one line, both in JSON.

A process of its own, because the number of threads must be settled before NumPy and JAX are imported, because a peer's
idle threads spin, and because a peer that crashes must not take the table with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from .cases import Case

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
XLA_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
PROGRAM = "import sys; sys.path[:] = {path!r}; from elman.benchmark import worker; worker.main({threads})"


class WorkerDied(Exception):
    """The message says how, and the last of what it wrote."""


def environment(threads: int) -> dict[str, str]:
    """Variables that limit the libraries' pools; they read them when they are imported."""
    wanted = dict.fromkeys(POOLS, str(threads))
    if threads == 1:
        wanted["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_ONE_THREAD}".strip()
    return wanted


def take_cores(threads: int) -> None:
    """Confine this process to so many of the cores that it may use: no library can take more then."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


# -------------------------------------------------------------------------------------------------- on this side


class Worker:
    """A worker process, as those see it that ask it. Close it, or use it as a context manager."""

    def __init__(self, threads: int):
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(path=sys.path, threads=threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | environment(threads),
            start_new_session=True,  # Ctrl-C is for the command, which then closes this
        )

    def ask(self, **request: Any) -> Any:
        """The answer, or what it could not do as an exception."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise WorkerDied(": ".join([f"its process ended with code {code}", *last]))
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                stream and stream.close()
            except BrokenPipeError:
                pass  # a request that was never read

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --------------------------------------------------------------------------------------------- on the other side


def main(threads: int) -> None:
    take_cores(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from .. import set_num_threads

    set_num_threads(threads)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), calls)), file=answers, flush=True)


def _answer(request: dict[str, Any], calls: dict[str, Callable[[], Any]]) -> Any:
    """limits: what the machine can do. ready: checks one contestant, {"seconds"} of one call or {"error"}. time:
    {"seconds"} a call over `repeats` of them, after one that does not count. drop: forgets all contestants."""
    from . import peers, roofline

    if request["do"] == "limits":
        return roofline.measure_limits().report()
    if request["do"] == "drop":
        calls.clear()
        return None
    name = request["name"]
    if request["do"] == "time":
        calls[name]()  # the caches are those of whoever had the last turn, and the own threads are asleep
        return {"seconds": seconds(calls[name], request["repeats"], request["cpu"])}
    try:
        calls[name] = peers.ready(case_of(request["case"]), name)  # has called it: it is warm
        return {"seconds": seconds(calls[name], 1)}
    except Exception as error:  # of whatever library
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def seconds(call: Callable[[], Any], repeats: int, cpu: bool = False) -> float:
    """Of one call, as the mean of some: by the clock, or of CPU time."""
    clock = time.process_time if cpu else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def fields_of(case: Case) -> dict[str, Any]:
    """For JSON; `case_of` is the way back."""
    return asdict(case)


def case_of(fields: dict[str, Any]) -> Case:
    lengths = fields["lengths"]
    return Case(**fields | {"lengths": None if lengths is None else tuple(lengths)})
