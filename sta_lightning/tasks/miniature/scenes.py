"""The seven sets of the embedded suite: what each draws, class names, prompts, two styles.

The gap between the styles, and how seldom the corpus names a class, make zero-shot accuracy what it
is: middling, as CLIP's is on the sets that these mirror.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sta_lightning.tasks.miniature.canvas import Style, camera
from sta_lightning.tasks.miniature.digits import DIGITS, draw_digits, draw_street_numbers
from sta_lightning.tasks.miniature.land_cover import LAND_COVER, draw_land_cover
from sta_lightning.tasks.miniature.objects import OBJECTS, draw_objects
from sta_lightning.tasks.miniature.random import Floats, Integers, Uniforms, image_keys
from sta_lightning.tasks.miniature.textures import TEXTURES, draw_textures
from sta_lightning.tasks.miniature.traffic_signs import TRAFFIC_SIGNS, draw_traffic_signs
from sta_lightning.tasks.miniature.vehicles import VEHICLES, draw_vehicles

VERSION = 1
"""Raise it when any picture changes: it is part of every image's key and of the cache's name."""

Draw = Callable[[Uniforms, Integers, Style], Floats]


@dataclass(frozen=True)
class Scene:
    """One set of the suite.

    Attributes:
        draw: Renders scenes for given labels.
        class_names: The classes, in label order.
        templates: Prompt templates; ``{}`` stands for the class name.
        web: The style in which the pretraining corpus shows the domain.
        task: The style of the task's own images.
    """

    draw: Draw
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    web: Style
    task: Style


_WEB = Style(rotation=0.03, scale=(0.65, 0.95), offset=0.2, contrast=(0.5, 1.0), noise=0.12, blur=0.6)
_DIM = replace(_WEB, contrast=(0.3, 0.45), exposure=-0.3, grey=0.7, noise=0.04, blur=Style.blur)
_PLAIN = Style(rotation=0.05, scale=(0.6, 0.95), offset=0.2, contrast=(0.6, 1.0), noise=0.1, blur=0.6)

SCENES: dict[str, Scene] = {
    "digits": Scene(
        draw_digits,
        DIGITS,
        ("a photo of the number {}.", "the handwritten digit {}."),
        web=replace(_WEB, invert=0.5, cast=0.15, rotation=0.04, scale=(0.6, 0.95), blur=0.7),
        task=Style(rotation=0.05, scale=(0.4, 0.55), offset=0.3, contrast=(0.6, 1.0), noise=0.1, blur=0.6),
    ),
    "vehicles": Scene(
        draw_vehicles, VEHICLES, ("a photo of a {}.", "a {} on the road."), web=_WEB, task=_DIM
    ),
    "street_numbers": Scene(
        draw_street_numbers,
        DIGITS,
        ("a photo of the number {}.", "a street sign of the number {}."),
        web=replace(_WEB, offset=0.15),
        task=Style(rotation=0.03, scale=(0.44, 0.58), offset=0.15, contrast=(0.5, 0.9), noise=0.04),
    ),
    "traffic_signs": Scene(
        draw_traffic_signs,
        TRAFFIC_SIGNS,
        ("a photo of a {} traffic sign.", "the {} sign."),
        web=replace(_WEB, scale=(0.55, 0.95)),
        task=replace(_DIM, scale=(0.55, 0.95), contrast=(0.35, 0.5), grey=1.0, noise=0.08),
    ),
    "textures": Scene(
        draw_textures,
        TEXTURES,
        ("a photo of a {} texture.", "a {} pattern."),
        web=Style(rotation=0.5, scale=(0.7, 1.1), contrast=(0.5, 1.0), noise=0.12, blur=0.6),
        task=Style(
            scale=(1.1, 1.4),
            contrast=(0.45, 0.75),
            exposure=-0.25,
            grey=0.4,
            noise=0.02,
            blur=0.1,
            squeeze=0.05,
        ),
    ),
    "land_cover": Scene(
        draw_land_cover,
        LAND_COVER,
        ("a satellite photo of {}.", "{} seen from above."),
        web=Style(rotation=0.5, scale=(0.7, 1.1), contrast=(0.6, 1.0), noise=0.08, cast=0.08, blur=0.5),
        task=Style(
            rotation=0.5, scale=(0.7, 1.1), contrast=(0.4, 0.7), channels=(2, 0, 1), noise=0.04, blur=0.4
        ),
    ),
    "objects": Scene(
        lambda u, labels, style: draw_objects(u, labels, style)[0],
        OBJECTS,
        ("a photo of a {}.", "a picture of a {}."),
        web=_PLAIN,
        task=_PLAIN,
    ),
}
SUITE_TASKS = ("digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover")
CONTROL = "objects"

_CHUNK = 1024


def render(name: str, split: str, indices: Integers) -> tuple[npt.NDArray[np.uint8], Integers]:
    """Render images of a set: a pure function of suite version, set, split and index.

    Args:
        name: A key of ``SCENES``.
        split: Any word; the suite uses ``train``, ``validation`` and ``test``.
        indices: Which images, shape ``[B]``. The label is the index modulo the number of classes.

    Returns:
        Bytes of shape ``[B, 3, 32, 32]`` and labels of shape ``[B]``.
    """
    scene = SCENES[name]
    labels = indices % len(scene.class_names)
    images = np.empty((len(indices), 3, 32, 32), dtype=np.uint8)
    for start in range(0, len(indices), _CHUNK):
        part = slice(start, start + _CHUNK)
        u = Uniforms(image_keys(f"{VERSION}/{name}/{split}", indices[part]))
        images[part] = camera(u, scene.draw(u, labels[part], scene.task), scene.task)
    return images, labels
