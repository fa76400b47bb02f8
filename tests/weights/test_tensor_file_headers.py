"""Files that are no safetensors files, or say what cannot be: one error that names the file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sta_lightning.errors import StaError
from sta_lightning.weights import TensorFile, save_weights

WHOLE = {
    "w": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.0, -65504.0, 6e-8], dtype=torch.float16),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


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
    """The file, or ``None`` if it is refused by its name; any other error fails the test."""
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
        # Whatever it says lies within the file and can be read.
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
