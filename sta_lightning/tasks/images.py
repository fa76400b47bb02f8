"""Lists of image files with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from sta_lightning.encoders.pictures import is_hidden, read_image
from sta_lightning.errors import StaError, listed


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


def published_list(samples: Iterable[tuple[str | Path, int]], root: Path) -> ImageList:
    """Images and labels that a class of torchvision's found below a folder, but hidden ones."""
    files, labels = [], []
    for name, label in samples:
        if not any(map(is_hidden, Path(name).relative_to(root).parts)):
            files.append(Path(name))
            labels.append(label)
    return ImageList(files, labels)


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
