"""Safetensors files read a piece at a time: what the library reads, or an error that names it."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights import TensorFile, save_weights
from sta_lightning.weights.format import DTYPES
from sta_lightning.weights.leased import LeasedMap

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
        save_weights(path, tensors, {"method": "sta"}, allow_nonfinite=True)
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


def test_for_a_loop_float32_comes_in_the_buffer_and_16_bits_beside_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeasedMap, "address", lambda _: None)
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        buffer = torch.full((5,), 9.0)
        found = file["w"].read_float32(slice(3, 8), buffer)
        assert found.data_ptr() == buffer.data_ptr()
        assert found.tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
        half = file["half"].read_float32(slice(1, 3), buffer[:2])
        assert torch.equal(half, WHOLE["half"][1:].float())
        assert buffer.tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
        assert file["empty"].read_float32(slice(0, 0), buffer[:0]).numel() == 0


def test_entries_that_are_not_aligned(path: Path) -> None:
    about = {"a": ("U8", [1], [0, 1]), "w": ("F32", [2], [1, 9])}
    header = {
        name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
        for name, entry in about.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"x" + bits(torch.ones(2)))
    with TensorFile(path) as file:
        assert file["w"].read_float32(slice(0, 2), torch.zeros(2)).tolist() == [1.0, 1.0]
        assert file["w"].read(slice(0, 2), torch.float32).tolist() == [1.0, 1.0]


def test_threads_read_each_their_own(path: Path) -> None:
    values = torch.arange(80_000.0)
    save_weights(path, {"w": values})
    with TensorFile(path) as file, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bool:
            piece, buffer = slice(10_000 * number, 10_000 * (number + 1)), torch.empty(10_000)
            return all(torch.equal(file["w"].read_float32(piece, buffer), values[piece]) for _ in range(20))

        assert all(pool.map(read, range(8)))


def test_a_file_that_becomes_shorter_is_found_out(path: Path) -> None:
    save_weights(path, {"w": torch.ones(100_000)})
    with TensorFile(path) as file:
        os.truncate(path, 10_000)
        for ask in (
            file.check,
            lambda: file["w"].read(slice(0, 100_000), torch.float32),
            lambda: file["w"].read_float32(slice(0, 100_000), torch.empty(100_000)),
            file["w"].check,
        ):
            with pytest.raises(
                StaError, match=r"w\.safetensors' was changed while it was read .*Nothing was written"
            ):
                ask()
    save_weights(path, {"w": torch.ones(100_000)})
    with TensorFile(path) as file:
        buffer = torch.empty(1000)
        file["w"].read_float32(slice(0, 1000), buffer)
        os.truncate(path, 0)
        for ask in (file.check, lambda: file["w"].read_float32(slice(1000, 2000), buffer)):
            with pytest.raises(StaError, match="was changed while it was read"):
                ask()


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


def test_all_tensors_of_a_file_ask_it_the_same(path: Path) -> None:
    save_weights(path, {"a": torch.ones(3), "b": torch.ones(5)})
    with TensorFile(path) as file:
        assert {check for name in file for check in file[name].checks()} == {file.check}


def test_a_file_that_is_removed_is_still_whole(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        path.unlink()
        file.check()
        assert torch.equal(file["w"].read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_a_disk_that_fails_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_known_bounds_are_kept(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        assert file["w"].bounds() is None
        known = file["w"].with_bounds((0.0, 11.0))
        assert known.bounds() == (0.0, 11.0)
        assert torch.equal(known.read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_closing_gives_everything_back(path: Path) -> None:
    save_weights(path, WHOLE)
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.is_dir() else 0
    with TensorFile(path) as file:
        file["w"].read(slice(0, 12), torch.float32)
    assert not folder.is_dir() or len(list(folder.iterdir())) == before
