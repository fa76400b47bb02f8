"""Whole conversions: what comes in, what goes out, what the file says of itself."""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from sta_lightning import __version__
from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, read_metadata, save_weights
from sta_lightning.weights.formats import convert
from tests.weights.formats.tiny import (
    ACTIVATIONS,
    CONFIGS,
    NAMES,
    close,
    features,
    images,
    read,
    registered,
    same,
    texts,
    tiny_clip,
)


class ImageEncoder(nn.Module):
    """As the task-vectors repository saves: a model without its text tower, and transforms."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.model = clip
        self.train_preprocess = open_clip.image_transform(16, is_train=True)
        self.val_preprocess = open_clip.image_transform(16, is_train=False)
        self.cache_dir = Path("cache")
        self.build = functools.partial(tiny_clip, seed=3)
        delattr(self.model, "transformer")


def archive_of_openai(clip: Any, path: Path) -> None:
    """As OpenAI publishes: a traced program, with three numbers among its tensors."""
    for name in ("input_resolution", "context_length", "vocab_size"):
        if hasattr(clip, name):
            delattr(clip, name)
        clip.register_buffer(name, torch.tensor(7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript announces its own end
        torch.jit.trace(clip, (images(), texts()), check_trace=False).save(str(path))


def lightning(clip: Any, path: Path) -> None:
    """As this package's training leaves."""
    state = {f"encoder.{name}": value for name, value in clip.visual.state_dict().items()}
    state |= {"head.weight": torch.ones(4, 12), "head._extra_state": torch.tensor(True)}
    facts = {"epoch": 3, "pytorch-lightning_version": "2.6.6", "optimizer_states": [{"a": torch.ones(2)}]}
    torch.save({"state_dict": state, "hyper_parameters": {"encoder": NAMES["gelu"]}, **facts}, path)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "state dict": lambda clip, path: torch.save(clip.state_dict(), path),
    "module.": lambda clip, path: torch.save({f"module.{n}": v for n, v in clip.state_dict().items()}, path),
    "visual.": lambda clip, path: torch.save(
        {f"visual.{n}": v for n, v in clip.visual.state_dict().items()}, path
    ),
    "encoder": lambda clip, path: torch.save(clip.visual.state_dict(), path),
    "training": lambda clip, path: torch.save(
        {"epoch": 1, "name": "x", "state_dict": clip.state_dict()}, path
    ),
    "lightning": lightning,
    "openai": archive_of_openai,
    "module": lambda clip, path: torch.save(ImageEncoder(clip), path),
    "old module": lambda clip, path: torch.save(
        ImageEncoder(clip), path, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("way", WRITERS)
def test_everything_that_comes_in_gives_the_same_encoder(way: str, tmp_path: Path) -> None:
    wanted = tiny_clip()
    WRITERS[way](tiny_clip(), tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    convert(tmp_path / "in.pt", out, "safetensors", configs=CONFIGS, unsafe_pickle="module" in way)
    same(read(out), {f"visual.{name}": value for name, value in wanted.visual.state_dict().items()})


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["state dict", "module.", "openai", "training"])
def test_a_whole_clip_goes_to_open_clip(way: str, activation: str, tmp_path: Path) -> None:
    wanted = tiny_clip(activation)
    WRITERS[way](tiny_clip(activation), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors", "open_clip", configs=CONFIGS)
    with registered(tmp_path):
        found = open_clip.create_model(NAMES[activation], pretrained=str(tmp_path / "out.safetensors")).eval()
    same(found.state_dict(), wanted.state_dict())
    close(features(found.visual), features(wanted.visual))


@pytest.mark.parametrize("way", ["encoder", "lightning", "module"])
def test_an_encoder_alone_borrows_the_text_tower(way: str, tmp_path: Path) -> None:
    finetuned, base = tiny_clip(seed=1), tiny_clip(seed=2)
    WRITERS[way](tiny_clip(seed=1), tmp_path / "in.pt")
    torch.save(base.state_dict(), tmp_path / "base.pt")
    options: dict[str, Any] = {"configs": CONFIGS, "unsafe_pickle": way == "module"}
    out = tmp_path / "out.safetensors"
    with pytest.raises(StaError, match=r"in\.pt' holds an image encoder alone.*--pretrained"):
        convert(tmp_path / "in.pt", out, "open_clip", **options)
    convert(tmp_path / "in.pt", out, "open_clip", pretrained=tmp_path / "base.pt", **options)
    tuned_visual = {f"visual.{n}": v for n, v in finetuned.visual.state_dict().items()}
    same(read(out), {**base.state_dict(), **tuned_visual})


def test_the_pretrained_model_may_be_a_pickled_module_too(tmp_path: Path) -> None:
    torch.save(ImageEncoder(tiny_clip(seed=1)), tmp_path / "in.pt")
    torch.save(ImageEncoder(tiny_clip(seed=2)), tmp_path / "base.pt")
    out = tmp_path / "out.safetensors"
    arguments: dict[str, Any] = {"configs": CONFIGS, "pretrained": tmp_path / "base.pt"}
    convert(tmp_path / "in.pt", out, "safetensors", unsafe_pickle=True, **arguments)
    assert out.is_file()
    with pytest.raises(StaError, match=r"base\.pt' holds more than tensors"):
        convert(out, tmp_path / "again.safetensors", "safetensors", **arguments)


def test_types(tmp_path: Path) -> None:
    clip = tiny_clip()
    torch.save(clip.state_dict(), tmp_path / "in.pt")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        convert(tmp_path / "in.pt", tmp_path / "o.safetensors", "open_clip", configs=CONFIGS, dtype=dtype)
        same(read(tmp_path / "o.safetensors"), {n: v.to(dtype) for n, v in clip.state_dict().items()})
    state = {**clip.state_dict(), "visual.proj": torch.full((32, 12), 1e6)}
    torch.save(state, tmp_path / "in.pt")
    before = (tmp_path / "o.safetensors").read_bytes()
    with pytest.raises(StaError, match=r"'visual\.proj' has entries too large for torch\.float16"):
        convert(
            tmp_path / "in.pt", tmp_path / "o.safetensors", "open_clip", configs=CONFIGS, dtype=torch.float16
        )
    assert (tmp_path / "o.safetensors").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.pt", "o.safetensors"]


def test_what_a_fused_model_says_of_itself_stays(tmp_path: Path) -> None:
    settings = {"method": "sta", "p": 0.7, "encoder": NAMES["gelu"]}
    metadata = provenance("fused:sta", settings, {}) | {
        "sources": json.dumps({"finetuned/cars": {"file": "cars.safetensors", "sha256": "ab" * 32}}),
        "accuracy": json.dumps({"cars": 0.5, "dtd": 0.25}),
        "weights_sha256": "cd" * 32,
        "extents": "{}",
    }
    clip = tiny_clip()
    save_weights(
        tmp_path / "in.safetensors", {f"visual.{n}": v for n, v in clip.visual.state_dict().items()}, metadata
    )
    digest = hashlib.sha256((tmp_path / "in.safetensors").read_bytes()).hexdigest()
    convert(tmp_path / "in.safetensors", tmp_path / "out", "huggingface", configs=CONFIGS)
    found = read_metadata(tmp_path / "out" / "model.safetensors")
    for key in ("kind", "settings", "sources", "accuracy", "weights_sha256", "package", "version"):
        assert found[key] == metadata[key], key
    assert "extents" not in found
    converted = json.loads(found["converted"])
    assert converted["files"] == {"model": {"file": "in.safetensors", "sha256": digest}}
    assert (converted["to"], converted["version"], converted["dtype"]) == ("huggingface", __version__, None)
    assert converted["activation"] == "gelu"
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "`fused:sta`",
        "| p | 0.7 |",
        "cars.safetensors",
        "ab" * 32,
        digest,
        "| cars | 50.00% |",
        "| dtd | 25.00% |",
    ):
        assert part in card, part

    # Rounded weights are not those that the digest was taken of.
    arguments: dict[str, Any] = {"configs": CONFIGS, "dtype": torch.float16}
    convert(tmp_path / "in.safetensors", tmp_path / "half.safetensors", "safetensors", **arguments)
    half = read_metadata(tmp_path / "half.safetensors")
    assert "weights_sha256" not in half
    assert "| cars | 50.00% |" in half["model_card"]
    assert "build_encoder" in half["model_card"]


def test_a_foreign_file_is_said_to_be_one(tmp_path: Path) -> None:
    torch.save(tiny_clip().state_dict(), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors", "open_clip", configs=CONFIGS)
    found = read_metadata(tmp_path / "out.safetensors")
    assert found["kind"] == "converted"
    card = found["model_card"]
    assert "None is recorded." in card
    assert "in.pt" in card
    assert "open_clip.create_model" in card
    assert NAMES["gelu"] in card


def test_the_same_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.save(tiny_clip().state_dict(), tmp_path / "in.pt")
    found = []
    for _ in range(2):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors", "open_clip", configs=CONFIGS)
        found.append((tmp_path / "out.safetensors").read_bytes())
    assert found[0] == found[1]


def test_timms_models_pass_without_their_classifier(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, pretrained=False)
    torch.save({"model": model.state_dict()}, tmp_path / "in.pth")
    out = tmp_path / "out.safetensors"
    convert(tmp_path / "in.pth", out, "safetensors", configs=CONFIGS)
    same(read(out), {n: v for n, v in model.state_dict().items() if not n.startswith("head.")})
    for to in ("open_clip", "huggingface"):
        with pytest.raises(StaError, match=r"in\.pth'"):
            convert(
                tmp_path / "in.pth",
                tmp_path / f"o{'.safetensors' * (to == 'open_clip')}",
                to,
                configs=CONFIGS,
            )


def test_heads_go_along_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    visual = {f"visual.{name}": value for name, value in tiny_clip().visual.state_dict().items()}
    heads = {"head.cars.weight": torch.ones(4, 12), "head.cars.bias": torch.ones(4)}
    metadata = provenance("fused:sta", {}, {}) | {
        "heads": '{"cars": {"class_names": null, "normalize": true}}'
    }
    save_weights(tmp_path / "in.safetensors", {**visual, **heads}, metadata)
    convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "safetensors", configs=CONFIGS)
    same(read(tmp_path / "o.safetensors"), {**visual, **heads})
    assert read_metadata(tmp_path / "o.safetensors")["heads"] == metadata["heads"]
    arguments: dict[str, Any] = {"configs": CONFIGS, "encoder": NAMES["gelu"]}
    convert(tmp_path / "in.safetensors", tmp_path / "theirs", "huggingface", **arguments)
    assert not [name for name in read(tmp_path / "theirs") if "head" in name]
