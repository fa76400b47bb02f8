"""One merge or one forgetting: which files it reads, what it does with them, what the file that it writes says."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from sta_lightning.arithmetic import Dare, Merged, MergeMethod
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.methods import refuse_several
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, Sink, run
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.engine.files import (
    MERGE_MEASURES,
    READ_MEASURES,
    TaskSource,
    open_encoder,
    open_grams,
    open_scores,
    open_task,
)
from sta_lightning.engine.heads import TaskHead, UnderPrefix, head_metadata, head_tensors
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import provenance, streamed
from sta_lightning.weights.formats import weight_files


@dataclass(frozen=True)
class Pretrained:
    """The pretrained encoder.

    Attributes:
        name: the encoder's name.
        tensors: its tensors.
        prefix: what stands in front of their names in files.
        file: where they come from; nothing if a library made them.
        digest: digest of the tensors, where there is no file.
        image_size: side of its input in pixels; nothing for its own.
        tag: what its weights were asked for by, where that is no file: a tag of open_clip, or
            ``random``.
    """

    name: str
    tensors: SourceDict
    prefix: str
    file: Path | None = None
    digest: str | None = None
    image_size: int | None = None
    tag: str | None = None


class Job(ABC):
    """What fusing and forgetting share.

    Args:
        method: what is done.
        measure: the importance that the method goes by.
        dtype: type of the merged weights; nothing for float32, or for that of the file of the model
            that is changed.
        device: where the arithmetic is done.

    Raises:
        StaError: there is no such measure.
    """

    def __init__(
        self,
        name: str,
        method: MergeMethod,
        measure: str,
        dtype: torch.dtype | None,
        device: torch.device | None,
    ) -> None:
        if measure not in MERGE_MEASURES:
            raise StaError(
                f"measure={measure!r} was asked for; choose one of {listed(MERGE_MEASURES, len(MERGE_MEASURES))}."
            )
        self.name, self.method, self._dtype, self._device = name, method, dtype, device
        self._measure = method.measure or measure

    @abstractmethod
    def problem(self, pretrained: Pretrained, stack: ExitStack) -> Problem:
        """Open the files.

        Raises:
            StaError: one is missing or broken, or does not fit the pretrained encoder.
        """

    @abstractmethod
    def origin(self, pretrained: Pretrained) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        """The kind of file that is written, the settings, and the sources by their role."""

    def result_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The type of a merged tensor whose base is stored in the given one."""
        return self._dtype or torch.float32

    def in_memory(self, pretrained: Pretrained) -> Merged:
        """Merge, and keep the result.

        Raises:
            StaError: a source is missing or does not fit, or an entry is NaN or infinite.
        """
        with ExitStack() as stack:
            problem = self.problem(pretrained, stack)
            like = {
                name: torch.empty(source.shape, dtype=self.result_dtype(source.dtype))
                if source.dtype.is_floating_point
                else source.read(slice(0, source.shape.numel()), source.dtype).reshape(source.shape)
                for name, source in problem.base.items()
            }
            sink = MemorySink(like, None)
            merged = Merged(sink.weights, run(self.method, problem, sink, device=self._device))
            self._check_unchanged(problem)
        return merged

    def write(
        self,
        pretrained: Pretrained,
        output: str | Path,
        processes: Processes | None = None,
        heads: Mapping[str, TaskHead] | None = None,
    ) -> Kept:
        """Merge into a file, whole or not at all; the model is in memory a piece at a time.

        Args:
            pretrained: the pretrained encoder.
            output: a safetensors file. Its tensors are named as in the pretrained model's file, and
                its metadata holds the method, its settings, the package's version and the SHA-256
                of every source.
            processes: who merges together; every one of them calls this.
            heads: by task: what goes into the file beside the encoder, for who classifies with it.

        Returns:
            The shares kept, see :func:`~sta_lightning.arithmetic.run.run`.

        Raises:
            StaError: as :meth:`in_memory`, or if the file cannot be written; nothing has been
                changed then.
        """
        group = Alone() if processes is None else processes
        with ExitStack() as stack:
            opened: list[Problem] = []
            together(group, lambda: opened.append(self.problem(pretrained, stack)))
            (problem,) = opened
            planned = {
                pretrained.prefix + name: (
                    source.shape,
                    self.result_dtype(source.dtype) if source.dtype.is_floating_point else source.dtype,
                )
                for name, source in problem.base.items()
            }
            beside = head_tensors(heads or {}, planned)
            planned |= {name: (head.shape, head.dtype) for name, head in beside.items()}
            metadata = together(group, lambda: {} if group.rank else self.metadata(pretrained))[0]
            if heads:
                metadata = {**metadata, **head_metadata(heads)}
            with streamed(output, planned, metadata, group) as file:
                sink = UnderPrefix(file, pretrained.prefix)
                kept = run(self.method, problem, sink, device=self._device, processes=group)
                for name, head in beside.items() if group.rank == 0 else ():
                    file.write(name, 0, head.flatten())
                together(group, lambda: self._finish(problem, sink, group))
        return kept

    def _finish(self, problem: Problem, sink: Sink, group: Processes) -> None:
        """Copy the integer buffers of the model that is changed, and see that no file has changed meanwhile."""
        for name, source in problem.base.items():
            if group.rank == 0 and not source.dtype.is_floating_point:
                sink.write(name, 0, source.read(slice(0, source.shape.numel()), source.dtype))
        self._check_unchanged(problem)

    def _check_unchanged(self, problem: Problem) -> None:
        of_tasks = (*problem.finetuned.values(), *problem.scores.values(), *problem.grams.values())
        for model in (problem.base, problem.origin or {}, *of_tasks):
            for source in model.values():
                source.check()

    def changed(
        self, path: str | None, what: str, pretrained: Pretrained, stack: ExitStack
    ) -> tuple[SourceDict, str]:
        """The model that is changed, and what to call it: that of a file, or the pretrained one."""
        if path is None:
            return pretrained.tensors, "the pretrained encoder"
        return open_encoder(path, pretrained.tensors, what, stack)[0], f"{what} ('{path}')"

    def metadata(self, pretrained: Pretrained, kind: str | None = None, **more: Any) -> dict[str, str]:
        """What a written file says of itself.

        Args:
            pretrained: the pretrained encoder.
            kind: what sort of file it is, before the method's name; nothing for a merged model.
            more: settings besides the job's.
        """
        made, settings, sources = self.origin(pretrained)
        kind = made if kind is None else f"{kind}:{self.name}"
        if pretrained.file is not None:
            sources = {"pretrained": pretrained.file, **sources}
        # A checkpoint in shards is several files.
        files = {role: weight_files(path) for role, path in sources.items()}
        named = {
            role if len(parts) == 1 else f"{role}/{part.name}": part
            for role, parts in files.items()
            for part in parts
        }
        found = provenance(kind, {**settings, **more}, named)
        if pretrained.digest is not None:
            found["pretrained_sha256"] = pretrained.digest
        return found

    def _settings(self, pretrained: Pretrained) -> dict[str, Any]:
        found = {
            "method": self.name,
            "encoder": pretrained.name,
            "image_size": pretrained.image_size,
            **({} if pretrained.tag is None else {"pretrained": pretrained.tag}),
            **self.method.settings(),
        }
        return found | ({"measure": self._measure} if self.method.needs_importance else {})

    def _reads_scores(self) -> bool:
        return self.method.needs_importance and self._measure in READ_MEASURES


