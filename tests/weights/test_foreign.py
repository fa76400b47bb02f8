"""Files that hold no weights which can be read are called by their names."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.errors import StaError
from sta_lightning.weights import encoder_weights, load_weights, save_weights
from sta_lightning.weights.formats import load_state, open_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
PAGE = b"\n  <!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights"))
    return stream.getvalue()


FILES = {
    "Git LFS pointer": (POINTER, "git lfs pull"),
    "web page": (PAGE, "Download the file itself"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "PyTorch"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "made from"),
    "NumPy array": (array(), "safetensors"),
    "gzip": (gzip.compress(b"weights" * 9), "Unpack"),
    "tar archive": (tar(), "Unpack"),
    "JSON": (json.dumps({"model_type": "clip"}).encode(), "beside it"),
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_known_by_how_it_begins(kind: str, ending: str, tmp_path: Path) -> None:
    content, remedy = FILES[kind]
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    with pytest.raises(StaError, match=rf"(?s)'.*model{ending}'.*{kind}.*{remedy}"):
        load_weights(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.h5", "Keras"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("model.ckpt.index", "TensorFlow"),
        ("model.ckpt-1000.data-00000-of-00001", "TensorFlow"),
        ("saved_model.pb", "TensorFlow"),
    ],
)
def test_a_file_is_known_by_its_name_in_a_folder_too(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\0\1\2")
    for asked in (path, tmp_path):
        with pytest.raises(StaError, match=rf"{name}' is .*{kind}"):
            load_state(asked)


def test_tensorflow_calls_a_checkpoint_by_what_its_files_begin_with(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").touch()
    with pytest.raises(StaError, match=r"model\.ckpt' is a checkpoint of TensorFlow"):
        load_weights(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"], "LoRA adapter"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "LoRA adapter"),
        (["visual.conv1.weight", "visual.class_embedding", "blocks.0.mlp.fc1.qweight"], "GPTQ or AWQ"),
        (["vision_model.encoder.layers.0.mlp.fc1.weight.absmax"], "bitsandbytes"),
    ],
)
def test_tensors_of_another_kind_are_known_by_their_names(
    names: list[str], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    state: dict[str, Tensor] = {name: torch.zeros(2, 2) for name in names}
    save_weights(path, state)
    for asked in (path, tmp_path):
        with pytest.raises(StaError, match=rf"holds a.*{kind}.*[Gg]ive the model that"):
            encoder_weights(asked, names=["conv1.weight"])
        with ExitStack() as stack, pytest.raises(StaError, match=kind):
            open_model(asked, stack)


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    table = {"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(StaError, match=r"of the 2 shards .* 2 are missing: 'm-00001.*Download them too"):
        load_state(tmp_path)


def test_a_header_that_begins_like_json_is_none(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((0x7B).to_bytes(8, "little") + b'{"a": ')
    with pytest.raises(StaError, match="not a whole safetensors file"):
        load_weights(path)
