"""Methods of a merge that look at images: what they turn into a merge of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from sta_lightning.arithmetic.baselines.regmean_plus_plus import merged_input_grams
from sta_lightning.arithmetic.given import Given
from sta_lightning.arithmetic.registry import LEARNED_METHODS
from sta_lightning.callbacks.progress import without_notices
from sta_lightning.encoders import ClassificationHead
from sta_lightning.encoders.pretrained import found_encoder
from sta_lightning.engine import FusionOptions, Pretrained, TaskSource
from sta_lightning.engine.defaults import AUTO, DISTILLED, REGMEAN_PLUS_PLUS
from sta_lightning.errors import StaError, listed
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.foretelling import Candidate, asked_candidates, has_grams, ranking
from sta_lightning.modules.judge import Foretold, Judge
from sta_lightning.modules.learned import learn
from sta_lightning.modules.parts import read_encoder
from sta_lightning.tasks.unlabelled import Held, HeldImages


@dataclass(frozen=True)
class Surroundings:
    """What such a method has besides the files.

    Attributes:
        pretrained: the pretrained encoder, as a merge takes it.
        encoder: the same as a module, in evaluation mode.
        heads: the heads by task.
        images: by task, ``[B, 3, S, S]``, without labels.
        specs: by task, its name or YAML file, by which it is found.
        device: where encoders run.
        callbacks: of a fit, such as what shows its progress.
    """

    pretrained: Pretrained
    encoder: nn.Module
    heads: Mapping[str, ClassificationHead]
    images: Mapping[str, Tensor]
    specs: Mapping[str, str]
    device: torch.device | str = "cpu"
    callbacks: Sequence[Callback] = ()


def checked_settings(options: FusionOptions) -> dict[str, Any]:
    """All settings of such a method; ``samples`` are the images of a task.

    Raises:
        StaError: there is another setting or a coefficient, one is of another type, a task has no
            model, the number of images is below 1, a candidate is unknown or can be none, or a fit
            is asked for what it has no place for.
    """
    method = str(options.method)
    known = LEARNED_METHODS[method].settings
    coefficients = {"scale": options.scale, "scale_layers": options.scale_layers}
    given = {
        **(options.settings or {}),
        **{k: value for k, value in coefficients.items() if value is not None},
    }
    if unknown := [name for name in given if name not in known]:
        raise StaError(f"method '{method}' has no setting {listed(unknown)}; it has {listed(known)}.")
    for name, value in given.items():
        # What is None by default is a list of methods.
        kind = list if known[name] is None else type(known[name])
        allowed = (kind, int) if kind is float else (kind,)
        if type(value) not in allowed and value is not known[name]:
            raise StaError(f"{name}={value!r} of method '{method}' must be of type {kind.__name__}.")
    found = {**known, **given}
    check_images(f"method '{method}'", found["samples"], options.sources, "samples")
    names = found.get("candidates") or ()
    asked_candidates((name for name in names if name != DISTILLED), grams=has_grams(options))
    if DISTILLED in (method, *names):
        if unfit := _unfit(options):
            raise StaError(
                f"method '{DISTILLED}' fits the whole encoder, and has no place for {listed(unfit)}. Leave "
                f"{'it' if len(unfit) == 1 else 'them'} out, or name another method."
            )
        if method == AUTO and found["samples"] < 2:
            raise StaError(
                f"candidate '{DISTILLED}' is judged on other images than it is fitted to, and samples=1 was asked for: give 2 "
                "or more."
            )
    return found


def check_images(who: str, count: Any, tasks: Mapping[str, TaskSource], option: str) -> None:
    """Refuse, by a StaError, fewer than one image of each task, and tasks without a model."""
    without = [task for task, source in tasks.items() if source.finetuned is None]
    if without:
        raise StaError(
            f"{who} reads the fine-tuned encoder, 'finetuned', of every task; {listed(without)} has none."
        )
    if not isinstance(count, int) or count < 1:
        raise StaError(f"{option}={count} was asked for: give the images of each task, 1 or more.")


def resolved(options: FusionOptions, around: Surroundings) -> FusionOptions:
    """The merge of files that a method by images comes to.

    For ``auto`` it is the nearest candidate, for RegMean++ RegMean with Gram matrices, in memory,
    of what the merged blocks below put out, and for ``distilled`` what the fit has made.

    Args:
        options: with the method by images, and its settings.
        around: its images and encoders.

    Raises:
        StaError: a setting is wrong, or a source is missing or does not fit.
    """
    settings = checked_settings(options)
    plain = replace(options, settings=None)
    if options.method == AUTO:
        return _nearest(plain, around, settings)
    if options.method == DISTILLED:
        return _Fit(plain, around, settings).merge()
    return _regmean_plus_plus(plain, around, settings)


def _nearest(options: FusionOptions, around: Surroundings, settings: Mapping[str, Any]) -> FusionOptions:
    names, samples = settings["candidates"], settings["samples"]
    closed = None if names is None else [name for name in names if name != DISTILLED]
    found = ranking(options, around.pretrained, _judge(options, around, around.images), closed)
    fit = None
    if DISTILLED in names if names is not None else samples > 1 and not _unfit(options):
        own = {**LEARNED_METHODS[DISTILLED].settings, "steps": settings["steps"], "samples": samples}
        fit = _Fit(options, around, own)
        found.append(Candidate(DISTILLED, None, fit.foretold()))
        found.sort(key=lambda candidate: candidate.foretold.mean)
    best = found[0]
    if fit is not None and best.method == DISTILLED:
        chosen = fit.merge()
    else:
        chosen = replace(options, method=best.method, scale=best.scale)
    told = {"ranking": [candidate.plain() for candidate in found], "foretold": best.foretold.plain()}
    chosen.about = {**chosen.about, **told}
    return chosen


def _judge(options: FusionOptions, around: Surroundings, images: Mapping[str, Tensor]) -> Judge:
    finetuned = {task: str(source.finetuned) for task, source in options.sources.items()}
    return Judge(around.encoder, finetuned, around.heads, images, around.device)


class _Fit:
    """The distilled merge, which is fitted to all images of every task in each step."""

    def __init__(self, options: FusionOptions, around: Surroundings, settings: Mapping[str, Any]) -> None:
        self._options, self._around, self._settings = options, around, settings
        self._module = DistilledMerging(
            {around.specs[task]: source for task, source in options.sources.items()},
            encoder=options.encoder or found_encoder(options.pretrained),
            pretrained=options.pretrained,
            image_size=options.image_size,
            **{name: value for name, value in settings.items() if name not in ("steps", "crops", "samples")},
        )

    def merge(self) -> FusionOptions:
        """What the fit to the images makes."""
        module = self._module
        merged = Given(module.title, self._fitted(self._around.images), module.reads_grams)
        made = replace(self._options, method=DISTILLED)
        made.given = merged
        means = {name: round(value, 6) for name, value in module.mean_coefficients().items()}
        made.about = {**self._settings, **module.identity(), "coefficients": means}
        return made

    def foretold(self) -> Foretold:
        """How near it is on images that it has not seen: on each half by a fit to the other."""
        options, around = self._options, self._around
        halves = [{task: images[first::2] for task, images in around.images.items()} for first in (0, 1)]
        found = [
            _judge(options, around, unseen).foretell(self._fitted(seen))
            for seen, unseen in (halves, halves[::-1])
        ]
        means = {
            what: {task: fmean(getattr(half, what)[task] for half in found) for task in around.images}
            for what in ("divergence", "agreement")
        }
        return Foretold(**means)

    def _fitted(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        held = {task: Held(each) for task, each in images.items()}
        count, seed = max(map(len, images.values())), self._options.seed
        with without_notices():
            return learn(
                self._module,
                HeldImages(held, count, seed, self._settings["crops"]),
                steps=self._settings["steps"],
                seed=seed,
                accelerator=torch.device(self._around.device).type,
                callbacks=self._around.callbacks,
            )


def _unfit(options: FusionOptions) -> list[str]:
    """The settings that the distilled merge has no place for."""
    given = {
        "dare": options.dare is not None,
        "only": options.only,
        "skip": options.skip,
        "resample": options.resample,
        "statistics": options.statistics != "pretrained",
    }
    return [name for name, there in given.items() if there]


def _regmean_plus_plus(
    options: FusionOptions, around: Surroundings, settings: Mapping[str, Any]
) -> FusionOptions:
    reference = around.encoder.state_dict()
    states = {
        task: read_encoder(str(source.finetuned), reference, f"task {task!r}")
        for task, source in options.sources.items()
    }
    encoder = around.encoder.to(around.device)
    images = {task: batch.to(around.device) for task, batch in around.images.items()}
    grams = merged_input_grams(encoder, states, images, ratio=settings["ratio"])
    sources: dict[str, Any] = {
        task: replace(source, gram=grams[task])  # type: ignore[arg-type]  # a model may be in memory
        for task, source in options.sources.items()
    }
    made = replace(options, tasks=sources, method="regmean", settings={"ratio": settings["ratio"]})
    made.about = {"grams": REGMEAN_PLUS_PLUS, "samples": settings["samples"]}
    return made
