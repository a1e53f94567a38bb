"""Times elman beside its peers and prints the ratios: `python bench/table.py [--all] [--json FILE]`.

Contestants take turns, round by round, in one process with one thread, so that a noisy machine disturbs all of them
alike; figures are medians over the rounds. Each result is checked against the NumPy reference first.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Before NumPy is imported: its BLAS reads them only then.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import peers
from cases import CASES, Case

import elman

TURN = 0.02  # seconds of repeated calls in one turn
FEW = 3  # rounds for the NumPy reference, and for whoever takes more than a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="the slow ones too")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases with TEXT in their name")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="turns of each contestant (default 11)")
    parser.add_argument("--cpu", action="store_true", help="CPU time, not wall time: for a machine with other work")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()

    timer = time.process_time if options.cpu else time.perf_counter
    machine = describe() | {"time": "CPU" if options.cpu else "wall"}
    for key, value in machine.items():
        print(f"{key:12} {value}")
    columns = ("elman us", "torch us", "ORT us", "ratio", "x numpy", "GFLOP/s")
    print(f"\n{'one thread':42}" + "".join(f"{name:>11}" for name in columns))
    rows = []
    with elman.threads(1):
        for case in CASES:
            if options.match in case.name and (options.all or not case.slow):
                rows.append(measure(case, options, timer))
                print(line(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"\nratio to the best peer: geometric mean {mean:.2f}, worst {min(ratios):.2f}, {len(ratios)} cases")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "rounds": options.rounds, "rows": rows}, file, indent=1)


def measure(case: Case, options: argparse.Namespace, timer: Callable[[], float]) -> dict:
    calls = {
        name: peers.ready(case, name)
        for name in peers.contestants(case)
        if not peers.missing(name) and (options.all or not peers.is_slow(case, name))
    }
    repeats, rounds = {}, {}
    for name, call in calls.items():
        one = seconds(call, 1, time.perf_counter)  # warm: `ready` has called it
        repeats[name] = max(1, math.ceil(TURN / one))
        rounds[name] = min(FEW, options.rounds) if name == "numpy" or one > 1 else options.rounds
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds):
        for name, call in calls.items():
            if turn < rounds[name]:
                times[name].append(seconds(call, repeats[name], timer))
    us = {name: statistics.median(values) * 1e6 for name, values in times.items()}
    rivals = [value for name, value in us.items() if name not in ("elman", "numpy")]
    return {
        "work": case.name,
        "us": us,
        "ratio": min(rivals) / us["elman"] if rivals else None,
        "times_numpy": us["numpy"] / us["elman"],
        "gflops": case.operations / us["elman"] / 1e3,
    }


def seconds(call: Callable[[], Any], repeats: int, timer: Callable[[], float]) -> float:
    start = timer()
    for _ in range(repeats):
        call()
    return (timer() - start) / repeats


def line(row: dict) -> str:
    us = row["us"]
    # Of two ways to use a peer the better one; the JSON file has both.
    torch, ort = (
        min((value for name, value in us.items() if name.startswith(peer)), default=None)
        for peer in ("torch", "onnxruntime")
    )
    figures = [(us["elman"], 1), (torch, 0), (ort, 0)]
    figures += [(row["ratio"], 2), (row["times_numpy"], 1), (row["gflops"], 1)]
    return f"{row['work']:42}" + "".join(f"{'-' if v is None else format(v, f'.{n}f'):>11}" for v, n in figures)


def describe() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((text.split(":", 1)[1].strip() for text in file if text.startswith("model name")), cpu)
    versions = [f"Python {platform.python_version()}"]
    for package in ("numpy", "torch", "onnxruntime"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    config = elman.config()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "elman": f"{config['version']}, {config['compiler']}, {config['isa']}",
        "others": ", ".join(versions),
    }


if __name__ == "__main__":
    sys.exit(main())
