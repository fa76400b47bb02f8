"""The exception, and the warning, that tell a user what went wrong and how to mend it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


class StaError(ValueError):
    """A mistake in what was asked or in what was given.

    Its message is complete on its own: what was asked, what was found, how to mend it. The command
    line shows only that message; a traceback is of no use to the person who reads it.
    """


class StaWarning(UserWarning):
    """What was done may not be what was meant; the command line shows it as one line."""


class MissingError(StaError, FileNotFoundError):
    """A file that was named is not there: also what Python's own ``open`` raises."""


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


def score_line(measure: str) -> str:
    """The command, for a message, that makes the file that a merge reads for a measure."""
    samples = 256 if measure in ("fisher", "gram") else 32
    return (
        f"`sta score --model.task=NAME --weights=FILE --measure={measure} --samples={samples} --output=FILE`"
    )


def printable(text: str, *, longest: int | None = None) -> str:
    r"""A text as a terminal may have it: what is not for reading is spelt out, as ``\u001b``.

    Args:
        text: any text; names and metadata of files, and values of configurations, may hold orders
            to a terminal. Line ends stay.
        longest: how many characters are shown, the beginning and the end; ``None`` for all.
    """
    if longest is not None and len(text) > longest:
        end = longest // 3
        text = f"{text[: longest - end - 1]}…{text[-end:]}"
    if text.isprintable():
        return text
    return "".join(
        letter if letter == "\n" or unicodedata.category(letter) not in _UNREADABLE else _spelt(letter)
        for letter in text
    )


_UNREADABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _spelt(letter: str) -> str:
    """A character as JSON and Python spell it."""
    pairs = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pairs[at : at + 2].hex()}" for at in range(0, len(pairs), 2))
