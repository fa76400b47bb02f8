"""The published sets as tasks."""

from __future__ import annotations

from collections.abc import Iterable

from torchvision.models import ResNet18_Weights

from sta_lightning.tasks.published import arrays, names, pictures, scenes, things
from sta_lightning.tasks.published.place import Build, PublishedOpener
from sta_lightning.tasks.task import Split, Task

_FETCH = "Or let `download: true` fetch them."


def _task(
    name: str,
    class_names: Iterable[str],
    build: Build,
    train: tuple[str, ...],
    test: tuple[str, ...] | None = None,
    validation: tuple[str, ...] | None = None,
    advice: str = _FETCH,
) -> Task:
    """Describe a set: files of its splits (those of ``test`` are by default ``train``'s)."""
    classes = tuple(class_names)
    given: dict[Split, tuple[str, ...] | None]
    given = {"train": train, "validation": validation, "test": test or train}
    files = {split: wanted for split, wanted in given.items() if wanted}
    opener = PublishedOpener(name, len(classes), files, build, advice)
    return Task(
        name,
        classes,
        names.TEMPLATES[name],
        opener,
        own_validation=validation is not None,
        downloader=opener.download if advice.startswith(_FETCH) else None,
    )


def _digits(folder: str) -> tuple[str, ...]:
    # torchvision wants all four, whichever split is opened.
    return tuple(
        f"{folder}/raw/{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )


def _emnist(part: str) -> tuple[str, ...]:
    return tuple(f"EMNIST/raw/emnist-digits-{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))


def _pcam(part: str) -> tuple[str, ...]:
    return tuple(f"pcam/camelyonpatch_level_2_split_{part}_{kind}.h5" for kind in "xy")


def _year_first(name: str) -> str:
    model, year = name.rsplit(" ", 1)
    return f"{year} {model}"


_CIFAR10 = tuple(
    f"cifar-10-batches-py/{name}"
    for name in ("batches.meta", *(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
)
_CIFAR100 = tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test"))
_STL10 = tuple(
    f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")
)
_FER2013 = ("fer2013/fer2013.csv or fer2013/icml_face_data.csv",)
_FLOWERS = ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat")
_CARS_META = "stanford_cars/devkit/cars_meta.mat"
_SUN397 = "SUN397/ClassName.txt"
_RESISC45 = "resisc45/NWPU-RESISC45"

_TASKS = (
    _task("mnist", names.DIGITS, arrays.mnist, _digits("MNIST")),
    _task("svhn", names.DIGITS, arrays.svhn, ("svhn/train_32x32.mat",), ("svhn/test_32x32.mat",)),
    _task(
        "gtsrb",
        names.GTSRB_NAMES,
        pictures.gtsrb,
        ("gtsrb/GTSRB/Training",),
        ("gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    ),
    _task(
        "dtd",
        (folder.replace("-", " ") for folder in names.DTD_FOLDERS),
        pictures.dtd,
        ("dtd/dtd/images", "dtd/dtd/labels/train1.txt", "dtd/dtd/labels/val1.txt"),
        ("dtd/dtd/images", "dtd/dtd/labels/test1.txt"),
    ),
    _task("eurosat", names.EUROSAT_NAMES.values(), pictures.eurosat, ("eurosat/2750",)),
    _task(
        "cars",
        (_year_first(name) for name in things.CAR_NAMES),
        pictures.cars,
        ("stanford_cars/cars_train", "stanford_cars/devkit/cars_train_annos.mat", _CARS_META),
        ("stanford_cars/cars_test", "stanford_cars/cars_test_annos_withlabels.mat", _CARS_META),
        advice="Its publisher no longer offers it for download.",
    ),
    _task(
        "sun397",
        scenes.SUN397_NAMES,
        pictures.sun397,
        (_SUN397, "SUN397/Partitions/Training_01.txt"),
        (_SUN397, "SUN397/Partitions/Testing_01.txt"),
        advice="Its publisher's address no longer answers: unpack a copy of SUN397.tar.gz (the folders a to y and "
        "ClassName.txt) and of Partitions.zip.",
    ),
    _task(
        "resisc45",
        scenes.RESISC45_NAMES,
        pictures.resisc45,
        (_RESISC45, "resisc45/resisc45-train.txt"),
        (_RESISC45, "resisc45/resisc45-test.txt"),
        validation=(_RESISC45, "resisc45/resisc45-val.txt"),
        advice="torchvision does not fetch it: unpack the publisher's NWPU-RESISC45.rar; the lists are those of "
        "arXiv:1911.06721.",
    ),
    _task("stl10", names.STL10_NAMES, arrays.stl10, _STL10),
    _task(
        "oxford_pets",
        things.PET_BREEDS,
        pictures.oxford_pets,
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/trainval.txt"),
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/test.txt"),
    ),
    _task("flowers102", things.FLOWERS102_NAMES, pictures.flowers102, _FLOWERS, validation=_FLOWERS),
    _task("cifar100", things.CIFAR100_NAMES, arrays.cifar100, _CIFAR100),
    _task(
        "pcam",
        names.PCAM_NAMES,
        arrays.pcam,
        _pcam("train"),
        _pcam("test"),
        validation=_pcam("valid"),
        advice=f"{_FETCH} Reading them takes the package h5py, and fetching them gdown: "
        "pip install 'sta-lightning[pcam]'.",
    ),
    _task(
        "fer2013",
        names.FER2013_NAMES,
        arrays.fer2013,
        _FER2013,
        advice="It cannot be fetched without an account: it belongs to the Kaggle competition 'Challenges in Representation "
        "Learning: Facial Expression Recognition Challenge'.",
    ),
    _task("cifar10", names.CIFAR10_NAMES, arrays.cifar10, _CIFAR10),
    _task(
        "food101",
        (folder.replace("_", " ") for folder in things.FOOD101_FOLDERS),
        pictures.food101,
        ("food-101/images", "food-101/meta/train.json"),
        ("food-101/images", "food-101/meta/test.json"),
    ),
    _task("fashion_mnist", names.FASHION_MNIST_NAMES, arrays.fashion_mnist, _digits("FashionMNIST")),
    _task(
        "rendered_sst2",
        names.SST2_NAMES,
        pictures.rendered_sst2,
        ("rendered-sst2/train",),
        ("rendered-sst2/test",),
        validation=("rendered-sst2/valid",),
    ),
    _task("emnist", names.DIGITS, arrays.emnist, _emnist("train"), _emnist("test")),
    _task("kmnist", names.KMNIST_NAMES, arrays.kmnist, _digits("KMNIST")),
    _task(
        "imagenet",
        ResNet18_Weights.IMAGENET1K_V1.meta["categories"],
        pictures.imagenet,
        ("imagenet/train",),
        ("imagenet/val",),
        advice="It also needs ILSVRC2012_devkit_t12.tar.gz (or the meta.bin that torchvision makes of it) in "
        "imagenet; its publisher asks for a registration.",
    ),
)

PUBLISHED_TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
"""The published sets by name."""
