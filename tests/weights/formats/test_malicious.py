"""No checkpoint, however it is written and whichever way it comes in, runs anything."""

import builtins
import io
import json
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.cli.main import main
from sta_lightning.errors import StaError
from sta_lightning.weights.formats import open_checkpoint


class Call:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def payloads(target: Path) -> dict[str, Any]:
    """What would make the target, were it called."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {target}"),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "open": Call(builtins.open, str(target), "w"),
        "touch": Call(Path.touch, target),
        "torch.load": Call(torch.load, str(target)),
        "state": {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": Call(os.system, f"touch {target}")},
        "key": {Call(os.system, f"touch {target}"): torch.ones(1)},
        "module": _module(target),
    }


def _module(target: Path) -> torch.nn.Module:
    module = torch.nn.Linear(1, 1)
    module.extra = Call(os.system, f"touch {target}")
    return module


NAMES = list(payloads(Path("nowhere")))


def hand_written(target: Path) -> dict[str, bytes]:
    """Instructions that Python's own pickler does not write any more."""
    command = f"touch {target}".encode()
    return {
        "instance": b"(S'" + command + b"'\nios\nsystem\n.",
        "object": b"(cos\nsystem\nS'" + command + b"'\no.",
        "reduce": b"cos\nsystem\n(S'" + command + b"'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'" + command + b"'\ntR.",
        "dotted": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R.",
    }


