"""Safetensors files read a piece at a time: what the library reads, or one error that names the file."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with a header that nobody has checked."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(*, dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path) -> str:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    with pytest.raises(StaError) as caught:
        TensorFile(path)
    message = str(caught.value)
    assert path.name in message
    assert before is None or len(os.listdir("/proc/self/fd")) == before, "the file is closed again"
    return message


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
    header = {"a": entry(dtype="U8", shape=[1], offsets=[0, 1]), "w": entry(offsets=[1, 9])}
    with TensorFile(raw(path, header, b"x" + bits(torch.ones(2)))) as file:
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


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_missing_file_and_a_folder(tmp_path: Path, name: str) -> None:
    assert "there is no weights file" in refused(tmp_path / name)
    (tmp_path / name).mkdir()
    assert "is a folder" in refused(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        bytes(7),
        bytes(8),
        b"hello, world, this is text",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(200),
        b"\xff" * 64,
    ],
    ids=["empty", "one byte", "seven bytes", "no header", "text", "JPEG", "ones"],
)
def test_foreign_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refused(path)
    assert "is not a whole safetensors file" in message
    assert "make it again" in message


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_under_a_safetensors_name(path: Path, kind: str) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"w": 1}))
    else:
        torch.save(WHOLE, path, _use_new_zipfile_serialization=kind == "zip")
    assert "pickled checkpoint" in refused(path)


def test_every_truncation_is_refused(path: Path) -> None:
    save_weights(path, WHOLE, {"a": "b"})
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for size in {*range(0, length + 40), len(whole) - 1, len(whole) // 2}:
        path.write_bytes(whole[:size])
        assert "not a whole safetensors file" in refused(path)
    path.write_bytes(whole + b"\0")
    assert "bytes" in refused(path) or "byte" in refused(path)


EIGHT = bytes(8)
DEEP = 100_000


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", EIGHT),
        (b"not JSON", EIGHT),
        (b"\xff\xfe", EIGHT),
        (b"[]", b""),
        (b"3", b""),
        (b"null", b""),
        (b'"text"', b""),
        (b"[" * DEEP + b"]" * DEEP, b""),
        (b'{"w":' * DEEP + b"1" + b"}" * DEEP, b""),
        ({"w": []}, b""),
        ({"w": 1}, b""),
        ({"w": None}, b""),
        ({"w": {}}, b""),
        ({"w": entry(dtype="F99")}, EIGHT),
        ({"w": entry(dtype="C64", shape=[1])}, EIGHT),
        ({"w": entry(dtype=["F32"])}, EIGHT),
        ({"w": entry(dtype=None)}, EIGHT),
        ({"w": entry(shape=[3])}, EIGHT),
        ({"w": entry(shape=[])}, EIGHT),
        ({"w": entry(shape=[-1, -2])}, EIGHT),
        ({"w": entry(shape=[2.0])}, EIGHT),
        ({"w": entry(shape=["2"])}, EIGHT),
        ({"w": entry(shape=[True, 2])}, EIGHT),
        ({"w": entry(shape="ab")}, EIGHT),
        ({"w": entry(shape=2)}, EIGHT),
        ({"w": entry(shape=[1 << 62, 4, 1 << 70], offsets=[0, 1 << 140])}, EIGHT),
        ({"w": entry(shape=[0, 1 << 80], offsets=[0, 0])}, b""),
        ({"w": entry(shape=[0, 1 << 62, 1 << 62], offsets=[0, 0])}, b""),
        ({"w": entry(offsets=[0.0, 8.0])}, EIGHT),
        ({"w": entry(offsets=[False, 8])}, EIGHT),
        ({"w": entry(offsets=["0", "8"])}, EIGHT),
        ({"w": entry(offsets=[0])}, EIGHT),
        ({"w": entry(offsets=[0, 8, 16])}, EIGHT),
        ({"w": entry(offsets=[8, 0])}, EIGHT),
        ({"w": entry(offsets=[-8, 0])}, EIGHT),
        ({"w": entry(offsets=[8, 16])}, bytes(16)),
        ({"w": entry(offsets=None)}, EIGHT),
        ({"w": entry(), "v": entry(offsets=[4, 12])}, bytes(12)),
        ({"w": entry(), "v": entry()}, EIGHT),
        ({"w": entry(), "v": entry(offsets=[16, 24])}, bytes(24)),
        ({"w": entry()}, bytes(4)),
        ({"w": entry()}, bytes(12)),
        ({"__metadata__": ["a"], "w": entry()}, EIGHT),
        ({"__metadata__": 3, "w": entry()}, EIGHT),
        ({"__metadata__": {"a": 1}, "w": entry()}, EIGHT),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            EIGHT,
        ),
        (b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
        (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,1e400]}}', EIGHT),
        (b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,NaN]}}', EIGHT),
    ],
    ids=lambda value: (
        value[:40].decode(errors="replace") if isinstance(value, bytes) else json.dumps(value)
    )[:90],
)
def test_a_header_that_says_what_cannot_be(path: Path, header: object, data: bytes) -> None:
    assert "is not a whole safetensors file" in refused(raw(path, header, data))


@pytest.mark.parametrize("length", [(1 << 64) - 1, 1 << 63, 100_000_001, 200])
def test_a_header_longer_than_the_file(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    assert "header of" in refused(path)


def test_what_the_format_allows_is_read(path: Path) -> None:
    with TensorFile(raw(path, {})) as file:
        assert (dict(file), file.metadata) == ({}, {})
    with TensorFile(
        raw(path, {"__metadata__": None, "w": entry(), "n": entry(shape=[0], offsets=[0, 0])}, EIGHT)
    ) as file:
        assert sorted(file) == ["n", "w"]
    text = json.dumps({"w": entry()}).encode() + b"   "
    with TensorFile(raw(path, text, EIGHT)) as file:
        assert file["w"].shape == (2,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("corrupt") / "w.safetensors"
    save_weights(path, WHOLE, {"method": "sta"})
    return path, path.read_bytes()


def opened(path: Path) -> TensorFile | None:
    """The file, or nothing if it is refused by its name; anything else that is raised fails the test."""
    refusal = ""
    try:
        return TensorFile(path)
    except StaError as error:
        refusal = str(error)
    assert "w.safetensors" in refusal
    return None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_corrupt_byte_is_refused_or_read(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = whole
    length = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    file = opened(path)
    if file is None:
        return
    with file:
        # Whatever is told lies within the file and can be read.
        for source in file.values():
            found = source.read(slice(0, source.shape.numel()), source.dtype)
            assert found.numel() == source.shape.numel()


@settings(max_examples=150, deadline=None)
@given(
    header=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-4, 40)
        | st.floats()
        | st.sampled_from(["F32", "U8", "", "w"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "w", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
    data=st.binary(max_size=16),
)
def test_any_header_is_refused_or_read(whole: tuple[Path, bytes], header: object, data: bytes) -> None:
    path = raw(whole[0], header, data)
    file = opened(path)
    if file is None:
        return
    with file:
        assert isinstance(header, dict)
        for source in file.values():
            assert source.read(slice(0, source.shape.numel()), source.dtype).shape == (source.shape.numel(),)


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


def test_known_extents_are_told(path: Path) -> None:
    save_weights(path, WHOLE)
    with TensorFile(path) as file:
        assert file["w"].extent() is None
        known = file["w"].with_extent((0.0, 11.0))
        assert known.extent() == (0.0, 11.0)
        assert known.address() == file["w"].address()
        assert torch.equal(known.read(slice(0, 12), torch.float32), WHOLE["w"].reshape(-1))


def test_closing_gives_everything_back(path: Path) -> None:
    save_weights(path, WHOLE)
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.is_dir() else 0
    with TensorFile(path) as file:
        file["w"].address()
    assert not folder.is_dir() or len(list(folder.iterdir())) == before
