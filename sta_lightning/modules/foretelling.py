"""Which merge is nearest to the fine-tuned models by its predictions, on images without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from sta_lightning.arithmetic import FUSION_METHODS
from sta_lightning.arithmetic.output_error import output_error
from sta_lightning.arithmetic.registry import has_setting, make_method
from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.arithmetic.states import weight_names
from sta_lightning.engine import FusionOptions, Pretrained, TaskSource
from sta_lightning.engine.defaults import DISTILLED
from sta_lightning.engine.files import open_encoder, open_grams
from sta_lightning.errors import StaError
from sta_lightning.modules.judge import Foretold, Judge

_FACTORS = (1.0, 0.8, 1.2, 1.4)
"""By what a method's default coefficient is multiplied."""


def layer_errors(
    reference: Mapping[str, Tensor], merged: Mapping[str, Tensor], tasks: Mapping[str, TaskSource]
) -> dict[str, dict[str, float]]:
    """How far a merged encoder's linear layers are from the fine-tuned ones, on their own inputs.

    Args:
        reference: the pretrained encoder's tensors.
        merged: the merged encoder's.
        tasks: each task's files, ``finetuned`` among them; one without ``gram`` is left out.

    Returns:
        By the weight's name and the task, see
        :func:`~sta_lightning.arithmetic.output_error.output_error`; without the layers whose
        outputs fine-tuning left alone.

    Raises:
        StaError: weights or Gram matrices cannot be read, do not fit, or are not finite.
    """
    found: dict[str, dict[str, float]] = {}
    for task, source in tasks.items():
        if source.gram is None:
            continue
        what = f"task {task!r}"
        with ExitStack() as stack:
            model, metadata = open_encoder(str(source.finetuned), in_memory(reference), what, stack)
            digest = metadata.get("weights_sha256")
            grams = open_grams(what, source.gram, "foretell", model, digest, stack)
            for name, gram in grams.items():
                base = reference[name].double()
                vector = whole(model[name]).double() - base
                error = output_error(merged[name].double() - base, vector, whole(gram))
                if error is not None:
                    if not math.isfinite(error):
                        raise StaError(
                            f"{what}: its encoder or its Gram matrix holds NaN or Inf in tensor '{name}'. Train it, or collect "
                            "the Gram matrices, again."
                        )
                    found.setdefault(name, {})[task] = error
    return found


class Candidate(NamedTuple):
    """A merge that was compared.

    Attributes:
        method: its name.
        scale: its coefficient; ``None`` if it has none.
        foretold: how near it is.
    """

    method: str
    scale: float | None
    foretold: Foretold

    def plain(self) -> dict[str, Any]:
        """For metadata: method, coefficient, and the means over the tasks."""
        return {
            "method": self.method,
            **({} if self.scale is None else {"scale": round(self.scale, 6)}),
            **self.foretold.means,
        }


def coefficients(method: str, *, grams: bool) -> tuple[float | None, ...] | None:
    """The coefficients with which a method is a candidate; ``(None,)`` for one that has none.

    ``None`` for one that is no candidate: it reads importance, or Gram matrices where there are no
    ``grams``, adds up masked task vectors, or draws at random.
    """
    made = make_method(method, FUSION_METHODS)
    if made.needs_importance or made.takes_vectors or has_setting(type(made), "seed"):
        return None
    if made.needs_grams and not grams:
        return None
    if not has_setting(type(made), "scale"):
        return (None,)
    # That it multiplies the merged task vector is known of the package's own.
    factors = _FACTORS if type(made).__module__.startswith("sta_lightning.") else _FACTORS[:1]
    return tuple(factor * float(made.settings()["scale"]) for factor in factors)


def candidates(*, grams: bool) -> dict[str, tuple[float | None, ...]]:
    """Every merging method that may be chosen, with its coefficients."""
    found = {name: coefficients(name, grams=grams) for name in FUSION_METHODS}
    return {name: scales for name, scales in found.items() if scales is not None}


def has_grams(options: FusionOptions) -> bool:
    """Whether every task has Gram matrices."""
    return all(source.gram is not None for source in options.sources.values())


def asked_candidates(methods: Iterable[str] | None, *, grams: bool) -> dict[str, tuple[float | None, ...]]:
    """Some candidates by name, with their coefficients; ``None`` for all.

    Raises:
        StaError: one is unknown or cannot be a candidate.
    """
    allowed = candidates(grams=grams)
    if methods is None:
        return allowed
    found: dict[str, tuple[float | None, ...]] = {}
    for name in methods:
        scales = coefficients(name, grams=grams)
        if scales is None:
            raise StaError(
                f"candidates: method '{name}' reads importance, draws at random, or reads Gram matrices that not every task "
                f"has. Choose among {', '.join((*allowed, DISTILLED))}."
            )
        found[name] = scales
    return found


def ranking(
    options: FusionOptions, pretrained: Pretrained, judge: Judge, methods: Iterable[str] | None = None
) -> list[Candidate]:
    """Merge by every candidate and compare it, one model in memory at a time.

    A method is run once: its coefficient multiplies the merged task vector.

    Args:
        options: what is merged; method, coefficient and settings are the candidates'.
        pretrained: the pretrained encoder.
        judge: what compares.
        methods: the candidates; ``None`` for all of :func:`candidates`.

    Returns:
        The candidates, the nearest first, by the mean divergence.

    Raises:
        StaError: one is unknown or cannot be a candidate, or the merge refuses its sources.
    """
    base = {name: whole(source) for name, source in pretrained.tensors.items()}
    found: list[Candidate] = []
    for method, scales in asked_candidates(methods, grams=has_grams(options)).items():
        merged = replace(options, method=method, scale=None, settings=None).job().in_memory(pretrained)
        for scale in scales:
            factor = 1.0 if scale is None else scale / scales[0]  # type: ignore[operator]
            found.append(Candidate(method, scale, judge.foretell(_scaled(base, merged.weights, factor))))
    return sorted(found, key=lambda candidate: candidate.foretold.mean)


def _scaled(base: Mapping[str, Tensor], merged: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The merged model with its task vector multiplied."""
    if factor == 1:
        return dict(merged)
    moved = {name: base[name] + factor * (merged[name] - base[name]) for name in weight_names(base)}
    return {**merged, **moved}


def ranking_table(ranking: Iterable[Mapping[str, Any]]) -> str:
    """A ranking of :meth:`Candidate.plain`, as text."""
    rows = [("method", "scale", "divergence", "agreement")]
    for row in ranking:
        rows.append((row["method"], f"{row['scale']:g}" if "scale" in row else "", *_shown(row)))
    return _aligned(rows)


def foretold_table(
    tasks: Mapping[str, Mapping[str, float]], layers: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """How near a merge is by task, as text.

    Args:
        tasks: of :meth:`Foretold.plain`.
        layers: of :func:`layer_errors`; a task's mean over its layers is shown.
    """
    rows = [("task", "divergence", "agreement", *(("layer error",) if layers else ()))]
    for task, row in tasks.items():
        own = [errors[task] for errors in (layers or {}).values() if task in errors]
        rows.append((task, *_shown(row), *((f"{fmean(own):.4f}" if own else "",) if layers else ())))
    return _aligned(rows)


def _shown(row: Mapping[str, float]) -> tuple[str, str]:
    return f"{row['divergence']:.4f}", f"{100 * row['agreement']:.1f}%"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
