"""The second half of the chain: every row of the tables and every point of the curves, one step each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, rank
from sta_lightning.benchmark.statistics import average_accuracy
from sta_lightning.experiment.evaluation import evaluate
from sta_lightning.experiment.models import Models, clear_run
from sta_lightning.experiment.results import ForgettingRow, FusionRow, SweepPoint
from sta_lightning.experiment.settings import ExperimentSettings
from sta_lightning.experiment.steps import Step
from sta_lightning.modules import ForgetModule, MergeModule, MultiTaskEvaluation, TaskSource
from sta_lightning.tasks.task import Split

FUSED = "fused.safetensors"
EVALUATION_SOURCE = ("sta_lightning.experiment.evaluation",)
MERGED_SOURCE = "sta_lightning.modules.merged"


@dataclass(frozen=True)
class Fusion:
    """One way to fuse: what ``MergeModule`` is told."""

    method: str
    measure: str = "lp"
    p: float | None = None
    scale: float | None = None

    def key(self, normalize: str, seed: int) -> dict[str, Any]:
        """The settings that matter to this method, for a step's key."""
        key: dict[str, Any] = {"method": self.method, "p": self.p, "scale": self.scale}
        if self.method == "sta":
            key |= {"measure": self.measure, "normalize": normalize}
        if self.method == "random_mask":
            key["seed"] = seed
        return key

    @property
    def name(self) -> str:
        """Readable and different for different settings: ``sta_lp_p0.7``."""
        name = self.method + (f"_{self.measure.replace('+', '_')}" if self.method == "sta" else "")
        if self.p is not None:
            name += f"_p{self.p:g}"
        return name if self.scale is None else f"{name}_scale{self.scale:g}"


