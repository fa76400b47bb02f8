"""The shipped CLIP on the suite: that it can stand in for CLIP, and its file's metadata."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sta_lightning.encoders import build_encoder, zeroshot_head
from sta_lightning.encoders.sources import MINIATURE_WEIGHTS
from sta_lightning.tasks.miniature import CONTROL, SUITE_TASKS
from sta_lightning.tasks.miniature.datamodule import to_input
from sta_lightning.tasks.miniature.scenes import SCENES, render
from sta_lightning.weights import load_weights, read_metadata


def zero_shot_accuracy(name: str) -> float:
    scene = SCENES[name]
    encoder = build_encoder("miniature").eval()
    head = zeroshot_head("miniature", None, scene.class_names, scene.templates)
    images, labels = render(name, "test", np.arange(400))
    with torch.inference_mode():
        features = F.normalize(encoder(to_input(torch.from_numpy(images))), dim=-1)
    return float(((features @ head.T).argmax(dim=1).numpy() == labels).mean())


@pytest.mark.parametrize("name", SUITE_TASKS)
def test_zero_shot_is_middling(name: str) -> None:
    assert 0.25 < zero_shot_accuracy(name) < 0.80


def test_the_control_is_known() -> None:
    assert zero_shot_accuracy(CONTROL) > 0.80


def test_the_file_is_small_and_tells_of_its_making() -> None:
    assert MINIATURE_WEIGHTS.stat().st_size < 16e6
    record = read_metadata(MINIATURE_WEIGHTS)
    assert record["command"] == "sta fit --config configs/pretrain/miniature.yaml"
    assert {"seed", "date", "steps", "torch"} <= set(record)


def test_the_names_are_those_of_vit_b_16() -> None:
    names = {name for name in load_weights(MINIATURE_WEIGHTS) if name.startswith("visual.")}
    block = "visual.transformer.resblocks.0."
    assert {"visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.weight", "visual.proj"} <= names
    assert {block + "ln_1.weight", block + "attn.in_proj_weight", block + "mlp.c_fc.weight"} <= names
