"""The folder for what can be made again: images, heads, compiled loops, hashes of files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """The folder of what can be made again: ``$STA_CACHE``, else ``~/.cache/sta_lightning``."""
    chosen = os.environ.get("STA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "sta_lightning"
