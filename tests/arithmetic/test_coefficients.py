"""Coefficients by task and by layer, against NumPy; how they are computed does not matter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning import StaError, arithmetic, forget, merge
from sta_lightning.arithmetic import make_method
from sta_lightning.arithmetic.coefficients import Coefficients
from sta_lightning.arithmetic.memory import MemorySink
from sta_lightning.arithmetic.methods import FUSION_METHODS
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from tests.oracles import flat as oracle

State = dict[str, Tensor]
BY_TASK = {"task00": 0.6, "task02": -0.3}
WANTED = np.array([0.6, 0.4, -0.3])  # the second has the default
# The blocks of the oracle's model lie at depths 0, 1/2 and 1, what lies in none at 0.
LAYERS = {"blocks.1.*": 0.9, "*.b": 0.0, "blocks.*": [0.2, 0.4, 1.0], "last.*": [0.5, 0.7]}
BY_NAME = {
    "stem.weight": 0.4,
    "token": 0.4,
    "blocks.0.w": 0.2,
    "blocks.0.b": 0.0,
    "blocks.1.w": 0.9,
    "blocks.1.scale": 0.9,
    "blocks.2.w": 1.0,
    "empty": 0.4,
    "last.weight": 0.5,
}

tau = {
    "task_arithmetic": lambda taus: taus.sum(0),
    "ties": lambda taus: oracle.ties(taus, 0.2, "mean"),
}


def models(*given: Any, **options: Any) -> tuple[State, dict[str, State]]:
    """Those of the oracle, by names that tell no image encoder."""
    names = {"conv1.weight": "stem.weight", "class_embedding": "token", "head.weight": "last.weight"}

    def renamed(state: State) -> State:
        return {names.get(name, name): tensor for name, tensor in state.items()}

    base, finetuned = oracle.models(*given, **options)
    return renamed(base), {task: renamed(model) for task, model in finetuned.items()}


def near(found: Any, base: dict[str, Tensor], change: np.ndarray, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(oracle.flat(found), oracle.flat(base) + change, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", tau)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_by_task(method: str, dtype: torch.dtype, tolerance: float) -> None:
    base, finetuned = models(3, dtype=dtype)
    taus = oracle.vectors(base, finetuned)
    found = merge(method, base, finetuned, scale=BY_TASK)
    near(found, base, tau[method](WANTED[:, None] * taus), tolerance)
    # The vote of the signs is that of the multiplied vectors, not that of the plain ones.
    assert not np.allclose(oracle.flat(found), oracle.flat(merge(method, base, finetuned, scale=0.4)))


@pytest.mark.parametrize("method", tau)
def test_by_layer(method: str) -> None:
    base, finetuned = models(3, dtype=torch.float64)
    change = tau[method](oracle.vectors(base, finetuned))
    near(merge(method, base, finetuned, scale_layers=LAYERS), base, oracle.per_entry(base, BY_NAME) * change)


@pytest.mark.parametrize("method", tau)
def test_by_task_and_by_layer_are_multiplied(method: str) -> None:
    base, finetuned = models(3, dtype=torch.float64)
    change = tau[method](WANTED[:, None] * oracle.vectors(base, finetuned))
    factors = {name: 1.0 if scale == 0.4 else scale for name, scale in BY_NAME.items()}
    found = merge(method, base, finetuned, scale=BY_TASK, scale_layers=LAYERS)
    near(found, base, oracle.per_entry(base, factors) * change)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "pcb", "tsv", "iso_c", "swudi_a"])
def test_one_for_all_is_the_same_however_it_is_said(method: str) -> None:
    base, finetuned = models(3, dtype=torch.float64)
    wanted = oracle.flat(merge(method, base, finetuned, scale=0.7))
    by_task = merge(method, base, finetuned, scale=dict.fromkeys(finetuned, 0.7))
    np.testing.assert_allclose(oracle.flat(by_task), wanted, rtol=0, atol=1e-8)
    assert np.array_equal(oracle.flat(merge(method, base, finetuned, scale_layers={"*": 0.7})), wanted)
    assert np.array_equal(oracle.flat(merge(method, base, finetuned, scale_layers={"*": [0.7, 0.7]})), wanted)


def test_after_dare_and_in_any_order_of_the_tasks() -> None:
    base, finetuned = models(3)
    options = {"dare": 0.5, "scale": BY_TASK, "scale_layers": LAYERS}
    found = merge("ties", base, finetuned, **options)
    again = merge("ties", base, dict(reversed(finetuned.items())), **options)
    assert all(torch.equal(found[name], again[name]) for name in base)
    thinned = merge(
        "task_arithmetic", base, finetuned, dare=0.5, scale={"task00": 0.6, "task01": 0, "task02": 0}
    )
    alone = merge(
        "task_arithmetic", base, finetuned, dare=0.5, scale={"task00": 1.2, "task01": 0, "task02": 0}
    )
    change = oracle.flat(alone) - oracle.flat(base)
    near(thinned, base, change / 2, 1e-6)
    assert 0.2 < np.mean(change == 0) < 0.8


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "consensus"])
@pytest.mark.parametrize("tasks", [{}, dict.fromkeys(("task00", "task01", "task02"), 0.7) | BY_TASK])
def test_compiled_or_not_the_bits_are_the_same(method: str, tasks: dict[str, float]) -> None:
    base, finetuned = models(3, seed=4)
    problem = Problem(in_memory(base), {task: in_memory(model) for task, model in finetuned.items()})
    problem = Coefficients(tasks, LAYERS).adjusted(problem)
    made = make_method(method, FUSION_METHODS, scale=1.0 if tasks else 0.4)
    found = []
    for compiled in (True, False):
        sink = MemorySink(base, None)
        run(made, problem, sink, compiled=compiled)
        found.append(sink.weights)
    assert all(torch.equal(found[0][name], found[1][name]) for name in base)


def test_a_forgetting_by_layer() -> None:
    base, finetuned = models(1, dtype=torch.float64)
    model = finetuned["task00"]
    found = forget(model, base, model, method="task_arithmetic", scale_layers=LAYERS)
    factors = {name: 1.0 if scale == 0.4 else scale for name, scale in BY_NAME.items()}
    change = oracle.flat(model) - oracle.flat(base)
    near(found, model, -oracle.per_entry(base, factors) * change)


def test_of_tensors_alone_they_are_the_same() -> None:
    base, finetuned = models(3, dtype=torch.float64)
    taus = oracle.vectors(base, finetuned)
    factors = {name: 1.0 if scale == 0.4 else scale for name, scale in BY_NAME.items()}
    found = arithmetic.merge("ties", base, finetuned, scale=BY_TASK, scale_layers=LAYERS)
    near(found.weights, base, oracle.per_entry(base, factors) * tau["ties"](WANTED[:, None] * taus))
    again = arithmetic.merge("ties", base, finetuned, settings={"scale": BY_TASK}, scale_layers=LAYERS)
    assert all(torch.equal(again.weights[name], found.weights[name]) for name in base)
    model = finetuned["task00"]
    less = arithmetic.unlearn(
        "task_arithmetic", model, base, model, scale={"target": 0.6}, scale_layers=LAYERS
    )
    near(less.weights, model, -0.6 * oracle.per_entry(base, factors) * taus[0])


def test_the_metadata_tells_them() -> None:
    base, finetuned = models(3)
    found = merge("ties", base, finetuned, scale=BY_TASK, scale_layers=LAYERS)
    settings = json.loads(found.metadata["settings"])
    assert settings["scale"] == {"task00": 0.6, "task01": 0.4, "task02": -0.3}
    assert settings["scale_layers"] == [[pattern, scale] for pattern, scale in LAYERS.items()]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("ties", {"scale": {"cars": 0.6}}, "there is no task 'cars'; the tasks are 'task00', 'task01'"),
        (
            "ties",
            {"scale": {"task00": "much"}},
            "scale of task 'task00' must be a finite number, and is 'much'",
        ),
        (
            "ties",
            {"scale_layers": {"*.mlp.*": 1}},
            "no tensor that is merged fits '*.mlp.*'; there are 'stem.we",
        ),
        ("ties", {"scale_layers": {"*": []}}, "scale_layers of '*' must be a finite number, and is []"),
        ("ties", {"scale_layers": {"*": [0, float("nan")]}}, "scale_layers of '*' must be a finite number"),
        (
            "average",
            {"scale_layers": {"*": 1}},
            "'average' has no coefficient (scale), and scale_layers is given",
        ),
        ("lines", {"scale": {"task00": 1}}, "'lines' has no coefficient (scale), and scale is given"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, options: dict[str, Any], said: str) -> None:
    base, finetuned = models(2)
    for function in (merge, arithmetic.merge):
        with pytest.raises(StaError) as refused:
            function(method, base, finetuned, **options)
        assert said in str(refused.value)
