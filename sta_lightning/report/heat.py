"""Heat maps: a share in percent in every cell, as colour and as number."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from sta_lightning.report.style import LIGHT, Theme, new_figure, paint


def heat_figure(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    *,
    title: str,
    bar_label: str,
    theme: Theme = LIGHT,
) -> Figure:
    """Shares in percent by row (top to bottom) and column; ``None`` where there is none."""
    figure = new_figure(7.6, 0.31 * len(rows) + 1.9, title)
    axes = figure.add_subplot()
    present = [share for line in shares for share in line if share is not None]
    low, high = min(present), max(present)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    numbers = [[float("nan") if share is None else share for share in line] for line in shares]
    mesh = axes.pcolormesh(
        numbers, cmap=theme.heat, vmin=low, vmax=high, edgecolors=theme.background, linewidth=1.5
    )
    colours = matplotlib.colormaps[theme.heat]
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            text, colour = "–", theme.grey
            if share is not None:
                red, green, blue, _ = colours((share - low) / (high - low))
                bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
                text, colour = f"{share:.{int(high < 10)}f}", "#111111" if bright else "#FFFFFF"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
    places = [x + 0.5 for x in range(len(columns))]
    axes.set_xticks(places, list(columns), fontsize=9, rotation=30, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows), fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(bar_label, fontsize=9)
    bar.outline.set_visible(False)
    return paint(figure, theme)
