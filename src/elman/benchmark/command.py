"""The command `elman bench`: arguments, the table as it grows, and the files."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from typing import Any

from .._config import usable_cores
from ..demo import Screen
from .worker import WorkerDied

DESCRIPTION = """\
Times elman on this machine beside PyTorch, ONNX Runtime and JAX, as far as they are installed, and beside what the
machine could do at most. Every result is checked against the NumPy reference before it is timed; contestants take
turns, figures are medians, in microseconds a call. Two minutes; with --all some more."""

EPILOG = """\
columns:
  elman, torch, ORT, JAX, numpy  microseconds a call; of several ways to use a library the best
  ratio     the time of the best peer to that of elman; `numpy`, elman's reference, is no peer
  target    what the ratio is meant to be: > it is, < it is not, ! nor would it be for one that runs at the bound
  bound     microseconds that the case takes at least, and by which limit: FMA (multiply-adds), L1 to DRAM (reading
            the weights), stream (reading and writing sequences)
  reached   the bound as a part of elman's time: 1 is the limit of the machine
"""


class BenchError(Exception):
    """An argument that cannot be used; the message is for the user."""


def add_command(commands: Any) -> None:
    """Adds `bench` to argparse's subparsers."""
    parser = commands.add_parser(
        "bench",
        help="time elman on this machine beside its peers and the machine's limits",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--all", action="store_true", help="the slow cases and contestants too")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases with TEXT in their name")
    parser.add_argument("--alone", action="store_true", help="elman and the machine's limits, no peers")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="of each contestant (default 1)")
    parser.add_argument(
        "--rounds", type=_positive, default=11, metavar="N", help="turns of each contestant (default 11)"
    )
    parser.add_argument("--cpu", action="store_true", help="CPU time, not wall time: for a machine with other work")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", metavar="FILE", help='draw them there, as .png, .svg or .pdf; needs "elman[plot]"')
    parser.set_defaults(run=_run_reporting_errors)


def _run_reporting_errors(arguments: argparse.Namespace) -> int:
    try:
        return run(arguments)
    except BenchError as error:
        print(f"elman bench: error: {error}", file=sys.stderr)
        return 2
    except WorkerDied as error:  # while it was being timed
        print(f"elman bench: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    """The whole table. Returns 0, or 1 if a contestant failed or was wrong."""
    from . import measure, table
    from .cases import CASES
    from .peers import peer_of

    cases = [case for case in CASES if arguments.match in case.name and (arguments.all or not case.slow)]
    _check(arguments, bool(cases))
    out = Screen(sys.stdout)
    rows: list[dict[str, Any]] = []
    try:
        machine = measure.machine() | {"time": "CPU" if arguments.cpu else "wall"}
        with measure.Bench(arguments.threads, arguments.rounds, arguments.cpu, arguments.all) as bench:
            contestants = {case: bench.contestants(case, arguments.alone) for case in cases}
            present = {peer_of(name) for names in contestants.values() for name in names}
            libraries = [library for library in table.COLUMNS if library in present]
            limits = bench.limits().report()
            for key, value in (machine | {"limits": f"one core: {table.limits(limits)}"}).items():
                out.print(f"{key:8}{value}")
            out.print("\n" + table.head(libraries, arguments.threads))
            for done, case in enumerate(cases):
                out.bar(done / len(cases), case.name)
                rows.append(bench.row(case, contestants[case]))
                out.print(table.line(rows[-1], libraries))
        if ratios := table.summary(rows):
            out.print("\n".join(["", *ratios]))
        if arguments.json:
            report = {"machine": machine, "threads": arguments.threads, "rounds": arguments.rounds, "limits": limits}
            with _opened(arguments.json) as file:
                json.dump(report | {"rows": rows}, file, indent=1)
        if arguments.plot:
            _draw(rows, machine, arguments)
    finally:
        out.end_line()
    return int(any(row["errors"] for row in rows))


def _check(arguments: argparse.Namespace, some: bool) -> None:
    """What would fail after minutes fails now."""
    if not some:
        hint = "" if arguments.all else " (some are only there with --all)"
        raise BenchError(f"--match: no case has {arguments.match!r} in its name{hint}")
    if arguments.cpu and arguments.threads > 1:
        raise BenchError("--cpu: the time of all threads together says nothing about --threads")
    if arguments.threads > usable_cores():
        raise BenchError(f"--threads: {arguments.threads} on {usable_cores()} cores")
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        folder = os.path.dirname(os.path.abspath(path or "."))
        if path is not None and (not path or os.path.isdir(path) or not os.access(folder, os.W_OK)):
            raise BenchError(f"{option}: cannot write {path!r}")
    if arguments.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise BenchError('--plot: matplotlib is not installed: pip install "elman[plot]"')
        from matplotlib.figure import Figure

        kinds = Figure().canvas.get_supported_filetypes()
        if os.path.splitext(arguments.plot)[1].lower()[1:] not in kinds:
            raise BenchError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {arguments.plot!r}")


def _draw(rows: list[dict[str, Any]], machine: dict[str, str], arguments: argparse.Namespace) -> None:
    from . import plot

    try:
        plot.draw(rows, machine, arguments.threads, arguments.plot)
    except OSError as error:
        raise BenchError(f"--plot: cannot write {arguments.plot!r}: {error.strerror or error}") from None


def _opened(path: str) -> Any:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"--json: cannot write {path!r}: {error.strerror or error}") from None


def _positive(text: str) -> int:
    """An argparse type."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)
