"""The importance pass: exact per-sample |θ·∇L| of a task's own fine-tuned encoder, in one file.

Two ways in, one computation:

- **Attached to a fit or a validation**: ``Trainer(callbacks=[ImportanceScoring("digits.safetensors")])``. Under
  ``trainer.fit`` it runs when training ends, under ``trainer.validate`` when the validation pass ends.
- **Alone**, what ``sta score`` runs: ``score(trainer, module, datamodule, output="digits.safetensors",
  ckpt_path="last.ckpt")`` in :mod:`sta_lightning.callbacks.score`. No validation image is read, only the samples.

The datamodule has to be a ``TaskDataModule`` or offer what it does: ``scoring_samples(n, seed)`` and ``dataset("train")``.
The file holds one float32 tensor per floating-point tensor of the encoder, by its name in the encoder, and the metadata
that :func:`sta_lightning.weights.provenance` makes: measure, samples' indices, seed, task, digest of the weights scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from sta_lightning.arithmetic import MEASURES, SAMPLE_MEASURES, importance_for, task_vector
from sta_lightning.arithmetic.taylor import taylor_importance
from sta_lightning.callbacks.digest import tensor_digest
from sta_lightning.callbacks.together import together
from sta_lightning.encoders import build_encoder
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import provenance, save_weights

Measure = Literal["lp", "amp", "lp+amp", "delta-lp", "delta-amp"]


class _Scorable(Protocol):
    """What a module must have to be scored: logits are ``head(encoder(images))``."""

    encoder: nn.Module
    head: nn.Module
    device: torch.device


class SampleSource(Protocol):
    """What samples are drawn from; ``TaskDataModule`` is one."""

    def scoring_samples(self, n: int, seed: int) -> list[int]:
        """Draw indices into the training split by the seed alone."""

    def dataset(self, split: str) -> Dataset[tuple[Tensor, int]]:
        """Return a split under the evaluation transform."""


class ImportanceScoring(Callback):
    """Write the importance of every weight of the encoder for the task it was fine-tuned on (Eq. 10 to 12).

    The samples come from the task's training split under the evaluation transform, drawn by the seed alone; the encoder
    runs in evaluation mode and in float32 whatever the trainer's precision. Each sample's gradient is taken on its own.
    Process r of w takes the samples r, r + w, …, and the sums meet in one reduction: the result does not depend on
    the number of processes nor on the batch size. A fit with this callback follows the fit without it bit for bit.

    Args:
        output: The safetensors file to write.
        measure: ``lp`` is Σ|θ·∇L| (the paper's default), ``amp`` is θ² and needs no data, ``lp+amp`` is their product;
            ``delta-lp`` is Σ|δ·∇L| and ``delta-amp`` is δ², with the task vector δ in place of the weights θ.
        samples: Number of training samples to score on; the paper's is 32.
        seed: Which samples: the same seed draws the same ones on every machine.
        chunk_size: Samples differentiated at once on each process; takes memory for as many gradients of the whole
            encoder. It changes speed only; 1 needs the least memory.

    Raises:
        StaError: The strategy shards the weights (FSDP, DeepSpeed, …), the module or the datamodule cannot be
            scored, or the importance is not finite. Every process raises it, whichever of them failed.
    """

    def __init__(
        self, output: str, measure: Measure = "lp", samples: int = 32, seed: int = 0, chunk_size: int = 8
    ) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise StaError(f"measure={measure!r} was asked for; choose one of {listed(MEASURES)}.")
        if samples < 1:
            raise StaError(f"samples must be at least 1, not {samples}; the paper uses 32.")
        if chunk_size < 1:
            raise StaError(f"chunk_size must be at least 1, not {chunk_size}.")
        self.output = Path(output)
        self.measure = measure
        self.samples = samples
        self.seed = seed
        self.chunk_size = chunk_size

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
        _scorable(pl_module)

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
        part, source = _scorable(module), sample_source(datamodule)
        with torch.inference_mode(False), torch.no_grad(), isolate_rng():
            with together(trainer, "Scoring") as step:
                weights = _floating(part.encoder.state_dict())
                original = _pretrained(module) if self.measure.startswith("delta") else None
                indices = source.scoring_samples(self.samples, self.seed) if self._needs_samples else []
                sums = self._local(trainer, part, source, indices, weights, original)
            step.check()
            total = _reduced(trainer, sums) if self._needs_samples else sums
            with together(trainer, f"Writing {self.output}") as step:
                if trainer.is_global_zero:
                    self._save(module, weights, original, total, indices)
            step.check()

    @property
    def _needs_samples(self) -> bool:
        return self.measure in SAMPLE_MEASURES

    def _local(
        self,
        trainer: Trainer,
        part: _Scorable,
        source: SampleSource,
        indices: list[int],
        weights: dict[str, Tensor],
        original: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Σ|θ·∇L| over the samples of this process, ``indices[rank::world_size]``: perhaps none, then zeros."""
        # A buffer such as a running mean has no gradient: importance 0, so that a merge leaves it as it was.
        sums = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in weights.items()}
        mine = indices[trainer.global_rank :: trainer.world_size]
        if not mine:
            return sums
        dataset = source.dataset("train")
        drawn = [dataset[i] for i in mine]
        delta = None if original is None else task_vector(original, weights)
        scored = taylor_importance(
            _Logits(part.encoder, part.head),
            F.cross_entropy,
            torch.stack([image for image, _ in drawn]).to(part.device),
            torch.tensor([int(label) for _, label in drawn], device=part.device),
            names=[f"encoder.{name}" for name, p in part.encoder.named_parameters() if p.is_floating_point()],
            direction=None if delta is None else {f"encoder.{name}": t for name, t in delta.items()},
            chunk_size=self.chunk_size,
        )
        return sums | {name.removeprefix("encoder."): tensor for name, tensor in scored.items()}

    def _save(
        self,
        module: LightningModule,
        weights: dict[str, Tensor],
        original: dict[str, Tensor] | None,
        sums: dict[str, Tensor],
        indices: list[int],
    ) -> None:
        importance = importance_for(
            self.measure, weights=weights, lp=sums if self._needs_samples else None, pretrained=original
        )
        hparams = dict(getattr(module, "hparams", {}))
        settings: dict[str, Any] = {
            "measure": self.measure,
            **{name: hparams[name] for name in ("encoder", "task", "image_size") if name in hparams},
        }
        if self._needs_samples:
            settings |= {"samples": self.samples, "seed": self.seed, "split": "train", "indices": indices}
        metadata = provenance(f"importance:{self.measure}", settings, {})
        metadata |= {
            "measure": self.measure,
            "weights_sha256": tensor_digest(cast(Any, module).encoder.state_dict()),
        }
        save_weights(self.output, importance, metadata)


