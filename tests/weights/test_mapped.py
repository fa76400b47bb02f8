"""Safetensors files read a piece at a time: what the library reads, or one error that names the file."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import threading
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights import TensorFile, save_weights
from sta_lightning.weights.format import DTYPES

WHOLE = {
    "w": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.0, -65504.0, 6e-8], dtype=torch.float16),
    "steps": torch.tensor([7]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "naïve.名": torch.ones(2, 2, dtype=torch.bfloat16),
}


def of_every_type() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for text, dtype in DTYPES.items():
        raw = torch.randint(0, 256, (24 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        found[text] = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype).reshape(2, -1)
    return found


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_every_type_is_read_as_the_library_reads_it(path: Path, writer: str) -> None:
    tensors = of_every_type() | WHOLE
    if writer == "ours":
        save_weights(path, tensors, {"method": "sta"})
    else:
        safetensors.torch.save_file(tensors, path, {"method": "sta"})
    wanted = safetensors.torch.load_file(path)
    with TensorFile(path) as file:
        assert file.metadata == {"method": "sta"}
        assert set(file) == set(wanted)
        assert len(file) == len(wanted)
        for name, tensor in wanted.items():
            source = file[name]
            assert (source.shape, source.dtype) == (tensor.shape, tensor.dtype)
            assert bits(source.read(slice(0, tensor.numel()), tensor.dtype)) == bits(tensor), name
            for piece in (
                slice(0, 0),
                slice(0, tensor.numel() // 2),
                slice(tensor.numel() // 2, tensor.numel()),
            ):
                assert bits(source.read(piece, tensor.dtype)) == bits(tensor.reshape(-1)[piece]), name
        wide = file["half"].read(slice(1, 3), torch.float32)
        assert torch.equal(wide, WHOLE["half"][1:].float())


def test_what_was_read_is_its_own_memory(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        first = file["w"].read(slice(0, 12), torch.float32)
        first.zero_()
        assert torch.equal(file["w"].read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_the_map_shows_the_entries_of_aligned_float32_alone(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        where = file["w"].address()
        assert where is not None
        assert list((ctypes.c_float * 12).from_address(where)) == list(range(12))
        assert file["scalar"].address() is not None
        assert [file[name].address() for name in ("half", "steps", "empty", "naïve.名")] == [None] * 4
        assert file["w"].address() == where
    about = {"a": ("U8", [1], [0, 1]), "w": ("F32", [2], [1, 9])}
    header = {
        name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
        for name, entry in about.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"x" + bits(torch.ones(2)))
    with TensorFile(path) as file:
        assert file["w"].address() is None
        assert file["w"].read(slice(0, 2), torch.float32).tolist() == [1.0, 1.0]


def test_a_file_system_without_maps_is_read_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    save_weights(path, WHOLE)
    monkeypatch.setattr(mmap, "mmap", none)
    with TensorFile(path) as file:
        assert file["w"].address() is None
        assert file["w"].address() is None
        assert torch.equal(file["w"].read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_threads_share_one_map(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        found: list[int | None] = []
        threads = [threading.Thread(target=lambda: found.append(file["w"].address())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert len(found) == 8


def test_a_file_that_becomes_shorter_is_found_out(path: Path) -> None:
    save_weights(path, {"w": torch.ones(100_000)})
    with TensorFile(path) as file:
        os.truncate(path, 10_000)
        for ask in (
            file.check,
            lambda: file["w"].read(slice(0, 100_000), torch.float32),
            file["w"].address,
            file["w"].check,
        ):
            with pytest.raises(
                StaError, match=r"w\.safetensors' was changed while it was read .*Nothing was written"
            ):
                ask()
    save_weights(path, {"w": torch.ones(100_000)})
    with TensorFile(path) as file:
        assert file["w"].address() is not None
        os.truncate(path, 0)
        with pytest.raises(StaError, match="was changed while it was read"):
            file.check()


@pytest.mark.parametrize("way", ["rewritten", "longer", "replaced"])
def test_a_file_that_changes_otherwise_is_found_out(path: Path, way: str) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        file.check()
        content = path.read_bytes()
        if way == "replaced":
            path.with_suffix(".new").write_bytes(content)
            os.utime(path.with_suffix(".new"), ns=(1, 1))
            os.replace(path.with_suffix(".new"), path)
        else:
            path.write_bytes(content + (b"x" if way == "longer" else b""))
            os.utime(path, ns=(1, 1))
        with pytest.raises(StaError, match="was changed while it was read"):
            file.check()


def test_a_file_that_is_removed_is_still_whole(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        path.unlink()
        file.check()
        assert torch.equal(file["w"].read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_a_disk_that_fails_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        monkeypatch.setattr(os, "preadv", failing)
        with pytest.raises(StaError, match=r"w\.safetensors' cannot be read: Input/output error"):
            file["w"].read(slice(0, 12), torch.float32)


def test_short_reads_are_taken_up_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(path, WHOLE)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:5]], at))
    with TensorFile(path) as file:
        assert torch.equal(file["w"].read(slice(2, 12), torch.float32), WHOLE["w"].reshape(-1)[2:])


def test_known_bounds_are_told(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        assert file["w"].bounds() is None
        known = file["w"].with_bounds((0.0, 11.0))
        assert known.bounds() == (0.0, 11.0)
        assert known.address() == file["w"].address()
        assert torch.equal(known.read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_closing_gives_everything_back(path: Path) -> None:
    save_weights(path, WHOLE)
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.is_dir() else 0
    with TensorFile(path) as file:
        file["w"].address()
    assert not folder.is_dir() or len(list(folder.iterdir())) == before
