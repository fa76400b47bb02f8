"""The files that a merge reads, as sources of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sta_lightning.arithmetic import MEASURES, MergeMethod, find_measure
from sta_lightning.arithmetic.sources import SourceDict, TensorSource
from sta_lightning.arithmetic.states import StateDict, is_weight
from sta_lightning.engine.part import Part, skips
from sta_lightning.engine.sources import TaskSource, called
from sta_lightning.errors import StaError, StaWarning, listed, score_line
from sta_lightning.weights import TensorFile, encoder_part, open_vector, read_bounds
from sta_lightning.weights.formats import (
    check_kind,
    doubts,
    open_checkpoint,
    open_sources,
    recognise,
    shared_names,
)
from sta_lightning.weights.positions import POSITIONS, Resampled

AS_GIVEN = "file"
"""The measure of a merge that takes an importance file as it is, whatever made it."""
MERGE_MEASURES = (*MEASURES, AS_GIVEN)
"""The measures that a merge may go by."""
READ_MEASURES = {AS_GIVEN, *(name for name, measure in MEASURES.items() if measure.file)}
"""Those of them that are read from a file; the others are made of the weights."""
GRAM = "gram"
"""What the metadata of a file with Gram matrices says under ``measure``."""


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Put in front of an error's message what it is about."""
    try:
        yield
    except StaError as error:
        raise type(error)(f"{what}: {error}") from error


def open_encoder(
    path: str | Path | StateDict,
    reference: SourceDict,
    what: str,
    stack: ExitStack,
    base: Path | None = None,
    part: Part | None = None,
) -> tuple[SourceDict, dict[str, str]]:
    """The encoder, or the whole model of another kind, in a weights file; what its metadata says.

    Args:
        path: a checkpoint of any known layout that holds the encoder, alone or inside a larger
            model; one without the projection behind the encoder gets the pretrained one's. Or an
            adapter.
        reference: the pretrained encoder, whose names and shapes are wanted.
        what: whose weights they are, for messages: ``"task 'digits'"``.
        stack: what closes the file.
        base: the pretrained model's file, which an adapter stands on.
        part: which tensors are wanted; ``None`` for all.

    Raises:
        StaError: the file is missing or broken, or names or shapes differ.
    """
    part = part or Part()
    wanted = part.of(reference)
    with saying(what):
        for doubt in doubts(path, base) if base is not None and isinstance(path, str | Path) else ():
            warnings.warn(f"{what}: {doubt}", StaWarning, stacklevel=2)
        tensors, metadata = open_sources(path, stack, projection=reference.get("proj"), base=base)
        check_kind(metadata, called(path))
        further = shared_names(tensors, reference)
        tensors = {name: source for name, source in tensors.items() if name not in further}
        tensors = part.of(tensors, wanted, reference)
        if recognise(reference).kind == "unknown":
            _check_equal(wanted, tensors, called(path))
        found: SourceDict = encoder_part(tensors, names=list(wanted), title=called(path))
        if part.resample:
            found = {name: _resampled(name, source, wanted[name]) for name, source in found.items()}
        _check_equal(wanted, found, called(path))
        return found, metadata


def unlike(wanted: SourceDict, tensors: SourceDict) -> dict[str, list[str]]:
    """The names of the tensors that a model lacks, has besides, or has in another shape."""
    return {
        "missing": [name for name in wanted if name not in tensors],
        "unknown": [name for name in tensors if name not in wanted],
        "of another shape": [n for n, s in wanted.items() if n in tensors and s.shape != tensors[n].shape],
    }


def _resampled(name: str, source: TensorSource, wanted: TensorSource) -> TensorSource:
    """A tensor, of position embeddings for another number of positions those for the wanted."""
    if name not in POSITIONS or source.shape == wanted.shape:
        return source
    return Resampled(source, wanted)


