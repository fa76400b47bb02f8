"""Writes the cache of the Hugging Face hub in its own layout: blobs, snapshots, references."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sta_lightning.encoders.architectures import MINIATURE_CONFIG
from sta_lightning.weights import save_weights

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def write_repository(
    cache: Path, name: str, commit: str, files: Mapping[str, Path], reference: str | None = "main"
) -> None:
    """Put files into the cache as a download of one commit leaves them.

    Args:
        cache: The hub's cache folder.
        name: ``org/name``.
        commit: The commit's hash.
        files: Name in the repository -> file with its content.
        reference: The branch or tag that points to the commit, if any does.
    """
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for own, source in files.items():
        content = source.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / own).symlink_to(os.path.relpath(blob, snapshot))
    if reference is not None:
        (home / "refs" / reference).write_text(commit)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """What ``open_clip_config.json`` of a small CLIP says."""
    model = json.loads(MINIATURE_CONFIG.read_text())
    model["vision_cfg"] |= {"image_size": 16, "layers": 2}
    model["text_cfg"] |= {"layers": 1, "vocab_size": 49408}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "shortest"}
    return {"model_cfg": {**model, **changes}, "preprocess_cfg": preprocess}


def written(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def random_clip(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The state dict of a CLIP of that description, built by open_clip itself."""
    import open_clip

    torch.manual_seed(seed)
    return dict(open_clip.CLIP(**config["model_cfg"]).state_dict())


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a state dict, by the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_weights(path, state)
    else:
        torch.save(dict(state), path)
    return path
