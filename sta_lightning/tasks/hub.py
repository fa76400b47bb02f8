"""Tasks of one's own: a data set for the package ``datasets``, from a folder or the hub."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from sta_lightning.encoders.pictures import rgb
from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.classes import LabelledClasses, decide_classes, label_key, require_every_class
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.task_file import COMMON_KEYS, TaskFile

_KEYS = ("path", "name", "revision", "image", "label", "splits")
_NOT_READ = LabelledClasses((), ())


def load_hub_task(file: TaskFile) -> Task:
    """Make a task of a YAML file with the key ``huggingface``.

    Its keys, besides those that all kinds know (docs/data.md):

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
    splits = replace(file, settings=value).mapping("splits") or {"train": "train", "test": "test"}
    if "test" not in splits or set(splits) - set(SPLITS):
        raise StaError(
            f"{file.path}: `splits` should say where {listed(SPLITS)} come from, and `test` is needed; it has {listed(splits)}."
        )
    name, revision = (None if value.get(key) is None else str(value[key]) for key in ("name", "revision"))
    image, label = str(value.get("image", "image")), str(value.get("label", "label"))
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    opener = HubOpener(file, value["path"], name, revision, image, label, ordered)
    opener = replace(opener, classes=opener.find_classes())
    return file.task(opener.classes.names, opener, ordered)


@dataclass(frozen=True)
class HubOpener:
    """Opens a split of a Hugging Face data set; see ``load_hub_task`` for what decides it."""

    file: TaskFile
    path: str
    name: str | None
    revision: str | None
    image: str
    label: str
    splits: Mapping[Split, str]
    classes: LabelledClasses = _NOT_READ

    def __call__(self, split: Split, root: Path | None) -> HubImages:
        """Open a split; every class needs images in it."""
        data = self.load(split, root)
        known = self.classes.numbers()
        what = f"{split} images of {self.file.path} in '{self.path}'"
        labels = []
        for row, label in enumerate(self._labels(data)):
            number = known.get(label_key(label))
            if number is None:
                raise StaError(
                    f"Row {row} of the {what} has the label {label!r}; it can be {listed(self.classes.keys, limit=10)}. Mend the "
                    "data set, or `class_names`."
                )
            labels.append(number)
        require_every_class(split, labels, self.classes.names, self.file.path, f"'{self.path}'")
        return HubImages(data, self.image, labels, what)

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """The package's own digest of the data, the column and the classes."""
        return f"{self.load(split, root)._fingerprint} {self.image} {self.label} as {self.classes.keys}"

    def find_classes(self) -> LabelledClasses:
        """Return the classes that the data set names, or that follow from its labels."""
        where = f"column '{self.label}' of '{self.path}'"
        loaded = {split: self.load(split, None) for split in self.splits}
        brought = getattr(loaded["test"].features[self.label], "names", None)
        if brought is None:
            found = {label for data in loaded.values() for label in self._labels(data)}
            return decide_classes(self.file, found, where)
        mapping = self.file.mapping("class_names")
        if mapping and set(mapping) != set(brought):
            raise StaError(
                f"{self.file.path}: `class_names` names {listed(sorted(mapping))}; the classes in {where} are "
                f"{listed(brought, limit=10)}."
            )
        numbers = tuple(str(number) for number in range(len(brought)))
        return LabelledClasses(numbers, self.file.names_of(brought, f"classes in {where}"))

    def _labels(self, data: Any) -> list[Any]:
        column: list[Any] = data.select_columns([self.label])[:][self.label]
        return column

    def load(self, split: Split, root: Path | None) -> Any:
        """Load the two columns of a split as a ``datasets.Dataset``.

        Raises:
            StaError: if the package, the data set, the split or a column is not there.
        """
        try:
            package = importlib.import_module("datasets")
        except ImportError as error:
            raise StaError(
                f"{self.file.path} asks for a Hugging Face data set, which takes the package datasets: "
                "pip install 'sta-lightning[hf]'."
            ) from error
        theirs = self.splits[split]
        what = f"The {split} images of {self.file.path} (split '{theirs}' of '{self.path}')"
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
        folder = below if below.is_absolute() else self.file.folder(root) / below
        if not folder.is_dir():
            if below.is_absolute() or written.startswith("."):
                raise StaError(
                    f"The data set {folder} of {self.file.path} is not there: mend `path` or `root`."
                )
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


class HubImages(Dataset[tuple[Image.Image, int]]):
    """Images of a column of a ``datasets.Dataset``, and a label for each row."""

    def __init__(self, data: Any, image: str, labels: list[int], what: str) -> None:
        self.data = data.select_columns([image])
        self.image, self.labels, self.what = image, labels, what

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            image = rgb(self.data[index][self.image])
        except MemoryError:
            raise
        except Exception as error:  # decoders raise all kinds on broken files
            raise StaError(
                f"Row {index} of the {self.what} cannot be decoded: {str(error) or type(error).__name__}. Mend that row of the "
                "data set, or take it out."
            ) from error
        return image, self.labels[index]
