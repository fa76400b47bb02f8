"""Vehicles seen from the side: bodies, windows and wheels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    backdrop,
    by_class,
    colour,
    named,
    paint,
    place,
    union,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms

Parts = tuple[Floats, Floats, Floats]  # body, windows, wheels and other dark parts, as signed distances


def _wheels(f: Frame, *centres: float, r: float = 0.2, y: float = 0.45) -> Floats:
    return union(*(f.circle(cx, y, r) for cx in centres))


def _sedan(f: Frame) -> Parts:
    cabin = f.convex((-0.35, -0.3), (0.25, -0.3), (0.5, 0.05), (-0.6, 0.05))
    glass = union(
        f.convex((-0.3, -0.22), (-0.08, -0.22), (-0.08, 0.02), (-0.47, 0.02)),
        f.convex((0, -0.22), (0.2, -0.22), (0.38, 0.02), (0, 0.02)),
    )
    return union(cabin, f.box(0, 0.23, 0.95, 0.2)), glass, _wheels(f, -0.55, 0.55)


def _hatchback(f: Frame) -> Parts:
    cabin = f.convex((-0.7, -0.35), (0.15, -0.35), (0.45, 0.05), (-0.75, 0.05))
    glass = f.convex((-0.55, -0.27), (0.1, -0.27), (0.32, 0.02), (-0.6, 0.02))
    return union(cabin, f.box(0, 0.23, 0.75, 0.2)), glass, _wheels(f, -0.45, 0.45)


def _pickup(f: Frame) -> Parts:
    cabin = f.convex((-0.05, -0.45), (0.35, -0.45), (0.55, 0.05), (-0.05, 0.05))
    glass = f.convex((0.05, -0.36), (0.3, -0.36), (0.43, 0), (0.05, 0))
    return union(cabin, f.box(0, 0.22, 0.95, 0.18)), glass, _wheels(f, -0.6, 0.6, r=0.23)


def _van(f: Frame) -> Parts:
    body = f.convex((-0.85, -0.55), (0.45, -0.55), (0.9, 0.05), (0.9, 0.42), (-0.85, 0.42))
    return body, f.convex((0.25, -0.42), (0.42, -0.42), (0.68, 0), (0.25, 0)), _wheels(f, -0.5, 0.5)


def _bus(f: Frame) -> Parts:
    glass = union(*(f.box(x, -0.2, 0.13, 0.16) for x in (-0.75, -0.38, 0, 0.38, 0.75)))
    return f.box(0, 0, 0.98, 0.5), glass, _wheels(f, -0.6, 0.6, r=0.17, y=0.5)


def _lorry(f: Frame) -> Parts:
    body = union(f.box(-0.3, -0.12, 0.65, 0.5), f.box(0.7, 0.08, 0.25, 0.32), f.box(0, 0.4, 0.95, 0.06))
    return body, f.box(0.78, -0.05, 0.13, 0.12), _wheels(f, -0.65, -0.25, 0.65, r=0.17, y=0.52)


def _tractor(f: Frame) -> Parts:
    body = union(
        f.box(0.4, 0.1, 0.45, 0.2), f.box(-0.3, -0.3, 0.3, 0.38), f.line(0.55, -0.1, 0.55, -0.5, 0.05)
    )
    return body, f.box(-0.28, -0.38, 0.2, 0.18), union(f.circle(-0.42, 0.3, 0.42), f.circle(0.6, 0.5, 0.2))


def _motorcycle(f: Frame) -> Parts:
    body = union(
        f.line(-0.3, 0, 0.25, -0.05, 0.14),
        f.line(0.3, -0.45, 0.55, 0.4, 0.06),
        f.line(-0.55, -0.1, -0.2, 0, 0.08),
    )
    wheels = union(
        f.ring(-0.55, 0.4, 0.26, 0.1), f.ring(0.58, 0.4, 0.26, 0.1), f.line(0.15, -0.5, 0.35, -0.45, 0.05)
    )
    return body, f.circle(0, 0.25, 0.16), wheels


def _bicycle(f: Frame) -> Parts:
    frame = [
        (-0.5, 0.35, -0.2, -0.25),
        (-0.2, -0.25, 0.35, -0.25),
        (0.35, -0.25, 0, 0.35),
        (0, 0.35, -0.2, -0.25),
    ]
    bars = union(*(f.line(*ends, 0.045) for ends in frame), f.line(-0.5, 0.35, 0, 0.35, 0.045))
    fork = union(f.line(0.3, -0.5, 0.55, 0.35, 0.045), f.line(0.3, -0.5, 0.45, -0.55, 0.05))
    wheels = union(f.ring(-0.52, 0.35, 0.36, 0.045), f.ring(0.55, 0.35, 0.36, 0.045))
    return union(bars, fork), f.line(-0.32, -0.4, -0.1, -0.4, 0.06), wheels


def _locomotive(f: Frame) -> Parts:
    body = union(f.box(0.2, 0, 0.6, 0.26), f.box(-0.65, -0.15, 0.28, 0.5), f.box(0.6, -0.45, 0.1, 0.22))
    return body, f.box(-0.65, -0.35, 0.15, 0.15), _wheels(f, -0.7, -0.25, 0.2, 0.65, r=0.18)


def _tram(f: Frame) -> Parts:
    glass = union(*(f.box(x, -0.12, 0.18, 0.18) for x in (-0.68, -0.23, 0.23, 0.68)))
    wire = union(
        f.line(-0.2, -0.5, 0.05, -0.72, 0.03),
        f.line(0.05, -0.72, -0.2, -0.95, 0.03),
        f.line(-0.5, -0.95, 0.3, -0.95, 0.03),
    )
    return f.box(0, 0.02, 0.95, 0.5), glass, union(_wheels(f, -0.5, 0.5, r=0.1, y=0.58), wire)


def _forklift(f: Frame) -> Parts:
    body = union(
        f.box(-0.3, 0.2, 0.42, 0.25), f.line(-0.6, 0, -0.5, -0.6, 0.05), f.line(-0.5, -0.6, 0.05, -0.6, 0.05)
    )
    mast = union(
        f.line(0.25, -0.75, 0.25, 0.55, 0.06),
        f.line(0.25, 0.5, 0.85, 0.5, 0.05),
        f.line(0.05, -0.6, 0.1, 0.2, 0.04),
    )
    return body, f.box(0.6, 0.22, 0.25, 0.2), union(mast, _wheels(f, -0.55, 0, r=0.18, y=0.5))


_SHAPES: dict[str, Callable[[Frame], Parts]] = {
    "sedan": _sedan,
    "hatchback": _hatchback,
    "pickup truck": _pickup,
    "van": _van,
    "bus": _bus,
    "lorry": _lorry,
    "tractor": _tractor,
    "motorcycle": _motorcycle,
    "bicycle": _bicycle,
    "locomotive": _locomotive,
    "tram": _tram,
    "forklift": _forklift,
}
VEHICLES = tuple(_SHAPES)


def draw_vehicles(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """A vehicle of a random colour on a road, facing either way."""
    f = place(u, style)
    f.x = np.where(u() < 0.5, -f.x, f.x)
    ground = u.integers(11)
    image = backdrop(u, colour(u, ground, 0.1))
    road = np.clip((f.y - u(0.5, 0.7)) / f.pixel, 0, 1)
    paint(image, road, np.broadcast_to(u(0.2, 0.6), (len(u), 3)))
    body_colour = colour(u, (ground + 1 + u.integers(10)) % 11)
    glass_colour = colour(u, np.full(len(u), 9), 0.15) * np.float32(0.8)
    for shape, rows, part in by_class(f, labels, _SHAPES.values()):
        body, glass, dark = shape(part)
        scene = image[rows]
        paint(scene, part.cover(body), body_colour[rows])
        paint(scene, part.cover(glass), glass_colour[rows])
        paint(scene, part.cover(dark), named("black"))
        paint(scene, part.cover(dark + np.float32(0.12)), named("grey"))  # hubs
        image[rows] = scene
    return image
