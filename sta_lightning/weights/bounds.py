"""Smallest and largest entry of every tensor, as an importance file carries them in its metadata.

Min-max normalisation (Eq. 13) needs them before it can look at the first entry; with them in the
file, a merge reads each importance once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch import Tensor

from sta_lightning.arithmetic.states import bounds, floating_names
from sta_lightning.documents import read_json
from sta_lightning.errors import StaError

KEY = "extents"
"""The metadata's key."""


def all_bounds(state: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Smallest and largest entry of every floating-point tensor; (0, 0) for an empty one."""
    return {name: bounds(state[name]) for name in floating_names(state)}


def write_bounds(found: Mapping[str, tuple[float, float]]) -> str:
    """The text of :data:`KEY`: JSON, tensor name -> [smallest, largest], to the last bit.

    Raises:
        StaError: if a number is not finite, which JSON cannot hold.
    """
    try:
        return json.dumps(
            {name: [float(low), float(high)] for name, (low, high) in found.items()},
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )
    except ValueError as error:
        raise StaError(
            f"the bounds of the tensors cannot be recorded: {error}. Score the model again."
        ) from error


def read_bounds(metadata: Mapping[str, str]) -> dict[str, tuple[float, float]] | None:
    """What :func:`write_bounds` has put into a file's metadata; ``None`` if there is no entry.

    Raises:
        StaError: if the entry is there and is something else.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        found = {str(name): (float(low), float(high)) for name, (low, high) in read_json(text).items()}
        for name, (low, high) in found.items():
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"'{name}': {low} to {high}")
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise StaError(
            f"the metadata's entry '{KEY}' is not a table of tensor name -> [smallest, largest] ({error}). It was not "
            "written by this package, or was changed since; make the file again, or remove the entry."
        ) from error
