"""What a model is, by the shapes of its tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.errors import StaError, listed

Shaped = Tensor | TensorSource
"""A tensor, read or not: only its shape counts."""
Configs = Mapping[str, Mapping[str, Any]]
"""Architecture's name -> open_clip's configuration of it."""

_SIZES = {
    **{(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L"},
    **{(1280, 32): "H", (1408, 40): "g", (1664, 48): "bigG"},
}
# What the configuration of a plain transformer says; with more, the same shapes compute something
# else.
_PLAIN_VISION = {"image_size", "layers", "width", "patch_size", "mlp_ratio", "head_width"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}

# What open_clip's vision transformers consist of.
_VISUAL = {
    *("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj"),
    *("attn_pool", "attn_pool_contrastive", "patchnorm_pre_ln", "patch_dropout"),
}


@dataclass(frozen=True)
class Tower:
    """A transformer's sizes: features of a token, blocks, hidden features in a block, positions."""

    width: int
    layers: int
    mlp: int
    tokens: int


@dataclass(frozen=True)
class Architecture:
    """A model's sizes.

    Attributes:
        family: ``CLIP``, ``timm`` or ``unknown``.
        vision: the image encoder's sizes; ``None`` where it is no plain vision transformer.
        patch: side of a patch, in pixels.
        image_size: side of the input, in pixels.
        features: length of the image's feature vector.
        text: the text tower's sizes; ``None`` where there is no plain transformer.
        vocabulary: how many tokens the text tower knows.
        names: the known architectures that have these sizes, the likeliest first; activations do
            not show in shapes.
    """

    family: str
    vision: Tower | None = None
    patch: int | None = None
    image_size: int | None = None
    features: int | None = None
    text: Tower | None = None
    vocabulary: int | None = None
    names: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The architecture in a few words."""
        if self.vision is None:
            return "not a plain vision transformer" if self.family != "unknown" else "unknown"
        size = _SIZES.get((self.vision.width, self.vision.layers))
        plain = f"ViT of {self.vision.layers} blocks, width {self.vision.width}, patch {self.patch}"
        name = plain if size is None else f"ViT-{size}/{self.patch}"
        if "miniature" in self.names:
            name = "miniature"
        return f"{name} of {self.family}, {self.image_size}×{self.image_size} pixels"


def guess(
    encoder: Mapping[str, Shaped], clip: Mapping[str, Shaped] | None = None, configs: Configs | None = None
) -> Architecture:
    """An architecture by its shapes.

    Args:
        encoder: the image encoder's tensors, in open_clip's or timm's names without a prefix.
        clip: the whole CLIP's in open_clip's names, if there is one.
        configs: known architectures to look among.
    """
    if "class_embedding" in encoder and "conv1.weight" in encoder:
        return _clip(encoder, clip, configs or {})
    if "patch_embed.proj.weight" in encoder:
        return _timm(encoder)
    convolutional = clip is not None or "attnpool.positional_embedding" in encoder
    return Architecture("CLIP" if convolutional else "unknown")


def differences(found: Architecture, config: Mapping[str, Any]) -> list[str]:
    """In what an architecture is another than a configuration of open_clip says.

    One phrase for each difference but that of the image size, which can be changed; none where the
    configuration is not of a plain vision transformer.
    """
    vision = config.get("vision_cfg", {})
    if found.vision is None or set(vision) - _PLAIN_VISION:
        return []
    sizes = {
        "width": (found.vision.width, vision.get("width", 768)),
        "blocks": (found.vision.layers, vision.get("layers", 12)),
        "patch": (found.patch, vision.get("patch_size", 16)),
        "features": (found.features, config.get("embed_dim")),
    }
    return [f"{what} {own}, not {other}" for what, (own, other) in sizes.items() if own not in (None, other)]


def open_clip_configs() -> dict[str, dict[str, Any]]:
    """The architectures that the installed open_clip knows, by name, read without importing it."""
    library = find_spec("open_clip")
    if library is None or library.origin is None:
        return {}
    folder = Path(library.origin).parent / "model_configs"
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def check_whole(tensors: Mapping[str, Shaped], title: str) -> None:
    """Whether a vision transformer, or a whole CLIP of one, has all of its tensors.

    Args:
        tensors: in open_clip's or timm's names. Other models than vision transformers are not
            looked into.
        title: what to call them in a message.

    Raises:
        StaError: names what is missing from a block or beside the blocks, what has another shape
            than in the other blocks, and what is in no CLIP.
    """
    prefix = "visual." if any(name.startswith("visual.") for name in tensors) else ""
    wanted: tuple[str, ...] = ()
    unknown: list[str] = []
    if f"{prefix}class_embedding" in tensors:
        visual = [name for name in tensors if name.startswith(prefix)]
        unknown = [name for name in visual if name.removeprefix(prefix).split(".")[0] not in _VISUAL]
        wanted = ("conv1.weight", "positional_embedding", "ln_post.weight", "ln_post.bias")
    if f"{prefix}patch_embed.proj.weight" in tensors:
        wanted += ("patch_embed.proj.bias", "pos_embed")
    missing = [prefix + name for name in wanted if prefix + name not in tensors]
    shapes: list[str] = []
    for stem in (f"{prefix}transformer.resblocks.", f"{prefix}blocks.", "transformer.resblocks."):
        found = blocks(tensors, stem)
        everywhere = {rest: shape for inside in found.values() for rest, shape in inside.items()}
        for number in range(max(found, default=-1) + 1):
            inside = found.get(number, {})
            missing += [f"{stem}{number}.{rest}" for rest in everywhere if rest not in inside]
            shapes += [f"{stem}{number}.{rest}" for rest, s in inside.items() if s != everywhere[rest]]
    if missing or shapes:
        raise StaError(
            f"{title} is not whole: it lacks {listed(dict.fromkeys(missing))}; of another shape than in the other blocks are "
            f"{listed(dict.fromkeys(shapes))}. It may be half a download, or saved in parts; get all of it."
        )
    if unknown:
        raise StaError(
            f"{title} has tensors in its image encoder that no CLIP has: {listed(unknown)}. They would be lost or misread: save "
            "the encoder without what was added to it."
        )


def blocks(tensors: Mapping[str, Shaped], stem: str) -> dict[int, dict[str, tuple[int, ...]]]:
    """A transformer's blocks, whose number follows the stem: number -> name within it -> shape."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        number, dot, rest = name.removeprefix(stem).partition(".")
        if name.startswith(stem) and dot and number.isdecimal() and len(number) < 5:
            found.setdefault(int(number), {})[rest] = tuple(tensor.shape)
    return found