class FusionJob(Job):
    """Fuse encoders that were fine-tuned on several tasks (Eq. 14-19).

    Args:
        tasks: by task name: the files of that task.
        name: the method's name, for the metadata.
        method: how they are fused.
        base: weights of the model that masked task vectors are added to; nothing for the pretrained
            one.
        measure: the importance that the method goes by, unless it is defined with one of its own.
        dare: what is dropped from the task vectors before they are merged; nothing for nothing.
        dtype: type of the merged weights; nothing for float32.
        device: where the arithmetic is done; nothing for the CPU.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSource],
        name: str,
        method: MergeMethod,
        *,
        base: str | None = None,
        measure: str = "lp",
        dare: Dare | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(name, method, measure, dtype, device)
        self.tasks, self.base, self.dare = dict(tasks), base, dare
        if dare is not None and method.takes_vectors:
            raise StaError(
                f"method '{name}' adds masked task vectors as they are; DARE cannot be put in front of it. Leave dare out."
            )
        if base is not None and not method.takes_vectors:
            raise StaError(
                f"method '{name}' starts from the pretrained encoder, but base='{base}' is given. Only masked task vectors "
                "(method 'vectors') are added to another model."
            )

    @override
    def problem(self, pretrained: Pretrained, stack: ExitStack) -> Problem:
        finetuned: dict[str, SourceDict] = {}
        scores: dict[str, SourceDict] = {}
        grams: dict[str, SourceDict] = {}
        for task, files in self.tasks.items():
            finetuned[task], metadata = open_task(task, files, self.method, pretrained.tensors, stack)
            if self.method.needs_importance:
                scores[task] = open_scores(
                    files.importance,
                    self._measure,
                    what=f"importance of task {task!r}",
                    finetuned=finetuned[task],
                    pretrained=pretrained.tensors,
                    digest=metadata.get("weights_sha256"),
                    stack=stack,
                )
            if self.method.needs_grams:
                grams[task] = open_grams(
                    files.gram,
                    what=f"task {task!r}",
                    title=self.method.title,
                    finetuned=finetuned[task],
                    digest=metadata.get("weights_sha256"),
                    stack=stack,
                )
        base, title = self.changed(self.base, "the model that is added to", pretrained, stack)
        problem = Problem(
            base=base,
            origin=None if base is pretrained.tensors else pretrained.tensors,
            finetuned=finetuned,
            scores=scores,
            grams=grams,
            base_title=title,
            origin_title="the pretrained encoder",
            titles={
                task: f"task {task!r} ('{files.finetuned or files.vector}')"
                for task, files in self.tasks.items()
            },
            score_titles={
                task: f"the importance of task {task!r}"
                + (f" ('{files.importance}')" if self._reads_scores() else "")
                for task, files in self.tasks.items()
            },
        )
        return problem if self.dare is None else self.dare.drops(problem)

    @override
    def origin(self, pretrained: Pretrained) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        sources: dict[str, str | Path] = {} if self.base is None else {"base": self.base}
        for task, files in self.tasks.items():
            sources |= _task_sources(task, files)
            if self._reads_scores() and files.importance is not None:
                sources[f"importance/{task}"] = files.importance
            if self.method.needs_grams and files.gram is not None:
                sources[f"gram/{task}"] = files.gram
        settings = {**self._settings(pretrained), "tasks": sorted(self.tasks)}
        if self.dare is not None:
            settings["dare"] = dataclasses.asdict(self.dare)
        return f"fused:{self.name}", settings, sources


class ForgettingJob(Job):
    """Make a model forget one task (Eq. 20).

    Args:
        target: the task to forget.
        files: its files.
        name: the method's name, for the metadata.
        method: how it is forgotten.
        model: weights of the model that shall forget; nothing for the pretrained one.
        more: weights of further models fine-tuned on the same task, for a method that takes
            several.
        measure: the importance that the method goes by.
        dtype: type of the weights made; nothing for that of ``model``, float32 for the pretrained
            one.
        device: where the arithmetic is done; nothing for the CPU.
    """

    def __init__(
        self,
        target: str,
        files: TaskSource,
        name: str,
        method: MergeMethod,
        *,
        model: str | None = None,
        more: Sequence[str] = (),
        measure: str = "lp",
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(name, method, measure, dtype, device)
        refuse_several(name, method, len(more))
        self.target, self.files, self.model = target, files, model
        # By what they are called in messages, and in the metadata.
        self.more = {f"{target} ({number})": path for number, path in enumerate(more, 2)}

    @override
    def result_dtype(self, stored: torch.dtype) -> torch.dtype:
        return self._dtype or (torch.float32 if self.model is None else stored)

    @override
    def problem(self, pretrained: Pretrained, stack: ExitStack) -> Problem:
        task, files = self.target, self.files
        finetuned, metadata = open_task(task, files, self.method, pretrained.tensors, stack)
        others = {
            name: open_task(name, TaskSource(path), self.method, pretrained.tensors, stack)[0]
            for name, path in self.more.items()
        }
        base, title = self.changed(self.model, "the model that shall forget", pretrained, stack)
        scores: dict[str, SourceDict] = {}
        if self.method.needs_importance:
            scores[task] = open_scores(
                files.importance,
                self._measure,
                what=f"importance of task {task!r}",
                finetuned=finetuned,
                pretrained=pretrained.tensors,
                digest=metadata.get("weights_sha256"),
                stack=stack,
            )
        return Problem(
            base=base,
            origin=None if base is pretrained.tensors else pretrained.tensors,
            finetuned={task: finetuned, **others},
            scores=scores,
            base_title=title,
            origin_title="the pretrained encoder",
            titles={
                task: f"task {task!r} ('{files.finetuned or files.vector}')",
                **{name: f"task {name!r} ('{path}')" for name, path in self.more.items()},
            },
            score_titles={
                task: f"the importance of task {task!r}"
                + (f" ('{files.importance}')" if self._reads_scores() else "")
            },
        )

    @override
    def origin(self, pretrained: Pretrained) -> tuple[str, dict[str, Any], dict[str, str | Path]]:
        sources = _task_sources(self.target, self.files)
        sources |= {f"finetuned/{name}": path for name, path in self.more.items()}
        if self.model is not None:
            sources["model"] = self.model
        if self._reads_scores() and self.files.importance is not None:
            sources[f"importance/{self.target}"] = self.files.importance
        return f"forgotten:{self.name}", {**self._settings(pretrained), "target": self.target}, sources


def _task_sources(task: str, files: TaskSource) -> dict[str, str | Path]:
    roles = {"finetuned": files.finetuned, "vector": files.vector}
    return {f"{role}/{task}": path for role, path in roles.items() if path is not None}
