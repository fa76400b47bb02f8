"""What a person sees while a benchmark runs: how far it is, and a line for each finished cell."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.warnings import PossibleUserWarning
from tqdm import tqdm  # type: ignore[import-untyped]

from sta_lightning.callbacks.progress import Lines, redraws, without_notices
from sta_lightning.errors import printable

# Warnings that this package causes on purpose, by the beginning of their text: short epochs on
# purpose, a resumed run that goes on in its own log folder, no GPU wanted, loaders in the main
# process, limits on batches, the end of a curve where a merge leaves the model as it is.
_EXPECTED = (
    r"The number of training batches .* is smaller than the logging interval",
    r"Experiment logs directory",
    r"GPU available but not used",
    r"The '.*_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
    r"You called `self.log\(.*` but have no logger configured",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Nothing is changed: the result is",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notices and the expected warnings; everything else shows."""
    with without_notices(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for text in _EXPECTED:
            warnings.filterwarnings("ignore", message=f".*{text}")
        yield


def bar(description: str, total: int, *, unit: str) -> tqdm | Lines:
    """A progress bar that shows itself after one second and leaves nothing behind.

    Where it could not be redrawn, plain lines.
    """
    if not redraws():
        return Lines(description, total, unit=unit)
    return tqdm(
        total=total,
        desc=f"  {printable(description)}",
        unit=unit,
        delay=1.0,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2,
    )


def say(text: str) -> None:
    """Print one line without breaking a bar."""
    tqdm.write(printable(text), file=sys.stdout)
    sys.stdout.flush()
