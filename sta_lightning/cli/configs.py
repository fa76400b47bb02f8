"""Configuration files, read with errors that name the file, the line and the key."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sta_lightning.cli.explain import nearest
from sta_lightning.cli.shipped import PREFIX, names
from sta_lightning.documents import read_yaml
from sta_lightning.errors import StaError


def read_config(name: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        StaError: The file is missing, is no valid YAML, or holds no mapping.
    """
    path = Path(name)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        others = sorted(p.name for p in path.parent.glob("*.y*ml"))
        hint = f" In {str(path.parent)!r} there are: {', '.join(others[:20])}." if others else ""
        known = path.with_suffix("").as_posix().removeprefix("configs/")
        hint = f" The package ships it: --config {PREFIX}{known}." if known in names() else hint
        raise StaError(
            f"--config {name!r}: the file {kind} (looked from {Path.cwd()}).{hint} Give the path of a YAML file."
        )
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StaError(
            f"--config {name!r}: the file is not valid YAML{where}: {problem}. Mend that line "
            "(usual causes: a missing space after a colon, a tab, an unclosed bracket or quote)."
        ) from error
    except UnicodeDecodeError as error:
        raise StaError(f"--config {name!r}: the file is not text in UTF-8. Give a YAML file.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise StaError(
            f"--config {name!r}: expected a mapping such as `model: ...`, `data: ...`, `trainer: ...`; "
            f"found a {type(content).__name__}. See those that `sta configs` lists."
        )
    return content


def asked_for(words: Sequence[str], configs: Iterable[Mapping[str, Any]], group: str, name: str) -> Any:
    """The last value that the user gave for ``group.name``; ``None`` if there is none."""
    value = None
    for config in configs:
        section = config.get(group)
        if isinstance(section, Mapping):
            inner = section.get("init_args")
            for place in (section, inner if isinstance(inner, Mapping) else {}):
                value = place.get(name, value)
    for prefix in (f"--{group}.{name}", f"--{group}.init_args.{name}"):
        for index, word in enumerate(words):
            if word.startswith(f"{prefix}="):
                value = _value(word.removeprefix(f"{prefix}="))
            elif word == prefix and index + 1 < len(words):
                value = _value(words[index + 1])
    return value


def check_keys(name: str, config: Mapping[str, Any], options: Iterable[str], command: str) -> None:
    """Refuse a key of the file ``name`` that is none of a subcommand's options, dotted.

    jsonargparse does so too, but only after it has missed what is required, and without the file's
    name.

    Raises:
        StaError: There is no such option; the nearest is named.
    """
    sections = {f"{key}.": value for key, value in config.items() if isinstance(value, Mapping)}
    for prefix, found in {"": config, **sections}.items():
        known = {option.removeprefix(prefix).split(".")[0] for option in options if option.startswith(prefix)}
        # A section without options of its own is one value, a class or a mapping.
        for key in known and found.keys() - known:
            raise StaError(
                f"--config {name!r}: {prefix}{key} is not an option of `sta {command}`."
                f"{nearest(str(key), known)} There are: {', '.join(sorted(known))}."
            )


def _value(text: str) -> Any:
    """What a word means, or the word itself where it is no YAML: the parser will say so."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text
