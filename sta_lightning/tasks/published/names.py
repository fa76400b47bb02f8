"""Class names as they read in a prompt, in label order, their folders' names, and the prompts."""

from __future__ import annotations

from collections.abc import Mapping

from sta_lightning.tasks.task import names_in

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

FASHION_MNIST_NAMES = names_in(
    """
T-shirt or top | pair of trousers | pullover | dress | coat | sandal | shirt | sneaker | bag
ankle boot
"""
)

KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

FER2013_NAMES = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")

PCAM_NAMES = ("lymph node tissue without a tumour", "lymph node tissue with a tumour")

SST2_NAMES = ("negative", "positive")

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

GTSRB_NAMES = names_in(
    """
speed limit 20 km/h | speed limit 30 km/h | speed limit 50 km/h | speed limit 60 km/h
speed limit 70 km/h | speed limit 80 km/h | end of speed limit 80 km/h | speed limit 100 km/h
speed limit 120 km/h | no overtaking | no overtaking by trucks | priority at the next crossing
priority road | give way | stop | closed to all vehicles | closed to trucks | no entry | general danger
dangerous bend to the left | dangerous bend to the right | double bend | bumpy road | slippery road
road narrows on the right | road works | traffic lights ahead | pedestrians | children crossing
cyclists crossing | danger of ice or snow | wild animals crossing
end of all speed and overtaking limits | turn right ahead | turn left ahead | straight ahead only
straight ahead or right | straight ahead or left | keep right | keep left | roundabout
end of no overtaking | end of no overtaking by trucks
"""
)

_DTD = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous
flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted
meshed paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled
stained stratified striped studded swirly veined waffled woven wrinkled zigzagged
"""
DTD_FOLDERS = tuple(_DTD.split())

EUROSAT_NAMES = {
    "AnnualCrop": "fields of annual crops",
    "Forest": "a forest",
    "HerbaceousVegetation": "shrubs and wild meadows",
    "Highway": "a highway",
    "Industrial": "factories and warehouses",
    "Pasture": "pastures",
    "PermanentCrop": "orchards and vineyards",
    "Residential": "houses of a residential area",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}
EUROSAT_FOLDERS = tuple(EUROSAT_NAMES)

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
"""Prompts by task, in our own words; ``{}`` stands for the class name."""
