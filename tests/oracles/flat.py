"""The methods over one flat vector, as they are written: concatenate, sort, index.

NumPy float64. Task vectors are ``[N, d]``: one row a task in the order of the sorted names, all
floating-point tensors of a model one after another.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
State = dict[str, Tensor]

SHAPES = {
    "conv1.weight": (3, 2, 2, 2),
    "class_embedding": (5,),
    "blocks.0.w": (4, 6),
    "blocks.0.b": (6,),
    "blocks.1.w": (4, 6),
    "blocks.1.scale": (),
    "blocks.2.w": (3, 4),
    "empty": (0, 3),
    "head.weight": (2, 7),
}


def models(
    tasks: int, seed: int = 0, dtype: torch.dtype = torch.float32, *, spread: float = 0.05, steps: int = 0
) -> tuple[State, dict[str, State]]:
    """A pretrained model of mixed shapes and models fine-tuned from it, with an integer buffer.

    Args:
        tasks: how many.
        seed: of all that is drawn.
        dtype: type of the weights.
        spread: size of a task vector's entries.
        steps: draw task vectors from so many multiples of ``spread`` either side of zero, so that
            entries tie and some are zero; 0 for a normal distribution. The pretrained model is then
            a multiple too, and differences are exact.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        if steps:
            return torch.randint(-steps, steps + 1, shape, generator=generator).double()
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = {name: drawn(shape) * (spread if steps else 1.0) for name, shape in SHAPES.items()}
    finetuned = {
        f"task{i:02}": {
            name: (value + spread * drawn(SHAPES[name])).to(dtype) for name, value in base.items()
        }
        for i in range(tasks)
    }
    pretrained = {name: value.to(dtype) for name, value in base.items()}
    for model in (pretrained, *finetuned.values()):
        model["steps"] = torch.tensor(7)
    return pretrained, finetuned


def names(state: State) -> list[str]:
    """The floating-point tensors."""
    return [name for name, value in state.items() if value.is_floating_point()]


def flat(state: State) -> Array:
    """A model as one vector."""
    return np.concatenate([state[name].double().numpy().reshape(-1) for name in names(state)])


def vectors(pretrained: State, finetuned: dict[str, State]) -> Array:
    """The task vectors; the subtraction is the one that float32 or float64 models have."""
    return np.stack(
        [
            flat({name: finetuned[task][name] - pretrained[name] for name in names(pretrained)})
            for task in sorted(finetuned)
        ]
    )


def per_entry(state: State, value_of: dict[str, float]) -> Array:
    """A number for every tensor, repeated for its entries."""
    return np.concatenate(
        [np.full(state[name].numel(), value_of[name], dtype=float) for name in names(state)]
    )


def trimmed(taus: Array, keep: float) -> Array:
    """TIES: of each row, the entries not below the k-th smallest in magnitude."""
    d = taus.shape[1]
    k = d - int(d * keep)
    result = np.zeros_like(taus)
    for row, out in zip(taus, result, strict=True):
        floor = np.sort(np.abs(row))[k - 1] if k else 0.0
        out[np.abs(row) >= floor] = row[np.abs(row) >= floor]
    return result


def ties_vectors(taus: Array, keep: float) -> Array:
    """TIES: of each row, what is left after trimming and the election."""
    kept = trimmed(taus, keep)
    sums = [math.fsum(column) for column in kept.T]  # without rounding
    signs = np.array([(total > 0) - (total < 0) for total in sums])
    signs[signs == 0] = np.sign(signs.sum())
    return np.where(np.sign(kept) == signs, kept, 0.0)


def ties(taus: Array, keep: float, merge: str) -> Array:
    """TIES: the merged task vector."""
    merged = []
    for column in ties_vectors(taus, keep).T:
        agreeing = [value for value in column if value != 0]
        total = math.fsum(agreeing)
        merged.append(total / len(agreeing) if agreeing and merge == "mean" else total)
    return np.array(merged)


def _clamped(values: Array, low: int, high: int) -> Array:
    ordered = np.sort(values)
    return np.minimum(np.maximum(values, ordered[low]), ordered[high])


def _unit(values: Array) -> Array:
    span = values.max() - values.min()
    return np.zeros_like(values) if span == 0 else (values - values.min()) / span


def pcb(taus: Array, ratio: float, variant: str, clamp: float | None = None) -> Array:
    """PCB-Merging: the merged task vector, times its scale."""
    n, d = taus.shape
    share = {"vision": 0.01, "general": 0.0001}[variant] if clamp is None else clamp
    sizes = np.stack([_clamped(np.abs(row), int(d * share), int(d * (1 - share) - 1)) for row in taus])
    norms = np.stack([_unit(row) for row in sizes])
    signed = np.sign(taus)
    rivals = (signed * norms).sum(0) if variant == "vision" else taus.sum(0)
    balance = np.exp(n * norms**2) * np.tanh(taus * rivals)
    kept = np.stack([_clamped(row, min(int(d * (1 - ratio)), d - 1), d - 1) for row in balance])
    least = kept.min(1, keepdims=True)
    # What differs from the least by rounding errors is the least.
    kept = np.where(kept - least <= 1e-12 * np.abs(kept).max(1, keepdims=True), least, kept)
    scores = np.stack([_unit(row) for row in kept])
    weights = np.maximum(scores.sum(0), 1e-12)
    return (signed * sizes * scores).sum(0) / weights


def consensus(taus: Array, tall: float | list[float], agree: int) -> Array:
    """Consensus merging: the merged task vector, times its scale."""
    each = tall if isinstance(tall, list) else [tall] * len(taus)
    total = np.array([math.fsum(column) for column in taus.T])
    masks = [np.abs(row) > np.abs(total - row) * own for row, own in zip(taus, each, strict=True)]
    return total * (np.sum(masks, axis=0) >= agree)


def lines(taus: Array, inner: Array, depth: Array, beta: float) -> Array:
    """LiNeS: ``inner`` is the other method's vector, ``depth`` l / (L - 1) of every entry."""
    size = np.abs(inner).sum()
    alpha = np.abs(taus.sum(0)).sum() / size / len(taus) if size else 0.0
    return (alpha + beta * depth) * inner
