"""A polygon per method over the tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from sta_lightning.report.style import LEVELS, LIGHT, legend_below, new_figure, paint, tell


def radar_figure(
    tasks: Sequence[str],
    values: Mapping[str, Sequence[float]],
    looks: Mapping[str, int | None],
    *,
    title: str,
) -> Figure:
    """Accuracy in percent by task (three at least), from the centre outwards.

    ``values`` has a value a task for each method, ``looks`` its colour; grey where there is none.
    """
    figure = new_figure(7.6, 6.6, title)
    axes = cast(PolarAxes, figure.add_subplot(projection="polar"))
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * index / len(tasks) for index in range(len(tasks))]
    closed = [*angles, angles[0]]
    entries: dict[str, Artist] = {}
    greys = list(zip(LEVELS, "sdv^P", strict=True))
    for method, heights in values.items():
        style = LIGHT.line(looks.get(method))
        if looks.get(method) is None:
            style["linestyle"], style["marker"] = greys[
                sum(looks.get(name) is None for name in entries) % len(greys)
            ]
        (line,) = axes.plot(closed, [*heights, heights[0]], **style, markersize=5, linewidth=1.7)
        tell(line, [f"{method}, {task}: {height:.1f}%" for task, height in zip(tasks, heights, strict=True)])
        entries[method] = line
    lowest = min(min(heights) for heights in values.values())
    floor = max(0, 10 * math.floor((lowest - 5) / 10))
    axes.set_ylim(floor, 100)
    step = 10 if floor >= 50 else 20
    rings = [ring for ring in range(floor, 101, step) if ring > floor]
    axes.set_yticks(rings, ["" for _ in rings])
    for ring in rings:
        # Between two spokes, where no polygon has a corner, and above the lines: tick labels lie
        # below them.
        box = {"facecolor": LIGHT.background, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
        place = (math.pi / len(tasks), ring)
        axes.text(*place, f"{ring}%", ha="center", va="center", fontsize=8, zorder=4, bbox=box)
    axes.set_xticks(angles, [task.replace("_", " ") for task in tasks], fontsize=9.5)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=6)
    axes.grid(True, color=LIGHT.grid, linewidth=0.9)
    axes.spines["polar"].set_color(LIGHT.grid)
    legend_below(figure, entries)
    return paint(figure)
