"""Encoders and heads as the modules need them: with weights, without, for one task or several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sta_lightning.arithmetic import check_compatible
from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.encoders import ClassificationHead, build_encoder, empty_encoder, has_text_tower, make_head
from sta_lightning.engine.files import open_encoder
from sta_lightning.errors import StaError
from sta_lightning.tasks import Task

_PROTOTYPE_BATCH = 128


def bare_trainer(**settings: Any) -> Trainer:
    """A trainer on one device, without loggers, bar, checkpoints and summary.

    Args:
        settings: Of ``Trainer``; they come first.
    """
    bare = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**bare, **settings})


def start_encoder(
    name: str, pretrained: str | None, weights: str | None, image_size: int | None
) -> tuple[nn.Module, nn.Module]:
    """Build the pretrained encoder and the one to start from, the same without ``weights``."""
    original = build_encoder(name, pretrained, image_size)
    if weights is None:
        return original, original
    encoder = empty_encoder(name, pretrained, image_size)
    encoder.load_state_dict(read_encoder(weights, encoder.state_dict(), "the encoder to start from"))
    return original, encoder


def read_encoder(path: str | Path, reference: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Read an encoder's weights and check them against the pretrained ones.

    Args:
        path: A weights file that holds the encoder, alone or inside a larger model.
        reference: The pretrained encoder's tensors.
        what: Whose weights they are, for messages: ``"task 'digits'"``.

    Raises:
        StaError: The file is missing or broken, its names or shapes differ, or it holds NaN or Inf.
    """
    with ExitStack() as stack:
        sources, _ = open_encoder(path, in_memory(reference), what, stack)
        # Copies: a source may be a view of the file's own memory.
        state = {name: whole(source).clone() for name, source in sources.items()}
    check_compatible(
        reference, state, reference_name="the pretrained encoder", other_name=f"{what} ('{path}')"
    )
    return state


def head_for(
    task: Task,
    *,
    encoder_name: str,
    pretrained: str | None,
    encoder: nn.Module,
    file: str | None = None,
    datamodule: Any = None,
    trainable: bool = False,
) -> ClassificationHead:
    """Read or make the head of a task and check that it has the task's classes.

    Args:
        task: The task.
        encoder_name: The encoder's name.
        pretrained: Its pretrained weights.
        encoder: The pretrained encoder, for prototypes.
        file: A head's file to read in place of making one.
        datamodule: Whose ``dataset("train")`` makes prototypes where the encoder has no text tower.
        trainable: Whether weight and bias become parameters.

    Raises:
        StaError: The number of classes differs, or what the head is made of is missing.
    """
    if file is not None:
        head = ClassificationHead.load(file, trainable=trainable)
    else:
        loader = None
        if not has_text_tower(encoder_name) and task.head != "own" and datamodule is not None:
            loader = DataLoader(datamodule.dataset("train"), batch_size=_PROTOTYPE_BATCH)
        made = make_head(encoder_name, task, pretrained=pretrained, encoder=encoder, loader=loader)
        head = (
            made
            if not trainable
            else ClassificationHead(made.weight, made.bias, normalize=made.normalize, trainable=True)
        )
    if head.num_classes != len(task.class_names):
        raise StaError(
            f"The task {task.name!r} has {len(task.class_names)} classes, the head"
            f"{f' in {file}' if file else ''} has {head.num_classes}. Give the head that was made for this task."
        )
    return head
