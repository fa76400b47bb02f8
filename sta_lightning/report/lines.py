"""Lines with their spread: accuracy against a setting, and one accuracy against another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Outline
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from sta_lightning.report.grid import Number
from sta_lightning.report.style import LEVELS, LIGHT, legend_below, new_figure, paint, tell, tidy

# Where a label may lie, seen from its point, in steps: right and up.
_OFFSETS = (
    *((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)),
    *((2, 0), (-2, 0), (0, 2), (0, -2), (1, 2), (-1, 2), (1, -2), (-1, -2), (1, -3), (0, -3), (-1, 3)),
)


@dataclass(frozen=True)
class Band:
    """A line with a band of one standard deviation.

    Attributes:
        label: in the legend.
        points: x and what was measured there, in the order of x.
        look: number of its colour, marker and dash.
        used: values of x that are starred, the settings of the tables.
    """

    label: str
    points: Sequence[tuple[float, Number]]
    look: int | None
    used: Collection[float] = ()


class Station(NamedTuple):
    """A point of a path."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Path:
    """A line through the plane of two measured numbers, in the order of the setting."""

    label: str
    stations: Sequence[Station]
    look: int | None


def band_figure(
    bands: Sequence[Band],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    powers: bool = False,
    whole: bool = False,
) -> Figure:
    """A line and a band for each series.

    ``levels`` are level lines, of what is not varied, by their names in the legend. With
    ``powers`` the x axis is logarithmic, to base 2; with ``whole`` x are whole numbers.
    """
    figure = new_figure(7.6, 4.9, title)
    axes = figure.add_subplot()
    entries: dict[str, Artist] = {}
    stars = None
    for band in bands:
        colour = LIGHT.colour(band.look)
        x = [value for value, _ in band.points]
        mean = [found.mean for _, found in band.points]
        (line,) = axes.plot(x, mean, **LIGHT.line(band.look), markersize=5, linewidth=1.7, zorder=3)
        tell(line, [f"{band.label} at {value:g}: {found}%" for value, found in band.points])
        entries[band.label] = line
        reach = [found.std or 0.0 for _, found in band.points]
        if any(reach):
            low, high = (
                [value + side * std for value, std in zip(mean, reach, strict=True)] for side in (-1, 1)
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
        for value, found in band.points:
            if value in band.used:
                axes.plot(value, found.mean, **_star(colour), zorder=4)
                stars = Line2D([], [], **_star(LIGHT.background))
    for number, (label, value) in enumerate((levels or {}).items()):
        entries[label] = axes.axhline(
            value, color=LIGHT.grey, linestyle=LEVELS[number % len(LEVELS)], linewidth=1.3, zorder=1
        )
    if stars is not None:
        entries["setting used in the tables"] = stars
    if powers:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for band in bands for x, _ in band.points})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    tidy(axes)
    legend_below(figure, entries)
    return paint(figure)


def path_figure(
    paths: Sequence[Path],
    *,
    title: str,
    x_label: str,
    y_label: str,
    start: tuple[str, float, float] | None = None,
) -> Figure:
    """Paths through the plane, the first and last station of each labelled.

    ``start`` is the name and place of where all begin, such as the pretrained model.
    """
    figure = new_figure(7.6, 5.4, title)
    axes = figure.add_subplot()
    entries: dict[str, Artist] = {}
    for path in paths:
        (line,) = axes.plot(
            [station.x for station in path.stations],
            [station.y for station in path.stations],
            **LIGHT.line(path.look),
            markersize=5.5,
            linewidth=1.7,
            zorder=3,
        )
        tell(line, [f"{path.label}: {each.label}: {each.x:.1f}%, {each.y:.1f}%" for each in path.stations])
        entries[path.label] = line
    if start is not None:
        name, x, y = start
        (entries[name],) = axes.plot(x, y, **_star(LIGHT.grey), zorder=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(0.14, 0.12)
    tidy(axes)
    legend_below(figure, entries)
    paint(figure)
    _label_ends(figure, axes, paths, start)
    return figure


def _star(colour: str) -> dict[str, Any]:
    style = {"linestyle": "none", "marker": "*", "color": colour, "markeredgecolor": LIGHT.text}
    return {**style, "markersize": 14}


def _label_ends(
    figure: Figure, axes: Axes, paths: Sequence[Path], start: tuple[str, float, float] | None
) -> None:
    """Write the ends' labels where nothing else lies; leave one out that fits nowhere."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    place = axes.transData.transform
    lines = [Outline(place([station[:2] for station in path.stations])) for path in paths]
    star = [] if start is None else [Bbox([place(start[1:])] * 2).padded(9 * figure.dpi / 72)]
    taken: list[Bbox] = []
    for path in paths:
        for station in dict.fromkeys((path.stations[0], path.stations[-1])):
            point: tuple[float, ...] = tuple(place(station[:2]))
            for right, up in _OFFSETS:
                label = _annotate(axes, station, right, up, LIGHT.colour(path.look))
                label.update_positions(renderer)
                # Of the text alone: the annotation's own box holds the line to its point, too.
                box = Text.get_window_extent(label, renderer)
                around = box.padded(3)
                leader = Outline([point, ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)])
                if (
                    inside.count_contains(box.corners()) == 4
                    and not any(line.intersects_bbox(around, filled=False) for line in lines)
                    and not any(around.overlaps(other) for other in (*star, *taken))
                    and not any(leader.intersects_bbox(other) for other in taken)
                ):
                    taken.append(box)
                    lines.append(leader)
                    break
                label.remove()


def _annotate(axes: Axes, station: Station, right: int, up: int, colour: str) -> Annotation:
    return axes.annotate(
        station.label,
        station[:2],
        xytext=(9 * right, 9 * up),
        textcoords="offset points",
        ha="left" if right > 0 else "right" if right else "center",
        va="bottom" if up > 0 else "top" if up else "center",
        fontsize=8.5,
        color=LIGHT.text,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 2},
        zorder=5,
    )
