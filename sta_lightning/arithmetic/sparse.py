"""Masked task vectors by themselves: added to a model, or taken out of one (Eq. 19 and 20)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.method import Combined, MergeMethod


@dataclass(frozen=True)
class AddVectors(MergeMethod):
    """A model plus masked task vectors: theta + sum of M_i * delta_i, which ``finetuned`` are.

    From the pretrained model and the vectors of all tasks of a fusion it makes that fusion again,
    bit for bit.
    """

    title = "Masked task vectors"
    summary = "masked task vectors that an earlier merge wrote, added to a model as they are"
    source = "this project"
    takes_vectors = True

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        total = torch.zeros_like(block.base)
        for vector in block.finetuned:
            total += vector
        return Combined(block.base + total)


@dataclass(frozen=True)
class SubtractVector(MergeMethod):
    """A model without a masked task vector: theta - M * delta, which ``finetuned`` is."""

    title = "Masked task vector"
    summary = "a masked task vector that an earlier merge wrote, taken out as it is"
    source = "this project"
    takes_vectors = True

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        (vector,) = block.finetuned
        return Combined(block.base - vector)
