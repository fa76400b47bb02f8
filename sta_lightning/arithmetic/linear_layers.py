"""What the methods share that merge linear layers by the Gram matrices of their inputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.linear import scaled_sum
from sta_lightning.arithmetic.method import VectorMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.states import to_double
from sta_lightning.errors import StaError, score_line


class LinearLayerMethod(VectorMethod):
    """A method that merges linear layers by their Gram matrices, and averages the other tensors."""

    data = "unlabelled samples"
    scope = "tensor"
    side_by_side = True
    needs_grams = True

    @abstractmethod
    def layer(self, block: Block, grams: list[Tensor]) -> Tensor:
        """The merged task vector of a layer.

        Args:
            block: its weight, ``[out, in]``.
            grams: the Gram matrix of its inputs under every fine-tuned model, float64 ``[in, in]``.
        """

    @override
    def check(self, problem: Problem) -> None:
        problem.check_grams(self.title)

    def other(self, block: Block) -> Tensor:
        """The merged task vector of a tensor that is no layer's weight: the mean."""
        return scaled_sum(block, 1.0 / len(block.finetuned))

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        if not block.grams:
            return self.other(block)
        return self.layer(block, wide_grams(block)).to(block.base)


def wide_grams(block: Block) -> list[Tensor]:
    """The Gram matrices of a layer's inputs in float64; a StaError if they are none."""
    grams = [to_double(gram).to(block.base.device) for gram in block.grams]
    if any(bool((gram.diagonal() < 0).any()) for gram in grams):
        raise StaError(
            f"a Gram matrix of tensor '{block.name}' has a negative entry on its diagonal, and is not X^T X of any inputs X. "
            f"Collect the Gram matrices again: {score_line('gram')}."
        )
    return grams


def unit_gram(gram: Tensor) -> Tensor:
    """Divided by its mean eigenvalue, so that Gram matrices weigh alike; a zero one as it is."""
    return gram / (float(gram.diagonal().mean()) or 1.0)
