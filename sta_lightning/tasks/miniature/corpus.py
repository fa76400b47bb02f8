"""The image-text corpus on which the embedded CLIP is pretrained.

Two pictures in ten show objects, always named. The others come from the six domains in their web
style. Their captions seldom use the word by which the task will ask for the class: mostly they say
the same in other words ("0" for "zero", "a people carrier" for "van"), or name only the domain. How
often a class is called by its name differs between classes by a factor of ten. So the pretraining
sees what tells the classes apart, but seldom reads what they are called, as it is with CLIP and
the sets that these mirror.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sta_lightning.tasks.miniature.canvas import COLOUR_NAMES, camera
from sta_lightning.tasks.miniature.objects import draw_objects
from sta_lightning.tasks.miniature.random import Integers, Uniforms, image_keys
from sta_lightning.tasks.miniature.scenes import CONTROL, SCENES, SUITE_TASKS, VERSION
from sta_lightning.tasks.task import names_in

OBJECT_SHARE = 0.22
NAMED_LEAST, NAMED_MOST = 0.04, 0.4
OTHER_WORDS_SHARE = 0.9
"""Share of captions without the class's name that say it in other words, not the domain alone."""

_NUMERALS = tuple("0123456789")
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "digits": _NUMERALS,
    "vehicles": names_in(
        """
saloon car | small city car | flatbed with a cab | people carrier | coach full of seats
heavy goods transporter | farm machine with big wheels | motorbike | pedal cycle
steam engine on rails | electric streetcar | warehouse stacker
"""
    ),
    "street_numbers": _NUMERALS,
    "traffic_signs": names_in(
        """
halt | give way | one way exit | thirty | keep behind | closed to cars | restrictions over
main road first | careful | junction | go west | go east | keep going up | circle around
"""
    ),
    "textures": names_in(
        """
striped | checkerboard | spotted | mesh | chevron | rippled | basketwork | crackled | frothy
grainy | concentric | camouflage
"""
    ),
    "land_cover": names_in(
        """
ploughed soil | dense woodland | scrub | a motorway | warehouses | grazing meadow | an orchard
suburban houses | a winding stream | open water
"""
    ),
}
"""What the corpus mostly calls the classes of a domain, in label order."""

_NAMED: dict[str, tuple[str, ...]] = {
    "digits": ("the number {}, written by hand.", "a handwritten {}.", "{}"),
    "vehicles": ("a {}.", "a {} parked outside.", "the side of a {}."),
    "street_numbers": ("the number {} on a house.", "house number {}.", "{}"),
    "traffic_signs": ("a {} sign.", "traffic sign: {}.", "the sign says {}."),
    "textures": ("a {} pattern.", "something {}.", "{} texture."),
    "land_cover": ("{} from the air.", "an aerial view of {}.", "{}, satellite image."),
}
_UNNAMED: dict[str, tuple[str, ...]] = {
    "digits": ("handwriting.", "a digit written by hand.", "some ink on paper."),
    "vehicles": ("a vehicle.", "something to drive.", "a vehicle outside."),
    "street_numbers": ("a number on a house.", "a coloured number plate.", "an address."),
    "traffic_signs": ("a traffic sign.", "a sign by the road.", "road signs."),
    "textures": ("a texture.", "a pattern in two colours.", "the surface of something."),
    "land_cover": ("land seen from above.", "a satellite image.", "a place from the air."),
}
_OBJECTS = (
    "a photo of a {}.",
    "a {}.",
    "a picture of a {}.",
    "a {ink} {}.",
    "a {ink} {} on a {ground} background.",
)


def naming_rates(classes: int) -> list[float]:
    """How often each class of a domain is named: even on a log scale, neighbours far apart."""
    order = [(7 * label) % classes if classes % 7 else (5 * label) % classes for label in range(classes)]
    ratio = NAMED_MOST / NAMED_LEAST
    return [float(NAMED_LEAST * ratio ** (place / (classes - 1))) for place in order]


def corpus(indices: Integers) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return images ``[B, 3, 32, 32]`` and captions, a pure function of the indices."""
    u = Uniforms(image_keys(f"{VERSION}/corpus", indices))
    share = u()[:, 0]
    domain = np.where(share < OBJECT_SHARE, len(SUITE_TASKS), u.integers(len(SUITE_TASKS)))
    shown, wording = u.integers(1 << 20), u.integers(1 << 20)
    naming = u()[:, 0]
    images = np.empty((len(indices), 3, 32, 32), dtype=np.uint8)
    captions = [""] * len(indices)
    for number, name in enumerate((*SUITE_TASKS, CONTROL)):
        rows = np.flatnonzero(domain == number)
        if not len(rows):
            continue
        scene, own = SCENES[name], u.rows(rows)
        labels = shown[rows] % len(scene.class_names)
        if name == CONTROL:
            picture, ink, ground = draw_objects(own, labels, scene.web)
            for row, label, i, g in zip(rows, labels, ink, ground, strict=True):
                text = _OBJECTS[wording[row] % len(_OBJECTS)]
                captions[row] = text.format(
                    scene.class_names[label], ink=COLOUR_NAMES[i], ground=COLOUR_NAMES[g]
                )
        else:
            picture = scene.draw(own, labels, scene.web)
            rates = naming_rates(len(scene.class_names))
            for row, label in zip(rows, labels, strict=True):
                rate = rates[label]
                named = naming[row] < rate + (1 - rate) * OTHER_WORDS_SHARE
                word_for = scene.class_names if naming[row] < rate else OTHER_WORDS[name]
                texts = (_NAMED if named else _UNNAMED)[name]
                captions[row] = texts[wording[row] % len(texts)].format(word_for[label])
        images[rows] = camera(own, picture, scene.web)
    return images, captions
