"""``sta convert``: one model, from any layout into one that another program reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sta_lightning import __version__
from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.formats.architecture import Architecture, Configs, differences, guess
from sta_lightning.weights.formats.card import CARD, loading_code, model_card
from sta_lightning.weights.formats.checkpoint import PREPROCESSOR
from sta_lightning.weights.formats.clip_config import EPS, Computed, huggingface_config
from sta_lightning.weights.formats.front_matter import ACCURACY, ORIGINS, measured
from sta_lightning.weights.formats.huggingface import clip_to_huggingface, encoder_to_huggingface
from sta_lightning.weights.formats.model import Model, open_model
from sta_lightning.weights.formats.origin import computed_by, known_name
from sta_lightning.weights.formats.writing import image_processor, write_huggingface, write_tensors
from sta_lightning.weights.hashes import sha256
from sta_lightning.weights.opened import SAFETENSORS, PathLike
from sta_lightning.weights.provenance import provenance

Target = Literal["open_clip", "huggingface", "safetensors"]
TARGETS: tuple[str, ...] = get_args(Target)
# What CLIP's images are normalised by, unless a configuration says otherwise.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEADS = "heads"
"""The metadata's entry that tells of heads beside an encoder."""
# What stays true of a file of this package's when it is written in another layout.
_KEPT = ("package", "version", "kind", "settings", "sources", ORIGINS, ACCURACY, "pretrained_sha256")


def convert(
    source: PathLike,
    output: PathLike,
    to: Target,
    *,
    configs: Configs,
    encoder: str | None = None,
    pretrained: PathLike | None = None,
    dtype: torch.dtype | None = None,
    unsafe_pickle: bool = False,
    state: str | None = None,
    allow_nonfinite: bool = False,
) -> str:
    """Write a model in another layout, whole or not at all.

    Args:
        source: the checkpoint, a file or a folder.
        output: the file, ending in ``.safetensors``; for ``huggingface`` the folder, which must not
            be there yet.
        to: ``open_clip`` (a whole CLIP), ``huggingface`` or ``safetensors`` (the image encoder
            alone).
        configs: known architectures.
        encoder: the architecture's name, where the checkpoint does not say how it computes.
        pretrained: the pretrained model: lends text tower and projection where the checkpoint has
            none.
        dtype: floating-point type to write; ``None`` for the tensors' own.
        unsafe_pickle: whether ``source`` and ``pretrained`` may be pickled modules; see
            :func:`~sta_lightning.weights.formats.checkpoint.open_checkpoint`.
        state: which state dict of ``source``; see there.
        allow_nonfinite: whether NaN and Inf are written as they are.

    Returns:
        What was written, in words.

    Raises:
        StaError: a file is broken or does not fit, something is missing that the layout needs, or
            the output cannot be written.
    """
    _check_output(output, to)
    with ExitStack() as stack:
        base = None if pretrained is None else open_model(pretrained, stack, unsafe_pickle=unsafe_pickle)
        model = open_model(source, stack, unsafe_pickle=unsafe_pickle, pretrained=base, state=state)
        write = partial(write_tensors, dtype=dtype, allow_nonfinite=allow_nonfinite)
        clip = _assembled(model, base) if to != "safetensors" else None
        architecture = guess(model.encoder, clip, configs)
        _check_encoder(model, architecture, configs, encoder)
        computed = _computed(model, base, architecture, configs, encoder)
        if computed is not None and computed.eps != EPS and to != "huggingface":
            raise StaError(
                f"{model.title} has layer norms that add {computed.eps}, and open_clip's add {EPS}: its features would "
                "differ. Only --to huggingface can keep that."
            )
        activation = None if computed is None else computed.activation
        name = encoder or known_name(model.checkpoint, architecture, configs, activation)
        metadata = _metadata(model, base, to, activation, dtype)
        place = Path(output)
        code = loading_code(
            to, name, place.name, whole=clip is not None, projection=not model.lacks_projection
        )
        library, tags = ("transformers", ("clip",)) if to == "huggingface" else (None, ())
        card = model_card(place.stem, architecture.title, metadata, code, library=library, tags=tags)
        if to == "huggingface":
            tensors = (
                encoder_to_huggingface(model.encoder, model.title)
                if clip is None
                else clip_to_huggingface(clip, model.title)
            )
            config = _config(model, architecture, computed)
            processor = _processor(model, architecture, configs.get(name or "", {}))
            write_huggingface(
                place,
                tensors,
                config,
                card,
                metadata,
                dtype=dtype,
                allow_nonfinite=allow_nonfinite,
                preprocessor=processor,
            )
        elif to == "open_clip":
            write(place, _whole(model, clip), {**metadata, CARD: card})
        else:
            _need_projection(model, to)
            prefix = "" if model.layout.kind == "timm" else "visual."
            heads = _heads(model)
            tensors = {f"{prefix}{own}": source for own, source in model.encoder.items()} | heads
            said = {HEADS: model.checkpoint.metadata[HEADS]} if heads else {}
            write(place, tensors, {**metadata, **said, CARD: card})
        what = "an image encoder alone" if clip is None else "a whole CLIP"
        return f"{what}, {architecture.title}"


