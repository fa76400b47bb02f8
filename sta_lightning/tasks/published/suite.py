"""The published sets as tasks."""

from __future__ import annotations

from torchvision.models import ResNet18_Weights

from sta_lightning.tasks.published import openers
from sta_lightning.tasks.published.cars import CAR_NAMES
from sta_lightning.tasks.published.names import CIFAR10_NAMES, DIGITS, DTD_FOLDERS, EUROSAT_NAMES, GTSRB_NAMES
from sta_lightning.tasks.published.place import Build, PublishedOpener
from sta_lightning.tasks.task import Task

_RAW = "MNIST/raw"


def _task(
    name: str,
    class_names: tuple[str, ...],
    templates: tuple[str, ...],
    build: Build,
    train: tuple[str, ...],
    test: tuple[str, ...],
    advice: str | None = None,
) -> Task:
    opener = PublishedOpener(name, (("train", train), ("test", test)), build)
    if advice is None:
        return Task(name, class_names, templates, opener, downloader=opener.download)
    return Task(name, class_names, templates, PublishedOpener(name, opener.files, build, advice))


def _year_first(name: str) -> str:
    model, year = name.rsplit(" ", 1)
    return f"{year} {model}"


_TASKS = (
    _task(
        "mnist",
        DIGITS,
        ("the digit {}, written by hand.", "a scan of a handwritten {}.", "a photo of the number {}."),
        openers.mnist,
        (f"{_RAW}/train-images-idx3-ubyte", f"{_RAW}/train-labels-idx1-ubyte"),
        (f"{_RAW}/t10k-images-idx3-ubyte", f"{_RAW}/t10k-labels-idx1-ubyte"),
    ),
    _task(
        "svhn",
        DIGITS,
        (
            "the number {} on a house.",
            "a photo of the house number {}.",
            "a street number with the digit {}.",
        ),
        openers.svhn,
        ("svhn/train_32x32.mat",),
        ("svhn/test_32x32.mat",),
    ),
    _task(
        "gtsrb",
        GTSRB_NAMES,
        (
            "a traffic sign that says {}.",
            "a photo of the German traffic sign: {}.",
            "close-up of the road sign {}.",
        ),
        openers.gtsrb,
        ("gtsrb/GTSRB/Training",),
        ("gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    ),
    _task(
        "dtd",
        tuple(folder.replace("-", " ") for folder in DTD_FOLDERS),
        ("a {} texture.", "a photo of something {}.", "the surface is {}."),
        openers.dtd,
        ("dtd/dtd/images", "dtd/dtd/labels/train1.txt", "dtd/dtd/labels/val1.txt"),
        ("dtd/dtd/images", "dtd/dtd/labels/test1.txt"),
    ),
    _task(
        "eurosat",
        tuple(EUROSAT_NAMES.values()),
        ("a satellite image of {}.", "{} seen from space.", "an aerial photo showing {}."),
        openers.eurosat,
        ("eurosat/2750",),
        ("eurosat/2750",),
    ),
    _task(
        "cars",
        tuple(_year_first(name) for name in CAR_NAMES),
        ("a photo of a {}.", "a {} parked on the street.", "the car in the photo is a {}."),
        openers.cars,
        (
            "stanford_cars/cars_train",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/devkit/cars_meta.mat",
        ),
        (
            "stanford_cars/cars_test",
            "stanford_cars/cars_test_annos_withlabels.mat",
            "stanford_cars/devkit/cars_meta.mat",
        ),
        advice="Its publisher no longer offers it for download.",
    ),
    _task(
        "cifar10",
        CIFAR10_NAMES,
        ("a photo of a {}.", "a small, blurry photo of a {}.", "a low-resolution picture of a {}."),
        openers.cifar10,
        tuple(
            f"cifar-10-batches-py/{name}"
            for name in ("batches.meta", *(f"data_batch_{n}" for n in range(1, 6)))
        ),
        ("cifar-10-batches-py/batches.meta", "cifar-10-batches-py/test_batch"),
    ),
    _task(
        "imagenet",
        tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]),
        ("a photo of a {}.", "a picture of the {}.", "a close-up of a {}."),
        openers.imagenet,
        ("imagenet/train",),
        ("imagenet/val",),
        advice="It also needs ILSVRC2012_devkit_t12.tar.gz (or the meta.bin that torchvision makes of it) in "
        "imagenet; its publisher "
        "asks for a registration.",
    ),
)

PUBLISHED_TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
"""The published sets by name."""
