"""Everyday objects, the control set: plain shapes of one main colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    backdrop,
    by_class,
    colour,
    minus,
    other_colour,
    paint,
    place,
    union,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms

_SHAPES: dict[str, Callable[[Frame], Floats]] = {
    "ball": lambda f: f.circle(0, 0, 0.8),
    "box": lambda f: f.box(0, 0, 0.75, 0.75),
    "ring": lambda f: f.ring(0, 0, 0.65, 0.18),
    "moon": lambda f: minus(f.circle(0, 0, 0.85), f.circle(0.42, -0.1, 0.72)),
    "heart": lambda f: union(
        f.circle(-0.38, -0.3, 0.42),
        f.circle(0.38, -0.3, 0.42),
        f.convex((-0.78, -0.15), (0.78, -0.15), (0, 0.85)),
    ),
    "star": lambda f: union(
        f.convex((0, -0.95), (0.35, 0.3), (-0.35, 0.3)),
        f.convex((-0.95, -0.25), (0.95, -0.25), (0, 0.35)),
        minus(f.convex((0, -0.3), (0.62, 0.9), (-0.62, 0.9)), f.convex((0, 0.35), (0.7, 1.0), (-0.7, 1.0))),
    ),
    "house": lambda f: minus(
        union(f.convex((0, -0.9), (0.9, -0.1), (-0.9, -0.1)), f.box(0, 0.35, 0.65, 0.5)),
        f.box(0, 0.55, 0.17, 0.32),
    ),
    "tree": lambda f: union(f.circle(0, -0.3, 0.6), f.box(0, 0.6, 0.12, 0.35)),
    "fir": lambda f: union(
        f.convex((0, -0.95), (0.45, -0.2), (-0.45, -0.2)),
        f.convex((0, -0.6), (0.7, 0.55), (-0.7, 0.55)),
        f.box(0, 0.75, 0.1, 0.2),
    ),
    "fish": lambda f: union(f.ellipse(-0.15, 0, 0.65, 0.42), f.convex((0.35, 0), (0.9, -0.45), (0.9, 0.45))),
    "cup": lambda f: union(
        f.convex((-0.6, -0.6), (0.4, -0.6), (0.25, 0.7), (-0.45, 0.7)),
        minus(f.ellipse(0.45, -0.05, 0.4, 0.38), f.ellipse(0.45, -0.05, 0.22, 0.2)),
    ),
    "key": lambda f: union(
        f.ring(-0.5, 0, 0.3, 0.12),
        f.box(0.35, 0, 0.55, 0.09),
        f.box(0.55, 0.18, 0.08, 0.18),
        f.box(0.82, 0.18, 0.08, 0.18),
    ),
    "umbrella": lambda f: union(
        minus(f.circle(0, 0, 0.85), f.box(0, 0.6, 1, 0.6)),
        f.box(0, 0.4, 0.06, 0.42),
        f.line(0.02, 0.82, 0.25, 0.8, 0.07),
    ),
    "mushroom": lambda f: union(
        minus(f.ellipse(0, 0, 0.85, 0.75), f.box(0, 0.6, 1, 0.55)), f.box(0, 0.4, 0.22, 0.42)
    ),
    "cross": lambda f: union(f.box(0, 0, 0.22, 0.85), f.box(0, 0, 0.85, 0.22)),
    "hammer": lambda f: union(f.box(0, -0.55, 0.6, 0.22), f.box(0, 0.2, 0.11, 0.7)),
    "bottle": lambda f: union(f.box(0, 0.3, 0.35, 0.6), f.box(0, -0.6, 0.13, 0.35)),
    "glasses": lambda f: union(
        f.ring(-0.5, 0, 0.32, 0.09), f.ring(0.5, 0, 0.32, 0.09), f.line(-0.2, 0, 0.2, 0, 0.07)
    ),
    "boat": lambda f: union(
        f.convex((-0.9, 0.35), (0.9, 0.35), (0.55, 0.8), (-0.55, 0.8)),
        f.convex((0.05, -0.9), (0.7, 0.2), (0.05, 0.2)),
        f.box(-0.05, -0.2, 0.05, 0.6),
    ),
    "ladder": lambda f: union(
        f.box(-0.4, 0, 0.08, 0.9),
        f.box(0.4, 0, 0.08, 0.9),
        *(f.box(0, y, 0.4, 0.07) for y in (-0.6, -0.2, 0.2, 0.6)),
    ),
}
OBJECTS = tuple(_SHAPES)


def draw_objects(u: Uniforms, labels: Integers, style: Style) -> tuple[Floats, Integers, Integers]:
    """An object on a plain ground: the scenes, and the palette entries of object and ground."""
    f = place(u, style)
    ground = u.integers(11)
    ink = other_colour(u, ground)
    image = backdrop(u, colour(u, ground))
    cover = np.zeros_like(f.x)
    for shape, rows, part in by_class(f, labels, _SHAPES.values()):
        cover[rows] = part.cover(shape(part))
    paint(image, cover, colour(u, ink))
    return image, ink, ground
