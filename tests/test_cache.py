"""What is believed without another look comes from folders that nobody else can write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sta_lightning import cache
from sta_lightning.cache import cache_directory, is_own, own_directory

posix = pytest.mark.skipif(os.name != "posix", reason="no owners and modes")
NOBODY = 65534


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    cache._is_private_group.cache_clear()


def test_it_lies_in_the_cache_and_is_made_when_asked_for() -> None:
    folder = own_directory("kernels")
    assert folder == cache_directory() / "kernels"
    assert not cache_directory().exists()
    assert own_directory("kernels", make=True) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert own_directory("kernels") == folder


@posix
@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_what_it_makes_it_finds_again_under_any_umask(umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_is_private_group", lambda group: False)
    before = os.umask(umask)
    try:
        folder = own_directory("kernels", make=True)
    finally:
        os.umask(before)
    assert own_directory("kernels") == folder == cache_directory() / "kernels"


@posix
@pytest.mark.parametrize("place", [".", "kernels"])
@pytest.mark.parametrize("mode", [0o707, 0o770, 0o1777])
def test_where_others_can_write_a_private_folder_serves(
    place: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_is_private_group", lambda group: False)
    shared = own_directory("kernels", make=True)
    (cache_directory() / place).chmod(mode)
    private = own_directory("kernels", make=True)
    assert private != shared
    assert private == own_directory("kernels")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700 == stat.S_IMODE(private.parent.stat().st_mode)
    (cache_directory() / place).chmod(0o755)
    assert own_directory("kernels") == shared


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("place", [".", "kernels", "kernels/file"])
def test_what_belongs_to_another_user_is_not_believed(place: str, tmp_path: Path) -> None:
    folder = own_directory("kernels", make=True)
    (folder / "file").write_text("x")
    assert is_own(folder / "file")
    os.chown(cache_directory() / place, NOBODY, NOBODY)
    assert not is_own(cache_directory() / place)
    assert (own_directory("kernels") == folder) is (place == "kernels/file")


@posix
def test_a_group_of_one_is_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    own = pwd.getpwuid(os.geteuid())
    file = tmp_path / "file"
    file.write_text("x")
    file.chmod(0o660)
    monkeypatch.setattr(pwd, "getpwall", lambda: [own])
    for members, alone in (([], True), ([own.pw_name], True), ([own.pw_name, "other"], False)):
        found = grp.struct_group(("g", "x", file.stat().st_gid, members))
        monkeypatch.setattr(grp, "getgrgid", lambda group, found=found: found)
        cache._is_private_group.cache_clear()
        assert is_own(file) is (alone and own.pw_gid == file.stat().st_gid)
    file.chmod(0o662)
    assert not is_own(file)


@posix
def test_the_private_folder_goes_with_its_process() -> None:
    own_directory("kernels", make=True).chmod(0o777)
    code = "from sta_lightning.cache import own_directory as f; print(f('kernels', make=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    private = Path(done.stdout.strip())
    assert private.name == "kernels"
    assert private.parent.name.startswith("sta-")
    assert not private.parent.exists()
