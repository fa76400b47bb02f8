"""Methods of one's own: a function or a class, by a decorator or by its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import (
    FORGET_METHODS,
    FUSION_METHODS,
    MergeMethod,
    VectorMethod,
    average,
    find_method,
    forget_method,
    fusion_method,
    make_method,
    merge,
    negate,
    settings_of,
    task_arithmetic,
    unlearn,
)
from sta_lightning.arithmetic.entries import Block
from sta_lightning.errors import StaError


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(FUSION_METHODS), dict(FORGET_METHODS)
    yield
    for methods, saved in zip((FUSION_METHODS, FORGET_METHODS), before, strict=True):
        methods.clear()
        methods.update(saved)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in second)


def test_a_function_with_a_decorator_merges_by_its_name(suite) -> None:
    s = suite(3)

    @fusion_method("mean_of_mine", data="nothing", coefficient="scale", source="me")
    def mine(pretrained: Tensor, deltas: Tensor, scale: float = 1.0) -> Tensor:
        """The mean, scaled."""
        return scale * deltas.mean(0)

    assert equal(merge("mean_of_mine", s.pretrained, s.finetuned).weights, average(s.pretrained, s.finetuned))
    got = merge("mean_of_mine", s.pretrained, s.finetuned, scale=1.5).weights
    assert equal(got, task_arithmetic(s.pretrained, s.finetuned, scale=0.5))
    got = merge("mean_of_mine", s.pretrained, s.finetuned, settings={"scale": 1.5}).weights
    assert equal(got, task_arithmetic(s.pretrained, s.finetuned, scale=0.5))
    found = FUSION_METHODS["mean_of_mine"]
    assert (found.summary, found.coefficient, found.source) == ("The mean, scaled.", "scale", "me")
    assert settings_of(found) == {"scale": 1.0}
    assert mine(torch.zeros(1), torch.ones(2, 1)).item() == 1.0  # the function itself is left as it was


def test_the_function_sees_the_tensors_whole_and_in_the_order_of_the_names(suite) -> None:
    s = suite(3)
    seen: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    @fusion_method("watching")
    def watching(pretrained: Tensor, deltas: Tensor) -> Tensor:
        seen.setdefault(tuple(pretrained.shape), []).append(tuple(deltas.shape))
        pretrained.fill_(7.0)  # its own copy
        return deltas[0]

    first = sorted(s.finetuned)[0]
    got = merge("watching", s.pretrained, dict(reversed(s.finetuned.items()))).weights
    assert equal(got, average(s.pretrained, {first: s.finetuned[first]}))
    assert all(shapes == [(3, *shape)] * len(shapes) for shape, shapes in seen.items())


def test_a_class_with_a_decorator(suite) -> None:
    s = suite(2)

    @fusion_method("nothing_at_all")
    @dataclass(frozen=True)
    class Nothing(VectorMethod):
        title: ClassVar[str] = "Nothing"

        def vector(self, block: Block, state: Any) -> Tensor:
            return torch.zeros_like(block.base)

    assert find_method("nothing_at_all", FUSION_METHODS) is Nothing
    assert equal(merge("nothing_at_all", s.pretrained, s.finetuned).weights, s.pretrained)


def test_a_function_forgets(suite) -> None:
    s = suite(2)

    @forget_method("half")
    def half(pretrained: Tensor, deltas: Tensor, share: float = 0.5) -> Tensor:
        return share * deltas[0]

    finetuned = s.finetuned["task0"]
    got = unlearn("half", s.pretrained, s.pretrained, finetuned).weights
    assert equal(got, negate(s.pretrained, s.pretrained, finetuned, scale=0.5))


MODULE = """
from dataclasses import dataclass
from sta_lightning.arithmetic import VectorMethod

def first(pretrained, deltas, *, factor: float = 2.0):
    "The first task's vector."
    return factor * deltas[0]

@dataclass(frozen=True)
class Last(VectorMethod):
    title = "Last"

    def vector(self, block, state):
        return list(block.deltas())[-1]