def _check_equal(wanted: SourceDict, tensors: SourceDict, title: str) -> None:
    """Refuse a model that has not the pretrained one's tensors, behind any prefix."""
    prefixes = {name.removesuffix(end) for end in list(wanted)[:1] for name in tensors if name.endswith(end)}
    if not any(all(prefix + name in tensors for name in wanted) for prefix in prefixes - {""}):
        odd = {how: names for how, names in unlike(wanted, tensors).items() if names}
        shown = {
            how: [f"{n} {tuple(tensors[n].shape)} for {tuple(wanted[n].shape)}" for n in names]
            if how == "of another shape"
            else names
            for how, names in odd.items()
        }
        found = "; ".join(f"{len(names)} {how}: {listed(names)}" for how, names in shown.items())
        if len(odd.get("missing", ())) == len(wanted):
            raise StaError(
                f"{title} has none of the pretrained model's tensors: {found}. Give a model that was fine-tuned from it."
            )
        if odd:
            names = [name for found in odd.values() for name in found]
            more = ". `sta merge --resample` resamples positions of another resolution."
            raise StaError(
                f"{title} does not have the pretrained model's tensors: {found}. Give a model that was fine-tuned from "
                f"it, or merge the others alone: {skips(names)}{more if set(names) <= set(POSITIONS) else ''}"
            )


def open_task(
    task: str,
    files: TaskSource,
    method: MergeMethod,
    reference: SourceDict,
    stack: ExitStack,
    base: Path | None = None,
    part: Part | None = None,
) -> tuple[SourceDict, dict[str, str]]:
    """What a method reads of a task besides importance: fine-tuned encoder or vector, and metadata.

    The other arguments are as in :func:`open_encoder`.

    Raises:
        StaError: the file is not given, is missing or broken, or does not fit.
    """
    wanted, other = ("vector", "finetuned") if method.takes_vectors else ("finetuned", "vector")
    path = getattr(files, wanted)
    if path is None or getattr(files, other) is not None:
        raise StaError(
            f"task {task!r}: method '{method.title}' reads {wanted!r} and not {other!r}; given are "
            f"{listed(key for key in ('finetuned', 'vector') if getattr(files, key) is not None)}. Masked task vectors are "
            "added by method 'vectors' and taken out by method 'vector' of sta forget; the others take fine-tuned encoders."
        )
    if wanted == "finetuned":
        return open_encoder(path, reference, f"task {task!r}", stack, base, part)
    with saying(f"task {task!r}"):
        vector, metadata = open_vector(path, stack)
    # A vector is of weights alone; the other tensors are the pretrained model's own.
    buffers = {name: source for name, source in reference.items() if not is_weight(name, source.dtype)}
    return (part or Part()).of({**vector, **buffers}), metadata


def open_scores(
    task: str,
    files: TaskSource,
    measure: str,
    finetuned: SourceDict,
    pretrained: SourceDict,
    digest: str | None,
    stack: ExitStack,
) -> SourceDict:
    """The importance of one task's weights by a measure.

    Args:
        task: the task's name.
        files: its files; ``importance`` is not read by the measures that need no data.
        measure: one of :data:`MERGE_MEASURES`; ``"file"`` takes the file's tensors as they are, of
            whatever measure and origin, scored on whatever weights.
        finetuned: the task's weights.
        pretrained: the pretrained weights.
        digest: digest of the task's weights, if their file has it.
        stack: what closes the file.

    Raises:
        StaError: there is no file, it holds another measure, or it was scored on other weights.
    """
    if measure not in READ_MEASURES:
        return {
            name: MEASURES[measure].source(source, pretrained[name], None)
            for name, source in finetuned.items()
            if is_weight(name, source.dtype)
        }
    path, what = files.importance, f"importance of task {task!r}"
    if path is None:
        raise StaError(
            f"The {what} by {measure!r} was asked for, but no importance file is given. {_how_to_score(measure)}."
        )
    if isinstance(path, Mapping):  # as it was made, in this process
        return open_checkpoint(path, stack).tensors
    with saying(what):
        file = open_checkpoint(path, stack)
    scores, metadata = _with_bounds(file.tensors, file.metadata), file.metadata
    if measure == AS_GIVEN:
        return scores
    stored, wanted = metadata.get("measure", "lp"), find_measure(measure)
    if stored not in (measure, wanted.file):
        names = [name for name, other in MEASURES.items() if other.file == wanted.file]
        made = f", from which {listed(names)} are made" if len(names) > 1 else ""
        raise StaError(
            f"{what}: '{path}' was scored with measure {stored!r}, but {measure!r} is asked for. Score with measure "
            f"{wanted.file!r}{made}."
        )
    _check_digest(path, metadata, digest, what)
    if stored == measure:
        return scores
    return {
        name: wanted.source(finetuned[name], pretrained.get(name), source) if name in finetuned else source
        for name, source in scores.items()
    }


