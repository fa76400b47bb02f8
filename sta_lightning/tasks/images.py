"""Images in files: decoding that names the file at fault, and lists of files with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from sta_lightning.errors import StaError, listed


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to red, green and blue.

    Raises:
        StaError: that names the file, if it is not there or does not decode.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise StaError(f"The image {path} is not there: it was moved or removed. Put it back.") from error
    except Exception as error:  # decoders raise all kinds on broken files
        # Pillow says "cannot identify image file" and names the open file in its own way: the path
        # is in the message already.
        why = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
        raise StaError(
            f"The image {path} cannot be decoded: {why}. Replace the file by a whole one, or take it out of the data set."
        ) from error


class ImageList(Dataset[tuple[Image.Image, int]]):
    """Image files, and a label for each of them."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        if len(files) != len(labels):
            raise ValueError(f"{len(files)} files and {len(labels)} labels")
        self.files = list(files)
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.files[index]), self.labels[index]

    def fingerprint(self) -> str:
        """Return a digest of the files' names, sizes, times of change and labels; none is read."""
        digest = hashlib.sha256()
        for file, label in zip(self.files, self.labels, strict=True):
            status = file.stat()
            digest.update(f"{file.name}:{status.st_size}:{status.st_mtime_ns}:{label};".encode())
        return digest.hexdigest()


def require_files(files: Sequence[Path], what: str, remedy: str) -> None:
    """Refuse a list of files (``what``, "The training images of ...") of which some are missing.

    Raises:
        StaError: that names some of the missing ones, and says how to mend it.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise StaError(
            f"{what}: {len(missing)} of {len(files)} files are not there, {listed(missing, limit=3)}. {remedy}"
        )
