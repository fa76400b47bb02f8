"""What a checkpoint is said to be."""

from pathlib import Path

import pytest
import torch

from sta_lightning.weights import provenance, save_weights
from sta_lightning.weights.formats.inspection import inspect
from tests.weights.formats.test_conversion import WRITERS, archive_of_openai, lightning
from tests.weights.formats.tiny import CONFIGS, NAMES, tiny_clip


@pytest.mark.parametrize("way", WRITERS)
def test_parameters_are_those_of_the_model(way: str, tmp_path: Path) -> None:
    WRITERS[way](tiny_clip(), tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", configs=CONFIGS, unsafe_pickle="module" in way)
    visual = sum(value.numel() for value in tiny_clip().visual.state_dict().values())
    text = sum(
        value.numel() for name, value in tiny_clip().state_dict().items() if not name.startswith("visual.")
    )
    assert found["parameters"]["image encoder"] == visual
    assert found["parameters"]["text tower"] == (
        text if way in ("state dict", "module.", "training", "openai") else 0
    )
    assert found["architecture"]["vision"] == {"width": 32, "layers": 2, "mlp": 128, "tokens": 5}
    assert set(found["architecture"]["names"]) == set(NAMES.values())
    assert found["bytes"] == (tmp_path / "a.pt").stat().st_size
    assert sum(row["tensors"] for row in found["types"].values()) == found["tensors"]


def test_who_made_it(tmp_path: Path) -> None:
    archive_of_openai(tiny_clip(), tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", configs=CONFIGS)
    assert found["made_by"] == "OpenAI's CLIP, as TorchScript"
    assert found["architecture"]["activation"] == "quick_gelu"
    assert found["architecture"]["name"] == NAMES["quick_gelu"]
    lightning(tiny_clip(), tmp_path / "b.ckpt")
    found = inspect(tmp_path / "b.ckpt", configs=CONFIGS)
    assert found["made_by"] == "Lightning 2.6.6"
    assert found["facts"]["epoch"] == 3
    assert "optimizer_states" not in found["facts"]
    assert found["architecture"]["name"] == NAMES["gelu"]
    WRITERS["module"](tiny_clip(), tmp_path / "c.pt")
    found = inspect(tmp_path / "c.pt", configs=CONFIGS, unsafe_pickle=True)
    assert found["made_by"].endswith("test_conversion.ImageEncoder")
    WRITERS["training"](tiny_clip(), tmp_path / "d.pt")
    assert inspect(tmp_path / "d.pt", configs=CONFIGS)["made_by"] == "a training of open_clip, 'x', epoch 1"


def test_a_masked_task_vector_is_described_as_one(tmp_path: Path) -> None:
    parts = {
        f"{part}.{name}": torch.ones(3)
        for part in ("mask", "values")
        for name in tiny_clip().visual.state_dict()
    }
    save_weights(tmp_path / "a.safetensors", parts, provenance("vector:sta", {"p": 0.7}, {}))
    found = inspect(tmp_path / "a.safetensors", configs=CONFIGS)
    assert (found["kind"], found["layout"], found["architecture"]) == ("vector:sta", "no known layout", None)
    assert found["settings"] == {"p": 0.7}
