"""Fusion (Eq. 13-19): the oracle, the properties that the equations imply, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta_lightning.arithmetic import NORMALIZATIONS, fuse, merge, rank
from sta_lightning.arithmetic import states as states_module
from sta_lightning.errors import StaError
from tests.oracles import sta as oracle

TENTHS = [
    Fraction(0),
    Fraction(29, 100),
    Fraction(1, 3),
    Fraction(1, 2),
    Fraction(7, 10),
    Fraction(9, 10),
    Fraction(1),
]

values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]) | st.floats(0, 1e6, width=32)


def states(tasks: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, np.ndarray]]:
    return {task: floats(state) for task, state in tasks.items()}


def floats(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("p", TENTHS, ids=str)
@pytest.mark.parametrize("n", range(2, 21))
def test_fuse_is_the_oracle(suite, n: int, p: Fraction) -> None:
    given_ = suite(n, seed=n)
    got = fuse(given_.pretrained, given_.finetuned, given_.importance, p=float(p))
    wanted = oracle.fuse(floats(given_.pretrained), states(given_.finetuned), states(given_.importance), p)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name].numpy(), value, rtol=0, atol=2e-6, err_msg=name)


def test_a_hundred_and_one_tasks_at_29_percent() -> None:
    n = 101
    base = {"w": torch.zeros(8)}
    generator = torch.Generator().manual_seed(0)
    finetuned = {f"{i:03}": {"w": torch.randn(8, generator=generator)} for i in range(n)}
    scores = {task: {"w": torch.rand(8, generator=generator)} for task in finetuned}
    got = merge("sta", base, finetuned, scores, p=0.29)
    wanted = oracle.fuse(floats(base), states(finetuned), states(scores), Fraction(29, 100))
    np.testing.assert_allclose(got.weights["w"].numpy(), wanted["w"], atol=1e-5)
    assert sum(got.kept["w"].values()) == pytest.approx(101 - 30)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(2, 7), size=st.integers(0, 5), p=st.fractions(0, 1, max_denominator=20))
def test_masks_are_the_oracle_s_with_ties_and_constant_tensors(
    data: st.DataObject, n: int, size: int, p: Fraction
) -> None:
    rows = data.draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=n, max_size=n))
    base = {"w": torch.zeros(size)}
    # Task i adds 2**i: the sum tells which tasks were kept.
    finetuned = {str(i): {"w": torch.full((size,), 2.0**i)} for i in range(n)}
    scores = {str(i): {"w": torch.tensor(row, dtype=torch.float32)} for i, row in enumerate(rows)}
    wanted = oracle.fuse(floats(base), states(finetuned), states(scores), p)
    assert np.array_equal(fuse(base, finetuned, scores, p=float(p))["w"].double().numpy(), wanted["w"])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(2, 6), p=st.floats(0, 1), mode=st.sampled_from(NORMALIZATIONS))
def test_task_order_changes_no_bit(data: st.DataObject, n: int, p: float, mode: str) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    base = {"a": torch.randn(9, generator=generator), "b": torch.randn(2, 2, generator=generator)}
    finetuned = {
        str(i): {k: v + torch.randn(v.shape, generator=generator) for k, v in base.items()} for i in range(n)
    }
    scores = {t: {k: torch.rand(v.shape, generator=generator) for k, v in base.items()} for t in finetuned}
    order = data.draw(st.permutations(list(finetuned)))
    first = fuse(base, finetuned, scores, p=p, normalize=mode)
    shuffled = {task: dict(reversed(finetuned[task].items())) for task in order}
    second = fuse(base, shuffled, {task: scores[task] for task in reversed(order)}, p=p, normalize=mode)
    assert all(torch.equal(first[name], second[name]) for name in base)
    assert list(second) == list(base)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 8), p=st.floats(0, 1), q=st.floats(0, 1))
def test_a_larger_p_keeps_a_subset(seed: int, n: int, p: float, q: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = {"w": torch.zeros(12)}
    finetuned = {str(i): {"w": torch.full((12,), 2.0**i)} for i in range(n)}
    scores = {t: {"w": torch.randint(0, 6, (12,), generator=generator).float()} for t in finetuned}
    less, more = sorted((p, q))
    wide = fuse(base, finetuned, scores, p=less)["w"].long()
    narrow = fuse(base, finetuned, scores, p=more)["w"].long()
    assert torch.equal(wide & narrow, narrow)


@pytest.mark.parametrize("n", [2, 3, 6, 8, 14, 20])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.7, 1.0])
def test_without_ties_the_kept_shares_add_up_to_n_minus_k(n: int, p: float) -> None:
    generator = torch.Generator().manual_seed(n)
    base = {"w": torch.zeros(400)}
    finetuned = {str(i): {"w": torch.ones(400)} for i in range(n)}
    # Normalising by the exact extremes 0 and 1 leaves the scores as they are; the other 398 columns
    # have no ties.
    ranks = torch.stack([torch.randperm(n, generator=generator) for _ in range(398)], dim=1)
    scores = {
        str(i): {"w": torch.cat([torch.tensor([0.0, 1.0]), (ranks[i] + 1.0) / (n + 1)])} for i in range(n)
    }
    result = merge("sta", base, finetuned, scores, p=p)
    assert result.weights["w"][:2].tolist() == [0.0, 0.0]  # all tasks tie there
    assert result.weights["w"][2:].tolist() == [n - rank(n, p)] * 398
    assert sum(result.kept["w"].values()) == pytest.approx(398 / 400 * (n - rank(n, p)))


def test_p_zero_drops_one_task_and_p_one_all(suite) -> None:
    given_ = suite(4)
    keep = merge("sta", given_.pretrained, given_.finetuned, given_.importance, p=0.0, normalize="none").kept
    assert sum(keep["conv.weight"].values()) == pytest.approx(3.0)
    assert sum(keep["scale"].values()) == pytest.approx(3.0)
    keep = merge("sta", given_.pretrained, given_.finetuned, given_.importance, p=0.0).kept
    assert sum(keep["scale"].values()) == 0.0  # a scalar normalises to zero in every task: a tie
    nothing = fuse(given_.pretrained, given_.finetuned, given_.importance, p=1.0)
    assert all(torch.equal(nothing[name], value) for name, value in given_.pretrained.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_zero_task_vectors_change_no_bit(suite, dtype: torch.dtype) -> None:
    given_ = suite(3, dtype=dtype)
    same = {task: {k: v.clone() for k, v in given_.pretrained.items()} for task in given_.finetuned}
    for mode in NORMALIZATIONS:
        result = fuse(given_.pretrained, same, given_.importance, p=0.0, normalize=mode)
        for name, value in given_.pretrained.items():
            assert torch.equal(result[name], value)
            assert result[name].dtype == value.dtype


def test_a_task_that_adds_nothing_only_takes_part_in_the_ranking() -> None:
    base = {"w": torch.zeros(3)}
    finetuned = {"a": {"w": torch.ones(3)}, "idle": {"w": torch.zeros(3)}}
    scores = {"a": {"w": torch.tensor([0.0, 2.0, 4.0])}, "idle": {"w": torch.tensor([9.0, 0.0, 9.0])}}
    assert fuse(base, finetuned, scores)["w"].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    # 64 steps of one unit in the last place: each lost if added to 1.0 in half precision one half
    # at a time.
    step = torch.finfo(dtype).eps / 2
    base = {"w": torch.tensor([1.0, 1.0, 1.0], dtype=dtype)}
    low = {"w": torch.tensor([1.0 - step, 1.0, 1.0], dtype=dtype)}
    finetuned = {f"{i:02}": low for i in range(9)}
    scores = {t: {"w": torch.tensor([1.0 + int(t), 0.0, 20.0])} for t in finetuned}
    result = fuse(base, finetuned, scores, p=0.0)
    assert result["w"].dtype == dtype
    assert float(result["w"][0]) == 1.0 - 8 * step
    wide = fuse(base, finetuned, scores, p=0.0, dtype=torch.float32)["w"]
    assert wide.dtype == torch.float32
    assert float(wide[0]) == 1.0 - 8 * step


def test_mixed_types_and_integer_scores() -> None:
    base = {"w": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    finetuned = {
        "a": {"w": torch.tensor([1.5, 2.0], dtype=torch.float64)},
        "b": {"w": torch.tensor([1.0, 2.5], dtype=torch.bfloat16)},
    }
    scores = {"a": {"w": torch.tensor([1, 0])}, "b": {"w": torch.tensor([0.0, 3.0], dtype=torch.float16)}}
    result = fuse(base, finetuned, scores)["w"]
    assert result.dtype == torch.float16
    assert result.tolist() == [1.5, 2.5]


def test_float64_models_keep_their_digits() -> None:
    base = {"w": torch.tensor([1.0 + 1e-12, 0.0], dtype=torch.float64)}
    finetuned = {t: {"w": torch.tensor([1.0 + 3e-12, 0.0], dtype=torch.float64)} for t in "ab"}
    scores = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])}}
    assert float(fuse(base, finetuned, scores)["w"][0]) == 1.0 + 3e-12


def test_integer_and_boolean_buffers_are_copied_from_the_pretrained_model() -> None:
    base = {"w": torch.zeros(2), "n": torch.tensor([3]), "flag": torch.tensor([True])}
    finetuned = {t: {"w": torch.ones(2), "n": torch.tensor([9]), "flag": torch.tensor([False])} for t in "ab"}
    scores = {t: {"w": torch.rand(2)} for t in "ab"}
    result = fuse(base, finetuned, scores)
    assert result["n"].tolist() == [3]
    assert result["flag"].tolist() == [True]
    result["n"][0] = 0
    assert base["n"].tolist() == [3]


def test_nothing_given_is_changed_or_shared(suite) -> None:
    given_ = suite(3)
    before = [
        value.clone()
        for state in (given_.pretrained, *given_.finetuned.values(), *given_.importance.values())
        for value in state.values()
    ]
    for p in (0.7, 1.0):
        result = fuse(given_.pretrained, given_.finetuned, given_.importance, p=p)
        for value in result.values():
            value.add_(1)
    after = [
        value
        for state in (given_.pretrained, *given_.finetuned.values(), *given_.importance.values())
        for value in state.values()
    ]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_parameters_and_strided_tensors_are_taken(suite) -> None:
    given_ = suite(2)
    wanted = fuse(given_.pretrained, given_.finetuned, given_.importance)
    awkward = {
        task: {k: torch.nn.Parameter(v.T.contiguous().T) if v.dim() == 2 else v for k, v in state.items()}
        for task, state in given_.finetuned.items()
    }
    base = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in given_.pretrained.items()}
    got = fuse(base, awkward, given_.importance)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert not any(value.requires_grad for value in got.values())


def test_pieces_do_not_show(suite, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = suite(5)
    whole = merge("sta", given_.pretrained, given_.finetuned, given_.importance)
    control = merge("random_mask", given_.pretrained, given_.finetuned, seed=1)
    monkeypatch.setattr(states_module, "_PIECE_ON_CPU", 4)
    again = merge("sta", given_.pretrained, given_.finetuned, given_.importance)
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
    assert whole.kept == again.kept
    again = merge("random_mask", given_.pretrained, given_.finetuned, seed=1)
    assert all(torch.equal(control.weights[name], again.weights[name]) for name in control.weights)


def test_block_and_model_normalisation_change_the_mask() -> None:
    base = {"0.a": torch.zeros(2), "0.b": torch.zeros(2)}
    finetuned = {"x": {k: torch.ones(2) for k in base}, "y": {k: torch.full((2,), 2.0) for k in base}}
    scores = {
        "x": {"0.a": torch.tensor([0.0, 1.0]), "0.b": torch.tensor([0.0, 10.0])},
        "y": {"0.a": torch.tensor([0.0, 1.0]), "0.b": torch.tensor([0.0, 1.0])},
    }
    assert fuse(base, finetuned, scores)["0.a"].tolist() == [0.0, 0.0]  # both are 1: a tie
    for mode in ("block", "model"):
        assert fuse(base, finetuned, scores, normalize=mode)["0.a"].tolist() == [0.0, 2.0]
    assert fuse(base, finetuned, scores, normalize="none")["0.b"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_importance_of_an_integer_buffer_is_ignored(suite, mode: str) -> None:
    s = suite(3)
    wanted = fuse(s.pretrained, s.finetuned, s.importance, normalize=mode)
    s.importance["task0"]["steps"] = torch.tensor(1e9)
    got = fuse(s.pretrained, s.finetuned, s.importance, normalize=mode)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_the_control_keeps_exactly_n_minus_k_everywhere(suite) -> None:
    given_ = suite(6)
    base = {k: torch.zeros_like(v) for k, v in given_.pretrained.items() if v.is_floating_point()}
    finetuned = {t: {k: torch.ones_like(v) for k, v in base.items()} for t in given_.finetuned}
    result = merge("random_mask", base, finetuned, p=0.7, seed=0)
    assert all(bool((value == 2).all()) for value in result.weights.values())
    reordered = merge(
        "random_mask", dict(reversed(base.items())), dict(reversed(finetuned.items())), p=0.7, seed=0
    )
    assert reordered.kept == result.kept
    assert merge("random_mask", base, finetuned, p=0.7, seed=1).kept != result.kept


# What is refused.


def test_one_task_and_no_task_are_refused(suite) -> None:
    given_ = suite(1)
    with pytest.raises(StaError, match=r"at least two tasks.*'task0'"):
        fuse(given_.pretrained, given_.finetuned, given_.importance)
    with pytest.raises(StaError, match="nothing to merge"):
        fuse(given_.pretrained, {}, {})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_refused_by_name(suite, bad: float, dtype: torch.dtype) -> None:
    given_ = suite(2, dtype=dtype)
    given_.importance["task1"]["blocks.0.w"][2, 3] = bad
    with pytest.raises(StaError, match=r"importance of task 'task1'.*NaN or Inf.*'blocks.0.w'"):
        fuse(given_.pretrained, given_.finetuned, given_.importance)
    given_ = suite(2, dtype=dtype)
    given_.finetuned["task0"]["conv.weight"][0, 0, 0] = bad
    with pytest.raises(StaError, match=r"fine-tuned on 'task0'.*NaN or Inf.*'conv.weight'"):
        fuse(given_.pretrained, given_.finetuned, given_.importance)
    given_ = suite(2, dtype=dtype)
    given_.pretrained["scale"].fill_(bad)
    with pytest.raises(StaError, match=r"pretrained model holds NaN or Inf.*'scale'"):
        fuse(given_.pretrained, given_.finetuned, given_.importance)


def test_names_shapes_and_kinds_must_match(suite) -> None:
    def refused(message: str, change) -> None:
        given_ = suite(2)
        change(given_)
        with pytest.raises(StaError, match=message):
            fuse(given_.pretrained, given_.finetuned, given_.importance)

    refused(r"'task1'.*missing 1 tensor: 'conv.weight'", lambda s: s.finetuned["task1"].pop("conv.weight"))
    refused(
        r"unknown 1 tensor: 'logit_scale'", lambda s: s.finetuned["task1"].update(logit_scale=torch.ones(()))
    )
    refused(
        r"'blocks.0.b \(7,\) instead of \(6,\)'",
        lambda s: s.finetuned["task0"].update({"blocks.0.b": torch.ones(7)}),
    )
    refused(r"int64 instead of torch.float32", lambda s: s.finetuned["task0"].update(scale=torch.tensor(1)))
    refused(
        r"importance of task 'task0'.*missing 1 tensor: 'scale'", lambda s: s.importance["task0"].pop("scale")
    )
    refused(r"unknown 1 tensor: 'other'", lambda s: s.importance["task0"].update(other=torch.ones(1)))
    refused(
        r"importance of task 'task1'.*shapes differ in 'scale \(1,\)",
        lambda s: s.importance["task1"].update(scale=torch.ones(1)),
    )
    refused(r"missing for 'task1'", lambda s: s.importance.pop("task1"))
    refused(r"left over for 'task9'", lambda s: s.importance.update(task9=s.importance["task1"]))


def test_wrong_kinds_of_argument_are_refused(suite) -> None:
    given_ = suite(2)
    with pytest.raises(StaError, match=r"is a Linear.*state_dict"):
        fuse(torch.nn.Linear(2, 2), given_.finetuned, given_.importance)  # type: ignore[arg-type]
    with pytest.raises(StaError, match="finetuned must map task names"):
        fuse(given_.pretrained, [given_.pretrained], given_.importance)  # type: ignore[arg-type]
    with pytest.raises(StaError, match="importance must map task names"):
        fuse(given_.pretrained, given_.finetuned, None)  # type: ignore[arg-type]
    with pytest.raises(StaError, match=r"not tensors: 'state_dict'"):
        fuse({"state_dict": given_.pretrained}, given_.finetuned, given_.importance)  # type: ignore[dict-item]
    with pytest.raises(StaError, match="dtype must be"):
        fuse(given_.pretrained, given_.finetuned, given_.importance, dtype=torch.int32)
    with pytest.raises(StaError, match="p must be"):
        fuse(given_.pretrained, given_.finetuned, given_.importance, p=1.3)
    with pytest.raises(StaError, match="normalize='layer'"):
        fuse(given_.pretrained, given_.finetuned, given_.importance, normalize="layer")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_without_dense_real_entries_are_refused(tensor: Tensor) -> None:
    base = {"w": tensor}
    with pytest.raises(StaError, match=r"complex, sparse, quantised or meta.*'w'"):
        fuse(base, {"a": base, "b": base}, {"a": base, "b": base})


def test_a_result_that_overflows_its_type_is_refused_by_name() -> None:
    base = {"w": torch.tensor([60000.0, 0.0], dtype=torch.float16)}
    finetuned = {t: {"w": torch.tensor([65000.0, 0.0], dtype=torch.float16)} for t in "abc"}
    scores = {t: {"w": torch.tensor([float(i), 5.0])} for i, t in enumerate("abc")}
    with pytest.raises(StaError, match=r"overflows torch.float16 in tensor 'w'"):
        fuse(base, finetuned, scores, p=0.0, normalize="none")
    wide = fuse(base, finetuned, scores, p=0.0, normalize="none", dtype=torch.float32)
    assert float(wide["w"][0]) == 60000.0 + 2 * (float(finetuned["a"]["w"][0]) - 60000.0) > 65504
