"""Importance of the entries of a fine-tuned model (Eq. 10-12, 21 and 22), Fisher information."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.checks import check_compatible, check_finite, check_importance, check_state
from sta_lightning.arithmetic.sources import Formula, MemoryTensor, TensorSource, whole
from sta_lightning.arithmetic.states import StateDict, bounds, weight_names, wide_dtype
from sta_lightning.errors import StaError, listed, score_line

Maybe = TensorSource | None


class Measure:
    """How important each entry of a fine-tuned model is; :data:`MEASURES` lists the subclasses.

    With θ the fine-tuned weights, δ = θ - θ₀ the task vector and gⱼ the gradient of sample j's loss
    (:func:`sta_lightning.arithmetic.gradients.gradient_sums`). ``scored`` is what a gradient pass
    writes to a file, ``source`` what a merge makes of the file and the weights.

    Attributes:
        name: By which it is asked for.
        title: What to call it in a message.
        file: The measure of the file that it is made of, which takes labelled samples and a
            gradient pass; None if the weights are enough.
        power: Of |gⱼ| that the gradient pass sums.
        needs_pretrained: Whether it reads θ₀.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    file: ClassVar[str | None] = None
    power: ClassVar[Literal[1, 2]] = 1
    needs_pretrained: ClassVar[bool] = False

    def scored(self, sums: Tensor, finetuned: Tensor, pretrained: Tensor | None) -> Tensor:
        """The scores of one tensor, from Σⱼ |gⱼ|ᵖ, θ and, if it is needed, θ₀; all of one shape."""
        return sums

    def source(self, finetuned: TensorSource, pretrained: Maybe, scores: Maybe) -> TensorSource:
        """The importance of one tensor; ``scores`` are given where samples are needed."""
        assert scores is not None
        return scores


class LossPreservation(Measure):
    """Σⱼ |θ · gⱼ| (Eq. 12): the first-order Taylor term of the loss when the entry becomes zero."""

    name, file, title = "lp", "lp", "the loss-preservation score"

    @override
    def scored(self, sums: Tensor, finetuned: Tensor, pretrained: Tensor | None) -> Tensor:
        return sums * finetuned.abs()  # which is the same for all samples


class Amplitude(Measure):
    """θ² (Eq. 21)."""

    name, title = "amp", "the amplitude of the model"

    @override
    def source(self, finetuned: TensorSource, pretrained: Maybe, scores: Maybe) -> TensorSource:
        return Formula(torch.square, finetuned)


class LossPreservationAmplitude(LossPreservation):
    """Σⱼ |θ · gⱼ| · θ² (Eq. 22, summed over the samples)."""

    name, title = "lp+amp", "the product of loss preservation and amplitude"

    @override
    def source(self, finetuned: TensorSource, pretrained: Maybe, scores: Maybe) -> TensorSource:
        assert scores is not None
        return Formula(lambda theta, score: score * theta.square(), finetuned, scores)


class DeltaAmplitude(Measure):
    """δ², beyond the paper."""

    name, title = "delta-amp", "the amplitude of the task vector"
    needs_pretrained = True

    @override
    def source(self, finetuned: TensorSource, pretrained: Maybe, scores: Maybe) -> TensorSource:
        assert pretrained is not None
        return Formula(lambda base, theta: (theta - base).square(), pretrained, finetuned)


class DeltaLossPreservation(Measure):
    """Σⱼ |δ · gⱼ|, beyond the paper: the Taylor term of the loss when a mask drops the entry."""

    name, file, title = "delta-lp", "delta-lp", "the loss-preservation score"
    needs_pretrained = True

    @override
    def scored(self, sums: Tensor, finetuned: Tensor, pretrained: Tensor | None) -> Tensor:
        assert pretrained is not None
        return sums * (finetuned - pretrained).abs()


class Fisher(Measure):
    """Σⱼ gⱼ², the diagonal of the empirical Fisher information (Matena and Raffel, 2022)."""

    name, file, title = "fisher", "fisher", "the Fisher information"
    power = 2


MEASURES: dict[str, Measure] = {
    measure.name: measure()
    for measure in (
        LossPreservation,
        Amplitude,
        LossPreservationAmplitude,
        DeltaAmplitude,
        DeltaLossPreservation,
        Fisher,
    )
}
"""The importance measures by their names, the paper's three first."""


def find_measure(name: str) -> Measure:
    """The measure of that name.

    Raises:
        StaError: lists those that there are.
    """
    if name not in MEASURES:
        raise StaError(f"measure={name!r} was asked for; choose one of {listed(MEASURES, len(MEASURES))}.")
    return MEASURES[name]


@torch.no_grad()
def importance_for(
    measure: str, *, weights: StateDict, scores: StateDict | None = None, pretrained: StateDict | None = None
) -> dict[str, Tensor]:
    """The importance that a measure gives a fine-tuned model.

    Args:
        measure: a name of :data:`MEASURES`.
        weights: the fine-tuned model; tensor name -> tensor of any shape.
        scores: what a gradient pass over labelled samples found (:meth:`Measure.scored`), one
            non-negative tensor for every floating-point weight; for the measures with a ``file``.
        pretrained: the pretrained model, for ``"delta-amp"``.

    Returns:
        New tensors for the floating-point names of ``weights``, float32 (float64 if a source is),
        in their order.

    Raises:
        StaError: if the measure is unknown, what it needs is not given, or the sources do not match
            or are not finite, or the importance is not.
    """
    chosen = find_measure(measure)
    check_state(weights, "the model")
    if chosen.file is not None:
        if scores is None:
            raise StaError(
                f"importance measure '{measure}' needs the scores of a gradient pass over labelled samples, and "
                f"scores were not given. Score the model first ({score_line(chosen.file)}), or choose 'amp', which needs no data."
            )
        _check_scores(MEASURES[chosen.file], scores, weights)
    elif chosen.needs_pretrained:  # with samples, the pass that made the scores needed them
        if pretrained is None:
            raise StaError(
                f"importance measure '{measure}' needs the pretrained weights, and pretrained was not given."
            )
        check_compatible(
            pretrained, weights, reference_name="the pretrained model", other_name="the fine-tuned model"
        )
    found: dict[str, Tensor] = {}
    for name in weight_names(weights):
        base = MemoryTensor(pretrained[name]) if pretrained and name in pretrained else None
        score = MemoryTensor(scores[name]) if scores and name in scores else None
        source = chosen.source(MemoryTensor(weights[name]), base, score)
        found[name] = whole(source, wide_dtype(source.dtype)).clone()
    check_finite(found, chosen.title)
    return found


def _check_scores(measure: Measure, scores: StateDict, weights: StateDict) -> None:
    check_importance(weights, scores, name=measure.title)
    negative = [name for name in weight_names(weights) if bounds(scores[name])[0] < 0]
    if negative:
        made = "squares" if measure.power == 2 else "absolute values (Eq. 12)"
        raise StaError(
            f"{measure.title} is negative in {listed(negative)}. It is a sum of {made}, taken for each sample before the sum."
        )
