"""Weights for the merge, out of a fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from sta_lightning.arithmetic.states import nonfinite_names
from sta_lightning.arithmetic.workers import together
from sta_lightning.callbacks.scorable import processes_of
from sta_lightning.callbacks.trained import TakesTrained, adapters_merged
from sta_lightning.callbacks.trial import is_trial
from sta_lightning.encoders import ClassificationHead, encoder_spec
from sta_lightning.encoders.adapters import adapter_of, is_adapted
from sta_lightning.errors import StaError, listed
from sta_lightning.tasks import get_task
from sta_lightning.weights import provenance, save_weights
from sta_lightning.weights.atomic import atomic_path
from sta_lightning.weights.formats.adapter import CONFIG
from sta_lightning.weights.formats.checkpoint import ADAPTERS
from sta_lightning.weights.hashes import tensor_digest

_FILES = ("pretrained", "weights", "head", "task")
_NEVER = 1 << 62


class ExportWeights(TakesTrained):
    """Write ``encoder.safetensors`` and ``head.safetensors`` when a fit ends.

    Scoring, merging and forgetting read them. The encoder's tensors are named as in the pretrained
    model's file. Both files carry the fit's settings in their metadata. An encoder with adapters
    (``lora``) is written with these merged in, and they by themselves as a folder ``adapter`` in
    peft's layout, for the model that the fit began with. Weights that became NaN or infinite are
    not written: the error says in which step the loss did, and older files stay.

    Args:
        directory: The folder to write to; None for the trainer's ``default_root_dir``.

    Raises:
        StaError: The weights are not finite, or a file cannot be written; every process raises it.
    """

    def __init__(self, directory: str | None = None) -> None:
        super().__init__()
        self.directory = directory
        self._broken: Tensor | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._broken = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep, where the loss is, the first step whose loss was not finite."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            step = torch.where(loss.detach().isfinite().all(), _NEVER, trainer.global_step)
            self._broken = step if self._broken is None else torch.minimum(self._broken, step)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module without encoder, head or task before it is trained."""
        _parts(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files, on the first process; after a trial, none."""
        group, files = processes_of(trainer), self.files(trainer)
        if is_trial(trainer, files[0]):
            return
        broken = _NEVER if self._broken is None else int(self._broken)
        together(
            group, lambda: None if group.rank else _export(pl_module, files, trainer.global_step, broken)
        )

    def files(self, trainer: Trainer) -> tuple[Path, ...]:
        """The files that a fit of this trainer leaves: the encoder's, the head's, an adapter's."""
        folder = Path(self.directory or trainer.default_root_dir)
        found = folder / "encoder.safetensors", folder / "head.safetensors"
        encoder = getattr(trainer.lightning_module, "encoder", None)
        return (*found, folder / "adapter" / ADAPTERS[0]) if is_adapted(encoder) else found


def _export(module: LightningModule, files: tuple[Path, ...], steps: int, broken: int) -> None:
    with_adapters = _parts(module)[0]
    with adapters_merged(module):
        encoder, head, hparams = _parts(module)
    state = {**encoder.state_dict(prefix="encoder."), **head.state_dict(prefix="head.")}
    if names := nonfinite_names(state):
        when = (
            "was finite in every step" if broken == _NEVER else f"was NaN or infinite from step {broken} on"
        )
        raise StaError(
            f"The fit ended after {steps} steps with NaN or Inf in {len(names)} of {len(state)} tensors, {listed(names)}; its "
            f"loss {when}. Nothing was written, and what lies in '{files[0].parent}' is as it was. Lower the learning rate, clip "
            "the gradients, or train in bf16-mixed or 32-true in place of 16-true."
        )
    settings = {n: value for n, value in hparams.items() if value is not None and not n.startswith("_")}
    # Of a file its name alone: where it lay is nobody else's business.
    settings |= {name: Path(settings[name]).name for name in _FILES if name in settings}
    # An encoder that was given as a module has no name, and no other model's names to keep to.
    name = hparams.get("encoder")
    prefix = "" if name is None else encoder_spec(name, hparams.get("image_size")).key_prefix
    metadata = provenance("finetuned:fit", {**settings, "steps": steps}, {})
    metadata["weights_sha256"] = tensor_digest(encoder.state_dict())
    save_weights(files[0], {prefix + n: t for n, t in encoder.state_dict().items()}, metadata)
    head.save(
        files[1],
        provenance("head", settings, {}),
        class_names=get_task(hparams["task"]).class_names,
    )
    for file in files[2:]:
        tensors, config = adapter_of(with_adapters, prefix)
        save_weights(file, tensors, {"format": "pt", **metadata})
        with atomic_path(file.with_name(CONFIG)) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _parts(module: LightningModule) -> tuple[nn.Module, ClassificationHead, dict[str, Any]]:
    """What is exported, and the settings that say of what."""
    encoder, head = getattr(module, "encoder", None), getattr(module, "head", None)
    hparams = dict(getattr(module, "hparams", {}))
    if (
        not isinstance(encoder, nn.Module)
        or not isinstance(head, ClassificationHead)
        or "task" not in hparams
    ):
        raise StaError(
            f"{type(module).__name__} has no encoder, head and task to export; CLIPClassifier has them."
        )
    return encoder, head, hparams
