"""A benchmark in miniature: two tasks of small pictures, a CLIP of random weights, two seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sta_lightning.benchmark.entries import MethodEntry
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, TradeOff
from sta_lightning.experiment.settings import ExperimentSettings, ModelSettings
from tests.experiment.conftest import random_clip, toy_settings

__all__ = ["random_clip", "toy_settings"]


@pytest.fixture(scope="session")
def toy_benchmark(toy_settings: ExperimentSettings) -> BenchmarkSettings:
    """Settings of a benchmark that takes seconds; a test replaces ``output``."""
    models = ModelSettings(
        **{name: getattr(toy_settings, name) for name in ModelSettings.__dataclass_fields__}
    )
    return BenchmarkSettings(
        title="Toys",
        output="unset",
        models=models,
        seeds=[0, 1],
        methods={
            "average": MethodEntry("average", paper="average"),
            "ta": MethodEntry("task_arithmetic", scale=0.4, tune={"scale": [0.2, 0.4]}),
            "regmean": MethodEntry("regmean", group="data", samples=3),
            "adamerging": MethodEntry("adamerging", group="data", settings={"steps": 2, "batch_size": 3}),
            "sta_lp": MethodEntry("sta", group="sta", paper="sta_lp"),
        },
        pairs=["sta_lp", "ta"],
        forget_methods={
            "ta": MethodEntry("task_arithmetic", tune={"scale": [0.1, 1.0]}),
            "negmerge": MethodEntry("negmerge"),
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
        ),
        trade_off=TradeOff({"ta": {"scale": [0.0, 1.0]}}),
        selection="sta_lp",
    )


@pytest.fixture
def settings(toy_benchmark: BenchmarkSettings, tmp_path: Path) -> BenchmarkSettings:
    """The toy benchmark with an output folder of the test's own."""
    return replace(toy_benchmark, output=str(tmp_path / "benchmark"))
