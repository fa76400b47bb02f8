"""The folder for what can be made again: images, heads, compiled loops, hashes of files."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)


def cache_directory() -> Path:
    """The folder of what can be made again: ``$STA_CACHE``, else ``~/.cache/sta_lightning``."""
    chosen = os.environ.get("STA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "sta_lightning"


def own_directory(name: str, *, make: bool = False) -> Path:
    """A folder for what is believed without another look: code to run, hashes of files.

    Args:
        name: of the folder in the cache folder.
        make: whether it is made if it is missing.

    Returns:
        The folder in the cache; where somebody else could write into that, or into the cache
        folder, one of this process alone, which goes with it.

    Raises:
        OSError: it cannot be made.
    """
    root = cache_directory()
    folder = root / name
    if others := [place for place in (root, folder) if place.exists() and not is_own(place)]:
        folder = _private(others[0]) / name
    if make:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def is_own(path: Path) -> bool:
    """Whether a file or folder belongs to this user or to root, and nobody else can write it.

    Raises:
        OSError: it is not there.
    """
    if os.name != "posix":
        return True
    found = path.stat()
    writable = stat.S_IWOTH | (0 if _is_private_group(found.st_gid) else stat.S_IWGRP)
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & writable


@functools.cache
def _is_private_group(group: int) -> bool:
    """Whether a group is this user's alone, as many systems make one for each."""
    import grp
    import pwd

    try:
        own = pwd.getpwuid(os.geteuid())
        members = {
            *grp.getgrgid(group).gr_mem,
            *(user.pw_name for user in pwd.getpwall() if user.pw_gid == group),
        }
    except KeyError:
        return False
    return own.pw_gid == group and members <= {own.pw_name}


@functools.cache
def _private(instead: Path) -> Path:
    folder, maker = tempfile.mkdtemp(prefix="sta-"), os.getpid()
    _log.info(
        "others can write into %s: this process keeps its own in %s. chmod go-w mends it.", instead, folder
    )
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == maker else None)
    return Path(folder)
