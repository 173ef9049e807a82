"""Draws what the subjects of reading and opening found, as one SVG."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.measure import Row

PANELS: Final = {
    "read": "read from start to end, GB/s",
    "random-1m": "read 1 MiB at random, GB/s",
    "random-4k": "read 4 KiB at random, thousands a second",
    "opens": "open, read 4 KiB, close, a second",
    "open-busy": "open while a fetch runs, ms (less is better)",
    "page-cache": "page cache after one read, in images (less is better)",
}
"""The first part of rows' names, and the title of their panel."""

CONTENDERS: Final = {
    "native": ("the file itself", "#999999"),
    "relay": ("cachefs", "#2a7fba"),
    "plain": ("cachefs, plain", "#8ec3e6"),
    "http": ("nginx and curl", "#c9a227"),
    "rclone": ("rclone mount", "#c4614a"),
}
"""As rows call them: what to call them here, and their colour."""

INK: Final = "#808080"
"""Of text and lines: to be read on white and on black, for the background is left out."""


def draw(rows: list[Row], path: Path) -> None:
    """Write the panels for which there are rows to *path*. Raises ValueError where there are none,
    OSError as open(2)."""
    found = {panel: values for panel in PANELS if (values := _values(panel, rows))}
    if not found:
        raise ValueError("no row of this run can be drawn: run read, say")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cachefs", "font.size": 9})
    lines = -(-len(found) // 2)
    figure = Figure(figsize=(11, 1.9 * lines), layout="constrained")
    axes = list(figure.subplots(lines, 2, squeeze=False).flat)
    for axis, (panel, values) in zip(axes, found.items(), strict=False):
        _bars(axis, PANELS[panel], values)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _values(panel: str, rows: list[Row]) -> dict[str, float]:
    """What each contender reached in a panel."""
    values = {}
    for row in rows:
        name, who, *_ = [*row.name.split("."), ""]
        if name == panel:
            values[who] = row.ours
            if row.peers is not None:
                values[row.peer] = row.peers
    return {who: values[who] for who in CONTENDERS if who in values}


def _bars(axis: Axes, title: str, values: dict[str, float]) -> None:
    names = [CONTENDERS[who][0] for who in values]
    bars = axis.barh(names, list(values.values()), color=[CONTENDERS[who][1] for who in values])
    labels = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values.values()]
    axis.bar_label(bars, labels=labels, padding=3, color=INK)
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.xaxis.set_visible(False)
    axis.tick_params(colors=INK, length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
