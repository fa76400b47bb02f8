"""Gram matrices of the inputs of a task's own fine-tuned encoder's linear layers, in one file.

The two ways in are those of :mod:`sta_lightning.callbacks.importance`: attached to a fit or a
validation, or alone, as ``sta score --measure=gram`` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_finite
from sta_lightning.arithmetic.gram import GramSums, input_gram_sums, wide_float
from sta_lightning.callbacks.sampled import SampledPass, reduce_sums, share
from sta_lightning.callbacks.scorable import sample_source, scorable
from sta_lightning.errors import StaError
from sta_lightning.weights import save_weights

MEASURE = "gram"
"""What the file's metadata says under ``measure``."""


@dataclass(frozen=True)
class _Collected:
    """What was collected, on which samples of all processes, and the weights that it may be of, in the encoder's order."""

    grams: GramSums
    indices: list[int]
    names: list[str]
    device: torch.device


class GramCollection(SampledPass[_Collected]):
    """Write the mean of x xᵀ over the inputs x of every linear layer of the encoder, for merges that read it (RegMean).

    The samples come from the task's training split under the evaluation transform, drawn by the
    seed alone; no label is read. The encoder runs in evaluation mode and in float32, whatever the
    trainer's precision, and without gradients. Process r of w takes the samples r, r + w, …; sums
    and numbers of rows meet in one reduction, in float64: the result does not depend on the number
    of processes nor on the batch size, but for rounding. A fit with this callback follows the fit
    without it bit for bit.

    The file holds one symmetric float32 tensor ``[in, in]`` for every linear layer, under the name
    that the layer's weight has in the encoder. See :mod:`sta_lightning.arithmetic.gram` for what is
    no linear layer.

    Args:
        output: The safetensors file to write.
        samples: Number of training samples.
        seed: Which samples: the same seed draws the same ones on every machine.
        chunk_size: Samples that go through the encoder together on each process; takes memory for
            their activations. It changes speed only. Nothing is 8 on a CPU and 32 elsewhere.

    Raises:
        StaError: The strategy shards the weights (FSDP, DeepSpeed, …), the module or the datamodule
            cannot be scored, the encoder has no linear layer, or a Gram matrix is not finite. Every
            process raises it, whichever of them failed.
    """

    def __init__(self, output: str, samples: int = 256, seed: int = 0, chunk_size: int | None = None) -> None:
        super().__init__(output, samples, seed, chunk_size)

    @override
    def found(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
    ) -> _Collected:
        """The sums over the samples of this process."""
        part, source = scorable(module), sample_source(datamodule)
        indices = source.scoring_samples(self.samples, self.seed)
        names = [name for name, p in part.encoder.named_parameters() if p.is_floating_point()]
        drawn = share(trainer, source, indices, part.device)
        grams = GramSums()
        if drawn is not None:
            grams = input_gram_sums(part.encoder, drawn[0], names=names, chunk_size=self.chunk_size)
        return _Collected(grams, indices, names, part.device)

    @override
    def reduced(self, trainer: Trainer, found: _Collected) -> _Collected:
        """The sums over all samples; a process without samples does not know which layers there are."""
        own = {name: (len(total), found.grams.rows[name]) for name, total in found.grams.sums.items()}
        every: list[dict[str, tuple[int, int]]] = [own]
        if trainer.world_size > 1:
            every = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(every, own)
        widths = {name: width for part in every for name, (width, _) in part.items()}
        whole = GramSums()
        for name in (name for name in found.names if name in widths):
            total = found.grams.sums.pop(name, None)
            if total is None:
                shape = (widths[name],) * 2
                total = torch.zeros(shape, dtype=wide_float(found.device), device=found.device)
            whole.sums[name] = total
            whole.rows[name] = sum(part[name][1] for part in every if name in part)
        reduce_sums(trainer, whole.sums)
        return _Collected(whole, found.indices, found.names, found.device)

    @override
    def save(self, module: LightningModule, found: _Collected) -> None:
        """Write the means, and what there is to know of them."""
        grams = found.grams.means()
        if not grams:
            raise StaError(
                f"the encoder of {type(module).__name__} has no linear layer, of whose inputs there could be a Gram matrix. "
                "Merge it by a method that needs none."
            )
        check_finite(grams, "the Gram matrices of the encoder's inputs")
        more: dict[str, Any] = {"rows": found.grams.rows, "precision": "float32"}
        save_weights(self.output, grams, self.metadata(module, MEASURE, MEASURE, found.indices, more))
