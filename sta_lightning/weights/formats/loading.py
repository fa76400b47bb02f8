"""The lines of Python that load a converted model, for its card."""

from __future__ import annotations


def loading_code(to: str, name: str | None, file: str, *, whole: bool, projection: bool) -> str:
    """How to load what was written.

    Args:
        to: the layout that was written.
        name: the architecture's name; nothing where it is not known.
        file: name of the file or the folder.
        whole: whether it is a whole CLIP.
        projection: whether the image encoder has its projection.
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
