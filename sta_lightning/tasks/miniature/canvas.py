"""The drawing kit of the embedded suite: coordinates, signed distances, paint, noise, the camera.

Only float32 additions, multiplications, divisions, square roots and comparisons are used, one
element at a time: these are rounded in one way by IEEE 754, so that an image has the same bytes on
every machine. (A library's ``sin`` or ``exp``, or a sum whose order depends on the processor, would
not.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms

T = TypeVar("T")
Number = float | Floats

SIZE = 32
"""Side of every image of the suite, in pixels."""

_PIXELS = SIZE * SIZE
_axis = (np.arange(SIZE, dtype=np.float32) * 2 + 1) / np.float32(SIZE) - 1
GRID_X: Floats = np.tile(_axis, SIZE)[None, :]
GRID_Y: Floats = np.repeat(_axis, SIZE)[None, :]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.15, 0.65, 0.22),
    "blue": (0.13, 0.30, 0.85),
    "purple": (0.55, 0.18, 0.70),
    "pink": (0.95, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.12),
    "black": (0.06, 0.06, 0.07),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.52),
}
COLOUR_NAMES = tuple(COLOURS)
_PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Style:
    """How a scene is photographed: what sets a task's pictures apart from the pretraining corpus.

    Attributes:
        rotation: Largest rotation either way, in turns.
        scale: Smallest and largest size of the object, 1 filling the frame.
        offset: Largest displacement either way; the frame is 2 wide.
        contrast: Smallest and largest contrast factor about mid-grey.
        brightness: Largest brightness shift either way, in units of full white.
        cast: Largest colour cast of a channel either way.
        blur: Largest weight of the 3×3 box blur, 0 to 1.
        noise: Largest amplitude of the pixel noise.
        clutter: Probability of each of the three foreign patches that may lie over the picture.
        invert: Probability that the picture is a negative.
        squeeze: Largest relative change of the aspect ratio either way.
        grey: Share of the colour that is lost, 0 to 1.
        exposure: Brightness shift of every picture alike, in units of full white.
        channels: Which channel each of red, green and blue shows; not in order, these are false
            colours.
    """

    rotation: float = 0.02
    scale: tuple[float, float] = (0.75, 0.95)
    offset: float = 0.12
    contrast: tuple[float, float] = (0.8, 1.0)
    brightness: float = 0.08
    cast: float = 0.05
    blur: float = 0.3
    noise: float = 0.05
    clutter: float = 0.0
    invert: float = 0.0
    squeeze: float = 0.1
    grey: float = 0.0
    exposure: float = 0.0
    channels: tuple[int, int, int] = (0, 1, 2)


def sine_cosine(turns: Floats) -> tuple[Floats, Floats]:
    """Return sin and cos of an angle in turns, by a polynomial good to 4e-6 (see the module)."""

    def sine(t: Floats) -> Floats:
        t = t - np.floor(t + np.float32(0.5))  # into [-1/2, 1/2)
        t = np.where(t > 0.25, np.float32(0.5) - t, np.where(t < -0.25, np.float32(-0.5) - t, t))
        a = t * np.float32(6.2831855)
        s = a * a
        even = np.float32(-1.9841270e-4) + s * np.float32(2.7557319e-6)
        even = np.float32(8.3333333e-3) + s * even
        even = np.float32(-1.6666667e-1) + s * even
        return a * (np.float32(1.0) + s * even)

    turns = np.asarray(turns, dtype=np.float32)
    return sine(turns), sine(turns + np.float32(0.25))


@dataclass
class Frame:
    """Every pixel's coordinates in the drawn thing's system; ``pixel`` is its width, ``[B, 1]``.

    The shapes are signed distances, negative inside; those of ``ellipse`` and ``convex`` hold near
    the outline.
    """

    x: Floats
    y: Floats
    pixel: Floats

    def cover(self, distance: Floats) -> Floats:
        """Turn signed distances into the covered share of each pixel."""
        return np.clip(np.float32(0.5) - distance / self.pixel, 0, 1)

    def circle(self, cx: Number, cy: Number, r: Number) -> Floats:
        """A disc."""
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        return np.sqrt(dx * dx + dy * dy) - np.float32(r)

    def ellipse(self, cx: float, cy: float, rx: Number, ry: Number) -> Floats:
        """An ellipse."""
        wide, high = np.float32(rx), np.float32(ry)
        dx, dy = (self.x - np.float32(cx)) / wide, (self.y - np.float32(cy)) / high
        return (np.sqrt(dx * dx + dy * dy) - 1) * np.minimum(wide, high)

    def ring(self, cx: float, cy: float, r: Number, half_width: float) -> Floats:
        """A ring of the given half width about a circle."""
        return np.abs(self.circle(cx, cy, r)) - np.float32(half_width)

    def box(self, cx: Number, cy: Number, hw: Number, hh: Number) -> Floats:
        """An upright rectangle of half width ``hw`` and half height ``hh``."""
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        return np.maximum(np.abs(dx) - np.float32(hw), np.abs(dy) - np.float32(hh))

    def line(self, x0: Number, y0: Number, x1: Number, y1: Number, half_width: Number) -> Floats:
        """A line with round ends."""
        ax, ay = np.float32(x1) - np.float32(x0), np.float32(y1) - np.float32(y0)
        px, py = self.x - np.float32(x0), self.y - np.float32(y0)
        t = np.clip((px * ax + py * ay) / (ax * ax + ay * ay + np.float32(1e-6)), 0, 1)
        dx, dy = px - t * ax, py - t * ay
        return np.sqrt(dx * dx + dy * dy) - np.float32(half_width)

    def convex(self, *corners: tuple[float, float]) -> Floats:
        """A convex polygon, its corners clockwise."""
        edges = []
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            ex, ey = x1 - x0, y1 - y0
            length = (ex * ex + ey * ey) ** 0.5
            dx, dy = self.x - np.float32(x0), self.y - np.float32(y0)
            edges.append(dx * np.float32(ey / length) - dy * np.float32(ex / length))
        return functools.reduce(np.maximum, edges)


def by_class(
    f: Frame, labels: Integers, things: Iterable[T]
) -> Iterator[tuple[T, npt.NDArray[np.intp], Frame]]:
    """Pair what draws a class with the rows of its images, where there are any, and their frame."""
    for label, thing in enumerate(things):
        rows = np.flatnonzero(labels == label)
        if len(rows):
            yield thing, rows, Frame(f.x[rows], f.y[rows], f.pixel[rows])


def place(u: Uniforms, style: Style) -> Frame:
    """Draw a pose (rotation, size, aspect, position) for each image within the style's limits."""
    sin, cos = sine_cosine(u(-style.rotation, style.rotation))
    size, aspect = u(*style.scale), u(1 - style.squeeze, 1 + style.squeeze)
    pixel: Floats = np.float32(2 / SIZE) / size
    dx, dy = u(-style.offset, style.offset), u(-style.offset, style.offset)
    x, y = GRID_X - dx, GRID_Y - dy
    along: Floats = (x * cos + y * sin) / (size * aspect)
    across = (y * cos - x * sin) / size
    return Frame(along, across.astype(np.float32, copy=False), pixel)


