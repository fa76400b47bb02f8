"""All that a benchmark depends on, in dataclasses that YAML fills; imports no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal, TypeVar

from sta_lightning.benchmark.results import FINE_TUNED, Group
from sta_lightning.errors import StaError, listed

Choice = dict[str, Any]
"""Settings of a method that differ from its entry's, by name."""

Finetuning = Literal["plain", "linearised", "spare"]
"""How a row's models were fine-tuned: as usual, or as ``linearised`` or SpareControl has it."""

Part = TypeVar("Part")

_EMBEDDED = ("digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover")
BEST = "best"
"""In place of a method's key: the best one that needs no tuned coefficient."""
# Settings of the entry itself; a grid's other names are the method's own.
_OWN = ("p", "scale", "normalize", "measure", "dare")


@dataclass(frozen=True)
class TaskOverride:
    """Settings of one task's fine-tuning that differ from the run's.

    Args:
        learning_rate: peak learning rate.
        epochs: passes over the training images.
        batch_size: images per step.
        train_limit: number of training images, drawn once.
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
        pretrained: weights of the encoder: an open_clip tag or a local file; ``None`` for the
            encoder's own (``miniature`` ships its weights). ``${NAME}`` is replaced by the
            environment variable NAME.
        image_size: side of the square input in pixels; ``None`` for the encoder's own.
        tasks: names of tasks, or paths of task YAML files, in the order of the tables.
        roots: task -> folder of its images, for tasks that are read from disk; ``${NAME}`` is
            replaced.
        control: the task that forgetting must not hurt; it is never fine-tuned.
        overrides: task -> its own fine-tuning settings.
        learning_rate: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup_steps: steps of linear warm-up before the cosine to zero.
        linearised_rate: peak learning rate of linearised fits; ``None`` for the task's own.
        spare_weight: weight of the penalty of fits that spare the control.
        epochs: passes over the training images; ``None`` for the published number of each task.
        batch_size: images per step of fine-tuning.
        evaluation_batch_size: images per step of evaluation; does not change results.
        train_limit: number of training images per task, a fixed random choice; ``None`` for all.
        validation_limit: number of validation images per task; ``None`` for all.
        test_limit: number of test images per task; ``None`` for all.
        control_limit: number of test images of the control; ``None`` for ``test_limit``.
        samples: images per task that importance is computed from (the paper: 32).
        accelerator: ``cpu``, ``gpu`` or ``auto``, as in Lightning's Trainer.
        num_workers: processes that load training images; 0 loads them in the main process.
        cache_gigabytes: most memory that decoded evaluation images may take in each process; what
            does not fit is decoded again for every evaluation.
        download: let torchvision download data sets that are missing under ``roots``.
    """

    encoder: str = "miniature"
    pretrained: str | None = None
    image_size: int | None = None
    tasks: list[str] = field(default_factory=lambda: [*_EMBEDDED])
    roots: dict[str, str] = field(default_factory=dict)
    control: str = "objects"
    overrides: dict[str, TaskOverride] = field(default_factory=dict)
    learning_rate: float = 2.5e-4
    weight_decay: float = 0.1
    warmup_steps: int = 20
    linearised_rate: float | None = None
    spare_weight: float = 10.0
    epochs: int | None = 4
    batch_size: int = 128
    evaluation_batch_size: int = 250
    train_limit: int | None = 4000
    validation_limit: int | None = 250
    test_limit: int | None = 1000
    control_limit: int | None = None
    samples: int = 32
    accelerator: str = "cpu"
    num_workers: int = 0
    cache_gigabytes: float = 4.0
    download: bool = False

    def __post_init__(self) -> None:
        """Let overrides be given as plain mappings, as a YAML file has them."""
        object.__setattr__(self, "overrides", _built(TaskOverride, "overrides", self.overrides))

    def fine_tuning(self, task: str) -> TaskOverride:
        """Fine-tuning settings of one task with nothing left open but ``train_limit``.

        Raises:
            StaError: ``epochs`` is left to the task, which is no published one.
        """
        own = asdict(self.overrides.get(task, TaskOverride()))
        found = {name: getattr(self, name) if value is None else value for name, value in own.items()}
        if found["epochs"] is None:
            from sta_lightning.tasks.published import EPOCHS  # imports torchvision

            if task not in EPOCHS:
                raise StaError(
                    f"models.epochs is left to the tasks, but the number of '{task}' is not known: give "
                    f"models.overrides.{task}.epochs."
                )
            found["epochs"] = EPOCHS[task]
        return TaskOverride(**found)


