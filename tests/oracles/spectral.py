"""TSV-M, Iso, Fisher, RegMean, NegMerge and spared control in NumPy float64, by other means.

Singular values come from the eigenvalues of A^T A, polar factors from inverse square roots, RegMean
from the stacked inputs by least squares, and Fisher merging averages whole models in place of task
vectors.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
State = dict[str, Array]

SHAPES = {
    "conv1.weight": (6, 3, 2, 2),
    "in_proj.weight": (18, 6),
    "c_fc.weight": (9, 14),
    "out_proj.weight": (8, 8),
    "row.weight": (1, 7),
    "column.weight": (5, 1),
    "text_projection": (6, 6),
    "ln.bias": (7,),
    "scale": (),
    "empty": (0, 3),
    "empty.columns": (3, 0),
}
"""A tensor of every kind of shape."""


def model(
    seed: int,
    *,
    around: dict[str, Tensor] | None = None,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A model of such tensors, and an integer buffer, drawn around another one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        + (0 if around is None else around[name].double())
        for name, shape in SHAPES.items()
    }
    return {**{name: value.to(dtype) for name, value in drawn.items()}, "steps": torch.tensor(seed)}


def models(
    tasks: int, *, seed: int = 0, spread: float = 0.1, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A pretrained model and its fine-tuned descendants, by task name."""
    base = model(1000 * seed, dtype=dtype)
    finetuned = {
        f"task{i}": model(1000 * seed + i, around=base, spread=spread, dtype=dtype)
        for i in range(1, tasks + 1)
    }
    return base, finetuned


def floats(state: dict[str, Tensor]) -> State:
    """The floating-point tensors in float64."""
    return {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}


def close(got: dict[str, Tensor], wanted: State, atol: float = 1e-6) -> None:
    """Whether a model is, to rounding, what the oracle says."""
    assert all(name in got for name in wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name].double().numpy(), value, rtol=0, atol=atol, err_msg=name)


def by_eigenvalues(matrix: Array) -> tuple[Array, Array, Array]:
    """U, s, V with A = U diag(s) V^T, for a matrix of full rank."""
    if matrix.shape[0] < matrix.shape[1]:
        v, s, u = by_eigenvalues(matrix.T)
        return u, s, v
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    s, v = np.sqrt(values[::-1]), vectors[:, ::-1]
    return matrix @ v / s, s, v


def polar(matrix: Array) -> Array:
    """The orthogonal factor, A (A^T A)^(-1/2), for a matrix of full column rank."""
    factor, _ = scipy.linalg.polar(matrix)
    root = scipy.linalg.sqrtm(matrix.T @ matrix)
    np.testing.assert_allclose(factor, matrix @ np.linalg.inv(root), atol=1e-8)
    return factor


def tsv(deltas: list[Array]) -> Array:
    """TSV-M of one matrix, zero padded as its authors have it."""
    m, n = deltas[0].shape
    k = int(min(m, n) * (1 / len(deltas)))
    if k == 0:
        return np.zeros((m, n))
    us, ss, vs = [], [], []
    for delta in deltas:
        u, s, v = by_eigenvalues(delta)
        us.append(u[:, :k])
        ss.append(s[:k])
        vs.append(v[:, :k])
    return polar(np.hstack(us)) @ np.diag(np.concatenate(ss)) @ polar(np.hstack(vs)).T


def iso_c(deltas: list[Array]) -> Array:
    """Iso-C of one matrix of full rank: its polar factor times its nuclear norm over its rank."""
    total = np.sum(deltas, axis=0)
    if total.shape[0] < total.shape[1]:
        return iso_c([delta.T for delta in deltas]).T
    return polar(total) * np.linalg.norm(total, "nuc") / total.shape[1]


