"""Hashes of files: remembered as long as nothing has touched the file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sta_lightning.errors import StaError
from sta_lightning.weights import hashes, save_weights, sha256

LATER = 10**9  # nanoseconds


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sha256"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ahead of the files' times, as if they had been written a while ago."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + LATER)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were read to the end, in order."""
    found: list[str] = []
    digest: Callable[..., object] = hashlib.file_digest

    def record(stream: object, name: str) -> object:
        found.append(Path(stream.name).name)  # type: ignore[attr-defined]
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", record)
    return found


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_it_is_the_sha256_and_is_computed_once(
    tmp_path: Path, cache: Path, reads: list[str], settled: None
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    assert [sha256(file) for _ in range(3)] == [of(b"one")] * 3
    assert sha256(str(file)) == of(b"one")
    assert reads == ["w.bin"]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("way", ["in place", "replaced", "appended", "touched"])
def test_a_changed_file_is_hashed_again(
    way: str, tmp_path: Path, cache: Path, reads: list[str], settled: None
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    before = file.stat()
    assert sha256(file) == of(b"one")
    time.sleep(0.02)  # the clock of the file system goes on
    content = {"appended": b"one and two", "touched": b"one"}.get(way, b"two")
    if way == "replaced":
        other = tmp_path / "other"
        other.write_bytes(content)
        os.replace(other, file)
    elif way != "touched":
        file.write_bytes(content)
    # A tool that restores the time of the last change hides nothing: the time of the last change of
    # status stays.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert sha256(file) == of(content)
    assert len(reads) == 2


def test_a_file_that_has_just_been_written_is_not_remembered(
    tmp_path: Path, cache: Path, reads: list[str]
) -> None:
    # Written again within one tick of the file system's clock, its times would be the same.
    file = tmp_path / "w.bin"
    for content in (b"one", b"two", b"six"):
        file.write_bytes(content)
        assert sha256(file) == of(content)
    assert len(reads) == 3
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    tmp_path: Path, cache: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")

    def meanwhile(stream: object, name: str) -> object:
        file.write_bytes(b"longer")
        return hashlib.sha256(b"one")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", meanwhile)
        sha256(file)
    assert sha256(file) == of(b"longer")


@pytest.mark.parametrize(
    "entry",
    ["", "{", "[]", "3", "null", "{}", '{"identity": []}', '{"identity": null, "sha256": 3}', "\udcff"],
)
def test_a_damaged_entry_is_ignored(
    entry: str, tmp_path: Path, cache: Path, reads: list[str], settled: None
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    sha256(file)
    (place,) = cache.iterdir()
    place.write_bytes(entry.encode(errors="surrogateescape"))
    assert sha256(file) == of(b"one")
    assert reads == ["w.bin"] * 2
    assert json.loads(place.read_text())["sha256"] == of(b"one")


@pytest.mark.parametrize("digest", ["short", 7, None, "x" * 64 + "y"])
def test_an_entry_with_something_else_for_a_hash_is_ignored(
    digest: object, tmp_path: Path, cache: Path, settled: None
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    sha256(file)
    (place,) = cache.iterdir()
    place.write_text(json.dumps({**json.loads(place.read_text()), "sha256": digest}))
    assert sha256(file) == of(b"one")


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], settled: None
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "file" / "below"))
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    assert [sha256(file), sha256(file)] == [of(b"one")] * 2
    assert len(reads) == 2


def test_links_share_what_is_remembered(tmp_path: Path, cache: Path, reads: list[str], settled: None) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    (tmp_path / "link").symlink_to(file)
    assert sha256(tmp_path / "link") == sha256(file) == of(b"one")
    assert len(reads) == 1


def test_saved_weights_are_known_without_reading(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(100)}, {"a": "b"})
    assert sha256(path) == of(path.read_bytes())
    assert reads == []
    save_weights(path, {"w": torch.zeros(100)}, {"a": "b"})
    assert sha256(path) == of(path.read_bytes())


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(StaError, match=r"cannot read '.*absent'"):
        sha256(tmp_path / "absent")
    with pytest.raises(StaError, match="cannot read"):
        sha256(tmp_path)
    hashes.remember_sha256(tmp_path / "absent", "0" * 64)
    assert not cache.exists()


@pytest.mark.skipif(os.name != "posix", reason="no owners and modes")
@pytest.mark.parametrize("place", ["the file", "sha256", "cache"])
def test_a_hash_that_others_could_have_written_is_not_believed(
    place: str, tmp_path: Path, cache: Path, settled: None
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    sha256(file)
    (entry,) = cache.iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "sha256": "f" * 64}))
    assert sha256(file) == "f" * 64
    {"the file": entry, "sha256": cache, "cache": cache.parent}[place].chmod(0o777)
    assert sha256(file) == of(b"one")
