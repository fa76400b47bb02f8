"""The YAML file of a task of one's own: what folders, tables and hub data sets have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

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
    """

    path: Path
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> TaskFile:
        """Read a file.

        Raises:
            StaError: if there is none, or it does not hold keys and values.
        """
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
        return cls(path, settings)

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
        """Return a mapping from texts to texts; empty if the value is none."""
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

    def home(self) -> str:
        """Return the folder of the images, with ``~`` and ``$VARIABLES`` as they are written."""
        folder = str(self.path.absolute().parent)
        given = self.settings.get("root")
        if given is None:
            return folder
        written = str(given)
        absolute = Path(os.path.expandvars(written)).expanduser().is_absolute() or "$" in written
        return written if absolute else str(Path(folder) / written)

    def task(
        self, names: Iterable[str], opener: Opener, given: Iterable[Split], default_name: str | None = None
    ) -> Task:
        """Make the task.

        Args:
            names: Its classes.
            opener: Opens its splits.
            given: The splits that there are.
            default_name: Its name if the file says none; by default the file's.

        Raises:
            StaError: if two classes have one name, or a setting is wrong.
        """
        classes = tuple(names)
        twice = (
            sorted({name for name in classes if classes.count(name) > 1})
            if len(set(classes)) < len(classes)
            else []
        )
        if twice:
            raise StaError(
                f"{self.path}: more than one class is named {listed(twice)}. Prompts distinguish classes by their names: "
                "give each one of its own in `class_names`."
            )
        present = set(given)
        own_validation = "validation" in present or "train" not in present
        return Task(
            name=str(self.settings.get("name") or default_name or self.path.stem),
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


def image_folder(source: Path, home: str, root: Path | None) -> Path:
    """Return the folder below which a task's images lie.

    Args:
        source: The task's file, for the message.
        home: What the file says, see ``TaskFile.home``.
        root: What the user gave besides; it takes precedence.

    Raises:
        StaError: if an environment variable is not set.
    """
    base = str(root) if root is not None else os.path.expandvars(home)
    if "$" in base:
        raise StaError(
            f"The images of {source} lie below '{base}', but that environment variable is not set: "
            "set it, or give the folder with the option `root`."
        )
    return Path(base).expanduser()
