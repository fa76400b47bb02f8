"""The paper's experiment on a random ViT of ViT-B/16's layout and a few noise images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from sta_lightning.cli.main import main
from sta_lightning.encoders.build import build_clip
from sta_lightning.weights import save_weights
from tests.conftest import REPOSITORY
from tests.paper.commands import commands
from tests.tasks import layouts

ENCODER = "tiny-ViT-B-16"
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    # ViT-B/16 but for image_size 224, width 768.
    "vision_cfg": {"image_size": 32, "layers": 12, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
WEIGHTS = "tiny.safetensors"

MODEL = [f"--model.encoder={ENCODER}", f"--model.pretrained={WEIGHTS}"]
TRAINER = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
]
SIZES = {
    "fit": ["--trainer.max_epochs=1", "--data.batch_size=16", "--data.num_workers=0"],
    "score": ["--samples=2"],
    "merge": ["--data.batch_size=64", "--data.num_workers=0"],
    "forget": ["--data.batch_size=128", "--data.num_workers=0", "--data.test_limit=200"],
    "test": ["--data.batch_size=128", "--data.num_workers=0", "--data.test_limit=200"],
}
"""What is overridden: sizes, and nothing of the recipe, the files or the methods."""


def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder with configurations, data sets and pretrained weights the current one."""
    patch.chdir(folder)
    patch.setenv("STA_DATA", str(folder / "data"))
    patch.setenv("STA_CACHE", str(folder / "cache"))
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    root = folder / "data"
    layouts.write_mnist(root)
    layouts.write_svhn(root, patch)
    layouts.write_gtsrb(root)
    layouts.write_dtd(root)
    layouts.write_eurosat(root)
    layouts.write_cars(root)
    layouts.write_imagenet(root)
    (folder / f"{ENCODER}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{ENCODER}.json")
    torch.manual_seed(0)
    save_weights(folder / WEIGHTS, build_clip(ENCODER, "random").state_dict())


def run(name: str) -> int:
    """Run one command, with the sizes overridden; returns its exit status."""
    words = commands()[name]
    return main([*words, *MODEL, *TRAINER, *SIZES[words[0]]])


def run_without_evaluation(name: str) -> int:
    """Run the command of a fusion or a forgetting up to its file; returns its exit status."""
    words = [word for word in commands()[name] if not word.startswith("--data.")]
    return main([*words, *MODEL, "--evaluate=false"])


def evaluate(name: str, checkpoint: Path) -> int:
    """Evaluate what a fine-tuning has left on its test images; returns the exit status."""
    words = commands()[name][1:]
    return main(["test", *words, *MODEL, *TRAINER, *SIZES["fit"], f"--ckpt_path={checkpoint}"])


def accuracies(file: Path) -> dict[str, float]:
    """The last value of every accuracy that a run has logged in its metrics.csv, by tag."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {tag: float(value) for row in rows for tag, value in row.items() if tag.endswith("acc") and value}