@dataclass(frozen=True)
class MethodEntry:
    """One row of a benchmark.

    Args:
        method: name of a method, as ``sta methods`` lists them, or where one of your own is.
        label: what the reader sees; the method's title if not given.
        group: which kind of row it is: ``sta``, ``data-free``, ``data`` or ``control``.
        measure: importance that a method goes by, if it goes by one.
        samples: images a task for the importance, the Fisher information or the Gram matrices;
            ``None`` for the benchmark's.
        p: quantile of the masked methods.
        scale: the method's coefficient; ``None`` for its default.
        normalize: how importance is normalised.
        dare: share of the task vectors' entries that DARE drops in front; ``None`` for no DARE.
        settings: further settings of the method, by name.
        tune: setting -> values; the validation images choose among all combinations, the first of
            those that are equally good. Empty where nothing is tuned.
        paper: the method's row in the paper's table, if it has one.
        finetuning: how the models that it works on were fine-tuned: ``plain``, ``linearised``, or
            ``spare`` for fits that spare the control.
        tangent: whether what it makes is evaluated by its linearisation at the pretrained weights,
            which a linearised fit trains, in place of the ordinary network.
    """

    method: str = "sta"
    label: str = ""
    group: Group = "data-free"
    measure: str = "lp"
    samples: int | None = None
    p: float = 0.7
    scale: float | None = None
    normalize: str = "tensor"
    dare: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, list[Any]] = field(default_factory=dict)
    paper: str | None = None
    finetuning: Finetuning = "plain"
    tangent: bool = False

    def choices(self) -> list[Choice]:
        """Every combination of the grid, in its order."""
        grid = itertools.product(*self.tune.values()) if self.tune else ()
        return [dict(zip(self.tune, values, strict=True)) for values in grid]

    def with_choice(self, choice: Choice) -> MethodEntry:
        """The entry with some settings changed, and nothing left to tune."""
        own = {name: value for name, value in choice.items() if name in _OWN}
        others = {name: value for name, value in choice.items() if name not in _OWN}
        kept = {name: value for name, value in self.settings.items() if name not in own}
        return replace(self, **own, settings={**kept, **others}, tune={})

    def says(self, choice: Choice) -> bool:
        """Whether a choice changes nothing of the entry: its row in the table has it."""
        return self.with_choice(choice) == self.with_choice({})

    @property
    def reference(self) -> str:
        """Key of the row of the fine-tuned models that it is held against."""
        kind = "" if self.finetuning == "plain" else f"_{self.finetuning}"
        return f"{FINE_TUNED}{kind}{'_tangent' if self.tangent else ''}"

    @property
    def variants(self) -> list[MethodEntry]:
        """The entry as published, and with every choice of the grid."""
        return [self.with_choice(choice) for choice in ({}, *self.choices())]


class ForgettingEntry(MethodEntry):
    """One row of a benchmark whose method forgets a task."""


