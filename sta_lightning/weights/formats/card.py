"""The model card: what a model is, how it was made and from what, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sta_lightning.weights.formats.front_matter import accuracies, agreed_licence, front_matter, licences
from sta_lightning.weights.provenance import decoded

CARD = "model_card"
"""The metadata's entry for the card itself, in single files."""


def model_card(
    title: str,
    architecture: str,
    metadata: Mapping[str, str],
    loading: str,
    *,
    library: str | None = None,
    tags: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
) -> str:
    """A model card in Markdown.

    Args:
        title: the model's name.
        architecture: what it is, in a few words.
        metadata: of the model's file: ``kind``, ``settings``, ``sources``, ``origins``,
            ``converted``, ``accuracy``; what is missing is said to be.
        loading: Python that loads it.
        library: what it is loaded with, for the table that model hubs read; ``None`` to begin
            without that table.
        tags: for that table, besides those that follow from ``kind``.
        files: the model's own files with their SHA-256, if the card shall tell which it is of.
    """
    lines = [] if library is None else front_matter(title, metadata, library, tags)
    lines += [f"# {title}", "", f"{architecture[:1].upper()}{architecture[1:]}.", ""]
    lines += ["## How it was made", "", *_making(metadata), ""]
    lines += ["## From what", "", *_sources(metadata), ""]
    lines += ["## Licence", "", *_licence(metadata), ""]
    lines += ["## Measured accuracy", "", *_accuracy(metadata), ""]
    if files:
        lines += ["## Files", "", *_table("| file | SHA-256 |", "|---|---|", files.items()), ""]
    lines += ["## How to load it", "", "```python", loading.rstrip(), "```", ""]
    return "\n".join(lines)


def loading_code(to: str, name: str | None, file: str, *, whole: bool, projection: bool) -> str:
    """The lines of Python that load what was written, a whole CLIP or an image encoder alone.

    ``name`` is the architecture's, ``None`` where it is not known; ``file`` that of what was
    written; ``projection`` tells whether the image encoder has its own.
    """
    if to == "huggingface":
        alone = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
        kind = "CLIPModel" if whole else alone
        return f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained({file!r})"
    asked = repr(name) if name else "'ARCHITECTURE'  # its name, which the file does not tell"
    if to == "open_clip" and name != "miniature":
        return (
            f"import open_clip\n\nmodel = open_clip.create_model(\n    {asked},\n    pretrained={file!r},\n)"
        )
    build = "build_clip" if whole else "build_encoder"
    return f"from sta_lightning.encoders.build import {build}\n\nmodel = {build}(\n    {asked},\n    {file!r},\n)"


def _making(metadata: Mapping[str, str]) -> list[str]:
    kind = metadata.get("kind", "")
    program = f"{metadata.get('package', 'an unknown program')} {metadata.get('version', '')}"
    lines = [f"Method: `{_placeless(kind)}` of {program}."]
    if kind == "converted":
        lines = ["Converted from another program's file, with its weights as they were."]
    converted = decoded(metadata, "converted")
    if isinstance(converted, Mapping):
        entries = converted.get("dtype") or "of the type that they had"
        by = f"by sta_lightning {converted.get('version')}; entries: {entries}."
        lines += ["", f"Converted to {converted.get('to')} {by}"]
    settings = decoded(metadata, "settings")
    if isinstance(settings, Mapping) and settings:
        rows = [(k, _placeless(json.dumps(v, ensure_ascii=False))) for k, v in sorted(settings.items())]
        lines += ["", *_table("| setting | value |", "|---|---|", rows)]
    return lines


def _sources(metadata: Mapping[str, str]) -> list[str]:
    rows: list[tuple[str, Any]] = []
    for key in ("sources", "converted"):
        found = decoded(metadata, key)
        inner = found.get("files", {}) if key == "converted" and isinstance(found, Mapping) else found
        rows += list(inner.items()) if isinstance(inner, Mapping) else []
    if not rows:
        return ["The file that it was made from does not say."]
    lines = ["| role | file | SHA-256 |", "|---|---|---|"]
    for role, entry in rows:
        file, digest = (entry.get("file"), entry.get("sha256")) if isinstance(entry, Mapping) else (entry, "")
        lines.append(f"| {_cell(role)} | {_cell(file)} | `{_cell(digest)}` |")
    return lines


def _licence(metadata: Mapping[str, str]) -> list[str]:
    found = licences(metadata)
    if not found:
        return ["No model that it was made of says one."]
    if not agreed_licence(metadata):
        lead = "The models that it was made of say these. None is chosen here: that is for who publishes it."
        lead = lead if "pretrained" in found else f"The pretrained model says none. {lead}"
    else:
        lead = "That of the pretrained model; no other model that it was made of says another."
    rows = [(role, ", ".join(licence.values())) for role, licence in found.items()]
    return [lead, "", *_table("| role | licence |", "|---|---|", rows)]


def _accuracy(metadata: Mapping[str, str]) -> list[str]:
    rows = [(task, f"{100 * share:.2f}%") for task, share in accuracies(metadata).items()]
    if not rows:
        return ["None is recorded."]
    return _table("| task | accuracy |", "|---|---:|", rows)


def _table(head: str, rule: str, rows: Iterable[tuple[object, object]]) -> list[str]:
    return [head, rule, *(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)]


def _placeless(text: str) -> str:
    """A text without the folders of absolute paths, as of the file of a method of one's own."""
    return re.sub(r'(?<![\w.])(?:/(?:[^/"]+/)+|[A-Za-z]:\\+(?:[^\\"]+\\+)*)', "", text)


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table, which a foreign file's metadata must not break."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
