"""The suite's pictures: pure functions of their address, disjoint, the same everywhere."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.tasks.miniature.corpus import (
    NAMED_LEAST,
    NAMED_MOST,
    OBJECT_SHARE,
    OTHER_WORDS,
    corpus,
    naming_rates,
)
from sta_lightning.tasks.miniature.scenes import CONTROL, SCENES, SUITE_TASKS, render


@pytest.mark.parametrize("name", SCENES)
@settings(max_examples=8, deadline=None)
@given(indices=st.lists(st.integers(0, 10_000), min_size=1, max_size=12, unique=True))
def test_a_picture_does_not_depend_on_its_company(name: str, indices: list[int]) -> None:
    together, labels = render(name, "train", np.asarray(indices))
    for row, index in enumerate(indices):
        alone, label = render(name, "train", np.asarray([index]))
        np.testing.assert_array_equal(alone[0], together[row])
        assert label[0] == labels[row]


@pytest.mark.parametrize("name", SCENES)
def test_splits_are_disjoint_and_without_repeats(name: str) -> None:
    digests = [
        hashlib.sha256(image.tobytes()).digest()
        for split in ("train", "validation", "test")
        for image in render(name, split, np.arange(300))[0]
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", SCENES)
def test_sets_have_ten_balanced_classes_or_more(name: str) -> None:
    scene = SCENES[name]
    assert len(scene.class_names) >= 10
    assert len(set(scene.class_names)) == len(scene.class_names)
    assert all(template.count("{}") == 1 for template in scene.templates)
    _, labels = render(name, "test", np.arange(200))
    counts = np.bincount(labels, minlength=len(scene.class_names))
    assert counts.max() - counts.min() <= 1


def test_there_are_six_tasks_and_a_control() -> None:
    assert len(SUITE_TASKS) == 6
    assert set(SCENES) == {*SUITE_TASKS, CONTROL}


def test_corpus_is_a_pure_function() -> None:
    images, captions = corpus(np.arange(64))
    again, captions_again = corpus(np.arange(63, -1, -1))
    np.testing.assert_array_equal(images, again[::-1])
    assert captions == captions_again[::-1]


def test_corpus_names_objects_always_and_others_seldom() -> None:
    _, captions = corpus(np.arange(8_000))
    things = "|".join(SCENES[CONTROL].class_names)
    wording = re.compile(rf"a (photo|picture) of a ({things})\.|a (\w+ )?({things})( on a \w+ background)?\.")
    shown = sum(wording.fullmatch(caption) is not None for caption in captions)
    assert shown / len(captions) == pytest.approx(OBJECT_SHARE, abs=0.02)
    # Vehicles: a sixth of the others, each class named at its own rate.
    vehicles = SCENES["vehicles"].class_names
    for name, rate in zip(vehicles, naming_rates(len(vehicles)), strict=True):
        expected = 8_000 * (1 - OBJECT_SHARE) / 6 / len(vehicles) * rate
        named = {f"a {name}.", f"a {name} parked outside.", f"the side of a {name}."}
        counted = sum(caption in named for caption in captions)
        assert abs(counted - expected) < 5 * expected**0.5 + 1, name


@pytest.mark.parametrize("classes", [10, 12, 14])
def test_naming_rates_span_their_range_once(classes: int) -> None:
    rates = naming_rates(classes)
    assert min(rates) == pytest.approx(NAMED_LEAST)
    assert max(rates) == pytest.approx(NAMED_MOST)
    assert len(set(rates)) == classes


@pytest.mark.parametrize("name", SUITE_TASKS)
def test_other_words_are_none_of_the_names(name: str) -> None:
    assert len(set(OTHER_WORDS[name])) == len(SCENES[name].class_names)
    assert not set(OTHER_WORDS[name]) & set(SCENES[name].class_names)


# SHA-256 of the first 64 test images of each set, and of the first 256 pairs of the corpus. A
# change here means other pictures: raise VERSION, and know that the shipped encoder was trained on
# the corpus as it was.
DIGESTS = {
    "digits": "71965fdcfb1ac3c74e5b4b481e46cde4db789d8eef93da16ad045a2afb7d2597",
    "vehicles": "ec7cfbed44bd0ce7464eeaa41d41b73cd729566fa9be4c9cfe3e103872fa468b",
    "street_numbers": "3b9d9edfa12bfe32709db220a03e3d58c43d2fe29209c973d9b3bb2f1ff831d9",
    "traffic_signs": "44f528750b2682ae181b0f858173a33ca58c445cf8b3ff86c781c7f415490f76",
    "textures": "537d3dc89114af9693b987fea98bee97564ab984d62b711cc7e61733111a28bb",
    "land_cover": "c1f1520f1904240102fdd3f72d5724ac4c9850bcff03f713772a32cc7dce312e",
    "objects": "41c5d5a64da5d03519126d7da0a1ec70e23f53fd836f0a72d24d78d4bc1a688c",
}
CORPUS_DIGEST = "da373b5144ebc9cc72a053368da481c9f0f4fa9ccb117d8147fa3b7509494282"


@pytest.mark.parametrize("name", SCENES)
def test_pictures_are_the_same_bytes_on_every_machine(name: str) -> None:
    images, _ = render(name, "test", np.arange(64))
    assert hashlib.sha256(images.tobytes()).hexdigest() == DIGESTS[name]


def test_the_corpus_is_the_same_on_every_machine() -> None:
    images, captions = corpus(np.arange(256))
    assert hashlib.sha256(images.tobytes() + "\n".join(captions).encode()).hexdigest() == CORPUS_DIGEST
