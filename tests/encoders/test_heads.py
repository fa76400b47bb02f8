from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from sta_lightning.encoders import build_clip, heads, make_head, prototype_head, tokenize, zeroshot_head
from sta_lightning.errors import StaError
from sta_lightning.tasks import Task
from sta_lightning.weights import save_weights

CLASSES, TEMPLATES = ("cat", "big dog", "ship"), ("a photo of a {}.", "{}")


def task(head: Any = "auto", classes: tuple[str, ...] = CLASSES) -> Task:
    return Task("toy", classes, TEMPLATES, opener=lambda split, root: [], head=head)  # type: ignore[arg-type, return-value]


@pytest.fixture
def clip_file(tmp_path: Path) -> str:
    torch.manual_seed(0)
    clip = build_clip("miniature", "random")
    clip.logit_scale.data.fill_(1.7)
    save_weights(tmp_path / "clip.safetensors", clip.state_dict())
    return str(tmp_path / "clip.safetensors")


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_zeroshot_head_follows_the_recipe(clip_file: str) -> None:
    clip = build_clip("miniature", clip_file).eval()
    rows = []
    for name in CLASSES:
        with torch.no_grad():
            texts = [clip.encode_text(tokenize("miniature", [t.format(name)]))[0] for t in TEMPLATES]
        prompts = unit(torch.stack(texts).double().numpy())
        rows.append(unit(prompts.mean(axis=0)) * np.exp(1.7))
    found = zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES)
    assert found.shape == (3, 128)
    np.testing.assert_allclose(found.numpy(), np.stack(rows), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_zeroshot_head_does_not_depend_on_how_prompts_are_batched(
    clip_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES)
    monkeypatch.setenv("STA_CACHE", str(Path(clip_file).parent / "another"))
    monkeypatch.setattr(heads, "_PROMPTS_AT_ONCE", 4)
    torch.testing.assert_close(zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES), whole)
    with pytest.raises(StaError, match="at least one class"):
        zeroshot_head("miniature", clip_file, CLASSES, ())


def test_a_remembered_head_is_never_a_stale_or_shared_one(clip_file: str) -> None:
    first = zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES)
    kept = first.clone()
    first.zero_()
    assert torch.equal(zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES), kept)
    clip = build_clip("miniature", clip_file)
    clip.logit_scale.data.fill_(0.7)
    save_weights(Path(clip_file), clip.state_dict())
    os.utime(clip_file, ns=(1, 1))
    changed = zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES)
    torch.testing.assert_close(changed, kept * np.exp(-1.0))


class Scaler(nn.Module):
    """An encoder that behaves otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.inner = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.inner(images.flatten(1) * self.scale)
        return features


def test_prototype_head_follows_the_recipe() -> None:
    images, labels = torch.randn(20, 2, 3), torch.arange(20) % 3
    labels[:5] = 1  # classes of different sizes
    encoder = Scaler()
    encoder.inner.eval()
    loader = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    found = prototype_head(encoder, loader, 3)
    features = unit(images.flatten(1).double().numpy())
    means = np.stack([features[labels.numpy() == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(found.numpy(), 20 * unit(means - means.mean(axis=0)), rtol=1e-5)
    assert (encoder.training, encoder.inner.training) == (True, False)
    assert not found.requires_grad


def test_prototypes_need_every_class() -> None:
    images = torch.randn(4, 2, 3)
    with pytest.raises(StaError, match="labels '2'"):
        prototype_head(Scaler(), [(images, torch.tensor([0, 1, 0, 1]))], 3)
    with pytest.raises(StaError, match="a label is 3"):
        prototype_head(Scaler(), [(images, torch.tensor([0, 1, 2, 3]))], 3)
    with pytest.raises(StaError, match="'0', '1', '2'"):
        prototype_head(Scaler(), [], 3)


def test_the_kind_of_head_follows_task_and_encoder(clip_file: str, tmp_path: Path) -> None:
    zeroshot = make_head("miniature", task(), pretrained=clip_file)
    assert torch.equal(zeroshot.weight, zeroshot_head("miniature", clip_file, CLASSES, TEMPLATES))
    assert zeroshot.normalize

    loader = [(torch.randn(6, 2, 3), torch.arange(6) % 3)]
    prototypes = make_head("timm/test_vit", task(), encoder=Scaler(), loader=loader)
    assert torch.equal(prototypes.weight, prototype_head(Scaler(), loader, 3))
    assert prototypes.normalize
    with pytest.raises(StaError, match=r"'timm/test_vit' has no text tower.*'toy'"):
        make_head("timm/test_vit", task())

    model = timm.create_model("test_vit", pretrained=False)
    save_weights(tmp_path / "vit.safetensors", model.state_dict())
    thousand = task("own", tuple(str(number) for number in range(1000)))
    own = make_head("timm/test_vit", thousand, pretrained=str(tmp_path / "vit.safetensors"))
    assert torch.equal(own.weight, model.state_dict()["head.weight"])
    assert not own.normalize
    with pytest.raises(StaError, match=r"3 classes.*1000"):
        make_head("timm/test_vit", task("own"), pretrained=str(tmp_path / "vit.safetensors"))
