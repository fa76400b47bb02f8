"""The importance pass: exact per-sample |θ·∇L| of a task's own fine-tuned encoder, in one file.

Two ways in, one computation:

- **Attached to a fit or a validation**: ``Trainer(callbacks=[ImportanceScoring("digits.safetensors")])``. Under
  ``trainer.fit`` it runs when training ends, under ``trainer.validate`` when the validation pass ends.
- **Alone**, what ``sta score`` runs: ``score(trainer, module, datamodule, output="digits.safetensors",
  ckpt_path="last.ckpt")`` in :mod:`sta_lightning.callbacks.score`. No validation image is read, only the samples.

The datamodule has to be a ``TaskDataModule`` or offer what it does: ``scoring_samples(n, seed)`` and ``dataset("train")``.
The file holds one float32 tensor per floating-point tensor of the encoder, by its name in the encoder, and the metadata
that :func:`sta_lightning.weights.provenance` makes: measure, samples' indices, seed, precision, task, digest of the
weights scored; and by :mod:`sta_lightning.weights.extents`, the smallest and largest importance of every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic import MEASURES, SAMPLE_MEASURES, importance_for, task_vector
from sta_lightning.arithmetic.agreement import importance_agreement, mean_agreement
from sta_lightning.arithmetic.taylor import Precision, taylor_importance
from sta_lightning.callbacks.scorable import (
    Logits,
    SampleSource,
    Scorable,
    check_strategy,
    floating,
    pretrained_weights,
    sample_source,
    scorable,
)
from sta_lightning.callbacks.together import together
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import extents, provenance, save_weights, tensor_digest, write_extents
from sta_lightning.weights.extents import KEY as EXTENTS

Measure = Literal["lp", "amp", "lp+amp", "delta-lp", "delta-amp"]

# What the agreement of two precisions is measured on: the paper's p, and enough entries for three digits of a rank correlation.
_AGREEMENT: dict[str, Any] = {"p": 0.7, "entries": 10_000, "seed": 0}


@dataclass(frozen=True)
class _Scored:
    """What a pass needs, and where its samples come from."""

    part: Scorable
    source: SampleSource
    weights: dict[str, Tensor]
    original: dict[str, Tensor] | None
    indices: list[int]


class ImportanceScoring(Callback):
    """Write the importance of every weight of the encoder for the task it was fine-tuned on (Eq. 10 to 12).

    The samples come from the task's training split under the evaluation transform, drawn by the seed alone; the encoder
    runs in evaluation mode and in float32, or in the precision given here, whatever the trainer's. Each sample's gradient is
    taken on its own. Process r of w takes the samples r, r + w, …, and the sums meet in one reduction: the result does not
    depend on the number of processes nor on the batch size. A fit with this callback follows the fit without it bit for bit.

    Args:
        output: The safetensors file to write.
        measure: ``lp`` is Σ|θ·∇L| (the paper's default), ``amp`` is θ² and needs no data, ``lp+amp`` is their product;
            ``delta-lp`` is Σ|δ·∇L| and ``delta-amp`` is δ², with the task vector δ in place of the weights θ.
        samples: Number of training samples to score on; the paper's is 32.
        seed: Which samples: the same seed draws the same ones on every machine.
        chunk_size: Samples that go through the encoder together on each process; takes memory for their activations. It
            changes speed only. Nothing is 8 on a CPU and 32 elsewhere; 1 is a loop of backward passes.
        precision: ``float32``, or ``bf16``: forward and backward under bfloat16 autocast, added up in float32. Quicker where
            the device computes in bfloat16.
        report_agreement: With ``bf16``, score in float32 too, which costs that pass and the memory of one more importance,
            and record how far the two agree in the file's metadata under ``agreement``: Spearman's rank correlation,
            and the share of entries that both or neither would keep at p = 0.7. The file holds the ``bf16`` importance.

    Raises:
        StaError: The strategy shards the weights (FSDP, DeepSpeed, …), the module or the datamodule cannot be
            scored, or the importance is not finite. Every process raises it, whichever of them failed.
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
        super().__init__()
        if measure not in MEASURES:
            raise StaError(f"measure={measure!r} was asked for; choose one of {listed(MEASURES)}.")
        if samples < 1:
            raise StaError(f"samples must be at least 1, not {samples}; the paper uses 32.")
        if chunk_size is not None and chunk_size < 1:
            raise StaError(f"chunk_size must be at least 1, not {chunk_size}.")
        if precision not in ("float32", "bf16"):
            raise StaError(f"precision={precision!r} was asked for; choose 'float32' or 'bf16'.")
        if report_agreement and (precision == "float32" or measure not in SAMPLE_MEASURES):
            raise StaError(
                f"report_agreement compares a pass in precision='bf16' with one in float32, but precision={precision!r} and "
                f"measure={measure!r} were asked for. Ask for bf16 and a measure out of {listed(sorted(SAMPLE_MEASURES))}, "
                "or for no report."
            )
        self.output = Path(output)
        self.measure = measure
        self.samples = samples
        self.seed = seed
        self.chunk_size = chunk_size
        self.precision: Precision = precision
        self.report_agreement = report_agreement

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could not be scored at the end before any time is spent on it."""
        if stage in ("fit", "validate"):
            check_strategy(trainer)
            sample_source(trainer.datamodule)  # type: ignore[attr-defined]

    # Callbacks are set up before modules, which may build their encoder there: look at the module after that.
    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that cannot be scored before it is trained."""
        scorable(pl_module)

    # on_fit_end comes after the strategy has been taken down: too late for a reduction.
    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the trained encoder."""
        self.write(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score under a plain ``trainer.validate``; the validations of a fit do nothing."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.write(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def write(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
    ) -> None:
        """Score ``module`` and write the file; called on every process of ``trainer`` at the same point.

        Args:
            trainer: The running trainer, whose strategy joins the processes.
            module: Has ``encoder`` and ``head``.
            datamodule: Has ``scoring_samples`` and ``dataset``.

        Raises:
            StaError: Something failed on some process; no file has been written or changed.
        """
        check_strategy(trainer)
        scorable(module), sample_source(datamodule)
        with torch.inference_mode(False), torch.no_grad(), isolate_rng():
            exact = None
            with together(trainer, "Scoring") as step:
                scored = self._scored(module, datamodule)
                sums = self._local(trainer, scored, self.precision)
                if self.report_agreement:
                    exact = self._local(trainer, scored, "float32")
            step.check()
            if self._needs_samples:
                _reduce(trainer, sums)
            if exact is not None:
                _reduce(trainer, exact)
            with together(trainer, f"Writing {self.output}") as step:
                if trainer.is_global_zero:
                    self._save(module, scored, sums, exact)
            step.check()

    @property
    def _needs_samples(self) -> bool:
        return self.measure in SAMPLE_MEASURES

    def _scored(self, module: LightningModule, datamodule: LightningDataModule | None) -> _Scored:
        part, source = scorable(module), sample_source(datamodule)
        return _Scored(
            part,
            source,
            floating(part.encoder.state_dict()),
            pretrained_weights(module) if self.measure.startswith("delta") else None,
            source.scoring_samples(self.samples, self.seed) if self._needs_samples else [],
        )

    def _local(self, trainer: Trainer, scored: _Scored, precision: Precision) -> dict[str, Tensor]:
        """Σ|θ·∇L| over the samples of this process, ``indices[rank::world_size]``: perhaps none, then zeros."""
        part, mine = scored.part, scored.indices[trainer.global_rank :: trainer.world_size]
        found: dict[str, Tensor] = {}
        if mine:
            dataset = scored.source.dataset("train")
            drawn = [dataset[i] for i in mine]
            delta = None if scored.original is None else task_vector(scored.original, scored.weights)
            found = taylor_importance(
                Logits(part.encoder, part.head),
                F.cross_entropy,
                torch.stack([image for image, _ in drawn]).to(part.device),
                torch.tensor([int(label) for _, label in drawn], device=part.device),
                names=[
                    f"encoder.{name}" for name, p in part.encoder.named_parameters() if p.is_floating_point()
                ],
                direction=None if delta is None else {f"encoder.{name}": t for name, t in delta.items()},
                chunk_size=self.chunk_size,
                precision=precision,
            )
        # A buffer such as a running mean has no gradient: importance 0, so that a merge leaves it as it was.
        return {
            name: found[f"encoder.{name}"]
            if f"encoder.{name}" in found
            else torch.zeros_like(tensor, dtype=torch.float32)
            for name, tensor in scored.weights.items()
        }

    def _importance(self, scored: _Scored, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return importance_for(
            self.measure,
            weights=scored.weights,
            lp=sums if self._needs_samples else None,
            pretrained=scored.original,
        )

    def _save(
        self,
        module: LightningModule,
        scored: _Scored,
        sums: dict[str, Tensor],
        exact: dict[str, Tensor] | None,
    ) -> None:
        importance = self._importance(scored, sums)
        hparams = dict(getattr(module, "hparams", {}))
        settings: dict[str, Any] = {
            "measure": self.measure,
            **{name: hparams[name] for name in ("encoder", "task", "image_size") if name in hparams},
        }
        if self._needs_samples:
            settings |= {
                "samples": self.samples,
                "seed": self.seed,
                "split": "train",
                "indices": scored.indices,
            }
            settings["precision"] = self.precision
        metadata = provenance(f"importance:{self.measure}", settings, {})
        metadata |= {
            "measure": self.measure,
            "weights_sha256": tensor_digest(cast(Any, module).encoder.state_dict()),
            EXTENTS: write_extents(extents(importance)),
        }
        if exact is not None:
            metadata["agreement"] = _agreement(self._importance(scored, exact), importance)
        save_weights(self.output, importance, metadata)


def _agreement(exact: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> str:
    """JSON: the agreement with float32, as a mean over entries and in the tensor where it is least."""
    found = importance_agreement(exact, importance, **_AGREEMENT)
    mean = mean_agreement(found)
    report: dict[str, Any] = {"with": "float32", **_AGREEMENT}
    for kind in ("spearman", "kept"):
        least = min(found, key=lambda name: getattr(found[name], kind))
        report[kind] = {"mean": getattr(mean, kind), "least": getattr(found[least], kind), "tensor": least}
    return json.dumps(report)


def _reduce(trainer: Trainer, sums: dict[str, Tensor]) -> None:
    """Add up the sums of all processes in place, every process in the same order of names."""
    if trainer.world_size > 1:
        for name in sums:
            sums[name] = cast(Tensor, trainer.strategy.reduce(sums[name], reduce_op="sum"))
