from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from sta_lightning.encoders import ClassificationHead, build_clip, zeroshot_head
from sta_lightning.encoders.predictor import open_predictor
from sta_lightning.encoders.sources import MINIATURE_WEIGHTS
from sta_lightning.engine import TaskHead
from sta_lightning.engine.heads import head_metadata, head_tensors
from sta_lightning.errors import StaError
from sta_lightning.tasks import Task
from sta_lightning.weights import load_weights, save_weights, sha256
from tests.encoders.hub_cache import MEAN, random_clip, tiny_config, write_repository, written

TASK = Task("toy", ("cat", "dog"), ("a {}.",), opener=lambda split, root: [])  # type: ignore[arg-type, return-value]


def find(spec: str) -> Task:
    if spec not in ("toy", "folder/toy.yaml"):
        raise StaError(f"no task {spec}")
    return TASK


def model(
    path: Path, settings: dict[str, Any] | None, state: dict[str, torch.Tensor], **entries: str
) -> Path:
    """A file like those of a merge."""
    said = {} if settings is None else {"settings": json.dumps(settings)}
    save_weights(
        path, {n: t for n, t in state.items() if n.startswith(("visual.", "head."))}, {**said, **entries}
    )
    return path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_clip("miniature", "random").state_dict())


def test_a_tag_in_the_settings_tells_activation_and_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    open_clip.add_model_config(written(tmp_path / "configs" / "tiny-predicted.json", config["model_cfg"]))
    tag = {
        "hf_hub": "org/gone/",
        "quick_gelu": True,
        "mean": MEAN,
        "resize_mode": "shortest",
        "interpolation": "bilinear",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-predicted", {"openai": tag})
    heads = {"toy": TaskHead(torch.randn(2, 128), class_names=("cat", "dog"))}
    config["model_cfg"]["vision_cfg"]["image_size"] = 32  # as a merge at that size leaves it
    content = {**random_clip(config, 1), **head_tensors(heads)}
    settings = {"encoder": "tiny-predicted", "pretrained": "openai", "image_size": 32}
    found = open_predictor(model(tmp_path / "a.safetensors", settings, content, **head_metadata(heads)))
    assert (found.spec.mean, found.spec.interpolation, found.spec.image_size) == (MEAN, "bilinear", 32)
    assert isinstance(
        found.encoder.get_submodule("transformer.resblocks.0.mlp.gelu"), open_clip.model.QuickGELU
    )
    assert found.class_names == ("cat", "dog")
    # Without the tag in the settings nothing asks for either.
    plain = model(
        tmp_path / "b.safetensors",
        {"encoder": "tiny-predicted", "image_size": 32},
        content,
        **head_metadata(heads),
    )
    other = open_predictor(plain)
    assert isinstance(other.encoder.get_submodule("transformer.resblocks.0.mlp.gelu"), nn.GELU)
    assert open_predictor(plain, pretrained="openai").spec.mean == MEAN


def test_prompts_of_what_the_model_was_made_from(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    own = zeroshot_head("miniature", None, TASK.class_names, TASK.templates)
    settings = {"encoder": "miniature"}
    finetuned = model(tmp_path / "finetuned.safetensors", settings, state)
    assert torch.equal(open_predictor(finetuned, task="toy", find_task=find).head.weight, own)
    same = json.dumps({"pretrained": {"file": "other name", "sha256": sha256(MINIATURE_WEIGHTS)}})
    fused = model(tmp_path / "fused.safetensors", settings, state, sources=same)
    assert torch.equal(open_predictor(fused, task="toy", find_task=find).head.weight, own)
    # Of another model than the package's the head would be wrong: it must be named.
    other = json.dumps({"pretrained": {"file": "mine.safetensors", "sha256": "0" * 64}})
    fused = model(tmp_path / "fused.safetensors", settings, state, sources=other)
    with pytest.raises(StaError, match=r"--pretrained.*fine-tuned from 'mine\.safetensors'"):
        open_predictor(fused, task="toy", find_task=find)
    save_weights(tmp_path / "mine.safetensors", state)
    made = open_predictor(fused, task="toy", find_task=find, pretrained=str(tmp_path / "mine.safetensors"))
    assert torch.equal(
        made.head.weight,
        zeroshot_head("miniature", str(tmp_path / "mine.safetensors"), TASK.class_names, TASK.templates),
    )
    # A file that says nothing of itself, or said what it was in another program's words.
    silent = model(tmp_path / "silent.safetensors", None, state)
    with pytest.raises(StaError, match="does not say which encoder"):
        open_predictor(silent, task="toy", find_task=find)
    with pytest.raises(StaError, match="brings no heads"):
        open_predictor(silent, task="toy", find_task=find, encoder="miniature")
    foreign = tmp_path / "foreign.safetensors"
    save_weights(
        foreign, {n: t for n, t in state.items() if n.startswith("visual.")}, {"settings": "in words"}
    )
    with pytest.raises(StaError, match="does not say which encoder"):
        open_predictor(foreign, task="toy", find_task=find)


def test_which_head_is_taken(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    heads = {
        "toy": TaskHead(torch.randn(2, 128)),
        "other": TaskHead(torch.randn(3, 128), class_names=("a", "b", "c")),
    }
    path = model(
        tmp_path / "m.safetensors",
        {"encoder": "miniature"},
        {**state, **head_tensors(heads)},
        **head_metadata(heads),
    )
    for spec in ("toy", "folder/toy.yaml"):  # the class names are the task's, as the head has none
        found = open_predictor(path, task=spec, find_task=find)
        assert torch.equal(found.head.weight, heads["toy"].weight)
        assert found.class_names == TASK.class_names
    assert open_predictor(path, task="other", find_task=find).class_names == ("a", "b", "c")
    with pytest.raises(StaError, match="does not tell the names of its classes"):
        open_predictor(path, task="toy")
    ClassificationHead(torch.ones(2, 128)).save(tmp_path / "head.safetensors")
    assert (
        open_predictor(
            path, task="toy", head=tmp_path / "head.safetensors", find_task=find
        ).head.weight.mean()
        == 1
    )
    save_weights(tmp_path / "three.safetensors", {"weight": torch.zeros(3, 128)}, {"normalize": "true"})
    with pytest.raises(StaError, match="head has 3 classes, the task 2"):
        open_predictor(path, task="toy", head=tmp_path / "three.safetensors", find_task=find)


def test_a_state_dict_and_a_repository(caches: Path, tmp_path: Path, network: list[str]) -> None:
    config = tiny_config(quick_gelu=True)
    write_repository(
        caches / "hub", "org/tiny", "c" * 40, {"open_clip_config.json": written(tmp_path / "c.json", config)}
    )
    content = random_clip(config, 1)
    torch.save({n: t for n, t in content.items() if n.startswith("visual.")}, tmp_path / "m.pt")
    ClassificationHead(torch.ones(2, 128)).save(tmp_path / "head.safetensors", class_names=("cat", "dog"))
    # Only the description is in the cache, and only that is needed.
    found = open_predictor(tmp_path / "m.pt", encoder="hf-hub:org/tiny", head=tmp_path / "head.safetensors")
    assert found.probabilities(torch.zeros(3, 3, 16, 16)).shape == (3, 2)
    assert network == []


def test_an_encoder_without_a_text_tower(tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict()
    path = tmp_path / "vit.safetensors"
    save_weights(path, weights, {"settings": json.dumps({"encoder": "timm/test_vit"})})
    with pytest.raises(StaError, match=r"no text tower to make one: give its file \(--head\)"):
        open_predictor(path, task="toy", find_task=find)
    width = load_weights(path)["norm.weight"].numel()
    ClassificationHead(torch.ones(2, width)).save(tmp_path / "head.safetensors", class_names=("cat", "dog"))
    found = open_predictor(path, head=tmp_path / "head.safetensors")
    assert found.probabilities(torch.zeros(1, 3, found.spec.image_size, found.spec.image_size)).tolist() == [
        [0.5, 0.5]
    ]
