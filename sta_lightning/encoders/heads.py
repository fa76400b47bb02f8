"""How a head is made: of prompts, of class prototypes, or of the model's own classifier."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.encoders.architectures import has_text_tower
from sta_lightning.encoders.build import build_clip, tokenize
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.encoders.head_cache import cached_head
from sta_lightning.encoders.sources import find_weights
from sta_lightning.encoders.timm_models import own_head
from sta_lightning.errors import StaError, listed

PROTOTYPE_SCALE = 20.0
_PROMPTS_AT_ONCE = 256


class Classes(Protocol):
    """What a head needs to know of a task; ``sta_lightning.tasks.Task`` is one."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in label order."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates; ``{}`` stands for the class name."""

    @property
    def head(self) -> str:
        """``auto``, or ``own`` for the classifier that the model came with."""


def make_head(
    name: str | None,
    task: Classes,
    *,
    pretrained: str | None = None,
    encoder: nn.Module | None = None,
    loader: Iterable[Sequence[Tensor]] | None = None,
) -> ClassificationHead:
    """Make the frozen head of a task for the encoder ``name``.

    A task that asks for the model's own classifier gets it; an encoder with a text tower makes a
    zero-shot head; any other a head of class prototypes.

    Args:
        name: The encoder's name; ``None`` for one that has none, and no text tower.
        task: Its class names, templates and choice of head.
        pretrained: The pretrained weights, as for ``build_encoder``: heads come from the pretrained
            model.
        encoder: The pretrained encoder, for prototypes.
        loader: Batches as for :func:`prototype_head`, for prototypes.

    Raises:
        StaError: if what this kind of head needs is missing.
    """
    if task.head == "own":
        if name is None:
            raise StaError(
                f"The task '{task.name}' asks for the model's own classifier, which an encoder without a name has not. Give a "
                "head file, or an encoder by name."
            )
        weight, bias = own_head(name, pretrained)
        if len(weight) != len(task.class_names):
            raise StaError(
                f"The task '{task.name}' has {len(task.class_names)} classes, the own head of '{name}' has "
                f"{len(weight)}: an own head serves only the classes that the model was trained on."
            )
        return ClassificationHead(weight, bias, normalize=False)
    if name is not None and has_text_tower(name):
        return ClassificationHead(zeroshot_head(name, pretrained, task.class_names, task.templates))
    if encoder is None or loader is None:
        raise StaError(
            f"{'The encoder' if name is None else repr(name)} has no text tower: the head of '{task.name}' is made of class "
            "prototypes, for which the training split is needed. Give a datamodule, or a head file."
        )
    return ClassificationHead(prototype_head(encoder, loader, len(task.class_names)))


def zeroshot_head(
    name: str, pretrained: str | None, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Build a zero-shot head as CLIP and task arithmetic do.

    Per class: embed every prompt, normalise, average, normalise; then scale all by
    exp(logit_scale). The head is kept in the cache folder (``$STA_CACHE``, else
    ``~/.cache/sta_lightning``) and read from there the next time.

    Args:
        name: An encoder with a text tower.
        pretrained: Its weights, as for ``build_encoder``.
        class_names: The C classes.
        templates: Prompt templates; ``{}`` stands for the class name.

    Returns:
        The weight ``[C, D]``, float32, for normalised features; there is no bias.

    Raises:
        StaError: if the encoder has no text tower or there are no classes or templates.
    """
    if not class_names or not templates:
        raise StaError("A zero-shot head needs at least one class name and one prompt template.")
    if not has_text_tower(name):
        raise StaError(f"'{name}' has no text tower: its head is made of class prototypes, not of prompts.")
    weights = find_weights(name, pretrained)
    make = functools.partial(_zeroshot, name, pretrained, class_names, templates)
    return cached_head(name, weights, class_names, templates, make)


@torch.no_grad()
def _zeroshot(
    name: str, pretrained: str | None, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    clip = build_clip(name, pretrained).eval()
    prompts = [template.format(class_name) for class_name in class_names for template in templates]
    parts = [
        F.normalize(
            clip.encode_text(tokenize(name, prompts[start : start + _PROMPTS_AT_ONCE])).float(), dim=-1
        )
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
    ]
    mean = torch.cat(parts).view(len(class_names), len(templates), -1).mean(dim=1)
    scale: Tensor = clip.logit_scale.detach().float().exp()
    return F.normalize(mean, dim=-1) * scale


@torch.no_grad()
def prototype_head(encoder: nn.Module, loader: Iterable[Sequence[Tensor]], num_classes: int) -> Tensor:
    """Build a head of class prototypes, for encoders without a text tower.

    Features are normalised, averaged per class, centred (less the mean of the classes' averages),
    normalised, times 20.

    Args:
        encoder: The pretrained encoder; evaluated in evaluation mode and left in the mode it had.
        loader: Batches ``(images [B, 3, S, S], labels [B])`` of the training split under the
            evaluation transform.
        num_classes: C.

    Returns:
        The weight ``[C, D]``, float32, for normalised features; there is no bias.

    Raises:
        StaError: if a class has no image among the batches, or a label lies outside the classes.
    """
    device = next(iter(encoder.state_dict().values())).device
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        for images, labels, *_ in loader:
            labels = labels.to(device)
            if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
                raise StaError(
                    f"Prototypes of {num_classes} classes were asked for, but a label is {int(labels.max())}."
                )
            features = F.normalize(encoder(images.to(device)).float(), dim=-1).double()
            if sums is None:
                sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=device)
            sums.index_add_(0, labels, features)
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
    finally:
        for module, mode in modes.items():
            module.training = mode
    empty = [str(number) for number in (counts == 0).nonzero().flatten().tolist()]
    if sums is None or empty:
        raise StaError(
            f"Prototypes need an image of every class, but there is none of the labels {listed(empty, limit=10)}."
        )
    mean = sums / counts[:, None]
    centred = mean - mean.mean(dim=0)
    return (F.normalize(centred, dim=-1) * PROTOTYPE_SCALE).float()
