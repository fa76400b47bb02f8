"""What the callbacks share that go over samples of a task's own training split and write a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from sta_lightning.callbacks.scorable import SampleSource, check_strategy, sample_source, scorable
from sta_lightning.callbacks.together import together
from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, tensor_digest

Found = TypeVar("Found")


class SampledPass(Callback, ABC, Generic[Found]):
    """When a pass over samples is made, on which process with which samples, and that all processes fail together.

    It runs when the training of a fit ends, when a plain validation ends, or alone under
    :func:`sta_lightning.callbacks.score.score`. The samples come from the task's training split
    under the evaluation transform, drawn by the seed alone; process r of w takes the samples r, r +
    w, …, and the results meet in a reduction: they do not depend on the number of processes nor on
    the batch size. A fit with it follows the fit without it bit for bit.

    A subclass says what is found on one process, how the processes' findings become one, and what
    is written.

    Args:
        output: The safetensors file to write.
        samples: Number of training samples.
        seed: Which samples: the same seed draws the same ones on every machine.
        chunk_size: Samples that go through the encoder together on each process; nothing is 8 on a
            CPU and 32 elsewhere.

    Raises:
        StaError: A number is below 1.
    """

    def __init__(self, output: str, samples: int, seed: int, chunk_size: int | None) -> None:
        super().__init__()
        if samples < 1:
            raise StaError(f"samples must be at least 1, not {samples}; the paper uses 32.")
        if chunk_size is not None and chunk_size < 1:
            raise StaError(f"chunk_size must be at least 1, not {chunk_size}.")
        self.output = Path(output)
        self.samples = samples
        self.seed = seed
        self.chunk_size = chunk_size

    @abstractmethod
    def found(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
    ) -> Found:
        """Do this process's share of the work, perhaps on no sample, without any collective."""

    @abstractmethod
    def reduced(self, trainer: Trainer, found: Found) -> Found:
        """What all processes have found; called on every one."""

    @abstractmethod
    def save(self, module: LightningModule, found: Found) -> None:
        """Write the file; called on process 0."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could not be scored at the end before any time is spent on it."""
        if stage in ("fit", "validate"):
            check_strategy(trainer)
            sample_source(trainer.datamodule)  # type: ignore[attr-defined]

    # Callbacks are set up before modules, which may build their encoder there: look at the module
    # after that.
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
            local: list[Found] = []
            with together(trainer, "Scoring") as step:
                local.append(self.found(trainer, module, datamodule))
            step.check()
            whole = self.reduced(trainer, local[0])
            with together(trainer, f"Writing {self.output}") as step:
                if trainer.is_global_zero:
                    self.save(module, whole)
            step.check()

    def metadata(
        self,
        module: LightningModule,
        kind: str,
        measure: str,
        indices: list[int] | None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """What every file of a pass says about where it comes from.

        Args:
            module: What was scored.
            kind: The kind of file, for its provenance.
            measure: What was measured.
            indices: The samples; nothing if none were needed.
            more: Settings besides those that every pass has.
        """
        hparams = dict(getattr(module, "hparams", {}))
        settings: dict[str, Any] = {
            "measure": measure,
            **{name: hparams[name] for name in ("encoder", "task", "image_size") if name in hparams},
        }
        if indices is not None:
            settings |= {"samples": self.samples, "seed": self.seed, "split": "train", "indices": indices}
        return provenance(kind, {**settings, **(more or {})}, {}) | {
            "measure": measure,
            "weights_sha256": tensor_digest(cast(Any, module).encoder.state_dict()),
        }


def share(
    trainer: Trainer, source: SampleSource, indices: list[int], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The samples of this process, ``indices[rank::world_size]``.

    Args:
        trainer: The running trainer.
        source: Where the samples are from.
        indices: Those of all processes.
        device: Where they go.

    Returns:
        Images ``[S, 3, H, W]`` and labels ``[S]``, or None where this process has none.
    """
    mine = indices[trainer.global_rank :: trainer.world_size]
    if not mine:
        return None
    dataset = source.dataset("train")
    drawn = [dataset[i] for i in mine]
    return (
        torch.stack([image for image, _ in drawn]).to(device),
        torch.tensor([int(label) for _, label in drawn], device=device),
    )


def reduce_sums(trainer: Trainer, sums: dict[str, Tensor]) -> None:
    """Add up the sums of all processes in place, every process in the same order of names."""
    if trainer.world_size > 1:
        for name in sums:
            sums[name] = cast(Tensor, trainer.strategy.reduce(sums[name], reduce_op="sum"))
