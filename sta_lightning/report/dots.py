"""Dot plots: a row per method or pair, a dot per number, a whisker for its spread."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sta_lightning.report.grid import Number
from sta_lightning.report.style import LEVELS, LIGHT, legend_below, new_figure, paint, tell, tidy

WIDTH = 4.6  # inches, all of which a telephone shows
_NAME = 0.18  # inches of a row for its name


@dataclass(frozen=True)
class Dots:
    """One series of dots, one for each row or ``None``; its look is the number of its colour."""

    label: str
    values: Sequence[Number | None]
    look: int
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; levels are upright lines by their names in the legend."""

    heading: str
    x_label: str
    series: Sequence[Dots]
    levels: Mapping[str, float] = field(default_factory=dict)


def dot_figure(
    rows: Sequence[str],
    panels: Sequence[Panel],
    *,
    title: str,
    apart: bool = True,
    bold: Sequence[int] = (),
) -> Figure:
    """Dots in rows from top to bottom, below the row's name, panels side by side.

    The series of a row lie below each other if ``apart``, otherwise on one line; ``bold`` are the
    places of the rows whose names are printed bold.
    """
    lanes = max(len(panel.series) for panel in panels) if apart else 1
    height = _NAME + max(0.17, 0.105 * lanes + 0.05)
    # A row is one unit high.
    name = _NAME / height
    figure = new_figure(WIDTH, height * len(rows) + 1.9, title)
    shown = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    entries: dict[str, Artist] = {}
    for axes, panel in zip(shown, panels, strict=True):
        centres = [name + (1 - name) * (lane + 0.5) / lanes for lane in range(lanes)]
        _draw(axes, rows, panel, centres, entries)
        axes.set_xlabel(panel.x_label)
        if panel.heading:
            axes.set_title(textwrap.fill(panel.heading, 50 // len(panels)), loc="left", fontsize=9.5)
        tidy(axes)
        axes.margins(x=0.06)
        axes.tick_params(labeltop=True)
        for place in range(len(rows)):
            axes.axhspan(place + name, place + 1, color=LIGHT.grid, alpha=0.35, linewidth=0, zorder=0)
    shown[0].set_yticks([])
    shown[0].set_zorder(1)  # a long name reaches into the next panel
    shown[0].set_ylim(len(rows) + 0.1, -0.1)
    for place, row in enumerate(rows):
        text = shown[0].text(0.01, place + 0.52 * name, row, transform=shown[0].get_yaxis_transform())
        text.set(va="center", fontsize=9.5, in_layout=False, zorder=1.5)
        text.set_fontweight("bold" if place in bold else "normal")
        # The upright lines end before it and go on behind it.
        text.set_bbox({"facecolor": LIGHT.background, "edgecolor": "none", "pad": 0.6})
    legend_below(figure, entries)
    return paint(figure)


def _draw(
    axes: Axes,
    rows: Sequence[str],
    panel: Panel,
    centres: Sequence[float],
    entries: dict[str, Artist],
) -> None:
    for number, (label, value) in enumerate(panel.levels.items()):
        line = axes.axvline(
            value, color=LIGHT.grey, linestyle=LEVELS[number % len(LEVELS)], linewidth=1.4, zorder=1
        )
        entries.setdefault(label, line)
    for number, series in enumerate(panel.series):
        centre = centres[number % len(centres)]
        present = [(cell, place + centre) for place, cell in enumerate(series.values) if cell is not None]
        colour = LIGHT.colour(series.look)
        spread = [(cell.mean, place, cell.std) for cell, place in present if cell.std is not None]
        if spread:
            x, y, reach = zip(*spread, strict=True)
            axes.errorbar(x, y, xerr=reach, fmt="none", color=colour, capsize=2.2, linewidth=1.2, zorder=2)
        (line,) = axes.plot(
            [cell.mean for cell, _ in present],
            [place for _, place in present],
            linestyle="none",
            marker=LIGHT.marker(series.look),
            # A ring around the dot of another series that lies at the same place.
            markersize=9 if series.hollow else 5.6,
            color=colour,
            markerfacecolor=LIGHT.background if series.hollow else colour,
            markeredgewidth=1.3,
            zorder=3 if series.hollow else 4,
        )
        names = [rows[place] for place, cell in enumerate(series.values) if cell is not None]
        texts = [f"{name}, {series.label}: {cell}%" for name, (cell, _) in zip(names, present, strict=True)]
        tell(line, texts)
        entries.setdefault(series.label, line)
