"""Small random models of Hugging Face's classes; skips a test module without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.weights.formats.tiny import images, moved, texts

transformers = pytest.importorskip(
    "transformers", reason="the tests against Hugging Face's classes need transformers"
)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 96,
    "projection_dim": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "vocab_size": 40,
    "max_position_embeddings": 7,
    "bos_token_id": 38,
    "eos_token_id": 39,
    "pad_token_id": 39,
}
CLASSES = ["CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel"]


def theirs(kind: str, activation: str, seed: int = 1) -> Any:
    """A small random model of one of Hugging Face's classes."""
    vision = {**VISION, "hidden_act": activation}
    torch.manual_seed(seed)
    if kind == "CLIPModel":
        config = transformers.CLIPConfig(
            text_config={**TEXT, "hidden_act": activation}, vision_config=vision, projection_dim=12
        )
    else:
        config = transformers.CLIPVisionConfig(**vision)
    return moved(getattr(transformers, kind)(config), seed)


def their_features(model: nn.Module, kind: str) -> Tensor:
    with torch.no_grad():
        if kind == "CLIPModel":
            found = model.get_image_features(pixel_values=images())  # type: ignore[operator]
            return found if isinstance(found, Tensor) else found.pooler_output
        found = model(pixel_values=images())
    return found.pooler_output if kind == "CLIPVisionModel" else found.image_embeds


def their_text_features(model: Any) -> Tensor:
    with torch.no_grad():
        found = model.get_text_features(input_ids=texts(), attention_mask=torch.ones_like(texts()))
    return found if isinstance(found, Tensor) else found.pooler_output


def save(model: Any, folder: Path, way: str) -> None:
    """As older and newer versions of the library save."""
    size = "20KB" if way.startswith("shards") else "5GB"
    model.save_pretrained(folder, max_shard_size=size)
    if not way.endswith("bin"):
        assert (len(list(folder.glob("*.safetensors"))) > 2) == (way == "shards")
        return
    from safetensors.torch import load_file

    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    for index in folder.glob("*.index.json"):
        content = index.read_text().replace("model-0", "pytorch_model-0").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(content)
        index.unlink()
