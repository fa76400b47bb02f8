"""The importance pass: per-sample ``|θ·∇L|`` or (∇L)² of a task's own fine-tuned encoder, in one file.

Two ways in, one computation:

- **Attached to a fit or a validation**:
  ``Trainer(callbacks=[ImportanceScoring("digits.safetensors")])``. Under ``trainer.fit`` it runs
  when training ends, under ``trainer.validate`` when the validation pass ends.
- **Alone**, what ``sta score`` runs: ``score(trainer, module, datamodule,
  output="digits.safetensors", ckpt_path="last.ckpt")`` in :mod:`sta_lightning.callbacks.score`. No
  validation image is read, only the samples.

The datamodule has to be a ``TaskDataModule`` or offer what it does: ``scoring_samples(n, seed)``
and ``dataset("train")``. The file holds one float32 tensor per floating-point tensor of the
encoder, by its name in the encoder, and the metadata that :func:`sta_lightning.weights.provenance`
makes: measure, samples' indices, seed, precision, task, digest of the weights scored; and by
:mod:`sta_lightning.weights.bounds`, the smallest and largest importance of every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import MEASURES, SAMPLE_MEASURES, importance_for, task_vector
from sta_lightning.arithmetic.agreement import importance_agreement, mean_agreement
from sta_lightning.arithmetic.taylor import Precision, fisher_information, taylor_importance
from sta_lightning.callbacks.sampled import SampledPass, reduce_sums, share
from sta_lightning.callbacks.scorable import (
    Logits,
    Scorable,
    floating,
    pretrained_weights,
    sample_source,
    scorable,
)
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import all_bounds, save_weights, write_bounds
from sta_lightning.weights.bounds import KEY as BOUNDS

Measure = Literal["lp", "amp", "lp+amp", "delta-lp", "delta-amp", "fisher"]

# What the agreement of two precisions is measured on: the paper's p, and enough entries for three
# digits of a rank correlation.
_AGREEMENT: dict[str, Any] = {"p": 0.7, "entries": 10_000, "seed": 0}


@dataclass(frozen=True)
class _Scored:
    """What is scored, on which samples, and what was summed up over them.

    Attributes:
        weights: The encoder's floating-point tensors.
        original: Those that its fine-tuning started from, for the measures with 'delta'.
        indices: The samples of all processes.
        sums: Of every tensor, in the precision that was asked for.
        exact: The same in float32, where the agreement of the two is to be reported.
    """

    weights: dict[str, Tensor]
    original: dict[str, Tensor] | None
    indices: list[int]
    sums: dict[str, Tensor]
    exact: dict[str, Tensor] | None = None


class ImportanceScoring(SampledPass[_Scored]):
    """Write the importance of every weight of the encoder for the task it was fine-tuned on (Eq. 10 to 12).

    The samples come from the task's training split under the evaluation transform, drawn by the
    seed alone; the encoder runs in evaluation mode and in float32, or in the precision given here,
    whatever the trainer's. Each sample's gradient is taken on its own. Process r of w takes the
    samples r, r + w, …, and the sums meet in one reduction: the result does not depend on the
    number of processes nor on the batch size. A fit with this callback follows the fit without it
    bit for bit.

    Args:
        output: The safetensors file to write.
        measure: ``lp`` is Σ|θ·∇L| (the paper's default), ``amp`` is θ² and needs no data,
            ``lp+amp`` is their product; ``delta-lp`` is Σ|δ·∇L| and ``delta-amp`` is δ², with the
            task vector δ in place of the weights θ; ``fisher`` is Σ(∇L)², the diagonal of the
            empirical Fisher information.
        samples: Number of training samples to score on; the paper's is 32.
        seed: Which samples: the same seed draws the same ones on every machine.
        chunk_size: Samples that go through the encoder together on each process; takes memory for
            their activations. It changes speed only. Nothing is 8 on a CPU and 32 elsewhere; 1 is a
            loop of backward passes.
        precision: ``float32``, or ``bf16``: forward and backward under bfloat16 autocast, added up
            in float32. Quicker where the device computes in bfloat16.
        report_agreement: With ``bf16``, score in float32 too, which costs that pass and the memory
            of one more importance, and record how far the two agree in the file's metadata under
            ``agreement``: Spearman's rank correlation, and the share of entries that both or
            neither would keep at p = 0.7. The file holds the ``bf16`` importance.

    Raises:
        StaError: The strategy shards the weights (FSDP, DeepSpeed, …), the module or the datamodule
            cannot be scored, or the importance is not finite. Every process raises it, whichever of
            them failed.
    """

    def __init__(
        self,
        output: str,
        measure: Measure = "lp",
        samples: int = 32,
        seed: int = 0,
        chunk_size: int | None = None,
        precision: Precision = "float32",
        report_agreement: bool = False,
    ) -> None:
        super().__init__(output, samples, seed, chunk_size)
        if measure not in MEASURES:
            raise StaError(
                f"measure={measure!r} was asked for; choose one of {listed(MEASURES, len(MEASURES))}."
            )
        if precision not in ("float32", "bf16"):
            raise StaError(f"precision={precision!r} was asked for; choose 'float32' or 'bf16'.")
        if report_agreement and (precision == "float32" or measure not in SAMPLE_MEASURES):
            raise StaError(
                f"report_agreement compares a pass in precision='bf16' with one in float32, but precision={precision!r} and "
                f"measure={measure!r} were asked for. Ask for bf16 and a measure out of {listed(sorted(SAMPLE_MEASURES))}, "
                "or for no report."
            )
        self.measure = measure
        self.precision: Precision = precision
        self.report_agreement = report_agreement

    @property
    def _needs_samples(self) -> bool:
        return self.measure in SAMPLE_MEASURES

    @override
    def found(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
    ) -> _Scored:
        """The sums over the samples of this process."""
        part, source = scorable(module), sample_source(datamodule)
        weights = floating(part.encoder.state_dict())
        original = pretrained_weights(module) if self.measure.startswith("delta") else None
        indices = source.scoring_samples(self.samples, self.seed) if self._needs_samples else []
        drawn = share(trainer, source, indices, part.device)
        delta = None if original is None or drawn is None else task_vector(original, weights)
        sums = self._sums(part, weights, delta, drawn, self.precision)
        exact = self._sums(part, weights, delta, drawn, "float32") if self.report_agreement else None
        return _Scored(weights, original, indices, sums, exact)

    def _sums(
        self,
        part: Scorable,
        weights: dict[str, Tensor],
        delta: dict[str, Tensor] | None,
        drawn: tuple[Tensor, Tensor] | None,
        precision: Precision,
    ) -> dict[str, Tensor]:
        """Σ|θ·∇L|, Σ|δ·∇L| or Σ(∇L)² over samples; zeros for none."""
        found: dict[str, Tensor] = {}
        if drawn is not None:
            names = [
                f"encoder.{name}" for name, p in part.encoder.named_parameters() if p.is_floating_point()
            ]
            settings: dict[str, Any] = {
                "names": names,
                "chunk_size": self.chunk_size,
                "precision": precision,
            }
            logits = Logits(part.encoder, part.head)
            if self.measure == "fisher":
                found = fisher_information(logits, F.cross_entropy, *drawn, **settings)
            else:
                direction = None if delta is None else {f"encoder.{name}": t for name, t in delta.items()}
                found = taylor_importance(logits, F.cross_entropy, *drawn, direction=direction, **settings)
        # A buffer such as a running mean has no gradient: importance 0, so that a merge leaves it
        # as it was.
        return {
            name: found[f"encoder.{name}"]
            if f"encoder.{name}" in found
            else torch.zeros_like(tensor, dtype=torch.float32)
            for name, tensor in weights.items()
        }

    @override
    def reduced(self, trainer: Trainer, found: _Scored) -> _Scored:
        """The sums over all samples."""
        if self._needs_samples:
            reduce_sums(trainer, found.sums)
        if found.exact is not None:
            reduce_sums(trainer, found.exact)
        return found

    @override
    def save(self, module: LightningModule, found: _Scored) -> None:
        """Write the importance, and what there is to know of it."""
        importance = self._importance(found, found.sums)
        metadata = self.metadata(
            module,
            f"importance:{self.measure}",
            self.measure,
            found.indices if self._needs_samples else None,
            {"precision": self.precision} if self._needs_samples else {},
        )
        metadata[BOUNDS] = write_bounds(all_bounds(importance))
        if found.exact is not None:
            metadata["agreement"] = _agreement(self._importance(found, found.exact), importance)
        save_weights(self.output, importance, metadata)

    def _importance(self, found: _Scored, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return importance_for(
            self.measure,
            weights=found.weights,
            lp=sums if self._needs_samples else None,
            pretrained=found.original,
        )


def _agreement(exact: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> str:
    """JSON: the agreement with float32, as a mean over entries and in the tensor where it is least."""
    found = importance_agreement(exact, importance, **_AGREEMENT)
    mean = mean_agreement(found)
    report: dict[str, Any] = {"with": "float32", **_AGREEMENT}
    for kind in ("spearman", "kept"):
        least = min(found, key=lambda name: getattr(found[name], kind))
        report[kind] = {"mean": getattr(mean, kind), "least": getattr(found[least], kind), "tensor": least}
    return json.dumps(report)
