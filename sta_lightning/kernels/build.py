"""C loops compiled by the machine's own compiler, once, and kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

from sta_lightning.cache import cache_directory, is_own, own_directory

_log = logging.getLogger(__name__)
_HEAD = """\
#include <stdint.h>
#include <unistd.h>
/* The last thing a sum of finite numbers is: itself minus itself is 0; of NaN and of infinity it is NaN. */
#define STA_FINITE(x) ((x) - (x) == 0)
"""
# No fused multiply-add, no reordering: every operation is rounded by itself, as in the eager form.
# With -O3 and no tuning for the processor (newer than the compiler) gcc 12 leaves branches in the
# loops of TIES, which then take eight times as long.
_FLAGS = "-O2 -ftree-vectorize -std=gnu11 -shared -fPIC -ffp-contract=off -fno-trapping-math -fno-math-errno"
_TIMEOUT = 300  # seconds
_FOLDER = "kernels"
# Compiling takes as long as the eager form takes for about this many entries, times models.
PAYS = 30_000_000
_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}
_builds: dict[str, threading.Thread] = {}
_wanted: defaultdict[str, float] = defaultdict(float)  # by text
_failed: set[tuple[str, str | None, str]] = set()


@functools.cache
def compiler() -> str | None:
    """The C compiler's path (``$CC``, else ``cc``), or ``None`` where none can be used."""
    if sys.byteorder != "little" or os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return shutil.which(os.environ.get("CC") or "cc")


def library(source: str, *, work: float = math.inf) -> ctypes.CDLL | None:
    """The loops of a C text, compiled if they have not been before on this machine.

    What this process has wanted a text for is added up. From an eighth of :data:`PAYS` on it is
    compiled in a thread of its own, and from :data:`PAYS` on that is waited for: so nobody who
    calls once waits longer than the eager form takes.

    Args:
        source: C text; what :data:`_HEAD` says stands in front of it.
        work: what they are wanted for, as entries times models; 0 for only if they are there.

    Returns:
        The library, or ``None`` where there is no compiler, or it refuses the text (the log says
        why), or has not come to it. Callers have an eager form that gives the same bits.
    """
    with _lock:
        # A failure holds for the compiler and the folder that it was met with.
        circumstances = (source, compiler(), str(cache_directory()))
        if source in _loaded or compiler() is None or circumstances in _failed:
            return _loaded.get(source)
        build, wanted = _builds.get(source), _wanted[source] + work
        if math.isfinite(wanted):
            _wanted[source] = wanted
        if build is None:
            found = _load(source, compiling=False)
            if found is not None:
                _loaded[source] = found
                return found
            if wanted > 0 and wanted >= PAYS / 8:
                build = threading.Thread(target=_build, args=(source, circumstances), name="sta-build")
                build.start()
                _builds[source] = build
    if build is None or wanted < PAYS:
        return None
    build.join()
    return _loaded.get(source)


def _build(source: str, circumstances: tuple[str, str | None, str]) -> None:
    found = None
    try:
        found = _load(source, compiling=True)
    finally:
        with _lock:
            if found is None:
                _failed.add(circumstances)
            else:
                _loaded[source] = found
            del _builds[source]


def _after_fork() -> None:
    """A child has no thread of its parent's, and may have been made while one held the lock."""
    global _lock
    _lock = threading.Lock()
    _builds.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _load(source: str, compiling: bool) -> ctypes.CDLL | None:
    try:
        for path in sorted(own_directory(_FOLDER).glob(f"{_stem(source)}-*.so")):
            # A library cut short can end the process that loads it; one of another machine is
            # refused.
            with contextlib.suppress(OSError):
                if is_own(path) and path.name == _name(source, path.read_bytes()):
                    return ctypes.CDLL(str(path))
        if not compiling:
            return None
        kept = own_directory(_FOLDER, make=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=kept) as folder:
            made = _compile(source, Path(folder))
            if made is None:
                return None
            found = ctypes.CDLL(str(made))  # before it is kept, so that nothing is kept that cannot be loaded
            os.replace(made, kept / _name(source, made.read_bytes()))
            return found
    except OSError as error:
        _log.info("the compiled loops cannot be kept or loaded (%s); the eager form serves.", error)
        return None


def _compile(source: str, folder: Path) -> Path | None:
    command = compiler()
    assert command is not None
    (folder / "loops.c").write_text(_HEAD + source, encoding="utf-8")
    message = ""
    # Not every compiler knows the first way of naming the machine it runs on.
    for machine in ("-march=native", "-mcpu=native", None):
        flags = [*_FLAGS.split(), *([machine] if machine else [])]
        try:
            done = subprocess.run(
                [command, *flags, "-o", "loops.so", "loops.c"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            message = str(error)
            break
        if done.returncode == 0:
            return folder / "loops.so"
        message = done.stderr.strip()
    _log.info("the C compiler %s refuses the loops (%s); the eager form serves.", command, message[:500])
    return None


def _name(source: str, content: bytes) -> str:
    """The name that a library is kept by: what was compiled, where, and what came out."""
    return f"{_stem(source)}-{hashlib.sha256(content).hexdigest()[:24]}.so"


def _stem(source: str) -> str:
    digest = hashlib.sha256()
    for part in (_HEAD, source, _FLAGS, *_machine()):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


@functools.cache
def _machine() -> tuple[str, ...]:
    """What the compiled loops depend on beside their text: compiler and processor."""
    command = compiler() or ""
    found = Path(command).resolve()
    size = found.stat().st_size if command else 0
    processor = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.system(), platform.machine(), processor, str(found), str(size)
