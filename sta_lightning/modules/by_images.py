"""Methods of a merge that look at images: what they turn into a merge of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sta_lightning.arithmetic.baselines.regmean_plus_plus import merged_input_grams
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.encoders import ClassificationHead
from sta_lightning.engine import FusionOptions, Pretrained, TaskSource
from sta_lightning.engine.defaults import AUTO, REGMEAN_PLUS_PLUS
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.foretelling import ranking
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.parts import read_encoder


@dataclass(frozen=True)
class Surroundings:
    """What such a method has besides the files.

    Attributes:
        pretrained: the pretrained encoder, as a merge takes it.
        encoder: the same as a module, in evaluation mode.
        heads: the heads by task.
        images: by task, ``[B, 3, S, S]``, without labels.
        device: where encoders run.
    """

    pretrained: Pretrained
    encoder: nn.Module
    heads: Mapping[str, ClassificationHead]
    images: Mapping[str, Tensor]
    device: torch.device | str = "cpu"


def checked_settings(options: FusionOptions) -> dict[str, Any]:
    """All settings of such a method; ``samples`` are the images of a task.

    Raises:
        StaError: there is another setting or a coefficient, a task has no model, or the number of
            images is below 1.
    """
    method = str(options.method)
    known = LEARNED_METHODS[method].settings
    coefficients = {"scale": options.scale, "scale_layers": options.scale_layers}
    given = {
        **(options.settings or {}),
        **{k: value for k, value in coefficients.items() if value is not None},
    }
    if unknown := [name for name in given if name not in known]:
        raise StaError(f"method '{method}' has no setting {listed(unknown)}; it has {listed(known)}.")
    found = {**known, **given}
    check_images(f"method '{method}'", found["samples"], options.sources, "samples")
    return found


def check_images(who: str, count: Any, tasks: Mapping[str, TaskSource], option: str) -> None:
    """Refuse, by a StaError, fewer than one image of each task, and tasks without a model."""
    without = [task for task, source in tasks.items() if source.finetuned is None]
    if without:
        raise StaError(
            f"{who} reads the fine-tuned encoder, 'finetuned', of every task; {listed(without)} has none."
        )
    if not isinstance(count, int) or count < 1:
        raise StaError(f"{option}={count} was asked for: give the images of each task, 1 or more.")


def resolved(options: FusionOptions, around: Surroundings) -> FusionOptions:
    """The merge of files that a method by images comes to.

    For ``auto`` it is the nearest candidate; for RegMean++ it is RegMean with Gram matrices, in
    memory, of what the merged blocks below put out.

    Args:
        options: with the method by images, and its settings.
        around: its images and encoders.

    Raises:
        StaError: a setting is wrong, or a source is missing or does not fit.
    """
    settings = checked_settings(options)
    plain = replace(options, settings=None)
    if options.method == AUTO:
        finetuned = {task: str(source.finetuned) for task, source in options.sources.items()}
        judge = Judge(around.encoder, finetuned, around.heads, around.images, around.device)
        found = ranking(plain, around.pretrained, judge, settings["candidates"])
        chosen = replace(plain, method=found[0].method, scale=found[0].scale)
        chosen.about = {
            "ranking": [candidate.plain() for candidate in found],
            "foretold": found[0].foretold.plain(),
        }
        return chosen
    reference = around.encoder.state_dict()
    states = {
        task: read_encoder(str(source.finetuned), reference, f"task {task!r}")
        for task, source in options.sources.items()
    }
    encoder = around.encoder.to(around.device)
    images = {task: batch.to(around.device) for task, batch in around.images.items()}
    grams = merged_input_grams(encoder, states, images, ratio=settings["ratio"])
    sources: dict[str, Any] = {
        task: replace(source, gram=grams[task])  # type: ignore[arg-type]  # a model may be in memory
        for task, source in options.sources.items()
    }
    made = replace(plain, tasks=sources, method="regmean", settings={"ratio": settings["ratio"]})
    made.about = {"grams": REGMEAN_PLUS_PLUS, "samples": settings["samples"]}
    return made
