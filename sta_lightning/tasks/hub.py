"""Tasks of one's own: a data set for the package ``datasets``, from a folder or the hub."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.classes import LabelledClasses, decide_classes, label_key, require_every_class
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.task_file import COMMON_KEYS, TaskFile, image_folder

_KEYS = ("path", "name", "revision", "image", "label", "splits")


def load_hub_task(file: TaskFile) -> Task:
    """Make a task of a YAML file with the key ``huggingface``.

    Its keys, besides ``name``, ``root``, ``class_names``, ``templates`` and ``head`` as for folders
    and tables:

    - ``huggingface``: a mapping with ``path``, a folder below ``root`` (saved by ``save_to_disk``,
      or files that ``load_dataset`` reads) or a repository of the hub; and if need be ``name`` (a
      configuration), ``revision`` (a commit), ``image`` and ``label`` (the columns, by these
      names), ``splits`` (a mapping from ``train``, ``validation``, ``test`` to the data set's
      splits; by default ``train`` and ``test``).

    Class names that the data set brings are used unless ``class_names`` says others.

    Raises:
        StaError: that says what is wrong with the file, or that the package or the data set is not
            there.
    """
    file.only((*COMMON_KEYS, "huggingface"))
    value = file.settings["huggingface"]
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise StaError(
            f"{file.path}: `huggingface` should be a mapping with `path`, such as `huggingface: {{path: folder}}`; it is "
            f"{value!r}."
        )
    unknown = [str(key) for key in value if key not in _KEYS]
    if unknown:
        raise StaError(
            f"{file.path}: `huggingface` has the unknown keys {listed(unknown)}; it knows {listed(_KEYS, limit=10)}."
        )
    part = TaskFile(file.path, value)
    splits = part.mapping("splits") or {"train": "train", "test": "test"}
    if "test" not in splits or set(splits) - set(SPLITS):
        raise StaError(
            f"{file.path}: `splits` should say where {listed(SPLITS)} come from, and `test` is needed; it has {listed(splits)}."
        )
    source = HubSource(
        file.path,
        file.home(),
        value["path"],
        _optional(value, "name"),
        _optional(value, "revision"),
        str(value.get("image", "image")),
        str(value.get("label", "label")),
        tuple((split, splits[split]) for split in SPLITS if split in splits),
    )
    classes = _hub_classes(file, source)
    return file.task(classes.names, HubOpener(source, classes), (split for split, _ in source.splits))


def _optional(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    return None if value is None else str(value)


@dataclass(frozen=True)
class HubSource:
    """Where a data set comes from, and which of its columns and splits are used.

    Attributes:
        file: The task's file, for messages.
        home: The folder that ``path`` may be below, see ``TaskFile.home``.
        path: A folder, or a repository of the hub.
        name: A configuration of the data set.
        revision: A commit of the repository.
        image: The column of images.
        label: The column of labels.
        splits: The task's splits, and what the data set calls them.
    """

    file: Path
    home: str
    path: str
    name: str | None
    revision: str | None
    image: str
    label: str
    splits: tuple[tuple[Split, str], ...]

    def load(self, split: Split, root: Path | None) -> Any:
        """Load the two columns of a split as a ``datasets.Dataset``.

        Raises:
            StaError: if the package, the data set, the split or a column is not there.
        """
        package = _package(self.file)
        theirs = dict(self.splits)[split]
        what = f"The {split} images of {self.file} (split '{theirs}' of '{self.path}')"
        try:
            data = self._load(package, theirs, root)
        except StaError:
            raise
        except Exception as error:  # the package raises its own, the network's and the file system's
            raise StaError(
                f"{what} could not be loaded by the package datasets: {str(error) or type(error).__name__}. Give a folder that "
                "is there, or a repository and split of the hub; without a network only what is in the hub's cache is found (and "
                "HF_HUB_OFFLINE=1 spares the waiting)."
            ) from error
        missing = [column for column in (self.image, self.label) if column not in data.column_names]
        if missing:
            raise StaError(
                f"{what} have no column {listed(missing)}; there are {listed(data.column_names, limit=10)}. Name the columns "
                "with `image` and `label`."
            )
        data = data.select_columns([self.image, self.label])
        if not isinstance(data.features[self.image], package.Image):
            data = data.cast_column(self.image, package.Image())
        return data

    def _load(self, package: Any, theirs: str, root: Path | None) -> Any:
        written = os.path.expandvars(self.path)
        below = Path(written).expanduser()
        folder = below if below.is_absolute() else image_folder(self.file, self.home, root) / below
        if not folder.is_dir():
            if below.is_absolute() or written.startswith("."):
                raise StaError(f"The data set {folder} of {self.file} is not there: mend `path` or `root`.")
            return package.load_dataset(written, self.name, split=theirs, revision=self.revision)
        if (folder / "dataset_dict.json").is_file():
            saved = package.load_from_disk(str(folder))
            if theirs not in saved:
                raise StaError(f"{folder} has no split '{theirs}'; it has {listed(saved)}: mend `splits`.")
            return saved[theirs]
        if (folder / "state.json").is_file():
            raise StaError(
                f"{folder} was saved as one split without a name: save a `DatasetDict` of all splits, `DatasetDict(test=...)`."
            )
        return package.load_dataset(str(folder), self.name, split=theirs)


def _package(file: Path) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise StaError(
            f"{file} asks for a Hugging Face data set, which takes the package datasets: pip install 'sta-lightning[hf]'."
        ) from error


def _hub_classes(file: TaskFile, source: HubSource) -> LabelledClasses:
    where = f"column '{source.label}' of '{source.path}'"
    loaded = {split: source.load(split, None) for split, _ in source.splits}
    brought = getattr(loaded["test"].features[source.label], "names", None)
    if brought is None:
        return decide_classes(
            file, {label for data in loaded.values() for label in _labels(data, source)}, where
        )
    numbers = tuple(str(number) for number in range(len(brought)))
    mapping, names = file.mapping("class_names"), file.names()
    if mapping and set(mapping) != set(brought):
        raise StaError(
            f"{file.path}: `class_names` names {listed(sorted(mapping))}; the classes in {where} are {listed(brought, limit=10)}."
        )
    if names and len(names) != len(brought):
        raise StaError(
            f"{file.path}: `class_names` has {len(names)} names for {len(brought)} classes in {where}: "
            f"{listed(brought, limit=10)}."
        )
    own = tuple(str(name).replace("_", " ") for name in brought)
    return LabelledClasses(numbers, tuple(mapping[name] for name in brought) if mapping else names or own)


def _labels(data: Any, source: HubSource) -> list[Any]:
    column: list[Any] = data.select_columns([source.label])[:][source.label]
    return column


@dataclass(frozen=True)
class HubOpener:
    """Opens a split of a Hugging Face data set.

    Attributes:
        source: Where it comes from.
        classes: The labels that it may have.
    """

    source: HubSource
    classes: LabelledClasses

    def __call__(self, split: Split, root: Path | None) -> HubImages:
        """Open a split; every class needs images in it."""
        data = self.source.load(split, root)
        known = self.classes.numbers()
        where = f"'{self.source.path}'"
        labels = []
        for row, label in enumerate(_labels(data, self.source)):
            number = known.get(label_key(label))
            if number is None:
                raise StaError(
                    f"Row {row} of the {split} images of {self.source.file} in {where} has the label {label!r}; it can be "
                    f"{listed(self.classes.keys, limit=10)}. Mend the data set, or `class_names`."
                )
            labels.append(number)
        require_every_class(split, labels, self.classes.names, self.source.file, where)
        return HubImages(data, self.source.image, labels, f"{split} images of {self.source.file} in {where}")

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """The package's own digest of the data, the column and the classes."""
        data = self.source.load(split, root)
        return f"{data._fingerprint} {self.source.image} {self.source.label} as {self.classes.keys}"


class HubImages(Dataset[tuple[Image.Image, int]]):
    """Images of a ``datasets.Dataset``.

    Args:
        data: The data set.
        image: Its column of images.
        labels: A label for each row.
        what: What they are, for messages.
    """

    def __init__(self, data: Any, image: str, labels: list[int], what: str) -> None:
        self.data = data.select_columns([image])
        self.image = image
        self.labels = labels
        self.what = what

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            image: Image.Image = self.data[index][self.image].convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # decoders raise all kinds on broken files
            raise StaError(
                f"Row {index} of the {self.what} cannot be decoded: {str(error) or type(error).__name__}. Mend that row of the "
                "data set, or take it out."
            ) from error
        return image, self.labels[index]
