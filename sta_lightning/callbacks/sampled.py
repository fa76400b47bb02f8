"""What the callbacks share that go over samples of a task's own training split and write a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.workers import Processes, together
from sta_lightning.callbacks.scorable import (
    Samples,
    SampleSource,
    Scorable,
    check_strategy,
    draws,
    processes_of,
    sample_source,
    scorable,
    tell,
)
from sta_lightning.callbacks.trained import TakesTrained, adapters_merged
from sta_lightning.callbacks.trial import is_trial
from sta_lightning.engine.sources import check_output
from sta_lightning.errors import StaError, StaWarning
from sta_lightning.weights import provenance, save_weights, tensor_digest

Sums = dict[str, dict[str, Tensor]]
"""What is summed over samples: kind of sum -> tensor name -> sum. Parts of the samples add up."""

Result = tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]
"""The tensors to write, settings for their provenance, further metadata."""


class SampledPass(TakesTrained, ABC):
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
        StaError: The number of samples is below 1, or the output is no safetensors file.
    """

    kind: str
    """The kind of file, for its provenance."""
    measure: str
    """What the file's metadata says under ``measure``."""
    needs_samples: bool = True

    def __init__(self, output: str, samples: int = 256, seed: int = 0) -> None:
        super().__init__()
        if samples < 1:
            raise StaError(f"samples must be at least 1, not {samples}; the paper uses 32.")
        check_output(output)
        self.output = Path(output)
        self.samples = samples
        self.seed = seed

    def part(self, module: LightningModule) -> Scorable:
        """What of a module is scored.

        Raises:
            StaError: The module lacks it.
        """
        return scorable(module)

    @abstractmethod
    def sums(self, part: Scorable, samples: Samples) -> Sums:
        """The sums over this process's samples, of which there is one at least; no collective."""

    @abstractmethod
    def result(self, part: Scorable, sums: Sums) -> Result:
        """On process 0: what to write of the sums over all samples.

        Raises:
            StaError: They cannot be written.
        """

    # After all that is set up, and before any time is spent.
    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be scored at the end."""
        self.check(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be scored at the end of a plain ``trainer.validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.check(trainer, pl_module)

    def check(self, trainer: Trainer, module: LightningModule, datamodule: Any = None) -> None:
        """Refuse a module or data that cannot be scored, and say where the samples come from.

        Before a fit one sample is tried, so that nothing is refused only after the training.

        Args:
            trainer: Set up.
            module: What is to be scored.
            datamodule: Whose samples; the trainer's if not given.

        Raises:
            StaError: The module lacks a part, there are too few samples or none to draw from, or
                the pass cannot be made over one of them.
        """
        path = self.part(module).path
        if self.needs_samples:
            # Lightning draws as it makes the loaders: here what it would draw after this.
            source = self._source(trainer, datamodule)
            with torch.inference_mode(False), torch.no_grad(), isolate_rng():
                indices = source.scoring_samples(self.samples, self.seed)
                if trainer.state.fn == TrainerFn.FITTING:
                    with adapters_merged(module, path):
                        self.sums(self.part(module), Samples(source, indices[:1], module, self.seed))
            tell(source)

    @staticmethod
    def _source(trainer: Trainer, datamodule: Any = None) -> SampleSource:
        datamodule, loader = datamodule or trainer.datamodule, None  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and not draws(datamodule):
            trainer.fit_loop.setup_data()
            loader = trainer.train_dataloader
        return sample_source(datamodule, loader)

    # on_fit_end comes after the strategy has been taken down: too late for a reduction.
    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the trained encoder."""
        self.write(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score under a plain ``trainer.validate``; the validations of a fit do nothing."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.write(trainer, pl_module)

    def write(
        self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None = None
    ) -> None:
        """Score ``module`` and write the file; every process of ``trainer`` calls it at one point.

        The samples are those of ``datamodule``, the trainer's if not given. In a trial
        (:mod:`sta_lightning.callbacks.trial`) nothing is written.

        Raises:
            StaError: Something failed on some process; no file has been written or changed.
        """
        check_strategy(trainer)
        path = self.part(module).path
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            isolate_rng(),
            adapters_merged(module, path),
        ):
            part = self.part(module)
            group = processes_of(trainer)
            indices: list[int] = []
            sums: Sums = {}

            def add() -> set[int]:
                if not self.needs_samples:
                    return set()
                source = self._source(trainer, datamodule)
                indices.extend(source.scoring_samples(self.samples, self.seed))
                samples = Samples(source, indices[group.rank :: group.size], module, self.seed)
                if len(samples):
                    sums.update(self.sums(part, samples))
                return samples.labels

            def save(whole: Sums) -> None:
                if group.rank == 0 and not is_trial(trainer, self.output):
                    tensors, settings, metadata = self.result(part, whole)
                    save_weights(self.output, tensors, self._metadata(part, indices, settings) | metadata)

            labels = set[int]().union(*together(group, add))
            if len(labels) == 1 and len(indices) > 1:
                rank_zero_warn(
                    f"All {len(indices)} samples have one label, {labels.pop()}: what is measured with them tells little of the "
                    "task. Draw more, or from mixed data.",
                    category=StaWarning,
                )
            whole = _added(trainer, group, part.device, sums)
            together(group, lambda: save(whole))

    def _metadata(self, part: Scorable, indices: list[int], more: Mapping[str, Any]) -> dict[str, str]:
        hparams = dict(getattr(part.module, "hparams", {}))
        settings = {name: hparams[name] for name in ("encoder", "task", "image_size") if name in hparams}
        settings["measure"] = self.measure
        if self.needs_samples:
            settings |= {"samples": self.samples, "seed": self.seed, "split": "train", "indices": indices}
        return provenance(self.kind, {**settings, **more}, {}) | {
            "measure": self.measure,
            "weights_sha256": tensor_digest(part.encoder.state_dict()),
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
