"""Pickled checkpoints of every age give the tensors that torch gives, or say what is wrong."""

import io
import pickle
import random
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sta_lightning.errors import StaError
from tests.weights.formats.tiny import read, same


class Net(nn.Module):
    """Parameters in other orders than their storages', buffers of both kinds, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4).half()
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.turned = nn.Parameter(torch.randn(4, 2).t())
        self.rest = nn.Sequential(nn.Linear(2, 2, bias=False), nn.GELU())
        self.settings = {"names": ("a", "b"), "type": torch.float32}

    def forward(self, values: Tensor) -> Tensor:
        return self.rest(self.first(values) @ self.turned.t())


@pytest.fixture
def net() -> Net:
    return Net()


def save(content: Any, path: Path, way: str) -> None:
    if way == "zip":
        torch.save(content, path)
    elif way == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, int(way)))


@pytest.mark.parametrize("way", ["zip", "old"])
def test_a_state_dict(way: str, net: Net, tmp_path: Path) -> None:
    save(net.state_dict(), tmp_path / "a.pt", way)
    same(read(tmp_path / "a.pt"), net.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_checkpoint(key: str, net: Net, tmp_path: Path) -> None:
    torch.save({"epoch": 3, key: net.state_dict(), "moments": torch.ones(2)}, tmp_path / "a.ckpt")
    same(read(tmp_path / "a.ckpt"), net.state_dict())


@pytest.mark.parametrize("way", ["zip", "old", "0", "1", "2", "3", "4", "5"])
def test_a_module_saved_whole(way: str, net: Net, tmp_path: Path) -> None:
    save(net, tmp_path / "a.pt", way)
    with pytest.raises(StaError, match=r"a\.pt' holds more than tensors.*--unsafe-pickle"):
        read(tmp_path / "a.pt")
    same(read(tmp_path / "a.pt", unsafe_pickle=True), net.state_dict())


@pytest.mark.parametrize("way", ["0", "2", "4"])
def test_a_plainly_pickled_state_dict(way: str, net: Net, tmp_path: Path) -> None:
    save(net.state_dict(), tmp_path / "a.pt", way)
    same(read(tmp_path / "a.pt", unsafe_pickle=True), net.state_dict())


@pytest.mark.parametrize("make", ["trace", "script"])
def test_a_torchscript_archive_is_read_without_its_program(
    make: str, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript announces its own end
        made = torch.jit.trace(net, torch.ones(1, 3)) if make == "trace" else torch.jit.script(net)
        made.save(str(path))
        wanted = torch.jit.load(str(path)).state_dict()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the program was loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    same(read(path), wanted)


def test_views_that_share_a_storage(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float64)
    state = {
        "all": base.view(4, 6),
        "rows": base.view(4, 6)[1:3],
        "columns": base.view(4, 6)[:, 2:5],
        "turned": base.view(4, 6).t(),
        "one": base[7],
        "none": base[:0],
        "blocks": base.view(2, 3, 4).permute(2, 0, 1),
    }
    for way in ("zip", "old"):
        save(state, tmp_path / "a.pt", way)
        same(read(tmp_path / "a.pt"), state)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.int8, torch.int16, torch.uint16, torch.uint8, torch.bool),
    ],
)
def test_types(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.0, 1.0, 2.0]).to(dtype), "b": nn.Parameter(torch.ones(2))}
    torch.save(OrderedDict(state), tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert found["a"].dtype == dtype
    assert torch.equal(found["a"].float(), state["a"].float())
    assert torch.equal(found["b"], state["b"].data)


def test_part_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from sta_lightning.weights.formats import open_checkpoint

    value = torch.randn(5, 7)
    for stored in (value, value.t()):
        torch.save({"a": stored}, tmp_path / "a.pt")
        with ExitStack() as stack:
            source = open_checkpoint(tmp_path / "a.pt", stack).tensors["a"]
            found = source.read(slice(3, 20), torch.float64)
        assert torch.equal(found, stored.reshape(-1)[3:20].double())


@pytest.mark.parametrize("way", ["zip", "old", "4", "script"])
def test_half_a_download_is_told_wherever_it_ends(way: str, net: Net, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    if way == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(net).save(str(path))
    else:
        save(net.state_dict(), path, way)
    whole = path.read_bytes()
    for length in [0, 1, 2, 3, 4, *range(5, len(whole), max(1, len(whole) // 60))]:
        path.write_bytes(whole[:length])
        with pytest.raises(StaError, match=r"a\.pt'.*(truncated|copy or make it again)"):
            read(path, unsafe_pickle=True)


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from sta_lightning.weights.formats import open_checkpoint

    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(5000)}, path)
    with ExitStack() as stack:
        source = open_checkpoint(path, stack).tensors["a"]
        with path.open("r+b") as stream:
            stream.truncate(3000)
        with pytest.raises(StaError, match="changed while it was read"):
            source.read(slice(0, 5000), torch.float32)
        with pytest.raises(StaError, match="changed while it was read"):
            source.check()


def rewritten(path: Path, change: Any, compress: int = zipfile.ZIP_STORED) -> None:
    """Write an archive anew, entry by entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in entries.items():
            for new_name, new_content in change(name, content):
                archive.writestr(new_name, new_content)


