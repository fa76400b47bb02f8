"""Land cover seen from above: fields, woods, water and buildings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sta_lightning.tasks.miniature.canvas import (
    Frame,
    Style,
    by_class,
    field,
    flat,
    fold,
    paint,
    place,
    sine_cosine,
)
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms


def _tone(u: Uniforms, r: float, g: float, b: float, spread: float = 0.06) -> Floats:
    base = np.asarray([r, g, b], dtype=np.float32)
    return base + u.many(3, -spread, spread) + u(-spread, spread)


def _rough(u: Uniforms, image: Floats, amount: float) -> Floats:
    """Add fine grain, the same in every channel."""
    return image + ((u.pixels(image.shape[2]) - np.float32(0.5)) * np.float32(amount))[:, None, :]


def _parcels(f: Frame, u: Uniforms, image: Floats, tones: tuple[Floats, Floats, Floats]) -> None:
    """Divide the land into strips of three tones."""
    strips = np.floor(f.x * u(0.9, 1.6) + np.where(f.y > u(-0.4, 0.4), u(0, 1), np.float32(0)) + 8)
    kind = strips - 3 * np.floor(strips / 3)
    for index, tone in enumerate(tones):
        paint(image, (kind == index).astype(np.float32), tone)


def _annual_crop(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.62, 0.52, 0.36))
    _parcels(
        f, u, image, (_tone(u, 0.62, 0.52, 0.36), _tone(u, 0.52, 0.47, 0.28), _tone(u, 0.70, 0.62, 0.45))
    )
    return _rough(u, image, 0.08)


def _forest(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.12, 0.24, 0.15))
    paint(image, field(u, 10) * np.float32(0.5), _tone(u, 0.05, 0.12, 0.08, 0.02))
    return _rough(u, image, 0.1)


def _herbaceous(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.42, 0.46, 0.26))
    paint(image, np.clip((field(u, 7) - np.float32(0.4)) * 2, 0, 1), _tone(u, 0.27, 0.34, 0.18))
    return _rough(u, image, 0.15)


def _pasture(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.36, 0.53, 0.26))
    paint(image, field(u, 2) * np.float32(0.5), _tone(u, 0.45, 0.60, 0.32))
    hedge = np.minimum(np.abs(f.x - u(-0.7, 0.7)), np.abs(f.y - u(-0.7, 0.7)))
    paint(image, f.cover(hedge - np.float32(0.05)) * np.float32(0.6), _tone(u, 0.15, 0.28, 0.14))
    return _rough(u, image, 0.04)


def _permanent_crop(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.60, 0.53, 0.38))
    k = u(2.4, 3.4)
    dx, dy = fold(f.x * k), fold(f.y * k)
    trees = np.clip((np.float32(0.33) - np.sqrt(dx * dx + dy * dy)) * 6, 0, 1)
    paint(image, trees, _tone(u, 0.24, 0.38, 0.18))
    return _rough(u, image, 0.06)


def _roofs(f: Frame, u: Uniforms, image: Floats, k: Floats, size: Floats, tone: Floats, share: float) -> None:
    cell = (np.floor(f.x * k + 8) * 16 + np.floor(f.y * k + 8)).astype(np.int64)
    built = np.take_along_axis(u.many(256), np.clip(cell, 0, 255), axis=1) < share
    dx, dy = f.x * k - np.floor(f.x * k) - np.float32(0.5), f.y * k - np.floor(f.y * k) - np.float32(0.5)
    roof = np.clip((size - np.maximum(np.abs(dx), np.abs(dy))) * 8, 0, 1)
    paint(image, roof * built, tone)


def _residential(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.38, 0.42, 0.33))
    _roofs(f, u, image, u(3, 4), u(0.28, 0.36), _tone(u, 0.66, 0.42, 0.34), 0.85)
    street = np.minimum(np.abs(f.x - u(-0.6, 0.6)), np.abs(f.y - u(-0.6, 0.6)))
    paint(image, f.cover(street - np.float32(0.06)), _tone(u, 0.58, 0.57, 0.56))
    return _rough(u, image, 0.1)


def _industrial(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.48, 0.47, 0.46))
    _roofs(f, u, image, u(1.0, 1.6), u(0.34, 0.42), _tone(u, 0.82, 0.83, 0.86), 0.8)
    return _rough(u, image, 0.08)


def _highway(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.45, 0.50, 0.32))
    paint(image, np.clip((field(u, 3) - np.float32(0.5)) * 3, 0, 1), _tone(u, 0.58, 0.52, 0.38))
    across = f.x - u(-0.4, 0.4) + (f.y * f.y) * u(-0.2, 0.2)
    paint(image, f.cover(np.abs(across) - u(0.12, 0.2)), _tone(u, 0.60, 0.60, 0.61))
    paint(image, f.cover(np.abs(across) - np.float32(0.03)), _tone(u, 0.40, 0.42, 0.38))
    return _rough(u, image, 0.07)


def _river(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.36, 0.46, 0.28))
    paint(image, np.clip((field(u, 3) - np.float32(0.5)) * 3, 0, 1), _tone(u, 0.50, 0.50, 0.34))
    bend, _ = sine_cosine(f.y * u(0.2, 0.45) + u())
    paint(
        image,
        f.cover(np.abs(f.x - u(-0.3, 0.3) + bend * u(0.15, 0.4)) - u(0.14, 0.28)),
        _tone(u, 0.16, 0.28, 0.38),
    )
    return _rough(u, image, 0.06)


def _sea_or_lake(f: Frame, u: Uniforms) -> Floats:
    image = flat(_tone(u, 0.10, 0.20, 0.36))
    paint(image, field(u, 3) * np.float32(0.4), _tone(u, 0.15, 0.33, 0.46))
    shore = np.clip((f.x - u(0.55, 1.6)) / f.pixel, 0, 1)
    paint(image, shore, _tone(u, 0.55, 0.52, 0.40))
    return _rough(u, image, 0.03)


_KINDS: dict[str, Callable[[Frame, Uniforms], Floats]] = {
    "annual crop": _annual_crop,
    "forest": _forest,
    "herbaceous vegetation": _herbaceous,
    "highway": _highway,
    "industrial buildings": _industrial,
    "pasture": _pasture,
    "permanent crop": _permanent_crop,
    "residential buildings": _residential,
    "river": _river,
    "sea or lake": _sea_or_lake,
}
LAND_COVER = tuple(_KINDS)


def draw_land_cover(u: Uniforms, labels: Integers, style: Style) -> Floats:
    """Land from above, north anywhere (give the style a rotation of half a turn)."""
    f = place(u, style)
    image = np.empty((len(u), 3, f.x.shape[1]), dtype=np.float32)
    for kind, rows, part in by_class(f, labels, _KINDS.values()):
        image[rows] = kind(part, u.rows(rows))
    u.counter += 1024  # kinds draw different amounts; go on from one place whatever the batch holds
    return image
