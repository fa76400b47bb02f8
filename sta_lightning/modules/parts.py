"""Encoders and heads as the modules need them: with weights, without, for one task or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from sta_lightning.arithmetic import check_compatible
from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.encoders import ClassificationHead, build_encoder, has_text_tower, make_head
from sta_lightning.engine.files import open_encoder
from sta_lightning.errors import StaError
from sta_lightning.tasks import Task

_PROTOTYPE_BATCH = 128


Weights = str | Path | Mapping[str, Tensor]
"""A weights file, or an encoder's tensors by name."""
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Settings of a trainer that prints, logs and leaves nothing."""


class LayersFirst(Callback):
    """Set up a module before the other callbacks, for modules that build their layers there.

    Lightning sets up callbacks before modules, and those that average, prune or freeze weights look
    at the layers then.
    """

    @staticmethod
    def attached_to(trainer: Trainer) -> list[Callback]:
        """Put it before a trainer's callbacks; nothing is left to attach behind them."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, LayersFirst) for callback in callbacks):
            callbacks.insert(0, LayersFirst())
        return []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set up the module, which does so again after the callbacks, to no effect."""
        pl_module.setup(stage)


def refuse_verb(module: LightningModule, able: Sequence[str], instead: str) -> None:
    """Refuse what a trainer was asked to do with a module, before Lightning misses its hooks.

    Raises:
        StaError: It is none of ``able``; ``instead`` says what to do.
    """
    asked = module.trainer.state.fn
    if asked is not None and asked.value not in able:
        raise StaError(f"{type(module).__name__} has nothing to {asked.value}: {instead}.")


def is_logged(trainer: Trainer, batch_idx: int) -> bool:
    """Whether somebody looks at this training step's numbers; the same on every process."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(batch_idx == 0 or (every > 0 and (trainer.global_step + 1) % every == 0))


def start_encoder(
    source: str | nn.Module, pretrained: str | None, weights: str | None, image_size: int | None
) -> tuple[nn.Module, nn.Module]:
    """Build the pretrained encoder, unless it is given, and the one to start from.

    They are the same without ``weights``.
    """
    original = build_encoder(source, pretrained, image_size) if isinstance(source, str) else source
    if weights is None:
        return original, original
    encoder = deepcopy(original)
    encoder.load_state_dict(read_encoder(weights, encoder.state_dict(), "the encoder to start from"))
    return original, encoder


def read_encoder(path: str | Path, reference: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Read an encoder's weights and check them against the pretrained ones, ``reference``.

    ``path`` and ``what`` are as in :func:`~sta_lightning.engine.files.open_encoder`.

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


def encoder_with(like: nn.Module, weights: Weights, what: str) -> nn.Module:
    """Return a copy of the pretrained encoder with other weights, frozen, in evaluation mode.

    Tensors are taken as they are, since nothing writes to them: many models need no second copy.

    Raises:
        StaError: The weights cannot be read, or do not fit; ``what`` says whose they are.
    """
    encoder = deepcopy(like).requires_grad_(False)
    reference = encoder.state_dict()
    if isinstance(weights, Mapping):
        check_compatible(reference, weights, reference_name="the pretrained encoder", other_name=what)
    else:
        weights = read_encoder(weights, reference, what)
    state = {name: weights[name].to(tensor.dtype) for name, tensor in reference.items()}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


def head_for(
    task: Task,
    encoder_name: str | None,
    pretrained: str | None,
    encoder: nn.Module,
    *,
    file: str | None = None,
    datamodule: Any = None,
    trainable: bool = False,
) -> ClassificationHead:
    """Read or make the head of a task and check that it has the task's classes.

    Args:
        task: The task.
        encoder_name: See :func:`~sta_lightning.encoders.make_head`, as for the following.
        pretrained: The pretrained weights.
        encoder: The pretrained encoder.
        file: A head's file to read in place of making one.
        datamodule: Whose ``dataset("train")`` makes prototypes where the encoder has no text tower.
        trainable: Whether weight and bias become parameters.

    Raises:
        StaError: The number of classes differs, or what the head is made of is missing.
    """
    if file is not None:
        head = ClassificationHead.load(file)
    else:
        loader = None
        named = encoder_name is not None and has_text_tower(encoder_name)
        if not named and task.head != "own" and datamodule is not None:
            loader = DataLoader(datamodule.dataset("train"), batch_size=_PROTOTYPE_BATCH)
        head = make_head(encoder_name, task, pretrained=pretrained, encoder=encoder, loader=loader)
    if head.num_classes != len(task.class_names):
        raise StaError(
            f"The task {task.name!r} has {len(task.class_names)} classes, the head"
            f"{f' in {file}' if file else ''} has {head.num_classes}. Give the head that was made for this task."
        )
    if trainable:
        head = ClassificationHead(head.weight, head.bias, normalize=head.normalize, trainable=True)
    return head
