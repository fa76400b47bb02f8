"""Architectures that open_clip builds: its own, the package's miniature, and those of the hub."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from sta_lightning.encoders.hub import HUB_PREFIX, Repository
from sta_lightning.errors import StaError, listed

MINIATURE = "miniature"
TIMM_PREFIX = "timm/"
RANDOM = "random"
"""The value of ``pretrained`` for random weights, drawn from PyTorch's global generator."""
MINIATURE_CONFIG = Path(__file__).with_name("miniature.json")


def is_hub_name(name: str) -> bool:
    """Tell whether an encoder is named by its repository on the hub."""
    return name.startswith(HUB_PREFIX)


def has_text_tower(name: str) -> bool:
    """Tell whether the encoder comes with a text tower, and so has zero-shot heads."""
    return not name.startswith(TIMM_PREFIX)


def model_config(name: str) -> dict[str, Any]:
    """Return open_clip's description of an architecture: ``embed_dim``, ``vision_cfg`` and more.

    Args:
        name: ``miniature``, an open_clip architecture, or ``hf-hub:org/name`` (and ``@revision``).

    Raises:
        StaError: if there is no such architecture, or its repository cannot be had.
    """
    if name == MINIATURE:
        return dict(json.loads(MINIATURE_CONFIG.read_text(encoding="utf-8")))
    if is_hub_name(name):
        return dict(Repository.parse(name).config()["model_cfg"])
    import open_clip

    # Names with a colon are the library's own way to folders and repositories, past the rules of
    # this package.
    config = None if ":" in name else open_clip.get_model_config(name)
    if config is None:
        raise StaError(
            f"The encoder '{name}' was asked for. Known are '{MINIATURE}', a timm model as 'timm/<name>', a repository of the "
            f"hub as 'hf-hub:<org>/<name>' and the models of open_clip: {listed(open_clip.list_models(), limit=12)}."
        )
    return dict(config)


def registered_name(name: str) -> str:
    """Return the name under which open_clip knows an architecture; it is made known if need be."""
    import open_clip

    if name != MINIATURE and not is_hub_name(name):
        return name
    config = model_config(name)
    # open_clip names a config after its file: ours is registered under a name that cannot clash.
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    known = "sta-miniature" if name == MINIATURE else f"sta-hub-{digest[:16]}"
    if open_clip.get_model_config(known) is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{known}.json"
            path.write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(path)
    return known
