"""The table that a model card begins with, as hubs read it: a source's, and one's own."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from sta_lightning.documents import read_yaml
from sta_lightning.errors import StaWarning
from sta_lightning.weights.formats.adapter import CONFIG as ADAPTER_CONFIG
from sta_lightning.weights.formats.checkpoint import CONFIG, USUAL_NAMES, read_table
from sta_lightning.weights.opened import PathLike
from sta_lightning.weights.provenance import PACKAGE, decoded

ACCURACY = "accuracy"
"""The metadata's entry for measured accuracies: JSON, task -> share of images, 0 to 1."""
ORIGINS = "origins"
"""The metadata's entry: JSON, role of a model that was read -> what :func:`origin_of` tells."""
README = "README.md"
"""The card of a folder."""
_LICENCE = ("license", "license_name", "license_link")
# What a model of this package's is to those that it was made of, by its kind, in the hub's words.
_RELATIONS = {"fused": "merge", "forgotten": "merge", "finetuned": "finetune"}
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII)
_TABLE = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_INDEX = "model-index"
_LONGEST = 1 << 20  # bytes that are read of a card


def card_place(path: PathLike) -> Path:
    """Where this package writes the card of a model: in its folder, or beside its file."""
    place = Path(path)
    return place / README if place.is_dir() else place.with_name(f"{place.stem}-card.md")


def read_card(path: PathLike) -> tuple[dict[str, Any], str]:
    """What the card of a model says: the table that it begins with, and its text.

    Args:
        path: the model, a file or a folder. Of a file the card is that which this package wrote
            beside it, else that of its folder, if the file has a usual name there.

    Returns:
        Both are empty where there is no card; the table is where it cannot be read, with a warning.
    """
    place, own = Path(path), card_place(path)
    if not own.is_file() and place.name in USUAL_NAMES:
        own = place.with_name(README)
    if not own.is_file():
        return {}, ""
    with own.open("rb") as stream:
        text = stream.read(_LONGEST).decode(errors="replace")
    import yaml  # a merge of files without cards needs none

    found = _TABLE.match(text)
    try:
        table = read_yaml(found[1]) if found else {}
    except yaml.YAMLError as error:
        warnings.warn(
            f"'{own}' begins with a table that is not readable as YAML ({' '.join(str(error).split())}): licence and base model "
            "that it names are not handed on.",
            StaWarning,
            stacklevel=2,
        )
        table = {}
    return (table if isinstance(table, dict) else {}), text


def origin_of(path: PathLike) -> dict[str, Any]:
    """What a model that is read says of itself in the words of model hubs.

    Args:
        path: a file or a folder.

    Returns:
        ``models``, names of repositories: its own, if it lies in the hub's cache; else those that
        its card names as ``base_model``, or its configuration as the model that it was loaded from.
        And ``license``, ``license_name``, ``license_link``, as the card has them. What nobody says
        is left out.

    Raises:
        StaError: a configuration beside it is no table in JSON.
    """
    place = Path(path)
    table, _ = read_card(place)
    folder = place if place.is_dir() else place.parent
    configs = {CONFIG: "_name_or_path", ADAPTER_CONFIG: "base_model_name_or_path"}
    said = _texts(table.get("base_model"))
    if not said and (place.is_dir() or place.name in USUAL_NAMES):
        files = {folder / name: key for name, key in configs.items() if (folder / name).is_file()}
        # As transformers has it: what is there is a folder, whatever it is called.
        loaded = [name for file, key in files.items() for name in _texts(read_table(file).get(key))]
        said = [name for name in loaded if not Path(name).exists()]
    models = _in_cache(place) or [name for name in said if _REPOSITORY.fullmatch(name)]
    licence = {key: found for key in _LICENCE if (found := ", ".join(_texts(table.get(key))))}
    return {**({"models": models} if models else {}), **licence}


def _in_cache(place: Path) -> list[str]:
    """The repository whose copy in the hub's cache this is: ``models--org--name/snapshots/…``."""
    parts = place.absolute().parts
    found = [part for part, inner in pairwise(parts) if inner == "snapshots"]
    return [n.removeprefix("models--").replace("--", "/") for n in found if n.startswith("models--")]


