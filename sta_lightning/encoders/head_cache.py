"""Zero-shot heads kept on disk: a large text tower is built once for every set of prompts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from sta_lightning.arithmetic.sources import whole
from sta_lightning.cache import cache_directory
from sta_lightning.encoders.architectures import model_config
from sta_lightning.encoders.sources import Weights
from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_prefix, load_weights, read_metadata, save_weights, tensor_digest
from sta_lightning.weights.formats import open_checkpoint

_RECIPE = 1
"""Counted up whenever the same text tower and prompts are made into another head."""


def cached_head(
    name: str,
    weights: Weights,
    class_names: Sequence[str],
    templates: Sequence[str],
    make: Callable[[], Tensor],
) -> Tensor:
    """Return a zero-shot head from the cache, or make and keep it.

    The file is named after everything that the head follows from: the text tower's tensors and
    description, the class names, the templates. The image encoder is no part of it, nor is the
    place of the weights; random ones are not cached. ``make`` makes the head ``[C, D]``.
    """
    if weights.file is None:
        return make()
    status = weights.file.stat()
    tower = _tower_digest(str(weights.file.absolute()), status.st_mtime_ns, status.st_size)
    config = {key: value for key, value in model_config(name).items() if key != "vision_cfg"}
    # Some of the library's tokenizers are chosen by the architecture's name.
    described = [_RECIPE, name, config, weights.quick_gelu, tower, list(class_names), list(templates)]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    path = cache_directory() / "heads" / f"{key}.safetensors"
    found = _read(path)
    if found is None:
        found = make().contiguous()
        tensors = {"weight": found}
        # Where nothing can be kept, the head is made again next time.
        with contextlib.suppress(StaError):
            save_weights(path, tensors, {"kind": "head", "sha256": tensor_digest(tensors)})
    return found


@lru_cache(maxsize=8)
def _tower_digest(path: str, written: int, size: int) -> str:
    """Digest of a CLIP's tensors but its image encoder's; in an unknown layout all tensors count.

    Only the text tower is read, which is a small part of a large model.
    """
    with ExitStack() as stack:
        tensors = open_checkpoint(path, stack).tensors
        prefix = encoder_prefix(tensors)
        beside = {n: s for n, s in tensors.items() if not (prefix and n.startswith(prefix))}
        return tensor_digest({name: whole(source) for name, source in beside.items()})


def _read(path: Path) -> Tensor | None:
    """A head of the cache, if it is there and whole."""
    with contextlib.suppress(StaError):
        tensors, said = load_weights(path), read_metadata(path)
        if said.get("sha256") == tensor_digest(tensors):
            return tensors.get("weight")
    return None
