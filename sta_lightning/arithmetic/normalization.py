"""Min-max normalisation of importances (Eq. 13), per tensor or over a wider group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_state
from sta_lightning.arithmetic.states import StateDict, bounds, to_double
from sta_lightning.ranges import Words

Normalization = Literal["tensor", "block", "model", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest importance of the group that a tensor is normalised in.

    Attributes:
        low: the minimum, which goes to 0.
        high: the maximum, which goes to 1.
        identity: leave the values as they are (``normalize="none"``).
    """

    low: float
    high: float
    identity: bool = False

    def apply(self, importance: Tensor) -> Tensor:
        """Eq. 13 on some entries of the group: the same shape, in [0, 1]; zeros where low is high.

        In float64, which keeps apart what was apart and, for float32 importances, makes equal what
        is equal: rounding decides no tie.
        """
        values = to_double(importance)
        if self.identity:
            return values
        if self.low == self.high:
            return torch.zeros_like(values)
        span = self.high - self.low
        if math.isinf(span):  # float64 values of both signs near the end of the range
            return (values / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return (values - self.low) / span


IDENTITY = Bounds(0.0, 1.0, identity=True)
"""Values are left as they are."""


def block_of(name: str) -> str:
    """The block that a tensor belongs to, by its name.

    Everything up to the first number (``transformer.resblocks.3``, ``blocks.3``); without a number,
    the module that holds the tensor (``ln_post``), or the tensor itself at the top level
    (``class_embedding``).
    """
    parts = name.split(".")
    end = next((position + 1 for position, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[:end]) or name


def grouped(ranges: Mapping[str, tuple[float, float]], mode: str) -> dict[str, Bounds]:
    """The bounds of each tensor's group, from those of every tensor (that is not empty).

    ``mode`` is ``"tensor"``, ``"block"`` or ``"model"``, see :func:`normalize`.
    """
    groups = {
        name: name if mode == "tensor" else block_of(name) if mode == "block" else "" for name in ranges
    }
    wide: dict[str, Bounds] = {}
    for name, (low, high) in ranges.items():
        other = wide.get(groups[name], Bounds(low, high))
        wide[groups[name]] = Bounds(min(low, other.low), max(high, other.high))
    return {name: wide[group] for name, group in groups.items()}


def normalize(importance: StateDict, mode: str = "tensor") -> dict[str, Tensor]:
    """Normalise one task's importance to [0, 1] by minimum and maximum (Eq. 13).

    Args:
        importance: tensor name -> importance of any shape and real type.
        mode: ``"tensor"`` takes minimum and maximum over the tensor itself (a layer of the paper),
            ``"block"`` over all tensors of :func:`block_of`, ``"model"`` over all tensors,
            ``"none"`` leaves the values alone.

    Returns:
        New float64 tensors of the same names and shapes. Where maximum and minimum are equal (a
        scalar, a dead tensor) every entry is 0, never NaN.

    Raises:
        StaError: if ``mode`` is unknown or an importance is not finite.

    Example:
        >>> normalize({"w": torch.tensor([1.0, 3.0, 2.0])})["w"].tolist()
        [0.0, 1.0, 0.5]
        >>> normalize({"scalar": torch.tensor(5.0)})["scalar"].item()
        0.0
    """
    Words(NORMALIZATIONS).check(mode, "normalize")
    check_state(importance, "the importance")
    if mode == "none":
        # Left alone, a float64 tensor would be the caller's own memory.
        return {name: IDENTITY.apply(tensor).clone() for name, tensor in importance.items()}
    found = grouped({name: bounds(tensor) for name, tensor in importance.items() if tensor.numel()}, mode)
    return {name: found.get(name, Bounds(0.0, 0.0)).apply(tensor) for name, tensor in importance.items()}
