"""Compiling: once, for good, and never at the price of a result."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sta_lightning.arithmetic import run as run_module
from sta_lightning.arithmetic.fusion import Sta, fuse
from sta_lightning.arithmetic.linear import TaskArithmetic
from sta_lightning.arithmetic.memory import run_in_memory
from sta_lightning.kernels import build, fused, loops
from tests.conftest import REPOSITORY

CC = shutil.which("cc")
compiles = pytest.mark.skipif(CC is None, reason="no C compiler")
LOG = "sta_lightning.kernels.build"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """An empty cache, and a function that makes this process forget, as if it were another."""

    def forget() -> None:
        monkeypatch.setattr(build, "_loaded", {})
        monkeypatch.setattr(build, "_wanted", defaultdict(float))
        build.compiler.cache_clear()
        build._machine.cache_clear()

    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield forget
    monkeypatch.undo()
    build.compiler.cache_clear()
    build._machine.cache_clear()


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a shell script the compiler; it writes a line a call into the file returned."""

    def use(body: str) -> Path:
        script, calls = tmp_path / "cc.sh", tmp_path / "calls"
        calls.write_text("")
        script.write_text(f'#!/bin/sh\necho x >> "{calls}"\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
        build.compiler.cache_clear()
        build._machine.cache_clear()
        return calls

    return use


def kept(folder: Path) -> list[str]:
    return sorted(
        path.name for path in (folder / "cache").rglob("*") if path.is_file() or path.name[0] == "."
    )


def merges_all_the_same() -> None:
    """Merging with compiled loops asked for gives what the eager form gives."""
    base = {"w": torch.zeros(300)}
    finetuned = {str(i): {"w": torch.full((300,), 1.0 + i)} for i in range(2)}
    scores = {str(i): {"w": torch.arange(300.0) * (1 - 2 * i)} for i in range(2)}
    for method, given in ((Sta(), scores), (TaskArithmetic(), None)):
        first, second = (run_in_memory(method, base, finetuned, given, compiled=way) for way in (True, False))
        assert torch.equal(first.weights["w"], second.weights["w"])
        assert first.weights["w"].abs().sum() > 0
        assert first.kept == second.kept


def refused(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says where nothing can be compiled."""
    with caplog.at_level(logging.INFO, logger=LOG):
        assert loops() is None
        assert fused(2, 1) is None
    assert loops(work=0) is None
    assert fused(2, 1, work=0) is None
    merges_all_the_same()
    assert kept(folder) == []
    return caplog.text


def test_without_a_compiler(
    fresh: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "nowhere" / "cc"))
    fresh()
    assert build.compiler() is None
    refused(tmp_path, caplog)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("sys.byteorder", "big"), ("os.name", "nt"), ("ctypes.sizeof", lambda _: 4)]
)
def test_on_a_machine_of_another_kind(
    name: str, value: object, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(name, value)
        assert build.compiler() is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('echo "of no use" >&2; exit 1', "refuses the loops .*of no use"),
        ("exit 0", "cannot be kept or loaded"),
        ("echo garbage > loops.so", "cannot be kept or loaded"),
        ("exec sleep 60", "refuses the loops .*timed out"),
    ],
)
def test_a_compiler_that_fails(
    body: str,
    why: str,
    fresh: Callable[[], None],
    wrapped: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(build, "_TIMEOUT", 0.3)
    wrapped(body)
    with caplog.at_level(logging.INFO, logger=LOG):
        assert loops() is None
        assert loops() is None  # asked once
    (record,) = caplog.records
    assert re.search(why, record.getMessage())
    merges_all_the_same()
    assert kept(tmp_path) == []


@compiles
def test_a_compiler_that_does_not_know_its_machine(
    fresh: Callable[[], None], wrapped: Callable[[str], Path]
) -> None:
    calls = wrapped(f'case "$*" in *native*) exit 1;; esac\nexec {CC} "$@"')
    assert loops() is not None
    assert calls.read_text().count("x") == 3
    merges_all_the_same()


def test_a_cache_that_cannot_be_written(
    fresh: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "file" / "below"))
    text = refused(tmp_path, caplog)
    assert CC is None or "cannot be kept or loaded" in text


@compiles
def test_what_was_compiled_is_kept_for_the_next_process(
    fresh: Callable[[], None], wrapped: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = wrapped(f'exec {CC} "$@"')
    assert loops(work=0) is None
    assert loops() is not None
    assert loops(work=0) is not None
    assert fused(2, 1, work=0) is None
    for _ in range(2):
        fresh()
        assert loops(work=0) is not None
        assert loops() is not None
    assert calls.read_text().count("x") == 1
    assert [name[-3:] for name in kept(tmp_path)] == [".so"]
    fresh()
    wrapped(f'# another compiler\nexec {CC} "$@"')
    assert loops(work=0) is None


@compiles
@pytest.mark.parametrize("damage", ["empty", "short", "half", "bit", "text"])
def test_a_damaged_library_is_made_again(damage: str, fresh: Callable[[], None], tmp_path: Path) -> None:
    assert loops() is not None
    (name,) = kept(tmp_path)
    path = next((tmp_path / "cache").rglob(name))
    whole = path.read_bytes()
    # Not in place: this process has the old one mapped.
    path.unlink()
    path.write_bytes(
        {
            "empty": b"",
            "short": whole[:100],
            "half": whole[: len(whole) // 2],
            "bit": whole[:-2000] + bytes([whole[-2000] ^ 1]) + whole[-1999:],
            "text": b"hello",
        }[damage]
    )
    fresh()
    assert loops() is not None
    merges_all_the_same()
    assert path.read_bytes() == whole
    assert [other for other in kept(tmp_path) if other == name]


@compiles
def test_threads_compile_once(fresh: Callable[[], None], wrapped: Callable[[str], Path]) -> None:
    calls = wrapped(f'sleep 0.1\nexec {CC} "$@"')
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(loops())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert None not in found
    assert calls.read_text().count("x") == 1


@compiles
def test_processes_that_compile_at_once_do_not_disturb_one_another(
    fresh: Callable[[], None], wrapped: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = wrapped(f'sleep 0.5\nexec {CC} "$@"')
    code = (
        "import ctypes\n"
        "from sta_lightning.kernels import loops\n"
        "values = (ctypes.c_float * 3)(1, -2, 3)\n"
        "print(loops().bounds(ctypes.addressof(values), 3))\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert said == ["(-2.0, 3.0)\n"] * 2
    assert calls.read_text().count("x") == 2
    assert [name[-3:] for name in kept(tmp_path)] == [".so"]


@compiles
def test_small_calls_have_the_loops_built_beside_them(
    fresh: Callable[[], None], wrapped: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = wrapped(f'sleep 1\nexec {CC} "$@"')
    assert loops(work=build.PAYS / 10) is None
    assert calls.read_text() == ""  # not worth it yet
    start = time.monotonic()
    assert loops(work=build.PAYS / 10) is None  # begun, and not waited for
    assert time.monotonic() - start < 1
    assert loops(work=0) is None
    assert loops(work=build.PAYS) is not None  # by now it would have paid: this one waits
    assert loops(work=0) is not None
    assert calls.read_text().count("x") == 1
    assert len(kept(tmp_path)) == 1


@compiles
def test_the_second_merge_of_a_tensor_is_compiled(
    fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PAYS", 2500)
    used: list[int] = []
    native = run_module._Tensor._native
    monkeypatch.setattr(
        run_module._Tensor, "_native", lambda self, piece: used.append(1) or native(self, piece)
    )
    base = {"w": torch.zeros(500)}
    finetuned = {str(i): {"w": torch.full((500,), 1.0 + i)} for i in range(2)}
    for _ in range(3):
        fuse(base, finetuned, finetuned)
    assert len(used) == 2


@compiles
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_made_while_the_loops_are_built_builds_its_own(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from sta_lightning.kernels import build, loops\n"
        "loops(work=build.PAYS / 2)\n"
        "assert build._builds\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if loops() is not None else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert loops() is not None\n"
    )
    script = tmp_path / "cc.sh"
    script.write_text(f'#!/bin/sh\nsleep 0.5\nexec {CC} "$@"\n')
    script.chmod(0o755)
    own = {"PYTHONPATH": str(REPOSITORY), "STA_CACHE": str(tmp_path / "cache"), "CC": str(script)}
    done = subprocess.run(
        [sys.executable, "-"], input=code, env={**os.environ, **own}, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert [name[-3:] for name in kept(tmp_path)] == [".so"]


@compiles
def test_a_library_that_others_could_have_written_is_not_loaded(
    fresh: Callable[[], None], wrapped: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = wrapped(f'exec {CC} "$@"')
    assert loops() is not None
    (name,) = kept(tmp_path)
    folder = tmp_path / "cache" / "kernels"
    for path, mode in ((folder / name, 0o646), (folder, 0o777), (folder.parent, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        fresh()
        made = calls.read_text().count("x")
        assert loops() is not None
        assert calls.read_text().count("x") == made + 1, path
        path.chmod(before)