def union(*distances: Floats) -> Floats:
    """Signed distance to everything that any of the shapes covers."""
    return functools.reduce(np.minimum, distances)


def minus(shape: Floats, *holes: Floats) -> Floats:
    """Signed distance to a shape with others cut out of it."""
    for hole in holes:
        shape = np.maximum(shape, -hole)
    return shape


def paint(image: Floats, cover: Floats, colour: Floats) -> None:
    """Lay a colour ``[B, 3]`` or ``[3]`` over the share ``[B, P]`` of ``[B, 3, P]``, in place."""
    image += (np.broadcast_to(colour, (len(image), 3))[:, :, None] - image) * cover[:, None, :]


def colour(u: Uniforms, chosen: Integers, jitter: float = 0.08) -> Floats:
    """Return the palette's colours ``[B, 3]`` with some jitter."""
    return np.clip(_PALETTE[chosen] + u.many(3, -jitter, jitter), 0, 1)


def named(name: str) -> Floats:
    """Return a palette colour, shape ``[3]``."""
    return np.asarray(COLOURS[name], dtype=np.float32)


def other_colour(u: Uniforms, chosen: Integers) -> Integers:
    """Draw palette entries that differ from those given."""
    return (chosen + 1 + u.integers(len(_PALETTE) - 1)) % len(_PALETTE)


