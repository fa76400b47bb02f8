"""Contrastive image-text pretraining: how the embedded CLIP was made, and can be made again."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sta_lightning.encoders import build_clip, tokenize
from sta_lightning.modules.accuracy import Accuracy
from sta_lightning.modules.parts import refuse_verb
from sta_lightning.modules.schedule import warmup_cosine
from sta_lightning.modules.stored import StoredSettings
from sta_lightning.tasks.miniature.scenes import SCENES
from sta_lightning.weights import save_weights

_LARGEST_SCALE = math.log(100)


def contrastive_loss(images: Tensor, texts: Tensor, caption: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss in which equal captions are one caption.

    CLIP's loss calls every other pair of a batch a mismatch, also when its caption is the same;
    with short captions that is common. Here a picture is matched against the distinct captions, and
    a caption against all pictures that bear it.

    Args:
        images: Normalised image features, shape ``[B, D]``.
        texts: Normalised features of the U distinct captions, shape ``[U, D]``.
        caption: Which of the distinct captions each picture bears, shape ``[B]``; each occurs.
        scale: The logits' scale, a scalar.

    Returns:
        The mean of the image-to-text and the text-to-image cross-entropy, a scalar.
    """
    logits = scale * images @ texts.T
    image_to_text = F.cross_entropy(logits, caption)
    # One row a picture again, so that a frequent caption weighs as often as it occurs.
    bears = F.one_hot(caption, len(texts)).to(logits.dtype)
    log_share = F.log_softmax(logits, dim=0) * bears
    per_caption = -log_share.sum(dim=0) / bears.sum(dim=0)
    text_to_image = per_caption[caption].mean()
    return (image_to_text + text_to_image) / 2


class ContrastivePretraining(StoredSettings):
    """Train a whole CLIP from random weights on pictures with captions.

    Args:
        encoder: Name of the CLIP to build.
        learning_rate: Peak learning rate of AdamW, after a linear warm-up; a cosine takes it to
            zero.
        weight_decay: Decoupled weight decay of tensors with two or more dimensions; gains, biases
            and the logit scale have none.
        warmup_steps: Optimiser steps of the warm-up.
        output: Where the trained CLIP is written (float16 safetensors) when training ends; nowhere
            if not given.
        record: What the file's metadata tells of its making besides seed, date, steps and versions,
            such as the command.
    """

    from_checkpoint: ClassVar = ("encoder", "learning_rate", "weight_decay", "warmup_steps")

    def __init__(
        self,
        encoder: str = "miniature",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 200,
        output: str | None = None,
        record: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder_name = encoder
        self.clip = build_clip(encoder, "random")
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.output = output
        self.record = record or {}
        self._tokens: dict[str, Tensor] = {}
        self._heads: list[Tensor] = []
        self.accuracy = nn.ModuleList(Accuracy() for _ in SCENES)

    def configure_callbacks(self) -> list[Callback]:
        """Attach nothing.

        Raises:
            StaError: The trainer was asked to test or to predict.
        """
        refuse_verb(
            self, ("fit", "validate"), "it makes a CLIP. Give the file that it leaves to MultiTaskEvaluation"
        )
        return []

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return the normalised features ``[U, D]`` of some texts."""
        for text in texts:
            if text not in self._tokens:
                self._tokens[text] = tokenize(self.encoder_name, [text])[0]
        tokens = torch.stack([self._tokens[text] for text in texts]).to(self.device)
        return F.normalize(self.clip.encode_text(tokens), dim=-1)

    def training_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> Tensor:
        """Return the contrastive loss of a batch of pairs."""
        images, captions = batch
        distinct = sorted(set(captions))
        place = {text: number for number, text in enumerate(distinct)}
        caption = torch.tensor([place[text] for text in captions], device=self.device)
        features = F.normalize(self.clip.visual(images), dim=-1)
        loss = contrastive_loss(features, self.encode_texts(distinct), caption, self.clip.logit_scale.exp())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        """Keep the logit scale at 100 or below, as CLIP does."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=_LARGEST_SCALE)

    def on_validation_epoch_start(self) -> None:
        """Make every set's zero-shot head from the text tower as it stands."""
        self._heads = []
        for scene in SCENES.values():
            prompts = [template.format(name) for name in scene.class_names for template in scene.templates]
            with torch.no_grad():
                features = self.encode_texts(prompts)
            features = features.reshape(len(scene.class_names), len(scene.templates), -1)
            self._heads.append(F.normalize(features.mean(dim=1), dim=-1))

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the zero-shot hits of a batch of one set."""
        images, labels = batch
        logits = self.clip.visual(images) @ self._heads[dataloader_idx].T
        self.accuracy[dataloader_idx].update(logits, labels)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the zero-shot accuracy of every set."""
        for name, accuracy in zip(SCENES, self.accuracy, strict=True):
            self.log(f"val/{name}/acc", cast(Accuracy, accuracy))

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine to zero, per step."""
        weights = list(self.clip.parameters())
        groups = [
            {"params": [p for p in weights if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98), eps=1e-6)
        total = int(self.trainer.estimated_stepping_batches)
        factor = partial(warmup_cosine, warmup_steps=self.warmup_steps, total_steps=total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @rank_zero_only
    def on_train_end(self) -> None:
        """Write the trained CLIP."""
        if self.output is not None:
            tensors = {name: tensor.detach().half().cpu() for name, tensor in self.clip.state_dict().items()}
            made = {
                "kind": "pretrained CLIP",
                "encoder": self.encoder_name,
                "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
                "date": datetime.now(UTC).date().isoformat(),
                "steps": str(self.trainer.global_step),
                "torch": torch.__version__,
            }
            save_weights(Path(self.output), tensors, made | self.record)
