from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sta_lightning.arithmetic.states import weight_names
from sta_lightning.arithmetic.vectors import difference
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import pretrained_file
from sta_lightning.engine import TaskSource
from sta_lightning.engine.job import source_files
from sta_lightning.errors import StaError
from sta_lightning.modules.parts import head_for, read_encoder
from sta_lightning.tasks import get_task
from sta_lightning.weights import provenance, tensor_digest
from sta_lightning.weights.formats import origins_entry


@dataclass(frozen=True)
class Frozen:
    """What a learned merge starts from and never changes.

    Attributes:
        encoder: The pretrained encoder, in evaluation mode.
        heads: The heads by task.
        vectors: What is added up, by name and tensor: the task vectors by task, and others.
        origin: What a written file says of the sources.
    """

    encoder: nn.Module
    heads: dict[str, ClassificationHead]
    vectors: dict[str, dict[str, Tensor]]
    origin: dict[str, str]

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        """Return itself: copies of the module, such as a running average, share it."""
        return self

    def on(self, device: torch.device) -> Frozen:
        """Return the same on a device; itself if it is there."""
        if next(iter(self.heads.values())).weight.device == device:
            return self
        vectors = {
            task: {name: value.to(device) for name, value in vector.items()}
            for task, vector in self.vectors.items()
        }
        heads = {task: head.to(device) for task, head in self.heads.items()}
        return replace(self, encoder=self.encoder.to(device), heads=heads, vectors=vectors)


def read_frozen(
    tasks: Mapping[str, tuple[str, TaskSource]],
    encoder_name: str,
    pretrained: str | None,
    image_size: int | None,
    trim: float | None = None,
    *,
    grams: bool = False,
) -> Frozen:
    """Build the pretrained encoder, read or make the heads, and make the task vectors.

    ``tasks`` has by task name the name or YAML file that it is found by, and its files, of which
    ``grams`` are read or not; the other arguments are those of
    :class:`~sta_lightning.modules.AdaMerging`.

    Raises:
        StaError: A source is missing or broken, or differs in names or shapes, or holds NaN or Inf:
            the message names it.
    """
    encoder = build_encoder(encoder_name, pretrained, image_size).eval().requires_grad_(False)
    base = encoder.state_dict()
    files = {task: str(source.finetuned) for task, (_, source) in tasks.items()}
    file = pretrained_file(encoder_name, pretrained)
    roles: dict[str, str | Path] = {f"finetuned/{task}": path for task, path in files.items()}
    roles |= {
        f"gram/{task}": str(source.gram) for task, (_, source) in tasks.items() if grams and source.gram
    }
    roles |= {} if file is None else {"pretrained": file}
    for role, path in roles.items():
        if not Path(path).exists():
            raise StaError(f"{role}: there is no weights file '{path}'. Check the path.")
    # The files are hashed when they are read: learning takes a while, and they may change.
    origin = {"sources": provenance("", {}, source_files(roles))["sources"], **origins_entry(roles)}
    if file is None:
        origin["pretrained_sha256"] = tensor_digest(base)
    vectors = _vectors(base, files, trim)
    heads = {
        task: head_for(get_task(spec), encoder_name, pretrained, encoder, file=source.head).eval()
        for task, (spec, source) in tasks.items()
    }
    return Frozen(encoder, heads, vectors, origin)


def _vectors(
    base: Mapping[str, Tensor], files: Mapping[str, str], trim: float | None
) -> dict[str, dict[str, Tensor]]:
    if trim is not None:
        # Imported here: the other variants do not need it.
        from sta_lightning.arithmetic.baselines.ties import ties_vectors

        states = {task: read_encoder(path, base, f"task {task!r}") for task, path in files.items()}
        trimmed = ties_vectors(base, states, keep=trim)
        return {task: dict(trimmed[task]) for task in files}
    vectors: dict[str, dict[str, Tensor]] = {}
    for task, path in files.items():  # one fine-tuned encoder at a time
        state = read_encoder(path, base, f"task {task!r}")
        vectors[task] = {name: difference(base[name], state[name]) for name in weight_names(base)}
    return vectors
