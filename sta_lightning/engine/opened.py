"""What a merge holds: the pretrained model, the opened files, the merged model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sta_lightning.arithmetic import Merged, MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import SourceDict


@dataclass(frozen=True)
class Pretrained:
    """The pretrained encoder.

    Attributes:
        name: the encoder's name; ``None`` where nobody tells it.
        tensors: its tensors.
        prefix: what stands in front of their names in files.
        file: where they come from; ``None`` if a library made them.
        digest: digest of the tensors, where there is no file.
        image_size: side of its input in pixels; ``None`` for its own.
        tag: what its weights were asked for by, where that is no file: a tag of open_clip, or
            ``random``.
        architecture: what it is by its shapes, in words, where nobody tells the name.
        rest: what the file holds of a whole CLIP besides, in open_clip's names.
        shared: further names of ``tensors``, by which the file calls them too -> their names.
    """

    name: str | None
    tensors: SourceDict
    prefix: str
    file: Path | None = None
    digest: str | None = None
    image_size: int | None = None
    tag: str | None = None
    architecture: str | None = None
    rest: SourceDict = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """What a job merges, its files open.

    Attributes:
        problem: the image encoders.
        copied: what else the model that is changed has, by names in the file that is written.
        tower: whether it has a text tower.
        changes: that as a problem, where a task has changed it; ``None`` where it is copied.
        method: the name of the method that merges it, and the method.
    """

    problem: Problem
    copied: SourceDict = field(default_factory=dict)
    tower: bool = False
    changes: Problem | None = None
    method: tuple[str, MergeMethod] | None = None

    @property
    def described(self) -> dict[str, str]:
        """What the metadata says of the text tower, if there is one."""
        if not self.tower:
            return {}
        return {"text_tower": "copied" if self.method is None else f"merged: {self.method[0]}"}


@dataclass(frozen=True)
class Whole:
    """A merged model in memory: image encoder, the rest, and what a file of it says."""

    encoder: Merged
    rest: Merged
    metadata: dict[str, str]
