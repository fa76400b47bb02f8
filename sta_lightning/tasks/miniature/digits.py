"""Handwritten digits and street numbers: ten glyphs made of strokes."""

from __future__ import annotations

import itertools

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    backdrop,
    by_class,
    colour,
    flat,
    other_colour,
    paint,
    place,
    sine_cosine,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Points = list[tuple[float, float]]


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float, steps: int) -> Points:
    """Points of an elliptic arc; angles in turns, 0 at the right, 1/4 at the bottom."""
    turns = np.asarray([start + (end - start) * i / steps for i in range(steps + 1)], dtype=np.float32)
    sin, cos = sine_cosine(turns)
    return [(cx + rx * float(c), cy + ry * float(s)) for s, c in zip(sin, cos, strict=True)]


# One or two strokes a digit, in a frame where the glyph spans about ±0.6 by ±0.9 (y grows
# downwards).
_GLYPHS: tuple[tuple[Points, ...], ...] = (
    (_arc(0, 0, 0.5, 0.85, 0, 1, 12),),
    ([(-0.25, -0.55), (0.08, -0.85), (0.08, 0.85)],),
    ([*_arc(0, -0.4, 0.48, 0.45, 0.5, 1.1, 7), (-0.5, 0.85), (0.55, 0.85)],),
    ([*_arc(0, -0.43, 0.42, 0.42, 0.6, 1.25, 6), *_arc(0, 0.42, 0.5, 0.45, 0.75, 1.4, 7)],),
    ([(0.2, -0.85), (-0.5, 0.3), (0.55, 0.3)], [(0.25, -0.2), (0.25, 0.85)]),
    ([(0.45, -0.85), (-0.35, -0.85), (-0.42, -0.1), *_arc(0, 0.3, 0.5, 0.55, 0.68, 1.4, 8)],),
    ([(0.35, -0.85), (-0.2, -0.4), *_arc(0, 0.4, 0.45, 0.45, 0.5, 1.5, 10)],),
    ([(-0.5, -0.85), (0.5, -0.85), (0.2, -0.1), (-0.1, 0.85)],),
    (_arc(0, -0.43, 0.38, 0.4, 0.25, 1.25, 9), _arc(0, 0.42, 0.46, 0.43, 0.75, 1.75, 9)),
    ([*_arc(0.02, -0.38, 0.43, 0.46, 0.0, -1.0, 10), (0.45, 0.1), (0.2, 0.85)],),
)


def _glyph(f: Frame, u: Uniforms, labels: Integers, wobble: float, width: Floats) -> Floats:
    """Signed distance to one digit's strokes per image, points displaced by up to ``wobble``."""
    distance = np.full(f.x.shape, 9.0, dtype=np.float32)
    slots = max(sum(len(stroke) for stroke in strokes) for strokes in _GLYPHS)
    shift_x, shift_y = u.many(slots, -wobble, wobble), u.many(slots, -wobble, wobble)
    for strokes, rows, frame in by_class(f, labels, _GLYPHS):
        nearest = np.full(frame.x.shape, 9.0, dtype=np.float32)
        slot = 0
        for stroke in strokes:
            # A closed outline wobbles as one: neighbouring points move alike, by a running mean of
            # the draws.
            ends: list[tuple[Floats, Floats]] = []
            for x, y in stroke:
                after = (slot + 1) % slots
                move_x = (shift_x[rows, slot] + shift_x[rows, after]) * np.float32(0.5)
                move_y = (shift_y[rows, slot] + shift_y[rows, after]) * np.float32(0.5)
                ends.append(((np.float32(x) + move_x)[:, None], (np.float32(y) + move_y)[:, None]))
                slot += 1
            for (x0, y0), (x1, y1) in itertools.pairwise(ends):
                nearest = np.minimum(nearest, frame.line(x0, y0, x1, y1, 0))
        distance[rows] = nearest
    return distance - width


def draw_digits(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """Handwriting: bright ink on a dark ground, slanted, wobbly, of varying stroke width."""
    f = place(u, style)
    f.x = f.x + f.y * u(-0.35, 0.35)
    cover = f.cover(_glyph(f, u, labels, 0.2, u(0.07, 0.17)))
    image = flat(np.broadcast_to(u(0.0, 0.12), (len(u), 3)))
    paint(image, cover, np.broadcast_to(u(0.8, 1.0), (len(u), 3)))
    return image


def draw_street_numbers(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """House numbers: a printed digit on a coloured plate, parts of other digits at its sides."""
    f = place(u, style)
    ground = u.integers(11)
    image = backdrop(u, colour(u, ground, 0.15))
    ink = colour(u, other_colour(u, ground), 0.12)
    width = u(0.09, 0.17)
    for side in (-1, 1):
        aside = Frame(f.x + side * u(1.35, 1.6), f.y, f.pixel)
        shown = (u() < 0.6).astype(np.float32)
        paint(image, f.cover(_glyph(aside, u, u.integers(10), 0.04, width)) * shown, ink)
    paint(image, f.cover(_glyph(f, u, labels, 0.05, width)), ink)
    return image
