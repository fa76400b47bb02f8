"""What a benchmark refuses before any time is spent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sta_lightning.benchmark.entries import MethodEntry
from sta_lightning.benchmark.settings import (
    BenchmarkSettings,
    Curves,
    TradeOff,
    check_benchmark,
    expand_benchmark,
)
from sta_lightning.errors import StaError


def test_the_toy_benchmark_is_accepted(toy_benchmark: BenchmarkSettings) -> None:
    check_benchmark(toy_benchmark)


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
        check_benchmark(replace(toy_benchmark, **change))


def test_methods_of_a_curve_that_is_left_out_are_not_asked_for(toy_benchmark: BenchmarkSettings) -> None:
    curves = Curves(p_methods=["gone"], samples_methods=["gone"], tasks_methods=["gone"])
    check_benchmark(replace(toy_benchmark, curves=curves))


def test_variables_in_paths_are_replaced(
    toy_benchmark: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STA_RUNS", "elsewhere")
    found = expand_benchmark(replace(toy_benchmark, output="${STA_RUNS}/b", finetuned="$STA_RUNS/{task}"))
    with pytest.raises(StaError, match=r"finetuned: .* needs the environment variable STA_GONE"):
        expand_benchmark(replace(toy_benchmark, finetuned="${STA_GONE}/{task}"))
    assert (found.output, found.finetuned) == ("elsewhere/b", "elsewhere/{task}")
