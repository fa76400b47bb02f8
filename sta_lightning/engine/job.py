from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic import Merged, MergeMethod
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, Sink, run
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.engine.files import (
    MERGE_MEASURES,
    READ_MEASURES,
    open_encoder,
    open_grams,
    open_scores,
    open_task,
)
from sta_lightning.engine.heads import TaskHead, head_metadata, head_tensors
from sta_lightning.engine.sources import TaskSource
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import provenance, streamed
from sta_lightning.weights.formats import weight_files


@dataclass(frozen=True)
class Pretrained:
    """The pretrained encoder.

    Attributes:
        name: the encoder's name; ``None`` where nobody tells it.
        tensors: its tensors.
        prefix: what stands in front of their names in files.
        file: where they come from; ``None`` if a library made them.
        digest: digest of the tensors, where there is no file.
        image_size: side of its input in pixels; ``None`` for its own.
        tag: what its weights were asked for by, where that is no file: a tag of open_clip, or
            ``random``.
        architecture: what it is by its shapes, in words, where the name was not asked for.
    """

    name: str | None
    tensors: SourceDict
    prefix: str
    file: Path | None = None
    digest: str | None = None
    image_size: int | None = None
    tag: str | None = None
    architecture: str | None = None


class Job(ABC):
    """One merge: which files it reads, what it does with them, what the file that it writes says.

    Args:
        tasks: the models that are read: their files by task name.
        name: the method's name, for the metadata.
        method: what is done.
        start: weights of the model that is changed; ``None`` for the pretrained one.
        measure: the importance that the method goes by, unless it is defined with one of its own.
        dtype: type of the merged weights; ``None`` for what :meth:`result_dtype` says.
        device: where the arithmetic is done; ``None`` for the CPU.

    Raises:
        StaError: there is no such measure.
    """

    kind: str
    """The kind of file that is written."""
    start_role: str
    """What the metadata calls the model that is changed."""
    start_title: str
    """What messages call it."""

    def __init__(
        self,
        tasks: Mapping[str, TaskSource],
        name: str,
        method: MergeMethod,
        *,
        start: str | None,
        measure: str,
        dtype: torch.dtype | None,
        device: torch.device | None,
    ) -> None:
        if measure not in MERGE_MEASURES:
            raise StaError(
                f"measure={measure!r} was asked for; choose one of {listed(MERGE_MEASURES, len(MERGE_MEASURES))}."
            )
        self.tasks, self.name, self.method, self.start = dict(tasks), name, method, start
        self._dtype, self._device = dtype, device
        self._measure = method.measure or measure

    def scored(self) -> tuple[str, ...]:
        """The tasks whose importance or Gram matrices a method reads that needs them: all."""
        return tuple(self.tasks)

    def result_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The type of a merged tensor whose base is stored in the given one."""
        return self._dtype or torch.float32

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that are this kind's own, for the metadata."""

    def problem(self, pretrained: Pretrained, stack: ExitStack) -> Problem:
        """Open the files.

        Raises:
            StaError: one is missing or broken, or does not fit the pretrained encoder.
        """
        finetuned: dict[str, SourceDict] = {}
        scores: dict[str, SourceDict] = {}
        grams: dict[str, SourceDict] = {}
        for task, files in self.tasks.items():
            finetuned[task], metadata = open_task(task, files, self.method, pretrained.tensors, stack)
            digest = metadata.get("weights_sha256")
            if self.method.needs_importance and task in self.scored():
                scores[task] = open_scores(
                    task, files, self._measure, finetuned[task], pretrained.tensors, digest, stack
                )
            if self.method.needs_grams and task in self.scored():
                grams[task] = open_grams(task, files, self.method.title, finetuned[task], digest, stack)
        read = self._measure in READ_MEASURES
        base, title = pretrained.tensors, "the pretrained encoder"
        if self.start is not None:
            base, _ = open_encoder(self.start, pretrained.tensors, self.start_title, stack)
            title = f"{self.start_title} ('{self.start}')"
        return Problem(
            base=base,
            origin=None if self.start is None else pretrained.tensors,
            finetuned=finetuned,
            scores=scores,
            grams=grams,
            base_title=title,
            origin_title="the pretrained encoder",
            titles={t: f"task {t!r} ('{f.finetuned or f.vector}')" for t, f in self.tasks.items()},
            score_titles={
                t: f"the importance of task {t!r}" + (f" ('{self.tasks[t].importance}')" if read else "")
                for t in scores
            },
        )

    def in_memory(self, pretrained: Pretrained) -> Merged:
        """Merge, and keep the result.

        Raises:
            StaError: a source is missing or does not fit, or an entry is NaN or infinite.
        """
        with self._opened(pretrained, Alone()) as problem:
            planned = self._planned(problem).items()
            sink = MemorySink(
                {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in planned}, None
            )
            kept = self._run(problem, sink, Alone())
        return Merged(sink.weights, kept)

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
        with self._opened(pretrained, group) as problem:
            planned = {pretrained.prefix + name: entry for name, entry in self._planned(problem).items()}
            beside = head_tensors(heads or {}, planned)
            planned |= {name: (head.shape, head.dtype) for name, head in beside.items()}
            metadata = together(group, lambda: {} if group.rank else self.metadata(pretrained))[0]
            metadata |= head_metadata(heads) if heads else {}
            with streamed(output, planned, metadata, group) as file:
                kept = self._run(problem, file.under(pretrained.prefix), group)
                for name, head in beside.items() if group.rank == 0 else ():
                    file.write(name, 0, head.flatten())
        return kept

    @contextmanager
    def _opened(self, pretrained: Pretrained, group: Processes) -> Iterator[Problem]:
        """The problem, while its files are open; every process has it or none."""
        with ExitStack() as stack:
            opened: list[Problem] = []
            together(group, lambda: opened.append(self.problem(pretrained, stack)))
            yield opened[0]

    def _planned(self, problem: Problem) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of every tensor that is made."""
        return {
            name: (
                source.shape,
                self.result_dtype(source.dtype) if source.dtype.is_floating_point else source.dtype,
            )
            for name, source in problem.base.items()
        }

    def _run(self, problem: Problem, sink: Sink, group: Processes) -> Kept:
        kept = run(self.method, problem, sink, device=self._device, processes=group)
        together(group, lambda: _finish(problem, sink, group))
        return kept

    def metadata(self, pretrained: Pretrained, kind: str | None = None, **more: Any) -> dict[str, str]:
        """What a written file says of itself.

        Args:
            pretrained: the pretrained encoder.
            kind: what sort of file it is, before the method's name; ``None`` for a merged model.
            more: settings besides the job's.
        """
        settings = {**self.described(pretrained), **more}
        found = provenance(f"{kind or self.kind}:{self.name}", settings, self._sources(pretrained))
        return found if pretrained.digest is None else {**found, "pretrained_sha256": pretrained.digest}

    def described(self, pretrained: Pretrained) -> dict[str, Any]:
        """The settings, for metadata and loggers."""
        return {
            "method": self.name,
            "encoder": pretrained.name,
            "image_size": pretrained.image_size,
            **({} if pretrained.tag is None else {"pretrained": pretrained.tag}),
            **({} if pretrained.architecture is None else {"architecture": pretrained.architecture}),
            **self.method.settings(),
            **({"measure": self._measure} if self.method.needs_importance else {}),
            **self.settings(),
        }

    def _sources(self, pretrained: Pretrained) -> dict[str, Path]:
        """Every file that is read, by its role; a checkpoint in shards is several."""
        roles = {"pretrained": pretrained.file, self.start_role: self.start}
        for task, files in self.tasks.items():
            roles |= {f"finetuned/{task}": files.finetuned, f"vector/{task}": files.vector}
            if task in self.scored():
                if self.method.needs_importance and self._measure in READ_MEASURES:
                    roles[f"importance/{task}"] = files.importance
                if self.method.needs_grams:
                    roles[f"gram/{task}"] = files.gram
        return source_files({role: path for role, path in roles.items() if path is not None})


def source_files(roles: Mapping[str, str | Path]) -> dict[str, Path]:
    """The files behind paths by their roles, ``role/part`` for those of a checkpoint in shards."""
    return {
        role if len(parts) == 1 else f"{role}/{part.name}": part
        for role, parts in ((role, weight_files(path)) for role, path in roles.items())
        for part in parts
    }


def _finish(problem: Problem, sink: Sink, group: Processes) -> None:
    """Copy the integer buffers of the changed model, and see that no file has changed meanwhile."""
    for name, source in problem.base.items():
        if group.rank == 0 and not source.dtype.is_floating_point:
            sink.write(name, 0, source.read(slice(0, source.shape.numel()), source.dtype))
    of_tasks = (*problem.finetuned.values(), *problem.scores.values(), *problem.grams.values())
    for model in (problem.base, problem.origin or {}, *of_tasks):
        for source in model.values():
            source.check()
