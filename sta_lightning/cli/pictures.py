"""Pictures in files and folders, in a natural order; an error in decoding names the file."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sta_lightning.errors import StaError, listed

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """List pictures.

    Args:
        places: Files, which are taken whatever they are called, and folders, in which every file
            with a picture's ending is found, at any depth, in the order in which people count:
            ``2.png`` before ``10.png``. What begins with a dot is left out.

    Returns:
        Every picture once, in the order of ``places``.

    Raises:
        StaError: a place is not there, or a folder holds no picture.
    """
    found: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            pictures = _inside(place)
            if not pictures:
                raise StaError(
                    f"the folder '{place}' holds no pictures, at any depth: files that end in {listed(SUFFIXES, limit=20)} are "
                    "looked for. Name the files themselves if they end otherwise."
                )
        elif place.is_file():
            pictures = [place]
        else:
            raise StaError(
                f"there is no file or folder '{place}' (looked from {Path.cwd()}). Give pictures, or folders of them."
            )
        for picture in pictures:
            found.setdefault(os.path.abspath(picture), picture)
    return list(found.values())


def read_picture(path: Path) -> Image.Image:
    """Decode a picture, in red, green and blue; of an animation the first frame.

    Raises:
        StaError: names the file, if it does not decode.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds on broken files
        # Pillow says "cannot identify image file" and names the file in its own way: the path is
        # told here already.
        why = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
        raise StaError(
            f"the picture '{path}' cannot be decoded: {why}. Take it out, put a whole one in its place, or leave such files "
            "out with --skip_broken."
        ) from error


def natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key: numbers within names count as numbers, capital letters as small ones."""
    pieces = re.split(r"(\d+)", "\0".join(path.parts))
    counted = [
        (piece.lower(), 0) if place % 2 == 0 else ("", int(piece)) for place, piece in enumerate(pieces)
    ]
    return counted, str(path)


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(found, key=natural_key)
