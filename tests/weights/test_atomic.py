"""Files are written whole or not at all."""

import errno
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.errors import StaError
from sta_lightning.weights import atomic, atomic_path
from sta_lightning.weights.formats.writing import write_huggingface


def leftovers(folder: Path, *expected: str) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - set(expected)


def write_half(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_new_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv"
        temporary.write_text("a,b")
        assert not target.exists()
    assert target.read_text() == "a,b"
    assert not leftovers(target.parent, "table.csv")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    before = target.stat()
    with pytest.raises(error):
        write_half(target, error())
    assert target.read_text() == "old"
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not leftovers(tmp_path, "file.txt")


def test_a_failure_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "file.txt", ValueError("stop"))
    assert not leftovers(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(StaError, match=r"file.txt': No space left.*make room"):
        write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert target.read_text() == "old"
    assert not leftovers(tmp_path, "file.txt")


def test_an_error_of_the_block_s_own_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        (tmp_path / "missing").read_text()


def test_a_block_that_moves_its_file_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="moved away"), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.unlink()
    assert not leftovers(tmp_path)


def test_data_and_folder_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(source: object, target: object) -> None:
        events.append("rename")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask


def test_permissions_of_an_old_file_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    target.chmod(0o640)
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "real" / "file.txt"
    real.parent.mkdir()
    real.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="it is a folder"), atomic_path(tmp_path):
        pass
    with pytest.raises(StaError, match="not an ordinary file"), atomic_path("/dev/null"):
        pass
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StaError, match="cannot write"), atomic_path(tmp_path / "file" / "below.txt"):
        pass


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    # The superuser, as whom tests may run, could write any file.
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == target and mode == os.W_OK))
    with pytest.raises(StaError, match="read-only"), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_names_of_the_greatest_length_work(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".csv", "é" * 125 + ".csv", ".hidden", "no_suffix"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert not leftovers(tmp_path, "file.txt")


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("0" * 200_000)
    code = (
        "import runpy, sys\n"
        "atomic_path = runpy.run_path(sys.argv[2])['atomic_path']\n"  # without the package: no torch
        "print('ready', flush=True)\n"
        "for i in range(10**9):\n"
        "    with atomic_path(sys.argv[1]) as temporary:\n"
        "        temporary.write_text(str(i % 10) * 200_000)\n"
    )
    for delay in (0.0, 0.023):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(target), atomic.__file__], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        content = target.read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1
    assert all(name.startswith(".file") for name in leftovers(tmp_path, "file.txt"))
    with atomic_path(target) as temporary:
        temporary.write_text("x")
    assert not leftovers(tmp_path, "file.txt")


def test_a_temporary_name_cannot_be_guessed_and_what_lies_there_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for _ in range(5):
        with atomic_path(tmp_path / "a.txt") as temporary:
            names.add(temporary.name)
    assert len(names) == 5
    assert all(re.fullmatch(r"\.a\.[0-9a-f]{16}\.tmp\.txt", name) for name in names)
    # Guessed all the same, and planted after what was left has been removed.
    (tmp_path / "victim").write_text("as it was")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    planted = tmp_path / ".b.0000000000000000.tmp.txt"
    monkeypatch.setattr(atomic, "_remove_left", lambda *_: planted.symlink_to(tmp_path / "victim"))
    with pytest.raises(StaError, match=r"b\.txt"), atomic_path(tmp_path / "b.txt"):
        pytest.fail("it was opened")
    assert (tmp_path / "victim").read_text() == "as it was"
    assert not (tmp_path / "b.txt").exists()


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_process_left_goes_with_the_next_writing(folder: bool, tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789abcdef.tmp.d"
    others = [".other.0123456789abcdef.tmp.d", ".out.mine.tmp.d", ".out.0123456789abcdef.tmp.e", "out.tmp.d"]
    for name in (left.name, *others):
        (tmp_path / name).mkdir() if folder else (tmp_path / name).write_text("")
    if folder:
        (left / "half").write_text("x")
    target = tmp_path / "out.d"
    # A process that lives holds what it writes.
    with atomic_path(target, folder=folder) as alive:
        assert not left.exists()
        with atomic_path(target, folder=folder):
            assert alive.exists()
            assert leftovers(tmp_path, *others, alive.name)
    assert not leftovers(tmp_path, "out.d", *others)


def test_a_full_disk_under_a_folder_s_file_names_the_user_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    tensors = in_memory({"weight": torch.ones(3)})
    with pytest.raises(StaError, match=r"cannot write '[^']*/model/model\.safetensors': No space") as caught:
        write_huggingface(tmp_path / "model", tensors, {}, "", {})
    assert ".tmp" not in str(caught.value)
    assert not leftovers(tmp_path)