def iso_cts(deltas: list[Array], common: float) -> Array:
    """Iso-CTS of one matrix."""
    rank, tasks = min(deltas[0].shape), len(deltas)
    specific = round((rank - int(rank * common)) / tasks)
    shared = rank - specific * tasks
    u, s, v = (part[..., :shared] for part in by_eigenvalues(np.sum(deltas, axis=0)))
    us, ss, vs = [u], [s], [v]
    for delta in deltas:
        # The remainder has no full rank, so its first triples alone are taken, and u from A v = s
        # u.
        rest = (np.eye(len(u)) - u @ u.T) @ delta
        values, vectors = np.linalg.eigh(rest.T @ rest)
        right = vectors[:, ::-1][:, :specific]
        sizes = np.sqrt(values[::-1][:specific])
        us.append(rest @ right / sizes)
        ss.append(sizes)
        vs.append(right)
    factor = polar(np.hstack(us)) @ polar(np.hstack(vs)).T
    return factor * math.fsum(np.concatenate(ss)) / rank


def merged(base: State, finetuned: list[State], matrix_rule, scale: float = 1.0) -> State:
    """The model with ``matrix_rule`` on matrices and the mean on the rest."""
    result = {}
    for name, start in base.items():
        deltas = [other[name] - start for other in finetuned]
        if start.ndim == 2 and start.size and "text_projection" not in name:
            result[name] = start + scale * matrix_rule(deltas)
        else:
            result[name] = start + scale * np.mean(deltas, axis=0)
    return result


def fisher(finetuned: list[State], scores: list[State], floor: float, normalize: bool) -> State:
    """The weighted mean of the models themselves, entry by entry."""
    shares = [1.0] * len(finetuned)
    if normalize:
        shares = [
            1 / math.hypot(*(float(entry) for score in state.values() for entry in score.flat))
            for state in scores
        ]
    return {
        name: np.average(
            np.stack([other[name] for other in finetuned]),
            axis=0,
            weights=np.stack(
                [share * (state[name] + floor) for share, state in zip(shares, scores, strict=True)]
            ),
        )
        if finetuned[0][name].size
        else finetuned[0][name]
        for name in finetuned[0]
    }


def regmean(weights: list[Array], inputs: list[Array], ratio: float) -> Array:
    """The weight ``[out, in]`` nearest to every model on its inputs ``[rows, in]``.

    A ratio below 1 is (1 - ratio) of every input's squared length on the diagonal: as many more
    rows, one for each input.
    """
    rows, answers = [], []
    for weight, x in zip(weights, inputs, strict=True):
        alone = math.sqrt(1 - ratio) * np.diag(np.linalg.norm(x, axis=0))
        both = np.vstack([math.sqrt(ratio) * x, alone])
        rows.append(both)
        answers.append(both @ weight.T)
    found = np.linalg.lstsq(np.vstack(rows), np.vstack(answers), rcond=None)
    return found[0].T


def spared(delta: Array, target: Array, control: Array, mu: float) -> Array:
    """What is taken out of a layer ``[out, in]``, by least squares over inputs ``[rows, in]``.

    What stays in of ``delta`` is nothing to the target's inputs and all of it to the control's.
    """
    of_target, of_control = (x / math.sqrt((x**2).sum() / x.shape[1]) for x in (target, control))
    rows = np.vstack([of_target, math.sqrt(mu) * of_control])
    answers = np.vstack([0 * of_target, math.sqrt(mu) * of_control]) @ delta.T
    return delta - np.linalg.lstsq(rows, answers, rcond=None)[0].T


def negmerge(start: State, base: State, finetuned: list[State], scale: float) -> State:
    """Entry by entry."""
    result = {}
    for name, old in start.items():
        new = old.copy()
        for at in np.ndindex(old.shape):
            moves = [float(other[name][at] - base[name][at]) for other in finetuned]
            if all(move > 0 for move in moves) or all(move < 0 for move in moves):
                new[at] -= scale * math.fsum(moves) / len(moves)
        result[name] = new
    return result
