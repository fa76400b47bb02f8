"""The short way to say a merge, in the options that it stands for.

``sta merge BASE FILE... -o OUT --method ties --keep 0.3`` is ``--model.pretrained=BASE``,
``--model.tasks=...`` and so on: there is one parser, which reads these.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sta_lightning.cli.catalogue import is_own, methods
from sta_lightning.engine.options import ForgettingOptions, FusionOptions, MergeOptions
from sta_lightning.engine.sources import check_there, task_names
from sta_lightning.errors import StaError

OPTIONS: Mapping[str, type[MergeOptions]] = {"merge": FusionOptions, "forget": ForgettingOptions}
# Options that stand alone.
_ALONE = ("h", "help", "print_config")
_YES_OR_NO = ("true", "false", "yes", "no", "on", "off")
# Options that may be given several times, a pattern each.
_SEVERAL = ("model.only", "model.skip")
# Options that may be given several times, a name and a number (or numbers over the depth) each.
_BY_NAME = ("model.scale", "model.settings.scale", "model.settings.tall", "model.scale_layers")
_SHORT = {"-o": "output", "-c": "config"}
# Options of every method by the names of settings: in the short way they are the method's own, and
# refused where it has none.
_OF_METHODS = ("p", "scale", "normalize")


def spelled_out(name: str, words: Sequence[str]) -> list[str]:
    """A command line of ``sta merge`` or ``sta forget`` in the options of its parser.

    Args:
        name: ``merge`` or ``forget``.
        words: the command line after the subcommand, in the short way, the long one or both.

    Raises:
        StaError: a file is missing, or what is fine-tuned or pretrained is not named.
    """
    files, options = _sorted_out(name, words)
    found: list[str] = []
    given: dict[str, str] = {}
    lists: dict[str, Any] = defaultdict(list)
    by_name: dict[str, Any] = defaultdict(dict)
    for key, value in options:
        given[key] = value or ""
        if key in _SEVERAL and value is not None and not value.startswith("["):
            lists[key].append(value)
        elif key in _BY_NAME and value is not None and "=" in value and not value.startswith("{"):
            named, _, number = value.rpartition("=")
            by_name[key][named] = _numbers(f"--{key.rpartition('.')[2]} {value}", number)
        else:
            found.append(f"--{key}" if value is None else f"--{key}={value}")
    found += [f"--{key}={json.dumps(values)}" for key, values in (lists | by_name).items()]
    if not files:
        return found
    front = _merged(files, given) if name == "merge" else _forgotten(files, given)
    return ["--evaluate=false", *front, *found]


def _numbers(words: str, text: str) -> float | list[float]:
    """A number, or several with commas between them; a StaError, which quotes ``words``."""
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        raise StaError(
            f"{words}: '{text}' is no number. Give NAME=NUMBER, as cars=0.6, several times for several names."
        ) from None
    return found if len(found) > 1 else found[0]


def _sorted_out(name: str, words: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """The files, and the options by their long names."""
    fields = {field.name: field.type for field in dataclasses.fields(OPTIONS[name])}
    flags = {key for key, kind in fields.items() if kind is bool} | {"evaluate"}
    settings = {key for has in methods(name).values() for key in has}
    files: list[str] = []
    options: list[tuple[str, str | None]] = []
    own = False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            files += rest
            break
        if word[:2] in _SHORT and not word.startswith("--"):
            key, value = _SHORT[word[:2]], word[2:].removeprefix("=") or None
        elif word.startswith("-") and word != "-":
            key, equals, text = word.lstrip("-").partition("=")
            value = text if equals else None
        else:
            files.append(word)
            continue
        plain = key.replace("-", "_")
        flag = plain.removeprefix("model.") in flags
        follows = rest[0] if rest and not rest[0].startswith("--") else None
        if value is None and plain not in _ALONE:
            if follows is not None and (not flag or follows.lower() in _YES_OR_NO):
                value = rest.pop(0)
            elif flag:
                value = "true"
        if plain in ("method", "model.method") and value is not None:
            own = is_own(value)
        options.append((key, value))
    return files, [(_long(name, key, fields, settings, own), value) for key, value in options]


def _long(name: str, key: str, fields: Mapping[str, object], settings: set[str], own: bool) -> str:
    """An option's name in the parser; what nobody knows stays as it is."""
    plain = key.replace("-", "_")
    first = plain.split(".")[0]
    if name == "forget" and plain == "base":
        return "model.pretrained"
    if first == "model" or first in ("output", "config", "evaluate", "data", "trainer", "seed_everything"):
        return plain
    if first in fields and plain not in _OF_METHODS:
        return f"model.{plain}"
    if plain in settings or (own and plain not in _ALONE):
        return f"model.settings.{plain}"
    return key


def _merged(files: Sequence[str], given: Mapping[str, str]) -> list[str]:
    base, *tasks = files
    check_there(base, "the pretrained model")
    found = [f"--model.pretrained={base}"]
    if tasks:
        named = task_names(tasks)
        for task, path in named.items():
            check_there(path, f"task '{task}'")
        kind = "vector" if given.get("model.method") == "vectors" else "finetuned"
        found.append(f"--model.tasks={json.dumps({task: {kind: path} for task, path in named.items()})}")
    elif not given.keys() & {"config", "model.tasks", "model"}:
        raise StaError(
            f"only the pretrained model '{base}' is named, and nothing to merge into it. Name the fine-tuned models after it: "
            "sta merge BASE FILE FILE -o OUT."
        )
    return found


def _forgotten(files: Sequence[str], given: Mapping[str, str]) -> list[str]:
    if len(files) > 1:
        raise StaError(
            f"sta forget changes one model, and {len(files)} are named: {' '.join(files)}. Give the model that was fine-tuned on "
            "the task with --finetuned, and the one that it started from with --base."
        )
    check_there(files[0], "the model that shall forget")
    found = [f"--model.model={files[0]}"]
    if given.keys() & {"config", "model"}:
        return found
    finetuned = given.get("model.finetuned") or given.get("model.vector")
    if finetuned is None or (not given.get("model.pretrained") and not given.get("model.encoder")):
        raise StaError(
            "what shall be forgotten is the difference of two models: give --finetuned, the model that was fine-tuned on the "
            "task, and --base, the one that it started from (where that is the model that shall forget, name it twice)."
        )
    ((task, _),) = task_names([finetuned]).items()
    return found if "model.target" in given else [*found, f"--model.target={task}"]
