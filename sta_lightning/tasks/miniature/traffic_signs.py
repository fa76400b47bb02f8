"""Traffic signs: a shape, a border and a symbol."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    backdrop,
    by_class,
    colour,
    field,
    minus,
    named,
    paint,
    place,
    union,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms

Layers = list[tuple[Floats, str]]  # signed distance and colour, bottom first


def _octagon(f: Frame, r: float) -> Floats:
    cut = r * 0.42
    return f.convex((-cut, -r), (cut, -r), (r, -cut), (r, cut), (cut, r), (-cut, r), (-r, cut), (-r, -cut))


def _arrow(f: Frame, dx: int, dy: int) -> Floats:
    """An arrow through the middle that points along (dx, dy)."""
    head = union(
        f.line(dx * 0.5, dy * 0.5, dx * 0.12 + dy * 0.38, dy * 0.12 + dx * 0.38, 0.09),
        f.line(dx * 0.5, dy * 0.5, dx * 0.12 - dy * 0.38, dy * 0.12 - dx * 0.38, 0.09),
    )
    return union(f.line(-dx * 0.5, -dy * 0.5, dx * 0.5, dy * 0.5, 0.1), head)


def _prohibition(f: Frame, *symbols: tuple[Floats, str]) -> Layers:
    return [(f.circle(0, 0, 0.95), "red"), (f.circle(0, 0, 0.7), "white"), *symbols]


def _warning(f: Frame, symbol: Floats) -> Layers:
    outer = f.convex((0, -0.98), (0.98, 0.8), (-0.98, 0.8))
    inner = f.convex((0, -0.55), (0.62, 0.6), (-0.62, 0.6))
    return [(outer, "red"), (inner, "white"), (symbol, "black")]


def _order(f: Frame, symbol: Floats) -> Layers:
    return [(f.circle(0, 0, 0.95), "blue"), (symbol, "white")]


def _diamond(f: Frame, r: float) -> Floats:
    return f.convex((0, -r), (r, 0), (0, r), (-r, 0))


_SIGNS: dict[str, Callable[[Frame], Layers]] = {
    "stop": lambda f: [
        (_octagon(f, 0.95), "white"),
        (_octagon(f, 0.85), "red"),
        (union(*(f.box(x, 0, 0.1, 0.28) for x in (-0.48, -0.16, 0.16, 0.48))), "white"),
    ],
    "yield": lambda f: [
        (f.convex((-0.98, -0.8), (0.98, -0.8), (0, 0.98)), "red"),
        (f.convex((-0.6, -0.58), (0.6, -0.58), (0, 0.52)), "white"),
    ],
    "no entry": lambda f: [(f.circle(0, 0, 0.95), "red"), (f.box(0, 0, 0.65, 0.17), "white")],
    "speed limit": lambda f: _prohibition(
        f,
        (
            union(
                f.line(-0.45, -0.3, -0.15, -0.3, 0.07),
                f.line(-0.15, -0.3, -0.15, 0.3, 0.07),
                f.line(-0.45, 0.3, -0.15, 0.3, 0.07),
                f.line(-0.4, 0, -0.15, 0, 0.07),
            ),
            "black",
        ),
        (minus(f.box(0.3, 0, 0.2, 0.37), f.box(0.3, 0, 0.07, 0.23)), "black"),
    ),
    "no overtaking": lambda f: _prohibition(
        f, (f.box(-0.3, 0.05, 0.2, 0.25), "red"), (f.box(0.3, 0.05, 0.2, 0.25), "black")
    ),
    "no vehicles": lambda f: _prohibition(f),
    "end of limits": lambda f: [
        (f.circle(0, 0, 0.95), "white"),
        (
            union(
                f.line(-0.55, 0.55, 0.55, -0.55, 0.06),
                f.line(-0.7, 0.35, 0.35, -0.7, 0.05),
                f.line(-0.35, 0.7, 0.7, -0.35, 0.05),
            ),
            "black",
        ),
    ],
    "priority road": lambda f: [(_diamond(f, 0.98), "white"), (_diamond(f, 0.72), "yellow")],
    "danger": lambda f: _warning(f, union(f.box(0, 0, 0.1, 0.3), f.circle(0, 0.47, 0.1))),
    "crossroads": lambda f: _warning(
        f, union(f.line(-0.22, 0.05, 0.22, 0.5, 0.08), f.line(0.22, 0.05, -0.22, 0.5, 0.08))
    ),
    "turn left": lambda f: _order(f, _arrow(f, -1, 0)),
    "turn right": lambda f: _order(f, _arrow(f, 1, 0)),
    "straight ahead": lambda f: _order(f, _arrow(f, 0, -1)),
    "roundabout": lambda f: _order(f, minus(f.ring(0, 0, 0.45, 0.11), f.box(0.3, -0.3, 0.14, 0.14))),
}
TRAFFIC_SIGNS = tuple(_SIGNS)


def draw_traffic_signs(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """A sign on a post in front of a street scene."""
    f = place(u, style)
    image = backdrop(u, colour(u, u.integers(11), 0.15))
    paint(image, np.clip((field(u, 3) - u(0.45, 0.75)) * 6, 0, 1), colour(u, u.integers(11), 0.15))
    paint(image, f.cover(f.box(0, 1.5, 0.07, 0.8)), named("grey"))
    fading = u(0.0, 0.3)
    for sign, rows, part in by_class(f, labels, _SIGNS.values()):
        scene = image[rows]
        for distance, name in sign(part):
            ink = named(name)[None, :] + (np.float32(0.5) - named(name)[None, :]) * fading[rows]
            paint(scene, part.cover(distance), ink)
        image[rows] = scene
    return image
