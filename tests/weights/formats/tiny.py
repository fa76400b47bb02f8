"""Small random CLIPs in open_clip's classes, and what the tests compare of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.weights.formats import Checkpoint, image_encoder, open_checkpoint, whole_clip

CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 7, "vocab_size": 40, "width": 24, "heads": 3, "layers": 1},
}
NAMES = {"gelu": "tiny-clip", "quick_gelu": "tiny-clip-quickgelu"}
CONFIGS = {NAMES["gelu"]: CONFIG, NAMES["quick_gelu"]: {**CONFIG, "quick_gelu": True}}
ACTIVATIONS = list(NAMES)


def moved(module: nn.Module, seed: int) -> nn.Module:
    """The module with every parameter away from its initial value: no two are equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tiny_clip(activation: str = "gelu", seed: int = 0) -> Any:
    """A small random CLIP of open_clip."""
    torch.manual_seed(seed)
    config = CONFIGS[NAMES[activation]]
    clip = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=activation == "quick_gelu",
    )
    return moved(clip, seed)


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def texts() -> Tensor:
    """Tokens that begin and end as CLIP's do, with nothing after the end."""
    tokens = torch.randint(1, 37, (3, 7), generator=torch.Generator().manual_seed(6))
    tokens[:, 0] = 38
    for row, end in enumerate((3, 5, 6)):
        tokens[row, end] = 39
        tokens[row, end + 1 :] = 0
    return tokens


def features(encoder: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = encoder(images())
    return found


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-5)


def read(path: Path, **options: Any) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names in it."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        found = open_checkpoint(path, stack, **options)
        return {name: whole(source) for name, source in found.tensors.items()}


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in open_clip's names: a whole CLIP, or an image encoder alone."""
    checkpoint = Checkpoint(Path("the state dict"), "safetensors", in_memory(state), ())
    found = image_encoder(checkpoint) if checkpoint.layout.text is None else whole_clip(checkpoint)
    return {name: whole(source) for name, source in found.items()}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Names, types and every bit."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@contextmanager
def registered(folder: Path) -> Iterator[None]:
    """The tiny architectures, known to open_clip by name while the block lasts."""
    from open_clip import factory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
        patch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
        for name, config in CONFIGS.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(config))
            open_clip.add_model_config(file)
        yield
