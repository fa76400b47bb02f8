"""Position embeddings at another resolution, against open_clip's and timm's own functions."""

from __future__ import annotations

from types import SimpleNamespace

import open_clip
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from sta_lightning.arithmetic.sources import MemoryTensor, whole
from sta_lightning.errors import StaError
from sta_lightning.weights.positions import Resampled


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def resampled(found: Tensor, *shape: int) -> Tensor:
    return whole(Resampled(MemoryTensor(found), MemoryTensor(torch.empty(shape))))


@pytest.mark.parametrize(("old", "new"), [(24, 14), (7, 14), (3, 2)])
def test_as_open_clip_has_it(old: int, new: int) -> None:
    found = drawn(1 + old * old, 8)
    state = {"visual.positional_embedding": found}
    clip = SimpleNamespace(visual=SimpleNamespace(grid_size=(new, new)))
    open_clip.model.resize_pos_embed(state, clip)
    assert torch.equal(resampled(found, 1 + new * new, 8), state["visual.positional_embedding"])


@pytest.mark.parametrize("front", [0, 1, 2, 5])
def test_as_timm_has_it(front: int) -> None:
    found = drawn(1, front + 36, 8)
    wanted = resample_abs_pos_embed(found, new_size=[4, 4], num_prefix_tokens=front)
    torch.testing.assert_close(resampled(found, 1, front + 16, 8), wanted, rtol=0, atol=1e-6)


def test_of_a_half_type_in_float32() -> None:
    found = drawn(10, 8).half()
    assert torch.equal(resampled(found, 17, 8), resampled(found.float(), 17, 8))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ((10, 8), (17, 6), "only the number of positions may differ"),
        ((1, 10, 8), (17, 8), "only the number of positions may differ"),
        ((78, 8), (51, 8), "make no square"),
    ],
)
def test_others_are_refused(old: tuple[int, ...], new: tuple[int, ...], said: str) -> None:
    with pytest.raises(StaError, match=said):
        resampled(drawn(*old), *new)
