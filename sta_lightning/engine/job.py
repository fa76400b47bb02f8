from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic import Merged, MergeMethod, StateDict, make_method, torch_dtype
from sta_lightning.arithmetic.coefficients import Coefficients
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, Sink, run
from sta_lightning.arithmetic.sources import SourceDict, in_memory
from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.engine.files import (
    MERGE_MEASURES,
    READ_MEASURES,
    open_encoder,
    open_grams,
    open_scores,
    open_task,
)
from sta_lightning.engine.folder import Opener, folder_like
from sta_lightning.engine.heads import TaskHead, head_metadata, head_tensors
from sta_lightning.engine.opened import Opened, Pretrained, Whole
from sta_lightning.engine.part import Part
from sta_lightning.engine.processes import own_device
from sta_lightning.engine.rest import changed, open_rest
from sta_lightning.engine.sources import TaskSource, called, check_output
from sta_lightning.engine.unchanged import Watched, equal, tell, tell_equal
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import SAFETENSORS, provenance, streamed
from sta_lightning.weights.formats import copy_tensors, origins_entry, weight_files
from sta_lightning.weights.positions import Resampled

SHARD = 5_000_000_000
"""Bytes of tensors in one file of a folder, as transformers has it."""


class Job(ABC):
    """One merge: which files it reads, what it does with them, what the file that it writes says.

    Args:
        tasks: the models that are read: their files by task name.
        name: the method's name, for the metadata.
        method: what is done.
        start: weights of the model that is changed; ``None`` for the pretrained one.
        measure: the importance that the method goes by, unless it is defined with one of its own.
        dtype: type of the merged weights; ``None`` for that of the model that is changed.
        device: where the arithmetic is done; ``None`` for the CPU.
        part: which tensors are merged; ``None`` for all.
        coefficients: by task and by layer; ``None`` for the method's own.

    Raises:
        StaError: there is no such measure.
    """

    kind: str
    """The kind of file that is written."""
    start_role: str
    """What the metadata calls the model that is changed."""
    start_title: str
    """What messages call it."""
    fallback: str
    """The method for a text tower, where the job's own reads files made of image encoders."""
    methods: Mapping[str, type[MergeMethod]]
    """Where that is found."""
    control_gram: str | None = None
    """The file with the Gram matrices of what a forgetting spares."""

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
        part: Part | None = None,
        coefficients: Coefficients | None = None,
    ) -> None:
        if measure not in MERGE_MEASURES:
            raise StaError(
                f"measure={measure!r} was asked for; choose one of {listed(MERGE_MEASURES, len(MERGE_MEASURES))}."
            )
        self.tasks, self.name, self.method, self.start = dict(tasks), name, method, start
        self._dtype, self._device = dtype, device
        self._measure = method.measure or measure
        self.part = part or Part()
        self.coefficients = (coefficients or Coefficients()).over(self.tasks)
        self._held: dict[str, SourceDict] = {}
        self._resampled: dict[str, str] = {}  # by task: which tensor, from what to what

    def retype(self, dtype: torch.dtype | str | None, device: torch.device | None) -> None:
        """Take another type of the result, and another place for the arithmetic.

        ``None`` for the type, and the device, of the model that is changed.

        Raises:
            StaError: there is no such type.
        """
        self._dtype, self._device = torch_dtype(dtype), device

    def hold(self, task: str, encoder: StateDict, rest: StateDict) -> None:
        """Take a task's importance from memory: of the image encoder, and of the rest if any."""
        self.tasks[task] = replace(self.tasks[task], importance=encoder)  # type: ignore[arg-type]
        self._held[task] = in_memory(rest)

    def scored(self) -> tuple[str, ...]:
        """The tasks whose importance or Gram matrices a method reads that needs them: all."""
        return tuple(self.tasks)

    def adjusted(self, problem: Problem) -> Problem:
        """The problem with what is done to it before the method."""
        return self.coefficients.adjusted(problem)

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
        origin = self.part.of(pretrained.tensors)
        self.part.check(pretrained.tensors)
        self.coefficients.check({**origin, **self.part.of(pretrained.rest)})
        for task, files in self.tasks.items():
            finetuned[task], metadata = open_task(
                task, files, self.method, pretrained.tensors, stack, pretrained.file, self.part
            )
            for name, source in finetuned[task].items():
                if isinstance(source, Resampled):
                    self._resampled[task] = f"{name}, {source.said}"
            digest = metadata.get("weights_sha256")
            if self.method.needs_importance and task in self.scored():
                found = open_scores(task, files, self._measure, finetuned[task], origin, digest, stack)
                scores[task] = self.part.of(found)
            if self.method.needs_grams and task in self.scored():
                title, tensors = self.method.title, pretrained.tensors
                read = open_grams(f"task {task!r}", files.gram, title, tensors, digest, stack)
                grams[task] = self.part.of(read)
        if not self.method.takes_vectors:
            floating = {name: s for name, s in origin.items() if s.dtype.is_floating_point}
            tell_equal([self._titles()[task] for task, model in finetuned.items() if equal(floating, model)])
        from_file = self._measure in READ_MEASURES
        base, title = self._base(pretrained, stack), "the pretrained encoder"
        if self.start is not None:
            title = f"{self.start_title} ({called(self.start)})"
        return self.adjusted(
            Problem(
                base=self.part.of(base),
                origin=None if self.start is None else origin,
                finetuned=finetuned,
                scores=scores,
                grams=grams,
                control=self._control(pretrained, stack),
                base_title=title,
                origin_title="the pretrained encoder",
                titles=self._titles(),
                score_titles={
                    t: f"the importance of task {t!r}"
                    + (f" ({called(self.tasks[t].importance)})" if from_file else "")
                    for t in scores
                },
            )
        )

    def _control(self, pretrained: Pretrained, stack: ExitStack) -> SourceDict:
        """The Gram matrices of what shall not change; empty for a method without."""
        if not self.method.spares:
            return {}
        title, path = self.method.title, self.control_gram
        return self.part.of(
            open_grams("the control", path, title, pretrained.tensors, None, stack, "'control_gram'")
        )

    def _base(self, pretrained: Pretrained, stack: ExitStack) -> SourceDict:
        """All tensors of the encoder that is changed."""
        if self.start is None:
            return pretrained.tensors
        return open_encoder(self.start, pretrained.tensors, self.start_title, stack, pretrained.file)[0]

    def opened(self, pretrained: Pretrained, stack: ExitStack) -> Opened:
        """Open the files of a whole model.

        Raises:
            StaError: as :meth:`problem`.
        """
        problem = self.problem(pretrained, stack)
        rest = pretrained.rest if self.start is None else open_rest(self.start, stack)
        tower = bool(rest)
        left = self.part.outside(self._base(pretrained, stack))
        copied = {**rest, **{pretrained.prefix + name: source for name, source in left.items()}}
        if not (rest and pretrained.rest) or self.method.takes_vectors:
            return Opened(problem, copied, tower)
        origin = self.part.of(pretrained.rest)
        found = {
            task: self.part.of(open_rest(files.finetuned or "", stack, pretrained.file))
            for task, files in self.tasks.items()
        }
        finetuned = changed(origin, found, self._titles())
        if not finetuned:
            return Opened(problem, copied, tower)
        rest = self.part.of(rest)
        name, method, measure = self.name, self.method, self._measure
        without = [task for task in self.scored() if not self._held.get(task)]
        if method.needs_grams or (method.needs_importance and measure in READ_MEASURES and without):
            name, method = self.fallback, make_method(self.fallback, self.methods)
        scores = {
            task: self.part.of(self._held.get(task, {}))
            or open_scores(task, TaskSource(), measure, model, origin, None, stack)
            for task, model in finetuned.items()
            if method.needs_importance and task in self.scored()
        }
        changes = Problem(
            base=rest,
            origin=None if self.start is None else origin,
            finetuned=finetuned,
            scores=scores,
            base_title="the text tower that is changed",
            origin_title="the pretrained text tower",
            titles=self._titles(),
        )
        copied = {name: source for name, source in copied.items() if name not in rest}
        return Opened(problem, copied, tower, self.adjusted(changes), (name, method))

    def _titles(self) -> dict[str, str]:
        return {t: f"task {t!r} ({called(f.finetuned or f.vector)})" for t, f in self.tasks.items()}

    def in_memory(self, pretrained: Pretrained) -> Merged:
        """Merge the image encoder, and keep the result.

        Raises:
            StaError: a source is missing or does not fit, or an entry is NaN or infinite.
        """
        with ExitStack() as stack:
            problem = self.problem(pretrained, stack)
            return self._kept(self.method, problem, self.part.outside(self._base(pretrained, stack)))

    def whole(self, pretrained: Pretrained) -> Whole:
        """Merge a whole model, and keep the result.

        Raises:
            StaError: as :meth:`in_memory`.
        """
        with self._opened(pretrained, Alone()) as opened:
            metadata = self.metadata(pretrained, **opened.described)
            encoder = self._kept(self.method, opened.problem)
            if opened.changes is not None and opened.method is not None:
                rest = self._kept(opened.method[1], opened.changes, opened.copied)
            else:
                rest = Merged(self._copied(opened.copied).weights)
        return Whole(encoder, rest, metadata)

    def _kept(self, method: MergeMethod, problem: Problem, beside: SourceDict | None = None) -> Merged:
        """A merge in memory, where the model that is changed is, with what is copied ``beside``."""
        sink = self._sink(problem.base)
        kept = self._run(method, problem, sink, Alone())
        return Merged({**sink.weights, **self._copied(beside or {}).weights}, kept)

    def _copied(self, tensors: SourceDict) -> MemorySink:
        sink = self._sink(tensors)
        copy_tensors(tensors, sink)
        return sink

    def _sink(self, base: SourceDict) -> MemorySink:
        like = {
            name: torch.empty(shape, dtype=dtype, device=self._device or base[name].device)
            for name, (shape, dtype) in self._planned(base).items()
        }
        return MemorySink(like, None)

    def write(
        self,
        pretrained: Pretrained,
        output: str | Path,
        processes: Processes | None = None,
        heads: Mapping[str, TaskHead] | None = None,
        shard_size: int = SHARD,
    ) -> Kept:
        """Merge into a file, whole or not at all; the model is in memory a piece at a time.

        Args:
            pretrained: the pretrained encoder.
            output: a safetensors file: a whole CLIP, in open_clip's names, if the model that is
                changed is one, else an image encoder. Its metadata holds the method, its settings,
                the package's version and the SHA-256 of every source. Or, if that model is a
                folder, a new folder in the same layout. A tensor of several names is written under
                all of them into a file, and once into a folder: transformers shares it again.
            processes: who merges together; every one of them calls this.
            heads: by task: what goes into the file beside the encoder, for who classifies with it.
            shard_size: bytes of tensors in one file of a folder.

        Returns:
            The shares kept, see :func:`~sta_lightning.arithmetic.run.run`.

        Raises:
            StaError: as :meth:`in_memory`, or if the file cannot be written; nothing has been
                changed then.
        """
        group = Alone() if processes is None else processes
        like = pretrained.file if self.start is None else Path(self.start)
        check_output(output, like)
        if Path(output).suffix != SAFETENSORS:
            with folder_like(Path(str(like)), output, group, shard_size) as opener:
                return self._write(pretrained, opener, group, heads or {})
        opener = partial(streamed, output, processes=group, shared=pretrained.shared)
        return self._write(pretrained, opener, group, heads or {})

    def _write(
        self, pretrained: Pretrained, opener: Opener, group: Processes, heads: Mapping[str, TaskHead]
    ) -> Kept:
        with self._opened(pretrained, group) as opened:
            base = {pretrained.prefix + name: source for name, source in opened.problem.base.items()}
            changes = {} if opened.changes is None else opened.changes.base
            planned = self._planned({**base, **changes, **opened.copied})
            beside = head_tensors(heads, planned)
            planned |= {name: (head.shape, head.dtype) for name, head in beside.items()}
            metadata = together(
                group, lambda: {} if group.rank else self.metadata(pretrained, **opened.described)
            )[0]
            metadata |= head_metadata(heads) if heads else {}
            with opener(planned, metadata) as file:
                kept = self._run(self.method, opened.problem, file.under(pretrained.prefix), group)
                if opened.changes is not None and opened.method is not None:
                    self._run(opened.method[1], opened.changes, file, group)
                together(group, lambda: None if group.rank else copy_tensors(opened.copied, file))
                for name, head in beside.items() if group.rank == 0 else ():
                    file.write(name, 0, head.flatten())
        return kept

    @contextmanager
    def _opened(self, pretrained: Pretrained, group: Processes) -> Iterator[Opened]:
        """What is merged, while its files are open; every process has it or none."""
        with ExitStack() as stack:
            found: list[Opened] = []
            together(group, lambda: found.append(self.opened(pretrained, stack)))
            yield found[0]

    def _planned(self, base: SourceDict) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of every tensor that is made."""
        return {
            name: (source.shape, (self._dtype if source.dtype.is_floating_point else None) or source.dtype)
            for name, source in base.items()
        }

    def _run(self, method: MergeMethod, problem: Problem, sink: Sink, group: Processes) -> Kept:
        watched = Watched(sink, problem.base)
        kept = run(method, problem, watched, device=own_device(self._device), processes=group)

        def finish() -> bool:
            _finish(problem, sink, group)
            return watched.changed

        changed = any(together(group, finish))
        if group.rank == 0:
            tell(problem, kept, changed=changed)
        return kept

    def metadata(self, pretrained: Pretrained, kind: str | None = None, **more: Any) -> dict[str, str]:
        """What a written file says of itself.

        Args:
            pretrained: the pretrained encoder.
            kind: what sort of file it is, before the method's name; ``None`` for a merged model.
            more: settings besides the job's.
        """
        settings = {**self.described(pretrained), **more}
        roles = self._roles(pretrained)
        found = provenance(f"{kind or self.kind}:{self.name}", settings, source_files(roles))
        models = ("pretrained", self.start_role, "finetuned")
        found |= origins_entry({role: path for role, path in roles.items() if role.split("/")[0] in models})
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
            **self.coefficients.settings(),
            **({"measure": self._measure} if self.method.needs_importance else {}),
            **{key: list(getattr(self.part, key)) for key in ("only", "skip") if getattr(self.part, key)},
            **({"resampled": self._resampled} if self._resampled else {}),
            **self.settings(),
        }

    def _roles(self, pretrained: Pretrained) -> dict[str, str | Path]:
        """Everything that is read, by its role."""
        roles = {"pretrained": pretrained.file, self.start_role: self.start}
        for task, files in self.tasks.items():
            roles |= {f"finetuned/{task}": files.finetuned, f"vector/{task}": files.vector}
            if task in self.scored():
                if self.method.needs_importance and self._measure in READ_MEASURES:
                    roles[f"importance/{task}"] = files.importance
                if self.method.needs_grams:
                    roles[f"gram/{task}"] = files.gram
        if self.method.spares:
            roles["control_gram"] = self.control_gram
        return {role: path for role, path in roles.items() if isinstance(path, str | Path)}


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
    of_tasks = (
        *problem.finetuned.values(),
        *problem.scores.values(),
        *problem.grams.values(),
        problem.control,
    )
    for model in (problem.base, problem.origin or {}, *of_tasks):
        for source in model.values():
            source.check()
