"""A benchmark in miniature: two tasks of small pictures, a CLIP of random weights, two seeds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.run import run_benchmark
from sta_lightning.benchmark.settings import (
    BenchmarkSettings,
    Curves,
    MethodEntry,
    ModelSettings,
    TradeOff,
)
from sta_lightning.encoders import build_clip
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
def toy_models(tmp_path_factory: pytest.TempPathFactory, random_clip: Path) -> ModelSettings:
    """Settings of models that are made in seconds."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = [str(write_task(folder, name, seed)) for seed, name in enumerate(("warm", "cold"))]
    control = str(write_task(folder, "control", 2))
    return ModelSettings(
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
    )


@pytest.fixture(scope="session")
def toy_benchmark(toy_models: ModelSettings) -> BenchmarkSettings:
    """Settings of a benchmark that takes seconds; a test replaces ``output``."""
    return BenchmarkSettings(
        title="Toys",
        output="unset",
        models=toy_models,
        seeds=[0, 1],
        methods={
            "average": MethodEntry("average", paper="average"),
            "ta": MethodEntry("task_arithmetic", scale=0.4, tune={"scale": [0.2, 0.4]}),
            "random_mask": MethodEntry("random_mask", group="control"),
            "regmean": MethodEntry("regmean", group="data", samples=3),
            "adamerging": MethodEntry("adamerging", group="data", settings={"steps": 2, "batch_size": 3}),
            "sta_lp": MethodEntry("sta", group="sta", paper="sta_lp"),
        },
        pairs=["sta_lp", "ta"],
        forget_methods={
            "ta": MethodEntry("task_arithmetic", scale=1.0, tune={"scale": [0.1, 1.0]}),
            "negmerge": MethodEntry("negmerge"),
            "spared": MethodEntry("spared", group="data", samples=3),
            "sta_lp": MethodEntry("sta", group="sta"),
        },
        curves=Curves(
            p=[0.0, 0.3, 1.0],
            p_methods=["sta_lp"],
            samples=[1, 2],
            samples_methods=["sta_lp"],
            tasks=[2],
            tasks_methods=["ta"],
            scale_methods=["ta"],
            level_methods=["zero_shot", "average"],
        ),
        trade_off=TradeOff({"ta": {"scale": [0.0, 1.0]}}),
        selection="sta_lp",
        publish={"fused.safetensors": "best", "fused_sta.safetensors": "sta_lp"},
    )


@pytest.fixture
def settings(toy_benchmark: BenchmarkSettings, tmp_path: Path) -> BenchmarkSettings:
    """The toy benchmark with an output folder of the test's own."""
    return replace(toy_benchmark, output=str(tmp_path / "benchmark"))


@pytest.fixture(scope="session")
def done(
    toy_benchmark: BenchmarkSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchmarkSettings, BenchmarkResults]:
    """A benchmark that was run."""
    settings = replace(toy_benchmark, output=str(tmp_path_factory.mktemp("done") / "benchmark"))
    return settings, run_benchmark(settings)


@pytest.fixture
def no_report() -> Iterator[None]:
    """Leaves out the drawing of figures, which takes longer than these benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sta_lightning.benchmark.run.write_board", lambda results, folder: None)
        patch.setattr("sta_lightning.benchmark.run.write_report", lambda results, output: output)
        yield


@pytest.fixture
def copied(
    done: tuple[BenchmarkSettings, BenchmarkResults], no_report: None, tmp_path: Path
) -> tuple[BenchmarkSettings, BenchmarkResults]:
    """The same in a folder of the test's own."""
    settings, results = done
    folder = tmp_path / "copy"
    shutil.copytree(settings.output, folder)
    return replace(settings, output=str(folder)), results
