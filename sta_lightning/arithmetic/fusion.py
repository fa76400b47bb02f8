"""Fusion of fine-tuned models through masks (Eq. 13-19)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Addresses, Block, Entries
from sta_lightning.arithmetic.masks import above_kth, random_fusion_mask, tensor_generator
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import Answer, Combined, MergeMethod, Native, Survey
from sta_lightning.arithmetic.normalization import IDENTITY, Bounds, Normalization, grouped
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.selection import rank
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.errors import StaError, listed
from sta_lightning.kernels import Fused, fused
from sta_lightning.ranges import share, word


def masked_sum(block: Block, masks: Iterable[Tensor]) -> Combined:
    """Base + sum of mask_i * delta_i (Eq. 18 and 19); a mask has the shape of ``block.base``."""
    total = torch.zeros_like(block.base)
    kept = []
    for delta, mask in zip(block.deltas(), masks, strict=True):
        total += torch.where(mask, delta, 0.0)
        kept.append(mask.sum())
    return Combined(block.base + total, torch.stack(kept))


class MaskedFusion(MergeMethod):
    """Fusion of whatever the masks keep (Eq. 18 and 19)."""

    @abstractmethod
    def masks(self, block: Block, state: Any) -> Iterator[Tensor]:
        """One boolean mask a task, of the shape of ``block.base``."""

    @override
    def combine(self, block: Block, state: Any) -> Combined:
        return masked_sum(block, self.masks(block, state))

    @override
    def check(self, problem: Problem) -> None:
        if len(problem.finetuned) < 2:
            raise StaError(
                f"fusing needs at least two tasks, and there is one: {listed(problem.finetuned)}. The quantile over "
                "a single task keeps nothing (Eq. 15-17), so the result would be the pretrained model. Use the "
                "fine-tuned model itself."
            )


@dataclass(frozen=True)
class Sta(MaskedFusion):
    """Selective task arithmetic: theta_0 + sum of M_i * delta_i, with no coefficient (Eq. 13-19).

    Args:
        p: quantile in [0, 1], see :func:`fuse`.
        normalize: over what Eq. 13 takes minimum and maximum, see :func:`fuse`.
    """

    p: float = share(0.7)
    normalize: str = word("tensor", Normalization)

    title = "STA"
    summary = "at every position the task vectors of the tasks whose importance there is largest"
    data = "labelled samples"
    source = "Tian et al. 2024"
    needs_importance = True

    @override
    def prepare(self, survey: Survey) -> Any:
        """The bounds of every tensor and task, if they span several tensors."""
        if self.normalize in ("tensor", "none"):
            return None
        found = survey.each(lambda entries: [entries.bounds(source) for source in entries.scores])
        full = {name: ranges for name, ranges in found.items() if survey.entries(name).numel}
        tasks = range(len(survey.problem.tasks))
        by_task = [grouped({n: ranges[task] for n, ranges in full.items()}, self.normalize) for task in tasks]
        return {name: [bounds[name] for bounds in by_task] for name in full}

    @override
    def prepare_tensor(self, entries: Entries, prepared: Any) -> list[Bounds]:
        """The bounds of this tensor's importances, one for each task."""
        if self.normalize == "none":
            return [IDENTITY] * len(entries.scores)
        if prepared is not None:
            return prepared.get(entries.name, [Bounds(0.0, 0.0)] * len(entries.scores))  # type: ignore[no-any-return]
        return [Bounds(*entries.bounds(source)) for source in entries.scores]

    @override
    def masks(self, block: Block, state: Sequence[Bounds]) -> Iterator[Tensor]:
        rows = [bounds.apply(scores) for bounds, scores in zip(state, block.scores, strict=True)]
        for mask in above_kth(rows, rank(len(rows), self.p)):
            yield mask.to(block.base.device)

    @override
    def native(self, tasks: int) -> Native | None:
        def call(kernel: Fused, at: Addresses, state: Sequence[Bounds], out: int, size: int) -> Answer:
            ranges = [None if bounds.identity else (bounds.low, bounds.high) for bounds in state]
            return Answer(*kernel(at.base, at.finetuned, at.scores, ranges, out, size))

        return Native(partial(fused, tasks, rank(tasks, self.p)), call)


@dataclass(frozen=True)
class RandomMask(MaskedFusion):
    """The control of :class:`Sta`: a random mask, N - rank(N, p) tasks at every position.

    Args:
        p: quantile in [0, 1].
        seed: the masks are a function of this number, the tensor's name and the number of tasks.
    """

    p: float = share(0.7)
    seed: int = 0

    title = "Random mask"
    summary = "as many task vectors at every position as STA keeps, drawn at random: the control"
    source = "this project"

    @override
    def prepare_tensor(self, entries: Entries, prepared: Any) -> Tensor:
        """The masks, bool ``[N, numel]``."""
        generator = tensor_generator(self.seed, entries.name)
        return random_fusion_mask(len(entries.finetuned), [entries.numel], self.p, generator)

    @override
    def masks(self, block: Block, state: Tensor) -> Iterator[Tensor]:
        return iter(state[:, block.piece].to(block.base.device))


def fuse(
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict],
    *,
    p: float = 0.7,
    normalize: str = "tensor",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Selective task arithmetic: theta_0 + sum of M_i * delta_i, with no coefficient (Eq. 13-19).

    At every position the tasks whose normalised importance exceeds the p-quantile of the N
    importances there contribute their task vector; the others contribute nothing.

    Args:
        pretrained: the model before fine-tuning; tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes, two or more.
        importance: task name -> importance (tensor name -> tensor) of every floating-point tensor,
            the same tasks.
        p: quantile in [0, 1]. Without ties N - :func:`~sta_lightning.arithmetic.rank` (N, p) tasks
            are kept at every position, at the default 1, 1, 2, 3 of 2, 3, 6, 8 tasks. 0 keeps all
            but the smallest, 1 keeps nothing.
        normalize: over what Eq. 13 takes minimum and maximum: ``"tensor"`` (the paper's),
            ``"block"``, ``"model"`` or ``"none"``.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in the first
            model. Sums are made in float32 whatever the types (float64 if a source is float64).

    Returns:
        A new model, names in the order of ``pretrained``; integer buffers are copied from
        ``pretrained``. It depends on the order of the tasks in no digit.

    Raises:
        StaError: if there are fewer than two tasks, ``p`` or ``normalize`` is invalid, the sources
            differ in tasks, names or shapes, or an entry is NaN or Inf. The message names the task
            and the tensors.

    Example:
        >>> base = {"w": torch.zeros(3)}
        >>> finetuned = {"a": {"w": torch.ones(3)}, "b": {"w": torch.full((3,), 2.0)}}
        >>> first, second = torch.tensor([0.0, 5.0, 9.0]), torch.tensor([3.0, 0.0, 3.0])
        >>> fuse(base, finetuned, {"a": {"w": first}, "b": {"w": second}})
        {'w': tensor([2., 1., 0.])}
    """
    return run_in_memory(Sta(p, normalize), pretrained, finetuned, importance, dtype=dtype).weights
