"""Hugging Face's names of CLIP, to open_clip's and back.

The two hold the same numbers. Hugging Face keeps query, key and value apart, where open_clip has
one matrix of all three, and its projections are transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.architecture import blocks
from sta_lightning.weights.formats.layout import Layout
from sta_lightning.weights.formats.views import Joined, Rows, Transposed

VISION, TEXT = "vision_model.", "text_model."

# open_clip's name -> Hugging Face's; "pre_layrnorm" is misspelt there, for good.
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_JOINED = ("q_proj", "k_proj", "v_proj")
# Counters that older versions kept in their files; the models make them anew.
_COUNTERS = ("embeddings.position_ids",)


def encoder_from_huggingface(tensors: SourceDict, layout: Layout, title: str) -> dict[str, TensorSource]:
    """The image encoder in open_clip's names.

    Args:
        tensors: of a ``CLIPModel``, ``CLIPVisionModel`` or ``CLIPVisionModelWithProjection``.
        layout: what :func:`~sta_lightning.weights.formats.layout.recognise` found.
        title: what to call the checkpoint in a message.

    Returns:
        Tensor name, as in open_clip's ``visual`` -> tensor. ``proj`` is missing where the
        checkpoint has no projection.

    Raises:
        StaError: tensors are missing or unknown.
    """
    found = _from_tower(tensors, layout.prefix, _VISION, title)
    if layout.projection:
        outer = layout.prefix.removesuffix(VISION)
        found["proj"] = Transposed(tensors[f"{outer}visual_projection.weight"])
    return found


def clip_from_huggingface(tensors: SourceDict, layout: Layout, title: str) -> dict[str, TensorSource]:
    """A whole CLIP in open_clip's names; see :func:`encoder_from_huggingface`.

    Raises:
        StaError: as there, or there is no text tower.
    """
    outer = layout.prefix.removesuffix(VISION)
    lacking = [
        name
        for name in ("text_projection.weight", "visual_projection.weight", "logit_scale")
        if outer + name not in tensors
    ]
    if layout.text is None or lacking:
        raise StaError(f"{title} holds no whole CLIP: it lacks {listed(lacking or ['the text tower'])}.")
    encoder = encoder_from_huggingface(tensors, layout, title)
    found = {f"visual.{name}": source for name, source in encoder.items()}
    found |= _from_tower(tensors, layout.text, _TEXT, title)
    found["text_projection"] = Transposed(tensors[f"{outer}text_projection.weight"])
    found["logit_scale"] = tensors[f"{outer}logit_scale"]
    return found


def encoder_to_huggingface(encoder: SourceDict, title: str) -> dict[str, TensorSource]:
    """An image encoder in Hugging Face's names, as its ``CLIPVisionModelWithProjection`` has them.

    Args:
        encoder: in open_clip's names, without a prefix.
        title: what to call it in a message.

    Raises:
        StaError: it is not a plain vision transformer of CLIP, and so has no place there.
    """
    rest = dict(encoder)
    projection = rest.pop("proj", None)
    found = _to_tower(rest, VISION, _VISION, title)
    if projection is not None:
        found["visual_projection.weight"] = Transposed(projection)
    return found


def clip_to_huggingface(clip: SourceDict, title: str) -> dict[str, TensorSource]:
    """A whole CLIP in Hugging Face's names, as its ``CLIPModel`` has them.

    Args:
        clip: in open_clip's names.
        title: what to call it in a message.

    Raises:
        StaError: a tower is not a plain transformer of CLIP.
    """
    plain = {name.removeprefix("text."): source for name, source in clip.items()}
    encoder = {
        name.removeprefix("visual."): plain.pop(name) for name in list(plain) if name.startswith("visual.")
    }
    projection, scale = plain.pop("text_projection", None), plain.pop("logit_scale", None)
    if projection is None or scale is None:
        raise StaError(f"{title} holds no whole CLIP: it lacks the text tower's projection or logit_scale.")
    found = encoder_to_huggingface(encoder, title) | _to_tower(plain, TEXT, _TEXT, title)
    found["text_projection.weight"] = Transposed(projection)
    found["logit_scale"] = scale
    return found


def _from_tower(
    tensors: SourceDict, prefix: str, names: Mapping[str, str], title: str
) -> dict[str, TensorSource]:
    left = {name.removeprefix(prefix): source for name, source in tensors.items() if name.startswith(prefix)}
    if not prefix:
        # Of a vision model alone in the newest names; the projection and a classifier lie beside
        # it.
        left = {name: source for name, source in left.items() if name.split(".")[0] in _OWN}
    left = {name: source for name, source in left.items() if name not in _COUNTERS}
    count = 1 + max(blocks(left, "encoder.layers."), default=-1)
    found = {own: left.pop(theirs, None) for own, theirs in names.items()}
    for block, kind in product(range(count), ("weight", "bias")):
        theirs, own = f"encoder.layers.{block}.", f"transformer.resblocks.{block}."
        parts = [left.pop(f"{theirs}self_attn.{part}.{kind}", None) for part in _JOINED]
        whole = [part for part in parts if part is not None]
        found[f"{own}attn.in_proj_{kind}"] = Joined(*whole) if len(whole) == len(parts) else None
        for name, other in _BLOCK.items():
            found[f"{own}{name}.{kind}"] = left.pop(f"{theirs}{other}.{kind}", None)
    missing = [name for name, source in found.items() if source is None]
    if missing or left:
        raise StaError(
            f"{title} is not a whole CLIP transformer in Hugging Face's layout under '{prefix}': open_clip's {listed(missing)} "
            f"cannot be made of it, and {listed(left)} have no place there. Is it whole, and of CLIP's architecture?"
        )
    return {name: source for name, source in found.items() if source is not None}


def _to_tower(
    tensors: SourceDict, prefix: str, names: Mapping[str, str], title: str
) -> dict[str, TensorSource]:
    left = dict(tensors)
    count = 1 + max(blocks(left, "transformer.resblocks."), default=-1)
    found = {prefix + theirs: left.pop(own, None) for own, theirs in names.items()}
    for block, kind in product(range(count), ("weight", "bias")):
        theirs, own = f"{prefix}encoder.layers.{block}.", f"transformer.resblocks.{block}."
        joined = left.pop(f"{own}attn.in_proj_{kind}", None)
        for position, part in enumerate(_JOINED):
            rows = 0 if joined is None else joined.shape[0] // 3
            cut = None if joined is None else Rows(joined, position * rows, (position + 1) * rows)
            found[f"{theirs}self_attn.{part}.{kind}"] = cut
        for name, other in _BLOCK.items():
            found[f"{theirs}{other}.{kind}"] = left.pop(f"{own}{name}.{kind}", None)
    missing = [name for name, source in found.items() if source is None]
    if missing or left:
        raise StaError(
            f"{title} cannot be written in Hugging Face's layout, which is for CLIP's plain transformers: its "
            f"{listed(missing)} cannot be filled, and there is no place for {listed(left)}. Use --to open_clip or "
            "--to safetensors."
        )
    return {name: source for name, source in found.items() if source is not None}


_OWN = frozenset({"embeddings", "pre_layrnorm", "encoder", "post_layernorm"})
