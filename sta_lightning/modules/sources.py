"""The files that a merge reads, and what the file that it writes says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sta_lightning.arithmetic import SAMPLE_MEASURES, check_importance, importance_for
from sta_lightning.encoders.build import MINIATURE_WEIGHTS
from sta_lightning.encoders.spec import MINIATURE
from sta_lightning.errors import StaError
from sta_lightning.modules.parts import saying
from sta_lightning.weights import load_weights, read_metadata


def read_importance(
    task: str,
    path: str | None,
    *,
    measure: str,
    finetuned: Mapping[str, Tensor],
    pretrained: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Get the importance of one task's weights by a measure.

    Args:
        task: The task's name, for messages.
        path: The file that scoring wrote; not read by the measures that need no data.
        measure: A measure of :data:`sta_lightning.arithmetic.MEASURES`.
        finetuned: The task's weights.
        pretrained: The pretrained weights.

    Raises:
        StaError: There is no file, it holds another measure, does not belong to this encoder, or is not finite.
    """
    what = f"importance of task {task!r}"
    if measure not in SAMPLE_MEASURES:
        with saying(what):
            return importance_for(measure, weights=finetuned, pretrained=pretrained)
    if path is None:
        raise StaError(
            f"The {what} by {measure!r} was asked for, but no importance file is given. Score the task with `sta score` "
            "and name its file, or use measure 'amp', which needs none."
        )
    with saying(what):
        scores = load_weights(path)
        stored = read_metadata(path).get("measure", "lp") if Path(path).suffix == ".safetensors" else "lp"
        if stored == measure:
            check_importance(finetuned, scores, name=f"'{path}'")
            return scores
        if (stored, measure) != ("lp", "lp+amp"):
            raise StaError(
                f"'{path}' was scored with measure {stored!r}, but {measure!r} is asked for. Score with measure 'lp', from "
                "which 'lp' and 'lp+amp' are both made."
            )
        check_importance(finetuned, scores, name=f"'{path}'")
        return importance_for(measure, weights=finetuned, lp=scores)


def pretrained_file(encoder: str, pretrained: str | None) -> Path | None:
    """Return the file that the pretrained weights come from; none for a tag of open_clip or random weights."""
    if pretrained is None:
        return MINIATURE_WEIGHTS if encoder == MINIATURE else None
    return Path(pretrained) if Path(pretrained).is_file() else None
