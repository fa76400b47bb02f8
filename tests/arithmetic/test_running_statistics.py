"""Running statistics are no weights: no method extrapolates them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, Dare, fuse, merge, unlearn
from sta_lightning.arithmetic.gradients import gradient_sums
from sta_lightning.arithmetic.vectors import change_size, task_vector
from sta_lightning.errors import StaError

STATISTICS = ("1.running_mean", "1.running_var")
COUNT = "1.num_batches_tracked"
TASKS = ("a", "b", "c", "d", "e", "f")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


def models() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A network, and six fine-tunings in which the variances were halved and batches counted."""
    torch.manual_seed(0)
    base = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    tuned = {
        task: {
            name: tensor + number + 1
            if name == COUNT
            else tensor * 0.5 + 0.01 * number
            if name in STATISTICS
            else tensor + 0.01 * torch.randn_like(tensor)
            for name, tensor in base.items()
        }
        for number, task in enumerate(TASKS)
    }
    return base, tuned


def scores(base: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """What a gradient pass of the network returns: one tensor for every parameter."""
    model = network()
    model.load_state_dict(base)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    names = [name for name, _ in model.named_parameters()]
    return gradient_sums(model, F.cross_entropy, images, torch.tensor([0, 1, 2, 3]), names=names)


@pytest.mark.parametrize("statistics", ["pretrained", "average"])
@pytest.mark.parametrize("method", sorted(set(FUSION_METHODS) - {"vectors"}))
def test_no_method_extrapolates_them(method: str, statistics: Any) -> None:
    base, tuned = models()
    found = FUSION_METHODS[method]
    importance = {task: scores(base, number) for number, task in enumerate(TASKS)}
    merged = merge(
        method,
        base,
        tuned,
        importance if found.needs_importance else None,
        grams={task: {"3.weight": torch.eye(8 * 36)} for task in TASKS} if found.needs_grams else None,
        dare=Dare(0.5),
        statistics=statistics,
    ).weights
    for name in STATISTICS:
        wanted = base[name].double()
        if statistics == "average":
            wanted = torch.from_numpy(np.mean([tuned[task][name].double().numpy() for task in TASKS], axis=0))
        torch.testing.assert_close(merged[name].double(), wanted, rtol=0, atol=1e-7)
    assert torch.equal(merged[COUNT], base[COUNT])
    model = network()
    model.load_state_dict(merged)
    assert bool(torch.isfinite(model(torch.randn(2, 3, 8, 8))).all())


@pytest.mark.parametrize("method", sorted(set(FORGET_METHODS) - {"vector", "negmerge"}))
def test_a_model_that_forgets_keeps_its_own(method: str) -> None:
    base, tuned = models()
    needed = scores(base, 0) if FORGET_METHODS[method].needs_importance else None
    gram = {"3.weight": torch.eye(8 * 36)}
    after = unlearn(method, tuned["a"], base, tuned["b"], needed, gram=gram, control_gram=gram).weights
    assert all(torch.equal(after[name], tuned["a"][name]) for name in (*STATISTICS, COUNT))


def test_fuse_takes_what_scoring_returns() -> None:
    base, tuned = models()
    importance = {task: scores(base, number) for number, task in enumerate(TASKS)}
    assert not set(STATISTICS) & set(importance["a"])
    fused = fuse(base, tuned, importance)
    # What an older file has for them is not looked at.
    older = {
        task: {**found, **{name: torch.rand_like(base[name]) for name in STATISTICS}}
        for task, found in importance.items()
    }
    again = fuse(base, tuned, older)
    assert all(torch.equal(fused[name], again[name]) for name in base)
    lacking = {task: {n: s for n, s in found.items() if n != "0.weight"} for task, found in older.items()}
    with pytest.raises(StaError, match=r"missing 1 tensor: '0\.weight'"):
        fuse(base, tuned, lacking)


def test_they_have_no_part_in_task_vectors_and_norms() -> None:
    base, tuned = models()
    assert list(task_vector(base, tuned["a"])) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    ]
    only = {**base, **{name: tuned["a"][name] for name in STATISTICS}}
    assert change_size(base, only)["norm"] == 0


def test_an_unknown_choice_and_broken_statistics_are_refused() -> None:
    base, tuned = models()
    with pytest.raises(StaError, match=r"statistics='mean'.*'pretrained', 'average'"):
        merge("average", base, tuned, statistics=cast(Any, "mean"))
    tuned["c"]["1.running_var"] = torch.full((8,), torch.nan)
    with pytest.raises(StaError, match=r"'c' holds NaN or Inf in tensor '1\.running_var'"):
        merge("average", base, tuned)
