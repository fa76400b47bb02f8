from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchmetrics import MeanMetric
from typing_extensions import override

from sta_lightning.callbacks.monitors import check_monitors
from sta_lightning.callbacks.scorable import check_strategy
from sta_lightning.encoders import ClassificationHead, empty_encoder
from sta_lightning.encoders.adapters import Lora, adapted
from sta_lightning.engine.metrics import MetricName
from sta_lightning.errors import StaError
from sta_lightning.modules.accuracy import Accuracy
from sta_lightning.modules.compiled import CompileSetting, compiled_forward
from sta_lightning.modules.linearised import linearised_features
from sta_lightning.modules.measures import Measures, check_metrics
from sta_lightning.modules.padding import accept_padding, real_samples, training_share
from sta_lightning.modules.parts import LayersFirst, head_for, is_logged, start_encoder
from sta_lightning.modules.schedule import warmup_cosine
from sta_lightning.modules.stored import StoredSettings
from sta_lightning.tasks import get_task
from sta_lightning.weights.formats.states import as_mapping

Trainable = Literal["encoder", "head", "both"]
Interval = Literal["step", "epoch"]
if TYPE_CHECKING:
    EncoderChoice = str | nn.Module
else:
    EncoderChoice = str  # a configuration gives a name: it chooses no code