class Comparison:
    """Evaluates fused and forgetful models on images that are decoded once.

    Args:
        models: heads, fine-tuned models and importance, made already.
        settings: of the run.
    """

    def __init__(self, models: Models, settings: ExperimentSettings) -> None:
        self.models, self.suite, self.runner = models, models.suite, models.runner
        self.settings = settings
        self.p = self.settings.p
        self.validation_images: dict[str, int] = {}
        self._folder = str(models.runs)

    def zero_shot(self) -> tuple[FusionRow, dict[str, Any]]:
        """The pretrained model on every task and on the control."""
        suite = self.suite

        def work(folder: Path) -> dict[str, Any]:
            data = suite.evaluation(suite.tasks, "test", control=True)
            module = self._plain({name: self.models.heads[name] for name in suite.members})
            clear_run(self.models.runs, "fusion", "zero_shot")
            found = evaluate(
                suite, module, data, label="zero-shot", runs=(self._folder, "fusion", "zero_shot")
            )
            return {**found, "outcome": self._outcome(found)}

        step = self.runner.run(
            "fusion/zero_shot",
            suite.identity("test", *suite.members),
            work,
            {**suite.files(*suite.members), **self._head_files(*suite.members)},
            EVALUATION_SOURCE,
        )
        return self._row("zero_shot", "zero-shot", step.result, reference=True), step.result

    def fine_tuned(self) -> tuple[FusionRow, dict[str, Any]]:
        """Each fine-tuned model on its own task."""
        suite = self.suite
        merged: dict[str, Any] = {"accuracy": {}, "correct": {}, "images": {}}
        for task in suite.tasks:
            source = self.models.sources[task]

            def work(folder: Path, task: str = task, source: TaskSource = source) -> dict[str, Any]:
                data = suite.evaluation((task,), "test", control=False)
                module = self._plain({task: self.models.heads[task]}, weights=source.finetuned)
                version = f"fine_tuned_{task}"
                clear_run(self.models.runs, "fusion", version)
                found = evaluate(
                    suite, module, data, label=f"fine-tuned {task}", runs=(self._folder, "fusion", version)
                )
                return {**found, "outcome": self._outcome(found)}

            step = self.runner.run(
                f"fusion/fine_tuned_{task}",
                suite.identity("test", task),
                work,
                {**suite.files(task), **self._head_files(task), "encoder": _encoder(source)},
                EVALUATION_SOURCE,
            )
            for field in merged:
                merged[field] |= step.result[field]
        return self._row("fine_tuned", "fine-tuned, each on its own task", merged, reference=True), merged

    def fused(self, key: str, label: str, fusion: Fusion) -> tuple[FusionRow, Step]:
        """One fused model on every task's test images; its weights are kept if it is STA LP."""
        step = self._fuse("fusion", fusion, "test", logged=True, save=key == "sta_lp")
        row = self._row(key, label, step.result, fusion=fusion, change=step.result["relative_change"])
        return row, step

    def sweep_point(
        self, method: str, setting: str, fusion: Fusion, value: float | None = None
    ) -> SweepPoint:
        """One setting of a method on every task's validation images."""
        step = self._fuse("validation", fusion, "validation", logged=False, save=False)
        self.validation_images = dict(step.result["images"])
        used = fusion.p if setting == "p" else fusion.scale
        chosen = value if value is not None else used
        return SweepPoint(method, setting, 0.0 if chosen is None else chosen, step.result["accuracy"])

    def sweep(self) -> list[SweepPoint]:
        """Accuracy against p and λ, on validation images.

        Two p with the same rank give the same mask, so that the curve over p is made of stairs;
        each stair is evaluated once.
        """
        points: list[SweepPoint] = []
        count = len(self.suite.tasks)
        for method in ("sta", "random_mask"):
            stairs: dict[int, float] = {}
            for p in sorted({*self.settings.p_grid, self.p}):
                # The tables' own p names its stair, so that both look at the same model.
                stair = rank(count, p)
                stairs.setdefault(stair, self.p if stair == rank(count, self.p) else p)
                points.append(self.sweep_point(method, "p", Fusion(method, p=stairs[stair]), value=p))
        for scale in sorted({*self.settings.scale_grid, self.settings.scale}):
            points.append(
                self.sweep_point("task_arithmetic", "scale", Fusion("task_arithmetic", scale=scale))
            )
        points.append(self.sweep_point("average", "none", Fusion("average")))
        points.append(self.sweep_point("zero_shot", "none", Fusion("task_arithmetic", scale=0.0)))
        return points

    def forget(self, task: str, method: str) -> ForgettingRow:
        """The pretrained model after forgetting one task: target and control."""
        suite, settings, source = self.suite, self.settings, self.models.sources[task]
        version = f"{task}_{method}"

        def work(folder: Path) -> dict[str, Any]:
            module = ForgetModule(
                target=suite.members[task].spec,
                finetuned=source.finetuned,
                importance=source.importance,
                encoder=settings.encoder,
                pretrained=settings.pretrained,
                image_size=settings.image_size,
                method=method,
                p=self.p,
                scale=settings.forget_scale if method == "task_arithmetic" else None,
                seed=settings.seed,
                target_head=source.head,
                control_head=str(self.models.heads[suite.control]),
            )
            data = suite.evaluation((task,), "test", control=True)
            clear_run(self.models.runs, "forget", version)
            found = evaluate(
                suite, module, data, label=f"forget {task}: {method}", runs=(self._folder, "forget", version)
            )
            target, control = found["accuracy"][task], found["accuracy"][suite.control]
            return {**found, "outcome": f"target {target:.1f}%, control {control:.1f}%"}

        key: dict[str, Any] = {**suite.identity("test", task, suite.control), "method": method}
        inputs = {
            **suite.files(task, suite.control),
            **self._head_files(task, suite.control),
            "encoder": _encoder(source),
        }
        if method == "task_arithmetic":
            key["scale"] = settings.forget_scale
        else:
            key["p"] = self.p
        if method == "random_mask":
            key["seed"] = settings.seed
        if method == "sta" and source.importance is not None:
            inputs["importance"] = Path(source.importance)
        method_source = FORGET_METHODS[method].__module__
        step = self.runner.run(
            f"forget/{version}", key, work, inputs, (*EVALUATION_SOURCE, MERGED_SOURCE, method_source)
        )
        accuracy = step.result["accuracy"]
        return ForgettingRow(task, method, accuracy[task], accuracy[suite.control])

    def _fuse(self, group: str, fusion: Fusion, split: Split, *, logged: bool, save: bool) -> Step:
        suite, settings = self.suite, self.settings

        def work(folder: Path) -> dict[str, Any]:
            module = MergeModule(
                tasks={suite.members[task].spec: source for task, source in self.models.sources.items()},
                encoder=settings.encoder,
                pretrained=settings.pretrained,
                image_size=settings.image_size,
                method=fusion.method,
                measure=fusion.measure,
                p=self.p if fusion.p is None else fusion.p,
                scale=fusion.scale,
                normalize=settings.normalize,
                seed=settings.seed,
            )
            data = suite.evaluation(suite.tasks, split, control=False)
            runs = (self._folder, group, fusion.name) if logged else None
            if logged:
                clear_run(self.models.runs, group, fusion.name)
            found = evaluate(suite, module, data, label=f"{group} {fusion.name}", runs=runs)
            if save:
                module.save(folder / FUSED)
            return {
                **found,
                "kept": module.merge().kept if logged else {},
                "relative_change": module.change["relative_norm"],
                "outcome": self._outcome(found),
            }

        key = {
            **suite.identity(split, *suite.tasks),
            **fusion.key(settings.normalize, settings.seed),
            "saved": save,
        }
        inputs = {**suite.files(*suite.tasks), **self._head_files(*suite.tasks)}
        for task, source in self.models.sources.items():
            inputs[f"encoder/{task}"] = _encoder(source)
            if fusion.method == "sta" and fusion.measure != "amp" and source.importance is not None:
                inputs[f"importance/{task}"] = Path(source.importance)
        return self.runner.run(
            f"{group}/{fusion.name}",
            key,
            work,
            inputs,
            (*EVALUATION_SOURCE, MERGED_SOURCE, FUSION_METHODS[fusion.method].__module__),
        )

    def _plain(self, heads: Mapping[str, Path], weights: str | None = None) -> MultiTaskEvaluation:
        settings = self.settings
        return MultiTaskEvaluation(
            encoder=settings.encoder,
            pretrained=settings.pretrained,
            weights=weights,
            heads={name: str(path) for name, path in heads.items()},
            image_size=settings.image_size,
        )

    def _head_files(self, *names: str) -> dict[str, Path]:
        return {f"head/{name}": self.models.heads[name] for name in names}

    def _row(
        self,
        key: str,
        label: str,
        found: Mapping[str, Any],
        *,
        reference: bool = False,
        fusion: Fusion | None = None,
        change: float | None = None,
    ) -> FusionRow:
        tasks = self.suite.tasks
        return FusionRow(
            key=key,
            label=label,
            accuracy={task: found["accuracy"][task] for task in tasks},
            correct={task: found["correct"][task] for task in tasks},
            reference=reference,
            scale=None if fusion is None else fusion.scale,
            p=None if fusion is None else fusion.p,
            relative_change=change,
        )

    def _outcome(self, found: Mapping[str, Any]) -> str:
        tasks = {task: value for task, value in found["accuracy"].items() if task != self.suite.control}
        return f"{average_accuracy(tasks):.1f}%" + (" on average" if len(tasks) > 1 else "")


def _encoder(source: TaskSource) -> Path:
    """The file of a task's fine-tuned encoder, which every task of the chain has."""
    assert source.finetuned is not None
    return Path(source.finetuned)