def fold(t: Floats) -> Floats:
    """Return the distance to the nearest whole number, 0 to 1/2."""
    return np.abs(t - np.floor(t + np.float32(0.5)))


def flat(colours: Floats) -> Floats:
    """Return images ``[B, 3, P]`` of one colour each."""
    return np.repeat(colours[:, :, None], _PIXELS, axis=2)


def field(u: Uniforms, cells: int) -> Floats:
    """Return a random field ``[B, P]`` in [0, 1], bilinear on a lattice of ``cells`` + 1 a side."""
    knots = u.many((cells + 1) ** 2).reshape(-1, cells + 1, cells + 1)
    position = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / SIZE)
    cell = np.minimum(position.astype(np.int64), cells - 1)
    t = position - cell.astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = knots[:, cell] + (knots[:, cell + 1] - knots[:, cell]) * t[None, :, None]
    smooth = rows[:, :, cell] + (rows[:, :, cell + 1] - rows[:, :, cell]) * t[None, None, :]
    return smooth.reshape(len(u), _PIXELS)


def backdrop(u: Uniforms, colours: Floats) -> Floats:
    """Return a background: a colour, shaded by a slope and by a faint smooth field."""
    shade = (
        1 + u(-0.25, 0.25) * GRID_X + u(-0.25, 0.25) * GRID_Y + (field(u, 4) - np.float32(0.5)) * u(0, 0.35)
    )
    return flat(colours) * shade[:, None, :]


def _blurred(image: Floats) -> Floats:
    square = image.reshape(len(image), 3, SIZE, SIZE)
    padded = np.pad(square, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    box_sum = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    return (box_sum * np.float32(1 / 9)).reshape(image.shape)


def camera(u: Uniforms, image: Floats, style: Style) -> npt.NDArray[np.uint8]:
    """Photograph scenes ``[B, 3, P]`` (about [0, 1]) in a style: bytes ``[B, 3, SIZE, SIZE]``."""
    for _ in range(3):
        present = (u() < style.clutter).astype(np.float32)
        patch = Frame(
            GRID_X - u(-1.1, 1.1), GRID_Y - u(-1.1, 1.1), np.full((len(u), 1), 2 / SIZE, dtype=np.float32)
        )
        cover = patch.cover(patch.box(0, 0, u(0.08, 0.35), u(0.08, 0.35))) * present
        paint(image, cover, colour(u, u.integers(len(_PALETTE)), 0.2))
    image = image[:, list(style.channels)]
    luminance = (image[:, 0:1] + image[:, 1:2] + image[:, 2:3]) * np.float32(1 / 3)
    image = image + (luminance - image) * np.float32(style.grey) + np.float32(style.exposure)
    image = image + (_blurred(image) - image) * u(0, style.blur)[:, :, None]
    half = np.float32(0.5)
    image = (
        (image - half) * u(*style.contrast)[:, :, None]
        + half
        + u(-style.brightness, style.brightness)[:, :, None]
    )
    image += u.many(3, -style.cast, style.cast)[:, :, None]
    negative = (u() < style.invert)[:, :, None]
    image = np.where(negative, 1 - image, image)
    grain = u.pixels(3 * _PIXELS).reshape(len(u), 3, _PIXELS) - half
    image += grain * (u(0, style.noise) * 2)[:, :, None]
    levels = np.floor(np.clip(image, 0, 1) * np.float32(255) + half)
    return levels.astype(np.uint8).reshape(len(u), 3, SIZE, SIZE)