def container(way: str, content: bytes, path: Path) -> Path:
    """A file, or a folder, of one sort around a pickle."""
    if way == "plain":
        path.with_suffix(".pt").write_bytes(content)
        return path.with_suffix(".pt")
    if way == "old":
        head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.with_suffix(".bin").write_bytes(head + content + pickle.dumps([], 2))
        return path.with_suffix(".bin")
    if way == "nested":
        # A storage's bytes are a checkpoint of their own, which torch reads without any
        # restriction.
        inner = Call(torch.storage._load_from_bytes, content)
        tensor = Call(torch._utils._rebuild_tensor_v2, inner, 0, (1,), (1,), False, {})
        path.with_suffix(".pt").write_bytes(pickle.dumps({"a": tensor}, 2))
        return path.with_suffix(".pt")
    if way == "disguised":
        path.with_suffix(".safetensors").write_bytes(content)
        return path.with_suffix(".safetensors")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        if way == "script":
            archive.writestr("archive/constants.pkl", content)
            archive.writestr("archive/code/__torch__.py", "raise SystemExit")
    if way in ("folder", "shard"):
        path.mkdir()
        name = "pytorch_model.bin" if way == "folder" else "pytorch_model-00001-of-00001.bin"
        (path / name).write_bytes(stream.getvalue())
        if way == "shard":
            index = {"weight_map": {"a": name}}
            (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return path
    path.with_suffix(".ckpt").write_bytes(stream.getvalue())
    return path.with_suffix(".ckpt")


WAYS = ["plain", "old", "nested", "disguised", "zip", "script", "folder", "shard"]


def attempt(path: Path, unsafe_pickle: bool) -> str:
    """The message of the error that opening and reading it gives; empty if it gives none."""
    try:
        with ExitStack() as stack:
            for source in open_checkpoint(path, stack, unsafe_pickle=unsafe_pickle).tensors.values():
                source.read(slice(0, source.shape.numel()), source.dtype)
    except StaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("unsafe_pickle", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_called(way: str, unsafe_pickle: bool, tmp_path: Path) -> None:
    target = tmp_path / "made"
    contents = hand_written(target)
    contents |= {
        f"{name}-{protocol}": pickle.dumps(payload, protocol)
        for name, payload in payloads(target).items()
        for protocol in (0, 2, 4)
    }
    for number, (name, content) in enumerate(contents.items()):
        message = attempt(container(way, content, tmp_path / f"file{number}"), unsafe_pickle)
        assert message, (name, "was taken")
        assert f"file{number}" in message, (name, "does not name the file")
        assert not target.exists(), name


def test_the_payloads_are_real(tmp_path: Path) -> None:
    # Python's own unpickler does make the file: the tests above would see it.
    target = tmp_path / "made"
    for name in ("os.system", "eval", "exec", "open", "touch", "key"):
        made = pickle.loads(pickle.dumps(payloads(target)[name]))
        if name == "open":
            made.close()
        assert target.exists(), name
        target.unlink()
    for name, content in hand_written(target).items():
        if name != "getattr":
            pickle.loads(content)
            assert target.exists(), name
            target.unlink()


@pytest.mark.parametrize("flag", [[], ["--unsafe-pickle"]])
def test_the_commands_call_nothing(
    flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    bad = container("zip", pickle.dumps(payloads(target)["state"], 2), tmp_path / "bad")
    out = str(tmp_path / "out.safetensors")
    good = tmp_path / "good.safetensors"
    from sta_lightning.weights import save_weights

    save_weights(good, {"weight": torch.ones(1)})
    for words in (
        ["convert", str(bad), out, "--to=safetensors", *flag],
        ["convert", str(good), out, "--to=safetensors", f"--pretrained={bad}", *flag],
        ["inspect", str(bad), *flag],
        ["inspect", str(good), f"--pretrained={bad}", *flag],
    ):
        assert main(words) == 2
        assert str(bad) in capsys.readouterr().err
        assert not target.exists()
        assert not Path(out).exists()


def test_code_beside_the_weights_is_left_alone(tmp_path: Path) -> None:
    # A model hub's folder may bring Python files and name them in its config.json.
    from safetensors.torch import save_file

    target = tmp_path / "made"
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "modeling.py").write_text(f"open({str(target)!r}, 'w')")
    (tmp_path / "config.json").write_text(
        '{"model_type": "clip", "auto_map": {"AutoModel": "modeling.Model"}}'
    )
    assert attempt(tmp_path, unsafe_pickle=True) == ""
    assert not target.exists()


def shared(times: int, width: int = 2) -> Any:
    """A value within itself many times over: few bytes that say width^times values."""
    value: Any = 1
    for _ in range(times):
        value = dict.fromkeys(range(width), value)
    return value


class Rebuilt(Call):
    """Pickled as a tensor with these arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__(torch._utils._rebuild_tensor_v2, *args)


def endless(way: str) -> Any:
    """What a small file says that takes for ever to walk or to print."""
    state = {"a": torch.ones(1)}
    if way == "facts":
        return {"state_dict": state, "epoch": shared(3, 2000)}
    if way == "list":
        value: Any = 1
        for _ in range(40):
            value = [value] * 32
        return {"state_dict": state, "epoch": [value] * 32}
    if way == "digits":
        return {"state_dict": state, "epoch": 1 << (1 << 20)}
    if way == "shape":
        value = 1
        for _ in range(60):
            value = (value, value)
        return {"a": Rebuilt(torch.ones(1).untyped_storage(), 0, value, value, False, {})}
    if way == "wrapped":
        tensor: Any = torch.ones(1)
        for _ in range(3000):
            tensor = Call(torch._utils._rebuild_parameter, tensor, False, {})
        return {"a": tensor}
    module = torch.nn.Module()
    for _ in range(40):
        outer = torch.nn.Module()
        outer.first = outer.second = module
        module = outer
    return module


@pytest.mark.parametrize("way", ["facts", "list", "digits", "shape", "wrapped", "modules"])
def test_nothing_small_takes_for_ever(way: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        pickle._Pickler(stream, 2).dump(endless(way))  # type: ignore[attr-defined]
    finally:
        sys.setrecursionlimit(limit)
    path = container("plain", stream.getvalue(), tmp_path / "a")
    began = time.process_time()
    attempt(path, unsafe_pickle=True)
    assert time.process_time() - began < 10
    if way in ("facts", "list", "digits"):
        with ExitStack() as stack:
            assert len(json.dumps(dict(open_checkpoint(path, stack, unsafe_pickle=True).facts))) < 10_000_000


def test_a_compressed_pickle_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"}.")
    assert "data.pkl' is compressed" in attempt(tmp_path / "a.pt", unsafe_pickle=True)
