"""Files that the user names: options for a result, and checks before any work is done."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat

from sta_lightning.errors import StaError


def check_checkpoint(path: Path, option: str = "--ckpt_path") -> Mapping[Any, Any]:
    """Refuse a Lightning checkpoint, given by an option, that is missing or cannot be read.

    Returns:
        What it says, read without running code.

    Raises:
        StaError: The file is missing or is no checkpoint.
    """
    from sta_lightning.weights.formats.archive import open_pickled  # imports torch
    from sta_lightning.weights.formats.states import as_mapping

    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.ckpt"))
        hint = f" In {str(path.parent)!r} there are: {', '.join(others)}." if others else ""
        raise StaError(
            f"{option}: there is no file {str(path)!r}.{hint} Give the path of a checkpoint that a fit has left."
        )
    try:
        with ExitStack() as stack:
            content = as_mapping(open_pickled(path, stack).content)
    except StaError as error:
        raise StaError(
            f"{option}: {str(path)!r} cannot be read as a checkpoint: {error} Give a .ckpt that a fit has left."
        ) from error
    if content is None or "state_dict" not in content:
        raise StaError(f"{option}: {str(path)!r} is no Lightning checkpoint: it holds no 'state_dict'.")
    return content


def add_output(parser: ArgumentParser) -> None:
    """Add the options of a merge and of a forgetting besides what is merged."""
    help = (
        "File for the model that is made (safetensors), replaced whole, whose metadata names the method, its settings and the "
        "SHA-256 of every source; or a new folder, if the model that is changed is one."
    )
    parser.add_argument("--output", type=Path, required=True, help=help)
    help = "Whether to measure that file's accuracy on every test split, on the screen and in every logger."
    parser.add_argument("--evaluate", type=bool, default=True, help=help)


def add_timeout(parser: ArgumentParser) -> None:
    """Add the option of a run that may have several processes."""
    help = (
        "Seconds that a process waits for the others until it takes one for lost; by default PyTorch's 1800."
    )
    parser.add_argument("--timeout", type=PositiveFloat | None, default=None, help=help)


def check_pictures(place: Path) -> None:
    """Refuse a place of pictures at which there is nothing.

    Raises:
        StaError: It tells from where the place was looked for.
    """
    if not (place.is_dir() or place.is_file()):
        raise StaError(
            f"there is no file or folder '{place}' (looked from {Path.cwd()}). Give pictures, or folders of them."
        )
