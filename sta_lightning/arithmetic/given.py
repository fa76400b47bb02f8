"""A merge that is there already, to be written as any other is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.method import Combined, MergeMethod


@dataclass(frozen=True)
class Given(MergeMethod):
    """The tensors that something else has made of the same models, such as a fit.

    Args:
        title: what made them.
        weights: the merged tensors by name.
        needs_grams: whether they were made of Gram matrices too.
    """

    title: str  # type: ignore[misc]  # a class variable of the others
    weights: Mapping[str, Tensor] = field(repr=False)
    needs_grams: bool = False  # type: ignore[misc]

    scope = "tensor"

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        return Combined(self.weights[block.name].to(block.base))

    @override
    def settings(self) -> dict[str, Any]:
        return {}
