"""Scoring alone, without a fit or a validation around it: what ``sta score`` runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from sta_lightning.arithmetic.gradients import Precision
from sta_lightning.arithmetic.importance import MEASURES
from sta_lightning.callbacks.gram import GramCollection
from sta_lightning.callbacks.importance import ImportanceScoring
from sta_lightning.callbacks.sampled import SampledPass
from sta_lightning.callbacks.scorable import SampleLoss, check_strategy, draws
from sta_lightning.errors import StaError, listed


def score(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule,
    *,
    output: str | Path,
    measure: str = "lp",
    samples: int = 32,
    seed: int = 0,
    precision: Precision = "float32",
    report_agreement: bool = False,
    encoder: str = "encoder",
    head: str = "head",
    loss: str | SampleLoss | None = None,
    ckpt_path: str | Path | None = None,
) -> Path:
    """Write the importance, or the Gram matrices, of a fine-tuned encoder; it is not evaluated.

    Args:
        trainer: On any number of devices, with a strategy that keeps the whole model on each.
        module: A ``CLIPClassifier``, or another: see ``encoder``, ``head`` and ``loss``.
        datamodule: The ``TaskDataModule`` of the task that the module was fine-tuned on, or another
            with a training loader.
        output: The safetensors file to write.
        measure: ``gram`` for what :class:`GramCollection` writes; the others are those of
            :class:`ImportanceScoring`, which see for the following, too.
        samples: Number of training samples.
        seed: Which samples.
        precision: ``float32`` or ``bf16``; the Gram matrices are float32.
        report_agreement: Whether to record how far bf16 and float32 agree.
        encoder: Where in the module the scored part is.
        head: Where its head is.
        loss: In place of the head; the Gram matrices take none of the three.
        ckpt_path: A Lightning checkpoint to score instead of the weights that the module has.

    Returns:
        The path of the file.

    Raises:
        StaError: See :class:`ImportanceScoring` and :class:`GramCollection`.
    """
    if measure not in (known := (*MEASURES, GramCollection.measure)):
        raise StaError(f"measure={measure!r} was asked for; choose one of {listed(known, len(known))}.")
    scoring: SampledPass
    if measure == "gram":
        if precision != "float32" or report_agreement:
            raise StaError(
                f"precision={precision!r} and report_agreement={report_agreement} were asked for with measure='gram', but Gram "
                "matrices are collected in float32. Leave both out."
            )
        scoring = GramCollection(str(output), samples, seed)
    else:
        scoring = ImportanceScoring(
            str(output), measure, samples, seed, precision, report_agreement, encoder, head, loss
        )
    run = _ScoringRun(module, datamodule, scoring)
    trainer.validate(
        run, datamodule=_Samples(datamodule), ckpt_path=ckpt_path, verbose=False, weights_only=True
    )
    return Path(output)


class _ScoringRun(LightningModule):
    """A validation whose only work is the pass over samples of the module inside it.

    Lightning sets up devices, processes, precision and checkpoint only around a loop, and its loops
    want batches: this one has an empty batch for each process, so that no accuracy of a part of
    the data appears in any log.
    """

    def __init__(
        self, module: LightningModule, datamodule: LightningDataModule, scoring: SampledPass
    ) -> None:
        super().__init__()
        self.module = module
        self._scoring = scoring
        self._source = datamodule

    @override
    def setup(self, stage: str) -> None:
        check_strategy(self.trainer)
        self.module.setup(stage)

    @override
    def on_validation_start(self) -> None:
        self._scoring.check(self.trainer, self.module, self._source)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The state of the fit's callbacks (best score, patience) means nothing here.
        checkpoint.pop("callbacks", None)
        self.module.on_load_checkpoint(checkpoint)

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    @override
    def on_validation_epoch_end(self) -> None:
        self._scoring.write(self.trainer, self.module, self._source)


class _Samples(LightningDataModule):
    """The task's datamodule without its validation images."""

    def __init__(self, source: LightningDataModule) -> None:
        super().__init__()
        self.source = source

    @override
    def prepare_data(self) -> None:
        self.source.prepare_data()

    @override
    def setup(self, stage: str) -> None:
        self.source.trainer = self.trainer
        # Another's training split is there in a fit alone.
        self.source.setup(stage if draws(self.source) else "fit")

    @override
    def val_dataloader(self) -> DataLoader[int]:
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = UnrepeatedDistributedSampler(range(world), num_replicas=world, rank=rank, shuffle=False)
        return DataLoader(range(world), batch_size=1, sampler=sampler)  # type: ignore[arg-type]

    def dataset(self, split: str, **settings: Any) -> Any:
        """Hand on a split of the task, which a module without a head makes one from."""
        return self.source.dataset(split, **settings)  # type: ignore[attr-defined]