def _clip(encoder: Mapping[str, Shaped], clip: Mapping[str, Shaped] | None, configs: Configs) -> Architecture:
    first = encoder["conv1.weight"].shape
    vision = _tower(encoder)
    if vision is None or len(first) != 4:
        return Architecture("CLIP")
    plain = {name.removeprefix("text."): tensor for name, tensor in (clip or {}).items()}
    found = Architecture(
        "CLIP",
        vision,
        patch=first[-1],
        image_size=round(math.sqrt(vision.tokens - 1)) * first[-1],
        features=encoder["proj"].shape[-1] if "proj" in encoder else None,
        text=_tower(plain),
        vocabulary=plain["token_embedding.weight"].shape[0] if "token_embedding.weight" in plain else None,
    )
    names = (name for name, config in configs.items() if _fits(found, vision, config))
    return replace(found, names=tuple(sorted(names, key=lambda name: (len(name), name))))


def _timm(encoder: Mapping[str, Shaped]) -> Architecture:
    first = encoder["patch_embed.proj.weight"].shape
    if len(first) != 4 or "pos_embed" not in encoder or len(encoder["pos_embed"].shape) != 3:
        return Architecture("timm")
    tokens = encoder["pos_embed"].shape[1]
    special = sum(name in encoder for name in ("cls_token", "dist_token"))
    hidden = encoder["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in encoder else 0
    side = math.isqrt(max(0, tokens - special))
    # Some models have no position for their class token.
    side = side if side * side == tokens - special else math.isqrt(tokens)
    vision = Tower(first[0], len(blocks(encoder, "blocks.")), hidden, tokens)
    return Architecture("timm", vision, patch=first[-1], image_size=side * first[-1], features=first[0])


def _tower(tensors: Mapping[str, Shaped]) -> Tower | None:
    found = blocks(tensors, "transformer.resblocks.")
    hidden = found.get(0, {}).get("mlp.c_fc.weight")
    positions = tensors.get("positional_embedding")
    if hidden is None or positions is None or len(positions.shape) != 2:
        return None
    tokens, width = positions.shape
    return Tower(width, len(found), hidden[0], tokens)


def _fits(found: Architecture, tower: Tower, config: Mapping[str, Any]) -> bool:
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if set(vision) - _PLAIN_VISION or set(text) - _PLAIN_TEXT or "multimodal_cfg" in config:
        return False
    hidden = int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0))
    if differences(found, config) or hidden != tower.mlp or vision.get("image_size", 224) != found.image_size:
        return False
    if found.text is None:
        return True
    own = (found.text.width, found.text.layers, found.text.tokens, found.vocabulary)
    wanted = {"width": 512, "layers": 12, "context_length": 77, "vocab_size": 49408} | dict(text)
    return own == tuple(wanted[key] for key in ("width", "layers", "context_length", "vocab_size"))
