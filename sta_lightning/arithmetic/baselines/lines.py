"""LiNeS: scale a merged task vector block by block, the deeper the more.

Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_scale
from sta_lightning.arithmetic.method import Survey, VectorMethod
from sta_lightning.arithmetic.problem import Block, Entries, Problem
from sta_lightning.arithmetic.registry import FUSION_METHODS, find_method, has_setting, make_method
from sta_lightning.arithmetic.states import to_double
from sta_lightning.errors import StaError, listed


@dataclass(frozen=True)
class Lines(VectorMethod):
    """LiNeS: theta_0 + (alpha + beta * l / (L - 1)) * another method's vector, in block l of L.

    alpha = (L1 norm of the sum of the task vectors) / (L1 norm of the other method's vector) / N,
    over all floating-point tensors: 1/N for task arithmetic. The other method has a coefficient of
    1 where it has one, and its defaults besides.

    Args:
        inner: the other method, by name; one that makes a task vector of all of them.
        beta: how much more the last block is scaled than the first; tuned in place of the other
            method's coefficient.

    Raises:
        StaError: if ``inner`` is unknown or makes no task vector, or ``beta`` is not finite.
    """

    inner: str = "task_arithmetic"
    beta: float = 0.4

    title = "LiNeS"
    summary = "another method's task vector, scaled more in deeper blocks"
    coefficient = "beta"
    source = "Wang et al. 2024 (LiNeS)"

    def __post_init__(self) -> None:
        check_scale(self.beta, "beta")
        found = find_method(self.inner, FUSION_METHODS)
        if not issubclass(found, VectorMethod) or issubclass(found, Lines):
            able = [n for n, m in FUSION_METHODS.items() if issubclass(m, VectorMethod) and m is not Lines]
            raise StaError(
                f"LiNeS cannot scale what '{self.inner}' makes, which is no single task vector. Choose one of "
                f"{listed(able, len(able))}."
            )
        settings = {"scale": 1.0} if has_setting(found, "scale") else None
        made = make_method(self.inner, FUSION_METHODS, settings=settings)
        object.__setattr__(self, "method", made)
        # What the other method asks the engine for, this one asks for.
        for name in ("scope", "data", "needs_importance", "measure", "needs_grams"):
            object.__setattr__(self, name, getattr(made, name))

    @override
    def check(self, problem: Problem) -> None:
        self._made.check(problem)

    @property
    def _made(self) -> VectorMethod:
        return vars(self)["method"]  # type: ignore[no-any-return]

    @override
    def prepare(self, survey: Survey) -> tuple[float, int, Any]:
        """alpha, the number of blocks, and what the other method prepared."""
        made = self._made
        prepared = made.prepare(survey)

        def look(entries: Entries) -> tuple[float, float]:
            state = made.prepare_tensor(entries, prepared)
            plain = merged = 0.0
            for block in entries.blocks(whole=made.scope == "tensor"):
                total = torch.zeros_like(to_double(block.base))
                for delta in block.deltas():
                    total += to_double(delta)
                plain += float(total.abs().sum())
                merged += float(to_double(made.vector(block, state)).abs().sum())
            return plain, merged

        found = survey.each(look)
        plain, merged = (sum(norms[i] for norms in found.values()) for i in (0, 1))
        # A vector of zeros stays one, whatever it is multiplied with.
        alpha = plain / merged / len(survey.problem.tasks) if merged else 0.0
        return alpha, number_of_blocks(found), prepared

    @override
    def prepare_tensor(self, entries: Entries, prepared: tuple[float, int, Any]) -> tuple[float, Any]:
        """The tensor's coefficient, and what the other method prepared for it."""
        alpha, count, inner = prepared
        depth = (block_number(entries.name) or 0) / max(count - 1, 1)
        return alpha + self.beta * depth, self._made.prepare_tensor(entries, inner)

    @override
    def vector(self, block: Block, state: tuple[float, Any]) -> Tensor:
        coefficient, inner = state
        return coefficient * self._made.vector(block, inner)


def block_number(name: str) -> int | None:
    """The block that a tensor belongs to: the first number in its dotted name, or None."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def number_of_blocks(names: Iterable[str]) -> int:
    """How many blocks a model with these tensors has: the largest number of a block, plus one."""
    return 1 + max((block_number(name) or 0 for name in names), default=0)
