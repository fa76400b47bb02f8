"""C loops compiled by the machine's own compiler, once, and kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from sta_lightning.cache import cache_directory

_log = logging.getLogger(__name__)
_HEAD = """\
#include <stdint.h>
/* The last thing a sum of finite numbers is: itself minus itself is 0; of NaN and of infinity it is NaN. */
#define STA_FINITE(x) ((x) - (x) == 0)
"""
# No fused multiply-add, no reordering: every operation is rounded by itself, as in the eager form.
_FLAGS = "-O3 -std=gnu11 -shared -fPIC -ffp-contract=off -fno-trapping-math -fno-math-errno"
_TIMEOUT = 300  # seconds
_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}
_failed: set[tuple[str, str | None, str]] = set()


@functools.cache
def compiler() -> str | None:
    """The C compiler's path (``$CC``, else ``cc``), or ``None`` where none can be used."""
    if sys.byteorder != "little" or os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return shutil.which(os.environ.get("CC") or "cc")


def library(source: str, *, compiling: bool = True) -> ctypes.CDLL | None:
    """The loops of a C text, compiled if they have not been before on this machine.

    Args:
        source: C text; what :data:`_HEAD` says stands in front of it.
        compiling: whether they may be compiled now.

    Returns:
        The library, or ``None`` where there is no compiler, or it refuses the text (the log says
        why), or would have to be asked first. Callers have an eager form that gives the same bits.
    """
    with _lock:
        found = _loaded.get(source)
        # A failure holds for the compiler and the folder that it was met with.
        circumstances = (source, compiler(), str(_folder()))
        if found is None and compiler() is not None and circumstances not in _failed:
            found = _load(source, compiling)
            if found is not None:
                _loaded[source] = found
            elif compiling:
                _failed.add(circumstances)
        return found


def _load(source: str, compiling: bool) -> ctypes.CDLL | None:
    try:
        for path in sorted(_folder().glob(f"{_stem(source)}-*.so")):
            # A library cut short can end the process that loads it; one of another machine is
            # refused.
            with contextlib.suppress(OSError):
                if path.name == _name(source, path.read_bytes()):
                    return ctypes.CDLL(str(path))
        if not compiling:
            return None
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=_folder()) as folder:
            made = _compile(source, Path(folder))
            if made is None:
                return None
            found = ctypes.CDLL(str(made))  # before it is kept, so that nothing is kept that cannot be loaded
            os.replace(made, _folder() / _name(source, made.read_bytes()))
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


def _folder() -> Path:
    return cache_directory() / "kernels"


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
