"""A merged encoder that is made once, saved with its origin, and evaluated: what fusing and forgetting share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import Merged, change_size
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.encoders import encoder_spec
from sta_lightning.encoders.pretrained import pretrained_file
from sta_lightning.engine import Job, Pretrained, TaskHead
from sta_lightning.modules.evaluation import MultiTaskEvaluation
from sta_lightning.weights import tensor_digest


class MergedEvaluation(MultiTaskEvaluation, ABC):
    """What fusing and forgetting share: the merged weights are made once, saved with their origin, and evaluated."""

    _merged: Merged | None = None
    _change: dict[str, float] | None = None

    @property
    def merged(self) -> Merged | None:
        """The merged model, once it has been made."""
        return self._merged

    @property
    def change(self) -> dict[str, float]:
        """Size of the change from the pretrained weights: ``norm``, ``relative_norm``, share ``changed``."""
        if self._change is None:
            self._change = change_size(self.original().state_dict(), self.merge().weights)
        return self._change

    def merge(self) -> Merged:
        """Make the merged model, or return it if it is there.

        Raises:
            StaError: A source is missing, or differs in names or shapes, or holds NaN or Inf: the
                message names it.
        """
        if self._merged is None:
            self._merged = self.compute()
        return self._merged

    @property
    @abstractmethod
    def job(self) -> Job:
        """What is merged, and how."""

    def compute(self) -> Merged:
        """Read the sources and make the merged model."""
        return self.job.in_memory(self._original_for_merge())

    @override
    def encoder_weights(self) -> dict[str, Tensor]:
        """Return the merged weights."""
        return self.merge().weights

    def save(self, path: str | Path) -> Path:
        """Write the merged encoder, whole or not at all.

        Args:
            path: A safetensors file. Its tensors are named as in the pretrained model's file, and
                its metadata holds the method, its settings, the package's version and the SHA-256
                of every source.

        Returns:
            The path.

        Raises:
            StaError: The merge is refused, or the file cannot be written; nothing has been changed
                then.
        """
        self.job.write(self._original_for_merge(), path, heads=self.task_heads())
        return Path(path)

    def task_heads(self) -> dict[str, TaskHead]:
        """By task: the heads that go into the file beside the encoder; none by default."""
        return {}

    def _original_for_merge(self) -> Pretrained:
        name, size = self._encoder_name, self._image_size
        state = self.original().state_dict()
        file = pretrained_file(name, self._pretrained)
        digest = None if file is not None else tensor_digest(state)
        prefix = encoder_spec(name, size).key_prefix
        tag = self._pretrained if file is None else None
        return Pretrained(name, in_memory(state), prefix, file, digest, size, tag)

    @override
    def describe(self) -> dict[str, Any]:
        return self.job.origin(self._original_for_merge())[1]
