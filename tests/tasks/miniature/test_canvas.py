"""The drawing kit against geometry worked out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.tasks.miniature import canvas
from sta_lightning.tasks.miniature.random import Uniforms, image_keys


@given(st.floats(-3, 3))
def test_sine_cosine(turns: float) -> None:
    sin, cos = canvas.sine_cosine(np.asarray([turns], dtype=np.float32))
    angle = 2 * math.pi * float(np.float32(turns))
    assert abs(float(sin[0]) - math.sin(angle)) < 5e-6
    assert abs(float(cos[0]) - math.cos(angle)) < 5e-6


def frame() -> canvas.Frame:
    return canvas.Frame(canvas.GRID_X, canvas.GRID_Y, np.full((1, 1), 2 / canvas.SIZE, dtype=np.float32))


def share(distance: np.ndarray) -> float:
    return float(frame().cover(distance).mean()) * 4  # the frame's area is 4


@pytest.mark.parametrize(
    ("distance", "area"),
    [
        (lambda f: f.circle(0.1, -0.1, 0.6), math.pi * 0.36),
        (lambda f: f.ellipse(0, 0, 0.8, 0.5), math.pi * 0.4),
        (lambda f: f.ring(0, 0, 0.6, 0.1), math.pi * (0.49 - 0.25)),
        (lambda f: f.box(0, 0.1, 0.5, 0.25), 0.5),
        (lambda f: f.line(-0.5, 0, 0.5, 0, 0.15), 0.3 + math.pi * 0.15**2),
        (lambda f: f.convex((-0.5, -0.5), (0.5, -0.5), (0, 0.5)), 0.5),
        (lambda f: canvas.minus(f.box(0, 0, 0.5, 0.5), f.circle(0, 0, 0.3)), 1 - math.pi * 0.09),
        (lambda f: canvas.union(f.box(-0.5, 0, 0.25, 0.25), f.box(0.5, 0, 0.25, 0.25)), 0.5),
    ],
)
def test_shapes_cover_their_area(distance, area) -> None:
    assert share(distance(frame())) == pytest.approx(area, rel=0.03)


def test_field_lies_in_the_unit_interval_and_varies() -> None:
    values = canvas.field(Uniforms(image_keys("field", np.arange(64))), 4)
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.std(axis=1).min() > 0.02


def test_camera_without_flaws_only_rounds() -> None:
    still = canvas.Style(contrast=(1, 1), brightness=0, cast=0, blur=0, noise=0)
    levels = np.linspace(0, 1, 3 * 1024, dtype=np.float32).reshape(1, 3, 1024)
    photo = canvas.camera(Uniforms(image_keys("camera", np.arange(1))), levels.copy(), still)
    np.testing.assert_allclose(photo.reshape(-1), np.round(levels.reshape(-1) * 255), atol=1)


def test_camera_blur_is_a_mean_of_nine() -> None:
    images = Uniforms(image_keys("blur", np.arange(2))).many(3 * 1024).reshape(2, 3, 1024)
    square = np.pad(
        images.reshape(2, 3, 32, 32).astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"
    )
    windows = np.lib.stride_tricks.sliding_window_view(square, (3, 3), axis=(2, 3)).mean(axis=(-1, -2))
    np.testing.assert_allclose(canvas._blurred(images).reshape(2, 3, 32, 32), windows, atol=1e-6)
