"""The rows of measure.py as a picture: one line for each case, a mark for each contestant and one for the bound."""

from __future__ import annotations

from typing import Any

from .table import COLUMNS, by_library

TITLES = {
    "step": "one step of a stream",
    "step_many": "a step of many",
    "forward": "inference over sequences",
    "train": "forward + backward",
}
# Colours that the colour-blind tell apart (Okabe and Ito), and a shape each.
MARKS = {
    "elman": ("#d55e00", "o"),
    "torch": ("#0072b2", "s"),
    "onnxruntime": ("#009e73", "D"),
    "jax": ("#cc79a7", "^"),
    "numpy": ("#999999", "x"),
}
LIMIT = "limit of the machine"
WIDTH, HEIGHT_OF_LINE, HEIGHT_OF_REST = 11.0, 0.21, 1.9  # inches


def draw(rows: list[dict[str, Any]], machine: dict[str, str], threads: int, path: str) -> None:
    """Writes the file, in the format that its name asks for."""
    from matplotlib.figure import Figure

    groups = {work: [row for row in rows if row["case"]["work"] == work] for work in TITLES}
    groups = {work: found for work, found in groups.items() if found}
    counts = [len(found) for found in groups.values()]
    height = HEIGHT_OF_REST + HEIGHT_OF_LINE * sum(counts) + 0.75 * len(groups)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    all_axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[count + 1 for count in counts])[:, 0]
    for axes, (work, found) in zip(all_axes, groups.items(), strict=True):
        _draw_group(axes, found)
        axes.set_title(TITLES[work], loc="left", fontsize=10, fontweight="bold")
    all_axes[-1].set_xlabel("microseconds a call (logarithmic; further left is faster)")
    handles: dict[str, Any] = {}
    for axes in all_axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    many = f"{threads} thread{'s' * (threads > 1)}"
    title = f"elman {machine['elman']}; {many}, {machine['cpu']}; {machine['date']}"
    order = sorted(handles, key=[*(COLUMNS[library] for library in MARKS), LIMIT].index)
    shown = [handles[label] for label in order]
    legend = figure.legend(shown, order, loc="outside upper center", ncols=len(order))
    legend.set(title=title, frame_on=False)
    figure.savefig(path, dpi=110)


def _draw_group(axes: Any, rows: list[dict[str, Any]]) -> None:
    times = [by_library(row["us"]) for row in rows]
    places = range(len(rows))
    for place, row, all_us in zip(places, rows, times, strict=True):
        rivals = [us for library, us in all_us.items() if library not in ("elman", "numpy")]
        if rivals and "elman" in all_us:  # the lead, or what is behind
            axes.plot([all_us["elman"], min(rivals)], [place, place], color="#dddddd", linewidth=5, zorder=1)
        axes.plot(row["bound_us"], place, "|", color="black", markersize=11, label=_once(axes, LIMIT))
    for library, (colour, mark) in MARKS.items():
        points = [(all_us[library], place) for place, all_us in zip(places, times, strict=True) if library in all_us]
        if points:
            size = 42 if library == "elman" else 24
            label = COLUMNS[library]
            axes.scatter(*zip(*points, strict=True), s=size, color=colour, marker=mark, label=label, zorder=3)
    labels = [row["work"].partition(" ")[2] for row in rows]
    ratios = ["" if row["ratio"] is None else f"{row['ratio']:.1f}x" for row in rows]
    axes.set_yticks(places, [f"{label}  {ratio:>6}" for label, ratio in zip(labels, ratios, strict=True)], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.10g}")
    axes.grid(axis="x", which="major", color="#cccccc", linewidth=0.6)
    axes.grid(axis="x", which="minor", color="#eeeeee", linewidth=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _once(axes: Any, label: str) -> str:
    """The label for the first mark of its kind, nothing for the others: "_" is left out of the legend."""
    return "_" if label in axes.get_legend_handles_labels()[1] else label
