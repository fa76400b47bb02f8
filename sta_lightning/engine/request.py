"""What a merge is asked to do: which files it reads, opened as a problem, and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic import MergeMethod, StateDict, make_method, torch_dtype
from sta_lightning.arithmetic.coefficients import Coefficients
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import SourceDict, in_memory
from sta_lightning.engine.files import (
    MERGE_MEASURES,
    READ_MEASURES,
    open_encoder,
    open_grams,
    open_scores,
    open_task,
)
from sta_lightning.engine.opened import Opened, Pretrained
from sta_lightning.engine.part import Part
from sta_lightning.engine.rest import changed, open_rest
from sta_lightning.engine.sources import TaskSource, called
from sta_lightning.engine.unchanged import equal, tell_equal
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.positions import Resampled


class Request(ABC):
    """One merge: which files it reads, what it does with them, what the file that it writes says.

    Args:
        tasks: the models that are read: their files by task name.
        name: the method's name, for the metadata.
        method: what is done.
        start: weights of the model that is changed; ``None`` for the pretrained one.
        measure: the importance that the method goes by, unless it is defined with one of its own.
        dtype: type of the weights made; ``None`` for that of the model that is changed.
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
        measure: str = "lp",
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
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
