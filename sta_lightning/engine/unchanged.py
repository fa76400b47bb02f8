"""What brings nothing to a merge, and a merge that changes nothing: noticed, and told."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import Kept, Sink
from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.errors import StaWarning, listed

_HEAD, _PIECE = 1 << 12, 1 << 22  # entries


def equal(first: SourceDict, second: SourceDict) -> bool:
    """Whether all entries are the same, rounded to the narrower of the two types.

    ``second`` has the names of ``first``. The beginning of every tensor is looked at first: nearly
    all models that differ do so there.
    """

    def agree(name: str, start: int, stop: int) -> bool:
        one, other = first[name], second[name]
        narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        piece = slice(start, min(stop, one.shape.numel()))
        return torch.equal(one.read(piece, narrow), other.read(piece, narrow).to(one.device))

    if any(source.shape != second[name].shape for name, source in first.items()):
        return False
    return all(agree(name, 0, _HEAD) for name in first) and all(
        agree(name, start, start + _PIECE)
        for name, source in first.items()
        for start in range(_HEAD, source.shape.numel(), _PIECE)
    )


class Watched:
    """A sink that notices whether what is written differs from the model that is changed.

    Up to the first difference entries are compared as they come; from then on it hands on.

    Attributes:
        changed: whether one has differed.
    """

    def __init__(self, sink: Sink, base: SourceDict) -> None:
        self._sink, self._base, self.changed = sink, base, False

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is kept."""
        return self._sink.dtype(name)

    def address(self, name: str) -> int | None:
        """Where a tensor's entries belong, once they need not be looked at."""
        return self._sink.address(name) if self.changed else None

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Keep some entries."""
        if not self.changed:
            own = self._base[name].read(slice(start, start + values.numel()), values.dtype)
            self.changed = not torch.equal(own.to(values.device), values)
        self._sink.write(name, start, values)


def tell(problem: Problem, kept: Kept, *, changed: bool) -> None:
    """Warn of a result that is the model it was made of, and of masks that keep nothing."""
    masked = {name: shares for name, shares in kept.items() if problem.base[name].shape.numel() > 1}
    empty = [name for name, shares in masked.items() if not any(shares.values())]
    idle = [task for task in problem.tasks if not any(shares.get(task) for shares in masked.values())]
    why = "Importances that are equal throughout a tensor have this effect."
    if not changed:
        what = f"Nothing is changed: the result is {problem.base_title}."
        if masked and len(empty) == len(masked):
            what = f"{what} The masks keep nothing."
        else:
            why = "A coefficient of 0 has this effect, and fine-tuned models that are the pretrained one."
    elif masked and idle:
        what = f"The masks keep nothing of {listed(idle)}: the result is as if it were not there."
    elif empty:
        what = (
            f"The masks keep nothing of any task in {len(empty)} of {len(masked)} tensors, {listed(empty)}."
        )
    else:
        return
    warnings.warn(f"{what} {why}", StaWarning, stacklevel=2)


def tell_equal(titles: list[str]) -> None:
    """Warn of fine-tuned models that are the pretrained one; ``titles`` is what to call them."""
    for title in titles:
        warnings.warn(
            f"{title} is the pretrained model, entry for entry: it brings nothing to the merge. Check that it is the right file.",
            StaWarning,
            stacklevel=2,
        )
