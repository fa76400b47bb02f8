"""What a benchmark refuses before any time is spent."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sta_lightning.benchmark.checks import check_settings
from sta_lightning.benchmark.run import run_benchmark
from sta_lightning.benchmark.settings import (
    BenchmarkSettings,
    Curves,
    MethodEntry,
    ModelSettings,
    TaskOverride,
    TradeOff,
    expand,
)
from sta_lightning.errors import StaError
from tests.conftest import REPOSITORY


def test_the_toy_benchmark_is_accepted(toy_benchmark: BenchmarkSettings) -> None:
    check_settings(toy_benchmark)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "name at least one method"),
        ({"seeds": []}, "seeds: give one or more different numbers"),
        ({"seeds": [0, 0]}, "seeds: give one or more different numbers"),
        ({"devices": 0}, "devices: at least 1, found 0"),
        ({"threads": 0}, "threads: at least 1, found 0"),
        ({"control_share": 0.0}, "control_share: a share in"),
        ({"pairs": ["tiez"]}, "pairs: 'tiez' is no key of methods; they are 'average'"),
        ({"selection": "tiez"}, "selection: 'tiez' is no key"),
        ({"publish": {"a.safetensors": "tiez"}}, "publish: 'tiez' is no key"),
        ({"publish": {"a.safetensors": "adamerging"}}, "publish: 'adamerging' is learned"),
        ({"publish": {"../a.safetensors": "average"}}, "is no name of a safetensors file"),
        ({"curves": Curves(level_methods=["tiez"])}, "level_methods: 'tiez' is no key"),
        ({"curves": Curves(p_split="train")}, "p_split: test or validation, found 'train'"),  # type: ignore[arg-type]
        ({"curves": Curves(p=[1.5])}, r"p must be a number in \[0, 1\]"),
        ({"curves": Curves(samples=[0])}, "curves.samples: at least 1"),
        ({"curves": Curves(tasks=[1])}, "curves.tasks: from 2 to the number of tasks, 2; found"),
        ({"curves": Curves(samples=[1], samples_methods=["average"])}, "'average' scores no samples"),
        ({"curves": Curves(p=[0.1], p_methods=["average"])}, "'p' was asked to vary, and method 'average'"),
        ({"trade_off": TradeOff({"ta": {"p": [1.0]}})}, "trade_off.methods.ta: 'p' was asked to vary"),
        ({"trade_off": TradeOff({"negmerge": {"scale": [1.0]}})}, "several fine-tunings cannot be varied"),
        ({"trade_off": TradeOff({"sta_lp": {"p": [1.5]}})}, r"p must be a number in \[0, 1\]"),
        ({"seeds": [0]}, "takes several fine-tunings of a task"),
        ({"methods": {"a/b": MethodEntry("average")}}, "'a/b' cannot be a key"),
        ({"curves": Curves(scale_methods=["average"])}, "must tune exactly one setting"),
        ({"trade_off": TradeOff({"average": {"scale": [1.0]}})}, "no key of forget_methods"),
        ({"trade_off": TradeOff({"ta": {"scale": [1.0], "p": [1.0]}})}, "one setting is varied"),
        ({"finetuned": "runs/encoder.safetensors"}, "a path with {task} in it"),
        ({"finetuned": "runs/{task}/{sed}"}, "a path with {task} in it"),
        ({"finetuned": "runs/{task"}, "is not understood"),
        ({"finetuned": "runs/{task}"}, "one fine-tuning of each task, but 2 seeds"),
    ],
)
def test_what_cannot_make_a_run_is_refused(
    toy_benchmark: BenchmarkSettings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StaError, match=message):
        check_settings(replace(toy_benchmark, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["digits"]}, "at least two"),
        ({"tasks": ["digits", "digits"]}, "once"),
        ({"control": "digits", "tasks": ["digits", "textures"]}, "control"),
        ({"pretrained": "random"}, "random"),
        ({"pretrained": "${STA_NO_SUCH_VARIABLE}/x"}, "STA_NO_SUCH_VARIABLE"),
        ({"overrides": {"nonsense": TaskOverride(epochs=1)}}, "nonsense"),
        ({"roots": {"nonsense": "x"}}, "nonsense"),
    ],
)
def test_models_that_cannot_be_made_are_refused_before_work_begins(
    toy_benchmark: BenchmarkSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    models = replace(toy_benchmark.models, **change)
    with pytest.raises(StaError, match=message):
        run_benchmark(replace(toy_benchmark, models=models, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_one_tasks_own_fine_tuning_goes_over_the_runs() -> None:
    settings = ModelSettings(epochs=3, overrides={"digits": {"epochs": 7, "train_limit": 50}})  # type: ignore[dict-item]
    digits, textures = settings.fine_tuning("digits"), settings.fine_tuning("textures")
    assert (digits.epochs, digits.train_limit, textures.epochs, textures.train_limit) == (7, 50, 3, 4000)
    with pytest.raises(StaError, match="speed"):
        ModelSettings(overrides={"digits": {"speed": 1}})  # type: ignore[dict-item]


def test_epochs_may_be_left_to_the_published_tasks() -> None:
    settings = ModelSettings(epochs=None, overrides={"dtd": {"epochs": 2}})  # type: ignore[dict-item]
    assert [settings.fine_tuning(task).epochs for task in ("cars", "dtd", "svhn")] == [35, 2, 4]
    with pytest.raises(StaError, match=r"'digits' is not known: give models\.overrides\.digits\.epochs"):
        settings.fine_tuning("digits")


def test_settings_are_imported_without_torch() -> None:
    code = "import sys, sta_lightning.benchmark.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_methods_of_a_curve_that_is_left_out_are_not_asked_for(toy_benchmark: BenchmarkSettings) -> None:
    curves = Curves(p_methods=["gone"], samples_methods=["gone"], tasks_methods=["gone"])
    check_settings(replace(toy_benchmark, curves=curves))


def test_variables_in_paths_are_replaced(
    toy_benchmark: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STA_RUNS", "elsewhere")
    found = expand(replace(toy_benchmark, output="${STA_RUNS}/b", finetuned="$STA_RUNS/{task}"))
    with pytest.raises(StaError, match=r"finetuned: .* needs the environment variable STA_GONE"):
        expand(replace(toy_benchmark, finetuned="${STA_GONE}/{task}"))
    assert (found.output, found.finetuned) == ("elsewhere/b", "elsewhere/{task}")