def _texts(value: Any) -> list[str]:
    """A text, or the texts of a list."""
    return [
        text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text
    ]


def origins_entry(roles: Mapping[str, PathLike]) -> dict[str, str]:
    """The metadata's entry on the models behind roles; none where none of them says anything.

    Raises:
        StaError: as :func:`origin_of`.
    """
    found = {role: said for role, path in sorted(roles.items()) if (said := origin_of(path))}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return {ORIGINS: text} if found else {}


def origins(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By role: what the models say that a model was made of; see :func:`origin_of`."""
    found = decoded(metadata, ORIGINS)
    if not isinstance(found, Mapping):
        return {}
    return {role: dict(said) for role, said in found.items() if isinstance(said, Mapping)}


def licences(metadata: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By role: the licence of a model that a model was made of, where it says one."""
    found = {
        role: {key: said[key] for key in _LICENCE if isinstance(said.get(key), str)}
        for role, said in origins(metadata).items()
    }
    return {role: licence for role, licence in found.items() if licence}


def agreed_licence(metadata: Mapping[str, str]) -> dict[str, str]:
    """The pretrained model's licence, if no other model has another; else nothing: a choice."""
    found = licences(metadata)
    own = found.get("pretrained", {})
    return own if all(licence == own for licence in found.values()) else {}


def front_matter(name: str, metadata: Mapping[str, str], library: str, tags: Iterable[str] = ()) -> list[str]:
    """The lines of a card's table in YAML, for hubs.

    Args:
        name: the model's name.
        metadata: of its file: ``kind``, ``origins``, ``accuracy``.
        library: what loads the model.
        tags: besides those that follow from ``kind``.
    """
    import yaml

    relation = _RELATIONS.get(metadata.get("kind", "").split(":")[0])
    models = [name for said in origins(metadata).values() for name in _texts(said.get("models"))]
    table: dict[str, Any] = {"library_name": library}
    if models := list(dict.fromkeys(filter(_REPOSITORY.fullmatch, models))):
        table |= {"base_model": models} | ({"base_model_relation": relation} if relation else {})
    merged = ["merge", "model-merging"] if relation == "merge" else []
    table |= agreed_licence(metadata) | {"tags": [*merged, PACKAGE, *tags]}
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": task, "type": re.sub(r"[^\w.-]+", "-", task).strip("-")},
            "metrics": [{"type": ACCURACY, "value": share}],
        }
        for task, share in accuracies(metadata).items()
    ]
    table |= {_INDEX: [{"name": name, "results": results}]} if results else {}
    return ["---", *yaml.safe_dump(table, sort_keys=False, allow_unicode=True).splitlines(), "---", ""]


def accuracies(metadata: Mapping[str, str]) -> dict[str, float]:
    """Measured accuracies by task, shares of 1, where the metadata tells them."""
    found = decoded(metadata, ACCURACY)
    numbers = found.items() if isinstance(found, Mapping) else ()
    return {task: float(share) for task, share in numbers if isinstance(share, int | float)}


def measured(path: PathLike, digests: Iterable[str]) -> dict[str, float]:
    """The accuracies in the card of a model, as :func:`front_matter` writes them.

    Args:
        path: the model, a file or a folder.
        digests: the SHA-256 of its files: a card that does not name them all is of another model.

    Returns:
        Task -> share; empty where there is no card, or none of this model.
    """
    table, text = read_card(path)
    if not all(digest in text for digest in digests):
        return {}
    try:
        return {
            str(result["dataset"]["name"]): float(metric["value"])
            for model in table.get(_INDEX, ())
            for result in model["results"]
            for metric in result["metrics"]
            if metric["type"] == ACCURACY
        }
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"the accuracies in the card of '{path}' ({_INDEX}) are not as this package wrote them ({error!r}), and are not "
            "handed on.",
            StaWarning,
            stacklevel=2,
        )
        return {}
