"""What a benchmark found, as plain numbers: what its cells fill and its report reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

Setting = Literal["published", "tuned"]
"""Whether a method ran with its published settings, or with the best on validation."""

Run = tuple[str, Setting]
"""A method under a setting."""

Group = Literal["reference", "sta", "data-free", "data", "control"]
"""References (zero-shot, fine-tuned) are no merges; controls tell what importance is worth."""

PRETRAINED, ZERO_SHOT, FINE_TUNED = "pretrained", "zero_shot", "fine_tuned"
"""Keys of the references: before forgetting, before fusion, each model on its own task."""


@dataclass(frozen=True)
class MethodInfo:
    """One method of the benchmark.

    Attributes:
        key: short name that programs use, such as ``ties_sum``.
        label: what the reader sees.
        summary: what it does, in one line.
        data: what it needs besides the weights, as :class:`~sta_lightning.arithmetic.MergeMethod`
            has it.
        coefficient: whether it has one that must be tuned.
        source: where it was published.
        group: which kind of row it is.
        paper: its row in the paper's Table 2 or 3, such as ``task_arithmetic``; ``None`` if
            the paper has none.
        fuses: whether it makes one model of several.
        forgets: whether it makes a model forget a task.
        reference: key of the row of the fine-tuned models that it is held against.
    """

    key: str
    label: str
    summary: str
    data: str
    coefficient: bool
    source: str
    group: Group
    paper: str | None = None
    fuses: bool = True
    forgets: bool = False
    reference: str = FINE_TUNED


@dataclass(frozen=True)
class Row:
    """What every measured row has.

    Attributes:
        method: key of the method.
        setting: published or tuned.
        seed: of the fine-tuning, and of whatever the method draws.
    """

    method: str
    setting: Setting
    seed: int

    @property
    def run(self) -> Run:
        """The method under its setting."""
        return self.method, self.setting


@dataclass(frozen=True)
class FusionResult(Row):
    """One model for several tasks, on the test images.

    Attributes:
        tasks: the tasks that were fused.
        accuracy: task -> test accuracy in percent.
        chosen: the method's settings.
        validation: average validation accuracy in percent under these settings; ``None``
            where no setting was tuned.
        seconds: how long the merge took, its files read, on the threads of the benchmark; ``None``
            if it was not measured. It is no part of a comparison.
        norm: length of the merged task vector beside that of the sum of the task vectors; likewise.
        divergence: of its predictions from the fine-tuned models' on unlabelled training images,
            the mean over the tasks, in nats; likewise.
        agreement: the share of these images, 0 to 1, that both take for the same class; likewise.
    """

    tasks: tuple[str, ...]
    accuracy: Mapping[str, float]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    validation: float | None = None
    seconds: float | None = field(default=None, compare=False)
    norm: float | None = field(default=None, compare=False)
    divergence: float | None = field(default=None, compare=False)
    agreement: float | None = field(default=None, compare=False)

    @property
    def average(self) -> float:
        """Unweighted mean over the tasks, in percent."""
        return fmean(self.accuracy.values())


@dataclass(frozen=True)
class PairedDifference(Row):
    """Two rows of one seed on the same test images, compared image by image.

    What both get right or wrong together cancels, so that even one seed has an error bar: the one
    that comes from the limited number of test images.

    Attributes:
        other: key of the method it is compared with: that of the seed's best fused row, or the
            random mask.
        other_setting: of that row.
        difference: average accuracy of the row minus that of the other, in points.
        error: standard error of the difference, in points.
    """

    other: str
    other_setting: Setting
    difference: float
    error: float


@dataclass(frozen=True)
class ForgettingResult(Row):
    """A model that was made to forget one task, on the test images, in percent.

    Tuned is what forgets most among what keeps enough of the control's validation accuracy.

    Attributes:
        task: what was to be forgotten.
        target: accuracy on it, the lower the better.
        control: accuracy on the control, the higher the better.
        chosen: the method's settings.
        enough: for a tuned one, whether any setting of the grid kept enough; if not, this one kept
            most.
    """

    task: str
    target: float
    control: float
    chosen: Mapping[str, Any] = field(default_factory=dict)
    enough: bool = True


@dataclass(frozen=True)
class CurvePoint:
    """Average accuracy in percent at one value of something that is varied.

    Attributes:
        curve: what is varied: ``p``, ``scale`` (λ), ``samples`` (for the importance) or ``tasks``
            (how many are fused); ``level`` for a method (or ``zero_shot``) without any of these,
            drawn as a line beside the others (``x`` is 0).
        average: mean over the tasks, and over the subsets of tasks that were fused.
        split: which images; ``scale`` and ``level`` are always of validation images, ``p`` of
            those that the settings ask for.
        accuracy: task -> accuracy in percent; empty for ``tasks``.
    """

    curve: Literal["p", "scale", "samples", "tasks", "level"]
    method: str
    seed: int
    x: float
    average: float
    split: Literal["validation", "test"]
    accuracy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TradeOffPoint:
    """Accuracy on the forgotten tasks and on the control at one value x of p or γ.

    Mean over the tasks, test images, in percent.
    """

    method: str
    seed: int
    x: float
    target: float
    control: float


@dataclass(frozen=True)
class BenchmarkResults:
    """Every number of a benchmark.

    Attributes:
        tasks: task names in the order of the tables.
        control: name of the control set.
        methods: of the fusion tables, in the order of their rows, references first.
        forget_methods: of the forgetting table, in the order of their columns; ``pretrained``
            first.
        images: split -> set -> number of images.
        fusion: all tasks fused, every method and seed.
        pairs: two tasks fused, for all pairs; by the methods of the figure.
        forgetting: every task forgotten.
        curves: sensitivity.
        trade_off: forgetting against p and γ.
        kept: tensor name -> task -> share of the task vector's entries that STA (LP) keeps; of the
            first seed.
        conflict: task -> other task -> share of the entries, not zero in both, whose signs differ;
            of the first seed.
        paired: every fused row and seed against the best fused row of that seed and against the
            random mask, if there is one.
        record: how the numbers came about: ``command``, ``date``, ``hardware``, ``versions``,
            ``settings``, ``hashes`` (name of a file -> SHA-256), ``seconds``, ``commit`` (git's
            SHA-1 of the package's checkout; ``None`` outside one), ``clean`` (whether that checkout
            had no changes; ``None`` outside one), ``published`` (file in the output folder -> key
            of the method whose fused model it holds).
    """

    title: str
    encoder: str
    tasks: tuple[str, ...]
    control: str
    seeds: tuple[int, ...]
    methods: tuple[MethodInfo, ...]
    forget_methods: tuple[MethodInfo, ...]
    images: Mapping[str, Mapping[str, int]]
    fusion: tuple[FusionResult, ...] = ()
    pairs: tuple[FusionResult, ...] = ()
    forgetting: tuple[ForgettingResult, ...] = ()
    curves: tuple[CurvePoint, ...] = ()
    trade_off: tuple[TradeOffPoint, ...] = ()
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    conflict: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    paired: tuple[PairedDifference, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def method(self, key: str) -> MethodInfo:
        """The fusing or forgetting method of that key."""
        return next(info for info in (*self.methods, *self.forget_methods) if info.key == key)

    def fused(self, key: str, setting: Setting) -> list[FusionResult]:
        """The results of one method under one setting, in the order of the seeds."""
        rows = [row for row in self.fusion if row.run == (key, setting)]
        return sorted(rows, key=lambda row: row.seed)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)
