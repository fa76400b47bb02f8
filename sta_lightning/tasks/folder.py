"""Tasks of one's own: folders of images, described by a small YAML file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from sta_lightning.encoders.pictures import ENDINGS, find_images, is_hidden, subfolders
from sta_lightning.errors import StaError, StaWarning, listed
from sta_lightning.tasks.image_cache import files_fingerprint
from sta_lightning.tasks.images import ImageList
from sta_lightning.tasks.task import SPLITS, Split, Task
from sta_lightning.tasks.task_file import COMMON_KEYS, TaskFile

_KEYS = (*COMMON_KEYS, "layout", *SPLITS, "include", "csv", "huggingface")
_ANY = ", ".join(ENDINGS)


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

    def tell_others(self, split: Split, files: Iterable[Path]) -> None:
        """Warn of files beside the images that are left out."""
        others = [str(file) for file in files]
        if others:
            rank_zero_warn(
                f"The {split} images of {self.file.path}: {len(others)} files are left out, {listed(others, limit=3)}. "
                f"Images end in {_ANY}.",
                category=StaWarning,
            )

    def fingerprint(self, split: Split, root: Path | None) -> str:
        """Digest of the split's files (names, sizes, times of change) and the classes."""
        return f"{files_fingerprint(self.folder(split, root))} as {getattr(self, 'classes', 'flat')}"


@dataclass(frozen=True)
class FolderOpener(_Opener):
    """Opens one folder a class, with the images at any depth of it; hidden files are none.

    Attributes:
        classes: The class folders in label order.
        every: Whether a folder that is no class is a mistake, and not only left out.
    """

    classes: tuple[str, ...] = ()
    every: bool = False

    def __call__(self, split: Split, root: Path | None) -> ImageList:
        """Open a split; every class needs images in it."""
        path = self.folder(split, root)
        if missing := [name for name in self.classes if not (path / name).is_dir()]:
            raise StaError(
                f"The classes {listed(missing)} of {self.file.path} have no folder in {path}: one folder a "
                "class is needed."
            )
        if self.every and (others := sorted(set(subfolders(path)) - set(self.classes))):
            raise StaError(
                f"{path} has the folders {listed(others)}, which are none of the {len(self.classes)} classes of "
                f"{self.file.path}: move them away, or choose the classes with `include`."
            )
        found = [find_images(path / name, links=True) for name in self.classes]
        self.tell_others(split, (file for one in found for file in one.others))
        if empty := [name for name, one in zip(self.classes, found, strict=True) if not one.images]:
            raise StaError(
                f"The classes {listed(empty)} of {self.file.path} have no {split} image in {path}, which is a file that ends in "
                f"{_ANY}. Put images there, or leave the classes out with `include`."
            )
        files = [file for one in found for file in one.images]
        return ImageList(files, [label for label, one in enumerate(found) for _ in one.images])


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
        found = [file for file in self.folder(split, root).iterdir() if not is_hidden(file.name)]
        images = sorted(file for file in found if file.name.lower().endswith(ENDINGS))
        self.tell_others(split, sorted(file for file in set(found) - set(images) if file.is_file()))
        return images


def _folders(file: TaskFile) -> tuple[tuple[str, ...], FolderOpener]:
    mapping, include = file.mapping("class_names"), file.strings("include")
    if mapping and (unnamed := sorted(set(include) - set(mapping))):
        raise StaError(f"{file.path}: `include` has {listed(unnamed)}, which `class_names` does not name.")
    folders = tuple(sorted(set(include or mapping)))
    every = not folders
    if every:
        folder = _Opener(file).folder("train" if file.settings.get("train") is not None else "test")
        folders = tuple(subfolders(folder))
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
