"""The registry of methods."""

import pytest
import torch

from sta_lightning.arithmetic import (
    FORGET_METHODS,
    FUSION_METHODS,
    average,
    forget,
    fuse,
    has_setting,
    merge,
    negate,
    task_arithmetic,
    unlearn,
)
from sta_lightning.errors import StaError


def test_merge_is_the_function_of_the_method(suite) -> None:
    s = suite(3)
    wanted = {
        "sta": fuse(s.pretrained, s.finetuned, s.importance, p=0.4, normalize="block"),
        "average": average(s.pretrained, s.finetuned),
        "task_arithmetic": task_arithmetic(s.pretrained, s.finetuned, scale=0.4),
    }
    for method, weights in wanted.items():
        got = merge(method, s.pretrained, s.finetuned, s.importance, p=0.4, normalize="block")
        assert all(torch.equal(got.weights[name], weights[name]) for name in weights)
    scaled = merge("task_arithmetic", s.pretrained, s.finetuned, scale=1.5).weights
    assert torch.equal(
        scaled["conv.weight"], task_arithmetic(s.pretrained, s.finetuned, scale=1.5)["conv.weight"]
    )


def test_unlearn_is_the_function_of_the_method(suite) -> None:
    s = suite(2)
    model, finetuned, scores = s.finetuned["task1"], s.finetuned["task0"], s.importance["task0"]
    wanted = {
        "sta": forget(model, s.pretrained, finetuned, scores, p=0.4),
        "task_arithmetic": negate(model, s.pretrained, finetuned),
    }
    for method, weights in wanted.items():
        got = unlearn(method, model, s.pretrained, finetuned, scores, p=0.4)
        assert all(torch.equal(got.weights[name], weights[name]) for name in weights)
    scaled = unlearn("task_arithmetic", model, s.pretrained, finetuned, scale=0.5).weights
    assert torch.equal(
        scaled["conv.weight"], negate(model, s.pretrained, finetuned, scale=0.5)["conv.weight"]
    )


def grams_of(s) -> dict[str, dict[str, torch.Tensor]]:
    """Gram matrices of one layer, for the methods that read them."""
    inputs = s.pretrained["blocks.0.w"].shape[1]
    return {task: {"blocks.0.w": torch.eye(inputs)} for task in s.finetuned}


def forgotten(method: str, s, task: str = "target"):
    """The first task taken out of the pretrained model."""
    gram = grams_of(s)["task0"]
    start = s.pretrained
    return unlearn(
        *(method, start, start, s.finetuned["task0"], s.importance["task0"]),
        task=task,
        gram=gram,
        control_gram=gram,
    )


def test_the_masked_methods_say_what_they_kept(suite) -> None:
    s = suite(3)
    floating = {"conv.weight", "blocks.0.w", "blocks.0.b", "scale", "empty"}
    for method in FUSION_METHODS:
        kept = merge(method, s.pretrained, s.finetuned, s.importance, grams=grams_of(s)).kept
        assert set(kept) == (floating if has_setting(FUSION_METHODS[method], "p") else set())
        assert all(set(shares) == set(s.finetuned) for shares in kept.values())
    for method in FORGET_METHODS:
        merged = forgotten(method, s, "digits")
        assert set(merged.kept) == (floating if has_setting(FORGET_METHODS[method], "p") else set())
        assert all(set(shares) == {"digits"} for shares in merged.kept.values())


def test_the_share_kept_is_the_share_that_changed() -> None:
    base = {"w": torch.zeros(1000)}
    finetuned = {t: {"w": torch.ones(1000)} for t in "ab"}
    generator = torch.Generator().manual_seed(0)
    scores = {t: {"w": torch.rand(1000, generator=generator)} for t in "ab"}
    for method in ("sta", "random_mask"):
        merged = merge(method, base, finetuned, scores)
        assert float(merged.weights["w"].mean()) == pytest.approx(sum(merged.kept["w"].values()))
        rest = unlearn(method, base, base, finetuned["a"], scores["a"])
        assert float(-rest.weights["w"].mean()) == pytest.approx(rest.kept["w"]["target"])


def test_the_seed_of_the_control_matters_and_repeats(suite) -> None:
    s = suite(4)
    first, again, other = (
        merge("random_mask", s.pretrained, s.finetuned, seed=seed).weights for seed in (0, 0, 1)
    )
    assert torch.equal(first["blocks.0.w"], again["blocks.0.w"])
    assert not torch.equal(first["blocks.0.w"], other["blocks.0.w"])


def test_the_random_state_of_the_program_is_left_alone(suite) -> None:
    s = suite(2)
    state = torch.get_rng_state()
    for method in FUSION_METHODS:
        merge(method, s.pretrained, s.finetuned, s.importance, grams=grams_of(s))
    for method in FORGET_METHODS:
        forgotten(method, s)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_methods_are_refused_with_the_known_ones(suite) -> None:
    s = suite(2)
    with pytest.raises(
        StaError, match=r"merging method 'ties2' is unknown.*'sta', 'spectral_sta', 'random_mask'"
    ):
        merge("ties2", s.pretrained, s.finetuned)
    with pytest.raises(StaError, match=r"forgetting method 'average' is unknown.*'sta', 'random_mask'"):
        unlearn("average", s.pretrained, s.pretrained, s.finetuned["task0"])


def test_sta_without_importance_and_a_scale_for_nothing_are_refused(suite) -> None:
    s = suite(2)
    with pytest.raises(StaError, match="importance, and none was given"):
        merge("sta", s.pretrained, s.finetuned)
    with pytest.raises(StaError, match="importance, and none was given"):
        unlearn("sta", s.pretrained, s.pretrained, s.finetuned["task0"])
    with pytest.raises(StaError, match=r"reads 'fisher'.*sta score .*--measure=fisher "):
        merge("fisher", s.pretrained, s.finetuned)
    with pytest.raises(StaError, match=r"Gram matrices.*sta score .*--measure=gram "):
        merge("regmean", s.pretrained, s.finetuned)
    for method in ("sta", "random_mask", "average"):
        with pytest.raises(StaError, match=r"has no coefficient, and scale=0.4 was given"):
            merge(method, s.pretrained, s.finetuned, s.importance, scale=0.4)
