"""What a merge works on: the models, and whether they go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from sta_lightning.arithmetic.checks import compare_names, compare_scores
from sta_lightning.arithmetic.entries import Entries
from sta_lightning.arithmetic.sources import SourceDict, TensorSource, Zeros
from sta_lightning.arithmetic.states import Statistics, is_weight
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.errors import StaError, listed, score_line


@dataclass(frozen=True)
class Problem:
    """The models of a merge.

    Attributes:
        base: the model that is changed: the pretrained one in a fusion, any one in a forgetting.
        finetuned: task name -> fine-tuned model.
        scores: task name -> importance; empty for a method without.
        grams: task name -> Gram matrices ``[in, in]`` by the name of the layer's weight; empty for
            a method without.
        control: the Gram matrices of what a forgetting spares, of the same layers; empty for a
            method without.
        origin: the model that the fine-tuned ones started from; None if it is ``base``.
        base_title: what to call ``base`` in a message.
        origin_title: what to call ``origin`` in a message.
        statistics: what running statistics become, which no method extrapolates: those of ``base``
            (``"pretrained"``), or the mean over the fine-tuned models (``"average"``).
        titles: task name -> what to call the fine-tuned model.
        score_titles: task name -> what to call the importance.
        scales: tensor name -> the method's coefficient there, where it is another than its own.
    """

    base: SourceDict
    finetuned: Mapping[str, SourceDict]
    scores: Mapping[str, SourceDict] = field(default_factory=dict)
    origin: SourceDict | None = None
    grams: Mapping[str, SourceDict] = field(default_factory=dict)
    control: SourceDict = field(default_factory=dict)
    statistics: Statistics = "pretrained"
    base_title: str = "the pretrained model"
    origin_title: str = "the pretrained model"
    titles: Mapping[str, str] = field(default_factory=dict)
    score_titles: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names as they are added up: sorted, so that the order given changes no digit."""
        return tuple(sorted(self.finetuned))

    @property
    def names(self) -> list[str]:
        """The tensors that take part, see :func:`~sta_lightning.arithmetic.states.is_weight`."""
        return [name for name, source in self.base.items() if is_weight(name, source.dtype)]

    @property
    def running(self) -> list[str]:
        """The running statistics of normalisation layers."""
        floating = [name for name, source in self.base.items() if source.dtype.is_floating_point]
        return [name for name in floating if not is_weight(name, self.base[name].dtype)]

    def entries(self, name: str, workers: Workers, device: torch.device | None = None) -> Entries:
        """The tensor of that name of every model; ``device`` is None for that of ``base``."""
        base = self.base[name]
        tasks = self.tasks
        scored = tasks if self.scores and is_weight(name, base.dtype) else ()
        grams = [found[name] for found in self._measured.values() if name in found]
        return Entries(
            name=name,
            base=base,
            origin=base if self.origin is None else self.origin[name],
            finetuned=tuple(self.finetuned[task][name] for task in tasks),
            scores=tuple(self.scores[task][name] for task in scored),
            titles=(
                self.base_title,
                self.origin_title,
                *(self._title(task) for task in tasks),
                *(self._score_title(task) for task in scored),
            ),
            workers=workers,
            device=device or base.device,
            grams=tuple(grams) if len(grams) == len(self._measured) else (),
        )

    @property
    def _measured(self) -> dict[str, SourceDict]:
        """The Gram matrices by whose they are: the tasks' in order, and then the control's."""
        found = {f"task '{task}'": self.grams[task] for task in self.tasks if self.grams}
        return {**found, "the control": self.control} if self.control else found

    def _title(self, task: str) -> str:
        return self.titles.get(task, f"the model fine-tuned on '{task}'")

    def _score_title(self, task: str) -> str:
        return self.score_titles.get(task, f"the importance of task '{task}'")

    def of_vectors(self, vector: Callable[[str, str, TensorSource, TensorSource], TensorSource]) -> Problem:
        """The same merge of other task vectors.

        The fine-tuned models' place is taken by the task vectors themselves, and the origin's by
        zeros, so that nothing is rounded on the way.

        Args:
            vector: (task, the weight's name, fine-tuned, origin) -> the task vector.
        """
        reference = self.base if self.origin is None else self.origin
        return replace(
            self,
            origin={
                name: Zeros(source) if is_weight(name, source.dtype) else source
                for name, source in reference.items()
            },
            finetuned={
                task: {
                    name: vector(task, name, source, reference[name])
                    if is_weight(name, source.dtype) and name in reference
                    else source
                    for name, source in model.items()
                }
                for task, model in self.finetuned.items()
            },
        )

    def check_names(self) -> None:
        """Whether all models have the same tensors, with the same shapes and kinds.

        Raises:
            StaError: names the model and the tensors that are missing, unknown, of another shape or
                of another kind.
        """
        others = {self._title(task): model for task, model in self.finetuned.items()}
        reference, title = self.base, self.base_title
        if self.origin is not None:
            reference, title = self.origin, self.origin_title
            others = {self.base_title: self.base, **others}
        for name, model in others.items():
            compare_names(reference, model, reference_name=title, other_name=name)
        for task, scores in self.scores.items():
            compare_scores(self.base, scores, self._score_title(task))

    def check_grams(self, title: str) -> None:
        """Whether every task has Gram matrices of the same layers, which method ``title`` needs.

        Raises:
            StaError: names the task and the tensor.
        """
        without = [task for task in self.tasks if not self.grams.get(task)]
        if without:
            raise StaError(
                f"{title} needs the Gram matrices of every task; there are none for {listed(without)}. Collect them: "
                f"{score_line('gram')}."
            )
        measured = self._measured
        for whose, found in measured.items():
            if unknown := sorted(set(found) - set(self.names)):
                raise StaError(
                    f"the Gram matrices of {whose} are those of another model: it has no weights {listed(unknown)}. "
                    "Collect them of the image encoder that is merged."
                )
        every: set[str] = set().union(*measured.values())
        for whose, found in measured.items():
            if missing := sorted(every - set(found)):
                raise StaError(
                    f"{whose} has no Gram matrix for {listed(missing)}, and others have. Collect them of the same layers "
                    "for all."
                )
        for name in sorted(every):
            shape = list(self.base[name].shape)
            square = [shape[1]] * 2 if len(shape) == 2 else None
            wanted = f"it must be {square}" if square else "a linear layer's weight has two dimensions"
            for whose, found in measured.items():
                has = list(found[name].shape)
                if has != square:
                    raise StaError(
                        f"the Gram matrix of {whose} for tensor '{name}', {shape}, has the shape {has}; {wanted}."
                    )
