"""Importance of the entries of a fine-tuned model (Eq. 10-12, 21 and 22), and their Fisher information."""

from __future__ import annotations

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_compatible, check_finite, check_importance, check_state
from sta_lightning.arithmetic.states import StateDict, bounds, floating_names, working_dtype
from sta_lightning.arithmetic.vectors import task_vector
from sta_lightning.errors import StaError, listed

MEASURES: tuple[str, ...] = ("lp", "amp", "lp+amp", "delta-amp", "delta-lp", "fisher")
"""Names of the importance measures, the paper's three first."""

SAMPLE_MEASURES: frozenset[str] = frozenset({"lp", "lp+amp", "delta-lp", "fisher"})
"""The measures that need labelled samples and a gradient pass; the others need the weights alone."""


@torch.no_grad()
def amplitude(weights: StateDict) -> dict[str, Tensor]:
    """Amp: the square of every weight (Eq. 21). Needs no data.

    Args:
        weights: the fine-tuned model; tensor name -> tensor of any shape.

    Returns:
        New tensors of the same shapes for the floating-point names, float32 (float64 for float64
        weights).

    Raises:
        StaError: if a weight is not finite, or its square is not.
    """
    check_state(weights, "the model")
    squares = {name: _wide(weights[name]).square() for name in floating_names(weights)}
    check_finite(squares, "the amplitude of the model")
    return squares


@torch.no_grad()
def loss_preservation_amplitude(lp: StateDict, weights: StateDict) -> dict[str, Tensor]:
    """LP+Amp: loss preservation times amplitude at every entry (Eq. 22, summed over the samples).

    Args:
        lp: loss preservation of the same model (Eq. 12), one non-negative tensor for every
            floating-point weight.
        weights: the fine-tuned model.

    Returns:
        New tensors of the same shapes, float32 (float64 if either is).

    Raises:
        StaError: if names or shapes differ, or an entry is negative or not finite.
    """
    _check_scores(lp, weights)
    product = {name: _wide(lp[name]) * square for name, square in amplitude(weights).items()}
    check_finite(product, "the product of loss preservation and amplitude")
    return product


def importance_for(
    measure: str, *, weights: StateDict, lp: StateDict | None = None, pretrained: StateDict | None = None
) -> dict[str, Tensor]:
    """The importance that a measure gives a fine-tuned model.

    Args:
        measure: one of :data:`MEASURES`.

            * ``"lp"``: loss preservation, the sum over samples of abs(weight * gradient) (Eq. 12),
              as given in ``lp``;
            * ``"amp"``: the squared weight (Eq. 21);
            * ``"lp+amp"``: their product (Eq. 22);
            * ``"delta-amp"``: the squared task-vector entry, beyond the paper;
            * ``"delta-lp"``: the sum over samples of abs(task-vector entry * gradient), beyond the
              paper, as given in ``lp``;
            * ``"fisher"``: the diagonal Fisher information, the sum over samples of the squared
              gradient, as given in ``lp``; what Fisher merging weighs the models by (Matena and
              Raffel, 2022).
        weights: the fine-tuned model; tensor name -> tensor of any shape.
        lp: the scores of a gradient pass
            (:func:`sta_lightning.arithmetic.taylor.taylor_importance`), for the measures in
            :data:`SAMPLE_MEASURES`; for ``"delta-lp"`` that pass must have been made with the task
            vector as direction, and for ``"fisher"`` by
            :func:`sta_lightning.arithmetic.taylor.fisher_information`.
        pretrained: the pretrained model, for ``"delta-amp"``.

    Returns:
        New tensors for the floating-point names of ``weights``, float32 (float64 if a source is),
        in their order.

    Raises:
        StaError: if the measure is unknown, what it needs is not given, or the sources do not match
            or are not finite.
    """
    if measure not in MEASURES:
        raise StaError(
            f"importance measure '{measure}' is unknown. Choose one of {listed(MEASURES, len(MEASURES))}."
        )
    if measure in SAMPLE_MEASURES and lp is None:
        raise StaError(
            f"importance measure '{measure}' needs the scores of a gradient pass over labelled samples, and "
            "lp was not given. Score the model first (sta score), or choose 'amp', which needs no data."
        )
    if measure == "delta-amp" and pretrained is None:
        raise StaError(
            "importance measure 'delta-amp' needs the pretrained weights, and pretrained was not given."
        )
    if measure == "amp":
        return amplitude(weights)
    if pretrained is not None and measure == "delta-amp":
        check_compatible(
            pretrained, weights, reference_name="the pretrained model", other_name="the fine-tuned model"
        )
        return amplitude(task_vector(pretrained, weights))
    assert lp is not None
    if measure == "lp+amp":
        return loss_preservation_amplitude(lp, weights)
    _check_scores(lp, weights, fisher=measure == "fisher")
    return {name: _copy(lp[name]) for name in floating_names(weights)}


def _check_scores(lp: StateDict, weights: StateDict, *, fisher: bool = False) -> None:
    title = "the Fisher information" if fisher else "the loss-preservation score"
    check_importance(weights, lp, name=title)
    negative = [name for name in floating_names(weights) if bounds(lp[name])[0] < 0]
    if negative:
        made = "squares" if fisher else "absolute values"
        where = "" if fisher else " (Eq. 12)"
        raise StaError(
            f"{title} is negative in {listed(negative)}. It is a sum of {made}, taken for each sample before the "
            f"sum{where}."
        )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(working_dtype(tensor))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(working_dtype(tensor), copy=True)
