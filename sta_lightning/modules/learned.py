"""What merges with learned coefficients have in common: all but what is learned from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam
from typing_extensions import override

from sta_lightning.arithmetic.baselines.adamerging import combine
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.arithmetic.workers import together
from sta_lightning.callbacks.scorable import processes_of
from sta_lightning.callbacks.trial import is_trial
from sta_lightning.encoders import encoder_spec
from sta_lightning.encoders.pretrained import pretrained_file
from sta_lightning.engine import TaskSource
from sta_lightning.engine.sources import check_output, task_sources
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.frozen import Frozen
from sta_lightning.modules.parts import QUIET, LayersFirst, is_logged, refuse_verb
from sta_lightning.modules.stored import StoredSettings
from sta_lightning.tasks import get_task
from sta_lightning.weights import provenance, save_weights

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class LearnedMerging(StoredSettings, ABC):
    """Learn a merge's coefficients from images without labels: theta_0 + sum of c_k * v_k.

    At each step a batch of images of every task goes through the merged encoder and that task's
    frozen head, and the sum over the tasks of a loss is made smaller. The coefficients are the only
    parameters; encoder, vectors and heads are held once in each process, frozen and in evaluation
    mode, and are in no checkpoint.

    A subclass says which vectors there are, where the coefficients start, and what the loss is.

    The datamodule is an ``UnlabelledDataModule``, or any whose training loader gives ``task ->
    images [B, 3, S, S]``.

    Args:
        tasks: By task name (or the path of a task's YAML file): its fine-tuned encoder, its head if
            it is not to be made, and what the method reads besides; or the names alone, see
            ``files``.
        learning_rate: Of Adam.
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); ``None`` for those the
            package ships.
        image_size: Side of the input in pixels; ``None`` for the encoder's own.
        output: File for the merged encoder (safetensors), written when the fit ends; ``None``
            to write none.
        files: Files of every task, where ``tasks`` does not say others; ``{task}`` in a path stands
            for the task's name.

    Raises:
        StaError: An argument is unknown or out of range; in a fit, a source is missing or does not
            fit.
    """

    method: ClassVar[str]
    """The name among the learned methods."""
    goal: ClassVar[str]
    """What the loss is, as the loggers call it."""
    init: float
    """Where the coefficients start."""
    coefficients: nn.Parameter

    def __init__(
        self,
        tasks: dict[str, TaskSource] | list[str],
        learning_rate: float,
        encoder: str = "miniature",
        pretrained: str | None = None,
        image_size: int | None = None,
        output: str | None = None,
        files: TaskSource | None = None,
    ) -> None:
        super().__init__()
        self.title = LEARNED_METHODS[self.method].title
        if not learning_rate > 0:
            raise StaError(f"learning_rate={learning_rate} must lie above 0.")
        if output is not None:  # told now, and not when everything has been learned
            check_output(output)
        # Sorted, as in a merge: the result does not depend on the order of the tasks.
        sources = task_sources(tasks, files or TaskSource())
        named = sorted((get_task(spec).name, spec) for spec in sources)
        self._specs = dict(named)
        self._sources = {name: self._checked(name, sources[spec]) for name, spec in named}
        if not named or len(self._sources) != len(tasks):
            raise StaError(f"tasks names {listed(tasks)}: give one task or more, each once.")
        self._encoder_name, self._pretrained, self._image_size = encoder, pretrained, image_size
        self.learning_rate = learning_rate  # where a learning-rate finder looks for it
        self._output = output
        # No modules or buffers: they are in no checkpoint, and DDP does not send them around.
        self._frozen: Frozen | None = None
        self._images: dict[str, Any] = {}

    @abstractmethod
    def read(self, sources: Mapping[str, tuple[str, TaskSource]]) -> Frozen:
        """Read what is merged: by task name, where the task is found and its files.

        Raises:
            StaError: A source is missing or broken, or does not fit.
        """

    @abstractmethod
    def start(self, frozen: Frozen) -> Tensor:
        """Return the coefficients at the start: ``[K]`` for K vectors, or ``[K, T]`` for T tensors.

        They are in the order of ``frozen.vectors``.
        """

    @abstractmethod
    def loss(self, task: str, images: Tensor, logits: Tensor) -> Tensor:
        """Return what is to be small, a mean over a task's images: a scalar.

        Args:
            task: Its name.
            images: ``[B, 3, S, S]``.
            logits: Of the merged encoder with the task's head, ``[B, C]``, float32.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the settings of its own that a checkpoint's coefficients belong to."""

    def limited(self) -> Tensor:
        """Return the coefficients as they are used, in the shape of :meth:`start`."""
        return self.coefficients

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, sorted."""
        return tuple(self._sources)

    @property
    def built(self) -> bool:
        """Whether encoder, vectors and heads are there."""
        return self._frozen is not None

    @override
    def configure_callbacks(self) -> Sequence[Callback]:
        """Attach what makes the coefficients before the trainer's callbacks look at them.

        Raises:
            StaError: The trainer was asked for something else than a fit.
        """
        instead = "it learns coefficients. Fit it, and give the file that it leaves to MultiTaskEvaluation as weights"
        refuse_verb(self, ("fit",), instead)
        return LayersFirst.attached_to(self.trainer)

    @override
    def setup(self, stage: str) -> None:
        trainer: Any = self.trainer
        _check_trainer(trainer, self.title)
        given = getattr(trainer.datamodule, "task_names", None)
        if given is not None:
            self._check_tasks(given, "The datamodule")
        self._images = getattr(trainer.datamodule, "describe", dict)()
        self.build()

    def build(self) -> None:
        """Read encoders, make vectors and get heads, once; ``setup`` calls it.

        Raises:
            StaError: A source is missing or broken, or differs in names or shapes, or holds NaN or
                Inf: the message names it.
        """
        if self._frozen is not None:
            return
        sources = {task: (self._specs[task], files) for task, files in self._sources.items()}
        self._frozen = self.read(sources)
        self.coefficients = nn.Parameter(self.start(self._frozen))

    def reset(self) -> None:
        """Put the coefficients back to where they start."""
        self.build()
        with torch.no_grad():
            self.coefficients.copy_(self.start(self._at_hand()))

    def mean_coefficients(self) -> dict[str, float]:
        """Return each vector's coefficient, the mean over the tensors if every one has its own."""
        self.build()
        return {name: float(mean) for name, mean in self._means().items()}

    def _means(self) -> dict[str, Tensor]:
        # Where the coefficients are: NCCL adds up nothing that lies on the CPU.
        vectors = self._at_hand().vectors
        rows = self.limited().detach().reshape(len(vectors), -1)
        return dict(zip(vectors, rows.mean(dim=1), strict=True))

    def merged_weights(self) -> dict[str, Tensor]:
        """Return the merged encoder's tensors by name, new ones on the CPU."""
        frozen = self._at_hand()
        with torch.no_grad():
            merged = combine(frozen.encoder.state_dict(), frozen.vectors, self.limited())
        return {name: value.detach().to("cpu", copy=True) for name, value in merged.items()}

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the merged encoder's features ``[B, D]`` of normalised images ``[B, 3, S, S]``."""
        frozen = self._at_hand()
        merged = combine(frozen.encoder.state_dict(), frozen.vectors, self.limited())
        return cast(Tensor, functional_call(frozen.encoder, merged, (images,)))

    @override
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum over the tasks of the loss on their images."""
        if not isinstance(batch, Mapping):
            raise StaError(
                f"{self.title} needs batches of task -> images, and the datamodule gives a {type(batch).__name__}. Use "
                "UnlabelledDataModule."
            )
        self._check_tasks(list(batch), "The batch")
        # All tasks' images at once: the weights are merged once, and their gradient is made once.
        features = self(torch.cat([batch[name] for name in self._sources]))
        parts = features.split([len(batch[name]) for name in self._sources])
        heads = self._at_hand().heads
        found = {
            name: self.loss(name, batch[name], heads[name](part).float())
            for name, part in zip(self._sources, parts, strict=True)
        }
        loss = torch.stack(list(found.values())).sum()
        if is_logged(cast(Any, self.trainer), batch_idx):
            self._show({name: value.detach() for name, value in found.items()})
        return loss

    def _show(self, found: Mapping[str, Tensor]) -> None:
        mean = torch.stack(list(found.values())).mean()
        self.log(f"train/{self.goal}", mean, prog_bar=True, sync_dist=True, batch_size=len(found))
        shown = {f"train/{name}/{self.goal}": value for name, value in found.items()}
        shown |= {f"coefficient/{name}": value for name, value in self._means().items()}
        self.log_dict(shown, sync_dist=True, batch_size=len(found))

    @override
    def configure_optimizers(self) -> Adam:
        return Adam([self.coefficients], lr=self.learning_rate)

    @override
    def on_train_start(self) -> None:
        for logger in self.loggers:
            logger.log_hyperparams(self.describe())

    @override
    def on_train_end(self) -> None:
        if self._output is None or is_trial(self.trainer, self._output):
            return
        group, output = processes_of(self.trainer), self._output
        together(group, lambda: None if group.rank else self.save(output))
        rank_zero_info(f"written: {output}")

    def describe(self) -> dict[str, Any]:
        """Return the settings, for the loggers and for the written file."""
        tag = None if pretrained_file(self._encoder_name, self._pretrained) else self._pretrained
        return {
            "method": self.method,
            "encoder": self._encoder_name,
            "image_size": self._image_size,
            **({} if tag is None else {"pretrained": tag}),
            **self.identity(),
            "init": self.init,
            "learning_rate": self.learning_rate,
            "tasks": list(self._sources),
            **({"images": self._images} if self._images else {}),
        }

    def save(self, path: str | Path) -> Path:
        """Write the merged encoder, whole or not at all.

        Args:
            path: A safetensors file; see :meth:`~sta_lightning.engine.Job.write`. Its metadata
                also holds each vector's coefficient, the mean over the tensors.

        Returns:
            The path.

        Raises:
            StaError: A source does not fit, or the file cannot be written; nothing has been changed
                then.
        """
        frozen = self._at_hand()
        learned = {name: round(value, 6) for name, value in self.mean_coefficients().items()}
        steps = self.trainer.global_step if self._trainer is not None else None
        settings = {**self.describe(), "steps": steps, "coefficients": learned}
        metadata = {**provenance(f"fused:{self.method}", settings, {}), **frozen.origin}
        prefix = encoder_spec(self._encoder_name, self._image_size).key_prefix
        save_weights(path, {prefix + name: value for name, value in self.merged_weights().items()}, metadata)
        return Path(path)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[self.method] = self._identity()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found, own = checkpoint.get(self.method), self._identity()
        if found != own:
            raise StaError(
                f"the checkpoint holds the coefficients of {found}, but this {self.title} is {own}. Give the checkpoint of a "
                "fit with the same."
            )
        self.build()

    def _identity(self) -> dict[str, Any]:
        return {"tasks": list(self._sources), **self.identity()}

    def _check_tasks(self, given: Sequence[str], who: str) -> None:
        if set(given) != set(self._sources):
            raise StaError(
                f"{who} brings images of {listed(sorted(given))}, but {self.title} merges {listed(self._sources)}. Give both the "
                "same tasks."
            )

    def _checked(self, name: str, source: TaskSource) -> TaskSource:
        if source.finetuned is None or source.vector is not None:
            raise StaError(
                f"task {name!r}: {self.title} reads a fine-tuned encoder, 'finetuned', and no masked task vector, 'vector'."
            )
        return source

    def _at_hand(self) -> Frozen:
        """What is frozen, on the coefficients' device."""
        self.build()
        assert self._frozen is not None
        self._frozen = self._frozen.on(self.coefficients.device)
        return self._frozen


