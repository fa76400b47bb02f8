"""What a whole model has besides its image encoder: text tower, temperature.

A whole CLIP goes in, and a whole CLIP comes out. Most fine-tunings leave the text tower alone: then
it is copied. Where one has changed it, it is merged too, as a problem of its own, so that the image
encoder is to the last bit what it is without.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.engine.unchanged import equal
from sta_lightning.weights.formats import open_on, whole_clip

_ENCODER = "visual."


def open_rest(path: str | Path | StateDict, stack: ExitStack, base: Path | None = None) -> SourceDict:
    """A whole CLIP's tensors outside of its image encoder, unread, in open_clip's names.

    Empty for an image encoder alone. ``base`` is what an adapter stands on.

    Raises:
        StaError: the file is missing or broken.
    """
    checkpoint = open_on(path, stack, base)
    if checkpoint.layout.text is None:
        return {}
    return {name: s for name, s in whole_clip(checkpoint).items() if not name.startswith(_ENCODER)}


def changed(
    origin: SourceDict, rests: Mapping[str, SourceDict], titles: Mapping[str, str]
) -> dict[str, SourceDict]:
    """The tasks' tensors, all of them if one task has changed one; else none.

    Args:
        origin: the pretrained model's.
        rests: by task: the fine-tuned model's; empty for an image encoder alone, which has left
            them as they were.
        titles: by task: what to call the model in a message.

    Raises:
        StaError: names or shapes differ.
    """
    for task, rest in rests.items():
        if rest:
            name = "the pretrained model's text tower"
            compare_names(origin, rest, reference_name=name, other_name=titles[task])
    if not any(rest and not equal(origin, rest) for rest in rests.values()):
        return {}
    return {task: rest or origin for task, rest in rests.items()}
