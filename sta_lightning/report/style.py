"""How every figure looks: colours that colour-blind readers can tell apart, one way to write a PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sta_lightning.weights.atomic import atomic_path

# Okabe and Ito's palette without its yellow (unreadable on white), darkest contrast first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#7F7F7F"
DOTS_PER_INCH = 150


def colour(index: int) -> str:
    """The colour of the ``index``-th series; repeats after seven (the marker and dash then differ)."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the ``index``-th series."""
    return MARKERS[index % len(MARKERS)]


def dash(index: int) -> str:
    """The line style of the ``index``-th series: changes once the colours begin again."""
    return DASHES[(index // len(COLOURS)) % len(DASHES)]


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas and no global pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Take the box away and lay a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def save_png(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, whole or not at all, and return the path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path
