"""The importance pass: per-sample |θ·∇L| or (∇L)² of a fine-tuned encoder, in one file."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from sta_lightning.arithmetic import find_measure, importance_for
from sta_lightning.arithmetic.agreement import importance_agreement, mean_agreement
from sta_lightning.arithmetic.gradients import Precision, SampleLossModule, gradient_sums, loss_gradient_sums
from sta_lightning.callbacks.sampled import Result, SampledPass, Sums
from sta_lightning.callbacks.scorable import (
    SampleLoss,
    Samples,
    Scorable,
    encoder_settings,
    floating,
    pretrained_weights,
    scorable,
)
from sta_lightning.errors import StaError, StaWarning
from sta_lightning.weights import all_bounds, write_bounds
from sta_lightning.weights.bounds import KEY as BOUNDS

# What the agreement of two precisions is measured on: the paper's p, and enough entries for three
# digits of a rank correlation.
_AGREEMENT: dict[str, Any] = {"p": 0.7, "entries": 10_000, "seed": 0}


class ImportanceScoring(SampledPass):
    """Write the importance of every weight of a fine-tuned encoder for its task (Eq. 10 to 12).

    Each sample is differentiated by itself through encoder and head at its true label, or through a
    loss of one's own, in evaluation mode, and in float32 whatever the trainer's precision; buffers
    have importance 0.
    When it runs, on which samples and processes: :class:`SampledPass`.

    The file holds one float32 tensor per floating-point tensor of the encoder, by its name in the
    encoder, and in its metadata what :func:`sta_lightning.weights.provenance` makes (measure,
    samples' indices, seed, precision, task), the digest of the weights scored, and the smallest and
    largest importance of every tensor (:mod:`sta_lightning.weights.bounds`).

    Args:
        output: The safetensors file to write.
        measure: ``lp`` is Σ|θ·∇L| (the paper's default), ``amp`` is θ² and needs no data,
            ``lp+amp`` is their product; ``delta-lp`` is Σ|δ·∇L| and ``delta-amp`` is δ², with the
            task vector δ in place of the weights θ; ``fisher`` is Σ(∇L)², the diagonal of the
            empirical Fisher information. All: :data:`sta_lightning.MEASURES`.
        samples: Number of training samples to score on; the paper's is 32.
        seed: Which samples: the same seed draws the same ones on every machine.
        precision: ``float32``, or ``bf16``: forward and backward under bfloat16 autocast, added up
            in float32. Quicker where the device computes in bfloat16.
        encoder: Where in the module the part is whose weights are scored, dotted; empty for the
            whole. The file's names are those within it.
        head: Where the part is that makes logits of what the encoder returns.
        loss: In place of ``head`` and cross-entropy, for any module and batch: a function of the
            module and a batch that holds one sample, or the name of the module's method that takes
            the batch. It returns that sample's loss, of which several entries (the tokens of a
            sequence, reduction ``none``) are summed; it logs nothing.
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
        measure: str = "lp",
        samples: int = 32,
        seed: int = 0,
        precision: Precision = "float32",
        report_agreement: bool = False,
        encoder: str = "encoder",
        head: str = "head",
        loss: str | SampleLoss | None = None,
    ) -> None:
        super().__init__(output, samples, seed)
        self._measure = find_measure(measure)
        self.measure, self.kind = measure, f"importance:{measure}"
        self.needs_samples = self._measure.file is not None
        if precision not in ("float32", "bf16"):
            raise StaError(f"precision={precision!r} was asked for; choose 'float32' or 'bf16'.")
        if report_agreement and (precision == "float32" or not self.needs_samples):
            raise StaError(
                f"report_agreement compares a pass in precision='bf16' with one in float32, but precision={precision!r} and "
                f"measure={measure!r} were asked for. Ask for bf16 and a measure that needs samples, or for no report."
            )
        self.precision: Precision = precision
        self.report_agreement = report_agreement
        self.encoder, self.head, self.loss = encoder, head, loss

    @override
    def part(self, module: LightningModule) -> Scorable:
        if self._measure.needs_pretrained:
            encoder_settings(module)
        return scorable(module, self.encoder, self.head, self.loss)

    @override
    def sums(self, part: Scorable, samples: Samples) -> Sums:
        """Σ|∇L|, or Σ(∇L)², of every parameter, by precision."""
        names = dict(part.encoder.named_parameters())
        precisions: set[Precision] = {self.precision, *(("float32",) if self.report_agreement else ())}
        found: Sums = {}
        for precision in sorted(precisions):
            asked: dict[str, Any] = {"power": self._measure.power, "precision": precision}
            if part.loss is None:
                # One module, so that the head is float32 too in the pass.
                model = nn.Sequential(OrderedDict(encoder=part.encoder, head=cast(nn.Module, part.head)))
                images, labels = samples.pairs()
                places = {f"encoder.{name}": name for name, p in names.items() if p.is_floating_point()}
                sums = gradient_sums(model, F.cross_entropy, images, labels, names=places, **asked)
            else:
                whole = SampleLossModule(part.module, part.loss)
                path = f"module.{part.path}." if part.path else "module."
                places = {path + name: name for name, p in names.items() if p.is_floating_point()}
                sums = loss_gradient_sums(whole, samples.each(), names=places, **asked)
            by_tensor = {id(names[places[place]]): total for place, total in sums.items()}
            # A tensor of several names has its importance under each of them.
            found[precision] = {
                name: by_tensor[id(p)]
                for name, p in part.encoder.named_parameters(remove_duplicate=False)
                if id(p) in by_tensor
            }
        return found

    @override
    def result(self, part: Scorable, sums: Sums) -> Result:
        """The importance, and what there is to know of it."""
        weights = floating(part.encoder)
        pretrained = pretrained_weights(part.module) if self._measure.needs_pretrained else None
        importance = self._importance(weights, pretrained, sums.get(self.precision))
        found = all_bounds(importance)
        metadata = {BOUNDS: write_bounds(found)}
        ranges = [bounds for name, bounds in found.items() if importance[name].numel() > 1]
        if ranges and all(low == high for low, high in ranges):
            what = (
                "the same number throughout each tensor"
                if any(high for _, high in ranges)
                else "0 everywhere"
            )
            rank_zero_warn(
                f"The importance by {self.measure!r} is {what}: it tells no weight from another. A merge by it keeps "
                "nothing.",
                category=StaWarning,
            )
        if self.report_agreement:
            exact = self._importance(weights, pretrained, sums["float32"])
            metadata["agreement"] = _agreement(exact, importance)
        return importance, {"precision": self.precision} if self.needs_samples else {}, metadata

    def _importance(
        self, weights: dict[str, Tensor], pretrained: dict[str, Tensor] | None, sums: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        scores: dict[str, Tensor] | None = None
        if sums is not None:
            scores = {}
            for name, weight in weights.items():
                base = None if pretrained is None else pretrained[name].float()
                # A buffer has no gradient: importance 0.
                total = sums[name] if name in sums else torch.zeros_like(weight, dtype=torch.float32)
                scores[name] = self._measure.scored(total, weight.float(), base)
        return importance_for(self.measure, weights=weights, scores=scores, pretrained=pretrained)


def _agreement(exact: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> str:
    """JSON: the agreement with float32, as a mean over entries and where it is least."""
    found = importance_agreement(exact, importance, **_AGREEMENT)
    mean = mean_agreement(found)
    report: dict[str, Any] = {"with": "float32", **_AGREEMENT}
    for kind in ("spearman", "kept"):
        least = min(found, key=lambda name: getattr(found[name], kind))
        report[kind] = {"mean": getattr(mean, kind), "least": getattr(found[least], kind), "tensor": least}
    return json.dumps(report)
