from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.fusion import MaskedFusion
from sta_lightning.arithmetic.method import Survey
from sta_lightning.arithmetic.workers import Alone, Workers
from sta_lightning.engine.fusion import FusionJob
from sta_lightning.engine.opened import Pretrained
from sta_lightning.errors import StaError
from sta_lightning.weights.sparse import KIND, vector_files


def check_vectors(job: FusionJob) -> MaskedFusion:
    """The method of a job whose vectors shall be written.

    Raises:
        StaError: it keeps no part of the task vectors, so there are none to write.
    """
    if not isinstance(job.method, MaskedFusion):
        raise StaError(
            f"method '{job.name}' does not mask the task vectors, so there are none to write. Leave model.vectors out, or "
            "use method 'sta'."
        )
    return job.method


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
    method = check_vectors(job)
    paths = {task: Path(folder) / f"{task}.safetensors" for task in sorted(job.tasks)}
    with ExitStack() as stack:
        problem = job.problem(pretrained, stack)
        problem.check_names()
        survey = Survey(problem, Workers(), Alone())
        prepared = method.prepare(survey)

        def blocks() -> Iterator[tuple[Block, Iterator[Tensor]]]:
            """Yield every block of every tensor with the tasks' masks."""
            for name in problem.names:
                entries = survey.entries(name)
                state = method.prepare_tensor(entries, prepared)
                for piece in entries.pieces():
                    block = entries.block(piece)
                    yield block, method.masks(block, state)

        # Two passes: how much a mask keeps must be known before the file is begun.
        kept: dict[str, dict[str, int]] = {task: dict.fromkeys(problem.names, 0) for task in paths}
        for block, masks in blocks():
            for task, mask in zip(problem.tasks, masks, strict=True):
                kept[task][block.name] += int(mask.sum())
        shapes = {name: torch.Size(problem.base[name].shape) for name in problem.names}
        metadata = {task: job.metadata(pretrained, KIND, task=task) for task in paths}
        with vector_files(paths, shapes, kept, metadata, dtype or torch.float32) as sinks:
            for block, masks in blocks():
                for task, mask, delta in zip(problem.tasks, masks, block.deltas(), strict=True):
                    sinks[task].write(block.name, block.start, mask, delta[mask])
    return paths