class _Logits(nn.Module):
    """Encoder and head as one module, so that the head is float32 too in the pass."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(images)))


def _floating(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}


def _pretrained(module: LightningModule) -> dict[str, Tensor]:
    """The weights that the module's fine-tuning started from, on its device."""
    hparams = dict(getattr(module, "hparams", {}))
    if "encoder" not in hparams:
        raise StaError(
            f"The measure needs the pretrained weights, but {type(module).__name__} does not tell its encoder. Score a "
            "CLIPClassifier, or use a measure without 'delta'."
        )
    encoder = build_encoder(hparams["encoder"], hparams.get("pretrained"), hparams.get("image_size"))
    return _floating(encoder.to(module.device).state_dict())


def _reduced(trainer: Trainer, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up the sums of all processes: one flat tensor, so one collective in one order everywhere."""
    if trainer.world_size == 1:
        return sums
    flat = torch.cat([tensor.flatten() for tensor in sums.values()])
    flat = cast(Tensor, trainer.strategy.reduce(flat, reduce_op="sum"))
    pieces = torch.split(flat, [tensor.numel() for tensor in sums.values()])
    return {name: piece.view_as(sums[name]) for name, piece in zip(sums, pieces, strict=True)}


def check_strategy(trainer: Trainer) -> None:
    """Refuse a trainer whose processes do not each hold the whole model.

    Raises:
        StaError: The strategy shards the weights.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
    if not whole or isinstance(strategy, DeepSpeedStrategy):
        raise StaError(
            f"Importance scoring needs the whole model in every process, but the strategy is "
            f"{type(strategy).__name__}, which shards it. Score under strategy=auto or ddp; a checkpoint "
            "of a sharded fit can be scored afterwards with `sta score` on one device."
        )


def sample_source(datamodule: object) -> SampleSource:
    """Return the datamodule as what samples are drawn from.

    Raises:
        StaError: It is none, or has no ``scoring_samples`` and ``dataset``.
    """
    if not all(callable(getattr(datamodule, name, None)) for name in ("scoring_samples", "dataset")):
        found = "no datamodule" if datamodule is None else type(datamodule).__name__
        raise StaError(
            f"Importance scoring draws its samples from a TaskDataModule, but the trainer has {found}. "
            "Give the trainer datamodule=TaskDataModule(...) instead of loaders."
        )
    return cast(SampleSource, datamodule)


def _scorable(module: LightningModule) -> _Scorable:
    for part in ("encoder", "head"):
        if not isinstance(getattr(module, part, None), nn.Module):
            raise StaError(
                f"{type(module).__name__} has no {part!r} to score: its logits must be head(encoder(images)), "
                "as those of CLIPClassifier are."
            )
    return cast(_Scorable, module)
