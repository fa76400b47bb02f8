"""How every figure looks: its colours, canvas, axes and legend, and what its points tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
# Of references, which are all grey; matplotlib has a name for three.
LEVELS: tuple[Any, ...] = ("--", ":", "-.", (0, (9, 3)), (0, (6, 2, 1, 2, 1, 2)))
_TOLD = "told:"


@dataclass(frozen=True)
class Theme:
    """Colours of a figure, and of the page around it.

    Attributes:
        background: of figure and page.
        text: of titles, labels and ticks.
        grey: of references and of whatever is no series.
        grid: of the lines behind the data.
        colours: of the series, to be told apart by colour-blind readers too; marker and dash help.
    """

    background: str
    text: str
    grey: str
    grid: str
    colours: tuple[str, ...]

    def colour(self, look: int | None) -> str:
        """The colour of a series; grey for a reference (``None``)."""
        return self.grey if look is None else self.colours[look % len(self.colours)]

    def marker(self, look: int | None) -> str:
        """The marker of a series: another one once the colours begin again."""
        if look is None:
            return "*"
        return MARKERS[(look + look // len(self.colours)) % len(MARKERS)]

    def dash(self, look: int | None) -> str:
        """The line style of a series: neighbours differ, and so do series of one colour."""
        if look is None:
            return ":"
        return DASHES[(look + look // len(self.colours)) % len(DASHES)]

    def line(self, look: int | None) -> dict[str, Any]:
        """Colour, dash and marker of a series, as matplotlib's ``plot`` takes them."""
        return {"color": self.colour(look), "linestyle": self.dash(look), "marker": self.marker(look)}


# What figures are drawn in. The page and the SVG files put DARK's colours in their place: no two
# of these may be the same.
# Okabe and Ito's palette without its yellow (unreadable on white), darkest contrast first; then two
# of Tol's.
LIGHT = Theme(
    background="#FFFFFF",
    text="#1B1F24",
    grey="#7F7F7F",
    grid="#E6E6E6",
    colours=(
        *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
        *("#56B4E9", "#000000", "#882255", "#7F7F1F"),
    ),
)
# The same hues, as light as a dark page needs them.
DARK = Theme(
    background="#15181D",
    text="#E4E6EA",
    grey="#9AA0A8",
    grid="#2E333B",
    colours=(
        *("#4AA8EC", "#FF8447", "#2BC79A", "#E59CC8", "#F2B632"),
        *("#A6DBFF", "#FFFFFF", "#D9638F", "#C9C94F"),
    ),
)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """A figure of ``width`` x ``height`` inches with its own Agg canvas and no pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def tidy(axes: Axes) -> None:
    """Take the box away and lay a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=LIGHT.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def paint(figure: Figure) -> Figure:
    """Give a finished figure its background, and its text colour to what is still black."""
    figure.set_facecolor(LIGHT.background)
    for text in figure.findobj(Text):
        if text.get_color() == "black":
            text.set_color(LIGHT.text)
    for axes in figure.axes:
        axes.set_facecolor(LIGHT.background)
        for spine in axes.spines.values():
            if spine.get_edgecolor()[:3] == (0.0, 0.0, 0.0):
                spine.set_edgecolor(LIGHT.text)
        axes.tick_params(color=LIGHT.text, labelcolor=LIGHT.text)
    return figure


def legend_below(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """A legend (label -> artist) below the axes, in as many columns as there is room for."""
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


def tell(artist: Artist, texts: Sequence[str]) -> None:
    """Give the markers of a line, in order, or one shape, a tooltip in the figure's SVG."""
    artist.set_gid(_TOLD + json.dumps(list(texts)))


def told(gid: str) -> list[str]:
    """What :func:`tell` gave to the artist of that id; nothing for another one."""
    texts: list[str] = json.loads(gid.removeprefix(_TOLD)) if gid.startswith(_TOLD) else []
    return texts


def variables(theme: Theme) -> dict[str, str]:
    """The colours of a theme by the names of their variables in style sheets."""
    found = {"figure": theme.background, "ink": theme.text, "grey": theme.grey, "rule": theme.grid}
    return {**found, **{f"series-{number}": colour for number, colour in enumerate(theme.colours)}}
