from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.func import functional_call
from typing_extensions import override

from sta_lightning.arithmetic.baselines.adamerging import row_counts
from sta_lightning.arithmetic.predictions import divergence
from sta_lightning.arithmetic.states import weight_names
from sta_lightning.arithmetic.vectors import task_vector
from sta_lightning.callbacks.scorable import made_once
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.frozen import Frozen, read_frozen
from sta_lightning.modules.learned import LearnedMerging

Granularity = Literal["tensor", "row"]


class DistilledMerging(LearnedMerging):
    """Learn a merge's coefficients from the fine-tuned models' predictions, without labels.

    What is merged is theta_0 + sum of c_k * v_k, where the v_k are what some closed-form merges
    make of the task vectors, and the task vectors themselves, with a coefficient for every v_k and
    row of a tensor. It starts as the first of these merges, and what is made smaller is the sum
    over the tasks of the mean Kullback-Leibler divergence between the fine-tuned model's
    predictions and the merged model's. A task takes a few training images without their labels,
    best as another random crop in every step.

    Logs ``train/divergence`` (the mean over the tasks, in nats), ``train/<task>/divergence``,
    ``coefficient/<task>`` and ``coefficient/merge/<method>`` (the mean over the rows).

    Args:
        tasks: By task name (or the path of a task's YAML file): its fine-tuned encoder, its head if
            it is not to be made, and what ``merges`` read; or the names alone, see ``files``.
        merges: Methods of ``sta merge``, with their default settings; the first is the start.
            ``None`` for SWUDI-A, and Spectral STA where every task has its Gram matrices, else
            TSV-M.
        granularity: A coefficient for every v_k and ``tensor``, or for every v_k and ``row`` of a
            tensor (an entry of its first dimension).
        init: The coefficient of the first of them at the start.
        learning_rate: Of Adam.
        shared: See :class:`~sta_lightning.modules.learned.LearnedMerging`, for the datamodule too.

    Raises:
        StaError: An argument is unknown or out of range; in a fit, a source is missing or does not
            fit.
    """

    from_checkpoint: ClassVar = (
        *("encoder", "pretrained", "image_size"),
        *("granularity", "init", "learning_rate"),
    )
    method, goal = "distilled", "divergence"

    def __init__(
        self,
        tasks: dict[str, TaskSource] | list[str],
        merges: list[str] | None = None,
        granularity: Granularity = "row",
        init: float = 1.2,
        learning_rate: float = 1e-2,
        **shared: Any,
    ) -> None:
        super().__init__(tasks, learning_rate, **shared)
        grams = all(source.gram is not None for source in self._sources.values())
        self._merges = ["swudi_a", "spectral_sta" if grams else "tsv"] if merges is None else list(merges)
        if not self._merges or len(set(self._merges)) < len(self._merges):
            raise StaError(f"merges names {listed(self._merges)}: give one method or more, each once.")
        if granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise StaError(f"granularity={granularity!r} was asked for; choose from {known}.")
        self._granularity, self.init = granularity, init
        # Told now, and not when everything has been read.
        self._jobs = {name: FusionOptions({**self._sources}, method=name).job() for name in self._merges}

    @property
    def reads_grams(self) -> bool:
        """Whether one of the merges reads Gram matrices."""
        return any(job.method.needs_grams for job in self._jobs.values())

    @override
    def read(self, sources: Mapping[str, tuple[str, TaskSource]]) -> Frozen:
        name, file, size = self._encoder_name, self._pretrained, self._image_size
        frozen = read_frozen(sources, name, file, size, grams=self.reads_grams)
        pretrained = built_pretrained(name, file, size, lambda: frozen.encoder)
        base = frozen.encoder.state_dict()
        merges = {
            # A task may be called as a method is.
            f"merge/{method}": task_vector(base, made_once(self._trainer, partial(job.in_memory, pretrained)))
            for method, job in self._jobs.items()
        }
        return replace(frozen, vectors={**merges, **frozen.vectors})

    @override
    def start(self, frozen: Frozen) -> Tensor:
        base = frozen.encoder.state_dict()
        columns = sum(row_counts(base)) if self._granularity == "row" else len(weight_names(base))
        found = torch.zeros(len(frozen.vectors), columns)
        found[0] = self.init
        return found

    @override
    def loss(self, task: str, images: Tensor, logits: Tensor) -> Tensor:
        frozen = self._at_hand()
        base, vector = frozen.encoder.state_dict(), frozen.vectors[task]
        weights = {**base, **{name: base[name] + delta for name, delta in vector.items()}}
        with torch.no_grad():
            target = frozen.heads[task](functional_call(frozen.encoder, weights, (images,)))
        return divergence(target.float(), logits)

    @override
    def identity(self) -> dict[str, Any]:
        return {"merges": self._merges, "granularity": self._granularity}
