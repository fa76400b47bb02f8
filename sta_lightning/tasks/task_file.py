"""The YAML file of a task of one's own: what folders, tables and hub data sets have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from sta_lightning.documents import read_yaml
from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.registry import named_task
from sta_lightning.tasks.task import SPLITS, Opener, Split, Task

COMMON_KEYS = ("name", "root", "class_names", "templates", "head")
_TEMPLATES = ("a photo of a {}.", "a picture of a {}.")


@dataclass(frozen=True)
class TaskFile:
    """A task's YAML file, read.

    Attributes:
        path: The file, for messages.
        settings: Its keys and values.
        home: The folder of the images, with ``~`` and ``$VARIABLES`` as they are written.
    """

    path: Path
    settings: Mapping[str, Any]
    home: str

    @classmethod
    def read(cls, path: Path) -> TaskFile:
        """Read a file.

        Raises:
            StaError: if there is none, or it does not hold keys and values.
        """
        if not path.is_file():
            raise StaError(f"The task file {path} was asked for, but there is no such file.")
        try:
            settings = read_yaml(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise StaError(f"{path} is not a YAML file: {error}") from error
        if not isinstance(settings, dict):
            raise StaError(
                f"{path} should hold keys and values, such as `name: my_task`; it holds {type(settings).__name__}."
            )
        root = str(settings.get("root") or "")
        home = root if root.startswith("~") or "$" in root else str(path.absolute().parent / root)
        return cls(path, settings, home)

    def folder(self, root: Path | None) -> Path:
        """Return the folder below which the images lie: ``root`` if given, or what the file says.

        Raises:
            StaError: if an environment variable is not set.
        """
        base = str(root) if root is not None else os.path.expandvars(self.home)
        if "$" in base:
            raise StaError(
                f"The images of {self.path} lie below '{base}', but that environment variable is not set: "
                "set it, or give the folder with the option `root`."
            )
        return Path(base).expanduser()

    def only(self, known: Sequence[str]) -> None:
        """Refuse keys that are not known."""
        unknown = [str(key) for key in self.settings if key not in known]
        if unknown:
            raise StaError(
                f"{self.path} has the unknown keys {listed(unknown)}; a task file like this knows "
                f"{listed(known, limit=20)}."
            )

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        """Return a value that must be one of some; the first by default."""
        value = self.settings.get(key, allowed[0])
        if value not in allowed:
            raise StaError(f"{self.path} says `{key}: {value}`; it can be {listed(allowed)}.")
        return str(value)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; none by default."""
        value = self.settings.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not value:
            raise StaError(f"{self.path}: `{key}` should be a list of texts.")
        return tuple(self._text(key, item) for item in value)

    def mapping(self, key: str) -> dict[str, str]:
        """Return a mapping from texts to texts; empty for any other value."""
        value = self.settings.get(key)
        if not isinstance(value, dict):
            return {}
        return {self._text(key, one): self._text(key, other) for one, other in value.items()}

    def names(self) -> tuple[str, ...]:
        """Return ``class_names`` if a list, or the name of a task with them; else none."""
        value = self.settings.get("class_names")
        if isinstance(value, str):
            return named_task(value).class_names
        return () if isinstance(value, dict) else self.strings("class_names")

    def names_of(self, classes: Sequence[str], what: str) -> tuple[str, ...]:
        """Return how given classes read in a prompt: by the mapping, the list, or as they are."""
        if mapping := self.mapping("class_names"):
            return tuple(mapping[name] for name in classes)
        names = self.names()
        if names and len(names) != len(classes):
            raise StaError(
                f"{self.path}: `class_names` has {len(names)} names for {len(classes)} {what}: "
                f"{listed(classes, limit=10)}."
            )
        return names or tuple(name.replace("_", " ") for name in classes)

    def task(self, names: Iterable[str], opener: Opener, given: Iterable[Split]) -> Task:
        """Make the task of its class names, its opener and the splits that there are.

        Raises:
            StaError: if two classes have one name, or a setting is wrong.
        """
        classes = tuple(names)
        twice = sorted(name for name, count in Counter(classes).items() if count > 1)
        if twice:
            raise StaError(
                f"{self.path}: more than one class is named {listed(twice)}. Prompts distinguish classes by their names: "
                "give each one of its own in `class_names`."
            )
        present = set(given)
        own_validation = "validation" in present or "train" not in present
        return Task(
            name=str(self.settings.get("name") or self.path.stem),
            class_names=classes,
            templates=self.strings("templates") or _TEMPLATES,
            opener=opener,
            own_validation=own_validation,
            head=cast(Literal["auto", "own"], self.one_of("head", ("auto", "own"))),
            splits=tuple(split for split in SPLITS if split in present) if own_validation else SPLITS,
        )

    def _text(self, key: str, item: Any) -> str:
        if item is None or isinstance(item, (bool, dict, list)):
            raise StaError(
                f"{self.path}: `{key}` has {item!r} where a text should be; put words that YAML takes for something else "
                "(yes, no, on, off, null) into quotes."
            )
        return str(item)
