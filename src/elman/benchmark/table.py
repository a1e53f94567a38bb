"""The rows of measure.py as lines of text."""

from __future__ import annotations

import statistics
from typing import Any

from .peers import peer_of

COLUMNS = {"elman": "elman", "torch": "torch", "onnxruntime": "ORT", "jax": "JAX", "numpy": "numpy"}
WORK = 51  # characters of the longest name of a case


def by_library(us: dict[str, float]) -> dict[str, float]:
    """The best of the ways to use each library; the JSON file has all of them."""
    best: dict[str, float] = {}
    for name, value in us.items():
        library = peer_of(name)
        best[library] = min(value, best.get(library, value))
    return best


def head(libraries: list[str], threads: int) -> str:
    title = f"us a call, {threads} thread{'s' * (threads > 1)}"
    columns = [COLUMNS[library] for library in libraries]
    return f"{title:{WORK}}" + "".join(f"{name:>9}" for name in columns) + "   ratio target    bound by      reached"


def line(row: dict[str, Any], libraries: list[str]) -> str:
    times = by_library(row["us"])
    ratio, target = row["ratio"], row["target"]
    met = "" if target is None or ratio is None else f"{_met(row)}{target:g}"
    text = f"{row['work']:{WORK}}" + "".join(f"{_figure(times.get(library)):>9}" for library in libraries)
    text += f"{'-' if ratio is None else format(ratio, '.2f'):>8}{met:>7}"
    reached = "-" if row["reached"] is None else format(row["reached"], ".2f")
    text += f"{_figure(row['bound_us']):>9} {row['bound_by']:6} {reached:>8}"
    return text + "".join(f"\n    {name}: {message}" for name, message in row["errors"].items())


def summary(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    if ratios:
        worst = min((row for row in rows if row["ratio"]), key=lambda row: row["ratio"])
        mean = statistics.geometric_mean(ratios)
        lines.append(f"ratio to the best peer: geometric mean {mean:.2f} over {len(ratios)} cases")
        lines.append(f"the worst: {worst['ratio']:.2f}, {worst['work']}, to {worst['best']}")
        aimed = [row for row in rows if row["ratio"] and row["target"]]
        found = [_met(row) for row in aimed]
        beyond = f"; {found.count('!')} would be missed at the machine's bound too" if "!" in found else ""
        lines.append(f"targets: {found.count('>')} of {len(aimed)} met{beyond}")
    return lines


def limits(report: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:.0f} GFLOP/s {dtype}" for dtype, rate in report["gflops"].items())
    reads = ", ".join(f"{memory['name']} {memory['gb_per_s']:.0f}" for memory in report["memories"])
    return f"{rates}; reads {reads} GB/s"


def _met(row: dict[str, Any]) -> str:
    """ ">": the target is met, "<": it is not, "!": nor could it be, since the bound is not that much faster."""
    if row["ratio"] >= row["target"]:
        return ">"
    return "!" if row["us"][row["best"]] < row["target"] * row["bound_us"] else "<"


def _figure(us: float | None) -> str:
    """Three digits at least, and no more decimals than they take."""
    return "-" if us is None else f"{us:.0f}" if us >= 100 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"
