"""Gram matrices of the inputs of a task's own fine-tuned encoder's linear layers, in one file."""

from __future__ import annotations

import torch
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_finite
from sta_lightning.arithmetic.gram import GramSums, input_gram_sums
from sta_lightning.callbacks.sampled import Result, SampledPass, Sums
from sta_lightning.callbacks.scorable import Samples, Scorable
from sta_lightning.errors import StaError


class GramCollection(SampledPass):
    """Write the mean of x xᵀ over the inputs x of every linear layer of the encoder (RegMean).

    No label is read. The encoder runs in evaluation mode and in float32, whatever the trainer's
    precision, and without gradients; sums are float64. When it runs, on which samples and
    processes: :class:`SampledPass`.

    The file holds one symmetric float32 tensor ``[in, in]`` for every linear layer, under the name
    that the layer's weight has in the encoder. See :mod:`sta_lightning.arithmetic.gram` for what is
    no linear layer.

    Raises:
        StaError: The strategy shards the weights (FSDP, DeepSpeed, …), the module or the datamodule
            cannot be scored, the encoder has no linear layer, or a Gram matrix is not finite. Every
            process raises it, whichever of them failed.
    """

    kind = measure = "gram"

    @override
    def sums(self, part: Scorable, samples: Samples) -> Sums:
        """Σ x xᵀ, and how many x there were."""
        images, _ = samples.pairs()
        names = [name for name, p in part.encoder.named_parameters() if p.is_floating_point()]
        found = input_gram_sums(part.encoder, images, names=names)
        if not found.sums:
            raise StaError(
                f"the encoder of {type(part.module).__name__} has no linear layer, of whose inputs there could be a Gram matrix. "
                "Merge it by a method that needs none."
            )
        rows = {name: torch.tensor(count, device=images.device) for name, count in found.rows.items()}
        return {"sums": found.sums, "rows": rows}

    @override
    def result(self, part: Scorable, sums: Sums) -> Result:
        """The means."""
        rows = {name: int(count) for name, count in sums["rows"].items()}
        grams = GramSums(sums["sums"], rows).means()
        check_finite(grams, "the Gram matrices of the encoder's inputs")
        return grams, {"rows": rows, "precision": "float32"}, {}
