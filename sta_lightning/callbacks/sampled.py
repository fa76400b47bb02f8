"""What the callbacks share that go over samples of a task's own training split and write a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.workers import Processes, together
from sta_lightning.callbacks.scorable import Scorable, check_strategy, processes_of, sample_source, scorable
from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, save_weights, tensor_digest

Sums = dict[str, dict[str, Tensor]]
"""What is summed over samples: kind of sum -> tensor name -> sum. Parts of the samples add up."""

Result = tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]
"""The tensors to write, settings for their provenance, further metadata."""


class SampledPass(Callback, ABC):
    """When a fit or a plain validation ends, sum something over training samples into a file.

    Alone, without a fit, :func:`sta_lightning.callbacks.score.score` runs it. The samples are drawn
    by the seed alone, under the evaluation transform; process r of w takes the samples r, r + w, …,
    and the sums meet in one reduction: they do not depend on the number of processes nor on the
    batch size, but for rounding. A fit with it follows the fit without it bit for bit.

    Args:
        output: The safetensors file to write.
        samples: Number of training samples.
        seed: Which samples: the same seed draws the same ones on every machine.

    Raises:
        StaError: The number of samples is below 1.
    """

    kind: str
    """The kind of file, for its provenance."""
    measure: str
    """What the file's metadata says under ``measure``."""
    needs_samples: bool = True

    def __init__(self, output: str, samples: int, seed: int) -> None:
        super().__init__()
        if samples < 1:
            raise StaError(f"samples must be at least 1, not {samples}; the paper uses 32.")
        self.output = Path(output)
        self.samples = samples
        self.seed = seed

    @abstractmethod
    def sums(self, part: Scorable, images: Tensor, labels: Tensor) -> Sums:
        """The sums over images ``[S, 3, H, W]`` with labels ``[S]``, without any collective."""

    @abstractmethod
    def result(self, module: LightningModule, sums: Sums) -> Result:
        """On process 0: what to write of the sums over all samples.

        Raises:
            StaError: They cannot be written.
        """

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
        """Score ``module`` and write the file; every process of ``trainer`` calls it at one point.

        Raises:
            StaError: Something failed on some process; no file has been written or changed.
        """
        check_strategy(trainer)
        part, source = scorable(module), sample_source(datamodule)
        with torch.inference_mode(False), torch.no_grad(), isolate_rng():
            group = processes_of(trainer)
            indices: list[int] = []
            sums: Sums = {}

            def add() -> None:
                if not self.needs_samples:
                    return
                indices.extend(source.scoring_samples(self.samples, self.seed))
                if mine := indices[group.rank :: group.size]:
                    drawn = [source.dataset("train")[i] for i in mine]
                    images = torch.stack([image for image, _ in drawn]).to(part.device)
                    labels = torch.tensor([int(label) for _, label in drawn], device=part.device)
                    sums.update(self.sums(part, images, labels))

            def save(whole: Sums) -> None:
                if group.rank == 0:
                    tensors, settings, metadata = self.result(module, whole)
                    save_weights(self.output, tensors, self._metadata(module, indices, settings) | metadata)

            together(group, add)
            whole = _added(trainer, group, part.device, sums)
            together(group, lambda: save(whole))

    def _metadata(
        self, module: LightningModule, indices: list[int], more: Mapping[str, Any]
    ) -> dict[str, str]:
        hparams = dict(getattr(module, "hparams", {}))
        settings = {name: hparams[name] for name in ("encoder", "task", "image_size") if name in hparams}
        settings["measure"] = self.measure
        if self.needs_samples:
            settings |= {"samples": self.samples, "seed": self.seed, "split": "train", "indices": indices}
        return provenance(self.kind, {**settings, **more}, {}) | {
            "measure": self.measure,
            "weights_sha256": tensor_digest(cast(Any, module).encoder.state_dict()),
        }


def _added(trainer: Trainer, group: Processes, device: torch.device, sums: Sums) -> Sums:
    """The sums of all processes, of which some may have had no sample; a collective."""
    if group.size == 1:
        return sums
    own = {kind: {name: (t.shape, t.dtype) for name, t in part.items()} for kind, part in sums.items()}
    found: Sums = {}
    for process in group.gather(own):  # in the same order on all of them
        for kind, part in process.items():
            for name, (shape, dtype) in part.items():
                if name in found.setdefault(kind, {}):
                    continue
                local = sums.get(kind, {}).get(name)
                if local is None:
                    local = torch.zeros(shape, dtype=dtype, device=device)
                found[kind][name] = cast(Tensor, trainer.strategy.reduce(local, reduce_op="sum"))
    return found