number = 3
class Other: ...
def wrong(deltas): ...
def odd(pretrained, deltas, scale): ...
def bad_shape(pretrained, deltas): return deltas
def bad_type(pretrained, deltas): return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with methods, in the working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"own_{abs(hash(str(tmp_path)))}.py"
    file.write_text(MODULE)
    return file


def test_a_place_is_enough(suite, own: Path) -> None:
    s = suite(2)
    base, finetuned = s.pretrained, s.finetuned
    wanted = task_arithmetic(base, {"task0": finetuned["task0"]}, scale=2.0)
    for place in (f"{own}:first", f"{own.name}:first", f"{own.stem}:first", f"{own.stem}.first"):
        assert equal(merge(place, base, finetuned).weights, wanted)
    got = merge(f"{own}:first", base, finetuned, settings={"factor": 1.0}).weights
    assert equal(got, average(base, {"task0": finetuned["task0"]}))
    got = merge(f"{own.stem}.Last", base, finetuned).weights
    assert equal(got, average(base, {"task1": finetuned["task1"]}))
    assert find_method(f"{own}:Last", FUSION_METHODS) is find_method(f"{own}:Last", FORGET_METHODS)
    negated = unlearn(f"{own}:first", base, base, finetuned["task0"]).weights
    assert equal(negated, negate(base, base, finetuned["task0"], scale=2.0))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("third", "has no method and no function 'third'"),
        ("number", "has no method and no function 'number'"),
        ("Other", "has no method and no function 'Other'"),
        ("wrong", r"must take \(pretrained, deltas\) and settings with defaults"),
        ("odd", r"must take \(pretrained, deltas\) and settings with defaults"),
    ],
)
def test_what_is_no_method_is_refused(own: Path, attribute: str, message: str) -> None:
    with pytest.raises(StaError, match=message):
        find_method(f"{own}:{attribute}", FUSION_METHODS)


def test_what_a_function_returns_is_checked(suite, own: Path) -> None:
    s = suite(2)
    with pytest.raises(
        StaError, match=r"must return the merged task vector, a tensor of shape \[.*\] for .* and returned \["
    ):
        merge(f"{own}:bad_shape", s.pretrained, s.finetuned)
    with pytest.raises(StaError, match="and returned NoneType"):
        merge(f"{own}:bad_type", s.pretrained, s.finetuned)


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="there is no file"):
        find_method(f"{tmp_path}/none.py:first", FUSION_METHODS)
    with pytest.raises(StaError, match=r"'no_such_package.module' cannot be imported: ModuleNotFoundError"):
        find_method("no_such_package.module.first", FUSION_METHODS)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(StaError, match="cannot be imported: ZeroDivisionError"):
        find_method(f"{broken}:first", FUSION_METHODS)
    with pytest.raises(StaError, match="cannot be imported: ZeroDivisionError"):  # again, not half of it
        find_method(f"{broken}:first", FUSION_METHODS)


def test_a_name_is_given_once() -> None:
    with pytest.raises(StaError, match="a method 'average' is there already"):
        fusion_method("average")(lambda pretrained, deltas: deltas[0])


@pytest.mark.parametrize("methods", [FUSION_METHODS, FORGET_METHODS], ids=["fusion", "forgetting"])
def test_settings_that_a_method_has_not_are_refused(methods: dict[str, type[MergeMethod]]) -> None:
    with pytest.raises(StaError, match=r"method 'sta' has no setting 'keep'. It has 'p'"):
        make_method("sta", methods, settings={"keep": 0.2})
    assert make_method("sta", methods, settings={"p": 0.2}, p=0.7).settings()["p"] == 0.2


@pytest.mark.parametrize("name", [*FUSION_METHODS, *FORGET_METHODS])
def test_every_method_says_what_it_is(name: str) -> None:
    for methods in (FUSION_METHODS, FORGET_METHODS):
        method = methods.get(name)
        if method is not None:
            assert method.summary
            assert not method.summary.endswith(".")
            assert method.source
            assert method.coefficient is None or method.coefficient in settings_of(method)
