"""Task vectors, average, task arithmetic, negation, and the size of a change."""

import math

import pytest
import torch

from sta_lightning.arithmetic import (
    average,
    change_size,
    floating_names,
    negate,
    task_arithmetic,
    task_vector,
)
from sta_lightning.arithmetic.vectors import relative_size
from sta_lightning.errors import StaError

BASE = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([1])}
TUNED = {
    "a": {"w": torch.tensor([2.0, 2.0]), "n": torch.tensor([5])},
    "b": {"w": torch.tensor([1.0, 5.0]), "n": torch.tensor([6])},
}


def test_floating_names() -> None:
    state = {"n": torch.tensor(1), "h": torch.ones(1).half(), "b": torch.tensor(True), "w": torch.ones(())}
    assert floating_names(state) == ["h", "w"]


def test_task_vector() -> None:
    vector = task_vector(BASE, TUNED["a"])
    assert list(vector) == ["w"]
    assert vector["w"].tolist() == [1.0, 0.0]
    half = task_vector({"w": torch.ones(1).half()}, {"w": torch.full((1,), 1.5).bfloat16()})["w"]
    assert (half.dtype, half.tolist()) == (torch.float32, [0.5])


def test_average_and_task_arithmetic_on_numbers_done_by_hand() -> None:
    assert average(BASE, TUNED)["w"].tolist() == [1.5, 3.5]
    assert task_arithmetic(BASE, TUNED, scale=0.5)["w"].tolist() == [1.5, 3.5]
    assert task_arithmetic(BASE, TUNED, scale=0.0)["w"].tolist() == [1.0, 2.0]
    assert task_arithmetic(BASE, {"a": TUNED["a"]}, scale=1.0)["w"].tolist() == [2.0, 2.0]
    torch.testing.assert_close(task_arithmetic(BASE, TUNED)["w"], torch.tensor([1.4, 3.2]))
    for result in (average(BASE, TUNED), task_arithmetic(BASE, TUNED)):
        assert result["n"].tolist() == [1]
        result["n"].add_(1)
    assert BASE["n"].tolist() == [1]


def test_negate_on_numbers_done_by_hand() -> None:
    model = {"w": torch.tensor([10.0, 10.0]), "n": torch.tensor([9])}
    assert negate(model, BASE, TUNED["b"])["w"].tolist() == [10.0, 7.0]
    assert negate(model, BASE, TUNED["b"], scale=0.5)["w"].tolist() == [10.0, 8.5]
    assert negate(model, BASE, TUNED["b"])["n"].tolist() == [9]


def test_task_order_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(100, generator=generator)}
    finetuned = {str(i): {"w": torch.randn(100, generator=generator)} for i in range(7)}
    backwards = dict(reversed(finetuned.items()))
    assert torch.equal(average(base, finetuned)["w"], average(base, backwards)["w"])
    assert torch.equal(task_arithmetic(base, finetuned)["w"], task_arithmetic(base, backwards)["w"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    step = torch.finfo(dtype).eps / 2
    base = {"w": torch.ones(2, dtype=dtype)}
    finetuned = {f"{i}": {"w": torch.full((2,), 1 - step, dtype=dtype)} for i in range(8)}
    for result in (
        task_arithmetic(base, finetuned, scale=1.0),
        negate(base, finetuned["0"], base, scale=-8.0),
    ):
        assert result["w"].dtype == dtype
    assert task_arithmetic(base, finetuned, scale=1.0)["w"].tolist() == [1 - 8 * step] * 2
    assert average(base, finetuned)["w"].tolist() == [1 - step] * 2
    assert average(base, finetuned, dtype=torch.float32)["w"].dtype == torch.float32


def test_zero_vectors_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        base = {
            "w": torch.randn(100, generator=generator, dtype=torch.float64).to(dtype),
            "e": torch.zeros(0, 2),
        }
        for result in (
            average(base, {"a": base, "b": base}),
            task_arithmetic(base, {"a": base}, scale=0.3),
            negate(base, base, base, scale=0.3),
        ):
            assert all(torch.equal(result[name], base[name]) for name in base)


def test_change_size() -> None:
    base = {"w": torch.tensor([3.0, 4.0]), "v": torch.zeros(2), "n": torch.tensor(1)}
    other = {"w": torch.tensor([3.0, 4.5]), "v": torch.zeros(2), "n": torch.tensor(2)}
    assert change_size(base, other) == {"norm": 0.5, "relative_norm": 0.1, "changed": 0.25}
    assert change_size(base, base) == {"norm": 0.0, "relative_norm": 0.0, "changed": 0.0}
    zero = {"w": torch.zeros(1)}
    assert change_size(zero, {"w": torch.ones(1)})["relative_norm"] == math.inf
    assert change_size({"e": torch.zeros(0)}, {"e": torch.zeros(0)})["changed"] == 0.0


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "0.4", True, None])
def test_a_scale_that_is_no_number_is_refused(scale: object) -> None:
    with pytest.raises(StaError, match="scale must be a finite number"):
        task_arithmetic(BASE, TUNED, scale=scale)  # type: ignore[arg-type]
    with pytest.raises(StaError, match="scale must be a finite number"):
        negate(BASE, BASE, BASE, scale=scale)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_by_name() -> None:
    odd = {"w": torch.ones(3), "n": torch.tensor([1])}
    bad = {"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor([1])}
    for call in (
        lambda other: average(BASE, {"a": TUNED["a"], "z": other}),
        lambda other: task_arithmetic(BASE, {"z": other}),
        lambda other: negate(BASE, BASE, other),
        lambda other: negate(other, BASE, BASE),
        lambda other: task_vector(BASE, other),
        lambda other: change_size(BASE, other),
    ):
        with pytest.raises(StaError, match=r"shapes differ in 'w \(3,\) instead of \(2,\)'"):
            call(odd)
        with pytest.raises(StaError, match=r"NaN or Inf in (1 tensor: |tensor )'w'"):
            call(bad)
        with pytest.raises(StaError, match=r"missing 1 tensor: 'n'"):
            call({"w": BASE["w"]})
    with pytest.raises(StaError, match="nothing to merge"):
        average(BASE, {})
    with pytest.raises(StaError, match="the pretrained model holds NaN or Inf"):
        task_vector(bad, BASE)


def test_a_result_that_overflows_is_refused() -> None:
    base = {"w": torch.tensor([60000.0], dtype=torch.float16)}
    finetuned = {"a": {"w": torch.tensor([65000.0], dtype=torch.float16)}}
    with pytest.raises(StaError, match=r"overflows torch\.float16"):
        task_arithmetic(base, finetuned, scale=3.0)


def test_a_merged_vector_beside_the_sum() -> None:
    assert relative_size(BASE, TUNED, average(BASE, TUNED)) == pytest.approx(0.5)
    assert relative_size(BASE, TUNED, task_arithmetic(BASE, TUNED, scale=-0.3)) == pytest.approx(0.3)
    assert relative_size(BASE, TUNED, TUNED["b"]) == pytest.approx(3 / math.sqrt(10))
    assert relative_size(BASE, {"a": BASE, "b": BASE}, TUNED["a"]) is None
    with pytest.raises(StaError, match="the merged model"):
        relative_size(BASE, TUNED, {"w": torch.tensor([1.0])})
