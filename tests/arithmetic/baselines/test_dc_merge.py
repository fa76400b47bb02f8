"""DC-Merge: the oracle, what its definition implies, and what is refused."""

import numpy as np
import pytest
import torch

from sta_lightning.arithmetic import average
from sta_lightning.arithmetic.baselines.dc_merge import DcMerge
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle

dc_merge = by_name("dc_merge")


def rule(deltas: list[oracle.Array], keep: float) -> oracle.Array:
    """Entry by entry in the common bases, as the paper has it."""
    rank, tasks = min(deltas[0].shape), len(deltas)
    each = rank // tasks
    if not each:
        return np.zeros_like(deltas[0])
    parts = [oracle.by_eigenvalues(delta) for delta in deltas]
    left = oracle.polar(np.hstack([u[:, :each] for u, _, _ in parts]))
    right = oracle.polar(np.hstack([v[:, :each] for _, _, v in parts]))
    seen = []
    for u, s, v in parts:
        matrix = left.T @ (u[:, :each] * s[:each]) @ v[:, :each].T @ right
        count = max(1, int(keep * rank * rank))
        least = np.sort(np.abs(matrix), axis=None)[::-1][min(count, matrix.size) - 1]
        seen.append(np.where(np.abs(matrix) >= least, matrix, 0))
    merged = np.zeros((each * tasks, each * tasks))
    for row, column in np.ndindex(merged.shape):
        values = [matrix[row, column] for matrix in seen]
        same = [value for value in values if value * sum(values) > 0]
        if row // each == column // each and same:
            merged[row, column] = sum(same) / len(same)
    return left @ merged @ right.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("keep", [0.001, 0.1, 1.0])
def test_it_is_the_oracle(tasks: int, keep: float, dtype: torch.dtype) -> None:
    base, finetuned = oracle.models(tasks, seed=tasks, dtype=dtype)
    wide = None if dtype == torch.float64 else torch.float32
    got = dc_merge(base, finetuned, keep=keep, scale=0.7, dtype=wide)
    models = [oracle.floats(finetuned[task]) for task in sorted(finetuned)]
    wanted = oracle.merged(oracle.floats(base), models, lambda deltas: rule(deltas, keep), 0.7)
    oracle.close(got, wanted)


def test_one_task_kept_whole_is_itself_and_nothing_stays_nothing() -> None:
    base, finetuned = oracle.models(1)
    oracle.close(dc_merge(base, finetuned, keep=1.0), oracle.floats(finetuned["task1"]))
    same = dc_merge(base, {"a": base, "b": base})
    assert all(torch.equal(same[name], base[name]) for name in base)
    base, finetuned = oracle.models(3)
    mean = average(base, finetuned)
    got = dc_merge(base, finetuned)
    assert all(torch.equal(got[name], mean[name]) for name in ("conv1.weight", "text_projection", "ln.bias"))


@pytest.mark.parametrize("keep", [0.0, 1.1, float("nan"), "0.1", True])
def test_a_share_out_of_range_is_refused(keep: object) -> None:
    with pytest.raises(StaError, match=r"keep, the share.*\(0, 1\]"):
        DcMerge(keep)  # type: ignore[arg-type]