def _check_output(output: PathLike, to: str) -> None:
    place = Path(output)
    if to not in TARGETS:
        raise StaError(f"--to {to!r} is unknown. Choose one of {listed(TARGETS)}.")
    if to == "huggingface" and place.suffix == SAFETENSORS:
        raise StaError(
            f"--to huggingface writes a folder, and '{output}' is named as a file. Give a folder's name."
        )
    if to != "huggingface" and (place.suffix != SAFETENSORS or place.is_dir()):
        raise StaError(
            f"--to {to} writes one file: give a name that ends in {SAFETENSORS} instead of '{output}'."
        )


def _check_encoder(model: Model, architecture: Architecture, configs: Configs, encoder: str | None) -> None:
    config = configs.get(encoder or "")
    wrong = [] if config is None else differences(architecture, config)
    if wrong:
        raise StaError(
            f"{model.title} is no {encoder}: it is {architecture.title} ({'; '.join(wrong)}). Known architectures of "
            f"its sizes: {listed(architecture.names)}."
        )


def _assembled(model: Model, base: Model | None) -> SourceDict | None:
    """The whole CLIP: the model's, or its image encoder beside the pretrained text tower."""
    if model.clip is not None or base is None or base.clip is None:
        return model.clip
    text = {name: source for name, source in base.clip.items() if not name.startswith("visual.")}
    return {**{f"visual.{name}": source for name, source in model.encoder.items()}, **text}


def _heads(model: Model) -> dict[str, TensorSource]:
    """The heads that a merged encoder brings; only this package's layout has a place for them."""
    if not model.checkpoint.is_ours or HEADS not in model.checkpoint.metadata:
        return {}
    return {name: source for name, source in model.checkpoint.tensors.items() if name.startswith("head.")}


def _need_projection(model: Model, to: str) -> None:
    if model.lacks_projection:
        raise StaError(
            f"{model.title} has no projection to the features that text is compared with, as Hugging Face's "
            f"CLIPVisionModel has none, and --to {to} needs it. Give the model that it was fine-tuned from with --pretrained: "
            "its projection, which such a fine-tuning leaves alone, is then taken."
        )


def _whole(model: Model, clip: SourceDict | None) -> SourceDict:
    if clip is None:
        raise StaError(
            f"{model.title} holds an image encoder alone, and open_clip loads whole models only. Give the pretrained CLIP, "
            "whose text tower is unchanged, with --pretrained; or use --to safetensors."
        )
    _need_projection(model, "open_clip")
    return clip


def _computed(
    model: Model, base: Model | None, architecture: Architecture, configs: Configs, encoder: str | None
) -> Computed | None:
    """How the model computes, as it says or, where it does not, as the pretrained one says."""
    found = computed_by(model.checkpoint, architecture, configs, encoder)
    if base is None or model.layout.kind == "timm" or (found is not None and found.text_heads is not None):
        return found
    other = computed_by(base.checkpoint, architecture, configs)
    return replace(found, text_heads=other.text_heads) if found and other else found or other


def _config(model: Model, architecture: Architecture, computed: Computed | None) -> dict[str, Any]:
    if computed is None or (architecture.text is not None and computed.text_heads is None):
        raise StaError(
            f"{model.title} does not say which activation and how many attention heads it was trained with, and Hugging "
            f"Face's config.json must. Name the architecture with --encoder; of its sizes are {listed(architecture.names)} "
            "(with -quickgelu for weights that descend from OpenAI's)."
        )
    return huggingface_config(architecture, computed)


def _processor(model: Model, architecture: Architecture, config: Mapping[str, Any]) -> Mapping[str, Any]:
    said, size = config.get("preprocess_cfg", {}), architecture.image_size or 224
    made = image_processor(size, said.get("mean", _MEAN), said.get("std", _STD))
    return model.checkpoint.beside(PREPROCESSOR) or made


def _metadata(
    model: Model, base: Model | None, to: str, activation: str | None, dtype: torch.dtype | None
) -> dict[str, str]:
    files: dict[str, Any] = {}
    for role, one in (("model", model), ("pretrained", base)):
        held = () if one is None else one.checkpoint.files
        for number, file in enumerate(held, start=1):
            key = role if len(held) == 1 else f"{role}/{number}-of-{len(held)}"
            files[key] = {"file": file.name, "sha256": sha256(file)}
    converted = {
        "from": f"{model.checkpoint.container}, {model.layout.title}",
        "to": to,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "activation": activation,
        "version": __version__,
        "files": files,
    }
    own = model.checkpoint.metadata if model.checkpoint.is_ours else {}
    # The digest is of the weights, whatever the layout.
    keys = _KEPT if dtype is not None else (*_KEPT, "weights_sha256")
    kept = {key: own[key] for key in keys if key in own}
    digests = [entry["sha256"] for role, entry in files.items() if role.split("/")[0] == "model"]
    if kept and ACCURACY not in kept and (found := measured(model.checkpoint.path, digests)):
        kept[ACCURACY] = json.dumps(found, ensure_ascii=False)
    text = json.dumps(converted, ensure_ascii=False, separators=(",", ":"))
    return {**(kept or provenance("converted", {}, {})), "format": "pt", "converted": text}
