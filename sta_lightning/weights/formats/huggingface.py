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
from sta_lightning.weights.formats.checkpoint import Checkpoint
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


def encoder_from_huggingface(checkpoint: Checkpoint) -> dict[str, TensorSource]:
    """The image encoder in open_clip's names.

    Args:
        checkpoint: of a ``CLIPModel``, ``CLIPVisionModel`` or ``CLIPVisionModelWithProjection``.

    Returns:
        Tensor name, as in open_clip's ``visual`` -> tensor. ``proj`` is missing where the
        checkpoint has no projection.

    Raises:
        StaError: tensors are missing or unknown.
    """
    layout = checkpoint.layout
    found = _from_tower(checkpoint, layout.prefix, _VISION)
    if layout.projection:
        outer = layout.prefix.removesuffix(VISION)
        found["proj"] = Transposed(checkpoint.tensors[f"{outer}visual_projection.weight"])
    return found


def clip_from_huggingface(checkpoint: Checkpoint, text: str) -> dict[str, TensorSource]:
    """A whole CLIP, its text tower behind the prefix ``text``, in open_clip's names.

    Raises:
        StaError: tensors are missing or unknown.
    """
    tensors, outer = checkpoint.tensors, text.removesuffix(TEXT)
    wanted = ("text_projection.weight", "visual_projection.weight", "logit_scale")
    lacking = [name for name in wanted if outer + name not in tensors]
    if lacking:
        raise StaError(f"{checkpoint.title} holds no whole CLIP: it lacks {listed(lacking)}.")
    found = {f"visual.{name}": source for name, source in encoder_from_huggingface(checkpoint).items()}
    found |= _from_tower(checkpoint, text, _TEXT)
    found["text_projection"] = Transposed(tensors[f"{outer}text_projection.weight"])
    found["logit_scale"] = tensors[f"{outer}logit_scale"]
    return found


def encoder_to_huggingface(encoder: SourceDict, title: str) -> dict[str, TensorSource]:
    """An image encoder, in open_clip's names, in those of ``CLIPVisionModelWithProjection``.

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
    """A whole CLIP, in open_clip's names, in those of Hugging Face's ``CLIPModel``.

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


def _pairs(names: Mapping[str, str], count: int) -> dict[str, tuple[str, ...]]:
    """open_clip's name in a tower -> Hugging Face's, three of them for a joined matrix."""
    pairs: dict[str, tuple[str, ...]] = {own: (theirs,) for own, theirs in names.items()}
    for block, kind in product(range(count), ("weight", "bias")):
        own, theirs = f"transformer.resblocks.{block}.", f"encoder.layers.{block}."
        pairs[f"{own}attn.in_proj_{kind}"] = tuple(f"{theirs}self_attn.{part}.{kind}" for part in _JOINED)
        pairs |= {f"{own}{name}.{kind}": (f"{theirs}{other}.{kind}",) for name, other in _BLOCK.items()}
    return pairs


def _from_tower(checkpoint: Checkpoint, prefix: str, names: Mapping[str, str]) -> dict[str, TensorSource]:
    tensors = checkpoint.tensors
    left = {name.removeprefix(prefix): source for name, source in tensors.items() if name.startswith(prefix)}
    if not prefix:
        # A vision model alone in the newest names; projection and classifier lie beside it.
        left = {name: source for name, source in left.items() if name.split(".")[0] in _OWN}
    left = {name: source for name, source in left.items() if name not in _COUNTERS}
    found: dict[str, TensorSource] = {}
    missing: list[str] = []
    for own, theirs in _pairs(names, 1 + max(blocks(left, "encoder.layers."), default=-1)).items():
        parts = [left.pop(name) for name in theirs if name in left]
        if len(parts) < len(theirs):
            missing.append(own)
        else:
            found[own] = parts[0] if len(parts) == 1 else Joined(*parts)
    if missing or left:
        raise StaError(
            f"{checkpoint.title} is not a whole CLIP transformer in Hugging Face's layout under '{prefix}': open_clip's "
            f"{listed(missing)} cannot be made of it, and {listed(left)} have no place there. Is it whole, and of CLIP's "
            "architecture?"
        )
    return found


def _to_tower(
    tensors: SourceDict, prefix: str, names: Mapping[str, str], title: str
) -> dict[str, TensorSource]:
    left = dict(tensors)
    found: dict[str, TensorSource] = {}
    missing: list[str] = []
    for own, theirs in _pairs(names, 1 + max(blocks(left, "transformer.resblocks."), default=-1)).items():
        source = left.pop(own, None)
        if source is None:
            missing += [prefix + name for name in theirs]
            continue
        rows = source.shape[0] // 3 if len(theirs) > 1 else None
        for position, name in enumerate(theirs):
            cut = source if rows is None else Rows(source, position * rows, (position + 1) * rows)
            found[prefix + name] = cut
    if missing or left:
        raise StaError(
            f"{title} cannot be written in Hugging Face's layout, which is for CLIP's plain transformers: its "
            f"{listed(missing)} cannot be filled, and there is no place for {listed(left)}. Use --to open_clip or "
            "--to safetensors."
        )
    return found


_OWN = frozenset({"embeddings", "pre_layrnorm", "encoder", "post_layernorm"})
