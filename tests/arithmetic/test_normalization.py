"""Min-max normalisation (Eq. 13) and its groups."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.arithmetic import NORMALIZATIONS, normalize
from sta_lightning.arithmetic.normalization import block_of
from sta_lightning.errors import StaError
from tests.oracles import sta as oracle


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20))
def test_per_tensor_it_is_the_oracle_bit_for_bit(values: list[float]) -> None:
    importance = torch.tensor(values, dtype=torch.float32)
    assert np.array_equal(normalize({"w": importance})["w"].numpy(), oracle.normalised(importance.numpy()))


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_it_never_leaves_the_unit_interval(values: list[float]) -> None:
    result = normalize({"w": torch.tensor(values, dtype=torch.float64)})["w"]
    assert bool(((result >= 0) & (result <= 1)).all())


@pytest.mark.parametrize("mode", ["tensor", "block", "model"])
def test_constant_scalar_and_empty_tensors_become_zero_not_nan(mode: str) -> None:
    for value in (torch.tensor(5.0), torch.full((2, 3), 7.0), torch.zeros(4), torch.zeros(0, 3)):
        result = normalize({"w": value}, mode)["w"]
        assert result.shape == value.shape
        assert torch.equal(result, torch.zeros_like(result))


def test_the_groups_share_minimum_and_maximum() -> None:
    importance = {
        "blocks.0.a": torch.tensor([0.0, 4.0]),
        "blocks.0.b": torch.tensor([1.0, 2.0]),
        "blocks.1.a": torch.tensor([6.0, 8.0]),
        "empty": torch.zeros(0),
    }
    block = normalize(importance, "block")
    assert block["blocks.0.b"].tolist() == [0.25, 0.5]
    assert block["blocks.1.a"].tolist() == [0.0, 1.0]
    assert normalize(importance, "model")["blocks.1.a"].tolist() == [0.75, 1.0]
    assert normalize(importance, "none")["blocks.0.b"].tolist() == [1.0, 2.0]
    assert all(set(normalize(importance, mode)) == set(importance) for mode in NORMALIZATIONS)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer.resblocks.11.attn.in_proj_weight", "transformer.resblocks.11"),
        ("blocks.3.norm1.bias", "blocks.3"),
        ("stages.1.blocks.0.mlp.weight", "stages.1"),
        ("ln_post.weight", "ln_post"),
        ("patch_embed.proj.weight", "patch_embed.proj"),
        ("class_embedding", "class_embedding"),
    ],
)
def test_block_names(name: str, block: str) -> None:
    assert block_of(name) == block


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StaError, match=r"normalize='layer' was asked for.*'tensor'.*'none'"):
        normalize({"w": torch.ones(2)}, "layer")


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(StaError, match="NaN or Inf in 1 tensor: 'dead'"):
        normalize({"w": torch.ones(2), "dead": torch.tensor([1.0, float("nan")])})


def test_the_input_is_not_changed() -> None:
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for mode in NORMALIZATIONS:
        normalize({"w": values}, mode)["w"].add_(1)
    assert values.tolist() == [1.0, 2.0]
