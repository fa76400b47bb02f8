"""Merging and forgetting from Python: paths, state dicts and modules in, one mapping out.

The same as ``sta merge`` and ``sta forget``: one engine, the same names, defaults and types.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sta_lightning.arithmetic import Dare, Merged, StateDict, torch_device
from sta_lightning.arithmetic.coefficients import Layers
from sta_lightning.arithmetic.sources import SourceDict, in_memory, whole
from sta_lightning.arithmetic.workers import Alone
from sta_lightning.encoders.pretrained import pretrained_for_merge
from sta_lightning.engine import ForgettingOptions, FusionOptions, Job, Pretrained, TaskSource
from sta_lightning.engine.folder import folder_like
from sta_lightning.engine.job import SHARD
from sta_lightning.engine.sources import check_output, task_names
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import SAFETENSORS, save_weights
from sta_lightning.weights.formats import (
    Layout,
    clip_names,
    clip_to_huggingface,
    copy_tensors,
    encoder_to_huggingface,
    held,
    image_encoder,
    whole_clip,
)

Model = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module
"""A model: a file or folder, a state dict, or a module."""
_CLIPS = ("open_clip", "huggingface")
_ENCODER, _VISION = "visual.", "vision_model."


@dataclass(frozen=True, eq=False, repr=False)
class MergedModel(Merged):
    """A merged model: a mapping from tensor names to tensors, for ``load_state_dict``.

    Attributes:
        metadata: what a file of it says: method, settings, version, the SHA-256 of every file read.
        like: the folder that the model was made of, if it was one.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    like: Path | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, whole or not at all, with its metadata.

        Args:
            path: a file that ends in ``.safetensors``; or a new folder, if the model that was
                changed came from one.

        Raises:
            StaError: it cannot be written there.
        """
        place = Path(path)
        check_output(place, self.like)
        if self.like is None or place.suffix == SAFETENSORS:
            save_weights(place, self.weights, self.metadata)
            return place
        # Of a tensor of several names the first alone: transformers shares it again.
        first = {id(tensor): name for name, tensor in reversed(self.weights.items())}
        sources = in_memory({n: tensor for n, tensor in self.weights.items() if first[id(tensor)] == n})
        planned = {name: (source.shape, source.dtype) for name, source in sources.items()}
        with (
            folder_like(self.like, place, Alone(), SHARD) as opener,
            opener(planned, self.metadata) as sink,
        ):
            copy_tensors(sources, sink)
        return place


def merge(
    method: str | None,
    base: Model,
    tasks: Mapping[str, Model] | Sequence[Model],
    importance: Mapping[str, Model] | None = None,
    *,
    grams: Mapping[str, Model] | None = None,
    settings: Mapping[str, Any] | None = None,
    scale_layers: Layers | None = None,
    measure: str | None = None,
    seed: int = 0,
    dare: Dare | float | None = None,
    statistics: str = "pretrained",
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    encoder: str | None = None,
    **more: Any,
) -> MergedModel:
    """Merge fine-tuned models into one by a method's name, as ``sta merge`` does.

    A whole CLIP gives a whole CLIP, an image encoder an image encoder. The result has the names of
    ``base`` if that is in memory, else those of the file that ``sta merge`` writes.

    Args:
        method: one of ``sta methods``, or where one of your own is; ``None`` for STA if there is
            the importance that it reads, else for one that needs neither data nor a coefficient.
        base: the pretrained model.
        tasks: task name -> fine-tuned model; or the models alone, where names do not matter.
        importance: task name -> importance of every weight. Files beside checkpoints are found.
        grams: task name -> Gram matrix ``[in, in]`` by the name of the layer's weight, for methods
            that read them. Files beside checkpoints are found.
        settings: the method's settings by name; as keywords too, see ``more``.
        scale_layers: coefficients by pattern of tensor names, ``{"*.mlp.*": 0.6}``, see
            :class:`~sta_lightning.engine.options.MergeOptions`.
        measure: importance that STA goes by, see
            :class:`~sta_lightning.engine.options.MergeOptions`.
        seed: seed of what is drawn at random.
        dare: share of every task vector that is dropped first, or what is dropped.
        statistics: what running statistics become: ``"pretrained"`` or ``"average"``.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``base``.
        device: where the arithmetic is done; ``None`` for where ``base`` is.
        encoder: the encoder's name, for a ``base`` that is a tag of open_clip, or for the metadata.
        more: settings of the method: ``keep=0.3``, ``scale={"cars": 0.6}``.

    Returns:
        The merged model, with the shares kept, its metadata and ``save``.

    Raises:
        StaError: the method is unknown or lacks what it reads, a setting is none of its or out of
            range, a file is missing, or the models do not fit.

    Example:
        >>> base = {"w": torch.zeros(2)}
        >>> merged = merge("task_arithmetic", base, [{"w": torch.ones(2)}], scale=0.5)
        >>> merged["w"]
        tensor([0.5000, 0.5000])
    """
    kind = "vector" if method == "vectors" else "finetuned"
    sources = {name: TaskSource(**{kind: _given(model)}) for name, model in _by_task(tasks).items()}
    if grams is not None:
        grams = {task: _without_prefix(_given(found)) for task, found in grams.items()}
    for what, given in (("importance", importance), ("gram", grams)):
        if given is not None and given.keys() - sources.keys():
            raise StaError(
                f"{what} is given for {listed(given.keys() - sources.keys())}, and the tasks are {listed(sources)}. Give both "
                "under the same task names."
            )
        for task, found in (given or {}).items():
            setattr(sources[task], what, _given(found))
    options = FusionOptions(
        tasks={**sources},
        method=method,
        settings={**(settings or {}), **more},
        scale_layers=scale_layers,  # type: ignore[arg-type]  # any mapping, any sequence
        measure=measure,  # type: ignore[arg-type]  # as it comes, refused by the job
        seed=seed,
        dare=dare if isinstance(dare, float | int) else None,
        statistics=statistics,  # type: ignore[arg-type]  # checked when the job is made
    )
    job = options.job()
    if isinstance(dare, Dare):
        job.dare = dare
    scores = {task: files.importance for task, files in sources.items()}
    return _Base(base).merged(job, dtype, device, encoder, scores)


def fuse(
    pretrained: Model,
    finetuned: Mapping[str, Model] | Sequence[Model],
    importance: Mapping[str, Model] | None = None,
    **options: Any,
) -> MergedModel:
    """Selective task arithmetic, the paper's fusion (Eq. 13-19): :func:`merge` by ``"sta"``.

    Args:
        pretrained: the model before fine-tuning.
        finetuned: task name -> fine-tuned model, two or more.
        importance: task name -> importance of every weight; ``None`` for files beside checkpoints.
        options: ``p``, ``normalize``, ``dtype`` and others of :func:`merge`.

    Returns:
        The fused model.

    Raises:
        StaError: as :func:`merge`.
    """
    return merge("sta", pretrained, finetuned, importance, **options)


def forget(
    model: Model,
    base: Model,
    finetuned: Model,
    importance: Model | None = None,
    *,
    method: str | None = "sta",
    gram: Model | None = None,
    control_gram: Model | None = None,
    more: Sequence[Model] = (),
    task: str = "target",
    settings: Mapping[str, Any] | None = None,
    scale_layers: Layers | None = None,
    measure: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    encoder: str | None = None,
    **options: Any,
) -> MergedModel:
    """Make a model forget a task, as ``sta forget`` does; by default as the paper (Eq. 20).

    Args:
        model: the model that shall forget: the pretrained, a fused or a fine-tuned one.
        base: the model that ``finetuned`` started from.
        finetuned: the model fine-tuned on the task to forget.
        importance: its importance; ``None`` for a file beside the checkpoint.
        method: one of ``sta methods``; ``None`` for STA if there is importance, else negation.
        gram: the task's Gram matrices, for a method that reads them; ``None`` for a file beside the
            checkpoint.
        control_gram: those of what shall not change.
        more: further models fine-tuned on the task, for a method that takes several.
        task: what to call the task in messages and in ``kept``.
        settings: the method's settings by name; as keywords too, see ``options``.
        scale_layers: as :func:`merge`.
        measure: importance that STA goes by.
        seed: seed of what is drawn at random.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``model``.
        device: where the arithmetic is done; ``None`` for where ``model`` is.
        encoder: the encoder's name, for a ``base`` that is a tag of open_clip, or for the metadata.
        options: settings of the method: ``p=0.5``.

    Returns:
        The model, with the names of ``model``.

    Raises:
        StaError: as :func:`merge`.
    """
    scores = None if importance is None else _given(importance)
    grams = [None if each is None else _without_prefix(_given(each)) for each in (gram, control_gram)]
    found = ForgettingOptions(
        target=task,
        finetuned=_given(finetuned),
        importance=scores,
        gram=grams[0],
        control_gram=grams[1],
        model=_given(model),
        more=[_given(other) for other in more],
        method=method,
        settings={**(settings or {}), **options},
        scale_layers=scale_layers,  # type: ignore[arg-type]  # any mapping, any sequence
        measure=measure,  # type: ignore[arg-type]  # as it comes, refused by the job
        seed=seed,
    )
    return _Base(base, model).merged(found.job(), dtype, device, encoder, {task: scores})


class _Base:
    """The model that the others were fine-tuned from, and that whose names the result has.

    Args:
        base: the former.
        changed: the model that is changed; ``None`` if it is ``base``.
    """

    def __init__(self, base: Model, changed: Model | None = None) -> None:
        self.base = _given(base)
        self.changed = self.base if changed is None else _given(changed)

    def merged(
        self,
        job: Job,
        dtype: torch.dtype | str | None,
        device: str | None,
        encoder: str | None,
        importance: Mapping[str, Any],
    ) -> MergedModel:
        """Do it; ``importance`` is by task."""
        job.retype(dtype, None if device is None else torch_device(device))
        for task, scores in importance.items():
            if isinstance(scores, Mapping):
                job.hold(task, *_towers(scores))
        with ExitStack() as stack:
            if isinstance(self.base, str):
                pretrained = pretrained_for_merge(encoder, self.base, None, stack)
            else:
                tensors, rest = _towers(self.base)
                pretrained = Pretrained(encoder, in_memory(tensors), "", rest=in_memory(rest))
            made = job.whole(pretrained)
        if isinstance(self.changed, Mapping):
            weights, name = _named_as(self.changed, made.encoder.weights, made.rest.weights)
            like = None
        else:
            prefix = pretrained.prefix or (_ENCODER if made.rest.weights else "")
            weights = {f"{prefix}{n}": t for n, t in made.encoder.weights.items()} | made.rest.weights
            weights |= {further: weights[name] for further, name in pretrained.shared.items()}
            name, like = prefix, Path(self.changed)
        kept = {f"{name}{n}": shares for n, shares in made.encoder.kept.items()} | made.rest.kept
        folder = like if like is not None and like.is_dir() else None
        return MergedModel(weights, kept, made.metadata, folder)


def _towers(state: StateDict) -> tuple[StateDict, StateDict]:
    """A state's image encoder without a prefix, and the rest of a whole CLIP, in open_clip's names.

    What is no CLIP is one model.
    """
    checkpoint = held(state)
    layout = checkpoint.layout
    if layout.kind not in _CLIPS:
        return state, {}
    encoder = {name: whole(source) for name, source in image_encoder(checkpoint).items()}
    clip = {} if layout.text is None else whole_clip(checkpoint)
    return encoder, {n: whole(source) for n, source in clip.items() if not n.startswith(_ENCODER)}


def _named_as(state: StateDict, encoder: StateDict, rest: StateDict) -> tuple[dict[str, Tensor], str]:
    """The result in the names, and the order, of a state; what a merge leaves alone is copied.

    Returns:
        The tensors, and what stands in front of the image encoder's names.
    """
    layout = held(state).layout
    prefix = layout.prefix if layout.kind in _CLIPS else ""
    own = {f"{_ENCODER}{name}": tensor for name, tensor in encoder.items()} | dict(rest)
    if layout.kind == "huggingface":
        found = _in_huggingface(layout, in_memory(own if rest else encoder), whole_model=bool(rest))
    elif rest:
        found = {theirs: own[name] for name, theirs in clip_names(state, layout).items()}
    else:
        found = {f"{prefix}{name}": tensor for name, tensor in encoder.items()}
    return {name: found[name] if name in found else tensor.clone() for name, tensor in state.items()}, prefix


def _in_huggingface(layout: Layout, sources: SourceDict, *, whole_model: bool) -> dict[str, Tensor]:
    convert = clip_to_huggingface if whole_model else encoder_to_huggingface
    outer = layout.prefix.removesuffix(_VISION)
    found: dict[str, Tensor] = {}
    for name, source in convert(sources, "the merged model").items():
        vision = name.startswith(_VISION)
        found[layout.prefix + name.removeprefix(_VISION) if vision else outer + name] = whole(source)
    return found


def _given(model: Model) -> Any:
    """A path as text, or the tensors."""
    if isinstance(model, nn.Module):
        model = model.state_dict()
    if isinstance(model, Mapping):
        return {name: tensor for name, tensor in model.items() if isinstance(tensor, Tensor)}
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    raise StaError(
        f"a model was given as {type(model).__name__}. Give a path, a state dict (name -> tensor) or a module."
    )


def _without_prefix(found: Any) -> Any:
    """Gram matrices by the names of the image encoder."""
    return found if isinstance(found, str) else {n.removeprefix(_ENCODER): gram for n, gram in found.items()}


def _by_task(tasks: Mapping[str, Model] | Iterable[Model]) -> dict[str, Model]:
    if isinstance(tasks, Mapping) and not any(isinstance(model, Tensor) for model in tasks.values()):
        return dict(tasks)
    if isinstance(tasks, str | os.PathLike | nn.Module | Mapping):
        raise StaError("the fine-tuned models must be a mapping from task names, or a list: give [model].")
    given = list(tasks)
    if all(isinstance(model, str | os.PathLike) for model in given):
        return dict(task_names(os.fspath(model) for model in given))  # type: ignore[arg-type]
    return {f"task{number}": model for number, model in enumerate(given, 1)}
