"""Prompts of the published sets, in our own words; ``{}`` stands for the class name."""

from __future__ import annotations

from collections.abc import Mapping

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "mnist": ("the digit {}, written by hand.", "a scan of a handwritten {}.", "a photo of the number {}."),
    "svhn": (
        "the number {} on a house.",
        "a photo of the house number {}.",
        "a street number with the digit {}.",
    ),
    "gtsrb": (
        "a traffic sign that says {}.",
        "a photo of the German traffic sign: {}.",
        "close-up of the road sign {}.",
    ),
    "dtd": ("a {} texture.", "a photo of something {}.", "the surface is {}."),
    "eurosat": ("a satellite image of {}.", "{} seen from space.", "an aerial photo showing {}."),
    "cars": ("a photo of a {}.", "a {} parked on the street.", "the car in the photo is a {}."),
    "sun397": ("a photo of the place: {}.", "a scene with a {}.", "the inside or the outside of a {}."),
    "resisc45": ("a satellite image of a {}.", "a {} seen from the air.", "remote sensing of the land: {}."),
    "cifar10": ("a photo of a {}.", "a small, blurry photo of a {}.", "a low-resolution picture of a {}."),
    "cifar100": ("a photo of a {}.", "a small, blurry photo of a {}.", "a low-resolution picture of a {}."),
    "stl10": ("a photo of a {}.", "a picture of the {}.", "a {}, seen close."),
    "flowers102": ("a photo of a {}, a flower.", "a {} in bloom.", "close-up of the blossom of a {}."),
    "oxford_pets": ("a photo of a {}, a pet.", "a cat or dog of the breed {}.", "a portrait of a {}."),
    "pcam": ("a microscope image of {}.", "a stained tissue section: {}.", "histopathology of {}."),
    "fer2013": (
        "a photo of a face that looks {}.",
        "a portrait of a {} person.",
        "the face of someone who is {}.",
    ),
    "emnist": ("the digit {}, written by hand.", "a scan of a handwritten {}.", "a photo of the number {}."),
    "food101": ("a photo of {}, a dish.", "a plate of {}.", "{}, served in a restaurant."),
    "fashion_mnist": (
        "a grey photo of a {}.",
        "a small picture of a {}, a piece of clothing.",
        "a {} for sale.",
    ),
    "rendered_sst2": (
        "a {} review of a film.",
        "a printed sentence with a {} opinion.",
        "the text says something {} about the film.",
    ),
    "kmnist": (
        "the Japanese character {}, written with a brush.",
        "a scan of the hiragana {}.",
        "the kana {} in an old book.",
    ),
    "imagenet": ("a photo of a {}.", "a picture of the {}.", "a close-up of a {}."),
}
