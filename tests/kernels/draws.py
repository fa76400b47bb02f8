"""Importances of the kinds on which a quick form of the mask could differ from the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = (
    "uniform",
    "logarithmic",
    "few values",
    "mostly zero",
    "constant",
    "zero",
    "subnormal",
    "huge",
    "tiny",
    "far from zero",
    "grid",
    "neighbours",
)


def importances(kinds: list[str], size: int, seed: int) -> list[Tensor]:
    """One importance a kind, float32 ``[size]``, none negative.

    ``grid`` and ``neighbours`` are images of the same numbers under different affine maps: after
    min-max normalisation they differ by rounding alone.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 9, (size,), generator=generator).float() / 8
    ends = torch.tensor([0.0, 1.0])[: min(2, size)]
    steps[: len(ends)] = ends  # so that minimum and maximum are the same for all
    return [_draw(kind, size, steps, generator) for kind in kinds]


def _draw(kind: str, size: int, steps: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(size, generator=generator)
    scale = float(10 ** (6 * torch.rand((), generator=generator) - 3))
    match kind:
        case "uniform":
            return scale * uniform
        case "logarithmic":
            return (10 ** (12 * uniform.double() - 9)).float()
        case "few values":
            return scale * (4 * uniform).floor()
        case "mostly zero":
            return torch.where(uniform < 0.9, 0.0, uniform)
        case "constant":
            return torch.full((size,), scale)
        case "zero":
            return torch.zeros(size)
        case "subnormal":
            return (1000 * uniform).floor() * 1e-45
        case "huge":
            return 1e30 * uniform
        case "tiny":
            return 1e-30 * uniform
        case "far from zero":
            return 1e4 + uniform
        case "grid":
            return (scale * (0.1 + steps.double())).float()
        case "neighbours":
            moved = steps * torch.where(uniform < 0.5, 1.0, 1 + (uniform - 0.5) * 1e-6)
            return (scale * moved.double()).float()
    raise ValueError(kind)