@dataclass(frozen=True)
class Curves:
    """What is varied, and for which methods; an empty list leaves a curve out.

    Args:
        p: values of p for the masked methods in ``p_methods``; values of one rank are computed
            once.
        p_methods: keys of methods.
        p_split: the images that the curve over p is drawn on: ``test`` or ``validation``.
        samples: how many calibration samples the methods in ``samples_methods`` score on.
        samples_methods: keys of methods.
        tasks: how many tasks are fused by the methods in ``tasks_methods``: subsets of neighbours
            in the list of tasks, so that every task is fused equally often.
        tasks_methods: keys of methods.
        scale_methods: keys of methods whose tuned coefficient is drawn against validation accuracy.
        level_methods: keys of methods, or ``zero_shot``, whose validation accuracy is drawn as a
            level beside the other curves.
    """

    p: list[float] = field(default_factory=list)
    p_methods: list[str] = field(default_factory=list)
    p_split: Literal["test", "validation"] = "test"
    samples: list[int] = field(default_factory=list)
    samples_methods: list[str] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    tasks_methods: list[str] = field(default_factory=list)
    scale_methods: list[str] = field(default_factory=list)
    level_methods: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TradeOff:
    """Forgetting against p and γ.

    Args:
        methods: key of a forgetting method -> its setting that is varied (``p`` or ``scale``) ->
            values.
    """

    methods: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkSettings:
    """One benchmark: models of several seeds, every method on them, tables, curves, a report.

    Args:
        title: of the report.
        output: folder for everything that the run writes.
        models: encoder, tasks, fine-tuning and images.
        finetuned: fine-tuned encoders that are there already, a path with ``{task}`` and, if there
            are several fine-tunings of each task, ``{seed}`` in it; ``None`` to fine-tune.
        seeds: of the fine-tunings and of all that is drawn at random.
        methods: key -> a fusing method, in the order of the table.
        pairs: keys of the methods that fuse every pair of tasks (the paper's Fig. 3); empty for
            none.
        forget_methods: key -> a forgetting method (the paper's Table 3); empty for none.
        control_share: share of the pretrained model's validation accuracy on the control that a
            tuned forgetting must keep.
        curves: what is varied.
        trade_off: forgetting against p and γ.
        selection: key of the method whose shares kept are drawn (the paper's Fig. 4); ``None`` for
            no drawing.
        publish: file in the output folder -> key of the method whose fused model, as published and
            of the first seed, is written there, or ``best`` for the one with the highest average
            among those without a coefficient to tune.
        devices: processes that work at the same time: on a CPU, or one a GPU. The numbers do not
            depend on it.
        threads: threads of each process on a CPU; the numbers may depend on it in their last
            digits.
        cluster: a Dask cluster that computes the cells in place of processes of this machine: the
            address of its scheduler, such as ``tcp://host:8786``, or its scheduler file. It must
            see the same folders.
    """

    title: str = "Merging methods"
    output: str = "runs/benchmark"
    models: ModelSettings = field(default_factory=ModelSettings)
    finetuned: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    methods: dict[str, MethodEntry] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    forget_methods: dict[str, MethodEntry] = field(default_factory=dict)
    control_share: float = 0.95
    curves: Curves = field(default_factory=Curves)
    trade_off: TradeOff = field(default_factory=TradeOff)
    selection: str | None = None
    publish: dict[str, str] = field(default_factory=dict)
    devices: int = 1
    threads: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        """Let the parts be given as plain mappings; what forgets is made a ForgettingEntry."""
        object.__setattr__(self, "methods", _built(MethodEntry, "methods", self.methods))
        forgetting = _built(ForgettingEntry, "forget_methods", self.forget_methods)
        object.__setattr__(self, "forget_methods", forgetting)


def expand(settings: BenchmarkSettings) -> BenchmarkSettings:
    """Replace ``${NAME}`` and ``~`` in the fields that hold paths.

    Raises:
        StaError: when an environment variable is not set.
    """
    models = {name: getattr(settings.models, name) for name in ("pretrained", "tasks", "control", "roots")}
    own = {name: getattr(settings, name) for name in ("output", "finetuned", "cluster")}
    return replace(settings, **_expanded(own), models=replace(settings.models, **_expanded(models)))


def _expanded(value: Any, name: str = "") -> Any:
    """A path, or paths in mappings and lists; ``name`` is that of the field."""
    if isinstance(value, dict):
        return {key: _expanded(each, f"{name}.{key}".lstrip(".")) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each, name) for each in value]
    if value is None:
        return None
    expanded = os.path.expandvars(os.path.expanduser(value))
    if "${" in expanded:
        variable = expanded.split("${", 1)[1].split("}", 1)[0]
        raise StaError(f"{name}: {value!r} needs the environment variable {variable}, which is not set")
    return expanded


def _built(kind: type[Part], where: str, given: Mapping[str, Any]) -> dict[str, Part]:
    """Dataclasses from plain mappings, as a YAML file has them.

    Raises:
        StaError: if one has an unknown field.
    """
    allowed = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    built: dict[str, Part] = {}
    for key, value in given.items():
        own = vars(value) if is_dataclass(value) else value or {}
        unknown = [name for name in own if name not in allowed]
        if unknown:
            raise StaError(
                f"{where}.{key}: {listed(unknown)} is no field there; the fields are {listed(allowed, 20)}."
            )
        built[key] = kind(**own)
    return built
