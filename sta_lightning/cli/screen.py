"""What the command line writes to the terminal: nothing of it is an order to the terminal."""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sta_lightning.errors import StaWarning, printable

_LONGEST = 800  # characters of a message


def process_rank() -> int:
    """Rank of this process by the variables that launchers set; 0 outside of distributed runs."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


_ASCII = {"δ": "delta", "θ": "theta", "λ": "lambda", "γ": "gamma", "Σ": "sum ", "σ": "sigma", "∇": "grad "}
_ASCII |= {"×": "x", "·": "*", "²": "^2", "…": "...", "–": "-", "—": "-", "−": "-", "±": "+-"}
_ASCII |= {"≥": ">=", "≤": "<=", "→": "->", "“": '"', "”": '"', "’": "'", "‘": "'"}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What a terminal shows for letters that it does not know."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(_ASCII.get(letter, "?") for letter in letters), error.end


def readable() -> None:
    """Let standard output and error replace what their encoding lacks, instead of failing."""
    codecs.register_error("sta-ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "sta-ascii":
            stream.reconfigure(errors="sta-ascii")


def say(text: str) -> None:
    """Print on standard output at once."""
    print(printable(text), flush=True)


def complain(message: str, *, kind: str = "error", every_process: bool = False) -> None:
    """Print a message on stderr, in one line.

    Args:
        message: what to say; the middle of a very long one is left out.
        kind: what sort of message it is.
        every_process: whether every process of a distributed run speaks, or the first alone.
    """
    if every_process or process_rank() == 0:
        text = printable(message.replace("\n", " "), longest=_LONGEST)
        print(f"sta: {kind}: {text}", file=sys.stderr)


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """While the block runs, this package's warnings are a line each, once; others are Python's."""
    others, said = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        text = str(message)
        if not issubclass(category, StaWarning):
            others(message, category, *place, **more)
        elif text not in said:
            said.add(text)
            complain(text, kind="warning")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def accuracy_table(found: Mapping[str, float]) -> str:
    """Accuracies by task, shares in [0, 1], as an aligned table."""
    width = max(map(len, found), default=0)
    lines = [f"{'task':<{width}}  accuracy", f"{'-' * width}  --------"]
    return "\n".join(lines + [f"{name:<{width}}  {100 * value:7.2f}%" for name, value in found.items()])


def byte_count(count: int) -> str:
    """A size in words: ``12.3 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
