"""A merged encoder that is made once, saved with its origin, and evaluated: what fusing and forgetting share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import Merged, change_size
from sta_lightning.callbacks.digest import tensor_digest
from sta_lightning.encoders import encoder_spec
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.evaluation import MultiTaskEvaluation
from sta_lightning.modules.sources import pretrained_file
from sta_lightning.weights import provenance, save_weights

DType = Literal["float32", "float16", "bfloat16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
            StaError: A source is missing, or differs in names or shapes, or holds NaN or Inf: the message names it.
        """
        if self._merged is None:
            self._merged = self.compute()
        return self._merged

    @abstractmethod
    def compute(self) -> Merged:
        """Read the sources and make the merged model."""

    @abstractmethod
    def origin(self) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        """Return the kind of file, the settings and the sources that its metadata names."""

    @override
    def encoder_weights(self) -> dict[str, Tensor]:
        """Return the merged weights."""
        return self.merge().weights

    def save(self, path: str | Path) -> Path:
        """Write the merged encoder, whole or not at all.

        Args:
            path: A safetensors file. Its tensors are named as in the pretrained model's file, and its metadata holds the
                method, its settings, the package's version and the SHA-256 of every source.

        Returns:
            The path.

        Raises:
            StaError: The merge is refused, or the file cannot be written; nothing has been changed then.
        """
        weights = self.merge().weights
        kind, settings, sources = self.origin()
        original = pretrained_file(self._encoder_name, self._pretrained)
        if original is not None:
            sources = {"pretrained": original, **sources}
        metadata = provenance(kind, settings, sources)
        metadata["pretrained_sha256"] = tensor_digest(self.original().state_dict())
        prefix = encoder_spec(self._encoder_name, self._image_size).key_prefix
        save_weights(path, {prefix + name: tensor for name, tensor in weights.items()}, metadata)
        return Path(path)

    @override
    def describe(self) -> dict[str, Any]:
        return self.origin()[1]


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raise a StaError that lists what there is if ``value`` is not among it."""
    if value not in known:
        raise StaError(f"{name}={value!r} was asked for; choose one of {listed(known)}.")


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return the type of that name.

    Raises:
        StaError: There is none.
    """
    if name is None:
        return None
    check_choice("dtype", name, _DTYPES)
    return _DTYPES[name]
