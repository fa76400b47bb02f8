"""How deep in its model a tensor lies, by its name."""

from __future__ import annotations

from collections.abc import Iterable


def block_number(name: str) -> int | None:
    """The block that a tensor belongs to, or None: the first number in its dotted name.

    ``resblocks.3.…`` lies in block 3, ``stages.2.blocks.5.…`` in 2. Where a word that ends in a
    number stands before it, that is the stage, and the stage is the block: ``layer4.0.…``, as
    ResNets have it, lies in 4.
    """
    before = ""
    for part in name.split("."):
        if part.isdecimal():
            stage = before[len(before.rstrip("0123456789")) :]
            return int(stage or part)
        before = part
    return None


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep each tensor lies, from 0 in the first of the model's blocks to 1 in the last.

    0 for what lies in no block, and in a model of one.
    """
    numbers = {name: block_number(name) for name in names}
    places = {
        block: place for place, block in enumerate(sorted({n for n in numbers.values() if n is not None}))
    }
    last = max(len(places) - 1, 1)
    return {name: 0.0 if block is None else places[block] / last for name, block in numbers.items()}
