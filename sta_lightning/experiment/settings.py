"""Everything that one run of the chain depends on, in one dataclass that a YAML file fills."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from sta_lightning.errors import StaError

Models = TypeVar("Models", bound="ModelSettings")


@dataclass(frozen=True)
class TaskOverride:
    """Settings of one task's fine-tuning that differ from the run's.

    Args:
        learning_rate: peak learning rate.
        epochs: passes over the training images.
        batch_size: images per step.
        train_limit: number of training images, drawn once with the run's seed.
    """

    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    train_limit: int | None = None


@dataclass(frozen=True)
class ModelSettings:
    """The models of a run, and the images they are made from and evaluated on.

    Args:
        encoder: name of the image encoder: ``miniature``, an open_clip name such as ``ViT-B-16``,
            or ``timm/<name>``.
        pretrained: weights of the encoder: an open_clip tag or a local file; none means the
            encoder's own (``miniature`` ships its weights). ``${NAME}`` is replaced by the
            environment variable NAME.
        image_size: side of the square input in pixels; none means the encoder's own.
        tasks: names of tasks, or paths of task YAML files, in the order of the tables.
        roots: task -> folder of its images, for tasks that are read from disk; ``${NAME}`` is
            replaced.
        control: the task that forgetting must not hurt; it is never fine-tuned.
        overrides: task -> its own fine-tuning settings.
        learning_rate: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up before the cosine to zero.
        epochs: passes over the training images of a task.
        batch_size: images per step of fine-tuning.
        evaluation_batch_size: images per step of evaluation; does not change results.
        train_limit: number of training images per task, drawn once with the seed; none means all.
        validation_limit: number of validation images per task; none means all.
        test_limit: number of test images per task; none means all.
        control_limit: number of test images of the control; none means ``test_limit``.
        samples: images per task that importance is computed from (the paper: 32).
        seed: of splits, limits, order of training images, drawn samples and random masks.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as in Lightning's Trainer.
        num_workers: processes that load training images; 0 loads them in the main process.
        cache_gigabytes: most memory that decoded evaluation images may take; what does not fit is
            decoded again for every evaluation.
        download: let torchvision download data sets that are missing under ``roots``.
    """

    encoder: str = "miniature"
    pretrained: str | None = None
    image_size: int | None = None
    tasks: list[str] = field(
        default_factory=lambda: [
            "digits",
            "vehicles",
            "street_numbers",
            "traffic_signs",
            "textures",
            "land_cover",
        ]
    )
    roots: dict[str, str] = field(default_factory=dict)
    control: str = "objects"
    overrides: dict[str, TaskOverride] = field(default_factory=dict)
    learning_rate: float = 2.5e-4
    weight_decay: float = 0.1
    warmup_steps: int = 20
    epochs: int = 4
    batch_size: int = 128
    evaluation_batch_size: int = 250
    train_limit: int | None = 4000
    validation_limit: int | None = 250
    test_limit: int | None = 1000
    control_limit: int | None = None
    samples: int = 32
    seed: int = 0
    accelerator: str = "cpu"
    num_workers: int = 0
    cache_gigabytes: float = 4.0
    download: bool = False

    def __post_init__(self) -> None:
        """Let overrides be given as plain mappings, as a YAML file has them."""
        built: dict[str, TaskOverride] = {}
        for task, own in self.overrides.items():
            try:
                built[task] = own if isinstance(own, TaskOverride) else TaskOverride(**own)
            except TypeError as error:
                allowed = list(TaskOverride.__dataclass_fields__)
                raise StaError(
                    f"overrides.{task}: {own!r} is not understood; allowed are {allowed}"
                ) from error
        object.__setattr__(self, "overrides", built)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    def fine_tuning(self, task: str) -> TaskOverride:
        """Fine-tuning settings of one task with nothing left open but ``train_limit``."""
        own = self.overrides.get(task, TaskOverride())
        return TaskOverride(
            learning_rate=self.learning_rate if own.learning_rate is None else own.learning_rate,
            epochs=self.epochs if own.epochs is None else own.epochs,
            batch_size=self.batch_size if own.batch_size is None else own.batch_size,
            train_limit=self.train_limit if own.train_limit is None else own.train_limit,
        )


@dataclass(frozen=True)
class ExperimentSettings(ModelSettings):
    """One run of the chain: fine-tune, score, fuse, forget, report.

    Args:
        output: folder for everything that the run writes.
        p: quantile of the STA masks and of the random mask, in [0, 1].
        normalize: how importance is normalised before tasks are compared: tensor, block, model or
            none.
        scale: λ of the fixed task-arithmetic row (the paper: 0.4).
        scale_grid: the λ among which the best is chosen on validation images.
        p_grid: the p at which STA and the random mask are evaluated on validation images.
        forget_scale: γ of the negated task vector in the forgetting table.
    """

    output: str = "runs/demo"
    p: float = 0.7
    normalize: str = "tensor"
    scale: float = 0.4
    scale_grid: list[float] = field(default_factory=lambda: [tenth / 10 for tenth in range(1, 11)])
    p_grid: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 1.0])
    forget_scale: float = 1.0


def expand_settings(settings: ExperimentSettings) -> ExperimentSettings:
    """Replace ``${NAME}`` and ``~`` in the fields that hold paths.

    Raises:
        StaError: when an environment variable is not set.
    """
    return replace(expand_models(settings), output=expand_path(settings.output, "output"))


def expand_models(settings: Models) -> Models:
    """Replace ``${NAME}`` and ``~`` in the fields that say where the models and images are.

    Raises:
        StaError: when an environment variable is not set.
    """
    return replace(
        settings,
        pretrained=None if settings.pretrained is None else expand_path(settings.pretrained, "pretrained"),
        tasks=[expand_path(task, "tasks") for task in settings.tasks],
        control=expand_path(settings.control, "control"),
        roots={task: expand_path(root, f"roots.{task}") for task, root in settings.roots.items()},
    )


def check_settings(settings: ExperimentSettings) -> None:
    """Refuse settings that cannot make a run.

    Raises:
        StaError: naming the field, its value and what is allowed.
    """
    check_models(settings)
    for name, values in (("p", [settings.p]), ("p_grid", settings.p_grid)):
        for value in values:
            if not 0.0 <= value <= 1.0:
                raise StaError(f"{name}: p lies in [0, 1], found {value}")
    if not settings.scale_grid:
        raise StaError("scale_grid: give at least one λ for task arithmetic")


def check_models(settings: ModelSettings) -> None:
    """Refuse tasks that cannot make a run.

    Raises:
        StaError: naming the field, its value and what is allowed.
    """
    if len(settings.tasks) < 2:
        raise StaError(f"tasks: fusion needs at least two tasks, found {settings.tasks}")
    if len(set(settings.tasks)) != len(settings.tasks):
        raise StaError(f"tasks: each task may stand there once, found {settings.tasks}")
    if settings.control in settings.tasks:
        raise StaError(
            f"control: {settings.control!r} is among the tasks too; the control must not be fine-tuned"
        )


def expand_path(text: str, field_name: str) -> str:
    """Replace ``${NAME}`` and ``~``.

    Raises:
        StaError: when an environment variable is not set; it names the field.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "${" in expanded:
        name = expanded.split("${", 1)[1].split("}", 1)[0]
        raise StaError(f"{field_name}: {text!r} needs the environment variable {name}, which is not set")
    return expanded
