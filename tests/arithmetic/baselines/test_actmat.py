"""ACTMat and TACT: the oracle, what their definitions imply, and what is refused."""

import pytest
import torch

from sta_lightning.arithmetic import average
from sta_lightning.arithmetic.baselines.actmat import ActMat, Tact
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import quadratic
from tests.oracles import spectral as oracle

actmat, tact, regmean = by_name("actmat"), by_name("tact"), by_name("regmean", "grams")

MATRICES = ["in_proj.weight", "c_fc.weight", "out_proj.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_they_are_the_oracle(tasks: int, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    more = {"scale": 0.7, "dtype": None if dtype == torch.float64 else torch.float32}
    for keep, cutoff in ((1.0, 0.0), (0.5, 0.0), (0.5, 0.003), (1.0, 0.003)):
        method, settings = (actmat, {}) if keep == 1 else (tact, {"keep": keep})
        got = method(base, finetuned, cutoff=cutoff, **settings, **more)
        wanted = oracle.merged(
            oracle.floats(base),
            models,
            lambda deltas, keep=keep, cutoff=cutoff: quadratic.actmat(deltas, keep, cutoff),
            0.7,
        )
        oracle.close(got, wanted)
    assert list(got) == list(base)


def test_actmat_is_regmean_with_the_task_vectors_for_inputs() -> None:
    base, finetuned = oracle.models(3, dtype=torch.float64)
    deltas = {t: {n: model[n] - base[n] for n in MATRICES} for t, model in finetuned.items()}
    grams = {t: {n: delta.mT @ delta for n, delta in layers.items()} for t, layers in deltas.items()}
    got, wanted = actmat(base, finetuned, cutoff=0.0), regmean(base, finetuned, grams, ratio=1.0)
    for name in MATRICES:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-8)


def test_one_task_is_itself_and_other_tensors_are_averaged() -> None:
    base, finetuned = oracle.models(1)
    oracle.close(actmat(base, finetuned), oracle.floats(finetuned["task1"]))
    base, finetuned = oracle.models(3)
    mean = average(base, finetuned)
    for method in (actmat, tact):
        got = method(base, finetuned)
        assert all(
            torch.equal(got[name], mean[name]) for name in ("conv1.weight", "text_projection", "ln.bias")
        )
        same = method(base, {"a": base, "b": base})
        assert all(torch.equal(same[name], base[name]) for name in base)


def test_ties_at_the_threshold_are_kept() -> None:
    base = {"w": torch.zeros(2, 2)}
    finetuned = {"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}}
    # Of "a" all four are as large; of "b" the 3 and the 1.
    torch.testing.assert_close(tact(base, finetuned)["w"], actmat(base, finetuned)["w"])


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan"), "0", True])
def test_a_cutoff_out_of_range_is_refused(wrong: object) -> None:
    with pytest.raises(StaError, match=r"cutoff must be a number in \[0, 1\)"):
        ActMat(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0.0, 1.1, float("nan"), "0.5", True])
def test_a_share_out_of_range_is_refused(wrong: object) -> None:
    with pytest.raises(StaError, match=r"keep, the share.*\(0, 1\]"):
        Tact(keep=wrong)  # type: ignore[arg-type]
