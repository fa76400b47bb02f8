from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from typing_extensions import override

from sta_lightning.callbacks.board import RESULTS, MergeBoard
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.engine.metrics import MetricName
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.accuracy import Accuracy
from sta_lightning.modules.measures import Measures, check_metrics
from sta_lightning.modules.padding import accept_padding, real_samples
from sta_lightning.modules.parts import head_for, read_encoder, refuse_verb
from sta_lightning.tasks import Task


class MultiTaskEvaluation(LightningModule):
    """Evaluate an image encoder, such as one in a file, on several tasks and a control set.

    The datamodule is a ``MultiTaskDataModule`` (or a ``TaskDataModule`` for one task): loader k
    belongs to its task k. Each sample counts once on any number of processes. Logs
    ``test/<task>/acc`` for every task, ``test/avg_acc`` over the tasks, and
    ``test/control/<name>/acc`` for the control, which is not part of the average; under
    ``validate``, the same with ``val/``. Accuracies are shares from 0 to 1.

    Args:
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name.
        pretrained: The pretrained weights (a file or a tag of open_clip); ``None`` for those the
            package ships. The heads are made from them.
        weights: A file with the encoder to evaluate; ``None`` for the pretrained one.
        heads: Head files by task name, for tasks whose head is not to be made.
        image_size: Side of the input in pixels; ``None`` for the encoder's own.
        metrics: What is measured of every task beside its accuracy: ``macro``, ``top5``,
            ``per_class``, ``confusion``; see :class:`~sta_lightning.modules.measures.Measures`.
    """

    def __init__(
        self,
        encoder: str = "miniature",
        pretrained: str | None = None,
        weights: str | None = None,
        heads: dict[str, str] | None = None,
        image_size: int | None = None,
        metrics: list[MetricName] | None = None,
    ) -> None:
        super().__init__()
        check_metrics(metrics or [])
        self._asked = metrics or []
        given = {"encoder": encoder, "pretrained": pretrained, "weights": weights, "heads": heads}
        # The loggers get what `describe` says, when it is known.
        self.save_hyperparameters({**given, "image_size": image_size, "metrics": metrics}, logger=False)
        self._encoder_name, self._pretrained, self._image_size = encoder, pretrained, image_size
        self._weights = weights
        self._head_files = dict(heads or {})
        # In a tuple: as an attribute it would become a child, with its tensors in every checkpoint.
        self._original: tuple[nn.Module, ...] = ()
        self._names: list[str] = []
        self.control: str | None = None
        self.heads = nn.ModuleDict()
        self.metrics = nn.ModuleDict()
        self.measures = nn.ModuleDict()

    def encoder_weights(self) -> Mapping[str, Tensor]:
        """Return the weights to evaluate, by tensor name."""
        state = self.original().state_dict()
        if self._weights is None:
            return state
        return read_encoder(self._weights, state, "the encoder to evaluate")

    def original(self) -> nn.Module:
        """Return the pretrained encoder, built once and never changed."""
        if not self._original:
            self._original = (build_encoder(self._encoder_name, self._pretrained, self._image_size).eval(),)
        return self._original[0]

    def describe(self) -> dict[str, Any]:
        """Return the settings that distinguish this evaluation, for the loggers' tables of runs."""
        weights = None if self._weights is None else Path(self._weights).name
        return {"encoder": self._encoder_name, "weights": weights}

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **settings: Any) -> NoReturn:
        """There is nothing to load: this evaluates a file of weights.

        Raises:
            StaError: Always.
        """
        raise StaError(
            f"{cls.__name__} learns nothing, so that no checkpoint of its own is of use. Give a file of weights to "
            "MultiTaskEvaluation (weights=...), or a fit's checkpoint to CLIPClassifier.load_from_checkpoint."
        )

    @override
    def configure_callbacks(self) -> Sequence[Callback]:
        """Attach what logs hyper-parameters, selection rates and figures.

        Raises:
            StaError: The trainer was asked to fit or to predict.
        """
        refuse_verb(self, ("validate", "test"), "it evaluates. Use validate or test, or CLIPClassifier")
        return [MergeBoard()]

    @override
    def setup(self, stage: str) -> None:
        """Load the weights to evaluate, and get a head and a metric for every task."""
        accept_padding()
        datamodule = cast(Any, self.trainer).datamodule
        members = members_of(datamodule)
        names = "validation_names" if stage == "validate" else "task_names"
        self._names = list(getattr(datamodule, names, members))
        self.control = getattr(datamodule, "control_name", None)
        self.check_tasks([name for name in self._names if name != self.control])
        for name in self._names:
            if module_key(name) not in self.heads:
                self.heads[module_key(name)] = self.head(members[name].task, members[name])
        classes = {name: members[name].task.class_names for name in self._names}
        self.measures = nn.ModuleDict(
            {module_key(*key): Measures(self._asked, classes[key[-1]]) for key in self.counted()}
        )
        self.metrics = nn.ModuleDict({module_key(*key): Accuracy() for key in self.counted()})
        self.load()

    def counted(self) -> list[tuple[str, ...]]:
        """What accuracies are counted of: the tasks; overridden where there are several models."""
        return [(name,) for name in self._names]

    def load(self) -> None:
        """Get the encoder to evaluate unless it is there."""
        if not hasattr(self, "encoder"):
            self.encoder = deepcopy(self.original()).requires_grad_(False)
            self.encoder.load_state_dict(dict(self.encoder_weights()))

    def head(self, task: Task, datamodule: Any = None) -> ClassificationHead:
        """Read a task's head, or make it; see :func:`~sta_lightning.modules.parts.head_for`."""
        file = self._head_files.get(task.name)
        return head_for(
            task, self._encoder_name, self._pretrained, self.original(), file=file, datamodule=datamodule
        )

    def check_tasks(self, names: list[str]) -> None:
        """Refuse tasks that this module cannot evaluate; overridden where tasks have a role."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[B, D]`` of normalised images ``[B, 3, S, S]``."""
        return cast(Tensor, self.encoder(images))

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._count(batch, batch_idx, dataloader_idx, self.trainer.val_dataloaders)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._count(batch, batch_idx, dataloader_idx, self.trainer.test_dataloaders)

    def _count(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int, loaders: Any) -> None:
        images, labels = batch
        loader = loaders[dataloader_idx] if isinstance(loaders, Sequence) else loaders
        count = real_samples(loader, batch_idx, len(labels))
        self.count(self._names[dataloader_idx], images, labels, count)

    def count(self, name: str, images: Tensor, labels: Tensor, count: int) -> None:
        """Count what the first ``count`` samples of a batch of the task ``name`` get right."""
        self.add((name,), self.heads[module_key(name)](self(images))[:count], labels[:count])

    def add(self, key: tuple[str, ...], logits: Tensor, labels: Tensor) -> None:
        """Add logits ``[B, C]`` and labels ``[B]`` to one of those that are counted."""
        for metric in (self.metrics[module_key(*key)], self.measures[module_key(*key)]):
            cast(Accuracy | Measures, metric).update(logits.float(), labels)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_accuracies("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_accuracies("test")

    def _log_accuracies(self, place: str, *model: str) -> dict[str, float]:
        """Log and return what has been counted of a model, by task; the counts begin anew."""
        found: dict[str, Tensor] = {}
        for name in self._names:
            metric = cast(Accuracy, self.metrics[module_key(*model, name)])
            found[name] = metric.compute()
            metric.reset()
            cast(Measures, self.measures[module_key(*model, name)]).log(self, f"{place}/{self.tag(name)}")
        logged = {f"{place}/{self.tag(name)}/acc": accuracy for name, accuracy in found.items()}
        for tag, value in {**logged, **self.headline(place, found)}.items():
            # They are the same on every process: a maximum leaves them so, to the bit.
            # What is for HPARAMS stands in no table besides: MergeBoard enters it.
            logger = False if tag in RESULTS else None
            self.log(tag, value, sync_dist=True, reduce_fx="max", logger=logger)
        return {name: float(accuracy) for name, accuracy in found.items()}

    def headline(self, place: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what else is logged: the average over the tasks, and a test's results.

        The latter are the metrics of TensorBoard's HPARAMS, ``accuracy/…``.

        Args:
            place: ``val`` or ``test``, and the model's name where there are several.
            found: Accuracy by task name, the control's too.
        """
        tasks = [accuracy for name, accuracy in found.items() if name != self.control]
        if not tasks:
            return {}
        logged = {f"{place}/avg_acc": torch.stack(tasks).mean()}
        if place == "test":
            logged["accuracy/average"] = logged["test/avg_acc"]
            if self.control is not None:
                logged["accuracy/control"] = found[self.control]
        return logged

    def tag(self, name: str) -> str:
        """Return what stands between ``test/`` and ``/acc`` for a task."""
        return f"control/{name}" if name == self.control else name


def accuracies(metrics: Mapping[str, float]) -> dict[str, float]:
    """Accuracy by task as people read it, average and control last.

    Args:
        metrics: What was logged: ``test/<task>/acc``, ``test/avg_acc``, ``test/control/<name>/acc``
            or ``test/control/acc``; shares in [0, 1].
    """
    rows: list[tuple[str, float]] = []
    last: list[tuple[str, float]] = []
    for key, value in metrics.items():
        parts = key.split("/")
        if parts[0] != "test" or parts[-1] not in ("acc", "avg_acc"):
            continue
        if parts[1] == "avg_acc":
            last.insert(0, ("average", value))
        elif parts[1] == "control":
            last.append((f"{'/'.join(parts[2:-1])} (control)" if len(parts) > 3 else "control", value))
        else:
            rows.append(("/".join(parts[1:-1]), value))
    return dict(rows + last)


def members_of(datamodule: Any) -> Mapping[str, Any]:
    """Return each task's datamodule by its name; a StaError if there is none."""
    if hasattr(datamodule, "members"):
        return cast(Mapping[str, Any], datamodule.members)
    if hasattr(datamodule, "task"):
        return {datamodule.task.name: datamodule}
    found = "no datamodule" if datamodule is None else type(datamodule).__name__
    raise StaError(
        f"Evaluation across tasks needs a MultiTaskDataModule, but the trainer has {found}. "
        "Give the trainer datamodule=MultiTaskDataModule(tasks=[...])."
    )


def module_key(*names: str) -> str:
    """Return names as a module's, without dots, and apart from a ModuleDict's attributes."""
    return "_".join(["task", *(name.encode().hex() for name in names)])


def refuse_difference(asked: Sequence[str], given: Sequence[str], what: str) -> None:
    """Raise a StaError if a datamodule brings tasks that a module, which does ``what``, has not."""
    if unknown := [name for name in given if name not in asked]:
        raise StaError(
            f"The datamodule brings {listed(unknown)}, but {what} {listed(asked)}. Give both the same tasks; a set that is "
            "only watched is the datamodule's control."
        )
