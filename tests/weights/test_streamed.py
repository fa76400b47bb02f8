"""Files written a piece at a time: the bytes of a file written at once, whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.arithmetic.workers import Alone, Processes, together
from sta_lightning.errors import StaError
from sta_lightning.weights import FileSink, load_weights, save_weights, streamed
from tests.peers import as_processes

STATE = {
    "w": torch.randn(40, 25, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(7, dtype=torch.float16),
    "b": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "steps": torch.tensor([3, 4]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "flag": torch.tensor([True]),
}
METADATA = {"kind": "fused", "é": "ü"}
PLANNED = {name: (tensor.shape, tensor.dtype) for name, tensor in STATE.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def write_all(sink: FileSink, names: list[str], step: int = 1 << 20) -> None:
    for name in names:
        flat = STATE[name].reshape(-1)
        for at in range(0, flat.numel(), step):
            sink.write(name, at, flat[at : at + step])


def saved(path: Path, prefix: str = "") -> bytes:
    other = path.with_name("reference.safetensors")
    save_weights(other, {prefix + name: tensor for name, tensor in STATE.items()}, METADATA)
    content = other.read_bytes()
    other.unlink()
    return content


@pytest.mark.parametrize("prefix", ["", "visual."])
@pytest.mark.parametrize("step", [1, 3, 256, 1 << 20])
def test_the_bytes_are_those_of_a_file_written_at_once(path: Path, step: int, prefix: str) -> None:
    planned = {prefix + name: entry for name, entry in PLANNED.items()}
    with streamed(path, planned, METADATA, Alone()) as file:
        sink = file.under(prefix)
        write_all(sink, list(reversed(STATE)), step)
        assert not path.exists()
        assert [sink.dtype(name) for name in STATE] == [tensor.dtype for tensor in STATE.values()]
        assert sink.address("w") is None
    assert path.read_bytes() == saved(path, prefix)
    assert os.listdir(path.parent) == [path.name]


def test_views_are_written_entry_by_entry(path: Path) -> None:
    values = torch.arange(24.0).reshape(2, 12)
    with streamed(path, {"w": (torch.Size([12]), torch.float32)}, {}, Alone()) as sink:
        sink.write("w", 0, values[1, :6])
        sink.write("w", 6, torch.stack([values[1], values[0]], dim=1)[6:, 0])
    assert load_weights(path)["w"].tolist() == values[1].tolist()


def test_short_writes_are_taken_up_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    with streamed(path, PLANNED, METADATA, Alone()) as sink:
        write_all(sink, list(STATE))
    monkeypatch.undo()
    assert path.read_bytes() == saved(path)


@pytest.fixture
def old(path: Path) -> Iterator[bytes]:
    """An older file in the place, which must be there afterwards, alone."""
    save_weights(path, {"w": torch.zeros(3)})
    content = path.read_bytes()
    yield content
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [ValueError("stop"), StaError("stop"), KeyboardInterrupt("stop")])
def test_whatever_ends_the_block_leaves_the_old_file(path: Path, old: bytes, error: BaseException) -> None:
    def half() -> None:
        with streamed(path, PLANNED, METADATA, Alone()) as sink:
            write_all(sink, ["w"])
            raise error

    with pytest.raises(type(error), match="stop"):
        half()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_is_one_error(
    path: Path, old: bytes, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    def write() -> None:
        with streamed(path, PLANNED, METADATA, Alone()) as sink:
            write_all(sink, list(STATE))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        StaError, match=rf"cannot write '.*out\.safetensors': {os.strerror(number)}.*make room"
    ):
        write()


def test_a_file_larger_than_allowed_is_one_error(path: Path, old: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with (
            pytest.raises(StaError, match=r"cannot write '.*out\.safetensors': File too large.*make room"),
            streamed(path, {"w": (torch.Size([1_000_000]), torch.float32)}, {}, Alone()),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path) -> None:
    def attempt(path: Path, planned: object, metadata: object = None) -> None:
        with streamed(path, planned, metadata or {}, Alone()):  # type: ignore[arg-type]
            raise AssertionError("the block must not run")

    one = torch.Size([1])
    with pytest.raises(StaError, match=r"must end in \.safetensors"):
        attempt(tmp_path / "out.pt", PLANNED)
    with pytest.raises(StaError, match="cannot save 'z'"):
        attempt(tmp_path / "out.safetensors", {"z": (one, torch.complex64)})
    with pytest.raises(StaError, match="cannot save '__metadata__'"):
        attempt(tmp_path / "out.safetensors", {"__metadata__": (one, torch.float32)})
    with pytest.raises(StaError, match="metadata 'seed'"):
        attempt(tmp_path / "out.safetensors", PLANNED, {"seed": 3})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StaError, match="cannot write"):
        attempt(tmp_path / "file" / "out.safetensors", PLANNED)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(StaError, match="it is a folder"):
        attempt(tmp_path / "folder.safetensors", PLANNED)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.safetensors"]


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_write_one_file(path: Path, size: int) -> None:
    def work(peer: Processes) -> bool:
        with streamed(path, PLANNED, METADATA, peer) as sink:
            write_all(sink, list(STATE)[peer.rank :: peer.size], 100)
        return True

    assert as_processes(size, work) == [True] * size
    assert path.read_bytes() == saved(path)
    assert os.listdir(path.parent) == [path.name]


def test_processes_that_do_not_share_the_folder_are_told(
    path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, lock = os.open, []

    def missing(name: object, flags: int, *rest: int) -> int:
        if flags == os.O_WRONLY and not lock:  # the first to open what the other has made
            lock.append(1)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(name))
        return own(name, flags, *rest)  # type: ignore[call-overload, no-any-return]

    def work(peer: Processes) -> None:
        with streamed(path, PLANNED, METADATA, peer) as sink:
            write_all(sink, list(STATE))

    monkeypatch.setattr(os, "open", missing)
    outcomes = as_processes(2, work)
    assert [type(outcome) for outcome in outcomes] == [StaError] * 2
    assert all("is not the same on all processes" in str(outcome) for outcome in outcomes)


def test_a_place_that_cannot_be_written_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(peer: Processes) -> None:
        with streamed(tmp_path / "file" / "out.safetensors", PLANNED, METADATA, peer):
            raise AssertionError("the block must not run")

    first, second = as_processes(2, work)
    assert isinstance(first, StaError)
    assert type(second) is StaError
    assert str(second) == f"process 0: {first}"


def test_no_process_finishes_the_file_before_all_have_written(path: Path, old: bytes) -> None:
    def work(peer: Processes) -> None:
        with streamed(path, PLANNED, METADATA, peer) as sink:

            def write() -> None:
                write_all(sink, ["w"])
                if peer.rank == 1:
                    raise StaError("tensor 'half' cannot be had")

            together(peer, write)

    outcomes = as_processes(2, work)
    assert [str(outcome) for outcome in outcomes] == [
        "process 1: tensor 'half' cannot be had",
        "tensor 'half' cannot be had",
    ]


def test_the_file_is_there_for_every_process_that_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def slowly(*names: Any) -> None:
        time.sleep(0.3)  # the others would be far ahead
        replace(*names)

    monkeypatch.setattr(os, "replace", slowly)

    def work(processes: Processes) -> bool:
        with streamed(path, PLANNED, METADATA, processes) as sink:
            if processes.rank == 0:
                write_all(sink, list(STATE))
        return path.is_file()

    assert as_processes(3, work) == [True, True, True]


@pytest.mark.parametrize("size", [1, 2])
def test_a_file_that_cannot_be_put_in_place_is_an_error_of_all(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def fails(*names: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)

    def work(processes: Processes) -> None:
        with streamed(path, PLANNED, METADATA, processes) as sink:
            if processes.rank == 0:
                write_all(sink, list(STATE))

    outcomes = as_processes(size, work)
    assert all(isinstance(outcome, StaError) for outcome in outcomes), outcomes
    assert not list(path.parent.iterdir())


def test_the_file_is_read_back(path: Path) -> None:
    with streamed(path, PLANNED, METADATA, Alone()) as sink:
        write_all(sink, list(STATE), 11)
    found = load_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_a_full_disk_met_by_one_process_ends_all(
    path: Path, old: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(peer: Processes) -> None:
        with streamed(path, PLANNED, METADATA, peer) as sink:
            together(peer, lambda: write_all(sink, ["w"] if peer.rank else []))

    monkeypatch.setattr(os, "pwrite", full)
    first, second = as_processes(2, work)
    assert isinstance(first, StaError)
    assert type(second) is StaError
    assert "out.safetensors': No space left" in str(second)
    assert str(first) == f"process 1: {second}"
