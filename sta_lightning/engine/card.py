"""The card of a merged model, beside its file or in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sta_lightning.weights import atomic_path, decoded, sha256
from sta_lightning.weights.formats import (
    ACCURACY,
    CONFIG,
    Checkpoint,
    card_place,
    guess,
    image_encoder,
    loading_code,
    model_card,
    open_checkpoint,
)

_OPEN_CLIP = "open_clip_config.json"


def write_card(path: str | Path, accuracy: Mapping[str, float]) -> Path:
    """Write the card of a merged model anew, with what was measured of it and its files' SHA-256.

    Args:
        path: the model, a file or a folder.
        accuracy: task -> share of images classified rightly, 0 to 1.

    Returns:
        The card: ``README.md`` in a folder, ``NAME-card.md`` beside a file.

    Raises:
        StaError: the model cannot be read, or the card not written.
    """
    place = card_place(path)
    with atomic_path(place) as temporary:
        temporary.write_text(card_of(Path(path), Path(path).name, accuracy), encoding="utf-8")
    return place


def card_of(path: Path, title: str, accuracy: Mapping[str, float] | None = None) -> str:
    """The card of a merged model.

    Args:
        path: the model, a file or a folder.
        title: what it is called, where it will be.
        accuracy: see :func:`write_card`; ``None`` if nothing was measured.
    """
    with ExitStack() as stack:
        made = open_checkpoint(path, stack)
        architecture, library, code = _loading(made, title)
        metadata, files = dict(made.metadata), {}
        if accuracy is not None:
            metadata[ACCURACY] = json.dumps(accuracy, ensure_ascii=False)
            files = {file.name: sha256(file) for file in made.files}
        tags = ("clip",) if made.layout.kind in ("huggingface", "open_clip") else ()
        name = title if path.is_dir() else Path(title).stem
        return model_card(name, architecture, metadata, code, library=library, tags=tags, files=files)


def _loading(made: Checkpoint, title: str) -> tuple[str, str, str]:
    """What the model is in words, what loads it, and the Python that does."""
    layout, folder = made.layout, made.path.is_dir()
    settings = decoded(made.metadata, "settings") or {}
    if layout.kind == "unknown":
        architecture = str(settings.get("architecture") or f"a model of {len(made.tensors)} tensors")
        classes = (made.beside(CONFIG) or {}).get("architectures") if folder else None
        if isinstance(classes, list) and len(classes) == 1 and str(classes[0]).isidentifier():
            code = f"from transformers import {classes[0]}\n\nmodel = {classes[0]}.from_pretrained({title!r})"
            return architecture, "transformers", code
        code = f"from sta_lightning.weights.formats import load_state\n\nstate = load_state({title!r})"
        return architecture, "sta_lightning", code
    architecture, whole = guess(image_encoder(made)).title, layout.text is not None
    if layout.kind == "huggingface":
        code = loading_code("huggingface", None, title, whole=whole, projection=layout.projection)
        return architecture, "transformers", code
    if whole and folder and (made.path / _OPEN_CLIP).is_file():
        code = f"import open_clip\n\nmodel = open_clip.create_model({f'local-dir:{title}'!r})"
        return architecture, "open_clip", code
    to = "open_clip" if whole else "safetensors"
    file = f"{title}/{made.files[0].name}" if folder else title
    code = loading_code(to, settings.get("encoder"), file, whole=whole, projection=True)
    return architecture, "open_clip" if code.startswith("import open_clip") else "sta_lightning", code
