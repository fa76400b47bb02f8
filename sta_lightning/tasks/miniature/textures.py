"""Textures: two-colour patterns that fill the frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    by_class,
    colour,
    field,
    flat,
    fold,
    other_colour,
    paint,
    place,
    sine_cosine,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms


def _edge(value: Floats, sharpness: Floats | float) -> Floats:
    return np.clip(np.float32(0.5) + value * np.float32(sharpness), 0, 1)


def _cells(f: Frame, u: Uniforms, density: Floats) -> tuple[Floats, Floats]:
    """Distances to the nearest and second nearest of points jittered on a lattice (Worley)."""
    px, py = u.many(81), u.many(81)
    x, y = f.x * density + np.float32(4.5), f.y * density + np.float32(4.5)
    cx, cy = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    nearest = np.full(x.shape, 9.0, dtype=np.float32)
    second = nearest.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            slot = np.clip(cy + dy, 0, 8) * 9 + np.clip(cx + dx, 0, 8)
            ox = np.take_along_axis(px, slot, axis=1) + (cx + dx).astype(np.float32) - x
            oy = np.take_along_axis(py, slot, axis=1) + (cy + dy).astype(np.float32) - y
            d = np.sqrt(ox * ox + oy * oy)
            second = np.minimum(second, np.maximum(nearest, d))
            nearest = np.minimum(nearest, d)
    return nearest, second


def _banded(f: Frame, u: Uniforms) -> Floats:
    return _edge(fold(f.x * u(1.5, 3)) - u(0.18, 0.3), 6)


def _chequered(f: Frame, u: Uniforms) -> Floats:
    k = u(1.2, 2.2)
    return _edge((fold(f.x * k) - np.float32(0.25)) * (fold(f.y * k) - np.float32(0.25)), 60)


def _dotted(f: Frame, u: Uniforms) -> Floats:
    k = u(1.5, 2.5)
    dx, dy = fold(f.x * k), fold(f.y * k)
    return _edge(u(0.2, 0.32) - np.sqrt(dx * dx + dy * dy), 7)


def _grid(f: Frame, u: Uniforms) -> Floats:
    k, w = u(1.5, 2.5), u(0.08, 0.14)
    return _edge(w - np.minimum(fold(f.x * k), fold(f.y * k)), 9)


def _zigzagged(f: Frame, u: Uniforms) -> Floats:
    return _edge(fold(f.y * u(1.5, 2.5) + fold(f.x * u(1.2, 2)) * u(0.8, 1.4)) - np.float32(0.25), 6)


def _wavy(f: Frame, u: Uniforms) -> Floats:
    wave, _ = sine_cosine(f.x * u(0.5, 0.9) + u())
    return _edge(fold(f.y * u(1.5, 2.5) + wave * u(0.25, 0.45)) - np.float32(0.25), 6)


def _woven(f: Frame, u: Uniforms) -> Floats:
    k = u(1.2, 2)
    x, y = f.x * k, f.y * k
    over = (np.floor(x) + np.floor(y)) * np.float32(0.5)
    across = over == np.floor(over)
    return np.where(across, _edge(fold(x * 3) - np.float32(0.2), 5), _edge(fold(y * 3) - np.float32(0.2), 5))


def _cracked(f: Frame, u: Uniforms) -> Floats:
    nearest, second = _cells(f, u, u(1.6, 2.6))
    return _edge(u(0.08, 0.14) - (second - nearest), 9)


def _bubbly(f: Frame, u: Uniforms) -> Floats:
    nearest, _ = _cells(f, u, u(1.6, 2.4))
    return _edge(np.float32(0.09) - np.abs(nearest - u(0.28, 0.38)), 9)


def _speckled(f: Frame, u: Uniforms) -> Floats:
    return (u.pixels(f.x.shape[1]) < u(0.12, 0.3)).astype(np.float32)


def _ringed(f: Frame, u: Uniforms) -> Floats:
    dx, dy = f.x - u(-0.4, 0.4), f.y - u(-0.4, 0.4)
    return _edge(fold(np.sqrt(dx * dx + dy * dy) * u(1.6, 2.8)) - np.float32(0.25), 6)


def _blotchy(f: Frame, u: Uniforms) -> Floats:
    return _edge(field(u, 5) - u(0.42, 0.58), 8)


_PATTERNS: dict[str, Callable[[Frame, Uniforms], Floats]] = {
    "banded": _banded,
    "chequered": _chequered,
    "polka-dotted": _dotted,
    "grid": _grid,
    "zigzagged": _zigzagged,
    "wavy": _wavy,
    "woven": _woven,
    "cracked": _cracked,
    "bubbly": _bubbly,
    "speckled": _speckled,
    "ringed": _ringed,
    "blotchy": _blotchy,
}
TEXTURES = tuple(_PATTERNS)


def draw_textures(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """A pattern in two colours, at any angle."""
    f = place(u, style)
    ground = u.integers(11)
    image = flat(colour(u, ground, 0.12))
    ink = colour(u, other_colour(u, ground), 0.12)
    shading = 1 + (field(u, 3) - np.float32(0.5)) * u(0, 0.5)
    cover = np.zeros_like(f.x)
    for pattern, rows, part in by_class(f, labels, _PATTERNS.values()):
        cover[rows] = pattern(part, u.rows(rows))
    paint(image, cover, ink)
    u.counter += 1024  # patterns draw different amounts; go on from one place whatever the batch holds
    return image * shading[:, None, :]
