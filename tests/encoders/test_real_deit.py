"""DeiT-Ti's published weights on one ImageNet image a class; skipped where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from sta_lightning.encoders import build_encoder, make_head
from sta_lightning.tasks import TaskDataModule

NAME = "timm/deit_tiny_patch16_224"
CONTROL = Path(__file__).parents[2] / "configs" / "deit" / "tasks" / "imagenet_control.yaml"
WEIGHTS = Path(os.environ.get("STA_DATA", "absent")) / "deit_tiny" / "deit_tiny_patch16_224.safetensors"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="STA_DATA does not lead to deit_tiny")


def test_own_head_at_128_pixels_recognises_half_of_the_control() -> None:
    data = TaskDataModule(str(CONTROL), encoder=NAME, image_size=128)
    encoder = build_encoder(NAME, str(WEIGHTS), 128).eval()
    head = make_head(NAME, data.task, pretrained=str(WEIGHTS))
    hits = 0
    with torch.no_grad():
        for images, labels in DataLoader(Subset(data.dataset("test"), range(0, 1000, 5)), batch_size=50):
            hits += int((head(encoder(images)).argmax(dim=1) == labels).sum())
    # 49.8% of all 1 000; a wrong class order or unresampled positions give next to nothing.
    assert 0.42 <= hits / 200 <= 0.58
