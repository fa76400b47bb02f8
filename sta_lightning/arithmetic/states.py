"""What the arithmetic shares: state dicts, accumulation types, the pieces of a large tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]
"""Tensor name -> tensor. Read one at a time, so that a mapping may load its tensors lazily."""

Statistics = Literal["pretrained", "average"]
"""What the running statistics of a merged model are: the pretrained model's, or the tasks' mean."""

# The working set of six tasks in float64 then stays near the cache of a core; measured.
_PIECE_ON_CPU = 1 << 17
_PIECE_ELSEWHERE = 1 << 24
# Where a method has a dozen temporaries in float64, it takes half the time in these; measured.
_CACHED_ON_CPU = 1 << 14
_FEW = 16  # models of which so many are; of more, to a fourth: no slower, and less memory
_MODELS = 25  # that are read in whole pieces: 13 MB of each thread; of more, to a 32nd


@dataclass(frozen=True, eq=False, repr=False)
class Merged(Mapping[str, Tensor]):
    """A merged model, a mapping from tensor names to tensors, and what the masks kept.

    Attributes:
        weights: the merged model; tensor name -> tensor.
        kept: tensor name -> task -> share of the task vector's entries kept, 0 to 1; empty for
            methods without a mask.
    """

    weights: dict[str, Tensor]
    kept: dict[str, dict[str, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tensors)"


def floating_names(state: StateDict) -> list[str]:
    """The names, in order, of the floating-point tensors."""
    return [name for name, tensor in state.items() if tensor.is_floating_point()]


def is_weight(name: str, dtype: torch.dtype) -> bool:
    """Whether a tensor takes part in a merge: a floating-point one that is no running statistic.

    ``running_mean`` and ``running_var`` are what PyTorch's normalisation layers call the statistics
    of their inputs. Extrapolated like weights a variance can become negative.
    """
    return dtype.is_floating_point and name.rpartition(".")[2] not in ("running_mean", "running_var")


def weight_names(state: StateDict) -> list[str]:
    """The names, in order, of the tensors that take part in a merge, see :func:`is_weight`."""
    return [name for name, tensor in state.items() if is_weight(name, tensor.dtype)]


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The type in which entries are added up: float64 if one of the types is so, else float32.

    float16 and bfloat16 hold too few digits to sum task vectors that are a hundredth of the
    weights; float64 is kept because rounding a float64 model to float32 would change it even where
    no task changes it.
    """
    return torch.float64 if torch.float64 in dtypes else torch.float32


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """:func:`wide_dtype` of some tensors."""
    return wide_dtype(*(tensor.dtype for tensor in tensors))


def piece_size(device: torch.device, models: int = 1) -> int:
    """How many entries of a tensor are worked on at once; fewer of many models, for the memory."""
    whole = _PIECE_ON_CPU if device.type == "cpu" else _PIECE_ELSEWHERE
    return whole >> min(5, max(0, math.ceil(math.log2(models / _MODELS))))


def cached_size(device: torch.device, models: int = 1) -> int:
    """How many entries of several models eager operations take at once."""
    if device.type != "cpu":
        return _PIECE_ELSEWHERE
    return max(1, _CACHED_ON_CPU >> min(2, max(0, math.ceil(math.log2(models / _FEW)))))


def slices(numel: int, step: int) -> Iterator[slice]:
    """Consecutive slices of so many entries that cover a flattened tensor; the last may be less."""
    for start in range(0, numel, step):
        yield slice(start, min(start + step, numel))


def pieces(tensor: Tensor) -> Iterator[slice]:
    """:func:`slices` of a tensor, so that temporaries stay small."""
    return slices(tensor.numel(), piece_size(tensor.device))


def bounds(tensor: Tensor) -> tuple[float, float]:
    """Smallest and largest entry; NaN if the tensor holds one, (0, 0) if it is empty."""
    low, high = torch.stack(_ends(tensor)).tolist() if tensor.numel() else (0.0, 0.0)
    return float(low), float(high)


def is_finite(*tensors: Tensor) -> bool:
    """Whether no entry of tensors on one device is NaN or infinite; one pass without temporaries.

    A GPU is waited for once, however many there are.
    """
    ends = [end for tensor in tensors if tensor.numel() for end in _ends(tensor)]
    return not ends or all(map(math.isfinite, torch.stack(ends).tolist()))


def _ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)  # torch has no minimum for the float8 types
    return torch.aminmax(tensor.detach())


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from pinned memory to a GPU: nobody waits for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def nonfinite_names(state: StateDict) -> list[str]:
    """The names, in order, of the floating-point tensors that hold NaN or Inf."""
    return [name for name in floating_names(state) if not is_finite(state[name])]


def to_double(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its own device (MPS) has no float64."""
    values = tensor.detach()
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)
