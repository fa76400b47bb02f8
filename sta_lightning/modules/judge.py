"""How near a merged model's predictions are to the fine-tuned models', on images without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from sta_lightning.arithmetic.predictions import agreement, divergence
from sta_lightning.encoders import ClassificationHead
from sta_lightning.modules.parts import Weights, encoder_with


@dataclass(frozen=True)
class Foretold:
    """How near a merged model's predictions are to the fine-tuned models', by task.

    Attributes:
        divergence: the mean Kullback-Leibler divergence from a fine-tuned model's, in nats.
        agreement: the share of images, 0 to 1, that both take for the same class.
    """

    divergence: Mapping[str, float]
    agreement: Mapping[str, float]

    def plain(self) -> dict[str, dict[str, float]]:
        """For metadata: both by task."""
        both = {"divergence": self.divergence, "agreement": self.agreement}
        return {
            task: {what: round(found[task], 6) for what, found in both.items()} for task in self.divergence
        }

    @property
    def mean(self) -> float:
        """The mean divergence over the tasks."""
        return fmean(self.divergence.values())

    @property
    def means(self) -> dict[str, float]:
        """For metadata: the means of both over the tasks."""
        agreement = fmean(self.agreement.values())
        return {"divergence": round(self.mean, 6), "agreement": round(agreement, 6)}


class Judge:
    """Compares merged models with the fine-tuned ones, each on images of its own task.

    Args:
        encoder: the pretrained encoder, for the architecture.
        finetuned: the fine-tuned encoders by task; one is in memory at a time.
        heads: the heads by task.
        images: by task, ``[B, 3, S, S]``.
        device: where the encoders run.

    Raises:
        StaError: weights cannot be read, or do not fit.
    """

    def __init__(
        self,
        encoder: nn.Module,
        finetuned: Mapping[str, Weights],
        heads: Mapping[str, ClassificationHead],
        images: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
    ) -> None:
        self._encoder, self._heads, self._images, self._device = encoder, heads, images, device
        self._targets = {
            task: self._logits(weights, [task])[task] for task, weights in sorted(finetuned.items())
        }

    def foretell(self, weights: Weights) -> Foretold:
        """How near an encoder is to the fine-tuned ones."""
        found = self._logits(weights, self._targets)
        pairs = {task: (target, found[task]) for task, target in self._targets.items()}
        return Foretold(
            {task: divergence(*pair).item() for task, pair in pairs.items()},
            {task: agreement(*pair).item() for task, pair in pairs.items()},
        )

    @torch.no_grad()
    def _logits(self, weights: Weights, tasks: Iterable[str]) -> dict[str, Tensor]:
        encoder = encoder_with(self._encoder, weights, "an encoder to compare").to(self._device)
        return {
            task: self._heads[task].to(self._device)(encoder(self._images[task].to(self._device))).float()
            for task in tasks
        }
