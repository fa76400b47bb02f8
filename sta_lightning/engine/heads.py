"""Heads in the file of a merged encoder, beside its tensors and described in its metadata."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import whole
from sta_lightning.documents import read_json
from sta_lightning.engine.sources import TaskSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import SAFETENSORS, TensorFile, load_weights, read_metadata

HEADS_ENTRY = "heads"
"""The metadata's entry: JSON, task -> ``class_names`` (a list, or null) and ``normalize``."""
CLASSES_ENTRY = "class_names"
"""The entry in the metadata of a head's own file: JSON, a list of names in label order."""


@dataclass(frozen=True)
class TaskHead:
    """The head of a task.

    Attributes:
        weight: shape ``[C, D]``, one row a class.
        bias: shape ``[C]``, or none.
        normalize: whether features are divided by their Euclidean norm first.
        class_names: the classes in label order; ``None`` where they are not known.

    Raises:
        StaError: if the shapes or the names do not fit each other.
    """

    weight: Tensor
    bias: Tensor | None = None
    normalize: bool = True
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or (self.bias is not None and self.bias.shape != self.weight.shape[:1]):
            found = tuple(self.weight.shape), None if self.bias is None else tuple(self.bias.shape)
            raise StaError(
                f"A head needs a weight [classes, features] and a bias [classes] or none; found {found}."
            )
        if self.class_names is not None and len(self.class_names) != len(self.weight):
            raise StaError(
                f"A head of {len(self.weight)} classes was given {len(self.class_names)} class names. Give the names of the "
                "task that it was made for."
            )


def head_tensors(heads: Mapping[str, TaskHead], others: Collection[str] = ()) -> dict[str, Tensor]:
    """The heads' tensors by their names in a file: ``head.<task>.weight``, ``head.<task>.bias``.

    Raises:
        StaError: a name is one of the ``others``, of what else is in the file.
    """
    found: dict[str, Tensor] = {}
    for task, head in heads.items():
        found[f"head.{task}.weight"] = head.weight.detach()
        if head.bias is not None:
            found[f"head.{task}.bias"] = head.bias.detach()
    if twice := sorted(found.keys() & set(others)):
        raise StaError(
            f"the heads cannot go into one file with the encoder, which has tensors of their names: {listed(twice)}. Rename "
            "the task, or leave model.heads out."
        )
    return found


def head_metadata(heads: Mapping[str, TaskHead]) -> dict[str, str]:
    """What a file's metadata says of the heads in it."""
    described = {
        task: {CLASSES_ENTRY: head.class_names, "normalize": head.normalize}
        for task, head in sorted(heads.items())
    }
    return {HEADS_ENTRY: json.dumps(described, ensure_ascii=False, separators=(",", ":"))}


def read_heads(path: str | Path) -> dict[str, TaskHead]:
    """The heads that a merged encoder's file brings along; only they are read.

    Returns:
        Task -> head; empty for a file without any.

    Raises:
        StaError: names the file if it is broken, or its heads are not what its metadata says.
    """
    if Path(path).suffix != SAFETENSORS:
        return {}
    with TensorFile(path) as file:
        text = file.metadata.get(HEADS_ENTRY)
        if text is None:
            return {}
        try:
            return {
                task: TaskHead(
                    whole(file[f"head.{task}.weight"], torch.float32),
                    whole(file[f"head.{task}.bias"], torch.float32) if f"head.{task}.bias" in file else None,
                    bool(said["normalize"]),
                    _names(said[CLASSES_ENTRY]),
                )
                for task, said in read_json(text).items()
            }
        except StaError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StaError(
                f"The heads in '{path}' are not what its metadata says ({error!r}). Merge again with model.heads."
            ) from error


def read_head_file(path: str | Path) -> TaskHead:
    """A head from a file of its own, as ``ClassificationHead.save`` writes it.

    Raises:
        StaError: names the file if it is missing or holds no head.
    """
    tensors, metadata = load_weights(path), read_metadata(path)
    if "weight" not in tensors or metadata.get("normalize") not in ("true", "false"):
        raise StaError(
            f"{path} is not a classification head: it should hold 'weight' and say 'normalize' in its metadata."
        )
    try:
        names = _names(read_json(metadata.get(CLASSES_ENTRY, "null")))
    except (ValueError, TypeError) as error:
        raise StaError(
            f"The class names in the metadata of '{path}' are no list of texts. Make the head again."
        ) from error
    return TaskHead(tensors["weight"], tensors.get("bias"), metadata["normalize"] == "true", names)


def heads_of_files(tasks: Mapping[str, TaskSource]) -> dict[str, TaskHead]:
    """The heads of tasks from their files.

    Raises:
        StaError: a task names no file of its head, or the file is none.
    """
    if without := [task for task, files in tasks.items() if files.head is None]:
        raise StaError(
            f"model.heads was asked for, but no head file is given for {listed(without)}. Without an evaluation heads are read "
            "and not made: name them in model.files.head or model.tasks (head: FILE), or leave --evaluate=false out."
        )
    return {task: read_head_file(str(files.head)) for task, files in tasks.items()}


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)
