"""What a run of the chain found, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sta_lightning.benchmark.statistics import average_accuracy, standard_error


@dataclass(frozen=True)
class FusionRow:
    """One line of the fusion table.

    Attributes:
        key: short name that programs use, such as ``sta_lp``.
        label: what the reader sees.
        accuracy: task -> test accuracy in percent.
        correct: task -> which test images were classified rightly, packed (see
            ``evaluation.unpack``).
        reference: zero-shot and fine-tuned models, which are no merges.
        scale: λ, where the method has one.
        p: where the method has one.
        relative_change: norm of the change of the weights / norm of the pretrained weights;
            ``None`` for rows that are no single model.
    """

    key: str
    label: str
    accuracy: Mapping[str, float]
    correct: Mapping[str, str]
    reference: bool = False
    scale: float | None = None
    p: float | None = None
    relative_change: float | None = None

    @property
    def average(self) -> float:
        """Unweighted mean over the tasks, in percent."""
        return average_accuracy(self.accuracy)

    def error(self, images: Mapping[str, int]) -> float:
        """Standard error of the average in points, for the given numbers of test images."""
        return standard_error(self.accuracy, images)


@dataclass(frozen=True)
class ForgettingRow:
    """Test accuracy in percent after forgetting one task.

    Attributes:
        task: what was to be forgotten.
        method: key of the method.
        target: accuracy on the forgotten task.
        control: accuracy on the control set.
    """

    task: str
    method: str
    target: float
    control: float


@dataclass(frozen=True)
class SweepPoint:
    """Validation accuracy at one setting of a method.

    Attributes:
        method: key of the method.
        setting: ``p`` or ``scale``.
        value: of the setting.
        accuracy: task -> validation accuracy in percent.
    """

    method: str
    setting: str
    value: float
    accuracy: Mapping[str, float]

    @property
    def average(self) -> float:
        """Unweighted mean over the tasks, in percent."""
        return average_accuracy(self.accuracy)


@dataclass(frozen=True)
class Results:
    """Every number of a run.

    Attributes:
        tasks: task names in the order of the tables.
        control: name of the control set.
        images: split -> task -> number of images that were used.
        fusion: rows of the fusion table.
        forgetting: rows of the forgetting table.
        forgetting_labels: method key -> what the reader sees, in the order of the columns.
        sweep: accuracy against p and λ, on validation images.
        kept: tensor name -> task -> share of entries that STA LP keeps.
        best_scale: λ that was best on validation images.
        p: of the masked rows.
    """

    tasks: tuple[str, ...]
    control: str
    images: Mapping[str, Mapping[str, int]]
    fusion: tuple[FusionRow, ...]
    forgetting: tuple[ForgettingRow, ...]
    forgetting_labels: Mapping[str, str]
    sweep: tuple[SweepPoint, ...]
    kept: Mapping[str, Mapping[str, float]]
    best_scale: float
    p: float

    def row(self, key: str) -> FusionRow:
        """The fusion row of that key."""
        return next(row for row in self.fusion if row.key == key)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, with the averages and their standard errors spelled out."""
        plain = asdict(self)
        for entry, row in zip(plain["fusion"], self.fusion, strict=True):
            del entry["correct"]  # bits of single images; the steps' records hold them
            entry["average"] = row.average
            entry["standard_error"] = row.error(self.images["test"])
        for entry, point in zip(plain["sweep"], self.sweep, strict=True):
            entry["average"] = point.average
        return plain


@dataclass(frozen=True)
class ExperimentResult:
    """Where a run left what it found.

    Attributes:
        output: the run's folder.
        report: the Markdown report.
        fused: weights of the fused model (STA LP), safetensors.
        tensorboard: folder to open with TensorBoard.
        results: the numbers.
        done: number of steps that this run did.
        skipped: number of steps that had been done before.
    """

    output: Path
    report: Path
    fused: Path
    tensorboard: Path
    results: Results
    done: int
    skipped: int
