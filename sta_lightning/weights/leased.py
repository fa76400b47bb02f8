"""An open file in this process's memory, while no other program can change it."""

from __future__ import annotations

import contextlib
import math
import mmap
import signal
import sys
import threading
import time

import numpy as np

if sys.platform == "linux":
    import fcntl

_OFTEN = 0.5  # seconds after which the kernel is asked again; it gives many more to give a lease up


class LeasedMap:
    """A map of a file under a lease of the kernel: Linux gives one for a user's own local files.

    Who wants to change the file waits until this process closes it, 45 seconds at most
    (``/proc/sys/fs/lease-break-time``), and this process, which is told, reads it in another way
    from then on. Without a lease a map could be cut short under its reader, which ends a process.

    Args:
        descriptor: the open file.
        size: its bytes.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._place: int | None = 0 if sys.platform == "linux" else None
        self._asked = -math.inf

    def address(self) -> int | None:
        """Where the file lies in memory, for the next seconds; ``None`` where it cannot."""
        if self._place is None or time.monotonic() < self._asked + _OFTEN:
            return self._place
        with self._lock:
            if self._map is None:
                self._place = self._mapped()
            elif fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                self._place = None
            self._asked = time.monotonic()
            return self._place

    def close(self) -> None:
        """Give the lease and the map back, before the file is closed."""
        self._place = None
        if self._map is not None:
            self._map.close()
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def _mapped(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):  # no lease; a file that is shorter by now
            fcntl.fcntl(self._descriptor, fcntl.F_SETSIG, signal.SIGURG)  # SIGIO ends a process
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            self._map = mmap.mmap(self._descriptor, self._size, access=mmap.ACCESS_READ)
            return int(np.frombuffer(self._map, np.uint8, 1).ctypes.data)
        return None
