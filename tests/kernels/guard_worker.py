"""What the child processes of the tests of SIGBUS do; each may be ended by it."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sta_lightning.kernels import Loops, fused, loops

SIZE = 500_000


@contextmanager
def shrinking(folder: str) -> Iterator[int]:
    """The address of a map of zeros whose file has become shorter than the map."""
    path = Path(folder) / f"values{threading.get_ident()}.bin"
    path.write_bytes(bytes(4 * SIZE))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        os.truncate(path, 100_000)
        place = np.frombuffer(view, dtype=np.float32)
        yield int(place.ctypes.data)
        del place


def loaded() -> Loops:
    found = loops()
    assert found is not None
    return found


def every_loop(folder: str) -> None:
    """Print what every loop answers."""
    there, out = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    ok, to, counts = int(there.ctypes.data), int(out.ctypes.data), np.zeros(1 << 16, np.int64)
    native, fuse = loaded(), fused(2, 1)
    assert fuse is not None
    with shrinking(folder) as gone:
        print(
            native.linear(ok, [ok, gone], 1.0, to, SIZE),
            native.linear(gone, [ok, ok], 1.0, to, SIZE),
            native.negate(gone, ok, ok, 1.0, to, SIZE),
            native.subtract(ok, ok, ok, gone, 0.0, to, SIZE)[0],
            native.bounds(gone, SIZE)[0],
            native.count(gone, SIZE, 16, 0, counts.ctypes.data),
            native.count(gone, SIZE, 0, 0, counts.ctypes.data),
            native.copy(gone, to, 4 * SIZE),
            fuse(ok, [ok, gone], [ok, ok], [(0.0, 1.0)] * 2, to, SIZE)[0],
            fuse(ok, [ok, ok], [ok, gone], [(0.0, 1.0)] * 2, to, SIZE)[0],
            fuse(ok, [ok, ok], [gone, ok], [(0.3, 1.0)] * 2, to, SIZE)[0],
        )
        # Each of them can be called again afterwards.
        print(native.bounds(ok, SIZE)[0], fuse(ok, [ok, ok], [ok, ok], [(0.0, 1.0)] * 2, to, SIZE)[0])


def several_threads(folder: str) -> None:
    """Print what the loops answer on four threads, of which two meet the end of a file."""
    native, found = loaded(), {}
    there = np.zeros(SIZE, np.float32)

    def look(number: int) -> None:
        if number % 2:
            with shrinking(folder) as gone:
                found[number] = [native.bounds(gone, SIZE)[0] for _ in range(50)]
        else:
            found[number] = [native.bounds(int(there.ctypes.data), SIZE)[0] for _ in range(50)]

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*(sorted(set(found[number])) for number in range(4)))


def _take_turns() -> None:
    for _ in range(10):
        for load in (lambda: fused(2, 1), loops, lambda: fused(3, 2)):
            assert load() is not None


def elsewhere(folder: str) -> None:
    """Read the lost part of a file outside of a loop, where faulthandler was before us."""
    faulthandler.enable()
    _take_turns()
    with shrinking(folder) as gone:
        print(np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * SIZE).from_address(gone))[-1])


def elsewhere_without_a_handler(folder: str) -> None:
    """The same where nobody was before us."""
    _take_turns()
    with shrinking(folder) as gone:
        print(np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * SIZE).from_address(gone))[-1])


def sent_by_a_process(folder: str) -> None:
    """A signal that is no fault."""
    _take_turns()
    os.kill(os.getpid(), signal.SIGBUS)


def taken_by_another(folder: str) -> None:
    """Somebody else takes the signal; the loops take it back, and what is not theirs goes to that one."""
    _take_turns()
    signal.signal(signal.SIGBUS, lambda number, frame: print("theirs", flush=True))
    _take_turns()
    with shrinking(folder) as gone:
        print(loaded().bounds(gone, SIZE)[0])
    os.kill(os.getpid(), signal.SIGBUS)
    print("alive")


def taken_by_one_who_passes_it_on(folder: str) -> None:
    """faulthandler comes after the loops and hands the signal on to them: nobody may hand it on for ever."""
    _take_turns()
    faulthandler.enable()
    _take_turns()
    with shrinking(folder) as gone:
        print(loaded().bounds(gone, SIZE)[0], flush=True)
        print(np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * SIZE).from_address(gone))[-1])


def taken_too_often(folder: str) -> None:
    """Somebody takes the signal again and again; in the end the loops are not used any more."""
    found = []
    for _ in range(12):
        signal.signal(signal.SIGBUS, lambda number, frame: print("theirs", flush=True))
        found.append(loops() is not None)
    print(found[0], found[-1])
    os.kill(os.getpid(), signal.SIGBUS)
