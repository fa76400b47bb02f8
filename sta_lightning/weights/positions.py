"""Position embeddings of an image encoder at another resolution."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from sta_lightning.arithmetic.sources import MemoryTensor, TensorSource, whole
from sta_lightning.errors import StaError

POSITIONS = ("positional_embedding", "pos_embed")
"""What open_clip and timm call them; Hugging Face's are read under open_clip's name."""

_MOST = 16  # tokens in front of the patches that any model has: class, distillation, registers


class Resampled(MemoryTensor):
    """Position embeddings resampled to the grid of others, bicubic with antialiasing.

    The tokens in front of the patches (class, distillation, registers) keep theirs, as in
    open_clip's ``resize_pos_embed`` and timm's ``resample_abs_pos_embed``. In memory, in float32.

    Args:
        positions: ``[k + h², D]`` or ``[1, k + h², D]``.
        like: ``[k + g², D]`` or ``[1, k + g², D]``, of which the shape alone is read.

    Attributes:
        said: the two grids, in words.

    Raises:
        StaError: the two are not of square grids behind equally many tokens, or of another width.
    """

    def __init__(self, positions: TensorSource, like: TensorSource) -> None:
        found, wanted = list(positions.shape), list(like.shape)
        shapes = f"{tuple(found)} cannot be resampled to {tuple(wanted)}"
        if len(found) not in (2, 3) or [*found[:-2], found[-1]] != [*wanted[:-2], wanted[-1]]:
            raise StaError(f"{shapes}: only the number of positions may differ.")
        counts = found[-2], wanted[-2]
        front = next((k for k in range(_MOST) if all(_is_square(count - k) for count in counts)), None)
        if front is None:
            raise StaError(f"{shapes}: the patches of one of the two make no square.")
        old, new = (math.isqrt(count - front) for count in counts)
        values = whole(positions, torch.float32).reshape(counts[0], found[-1])
        grid = values[front:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
        patches = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
        super().__init__(torch.cat([values[:front], patches]).reshape(wanted))
        self.said = f"{old}×{old} to {new}×{new}"


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
