"""Tasks of one's own: folders of images, described by a small YAML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.task import SPLITS, Split, Task

_KEYS = (
    "name",
    "root",
    "layout",
    "train",
    "validation",
    "test",
    "include",
    "class_names",
    "templates",
    "head",
)
_TEMPLATES = ("a photo of a {}.", "a picture of a {}.")


def load_folder_task(path: Path) -> Task:
    """Read a task from a YAML file.

    Its keys:

    - ``name``: the task's name; by default the file's.
    - ``root``: the folder that the other paths are below, in which ``~`` and ``$VARIABLES`` are expanded; by
      default the folder of the YAML file. A datamodule's option ``root`` takes precedence.
    - ``train``, ``validation``, ``test``: folders. ``test`` is needed. Without ``validation`` the training
      images are divided by the rule of ``split_indices``; without ``train`` the task can be evaluated only.
    - ``layout``: ``folders`` (default; one folder a class, labels in the sorted order of the folders' names)
      or ``flat`` (one image a class, labels in the sorted order of the files).
    - ``class_names``: a mapping from folder to name (other folders are not used), a list in label order, or
      the name of a task with the same classes, such as ``imagenet``. By default the folders' names (or the
      files', after the first ``_``).
    - ``include``: the folders to use, if not all.
    - ``templates``: prompts in which ``{}`` stands for the class name.
    - ``head``: ``auto`` (default) or ``own``.

    Raises:
        StaError: that says what is wrong with the file.
    """
    settings = _read(path)
    layout = _one_of(path, settings, "layout", ("folders", "flat"))
    head = cast(Literal["auto", "own"], _one_of(path, settings, "head", ("auto", "own")))
    folders = tuple((split, str(settings[split])) for split in SPLITS if settings.get(split) is not None)
    given = dict(folders)
    if "test" not in given:
        raise StaError(f"{path} names no folder of test images: give `test: <folder>`.")
    home = str(settings.get("root") or path.absolute().parent)
    if settings.get("root") is not None and not Path(os.path.expandvars(home)).expanduser().is_absolute():
        home = home if "$" in home else str(path.absolute().parent / home)
    if layout == "flat":
        if settings.get("include") is not None:
            raise StaError(
                f"{path}: `include` chooses class folders; the flat layout has none. Leave it out."
            )
        names = _flat_names(path, settings, FlatOpener(path, home, folders))
        opener: FolderOpener | FlatOpener = FlatOpener(path, home, folders, len(names))
    else:
        classes, names = _classes(path, settings, FolderOpener(path, home, folders, ()))
        opener = FolderOpener(path, home, folders, classes)
    own_validation = "validation" in given or "train" not in given
    return Task(
        name=str(settings.get("name") or path.stem),
        class_names=names,
        templates=_strings(path, settings, "templates") or _TEMPLATES,
        opener=opener,
        own_validation=own_validation,
        head=head,
        splits=tuple(split for split in SPLITS if split in given) if own_validation else SPLITS,
    )


@dataclass(frozen=True)
class _Opener:
    source: Path
    home: str
    folders: tuple[tuple[Split, str], ...]

    def folder(self, split: Split, root: Path | None = None) -> Path:
        """Return the folder of a split, which must exist."""
        base = str(root) if root is not None else os.path.expandvars(self.home)
        if "$" in base:
            raise StaError(
                f"The images of {self.source} lie below '{base}', but that environment variable is not set: "
                "set it, or give the folder with the option `root`."
            )
        path = Path(base).expanduser() / os.path.expandvars(dict(self.folders)[split])
        if not path.is_dir():
            raise StaError(
                f"The {split} images of {self.source} were looked for in {path}, but there is no such "
                f"folder: mend `root` or `{split}`."
            )
        return path


@dataclass(frozen=True)
class FolderOpener(_Opener):
    """Opens one folder a class, through torchvision's ``ImageFolder``."""

    classes: tuple[str, ...]

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        """Open a split; every class needs images in it."""
        path = self.folder(split, root)
        missing = [name for name in self.classes if not (path / name).is_dir()]
        if missing:
            raise StaError(
                f"The classes {listed(missing)} of {self.source} have no folder in {path}: one folder a "
                "class is needed."
            )
        try:
            return _ChosenFolders(path, self.classes)
        except FileNotFoundError as error:
            raise StaError(f"The {split} images of {self.source} cannot be read: {error}") from error


class _ChosenFolders(ImageFolder):
    """An ``ImageFolder`` whose classes are chosen beforehand."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._chosen = classes
        super().__init__(str(path))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the chosen classes."""
        return list(self._chosen), {name: label for label, name in enumerate(self._chosen)}


@dataclass(frozen=True)
class FlatOpener(_Opener):
    """Opens a folder that holds one image a class; the sorted order of the files is the label."""

    count: int = 0

    def __call__(self, split: Split, root: Path | None) -> Dataset[Any]:
        """Open a split; the number of files must be the number of classes."""
        files = self.files(split, root)
        if len(files) != self.count:
            raise StaError(
                f"{self.folder(split, root)} should hold one image for each of the {self.count} classes of "
                f"{self.source}; it holds {len(files)} images."
            )
        return FlatFolder(files)

    def files(self, split: Split, root: Path | None = None) -> list[Path]:
        """Return the image files of a split in label order."""
        found = self.folder(split, root).iterdir()
        return sorted(file for file in found if file.suffix.lower() in IMG_EXTENSIONS)


class FlatFolder(Dataset[tuple[Image.Image, int]]):
    """Images whose label is their place in the list."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.files[index]) as image:
            return image.convert("RGB"), range(len(self.files))[index]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StaError(f"The task file {path} was asked for, but there is no such file.")
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StaError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(settings, dict):
        raise StaError(
            f"{path} should hold keys and values, such as `name: my_task`; it holds "
            f"{type(settings).__name__}."
        )
    unknown = [str(key) for key in settings if key not in _KEYS]
    if unknown:
        raise StaError(
            f"{path} has the unknown keys {listed(unknown)}; a task file knows {listed(_KEYS, limit=20)}."
        )
    return settings


def _one_of(path: Path, settings: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = settings.get(key, allowed[0])
    if value not in allowed:
        raise StaError(f"{path} says `{key}: {value}`; it can be {listed(allowed)}.")
    return str(value)


def _strings(path: Path, settings: dict[str, Any], key: str) -> tuple[str, ...]:
    value = settings.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise StaError(f"{path}: `{key}` should be a list of texts.")
    return tuple(str(item) for item in value)


def _classes(
    path: Path, settings: dict[str, Any], opener: FolderOpener
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class folders in label order, and the classes' names."""
    names = settings.get("class_names")
    mapping = {str(folder): str(name) for folder, name in names.items()} if isinstance(names, dict) else {}
    include = _strings(path, settings, "include")
    if mapping and set(include) - set(mapping):
        raise StaError(
            f"{path}: `include` has {listed(sorted(set(include) - set(mapping)))}, which `class_names` does "
            "not name."
        )
    folders = tuple(sorted(set(include or mapping)))
    if not folders:
        split: Split = "train" if "train" in dict(opener.folders) else "test"
        folders = tuple(sorted(entry.name for entry in opener.folder(split).iterdir() if entry.is_dir()))
    if not folders:
        raise StaError(f"{path}: there is no class folder in {opener.folder('test')}.")
    if mapping:
        return folders, tuple(mapping[folder] for folder in folders)
    return folders, _given_names(path, settings, len(folders)) or tuple(
        folder.replace("_", " ") for folder in folders
    )


def _flat_names(path: Path, settings: dict[str, Any], opener: FlatOpener) -> tuple[str, ...]:
    given = _given_names(path, settings, None)
    return given or tuple(file.stem.split("_", 1)[-1].replace("_", " ") for file in opener.files("test"))


def _given_names(path: Path, settings: dict[str, Any], count: int | None) -> tuple[str, ...]:
    value = settings.get("class_names")
    if isinstance(value, str):
        from sta_lightning.tasks.registry import get_task

        names = get_task(value).class_names
    elif isinstance(value, dict):
        raise StaError(
            f"{path}: `class_names` cannot be a mapping from folders here; use a list, or the name of a task."
        )
    else:
        names = _strings(path, settings, "class_names")
    if names and count is not None and len(names) != count:
        raise StaError(f"{path}: `class_names` has {len(names)} names for {count} class folders.")
    return names
