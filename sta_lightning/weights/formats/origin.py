"""What a checkpoint says, or lets guess, of who made it and how it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.architecture import Architecture, Configs
from sta_lightning.weights.formats.checkpoint import CONFIG, Checkpoint
from sta_lightning.weights.formats.clip_config import (
    Activation,
    Computed,
    from_huggingface,
    from_open_clip,
    openai,
)
from sta_lightning.weights.provenance import PACKAGE, decoded

_LIGHTNING = "pytorch-lightning_version"


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that this package's files and Lightning's carry; empty for others."""
    found = decoded(checkpoint.metadata, "settings") if checkpoint.is_ours else None
    found = checkpoint.facts.get("hyper_parameters") if found is None else found
    if found is None and "encoder" in checkpoint.metadata:
        return {"encoder": checkpoint.metadata["encoder"]}  # of the CLIP that the package ships
    return dict(found) if isinstance(found, Mapping) else {}


def made_by(checkpoint: Checkpoint) -> str:
    """The program that wrote a checkpoint, as far as it tells."""
    metadata, facts = checkpoint.metadata, checkpoint.facts
    if checkpoint.is_ours:
        return f"{PACKAGE} {metadata.get('version', '')}".strip()
    if _LIGHTNING in facts:
        return f"Lightning {facts[_LIGHTNING]}"
    if checkpoint.container == "TorchScript archive":
        return "OpenAI's CLIP, as TorchScript" if checkpoint.layout.openai else "TorchScript"
    if checkpoint.layout.kind == "huggingface":
        version = (checkpoint.beside(CONFIG) or {}).get("transformers_version")
        return f"Hugging Face transformers{f' {version}' if version else ''}"
    if "class" in facts:
        return f"a pickled module of the class {facts['class']}"
    if {"epoch", "name"} <= set(facts):
        return f"a training of open_clip, '{facts['name']}', epoch {facts['epoch']}"
    return "it does not say"


def known_name(
    checkpoint: Checkpoint, architecture: Architecture, configs: Configs, activation: str | None
) -> str | None:
    """The architecture's name: as the checkpoint says, else the first of its sizes."""
    said = settings_of(checkpoint).get("encoder")
    if isinstance(said, str):
        return said
    for name in architecture.names:
        if activation is None or bool(configs[name].get("quick_gelu")) == (activation == "quick_gelu"):
            return name
    return None


def computed_by(
    checkpoint: Checkpoint, architecture: Architecture, configs: Configs, encoder: str | None = None
) -> Computed | None:
    """How a CLIP computes with its weights; ``None`` where nobody says it, and for timm's models.

    ``encoder`` is the architecture's name, as the user gives it.

    Raises:
        StaError: there is no architecture of that name.
    """
    layout = checkpoint.layout
    if layout.kind == "timm":
        return None
    if encoder is not None:
        if encoder not in configs:
            raise StaError(
                f"--encoder {encoder!r} is not known. Known are open_clip's architectures and 'miniature'; of this file's "
                f"sizes are {listed(architecture.names)}."
            )
        return from_open_clip(configs[encoder])
    config = checkpoint.beside(CONFIG) if layout.kind == "huggingface" else None
    if config is not None:
        return from_huggingface(config, checkpoint.title)
    if layout.openai and architecture.vision is not None:
        return openai(architecture)
    activation = _activation(checkpoint, configs)
    name = settings_of(checkpoint).get("encoder")
    if not isinstance(name, str) or name not in configs:
        name = next(iter(architecture.names), None)
    return None if activation is None or name is None else from_open_clip(configs[name], activation)


def _activation(checkpoint: Checkpoint, configs: Configs) -> Activation | None:
    converted = decoded(checkpoint.metadata, "converted")
    said = converted.get("activation") if isinstance(converted, Mapping) else None
    if said in ("quick_gelu", "gelu"):
        return "quick_gelu" if said == "quick_gelu" else "gelu"
    settings = settings_of(checkpoint)
    name = settings.get("encoder")
    if not isinstance(name, str) or name not in configs:
        return None
    if configs[name].get("quick_gelu"):
        return "quick_gelu"
    # A tag of open_clip can ask for the approximation under a name that does not; the tag itself
    # says which.
    pretrained = settings.get("pretrained")
    if pretrained == "openai":
        return "quick_gelu"
    from_tag = "pretrained_sha256" in checkpoint.metadata or (
        isinstance(pretrained, str) and pretrained != "random" and not Path(pretrained).suffix
    )
    return None if from_tag else "gelu"
