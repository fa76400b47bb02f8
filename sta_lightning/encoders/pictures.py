"""Images in files: which there are, and decoding to red, green and blue of 8 bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from sta_lightning.errors import StaError

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
"""How the names of images end, in any case: what Pillow reads and people keep images in."""


class Found(NamedTuple):
    """The files of a folder: images, and what is neither an image nor hidden."""

    images: list[Path]
    others: list[Path]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's or an editor's own: ``.…``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def subfolders(folder: Path) -> list[str]:
    """Return the names of a folder's folders in sorted order, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def find_images(folder: Path, *, links: bool = False) -> Found:
    """List a folder's files at any depth, folder by folder in the order of their paths.

    Hidden files, and all that is in hidden folders, are left out.

    Args:
        folder: Where.
        links: Whether to follow symbolic links to folders.
    """
    found = Found([], [])
    for place, folders, files in os.walk(folder, followlinks=links):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            if not is_hidden(name):
                (found.images if name.lower().endswith(ENDINGS) else found.others).append(Path(place, name))
    for paths in found:
        paths.sort(key=lambda path: (str(path.parent), path.name))
    return found


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to red, green and blue of 8 bits; of an animation the first frame.

    Raises:
        StaError: that names the file, if it is not there or does not decode.
    """
    try:
        with Image.open(path) as image:
            return rgb(image)
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise StaError(f"The image {path} is not there: it was moved or removed. Put it back.") from error
    except Exception as error:  # decoders raise all kinds on broken files
        # Pillow says "cannot identify image file" and names the open file in its own way: the path
        # is in the message already.
        why = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
        raise StaError(
            f"The image {path} cannot be decoded: {why.rstrip('.')}. Replace the file by a whole one, or take it out of the "
            "data set."
        ) from error


def rgb(image: Image.Image) -> Image.Image:
    """Make an image red, green and blue of 8 bits, whatever it was.

    Grey values of 16 bits, and floats between 0 and 1, are scaled to 0..255 and rounded, as the PNG
    specification (section 13.12) has it; Pillow's own conversion cuts them off at 255.

    Raises:
        StaError: The image has values whose range nobody knows: integers of 32 bits, or floats
            outside of 0..1.
    """
    mode = image.mode
    # Pillow gives some files of 16 bits as integers of 32.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PPM", "PNG")):
        highest = 65535.0
    elif mode == "F":
        highest = 1.0
    elif mode == "I":
        raise StaError("it has integers of 32 bits, for which no range is agreed: save it in 8 or 16 bits.")
    else:
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64) / highest
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise StaError(
            f"it has floats from {values.min():.4g} to {values.max():.4g}, and only those between 0 and 1 have an agreed "
            "meaning: save it in 8 or 16 bits, or scale it."
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
