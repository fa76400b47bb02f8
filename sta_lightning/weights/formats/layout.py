"""Which layout a checkpoint's tensors are named in, by their names alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sta_lightning.errors import StaError, listed
from sta_lightning.weights.foreign import foreign_tensors

Kind = Literal["open_clip", "huggingface", "timm", "head", "unknown"]

_TITLES: dict[Kind, str] = {
    "open_clip": "open_clip's names",
    "huggingface": "Hugging Face's names",
    "timm": "timm's names",
    "head": "a classification head",
    "unknown": "no known layout",
}
# What only an image encoder has, by layout; every name must be there behind one prefix. The first
# layout that fits is taken.
_MARKS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("huggingface", ("embeddings.patch_embedding.weight", "embeddings.class_embedding")),
    ("open_clip", ("conv1.weight", "class_embedding")),
    ("open_clip", ("conv1.weight", "attnpool.positional_embedding")),
    ("timm", ("patch_embed.proj.weight", "pos_embed")),
)
_TRUNK = "visual.trunk."
_SIGNED = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors."""


@dataclass(frozen=True)
class Layout:
    """How the tensors of a checkpoint are named.

    Attributes:
        kind: whose names they are. OpenAI's models have open_clip's.
        prefix: what stands in front of the image encoder's names: ``visual.``, ``vision_model.`` or
            an empty text.
        text: what stands in front of the text tower's names; ``None`` where there is no text tower.
        projection: whether the image encoder's last projection is there; other layouts than Hugging
            Face's need none or always have it.
        openai: whether the numbers are there that OpenAI's own archives keep among the tensors.
        foreign: what is known to be no model's weights, and what to do; ``None`` for others.
    """

    kind: Kind
    prefix: str = ""
    text: str | None = None
    projection: bool = True
    openai: bool = False
    foreign: str | None = None

    @property
    def title(self) -> str:
        """The layout in words, for people."""
        if self.foreign is not None:
            return self.foreign
        if self.kind in ("head", "unknown"):
            return _TITLES[self.kind]
        what = "an image encoder alone" if self.text is None else "a whole CLIP"
        place = f" under '{self.prefix}'" if self.prefix else ""
        lacking = "" if self.projection else ", without its projection"
        return f"{_TITLES[self.kind]}: {what}{place}{lacking}"


def recognise(tensors: Mapping[str, Any], title: str = "the state dict") -> Layout:
    """Tell the layout of a checkpoint.

    Args:
        tensors: tensor name -> anything; only names count.
        title: what to call the checkpoint in a message.

    Returns:
        The layout; of the kind ``head`` for a ``weight`` (and ``bias``) alone, ``unknown`` if no
        image encoder is there.

    Raises:
        StaError: there is more than one image encoder, or Hugging Face's names of another model
            than CLIP.
    """
    if (foreign := foreign_tensors(tensors)) is not None:
        return Layout("unknown", foreign=foreign)
    for kind, marks in _MARKS:
        found = _prefixes(tensors, marks)
        if len(found) > 1:
            raise StaError(
                f"{title} holds the image encoder more than once, under {listed(found)}. Save the one that is meant alone."
            )
        if found:
            return _described(kind, found[0], tensors)
    # open_clip's models whose image encoder is timm's have it there, whatever it consists of.
    trunks = sorted({name[: name.index(_TRUNK)] + "visual." for name in tensors if _TRUNK in name})
    if len(trunks) == 1:
        return _described("open_clip", trunks[0], tensors)
    if any(name.endswith("vision_model.embeddings.patch_embedding.weight") for name in tensors):
        raise StaError(
            f"{title} is in Hugging Face's layout, but its image encoder has no class token, as CLIP's has: it is of another "
            "kind (SigLIP has none). Convert it with open_clip's own tools first."
        )
    if set(tensors) - {"_extra_state"} in ({"weight"}, {"weight", "bias"}):
        return Layout("head")
    return Layout("unknown")


def _prefixes(names: Collection[str], marks: tuple[str, ...]) -> list[str]:
    """What stands in front of all of the marks; behind nothing or a dot."""
    first = marks[0]
    ends = (name.removesuffix(first) for name in names if name.endswith(first))
    return [p for p in ends if (not p or p.endswith(".")) and all(p + mark in names for mark in marks)]


def _described(kind: Kind, prefix: str, names: Collection[str]) -> Layout:
    if kind == "timm":
        return Layout(kind, prefix)
    if kind == "huggingface":
        outer = prefix.removesuffix("vision_model.")
        text = f"{outer}text_model."
        has_text = f"{text}embeddings.token_embedding.weight" in names
        return Layout(
            kind, prefix, text if has_text else None, projection=f"{outer}visual_projection.weight" in names
        )
    if not prefix.endswith("visual."):
        return Layout(kind, prefix)
    outer = prefix.removesuffix("visual.")
    openai = all(outer + name in names for name in _SIGNED)
    return Layout(kind, prefix, _text_of(outer, names), openai=openai)


def _text_of(outer: str, names: Collection[str]) -> str | None:
    if any(name.startswith(f"{outer}text.") for name in names):
        return f"{outer}text."
    # A tower whose blocks were deleted leaves its embeddings behind, as in the task-vectors
    # repository's files.
    whole = any(name.startswith(f"{outer}transformer.resblocks.") for name in names)
    return outer if whole and f"{outer}token_embedding.weight" in names else None


def clip_names(tensors: Collection[str], layout: Layout) -> dict[str, str]:
    """A CLIP's tensors in open_clip's layout: name in open_clip -> name in the file.

    What lies beside a CLIP and is no part of it, as a classifier or a loss, is left.

    Args:
        tensors: the file's names.
        layout: of the kind ``open_clip``, with a text tower.
    """
    outer = layout.prefix.removesuffix("visual.")
    inside = {name.removeprefix(outer): name for name in tensors if name.startswith(outer)}
    return {n: name for n, name in inside.items() if n not in _SIGNED and n.split(".")[0] in _CLIP_PARTS}


_CLIP_PARTS = {
    *("visual", "text", "transformer", "token_embedding", "positional_embedding", "ln_final"),
    *("text_projection", "logit_scale", "logit_bias", "text_decoder"),
}
