"""Heat maps: a share in percent in every cell, as colour and as number."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sta_lightning.report.grid import Grid, Number
from sta_lightning.report.style import LIGHT, new_figure, paint, tell

# Text stands on the strongest colour as readably as on the background, light or dark.
_STRONGEST = 0.55


def heat_figure(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float | None]], *, title: str
) -> Figure:
    """Shares in percent by row (top to bottom) and column; ``None`` where there is none."""
    figure = new_figure(7.6, 0.31 * len(rows) + 1.9, title)
    axes = figure.add_subplot()
    present = [share for line in shares for share in line if share is not None]
    low, high = min(present), max(present)
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            text = "–" if share is None else f"{share:.{int(high < 10)}f}"
            colour = LIGHT.text
            if share is None:
                colour = LIGHT.grey
            else:
                strength = _STRONGEST * (share - low) / (high - low) if high > low else 0.0
                cell = Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=LIGHT.colours[0], alpha=strength)
                tell(axes.add_patch(cell), [f"{rows[y]}, {columns[x]}: {share:.2f}%"])
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    places = [x + 0.5 for x in range(len(columns))]
    axes.set_xticks(places, list(columns), fontsize=9, rotation=30, ha="right")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], list(rows), fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return paint(figure)


def grid_figure(grid: Grid, title: str | None = None) -> Figure:
    """The numbers of a table, which are shares in percent; ``title`` is ``None`` for its own."""
    return heat_figure(
        [line.label for line in grid.lines],
        [column.name for column in grid.columns],
        [[cell.mean if isinstance(cell, Number) else None for cell in line.cells] for line in grid.lines],
        title=title or grid.title,
    )
