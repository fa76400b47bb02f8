"""Heads in the file of a fused encoder: written beside it, read alone, in no reader's way."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sta_lightning.arithmetic import FUSION_METHODS, make_method
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.encoders import ClassificationHead
from sta_lightning.engine import (
    FusionJob,
    FusionOptions,
    Pretrained,
    TaskHead,
    TaskSource,
    read_head_file,
    read_heads,
)
from sta_lightning.engine.files import open_encoder
from sta_lightning.engine.heads import head_metadata, head_tensors, heads_of_files
from sta_lightning.errors import StaError
from sta_lightning.weights import TensorFile, encoder_prefix, encoder_weights, is_encoder_tensor, save_weights

SHAPES = {"conv1.weight": (4, 3, 2, 2), "class_embedding": (4,), "norm.weight": (4,)}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def heads() -> dict[str, TaskHead]:
    generator = torch.Generator().manual_seed(9)
    weight, bias = torch.randn(2, 4, generator=generator), torch.randn(2, generator=generator)
    return {
        "pets": TaskHead(weight, None, True, ("cat", "großer Hund")),
        "own": TaskHead(weight + 1, bias, False, None),
    }


def write(folder: Path, prefix: str, with_heads: dict[str, TaskHead] | None) -> Path:
    for task in ("a", "b"):
        save_weights(folder / f"{task}.safetensors", state(ord(task)))
    sources = {task: TaskSource(str(folder / f"{task}.safetensors")) for task in ("a", "b")}
    job = FusionJob(sources, "average", make_method("average", FUSION_METHODS))
    output = folder / f"fused{prefix}{with_heads is not None}.safetensors"
    job.write(
        Pretrained("toy", in_memory(state(0)), prefix, digest="0" * 64, tag="openai"),
        output,
        heads=with_heads,
    )
    return output


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_every_reader_of_encoders_passes_heads_by(prefix: str, tmp_path: Path) -> None:
    path, plain = write(tmp_path, prefix, heads()), write(tmp_path, prefix, None)
    with TensorFile(path) as file, TensorFile(plain) as other, ExitStack() as stack:
        assert set(file) - set(other) == {"head.pets.weight", "head.own.weight", "head.own.bias"}
        assert encoder_prefix(file) == prefix
        assert {name for name in file if is_encoder_tensor(name, prefix)} == set(other)
        reference = in_memory(state(0))
        found, _ = open_encoder(path, reference, "the model", stack)
        assert found.keys() == reference.keys()
    expected = encoder_weights(plain, names=state(0))
    for name, tensor in encoder_weights(path, names=state(0)).items():
        assert torch.equal(tensor, expected[name])
    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    assert json.loads(metadata["settings"])["pretrained"] == "openai"


def test_heads_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = write(tmp_path, "visual.", heads())
    found = read_heads(path)
    assert found.keys() == heads().keys()
    for task, head in heads().items():
        assert torch.equal(found[task].weight, head.weight)
        assert (found[task].normalize, found[task].class_names) == (head.normalize, head.class_names)
    bias = heads()["own"].bias
    assert bias is not None
    assert found["own"].bias is not None
    assert torch.equal(found["own"].bias, bias)
    assert found["pets"].bias is None
    assert read_heads(write(tmp_path, "visual.", None)) == {}
    torch.save(state(0), tmp_path / "plain.pt")
    assert read_heads(tmp_path / "plain.pt") == {}


def test_the_same_merge_with_heads_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path, "visual.", heads()).read_bytes()
    assert write(tmp_path, "visual.", dict(reversed(heads().items()))).read_bytes() == first


def test_a_head_in_the_place_of_the_encoders_own_tensor(tmp_path: Path) -> None:
    with pytest.raises(StaError, match=r"tensors of their names: 'head\.norm\.weight'"):
        head_tensors({"norm": heads()["pets"]}, ["head.norm.weight"])


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        ({"heads": "no JSON"}, None),
        ({"heads": "[]"}, None),
        ({"heads": '{"pets": {"class_names": ["one"], "normalize": true}}'}, None),
        ({"heads": '{"pets": {"class_names": "two", "normalize": true}}'}, None),
        ({}, ["head.own.bias"]),
    ],
)
def test_damaged_heads_are_told(change: dict[str, str], tensors: list[str] | None, tmp_path: Path) -> None:
    path = tmp_path / "fused.safetensors"
    kept = {name: t for name, t in head_tensors(heads()).items() if tensors is None or name in tensors}
    save_weights(path, kept, {**head_metadata(heads()), **change})
    with pytest.raises(StaError, match=r"class names|are not what its metadata says"):
        read_heads(path)


def test_heads_from_files(tmp_path: Path) -> None:
    own, pets = heads()["own"], heads()["pets"]
    ClassificationHead.of(own).save(tmp_path / "own.safetensors")
    ClassificationHead.of(pets).save(tmp_path / "pets.safetensors", class_names=pets.class_names)
    files = {task: TaskSource("x", head=str(tmp_path / f"{task}.safetensors")) for task in ("own", "pets")}
    found = heads_of_files(files)
    assert (found["own"].class_names, found["own"].normalize) == (None, False)
    assert found["pets"].class_names == pets.class_names
    assert torch.equal(found["pets"].weight, pets.weight)
    loaded = ClassificationHead.load(tmp_path / "own.safetensors")
    assert loaded.bias is not None
    assert own.bias is not None
    assert torch.equal(loaded.bias, own.bias)
    assert FusionOptions(files).task_heads() == {}
    with pytest.raises(StaError, match=r"no head file is given for 'bare'\. .*--evaluate=false"):
        FusionOptions({**files, "bare": TaskSource("x")}, heads=True).task_heads()
    for names in ("no JSON", '"text"', "[1]"):
        save_weights(
            tmp_path / "odd.safetensors", {"weight": pets.weight}, {"normalize": "true", "class_names": names}
        )
        with pytest.raises(StaError, match="class names in the metadata"):
            read_head_file(tmp_path / "odd.safetensors")
    save_weights(tmp_path / "none.safetensors", {"weight": pets.weight})
    with pytest.raises(StaError, match="is not a classification head"):
        read_head_file(tmp_path / "none.safetensors")


def test_shapes_and_names_must_fit() -> None:
    with pytest.raises(StaError, match="2 classes was given 1 class names"):
        TaskHead(torch.zeros(2, 4), class_names=("one",))
    with pytest.raises(StaError, match=r"bias \[classes\]"):
        TaskHead(torch.zeros(2, 4), torch.zeros(3))
