"""Pictures in files and folders, in a natural order."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sta_lightning.cli.checks import check_pictures
from sta_lightning.encoders.pictures import ENDINGS, Found, find_images
from sta_lightning.errors import StaError


def find_pictures(places: Sequence[Path]) -> Found:
    """List pictures.

    Args:
        places: Files, which are taken whatever they are called, and folders, in which every file
            with a picture's ending is found, at any depth, in the order in which people count:
            ``2.png`` before ``10.png``. Hidden files are left out.

    Returns:
        Every picture once, in the order of ``places``, and the folders' other files.

    Raises:
        StaError: a place is not there, or a folder holds no picture.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = find_images(place)
            pictures = sorted(inside.images, key=natural_key)
            others += inside.others
            if not pictures:
                raise StaError(
                    f"the folder '{place}' holds no pictures, at any depth: files that end in {', '.join(ENDINGS)} are "
                    "looked for. Name the files themselves if they end otherwise."
                )
        else:
            check_pictures(place)
            pictures = [place]
        for picture in pictures:
            found.setdefault(os.path.abspath(picture), picture)
    return Found(list(found.values()), others)


def natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key: numbers within names count as numbers, capital letters as small ones."""
    pieces = re.split(r"(\d+)", "\0".join(path.parts))
    counted = [
        (piece.lower(), 0) if place % 2 == 0 else ("", int(piece)) for place, piece in enumerate(pieces)
    ]
    return counted, str(path)
