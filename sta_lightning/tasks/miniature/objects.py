"""Everyday objects, the control set: plain shapes of one main colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    backdrop,
    box,
    circle,
    colour,
    convex,
    ellipse,
    line,
    minus,
    other_colour,
    paint,
    place,
    ring,
    union,
)
from sta_lightning.tasks.miniature.random import Floats, Uniforms

_SHAPES: dict[str, Callable[[Frame], Floats]] = {
    "ball": lambda f: circle(f, 0, 0, 0.8),
    "box": lambda f: box(f, 0, 0, 0.75, 0.75),
    "ring": lambda f: ring(f, 0, 0, 0.65, 0.18),
    "moon": lambda f: minus(circle(f, 0, 0, 0.85), circle(f, 0.42, -0.1, 0.72)),
    "heart": lambda f: union(
        circle(f, -0.38, -0.3, 0.42),
        circle(f, 0.38, -0.3, 0.42),
        convex(f, (-0.78, -0.15), (0.78, -0.15), (0, 0.85)),
    ),
    "star": lambda f: union(
        convex(f, (0, -0.95), (0.35, 0.3), (-0.35, 0.3)),
        convex(f, (-0.95, -0.25), (0.95, -0.25), (0, 0.35)),
        minus(convex(f, (0, -0.3), (0.62, 0.9), (-0.62, 0.9)), convex(f, (0, 0.35), (0.7, 1.0), (-0.7, 1.0))),
    ),
    "house": lambda f: minus(
        union(convex(f, (0, -0.9), (0.9, -0.1), (-0.9, -0.1)), box(f, 0, 0.35, 0.65, 0.5)),
        box(f, 0, 0.55, 0.17, 0.32),
    ),
    "tree": lambda f: union(circle(f, 0, -0.3, 0.6), box(f, 0, 0.6, 0.12, 0.35)),
    "fir": lambda f: union(
        convex(f, (0, -0.95), (0.45, -0.2), (-0.45, -0.2)),
        convex(f, (0, -0.6), (0.7, 0.55), (-0.7, 0.55)),
        box(f, 0, 0.75, 0.1, 0.2),
    ),
    "fish": lambda f: union(
        ellipse(f, -0.15, 0, 0.65, 0.42), convex(f, (0.35, 0), (0.9, -0.45), (0.9, 0.45))
    ),
    "cup": lambda f: union(
        convex(f, (-0.6, -0.6), (0.4, -0.6), (0.25, 0.7), (-0.45, 0.7)),
        minus(ellipse(f, 0.45, -0.05, 0.4, 0.38), ellipse(f, 0.45, -0.05, 0.22, 0.2)),
    ),
    "key": lambda f: union(
        ring(f, -0.5, 0, 0.3, 0.12),
        box(f, 0.35, 0, 0.55, 0.09),
        box(f, 0.55, 0.18, 0.08, 0.18),
        box(f, 0.82, 0.18, 0.08, 0.18),
    ),
    "umbrella": lambda f: union(
        minus(circle(f, 0, 0, 0.85), box(f, 0, 0.6, 1, 0.6)),
        box(f, 0, 0.4, 0.06, 0.42),
        line(f, 0.02, 0.82, 0.25, 0.8, 0.07),
    ),
    "mushroom": lambda f: union(
        minus(ellipse(f, 0, 0, 0.85, 0.75), box(f, 0, 0.6, 1, 0.55)), box(f, 0, 0.4, 0.22, 0.42)
    ),
    "cross": lambda f: union(box(f, 0, 0, 0.22, 0.85), box(f, 0, 0, 0.85, 0.22)),
    "hammer": lambda f: union(box(f, 0, -0.55, 0.6, 0.22), box(f, 0, 0.2, 0.11, 0.7)),
    "bottle": lambda f: union(box(f, 0, 0.3, 0.35, 0.6), box(f, 0, -0.6, 0.13, 0.35)),
    "glasses": lambda f: union(
        ring(f, -0.5, 0, 0.32, 0.09), ring(f, 0.5, 0, 0.32, 0.09), line(f, -0.2, 0, 0.2, 0, 0.07)
    ),
    "boat": lambda f: union(
        convex(f, (-0.9, 0.35), (0.9, 0.35), (0.55, 0.8), (-0.55, 0.8)),
        convex(f, (0.05, -0.9), (0.7, 0.2), (0.05, 0.2)),
        box(f, -0.05, -0.2, 0.05, 0.6),
    ),
    "ladder": lambda f: union(
        box(f, -0.4, 0, 0.08, 0.9),
        box(f, 0.4, 0, 0.08, 0.9),
        *(box(f, 0, y, 0.4, 0.07) for y in (-0.6, -0.2, 0.2, 0.6)),
    ),
}
OBJECTS = tuple(_SHAPES)


def draw_objects(
    u: Uniforms, labels: npt.NDArray[np.int64], style: Style
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """An object on a plain ground: the scenes, and the palette entries of object and ground."""
    f = place(u, style)
    ground = u.integers(11)
    ink = other_colour(u, ground)
    image = backdrop(u, colour(u, ground))
    ink_colour = colour(u, ink)
    for label, shape in enumerate(_SHAPES.values()):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            continue
        part = Frame(f.x[rows], f.y[rows], f.pixel[rows])
        scene = image[rows]
        paint(scene, part.cover(shape(part)), ink_colour[rows])
        image[rows] = scene
    return image, ink, ground
