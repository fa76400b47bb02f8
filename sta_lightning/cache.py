"""The folder for what can be made again: rendered sets, decoded images, compiled loops, hashes of files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where this package keeps what it can make again: ``$STA_CACHE``, else ``~/.cache/sta_lightning``."""
    chosen = os.environ.get("STA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "sta_lightning"
