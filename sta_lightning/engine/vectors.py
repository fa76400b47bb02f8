"""What each task contributes to a fusion, as files of their own: masked task vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sta_lightning.arithmetic.fusion import MaskedFusion
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.problem import Block, Problem
from sta_lightning.arithmetic.workers import Alone, Workers
from sta_lightning.engine.fusion import FusionJob
from sta_lightning.engine.job import Pretrained
from sta_lightning.errors import StaError
from sta_lightning.weights.sparse import KIND, vector_files


def check_vectors(job: FusionJob) -> None:
    """Refuse to write vectors that a method does not have.

    Raises:
        StaError: the method keeps no part of the task vectors.
    """
    if not isinstance(job.method, MaskedFusion):
        raise StaError(
            f"method '{job.name}' does not mask the task vectors, so there are none to write. Leave model.vectors out, or "
            "use method 'sta'."
        )


@torch.no_grad()
def write_vectors(
    job: FusionJob, pretrained: Pretrained, folder: str | Path, dtype: torch.dtype | None = None
) -> dict[str, Path]:
    """Write M_i * delta_i of every task of a fusion (Eq. 19).

    Added to the pretrained encoder they make the fusion; each can be taken out of it again.

    Args:
        job: the fusion.
        pretrained: the pretrained encoder.
        folder: where the files go, ``<task>.safetensors``; missing folders are made.
        dtype: type of the values; ``None`` for float32, which keeps every bit of a float32 fusion.

    Returns:
        Task -> file.

    Raises:
        StaError: the method has no masks, a source is missing or does not fit, or a file cannot be
            written.
    """
    check_vectors(job)
    paths = {task: Path(folder) / f"{task}.safetensors" for task in sorted(job.tasks)}
    with ExitStack() as stack:
        problem = job.problem(pretrained, stack)
        problem.check_names()
        masks = _Masks(job, problem)
        # Two passes: how much a mask keeps must be known before the file is begun.
        kept: dict[str, dict[str, int]] = {task: dict.fromkeys(problem.names, 0) for task in paths}
        for block, mask_of in masks.blocks():
            for task, mask in mask_of.items():
                kept[task][block.name] += int(mask.sum())
        shapes = {name: torch.Size(problem.base[name].shape) for name in problem.names}
        metadata = {task: job.metadata(pretrained, KIND, task=task) for task in paths}
        with vector_files(paths, shapes, kept, metadata, dtype or torch.float32) as sinks:
            for block, mask_of in masks.blocks():
                for (task, mask), delta in zip(mask_of.items(), block.deltas(), strict=True):
                    sinks[task].write(block.name, block.start, mask, delta[mask])
    return paths


class _Masks:
    """The masks of a fusion, block after block."""

    def __init__(self, job: FusionJob, problem: Problem) -> None:
        assert isinstance(job.method, MaskedFusion)
        self.method, self.problem = job.method, problem
        self.survey = Survey(problem, Workers(), Alone())
        self.prepared = job.method.prepare(self.survey)

    def blocks(self) -> Iterator[tuple[Block, dict[str, Tensor]]]:
        """Yield (block, task -> mask) for every block of every tensor."""
        for name in self.problem.names:
            entries = self.survey.entries(name)
            state = self.method.prepare_tensor(entries, self.prepared)
            for piece in entries.pieces():
                block = entries.block(piece)
                yield block, dict(zip(self.problem.tasks, self.method.masks(block, state), strict=True))
