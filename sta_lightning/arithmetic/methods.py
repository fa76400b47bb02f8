"""The package's methods under their names, and merging and forgetting by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sta_lightning.arithmetic.baselines.actmat import ActMat, Tact
from sta_lightning.arithmetic.baselines.anchored import Anchored
from sta_lightning.arithmetic.baselines.consensus import Consensus
from sta_lightning.arithmetic.baselines.dc_merge import DcMerge
from sta_lightning.arithmetic.baselines.esm import Esm
from sta_lightning.arithmetic.baselines.fisher import Fisher
from sta_lightning.arithmetic.baselines.iso import IsoC, IsoCts
from sta_lightning.arithmetic.baselines.lines import Lines
from sta_lightning.arithmetic.baselines.negmerge import NegMerge
from sta_lightning.arithmetic.baselines.pcb import Pcb
from sta_lightning.arithmetic.baselines.regmean import RegMean
from sta_lightning.arithmetic.baselines.ties import Ties
from sta_lightning.arithmetic.baselines.tsv import Tsv
from sta_lightning.arithmetic.baselines.wudi import Swudi, SwudiA, Wudi
from sta_lightning.arithmetic.coefficients import Layers, Scale, method_with
from sta_lightning.arithmetic.dare import Dare
from sta_lightning.arithmetic.forgetting import RandomForgetting, StaForgetting
from sta_lightning.arithmetic.fusion import RandomMask, Sta
from sta_lightning.arithmetic.linear import FORGETS, Average, Negation, TaskArithmetic
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.registry import FORGET_METHODS, FUSION_METHODS
from sta_lightning.arithmetic.spared import Spared
from sta_lightning.arithmetic.sparse import AddVectors, SubtractVector
from sta_lightning.arithmetic.spectral_sta import SpectralSta
from sta_lightning.arithmetic.states import Merged, StateDict, Statistics
from sta_lightning.errors import StaError, listed, score_line

FUSION_METHODS.update(
    sta=Sta,
    spectral_sta=SpectralSta,
    random_mask=RandomMask,
    average=Average,
    task_arithmetic=TaskArithmetic,
    fisher=Fisher,
    regmean=RegMean,
    tsv=Tsv,
    iso_c=IsoC,
    iso_cts=IsoCts,
    wudi=Wudi,
    swudi=Swudi,
    swudi_a=SwudiA,
    actmat=ActMat,
    tact=Tact,
    dc_merge=DcMerge,
    esm=Esm,
    vectors=AddVectors,
    ties=Ties,
    pcb=Pcb,
    consensus=Consensus,
    lines=Lines,
    anchored=Anchored,
)

FORGET_METHODS.update(
    sta=StaForgetting,
    random_mask=RandomForgetting,
    task_arithmetic=Negation,
    negmerge=NegMerge,
    spared=Spared,
    vector=SubtractVector,
)


def merge(
    method: str,
    pretrained: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict] | None = None,
    *,
    p: float = 0.7,
    scale: Scale | None = None,
    scale_layers: Layers | None = None,
    normalize: str = "tensor",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    dare: Dare | None = None,
    grams: Mapping[str, StateDict] | None = None,
    statistics: Statistics = "pretrained",
    dtype: torch.dtype | None = None,
) -> Merged:
    """Merge fine-tuned models into one by a method's name.

    Args:
        method: one of :data:`FUSION_METHODS`, or where one of your own is, see
            :func:`~sta_lightning.arithmetic.registry.find_method`.
        pretrained: tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.
        importance: task name -> importance; methods that need none leave it unread.
        p: quantile in [0, 1] of the masked methods, see :func:`~sta_lightning.arithmetic.fuse`.
        scale: coefficient of the methods that have one, or coefficients by task; ``None`` for its
            default.
        scale_layers: coefficients by pattern of tensor names, ``{"*.mlp.*": 0.6}``; both as in
            :class:`~sta_lightning.arithmetic.coefficients.Coefficients`.
        normalize: normalisation of ``"sta"``: ``"tensor"``, ``"block"``, ``"model"`` or ``"none"``.
        seed: seed of the methods that draw at random.
        settings: further settings of the method, by name.
        dare: what is dropped from the task vectors before they are merged.
        grams: task name -> Gram matrix ``[in, in]`` by the name of the layer's weight, for methods
            that read them.
        statistics: the running statistics of normalisation layers, which are never extrapolated:
            ``"pretrained"`` or the tasks' ``"average"``.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        The merged model and the share kept per tensor and task.

    Raises:
        StaError: if the method is unknown, needs an importance and has none, is given a coefficient
            and has none, or coefficients name a task or tensors that are none; and whatever the
            method itself refuses.
    """
    made, coefficients = method_with(
        method, FUSION_METHODS, scale, scale_layers, settings, p=p, normalize=normalize, seed=seed
    )
    _require_importance(method, made, importance)
    _require_grams(method, made, grams)
    return run_in_memory(
        made,
        pretrained,
        finetuned,
        importance if made.needs_importance else None,
        grams=grams if made.needs_grams else None,
        dare=dare,
        coefficients=coefficients,
        statistics=statistics,
        dtype=dtype,
    )


def unlearn(
    method: str,
    model: StateDict,
    pretrained: StateDict,
    finetuned: StateDict,
    importance: StateDict | None = None,
    *,
    p: float = 0.7,
    scale: Scale | None = None,
    scale_layers: Layers | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    more: Sequence[StateDict] = (),
    gram: StateDict | None = None,
    control_gram: StateDict | None = None,
    task: str = "target",
    dtype: torch.dtype | None = None,
) -> Merged:
    """Make a model forget one task by a method's name.

    Args:
        method: one of :data:`FORGET_METHODS`.
        model: the model that shall forget; tensor name -> tensor of any shape.
        pretrained: the model that ``finetuned`` started from.
        finetuned: the model fine-tuned on the task to forget.
        importance: its importance; methods that need none leave it unread.
        p: quantile in [0, 1] of the masked methods, see :func:`~sta_lightning.arithmetic.forget`.
        scale: coefficient of the methods that have one, or coefficients by task; ``None`` for its
            default.
        scale_layers: coefficients by pattern of tensor names, ``{"*.mlp.*": 0.6}``; both as in
            :class:`~sta_lightning.arithmetic.coefficients.Coefficients`.
        seed: seed of the methods that draw at random.
        settings: further settings of the method, by name.
        more: further models fine-tuned on the same task, for methods that take several.
        gram: the task's Gram matrices ``[in, in]`` by the name of the layer's weight, for methods
            that read them.
        control_gram: likewise of what shall not change.
        task: what to call the task in messages and in ``kept``.
        dtype: type of the result, see :func:`~sta_lightning.arithmetic.fuse`.

    Returns:
        The model and the share kept per tensor, under ``task``.

    Raises:
        StaError: as :func:`merge`.
    """
    made, coefficients = method_with(method, FORGET_METHODS, scale, scale_layers, settings, p=p, seed=seed)
    _require_importance(method, made, importance)
    refuse_several(method, made, len(more))
    _require_grams(method, made, gram)
    if made.spares:
        _require_grams(method, made, control_gram)
    return run_in_memory(
        made,
        model,
        {task: finetuned, **{f"{task} ({number})": other for number, other in enumerate(more, 2)}},
        {task: importance} if made.needs_importance and importance is not None else None,
        grams={task: gram} if made.needs_grams and gram is not None else None,
        control=control_gram if made.spares else None,
        coefficients=coefficients,
        origin=pretrained,
        base_title=FORGETS,
        dtype=dtype,
    )


def refuse_several(name: str, method: MergeMethod, more: int) -> None:
    """Refuse, by a StaError, further fine-tunings where a method takes one."""
    if more and not method.many:
        several = [name for name, other in FORGET_METHODS.items() if other.many]
        raise StaError(
            f"forgetting method '{name}' takes one fine-tuned model, and {more + 1} were given. Leave the others out, or "
            f"choose one of {listed(several)}."
        )


def _require_grams(name: str, method: MergeMethod, grams: object) -> None:
    if method.needs_grams and grams is None:
        whose = "for the task and for the control" if method.spares else "for every fine-tuned model"
        raise StaError(
            f"method '{name}' reads the Gram matrices of the layers' inputs, and none were given. Collect them {whose}: "
            f"{score_line('gram')}."
        )


def _require_importance(name: str, method: MergeMethod, importance: object) -> None:
    if not method.needs_importance or importance is not None:
        return
    if method.measure is not None:
        raise StaError(
            f"method '{name}' reads {method.measure!r} of every entry, and none was given. Score the fine-tuned models: "
            f"{score_line(method.measure)}."
        )
    raise StaError(
        f"method '{name}' ranks entries by importance, and none was given. Score the fine-tuned models "
        f"({score_line('lp')}), or compute importance_for('amp', ...), which needs no data."
    )
