"""One row of the table: the contestants of a case take turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import time
from typing import Any

from .._config import config
from . import peers, roofline
from .cases import Case
from .worker import Worker, WorkerDied, fields_of

TURN = 0.02  # seconds of repeated calls in one turn
PATIENCE = 2.0  # seconds after which a contestant has had turns enough
SETTLE = {
    True: 0.1,
    False: 0.02,
}  # seconds until the threads of whoever had the last turn sleep, with a pool or without:
# those of ONNX Runtime spin for 50 ms, and JAX has some even with one thread
FEW = 3  # turns that everyone has, and all that the NumPy reference has


class Bench:
    """The worker processes of one table, started as they are needed. Close it, or use it as a context manager.

    With one thread all contestants live in one process, on one core. With more each peer has a process of its own:
    the threads of its pool spin for a while when it is done, on the cores of whoever comes next.
    """

    def __init__(self, threads: int = 1, rounds: int = 11, cpu: bool = False, everything: bool = False):
        self.threads, self.rounds, self.cpu, self.everything = threads, rounds, cpu, everything
        self._workers: dict[str, Worker] = {}
        self._limits: roofline.Limits | None = None

    def _worker(self, name: str) -> Worker:
        key = "all" if self.threads == 1 else peers.peer_of(name)
        if key not in self._workers:
            self._workers[key] = Worker(self.threads)
        return self._workers[key]

    def _close(self, worker: Worker) -> None:
        worker.close()
        self._workers = {key: other for key, other in self._workers.items() if other is not worker}

    def limits(self) -> roofline.Limits:
        if self._limits is None:
            self._limits = roofline.Limits.of_report(self._worker("elman").ask(do="limits"))
        return self._limits

    def row(self, case: Case, names: list[str]) -> dict[str, Any]:
        """One line of the table; for a JSON file as it is.

        `us` microseconds a call, the median of the turns, of each contestant, `least_us` that of its best turn;
        `errors` of those that have none.
        `best` the fastest peer and `ratio` its time to elman's, `bound_us` and `bound_by` of roofline.bound, `reached`
        the bound's time to elman's: 1 is the limit of the machine.
        """
        once: dict[str, float] = {}
        errors: dict[str, str] = {}
        for name in names:
            try:
                answer = self._worker(name).ask(do="ready", name=name, case=fields_of(case))
            except WorkerDied as error:
                self._close(self._worker(name))
                if self.threads == 1:  # all that were ready are gone with it
                    row = self.row(case, [n for n in names if n != name])
                    return row | {"errors": row["errors"] | {name: str(error)}}
                answer = {"error": str(error)}
            if "error" in answer:
                errors[name] = answer["error"]
            else:
                once[name] = answer["seconds"]
        turns: dict[str, list[float]] = {name: [] for name in once}
        for turn in range(self.rounds):
            for name, one in once.items():
                enough = FEW if name == "numpy" else max(FEW, math.ceil(PATIENCE / max(one, TURN)))
                if turn < min(enough, self.rounds):
                    repeats = max(1, math.ceil(TURN / one))
                    time.sleep(SETTLE[self.threads > 1])
                    answer = self._worker(name).ask(do="time", name=name, repeats=repeats, cpu=self.cpu)
                    turns[name].append(answer["seconds"])
        for worker in self._workers.values():
            worker.ask(do="drop")
        us = {name: statistics.median(values) * 1e6 for name, values in turns.items()}
        rivals = {name: value for name, value in us.items() if name not in ("elman", "numpy")}
        best = min(rivals, key=rivals.__getitem__, default=None)
        least = roofline.bound(case, self.limits(), self.threads)
        ours = us.get("elman")
        return {
            "work": case.name,
            "case": fields_of(case),
            "us": us,
            "least_us": {name: min(values) * 1e6 for name, values in turns.items()},
            "best": best,
            "ratio": rivals[best] / ours if best and ours else None,
            "target": case.target,
            "bound_us": least.least * 1e6,
            "bound_by": least.name,
            "reached": least.least * 1e6 / ours if ours else None,
            "errors": errors,
        }

    def contestants(self, case: Case, alone: bool = False) -> list[str]:
        """Who takes part here: those whose library is installed, without the slowest unless everything is wanted."""
        found = [name for name in peers.contestants(case) if not peers.missing(name)]
        if not self.everything:
            found = [name for name in found if not peers.is_slow(case, name)]
        if self.threads > 1:  # one thread is what the reference is made for
            found.remove("numpy")
        return [name for name in found if name == "elman"] if alone else found

    def close(self) -> None:
        for worker in list(self._workers.values()):
            self._close(worker)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def machine() -> dict[str, str]:
    """What this is measured on, in words."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((text.split(":", 1)[1].strip() for text in file if text.startswith("model name")), cpu)
    versions = [f"Python {platform.python_version()}"]
    for package in ("numpy", *peers.MODULES):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    ours = config()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "elman": f"{ours['version']}, {ours['compiler']}, {ours['isa']}",
        "others": ", ".join(versions),
    }
