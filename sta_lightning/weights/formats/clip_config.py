"""What shapes do not tell of a CLIP, and Hugging Face's configuration wants: heads, activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.architecture import Architecture, Tower

Activation = Literal["quick_gelu", "gelu"]
EPS = 1e-5
"""What open_clip's layer norms add to the variance, whatever the model."""
_HEAD_WIDTH = 64  # open_clip's, where a configuration does not say


@dataclass(frozen=True)
class Computed:
    """How a CLIP computes with its weights.

    Attributes:
        activation: between the two layers of a block's perceptron.
        heads: attention heads of the image encoder.
        text_heads: attention heads of the text tower; ``None`` where it is not known.
        eps: what the layer norms add to the variance.
    """

    activation: Activation
    heads: int
    text_heads: int | None = None
    eps: float = EPS


def from_open_clip(config: Mapping[str, Any], activation: Activation | None = None) -> Computed:
    """What a configuration of open_clip says, unless another activation is known, as of a tag."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    plain: Activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    heads = int(vision.get("width", 768)) // int(vision.get("head_width", _HEAD_WIDTH))
    return Computed(activation or plain, heads, int(text.get("heads", 8)))


def from_huggingface(config: Mapping[str, Any], title: str) -> Computed:
    """What the ``config.json`` of a ``CLIPModel`` or a ``CLIPVisionModel`` says.

    Raises:
        StaError: it describes another model, or an activation that open_clip does not have.
    """
    kind, vision = config.get("model_type"), config.get("vision_config", config)
    sides = [vision, *([config["text_config"]] if "text_config" in config else [])]
    if kind not in ("clip", "clip_vision_model") or not all(isinstance(side, Mapping) for side in sides):
        raise StaError(
            f"the config.json beside {title} describes a model of the type {kind!r}, not CLIP. Give a CLIPModel or a "
            "CLIPVisionModel."
        )
    # What is left out has the value that Hugging Face's class gives it.
    activations = {str(side.get("hidden_act", "quick_gelu")) for side in sides}
    try:
        epsilons = {float(side.get("layer_norm_eps", EPS)) for side in sides}
        heads = int(vision.get("num_attention_heads", 12))
        text_heads = int(sides[1].get("num_attention_heads", 8)) if len(sides) > 1 else None
    except (TypeError, ValueError) as error:
        raise StaError(f"the config.json beside {title} is damaged: {error}. Download it again.") from error
    if len(activations) != 1 or not activations <= {"quick_gelu", "gelu"} or len(epsilons) != 1:
        raise StaError(
            f"the config.json beside {title} asks for the activations {sorted(activations)} and layer norms of "
            f"{sorted(epsilons)}; open_clip's CLIP has one of 'quick_gelu' and 'gelu', and one of the latter."
        )
    activation: Activation = "quick_gelu" if "quick_gelu" in activations else "gelu"
    return Computed(activation, heads, text_heads, epsilons.pop())


def openai(architecture: Architecture) -> Computed:
    """OpenAI's vision transformers: heads of 64 features, and QuickGELU."""
    assert architecture.vision is not None
    text = architecture.text
    heads = architecture.vision.width // _HEAD_WIDTH
    return Computed("quick_gelu", heads, None if text is None else text.width // _HEAD_WIDTH)


def huggingface_config(architecture: Architecture, computed: Computed) -> dict[str, Any]:
    """The ``config.json`` of a CLIP, or of an image encoder where there is no text tower.

    Raises:
        StaError: the model is no plain vision transformer, or its heads do not divide its width.
    """
    if architecture.vision is None:
        raise StaError(
            f"Hugging Face's CLIP has plain vision transformers only; this model is {architecture.title}. Use --to open_clip "
            "or --to safetensors."
        )
    features = architecture.features
    projection = {} if features is None else {"projection_dim": features}
    vision = {
        "model_type": "clip_vision_model",
        **_tower(architecture.vision, computed.heads, computed),
        "num_channels": 3,
        "image_size": architecture.image_size,
        "patch_size": architecture.patch,
        **projection,
    }
    if architecture.text is None:
        kind = "CLIPVisionModel" if features is None else "CLIPVisionModelWithProjection"
        return {"architectures": [kind], **vision}
    vocabulary = architecture.vocabulary or 0
    text = {
        "model_type": "clip_text_model",
        **_tower(architecture.text, computed.text_heads or 0, computed),
        "vocab_size": vocabulary,
        "max_position_embeddings": architecture.text.tokens,
        # CLIP's tokenizer ends its vocabulary with these; the text's features are read at the last.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        **projection,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **projection,
        "vision_config": vision,
        "text_config": text,
    }


def _tower(tower: Tower, heads: int, computed: Computed) -> dict[str, Any]:
    if heads < 1 or tower.width % heads:
        raise StaError(
            f"a tower of width {tower.width} cannot have {heads} attention heads. Name the architecture with --encoder."
        )
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": heads,
        "hidden_act": computed.activation,
        "layer_norm_eps": computed.eps,
        "attention_dropout": 0.0,
    }
