"""A map of a file that nobody can change meanwhile."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sta_lightning.weights import TensorFile
from sta_lightning.weights import leased as leased_module
from sta_lightning.weights.leased import LeasedMap
from sta_lightning.weights.opened import OpenFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "content"
    found.write_bytes(bytes(range(200)))
    with OpenFile(found) as file:
        if file.mapped.address() is None:
            pytest.skip("no leases of files here")
    return found


def test_the_map_is_the_file(path: Path) -> None:
    with OpenFile(path) as file:
        address = file.mapped.address()
        assert address is not None
        assert ctypes.string_at(address, 200) == bytes(range(200))
        assert file.mapped.address() == address


def test_who_wants_to_write_waits_and_from_then_on_there_is_no_map(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_module, "_OFTEN", 0)
    with OpenFile(path) as file, OpenFile(path) as other:
        assert file.mapped.address() is not None
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        assert file.mapped.address() is None
        assert other.mapped.address() is None  # somebody waits to write
        buffer = bytearray(200)
        file.read_into(memoryview(buffer), 0)
        assert buffer == bytes(range(200))
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    with OpenFile(path) as file:
        assert file.mapped.address() is not None


def test_a_file_that_is_being_written_or_is_shorter_by_now_has_no_map(path: Path) -> None:
    with path.open("ab"), OpenFile(path) as file:
        assert file.mapped.address() is None
    with OpenFile(path) as file:
        os.truncate(path, 20)
        assert file.mapped.address() is None
    with OpenFile(path) as file:
        assert LeasedMap(file.fileno(), 20).address() is not None


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 2, 4])
def test_a_tensor_is_read_by_map_or_without(
    path: Path, padding: int, leased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(50)
    saved = save({"w": values, "half": values.half()})
    length = int.from_bytes(saved[:8], "little") + padding  # other programs need not align tensors
    header = saved[8 : 8 + length - padding] + b" " * padding
    path.with_suffix(".safetensors").write_bytes(
        length.to_bytes(8, "little") + header + saved[8 + length - padding :]
    )
    if not leased:
        monkeypatch.setattr(LeasedMap, "address", lambda _: None)
    with TensorFile(path.with_suffix(".safetensors")) as file:
        buffer = torch.empty(20)
        found = file["w"].read_float32(slice(10, 30), buffer)
        assert torch.equal(found, values[10:30])
        assert (found is buffer) is not (leased and padding % 4 == 0)
        assert file["half"].address(slice(0, 5)) is None
