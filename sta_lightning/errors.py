"""The one exception that tells a user what went wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable


class StaError(Exception):
    """A mistake in what was asked or in what was given.

    Its message is complete on its own: what was asked, what was found, how to mend it. The command
    line shows only that message; a traceback is of no use to the person who reads it.
    """


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Names for an error message: quoted, separated by commas, the rest counted.

    Args:
        names: what to list, in the order in which it should appear.
        limit: how many are spelled out.

    Returns:
        For example ``'a', 'b' and 7 more``; ``none`` for no names.
    """
    everything = list(names)
    if not everything:
        return "none"
    shown = ", ".join(f"'{name}'" for name in everything[:limit])
    more = len(everything) - limit
    return f"{shown} and {more} more" if more > 0 else shown
