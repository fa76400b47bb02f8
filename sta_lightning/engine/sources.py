"""Which files a task has: as named, or found beside its checkpoint. Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning.errors import MissingError, StaError, listed

_BESIDE = ("importance", "gram", "head")
"""What may lie beside a checkpoint, as ``NAME-importance.safetensors`` or without ``NAME-``."""
# Names that tell nothing of a task: its folder's name does.
_PLAIN = {
    *("encoder", "model", "checkpoint", "weights", "finetuned", "best", "last"),
    *("pytorch_model", "open_clip_model", "open_clip_pytorch_model", "model.safetensors.index"),
}


@dataclass
class TaskSource:
    """The files of one task that goes into a merge.

    Args:
        finetuned: The fine-tuned encoder's weights; ``None`` if ``vector`` is given.
        importance: The importance that ``sta score`` wrote; ``None`` for that which lies beside
            ``finetuned`` as ``NAME-importance.safetensors`` or ``importance.safetensors``, if any.
        head: The task's head; ``None`` for that beside ``finetuned``, or to make it from the
            pretrained model.
        vector: The task's masked task vector, which an earlier ``sta merge`` wrote, in place of a
            fine-tuned encoder.
        gram: The Gram matrices that ``sta score --measure=gram`` wrote, for methods that read them;
            ``None`` for those beside ``finetuned``.
    """

    finetuned: str | None = None
    importance: str | None = None
    head: str | None = None
    vector: str | None = None
    gram: str | None = None


def task_sources(
    tasks: Mapping[str, TaskSource | Path] | Mapping[str, Any] | Sequence[str],
    shared: TaskSource | Mapping[str, Any],
) -> dict[str, TaskSource]:
    """Each task's files.

    Args:
        tasks: The files of every task (a path alone is its fine-tuned encoder), or the tasks' names
            alone.
        shared: Where the files lie that ``tasks`` does not give; ``{task}`` in a path stands for
            the task's name.

    Raises:
        StaError: a task is named twice.
    """
    names = list(tasks)
    if len(set(names)) < len(names):
        raise StaError(f"the tasks {listed(names)} have one twice; each can be merged once.")
    found = {}
    for name in names:
        own = _given(tasks[name]) if isinstance(tasks, Mapping) else {}
        paths = {key: path.replace("{task}", name) for key, path in _given(shared).items()}
        found[name] = TaskSource(**{**paths, **own})
    # A model may be in memory, where Python merges.
    on_disk = [files for files in found.values() if isinstance(files.finetuned, str)]
    places = Counter(_folder(str(files.finetuned)) for files in on_disk)
    for files in on_disk:
        place = str(files.finetuned)
        _find_beside(files, place, alone=places[_folder(place)] == 1)
    return found


def _given(files: TaskSource | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(files, str | Path):
        return {"finetuned": str(files)}
    entries = vars(files) if isinstance(files, TaskSource) else files
    return {key: path for key, path in entries.items() if path is not None}


def _find_beside(files: TaskSource, finetuned: str, *, alone: bool) -> None:
    """Fill in the files that lie beside a checkpoint; one without its name only if it is alone."""
    folder, stem = _folder(finetuned), _stem(finetuned)
    for kind in _BESIDE:
        places = [folder / f"{stem}-{kind}.safetensors"]
        places += [folder / f"{kind}.safetensors"] if alone else []
        for place in places:
            if getattr(files, kind) is None and place.is_file() and place != Path(finetuned):
                setattr(files, kind, str(place))


def _folder(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _stem(path: str) -> str:
    place = Path(path)
    return place.name if place.is_dir() else place.stem


def task_names(paths: Iterable[str]) -> dict[str, str]:
    """Fine-tuned models by the names of their tasks.

    Args:
        paths: ``name=path``, or a path alone, which is called by its file's or folder's name; by
            its folder's where the file's is the usual one for weights, or that of another too.

    Raises:
        StaError: two have one name.
    """
    given = list(paths)
    stems = Counter(_stem(path) for path in given)
    found: dict[str, str] = {}
    for word in given:
        name, equals, path = word.partition("=")
        if not equals or "/" in name or Path(word).exists():
            path, name = word, _stem(word)
            if (name in _PLAIN or stems[name] > 1) and not Path(word).is_dir():
                name = Path(word).absolute().parent.name or name
        if name in found:
            raise StaError(
                f"the files '{found[name]}' and '{path}' are both of a task '{name}'. Name one of them otherwise: "
                f"NAME={path}"
            )
        found[name] = path
    return found


def called(model: object) -> str:
    """What to call a model in a message: its path, or where it is instead."""
    return f"'{model}'" if isinstance(model, str | Path) else "in memory"


def check_there(path: str | Path, what: str) -> None:
    """Refuse a path at which there is nothing; ``what`` it is of, for the message.

    Raises:
        MissingError: it tells from where the path was looked for.
    """
    if not Path(path).exists():
        where = "" if Path(path).is_absolute() else f" (looked from '{Path.cwd()}')"
        raise MissingError(f"{what}: there is no weights file '{path}'{where}. Check the path.")


def check_output(output: str | Path, like: str | Path | None = None) -> None:
    """Refuse a place to write a model to, before any work is done.

    Args:
        output: a safetensors file; or a new folder, where ``like`` is one.
        like: where the model that is changed comes from, if that is a file or a folder.

    Raises:
        StaError: says what to give instead.
    """
    place = Path(output)
    if place.suffix == ".safetensors" and not place.is_dir():
        return
    if like is None or not Path(like).is_dir():
        what = "a folder" if place.is_dir() else "not named as a safetensors file"
        why = "" if like is None else ", and a folder is made only of a folder"
        raise StaError(
            f"output: '{output}' is {what}{why}. Give a file name that ends in .safetensors; folders that are missing are made."
        )
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise StaError(
            f"output: there is something at '{output}' already, and a folder is written to a place of its own. Give another "
            "name, or remove it."
        )
