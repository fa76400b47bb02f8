"""A whole run in miniature: folders of small pictures that a test writes, and a CLIP of random weights in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sta_lightning.encoders import build_clip
from sta_lightning.experiment import ExperimentSettings
from sta_lightning.weights import save_weights

COLOURS = ("red", "green", "blue")
SPLITS = {"train": 6, "validation": 3, "test": 4}


def write_task(folder: Path, name: str, seed: int) -> Path:
    """A task of three classes, each a colour plus noise; returns its YAML file."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in SPLITS.items():
        for label, colour in enumerate(COLOURS):
            place = folder / name / split / colour
            place.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 160, (32, 32, 3), generator=generator, dtype=torch.uint8)
                pixels[..., (label + seed) % 3] += 90
                Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    description = folder / f"{name}.yaml"
    lines = [f"name: {name}", f"root: {folder / name}", *(f"{split}: {split}" for split in SPLITS)]
    description.write_text("\n".join(lines) + "\n")
    return description


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a whole miniature CLIP of random weights."""
    path = tmp_path_factory.mktemp("clip") / "random.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = build_clip("miniature", "random")
    save_weights(path, {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, {})
    return path


@pytest.fixture(scope="session")
def toy_settings(tmp_path_factory: pytest.TempPathFactory, random_clip: Path) -> ExperimentSettings:
    """Settings of a run that takes seconds; a test replaces ``output``."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = [str(write_task(folder, name, seed)) for seed, name in enumerate(("warm", "cold"))]
    control = str(write_task(folder, "control", 2))
    return ExperimentSettings(
        output="unset",
        pretrained=str(random_clip),
        tasks=tasks,
        control=control,
        learning_rate=1e-3,
        warmup_steps=1,
        epochs=2,
        batch_size=9,
        evaluation_batch_size=5,
        train_limit=None,
        validation_limit=None,
        test_limit=None,
        samples=4,
        scale_grid=[0.2, 0.6],
        p_grid=[0.7, 1.0],
    )


@pytest.fixture
def settings(toy_settings: ExperimentSettings, tmp_path: Path) -> ExperimentSettings:
    """The toy run with an output folder of the test's own."""
    return replace(toy_settings, output=str(tmp_path / "run"))