def learn(
    module: LearnedMerging,
    datamodule: LightningDataModule,
    *,
    steps: int,
    seed: int = 0,
    accelerator: str = "cpu",
    callbacks: Sequence[Callback] = (),
) -> dict[str, Tensor]:
    """Learn the coefficients from the start, on one device, without loggers, bar and checkpoints.

    On the CPU the result is the same to the last bit for the same module, images, seed and number
    of threads.

    Args:
        module: What is merged. Its coefficients start anew.
        datamodule: Its training loader gives ``task -> images [B, 3, S, S]``; if it ends it is
            begun again.
        steps: Optimiser steps.
        seed: Of whatever the datamodule draws from the global random generators, which are put back
            afterwards; an ``UnlabelledDataModule`` has a seed of its own.
        accelerator: ``cpu``, ``gpu`` or another of Lightning's.
        callbacks: Such as a progress bar.

    Returns:
        The merged encoder's tensors by name, on the CPU.

    Raises:
        StaError: There is no step to take, a source is missing or does not fit, or the datamodule
            has other tasks.
    """
    if steps < 1:
        usual = LEARNED_METHODS[module.method].settings["steps"]
        raise StaError(f"{steps} steps of {module.title} were asked for: give 1 or more, such as {usual}.")
    module.reset()
    trainer = Trainer(accelerator=accelerator, devices=1, max_steps=steps, callbacks=list(callbacks), **QUIET)
    with isolate_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        trainer.fit(module, datamodule=datamodule)
    return module.merged_weights()


def _check_trainer(trainer: Any, title: str) -> None:
    strategy = trainer.strategy
    if type(strategy) is not SingleDeviceStrategy and type(strategy) is not DDPStrategy:
        raise StaError(
            f"{title} needs the whole model in every process, but the strategy is {type(strategy).__name__}. Use "
            "strategy=auto or ddp."
        )
    if str(trainer.precision) not in _PRECISIONS:
        raise StaError(
            f"{title} learns in float32, but the trainer's precision is {trainer.precision}. Use one of {listed(_PRECISIONS)}."
        )