class CLIPClassifier(StoredSettings):
    """An image encoder with a classification head: the unit that is fine-tuned, scored and merged.

    The head is made once from the task's class names and prompts (or from prototypes, for encoders
    without a text tower) and is frozen by default, as in the paper. The text tower is gone before
    training starts, so that it is in no checkpoint and no gradient exchange. Encoder and head are
    built when the trainer sets up, before any callback is, when somebody asks for the parameters,
    or from the checkpoint: ``load_from_checkpoint`` reads neither data nor network nor pretrained
    weights, and of the arguments takes those in ``from_checkpoint`` (not ``optimizer``,
    ``lr_scheduler``, ``metrics``, ``compile`` and files).

    The defaults are the paper's: AdamW, learning rate 1e-5, weight decay 0.1, 500 warm-up steps, a
    cosine to zero at every step, no label smoothing. Its gradient clipping at norm 1.0 is the
    trainer's ``gradient_clip_val``.

    Args:
        encoder: ``miniature``, an open_clip architecture such as ``ViT-B-16``, or ``timm/`` and a
            model's name. In Python also a module of one's own, images to features ``[B, D]``, which
            is trained as it is; ``load_from_checkpoint`` wants one like it again.
        task: A task's name, or the path of a task's YAML file.
        pretrained: The pretrained weights (a file or a tag of open_clip); ``None`` for those the
            package ships.
        weights: A file with an encoder to start from in place of the pretrained one, such as a
            merged or a fine-tuned one; the head still comes from ``pretrained``.
        head: A head's safetensors file; ``None`` to make the task's own.
        image_size: Side of the input in pixels; ``None`` for the encoder's own.
        trainable: What is trained: the ``encoder`` (the paper's choice), the ``head``, or ``both``.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW, on everything that is trained.
        warmup_steps: Optimiser steps of the linear warm-up; at most half of the run counts.
        label_smoothing: Share of the label's probability spread over all classes, 0 to 1; training
            only.
        optimizer: Replaces AdamW with ``learning_rate`` and ``weight_decay``, which are not used
            then (but for a rate that a learning-rate finder has found).
        lr_scheduler: Replaces warm-up and cosine. ``ReduceLROnPlateau`` watches its ``monitor``,
            ``val/loss`` unless it says another.
        lr_scheduler_interval: Whether ``lr_scheduler`` is stepped at every optimiser ``step`` or
            ``epoch``; ``None`` for every step, and for every epoch with ``ReduceLROnPlateau``.
        metrics: What validation and test measure beside the accuracy: ``macro``, ``top5``,
            ``per_class``, ``confusion``; see :class:`~sta_lightning.modules.measures.Measures`.
        compile: Whether the encoder runs under ``torch.compile`` in training and evaluation, or
            keywords for it such as ``{mode: max-autotune}``. The weights keep their names; scoring
            uses the plain encoder.
        lora: Train low-rank adapters on the encoder's linear layers in place of its weights, such
            as ``{rank: 8}``; takes peft. ``None`` to train the weights.
        linearised: Train, validate, test and predict with the encoder's linearisation at the
            weights that the fit begins with; see
            :func:`~sta_lightning.modules.linearised.linearised_features`. What is exported and
            scored is the encoder itself with the trained weights. Its dropout is off and its
            running statistics stay.

    Raises:
        StaError: An argument is out of range, or encoder, weights, head and task do not fit each
            other; in a trainer, its strategy shards the weights.
    """

    from_checkpoint: ClassVar = (
        *("encoder", "task", "pretrained", "image_size", "trainable"),
        *("learning_rate", "weight_decay", "warmup_steps", "label_smoothing", "lr_scheduler_interval"),
        "linearised",
    )
    encoder: nn.Module
    origin: nn.Module
    head: ClassificationHead
    train_acc: Accuracy
    val_acc: Accuracy
    test_acc: Accuracy

    def __init__(
        self,
        encoder: EncoderChoice = "miniature",
        task: str = "digits",
        pretrained: str | None = None,
        weights: str | None = None,
        head: str | None = None,
        image_size: int | None = None,
        trainable: Trainable = "encoder",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.1,
        warmup_steps: int = 500,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval | None = None,
        metrics: list[MetricName] | None = None,
        compile: CompileSetting = False,
        lora: Lora | None = None,
        linearised: bool = False,
    ) -> None:
        super().__init__()
        if trainable not in get_args(Trainable):
            known = ", ".join(get_args(Trainable))
            raise StaError(f"trainable={trainable!r} was asked for; choose from {known}.")
        if warmup_steps < 0 or learning_rate < 0 or weight_decay < 0 or not 0 <= label_smoothing <= 1:
            raise StaError(
                f"learning_rate={learning_rate}, weight_decay={weight_decay}, warmup_steps={warmup_steps} must not be "
                f"negative, and label_smoothing={label_smoothing} must lie between 0 and 1."
            )
        if lora is not None and (trainable == "head" or compile is not False):
            raise StaError(
                "lora puts adapters on an encoder that is trained, and runs without torch.compile, but "
                f"trainable={trainable} and compile={compile} were asked for. Leave lora out, or these."
            )
        if linearised and (trainable == "head" or compile is not False or lora is not None):
            raise StaError(
                "linearised trains an encoder's own weights, without torch.compile, but "
                f"trainable={trainable}, compile={compile} and lora={lora} were asked for. Leave linearised out, or these."
            )
        check_metrics(metrics or [])
        own = isinstance(encoder, nn.Module)
        if own and (pretrained is not None or image_size is not None):
            raise StaError(
                f"pretrained={pretrained!r} and image_size={image_size} are for an encoder by name, but encoder is a "
                f"{type(encoder).__name__}. Give it with its weights, and leave both out."
            )
        # What a checkpoint keeps is plain: no module, no function.
        if lr_scheduler_interval not in (None, *get_args(Interval)):
            known = ", ".join(get_args(Interval))
            raise StaError(
                f"lr_scheduler_interval={lr_scheduler_interval!r} was asked for; choose from {known}."
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "lora", *(["encoder"] if own else [])])
        if lora is not None:
            self.save_hyperparameters({"lora": asdict(lora)})
        self._lora = lora
        # In a tuple: as an attribute a module would become a child at once.
        self._source, self._task, self._pretrained = (encoder,), task, pretrained
        self._weights, self._head_file, self._image_size = weights, head, image_size
        self._trainable, self._smoothing, self._linearised = trainable, label_smoothing, linearised
        self._rate, self._decay, self._warmup = learning_rate, weight_decay, warmup_steps
        self._optimizer, self._scheduler, self._interval = optimizer, lr_scheduler, lr_scheduler_interval
        self._metrics, self.measures = metrics or [], nn.ModuleDict()
        self._planned: tuple[float, float] | None = None
        self._compile: CompileSetting = compile
        self._features: Callable[[Tensor], Tensor] | None = None

    @override
    def configure_callbacks(self) -> Sequence[Callback]:
        """Attach what builds the layers before the trainer's callbacks look at them."""
        return LayersFirst.attached_to(self.trainer)

    @override
    def setup(self, stage: str) -> None:
        accept_padding()
        check_strategy(self.trainer)
        datamodule = cast(Any, self.trainer).datamodule
        task = get_task(self._task)
        found = getattr(getattr(datamodule, "task", None), "name", None)
        if found is not None and found != task.name:
            raise StaError(
                f"The module was made for the task {task.name!r}, but the datamodule brings {found!r}. Give both the same task."
            )
        self.build(datamodule)
        if self._metrics and not self.measures:
            for place in ("val", "test"):
                self.measures[place] = Measures(self._metrics, task.class_names)

    @property
    def built(self) -> bool:
        """Whether encoder and head are there."""
        return hasattr(self, "encoder") and hasattr(self, "head")

    def build(self, datamodule: Any = None) -> None:
        """Build the pretrained encoder and the task's head, once; ``setup`` calls it.

        Args:
            datamodule: Whose training split makes the prototypes of an encoder without a text
                tower.

        Raises:
            StaError: Weights, head or class names are missing or do not fit.
        """
        if self.built:
            return
        source = self._source[0]
        original, encoder = start_encoder(source, self._pretrained, self._weights, self._image_size)
        head = head_for(
            get_task(self._task),
            source if isinstance(source, str) else None,
            self._pretrained,
            original,
            file=self._head_file,
            datamodule=datamodule,
            trainable=self._trainable != "encoder",
        )
        self._assemble(encoder, head)

    @override
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Build first: whoever makes an optimiser before there is a trainer asks here."""
        self.build(getattr(self._trainer, "datamodule", None))
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def _assemble(self, encoder: nn.Module, head: ClassificationHead) -> None:
        # Before DDP wraps the module: what it finds trainable but never used is an error there.
        encoder.requires_grad_(self._trainable != "head")
        self.encoder = encoder if self._lora is None else adapted(encoder, self._lora)
        self._features = None if self._compile is False else compiled_forward(encoder, self._compile)
        if self._linearised:
            # A part of the module, so that a checkpoint holds it and it follows to the device.
            self.origin = deepcopy(encoder).requires_grad_(False)
        self.head = head
        self.train_acc, self.val_acc, self.test_acc = Accuracy(), Accuracy(), Accuracy()
        self.val_loss = MeanMetric()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the checkpoint's tensors: its encoder and a head of its size."""
        state = checkpoint["state_dict"]
        if self._linearised != any(name.startswith("origin.") for name in state):
            found = "an ordinary fit" if self._linearised else "a linearised fit"
            raise StaError(
                f"The checkpoint is of {found}, but linearised={self._linearised} was asked for. Give it "
                "as the fit had it."
            )
        head = ClassificationHead.from_state_dict(state, "head.", trainable=self._trainable != "encoder")
        if not self.built:
            source = self._source[0]
            self._lora = self._lora or _stored_lora(checkpoint)
            if isinstance(source, str):
                source = empty_encoder(source, self._pretrained, self._image_size)
            self._assemble(source, head)
        elif not self.head.holds(state, "head."):
            self.head = head  # else the one that an optimiser may know already

    @override
    def on_fit_start(self) -> None:
        # Callbacks that look for a rate or a batch size have run since the optimisers were made.
        if self._planned != self._plan():
            self.trainer.strategy.setup_optimizers(self.trainer)
        more = cast(Measures, self.measures["val"]).tags() if self._metrics else []
        check_monitors(
            self, ["train/loss", "train/acc", "val/loss", "val/acc", *(f"val/{tag}" for tag in more)]
        )

    @override
    def on_train_epoch_start(self) -> None:
        if self._trainable == "head":  # no dropout, statistics as they are
            self.encoder.eval()
        if self._linearised:
            self.origin.eval()

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of normalised images ``[B, 3, S, S]``."""
        if not self.built:
            raise StaError(
                "This CLIPClassifier has no encoder yet: give it to a Trainer, call build(), or load a checkpoint."
            )
        if self._linearised:
            weights = dict(self.encoder.named_parameters())
            return cast(Tensor, self.head(linearised_features(self.origin, weights, images)))
        if self._compile is False:
            return cast(Tensor, self.head(self.encoder(images)))
        if self._features is None:
            self._features = compiled_forward(self.encoder, self._compile)
        return cast(Tensor, self.head(self._features(images)))

    @override
    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles for itself: compiled code belongs to one encoder, and cannot be pickled.
        return {**super().__getstate__(), "_features": None}

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a batch's cross-entropy; its mean over processes is that of all their samples."""
        images, labels = batch
        count, weight = training_share(self.trainer.train_dataloader, batch_idx, len(labels))
        logits, labels = self(images).float()[:count], labels[:count]
        # The sum of nothing is zero, with the gradients of zero that the other processes wait for.
        loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing) if count else logits.sum()
        self.train_acc.update(logits.detach(), labels)
        # Only where it is looked at: reading the number waits for the GPU.
        if is_logged(self.trainer, batch_idx) or self.trainer.is_last_batch:
            self.log("train/loss", loss.detach().cpu(), prog_bar=True)
        return loss if weight == 1 else loss * weight

    @override
    def on_train_epoch_end(self) -> None:
        self.log("train/acc", self.train_acc)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, labels = self._evaluated(batch, batch_idx, self.trainer.val_dataloaders)
        self.val_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.val_acc.update(logits, labels)
        if self._metrics:
            cast(Measures, self.measures["val"]).update(logits, labels)
        self.log("val/loss", self.val_loss)
        self.log("val/acc", self.val_acc, prog_bar=True)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, labels = self._evaluated(batch, batch_idx, self.trainer.test_dataloaders)
        self.test_acc.update(logits, labels)
        if self._metrics:
            cast(Measures, self.measures["test"]).update(logits, labels)
        self.log(f"test/{get_task(self._task).name}/acc", self.test_acc)

    @override
    def on_validation_epoch_end(self) -> None:
        if self._metrics:
            cast(Measures, self.measures["val"]).log(self, "val")

    @override
    def on_test_epoch_end(self) -> None:
        if self._metrics:
            cast(Measures, self.measures["test"]).log(self, f"test/{get_task(self._task).name}")

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the classes' probabilities ``[B, C]``, float32; labels are left unread."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return cast(Tensor, self(images)).float().softmax(dim=-1)

    def _evaluated(self, batch: tuple[Tensor, Tensor], batch_idx: int, loader: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        count = real_samples(loader, batch_idx, len(labels))
        return self(images).float()[:count], labels[:count]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine, or what was given instead, over what is trainable."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self._planned = rate, total = self._plan()
        make = self._optimizer or partial(AdamW, lr=rate, weight_decay=self._decay)
        optimizer = make(trained)
        if rate != self._rate:  # found by a learning-rate finder, whatever the optimiser
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self._scheduler is None:
            factor = partial(warmup_cosine, warmup_steps=self._warmup, total_steps=int(total))
            schedule: Any = LambdaLR(optimizer, factor)
        else:
            schedule = self._scheduler(optimizer)
        waits = isinstance(schedule, ReduceLROnPlateau)
        config = {"scheduler": schedule, "interval": self._interval or ("epoch" if waits else "step")}
        if waits:
            config["monitor"] = monitor = getattr(schedule, "monitor", "val/loss")
            if monitor.startswith("val/") and not self.trainer.enable_validation:
                raise StaError(
                    f"ReduceLROnPlateau watches {monitor!r}, but this fit has no validation. Raise "
                    "trainer.limit_val_batches, or let its monitor be train/loss."
                )
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": config})

    def _plan(self) -> tuple[float, float]:
        """The learning rate, and the steps of the whole run where the schedule needs them."""
        rate = float(cast(Any, self.hparams)["learning_rate"])
        if self._scheduler is not None:
            return rate, 0
        total = float(self.trainer.estimated_stepping_batches)
        if total == float("inf"):
            raise StaError(
                "A cosine to zero needs a run with an end, but neither max_steps nor max_epochs bounds this one. "
                "Give the trainer one of them, or this module an lr_scheduler."
            )
        return rate, total


def _stored_lora(checkpoint: dict[str, Any]) -> Lora | None:
    """The adapters that a checkpoint's encoder has, by its hyper-parameters."""
    found = as_mapping((as_mapping(checkpoint.get("hyper_parameters")) or {}).get("lora"))
    if found is None:
        return None
    rank, alpha = found.get("rank"), found.get("alpha")
    if not isinstance(rank, int) or not (alpha is None or isinstance(alpha, (int, float))):
        raise StaError(f"the checkpoint's adapters (lora) should be of numbers, and found were {found}.")
    return Lora(rank, alpha)
