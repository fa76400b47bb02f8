"""Weights in and out."""

import pickle
import resource
import stat
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from sta_lightning.errors import StaError
from sta_lightning.weights import load_weights, read_metadata, save_weights
from sta_lightning.weights.format import header_of

EVERY_TYPE = {
    "f64": torch.tensor([1.5, -2.0], dtype=torch.float64),
    "f32": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "f16": torch.tensor([1.0, 65504.0, 6e-8], dtype=torch.float16),
    "bf16": torch.tensor([[1.0], [3e38]], dtype=torch.bfloat16),
    "f8": torch.tensor([1.0, 448.0]).to(torch.float8_e4m3fn),
    "f8_e5m2": torch.tensor([1.0, 0.5]).to(torch.float8_e5m2),
    "i64": torch.tensor([-(2**63), 2**63 - 1]),
    "i32": torch.tensor([7], dtype=torch.int32),
    "i16": torch.tensor([-7], dtype=torch.int16),
    "i8": torch.tensor([-7, 1, 2], dtype=torch.int8),
    "u8": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "naïve.名": torch.ones(2, 2),
}


class Stranger:
    """Something that a checkpoint should not hold."""


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, EVERY_TYPE, {"method": "sta"})
    for state in (load_weights(path), safetensors.torch.load_file(path)):
        assert set(state) == set(EVERY_TYPE)
        for name, value in EVERY_TYPE.items():
            assert state[name].dtype == value.dtype
            assert state[name].shape == value.shape
            assert torch.equal(state[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert float(load_weights(path)["scalar"]) == 2.5
    assert read_metadata(path) == {"method": "sta"}


def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_weights(ours, EVERY_TYPE, {"one": "entry"})
    safetensors.torch.save_file(EVERY_TYPE, theirs, {"one": "entry"})
    with safetensors.safe_open(ours, "pt") as a, safetensors.safe_open(theirs, "pt") as b:
        assert sorted(a.keys()) == sorted(b.keys())
        assert a.metadata() == b.metadata()
    assert abs(ours.stat().st_size - theirs.stat().st_size) < 64


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = {chr(97 + i): str(i) for i in range(12)}
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_weights(first, EVERY_TYPE, metadata)
    save_weights(second, dict(reversed(EVERY_TYPE.items())), dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    header, order = header_of(EVERY_TYPE, {})
    assert len(header) % 8 == 0
    offset = 0
    for name in order:
        assert offset % EVERY_TYPE[name].element_size() == 0
        offset += EVERY_TYPE[name].numel() * EVERY_TYPE[name].element_size()


def test_views_shared_memory_and_parameters_are_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "same": whole,
        "transposed": whole.T,
        "column": whole[:, 1],
        "every_other": whole[::2],
        "expanded": torch.ones(1).expand(3),
        "negative": torch.imag(torch.tensor([1 + 2j]).conj()),
        "channels_last": torch.arange(16.0).reshape(1, 2, 2, 4).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_weights(tmp_path / "w.safetensors", tensors)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_a_state_dict_s_tied_weights_are_written(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    save_weights(tmp_path / "w.safetensors", module.state_dict())
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["1.weight"], module[0].weight)


def test_loaded_weights_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.arange(1000.0)})
    state = load_weights(path)
    save_weights(path, {"w": torch.zeros(1000)})
    assert torch.equal(state["w"], torch.arange(1000.0))
    path.unlink()
    state["w"].add_(1)
    assert float(state["w"][0]) == 1.0


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(StaError, match=r"cannot save 'z'"):
        save_weights(path, {"w": torch.zeros(2), "z": torch.ones(1, dtype=torch.complex64)})

    def broken(*_: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr("sta_lightning.weights.io.packed", broken)  # the header is written by then
    with pytest.raises(RuntimeError, match="stop"):
        save_weights(path, {"w": torch.zeros(2)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(2)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(StaError, match=r"cannot write '.*w\.safetensors'.*make room"):
            save_weights(path, {"w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_the_format_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for value in (torch.ones(1).to_sparse(), torch.ones(1, device="meta"), 3.0):
        with pytest.raises(StaError, match="cannot save 'odd'"):
            save_weights(path, {"odd": value})  # type: ignore[dict-item]
    with pytest.raises(StaError, match="cannot save '__metadata__'"):
        save_weights(path, {"__metadata__": torch.ones(1)})
    with pytest.raises(StaError, match="metadata 'seed'"):
        save_weights(path, {"w": torch.ones(1)}, {"seed": 3})  # type: ignore[dict-item]
    with pytest.raises(StaError, match=r"must end in \.safetensors"):
        save_weights(tmp_path / "w.pt", {"w": torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_saved_weights_can_be_read_by_others(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"w": torch.ones(1)})
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w.safetensors", "plain")}
    assert len(modes) == 1


def test_dtype_converts_floating_point_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(2).half(), "n": torch.tensor([3])})
    state = load_weights(path, dtype=torch.float32)
    assert (state["w"].dtype, state["n"].dtype) == (torch.float32, torch.int64)
    with pytest.raises(StaError, match="dtype must be"):
        load_weights(path, dtype=torch.int8)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_checkpoints_are_read(tmp_path: Path, suffix: str, key: str | None) -> None:
    state = {"encoder.w": torch.ones(2), "n": torch.tensor(1)}
    path = tmp_path / f"model{suffix}"
    torch.save(state if key is None else {key: state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, path)
    assert set(load_weights(path)) == set(state)


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_a_checkpoint_with_code_is_refused_and_nothing_runs(tmp_path: Path, protocol: str) -> None:
    path, trace = tmp_path / "bomb.pt", tmp_path / "trace"
    torch.save({"w": Bomb(trace)}, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(StaError, match=r"bomb\.pt' holds more than tensors.*not read"):
        load_weights(path)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(StaError, match=r"bomb\.pt'"):
        load_weights(path)
    assert not trace.exists()


def test_the_refusal_names_the_culprit_and_does_not_tell_to_load_it_all_the_same(tmp_path: Path) -> None:
    torch.save({"w": Stranger()}, tmp_path / "w.pt")
    with pytest.raises(StaError, match=r"asks for '.*Stranger'") as caught:
        load_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_pickle_under_a_safetensors_name_is_refused_and_nothing_runs(tmp_path: Path, protocol: str) -> None:
    path, trace = tmp_path / "w.safetensors", tmp_path / "trace"
    if protocol == "pickle":
        path.write_bytes(pickle.dumps({"w": Bomb(trace)}))
    else:
        torch.save({"w": Bomb(trace)}, path, _use_new_zipfile_serialization=protocol == "zip")
    for read in (load_weights, read_metadata):
        with pytest.raises(StaError, match=r"w\.safetensors' is a pickled checkpoint.*not loaded"):
            read(path)
    assert not trace.exists()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.999])
def test_truncated_files_are_refused_by_name(tmp_path: Path, part: float) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.randn(1000)}, {"a": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(StaError, match=r"w\.safetensors' is not a whole safetensors file.*truncated"):
        load_weights(path)
    checkpoint = tmp_path / "w.ckpt"
    torch.save({"w": torch.randn(1000)}, checkpoint)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(StaError, match=r"w\.ckpt'"):
        load_weights(checkpoint)


@pytest.mark.parametrize(
    "garbage", [b"hello, world, this is text", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{notjson"]
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, garbage: bytes) -> None:
    for name in ("w.safetensors", "w.ckpt", "w.pt"):
        path = tmp_path / name
        path.write_bytes(garbage)
        with pytest.raises(StaError, match=name):
            load_weights(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for read in (load_weights, read_metadata):
        with pytest.raises(StaError, match=r"no weights file '.*absent\.safetensors'"):
            read(tmp_path / "absent.safetensors")
        with pytest.raises(StaError, match="is a folder"):
            read(tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(StaError, match="carries no metadata"):
        read_metadata(tmp_path / "w.pt")


def test_a_checkpoint_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"w": torch.ones(1), "epoch": 3}}, path)
    with pytest.raises(StaError, match="no tensors: 'epoch'"):
        load_weights(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(StaError, match="holds no state dict"):
        load_weights(path)
    torch.save({}, path)
    with pytest.raises(StaError, match="holds no state dict"):
        load_weights(path)
    torch.save({"model": Stranger()}, path)
    with pytest.raises(StaError, match="holds more than tensors"):
        load_weights(path)


def test_a_file_without_metadata_has_none(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"w": torch.ones(1)})
    assert read_metadata(tmp_path / "w.safetensors") == {}


def test_nan_and_inf_are_not_written_unless_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.ones(2)})
    before = path.read_bytes()
    for value in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2):
            broken = {"w": torch.tensor([1.0, value]).to(dtype), "n": torch.tensor([1])}
            with pytest.raises(StaError, match=r"not written: NaN or Inf in 1 of 2 tensors, 'w'\."):
                save_weights(path, broken)
            assert path.read_bytes() == before
    save_weights(path, broken, allow_nonfinite=True)
    assert path.read_bytes() != before


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    state = {"w": torch.arange(3.0)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "last.pth.tar")
    save_weights(tmp_path / "w.safetensors", state)
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.safetensors").read_bytes())
    (tmp_path / "no ending").write_bytes((tmp_path / "last.pth.tar").read_bytes())
    for name in ("last.pth.tar", "w.bin", "no ending"):
        assert torch.equal(load_weights(tmp_path / name)["w"], state["w"])
    (tmp_path / "w.onnx").write_bytes(b"\x08\x07\x12\x04onnx")
    with pytest.raises(StaError, match=r"w\.onnx' is no checkpoint of PyTorch but an ONNX graph"):
        load_weights(tmp_path / "w.onnx")
