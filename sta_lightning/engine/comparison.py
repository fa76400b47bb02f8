"""Files beside the pretrained model, opened as a merge opens them: whether they can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sta_lightning.arithmetic.comparison import Comparison, compare
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.engine.files import open_encoder, unlike
from sta_lightning.engine.opened import Pretrained
from sta_lightning.engine.part import Part
from sta_lightning.engine.rest import open_rest
from sta_lightning.engine.sources import called
from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_prefix
from sta_lightning.weights.formats import open_sources, shared_names


@dataclass(frozen=True)
class Refused:
    """A model that cannot be merged.

    Attributes:
        reason: what a merge says of it.
        names: the tensors that differ from the pretrained model's, by how they do.
    """

    reason: str
    names: dict[str, list[str]]


@dataclass(frozen=True)
class Compared:
    """Models beside the pretrained one: those that cannot be merged with it, and the others."""

    refused: dict[str, Refused]
    comparison: Comparison


def compare_files(
    pretrained: Pretrained, files: Mapping[str, str | Path], part: Part, *, ranks: bool = True
) -> Compared:
    """Compare models in files with the pretrained one, piece by piece.

    Args:
        pretrained: the pretrained model.
        files: by name: a checkpoint of any layout that a merge reads, or an adapter.
        part: which tensors are merged, and compared.
        ranks: see :func:`~sta_lightning.arithmetic.comparison.compare`.

    Raises:
        StaError: ``part`` leaves nothing, or the pretrained model cannot be read.
    """
    part.check(pretrained.tensors)
    rest = part.of(pretrained.rest)
    base = {**_named(part.of(pretrained.tensors), pretrained.prefix), **rest}
    titles = {name: f"task {name!r} ({called(path)})" for name, path in files.items()}
    refused: dict[str, Refused] = {}
    models: dict[str, SourceDict] = {}
    with ExitStack() as stack:
        for name, path in files.items():
            try:
                encoder, _ = open_encoder(
                    path, pretrained.tensors, f"task {name!r}", stack, pretrained.file, part
                )
                beside = part.of(open_rest(path, stack, pretrained.file)) if rest else {}
                model = {**_named(encoder, pretrained.prefix), **(beside or rest)}
                Problem(base, {name: model}, titles=titles).check_names()
                models[name] = model
            except StaError as error:
                refused[name] = Refused(str(error), _unlike(pretrained, path, part))
        while models:
            try:
                return Compared(refused, compare(Problem(base, models, titles=titles), ranks=ranks))
            except StaError as error:  # an entry that is NaN or infinite, which only reading tells
                odd = [name for name in models if str(error).startswith(titles[name])]
                if not odd:
                    raise
                del models[odd[0]]
                refused[odd[0]] = Refused(str(error), {})
    return Compared(refused, Comparison(len(base)))


def _named(tensors: SourceDict, prefix: str) -> SourceDict:
    return {prefix + name: source for name, source in tensors.items()}


def _unlike(pretrained: Pretrained, path: str | Path, part: Part) -> dict[str, list[str]]:
    """Which tensors differ in name or shape; nothing of what cannot be opened at all."""
    with ExitStack() as stack:
        try:
            tensors, _ = open_sources(path, stack, base=pretrained.file)
        except StaError:
            return {}
        prefix = encoder_prefix(tensors) if pretrained.prefix else ""
        further = shared_names(tensors, pretrained.tensors)
        own = {n.removeprefix(prefix): source for n, source in tensors.items() if n not in further}
        return unlike(part.of(pretrained.tensors), part.of(own))
