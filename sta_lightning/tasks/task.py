"""A task: one classification problem with its class names, prompts and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch.utils.data import Dataset, Subset

from sta_lightning.errors import StaError, listed
from sta_lightning.tasks.split import split_indices

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Opener = Callable[[Split, Path | None], Dataset[Any]]


def names_in(text: str) -> tuple[str, ...]:
    """Names in a text, between ``|`` and the ends of lines."""
    return tuple(name.strip() for line in text.strip().splitlines() for name in line.split("|"))


@dataclass(frozen=True)
class Task:
    """One classification problem.

    Attributes:
        name: A short name without spaces; logged metrics and files carry it.
        class_names: The classes in label order, as they appear in prompts.
        templates: Prompt templates; ``{}`` stands for the class name.
        opener: Opens a split below a root folder (or its default place) as a data set of ``(image,
            label)``, the image a PIL image or a uint8 tensor ``[3, H, W]``. It must be picklable,
            hence a function of a module or an object of a class. A method ``fingerprint(split,
            root)`` of it, if it has one, returns a text that changes whenever the split's images or
            labels do; only then can decoded images be cached.
        own_validation: Whether the opener has a validation split of its own. Otherwise ``train``
            opens the whole published training set, and ``split_indices`` divides it.
        head: ``auto`` (zero-shot, or class prototypes for encoders without a text tower), or
            ``own`` for the classifier that the model came with.
        splits: The splits that the task has; a control set may have ``test`` alone.
        downloader: Fetches the published files into a root folder, for tasks whose files can be
            fetched.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    opener: Opener
    own_validation: bool = False
    head: Literal["auto", "own"] = "auto"
    splits: tuple[Split, ...] = SPLITS
    downloader: Callable[[Path | None], None] | None = None

    def __post_init__(self) -> None:
        # Tables of Lightning's show it, and files carry it.
        wrong = (letter.isspace() or letter in "/." or not letter.isprintable() for letter in self.name)
        if not self.name or any(wrong):
            raise StaError(f"A task was named {self.name!r}: use a name without spaces, slashes and dots.")
        if not self.class_names:
            raise StaError(f"The task '{self.name}' has no classes.")
        unfit = [template for template in self.templates if "{}" not in template]
        if not self.templates or unfit:
            raise StaError(
                f"Prompt templates of '{self.name}' need '{{}}' in the class name's place; without it: "
                f"{listed(unfit)}."
            )

    def dataset(self, split: Split, root: str | Path | None = None) -> Dataset[Any]:
        """Open one split.

        Args:
            split: ``train``, ``validation`` or ``test``.
            root: The folder that holds the data; by default the task's own place.

        Returns:
            A map-style data set of ``(image, label)``.

        Raises:
            StaError: if the task has no such split, or its files are missing.
        """
        if split not in self.splits:
            raise StaError(
                f"The split '{split}' of the task '{self.name}' was asked for; it has {listed(self.splits)}."
            )
        whole = self.opener(self._opened(split), _expanded(root))
        if split == "test" or self.own_validation:
            return whole
        train, validation = split_indices(len(cast(Any, whole)))
        return Subset(whole, train if split == "train" else validation)

    @property
    def has_fingerprint(self) -> bool:
        """Whether the opener can tell when images or labels change."""
        return callable(getattr(self.opener, "fingerprint", None))

    def fingerprint(self, split: Split, root: str | Path | None = None) -> str:
        """Return a text that changes whenever a split's images or labels do; no image is read.

        Raises:
            StaError: if the opener has no fingerprint.
        """
        if not self.has_fingerprint:
            raise StaError(
                f"The images of the task '{self.name}' cannot be cached: their opener has no fingerprint. Leave `cache_images` "
                "out, or give the task's opener a method fingerprint(split, root)."
            )
        digest = cast(Any, self.opener).fingerprint(self._opened(split), _expanded(root))
        return f"{split} of {digest}"

    def download(self, root: str | Path | None = None) -> None:
        """Fetch the published files; does nothing if they are there.

        Raises:
            StaError: if this task's files cannot be fetched.
        """
        if self.downloader is None:
            raise StaError(
                f"The images of the task '{self.name}' cannot be downloaded: leave `download` out."
            )
        self.downloader(_expanded(root))

    def _opened(self, split: Split) -> Split:
        return split if split == "test" or self.own_validation else "train"


def _expanded(root: str | Path | None) -> Path | None:
    return None if root is None else Path(root).expanduser()