def _how_to_score(measure: str) -> str:
    if measure == AS_GIVEN:
        return "Name a file with one number for every weight, or use measure 'amp', which needs none"
    file = MEASURES[measure].file
    how = f"Score the task with {score_line(file or measure)} and name its file"
    # A method that weighs by Fisher information cannot go by another measure.
    return how if measure == "fisher" else f"{how}, or use measure 'amp', which needs none"


def open_grams(
    what: str,
    path: str | None,
    title: str,
    finetuned: SourceDict,
    digest: str | None,
    stack: ExitStack,
    option: str = "the task's 'gram'",
) -> SourceDict:
    """The Gram matrices in a file, by the name of a weight ``[out, in]``: ``[in, in]``.

    Args:
        what: whose they are, for messages: ``"task 'digits'"``.
        path: the file; ``None`` if none is given.
        title: the title of the method that reads them.
        finetuned: the weights of the encoder.
        digest: digest of the weights that they must be of; ``None`` for any.
        stack: what closes the file.
        option: where the file is named, for messages.

    Raises:
        StaError: there is no file, it holds something else, or it was collected from other weights.
    """
    if path is None:
        raise StaError(
            f"{what}: method '{title}' reads the Gram matrices of the linear layers' inputs, but no file is given. Make one with "
            f"{score_line(GRAM)}, and name it as {option}."
        )
    with saying(what):
        file = open_checkpoint(path, stack)
    grams, metadata = file.tensors, file.metadata
    stored = metadata.get("measure", GRAM)
    if stored != GRAM:
        raise StaError(
            f"{what}: '{path}' holds the importance by measure {stored!r} and no Gram matrices. Name the file that "
            f"{score_line(GRAM)} wrote; that of the importance is named as 'importance'."
        )
    _check_digest(path, metadata, digest, what)
    odd = [
        f"{name} {tuple(source.shape)}"
        for name, source in grams.items()
        if name not in finetuned
        or len(finetuned[name].shape) != 2
        or tuple(source.shape) != (finetuned[name].shape[1],) * 2
        or not source.dtype.is_floating_point
    ]
    if odd or not grams:
        raise StaError(
            f"{what}: '{path}' does not hold the Gram matrices of this encoder: {listed(odd) if odd else 'it is empty'}. There "
            "has to be one tensor [in, in] by the name of each linear layer's weight [out, in]; make it with "
            f"{score_line(GRAM)}."
        )
    return grams


def _check_digest(path: str, metadata: Mapping[str, str], digest: str | None, what: str) -> None:
    scored = metadata.get("weights_sha256")
    if digest is not None and scored is not None and digest != scored:
        raise StaError(
            f"{what}: '{path}' was scored on other weights than those given (their digests are {scored[:12]}… and "
            f"{digest[:12]}…). Score the fine-tuned model that is to be merged: "
            f"{score_line(metadata.get('measure', 'lp'))}."
        )


def _with_bounds(scores: SourceDict, metadata: Mapping[str, str]) -> SourceDict:
    """The scores, with the smallest and largest entries that the file's metadata has."""
    if not isinstance(scores, TensorFile):
        return scores
    known = read_bounds(metadata) or {}
    return {n: source.with_bounds(known[n]) if n in known else source for n, source in scores.items()}
