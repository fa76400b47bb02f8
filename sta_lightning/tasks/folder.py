"""Tasks of one's own: folders of images, described by a small YAML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.image_cache import files_fingerprint
from sta_lightning.tasks.images import ImageList, read_image
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.task_file import COMMON_KEYS, TaskFile

_KEYS = (*COMMON_KEYS, "layout", *SPLITS, "include", "csv", "huggingface")


def load_folder_task(file: TaskFile) -> Task:
    """Make a task of a YAML file that names folders.

    Its keys, besides those that all kinds know (docs/data.md):

    - ``train``, ``validation``, ``test``: folders below ``root``; ``test`` is needed.
    - ``layout``: ``folders`` (default; one folder a class, labels in the sorted order of the
      folders' names) or ``flat`` (one image a class, labels in the sorted order of the files).
    - ``class_names``: a mapping from folder to name (other folders are not used), a list in label
      order, or the name of a task with the same classes, such as ``imagenet``. By default the
      folders' names (or the files', after the first ``_``).
    - ``include``: the folders to use, if not all. Without it (or a mapping) the splits must have
      the same folders.

    Raises:
        StaError: that says what is wrong with the file.
    """
    file.only(_KEYS)
    flat = file.one_of("layout", ("folders", "flat")) == "flat"
    given = [split for split in SPLITS if file.settings.get(split) is not None]
    if "test" not in given:
        raise StaError(f"{file.path} names no folder of test images: give `test: <folder>`.")
    names, opener = _flat(file) if flat else _folders(file)
    return file.task(names, opener, given)


@dataclass(frozen=True)
class _Opener:
    file: TaskFile

    def folder(self, split: Split, root: Path | None = None) -> Path:
        """Return the folder of a split, which must exist."""
        path = self.file.folder(root) / os.path.expandvars(str(self.file.settings[split]))
        if not path.is_dir():
            raise StaError(
                f"The {split} images of {self.file.path} were looked for in {path}, but there is no such "
                f"folder: mend `root` or `{split}`."
            )
        return path

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """Digest of the split's files (names, sizes, times of change) and the classes."""
        return f"{files_fingerprint(self.folder(split, root))} as {getattr(self, 'classes', 'flat')}"


@dataclass(frozen=True)
class FolderOpener(_Opener):
    """Opens one folder a class, through torchvision's ``ImageFolder``.

    Attributes:
        classes: The class folders in label order.
        every: Whether a folder that is no class is a mistake, and not only left out.
    """

    classes: tuple[str, ...] = ()
    every: bool = False

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        """Open a split; every class needs images in it."""
        path = self.folder(split, root)
        if missing := [name for name in self.classes if not (path / name).is_dir()]:
            raise StaError(
                f"The classes {listed(missing)} of {self.file.path} have no folder in {path}: one folder a "
                "class is needed."
            )
        if self.every and (others := sorted(set(_subfolders(path)) - set(self.classes))):
            raise StaError(
                f"{path} has the folders {listed(others)}, which are none of the {len(self.classes)} classes of "
                f"{self.file.path}: move them away, or choose the classes with `include`."
            )
        try:
            return _ChosenFolders(path, self.classes)
        except FileNotFoundError as error:
            raise StaError(
                f"The {split} images of {self.file.path} cannot be read: {error}. Put images there, or leave "
                "the class out with `include`."
            ) from error


class _ChosenFolders(ImageFolder):
    """An ``ImageFolder`` whose classes are chosen beforehand."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._chosen = classes
        super().__init__(str(path), loader=read_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the chosen classes."""
        return list(self._chosen), {name: label for label, name in enumerate(self._chosen)}


def _subfolders(path: Path) -> list[str]:
    """Return the names of a folder's folders in sorted order, without hidden ones."""
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


@dataclass(frozen=True)
class FlatOpener(_Opener):
    """Opens a folder that holds one image a class; the sorted order of the files is the label."""

    count: int = 0

    def __call__(self, split: Split, root: Path | None) -> ImageList:
        """Open a split; the number of files must be the number of classes."""
        files = self.files(split, root)
        if len(files) != self.count:
            raise StaError(
                f"{self.folder(split, root)} should hold one image for each of the {self.count} classes of "
                f"{self.file.path}; it holds {len(files)} images."
            )
        return ImageList(files, range(len(files)))

    def files(self, split: Split, root: Path | None = None) -> list[Path]:
        """Return the image files of a split in label order."""
        found = self.folder(split, root).iterdir()
        return sorted(file for file in found if file.suffix.lower() in IMG_EXTENSIONS)


def _folders(file: TaskFile) -> tuple[tuple[str, ...], FolderOpener]:
    mapping, include = file.mapping("class_names"), file.strings("include")
    if mapping and (unnamed := sorted(set(include) - set(mapping))):
        raise StaError(f"{file.path}: `include` has {listed(unnamed)}, which `class_names` does not name.")
    folders = tuple(sorted(set(include or mapping)))
    every = not folders
    if every:
        folder = _Opener(file).folder("train" if file.settings.get("train") is not None else "test")
        folders = tuple(_subfolders(folder))
        if not folders:
            raise StaError(f"{file.path}: there is no class folder in {folder}.")
    return file.names_of(folders, "class folders"), FolderOpener(file, folders, every)


def _flat(file: TaskFile) -> tuple[tuple[str, ...], FlatOpener]:
    if file.settings.get("include") is not None:
        raise StaError(
            f"{file.path}: `include` chooses class folders; the flat layout has none. Leave it out."
        )
    if isinstance(file.settings.get("class_names"), dict):
        raise StaError(
            f"{file.path}: `class_names` cannot be a mapping from folders here; use a list, or the name of a task."
        )
    names = file.names() or tuple(
        image.stem.split("_", 1)[-1].replace("_", " ") for image in FlatOpener(file).files("test")
    )
    return names, FlatOpener(file, len(names))
