from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sta_lightning.encoders import ClassificationHead
from sta_lightning.errors import StaError
from sta_lightning.weights import read_metadata, save_weights


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_logits(normalize: bool, with_bias: bool) -> None:
    weight, bias, features = torch.randn(5, 8), torch.randn(5) if with_bias else None, torch.randn(3, 8)
    found = ClassificationHead(weight, bias, normalize=normalize)(features)
    inputs = features / features.norm(dim=1, keepdim=True) if normalize else features
    torch.testing.assert_close(found, inputs @ weight.T + (0 if bias is None else bias))


def test_nothing_trains_unless_asked_for() -> None:
    frozen = ClassificationHead(torch.ones(2, 3), torch.ones(2))
    assert list(frozen.parameters()) == []
    trainable = ClassificationHead(torch.ones(2, 3), torch.ones(2), trainable=True)
    assert [name for name, _ in trainable.named_parameters()] == ["weight", "bias"]
    assert frozen.state_dict().keys() == trainable.state_dict().keys()
    assert frozen.num_classes == 2


def test_weight_is_a_copy() -> None:
    weight = torch.ones(2, 3)
    head = ClassificationHead(weight)
    weight.zero_()
    assert bool((head.weight == 1).all())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_file_and_checkpoint_describe_the_head_wholly(
    tmp_path: Path, normalize: bool, with_bias: bool
) -> None:
    head = ClassificationHead(torch.randn(4, 6), torch.randn(4) if with_bias else None, normalize=normalize)
    features = torch.randn(2, 6)
    head.save(tmp_path / "head.safetensors", {"task": "toy"})
    loaded = ClassificationHead.load(tmp_path / "head.safetensors")
    assert torch.equal(loaded(features), head(features))
    assert read_metadata(tmp_path / "head.safetensors")["task"] == "toy"
    torch.save({"state_dict": nn.ModuleDict({"head": head}).state_dict()}, tmp_path / "whole.ckpt")
    state = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    again = ClassificationHead.from_state_dict(state, "head.", trainable=True)
    assert torch.equal(again(features), head(features))
    assert again.normalize is normalize
    other = ClassificationHead(
        torch.zeros(4, 6), torch.zeros(4) if with_bias else None, normalize=not normalize
    )
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features), head(features))


def test_wrong_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaError, match=r"\(3,\)"):
        ClassificationHead(torch.ones(3))
    with pytest.raises(StaError, match=r"\(2,\)"):
        ClassificationHead(torch.ones(3, 4), torch.ones(2))
    with pytest.raises(StaError, match="weight of a classification head holds NaN"):
        ClassificationHead(torch.full((2, 2), float("nan")))
    with pytest.raises(StaError, match=r"'head\.weight'"):
        ClassificationHead.from_state_dict({"weight": torch.ones(2, 2)}, "head.")
    save_weights(tmp_path / "other.safetensors", {"weight": torch.ones(2, 2)})
    with pytest.raises(StaError, match="not a classification head"):
        ClassificationHead.load(tmp_path / "other.safetensors")
