"""Files that the user named, checked before any work is done."""

from collections.abc import Mapping
from pathlib import Path

import torch

from sta_lightning.errors import StaError


def check_checkpoint(path: Path, option: str = "--ckpt_path") -> None:
    """Refuse a Lightning checkpoint that is missing or cannot be read.

    Args:
        path: The file.
        option: Where the user gave it.

    Raises:
        StaError: The file is missing or is no checkpoint.
    """
    if not path.is_file():
        folder = path.parent
        others = sorted(p.name for p in folder.glob("*.ckpt")) if folder.is_dir() else []
        hint = f" In {str(folder)!r} there are: {', '.join(others)}." if others else ""
        raise StaError(
            f"{option}: there is no file {str(path)!r}.{hint} Give the path of a checkpoint that a fit has left."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise StaError(
            f"{option}: {str(path)!r} cannot be read as a checkpoint ({type(error).__name__}). It may be damaged, "
            "of another format, or hold more than weights and plain values. Give a .ckpt that a fit has left."
        ) from error
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise StaError(f"{option}: {str(path)!r} is no Lightning checkpoint: it holds no 'state_dict'.")


def check_output(path: Path) -> None:
    """Refuse a place to write weights to, before any work is done.

    Raises:
        StaError: It is a folder, or not named as a safetensors file.
    """
    if path.is_dir() or path.suffix != ".safetensors":
        raise StaError(
            f"--output: {str(path)!r} is {'a folder' if path.is_dir() else 'not named as a safetensors file'}. "
            "Give a file name that ends in .safetensors; folders that are missing are made."
        )
