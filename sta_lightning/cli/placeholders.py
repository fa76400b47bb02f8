"""``{task}`` in a configuration: texts that follow from the model's options."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import Namespace

from sta_lightning.errors import StaError, listed

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")
# Placeholders of another kind: metrics in a checkpoint's name, each task's name in a merge's files.
_NOT_OURS = ("filename", "files")


def fill_placeholders(config: Namespace) -> None:
    """Replace every ``{option}`` in the texts of a subcommand's configuration, in place.

    ``{option}`` stands for the model's option of that name where it is a text, such as ``{task}``,
    ``{target}``, ``{encoder}``; a task that is described by a YAML file stands for its name.
    ``{output.parent}`` is the folder of ``output``, the subcommand's or the model's.

    Raises:
        StaError: There is no such option, or it has no value.
    """
    model = config.get("model")
    options = {} if model is None else vars(model.get("init_args", model))
    known = {key: task_name(value) for key, value in options.items() if isinstance(value, str)}
    output = config.get("output") or known.get("output")
    if output is not None:
        known["output.parent"] = str(Path(_filled(output, known, "output")).parent)
    for key, value in vars(config).items():
        config[key] = _filled(value, known, key)


def _filled(value: Any, known: Mapping[str, str], place: str) -> Any:
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: _replacement(match, known, place), value)
    if isinstance(value, PurePath):
        return type(value)(_filled(str(value), known, place))
    if isinstance(value, list):
        return [_filled(item, known, place) for item in value]
    if isinstance(value, Namespace | dict):
        for key, item in dict(vars(value) if isinstance(value, Namespace) else value).items():
            if key not in _NOT_OURS:
                value[key] = _filled(item, known, f"{place}.{key}")
    return value


def _replacement(match: re.Match[str], known: Mapping[str, str], place: str) -> str:
    name = match.group(1)
    if name not in known:
        raise StaError(
            f"{place}: {{{name}}} stands for an option of the model that has no value here. Give it, as in "
            f"--model.{name}=..., or write another; with values there are {listed(sorted(known), limit=20)}."
        )
    return known[name]


def task_name(value: str) -> str:
    """An option's value; for a task that a YAML file describes, the task's name."""
    if not value.endswith((".yaml", ".yml")):
        return value
    from sta_lightning.tasks import get_task  # imports torch: only where a file has to be read

    return get_task(value).name
