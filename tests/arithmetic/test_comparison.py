"""Task vectors in numbers, against NumPy; and which model is a stranger to its base."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic.comparison import LEAST_COSINE, Comparison, compare
from sta_lightning.arithmetic.normalization import block_of
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.sources import MemoryTensor, in_memory
from sta_lightning.arithmetic.states import piece_size
from sta_lightning.errors import StaError

State = dict[str, Tensor]
# More than one piece of a tall and of a wide matrix (a piece has 131072 entries), and one of none.
SHAPES = {
    "embed.weight": (700, 300),
    "layers.0.weight": (30, 5000),
    "layers.0.bias": (30,),
    "layers.1.conv": (4, 3, 2, 2),
    "layers.1.none": (0, 3),
    "gain": (),
}


def drawn(seed: int, scale: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def moved(base: State, seed: int, scale: float) -> State:
    step = drawn(seed, scale)
    return {name: tensor + step[name] for name, tensor in base.items()}


def compared(base: State, models: dict[str, State]) -> Comparison:
    return compare(Problem(in_memory(base), {name: in_memory(model) for name, model in models.items()}))


def flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in SHAPES])


def test_every_number_is_numpys() -> None:
    base = drawn(0)
    models = {"z": moved(base, 1, 0.1), "a": moved(base, 2, 0.02)}
    models["z"]["layers.0.bias"] = base["layers.0.bias"].clone()
    models["a"]["embed.weight"] = base["embed.weight"] + torch.outer(torch.randn(700), torch.randn(300))
    buffers = {"steps": torch.tensor(3), "bn.running_mean": torch.zeros(2)}
    found = compared(base | buffers, {name: model | buffers for name, model in models.items()})
    assert found.tensors == len(SHAPES)
    assert list(found.models) == ["z", "a"]
    before = flat(base)
    deltas = {name: flat(model) - before for name, model in models.items()}
    for one, delta in deltas.items():
        got = found.models[one]
        assert got.norm == pytest.approx(np.linalg.norm(delta), rel=1e-9)
        assert got.relative == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(before), rel=1e-9)
        assert got.changed == pytest.approx((delta != 0).mean(), abs=1e-12)
        for two, other in deltas.items():
            cosine = delta @ other / np.linalg.norm(delta) / np.linalg.norm(other)
            assert found.cosine[one][two] == pytest.approx(cosine, abs=1e-9)
            both = delta * other != 0
            assert found.conflict[one][two] == pytest.approx(
                (delta * other < 0).sum() / both.sum(), abs=1e-12
            )
    assert found.models["z"].equal == ("layers.0.bias", "layers.1.none")
    assert found.models["a"].equal == ("layers.1.none",)


def test_ranks_cosines_and_blocks_are_numpys() -> None:
    base = drawn(0)
    models = {"a": moved(base, 1, 0.1), "b": moved(base, 2, 0.1)}
    models["b"]["embed.weight"] = base["embed.weight"] + torch.outer(torch.randn(700), torch.randn(300))
    models["b"]["layers.1.conv"] = base["layers.1.conv"].clone()
    matrices = ["embed.weight", "layers.0.weight", "layers.1.conv"]
    found = compared(base, models)
    for name, model in models.items():
        got = found.models[name]
        assert list(got.ranks) == matrices
        cosines = []
        for matrix in matrices:
            before, after = (state[matrix].double().numpy() for state in (base, model))
            energy = np.linalg.svd((after - before).reshape(len(before), -1), compute_uv=False) ** 2
            wanted = energy.sum() ** 2 / (energy**2).sum() if energy.any() else 0.0
            assert got.ranks[matrix] == pytest.approx(wanted, rel=1e-4)
            product = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
            cosines.append(product)
        assert got.cosine == pytest.approx(median(cosines), rel=1e-9)
        assert got.rank == pytest.approx(median(rank for rank in got.ranks.values() if rank))
        for block in {block_of(name) for name in SHAPES}:
            names = [name for name in SHAPES if block_of(name) == block]
            before = np.concatenate([base[n].double().numpy().ravel() for n in names])
            delta = np.concatenate([model[n].double().numpy().ravel() for n in names]) - before
            assert got.blocks[block]["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-9)
            share = np.linalg.norm(delta) / np.linalg.norm(before)
            assert got.blocks[block]["relative"] == pytest.approx(share, rel=1e-9)
    assert found.models["b"].ranks["embed.weight"] == pytest.approx(1.0, rel=1e-4)
    without = compare(Problem(in_memory(base), {"a": in_memory(models["a"])}), ranks=False).models["a"]
    assert (without.ranks, without.rank) == ({}, None)
    assert without.cosine == pytest.approx(found.models["a"].cosine, rel=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(40, 12), (12, 40)])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_equal_singular_values_are_counted(rows: int, columns: int, rank: int) -> None:
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(rows, rank))[0], torch.linalg.qr(torch.randn(columns, rank))[0]
    base = torch.zeros(rows, columns)
    found = compare(Problem(in_memory({"w": base}), {"a": in_memory({"w": 1e-15 * u @ v.T})}))
    assert found.models["a"].rank == pytest.approx(rank, rel=1e-5)
    assert (found.models["a"].relative, found.models["a"].cosine) == (None, None)


def test_a_copy_in_a_narrower_type_is_equal() -> None:
    base = drawn(0)
    found = compared(base, {"half": {name: tensor.half() for name, tensor in base.items()}, "same": base})
    assert len(found.models["half"].equal) == len(found.models["same"].equal) == len(SHAPES)
    assert (found.models["same"].norm, found.models["same"].changed, found.models["same"].rank) == (
        0,
        0,
        None,
    )
    assert found.cosine["half"]["same"] == found.conflict["half"]["same"] == 0
    assert found.models["half"].norm > 0


def test_weights_of_another_origin_are_strangers() -> None:
    base, other = drawn(0), drawn(9)
    # Gains resemble each other in all models, and may outweigh everything.
    base["layers.0.bias"] = other["layers.0.bias"] = torch.full((30,), 100.0)
    found = compared(
        base, {"a": moved(base, 1, 0.05), "b": moved(base, 2, 0.8), "other": moved(other, 3, 0.05)}
    )
    assert list(found.strangers) == ["other"]
    assert f"below {LEAST_COSINE}" in found.strangers["other"]
    assert compared(base, {"other": other}).strangers.keys() == {"other"}


def test_a_vector_far_longer_than_the_others_is_a_strangers() -> None:
    base = drawn(0)
    near = {name: moved(base, seed, 0.02) for seed, name in enumerate("abc", 1)}
    found = compared(base, {**near, "far": moved(base, 7, 0.4)}).strangers
    assert list(found) == ["far"]
    assert "times the median of the others" in found["far"]
    # Long trainings beside short ones, and adapters beside whole trainings, are not.
    assert not compared(base, {**near, "long": moved(base, 7, 0.15)}).strangers
    assert not compared(base, {"a": moved(base, 1, 0.01), "b": moved(base, 2, 0.2), "c": base}).strangers
    # Of two, none is the odd one.
    assert not compared(base, {"a": near["a"], "far": moved(base, 7, 0.4)}).strangers


def test_models_that_do_not_match_or_are_not_finite_are_refused() -> None:
    base = drawn(0)
    with pytest.raises(StaError, match="fine-tuned on 'a' does not match"):
        compared(base, {"a": {**base, "more": torch.zeros(1)}})
    with pytest.raises(StaError, match="fine-tuned on 'a' holds NaN or Inf in tensor 'gain'"):
        compared(base, {"a": {**base, "gain": torch.tensor(float("nan"))}})


class Spied(MemoryTensor):
    """Remembers how much of it is read at once."""

    most = 0

    def read(self, piece: slice, dtype: torch.dtype) -> Tensor:
        Spied.most = max(Spied.most, piece.stop - piece.start)
        return super().read(piece, dtype)


def test_it_is_read_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spied, "most", 0)
    base = {"w": torch.zeros(3000, 100)}
    sources = [{name: Spied(tensor + number) for name, tensor in base.items()} for number in range(3)]
    compare(Problem(sources[0], {"a": sources[1], "b": sources[2]}))
    assert 0 < Spied.most <= piece_size(torch.device("cpu"))