def test_odd_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"

    def fresh() -> None:
        torch.save({"a": torch.ones(300)}, path)

    fresh()
    rewritten(path, lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED)
    with pytest.raises(StaError, match="compressed"):
        read(path)
    fresh()
    rewritten(path, lambda name, content: [(name, b"big" if name.endswith("byteorder") else content)])
    with pytest.raises(StaError, match="big-endian"):
        read(path)
    fresh()
    rewritten(path, lambda name, content: [] if name.endswith("data.pkl") else [(name, content)])
    with pytest.raises(StaError, match=r"no data\.pkl"):
        read(path)
    fresh()
    rewritten(path, lambda name, content: [] if name.endswith("data/0") else [(name, content)])
    with pytest.raises(StaError, match="storage '0'"):
        read(path)
    fresh()
    rewritten(path, lambda name, content: [(name, content[:40] if name.endswith("data/0") else content)])
    with pytest.raises(StaError, match="a storage of 40 bytes"):
        read(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    # An expanded tensor: few bytes that would ask for much memory.
    torch.save({"a": torch.ones(1).expand(10**6)}, tmp_path / "a.pt")
    with pytest.raises(StaError, match="a tensor that cannot be"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": 1.5}, "no tensors: 'a'"),
        ({"a": torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)}, "_rebuild_sparse_tensor"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "ComplexFloatStorage"),
    ],
)
def test_what_is_no_state_dict(content: Any, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(StaError, match=expected):
        read(tmp_path / "a.pt")


def test_modules_without_end_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    net._modules["again"] = net
    torch.save(net, tmp_path / "a.pt")
    with pytest.raises(StaError, match="modules without end"):
        read(tmp_path / "a.pt", unsafe_pickle=True)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"PK\x03\x04", bytes(100)):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(StaError, match=r"a\.bin' is not a whole checkpoint"):
            read(tmp_path / "a.bin", unsafe_pickle=True)
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    (tmp_path / "a.safetensors").write_bytes(stream.getvalue())
    with pytest.raises(StaError, match="a pickled checkpoint under a name that ends in"):
        read(tmp_path / "a.safetensors", unsafe_pickle=True)


@pytest.mark.parametrize("way", ["zip", "old", "2", "script"])
def test_damaged_bytes_give_tensors_or_a_message(way: str, net: Net, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    if way == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(net).save(str(path))
    else:
        save(net, path, way)
    whole = path.read_bytes()
    chance = random.Random(0)
    refused: list[str] = []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(min(len(whole), chance.choice([400, len(whole)])))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path, unsafe_pickle=True)
        except StaError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all("a.pt'" in message for message in refused)
