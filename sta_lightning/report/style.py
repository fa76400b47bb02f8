"""How every figure looks: its canvas, axes, colours and legend, and how it becomes a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sta_lightning.report.theme import LIGHT, Theme
from sta_lightning.weights.atomic import atomic_path

DOTS_PER_INCH = 150


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas and no pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def tidy(axes: Axes, theme: Theme = LIGHT) -> None:
    """Take the box away and lay a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def paint(figure: Figure, theme: Theme) -> Figure:
    """Give a finished figure the theme's background, and its text colour to what is still black."""
    figure.set_facecolor(theme.background)
    for text in figure.findobj(Text):
        if text.get_color() == "black":
            text.set_color(theme.text)
    for axes in figure.axes:
        axes.set_facecolor(theme.background)
        for spine in axes.spines.values():
            if spine.get_edgecolor()[:3] == (0.0, 0.0, 0.0):
                spine.set_edgecolor(theme.text)
        axes.tick_params(color=theme.text, labelcolor=theme.text)
    return figure


def legend_below(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """A legend below the axes, in as many columns as the longest label leaves room for.

    Args:
        figure: it gets the legend.
        entries: label -> what it names; no legend if there are none.
    """
    if not entries:
        return
    across = figure.get_figwidth() * 72 / (5.0 * max(map(len, entries)) + 40)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, min(len(entries), int(across))),
        frameon=False,
        fontsize=9,
        handlelength=2.6,
    )


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all, and return the path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path
