"""A merged model as an adapter, loaded by peft itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sta_lightning.errors import StaError
from sta_lightning.weights.formats.lora import write_adapter
from tests.weights.formats.test_adapter import bert, gpt2, opened

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def moved(model: nn.Module, folder: Path, rank: int | None) -> tuple[Path, Path, nn.Module]:
    """A base and a model whose matrices changed by no more than a rank, on disk."""
    model.save_pretrained(folder / "base")
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        change = torch.randn(parameter.shape, generator=generator) * 0.1
        if rank is not None and parameter.dim() == 2 and "embed" not in name:
            left = torch.randn(len(parameter), rank, generator=generator)
            change = left @ torch.randn(rank, parameter.shape[1], generator=generator) * 0.1
        parameter.data += change
    tuned.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned", tuned


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_peft_loads_the_model_back(make: type[nn.Module], tmp_path: Path) -> None:
    model = make()
    base, tuned, moved_model = moved(model, tmp_path, rank=3)
    said = write_adapter(tuned, base, tmp_path / "adapter", rank=3)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    wanted = moved_model.state_dict()
    # The embeddings are the last layer's weights too: peft would change the one without the other.
    tied = {"transformer.wte.weight"} if make is gpt2 else set()
    assert set(said.lost) == tied
    assert (said.total == pytest.approx(1, abs=1e-6)) == (not tied)
    for name in {"lm_head.weight", *tied} & set(wanted):
        wanted[name] = _state(base)[name.replace("lm_head", "transformer.wte")]
    close(wanted, loaded.state_dict())
    # What is read back by this package is the same again.
    close(opened(base, tmp_path / "adapter"), wanted)


def test_what_a_rank_keeps_is_told(tmp_path: Path) -> None:
    base, tuned, wanted = moved(bert(), tmp_path, rank=None)
    said = write_adapter(tuned, base, tmp_path / "adapter", rank=2)
    before, found = bert(), opened(base, tmp_path / "adapter")
    before.load_state_dict({**before.state_dict(), **_state(base)})
    layer = "bert.encoder.layer.0.attention.self.query"
    change = wanted.state_dict()[f"{layer}.weight"] - before.state_dict()[f"{layer}.weight"]
    rest = wanted.state_dict()[f"{layer}.weight"] - found[f"{layer}.weight"]
    share = 1 - float(rest.square().sum() / change.square().sum())
    assert said.kept[layer] == pytest.approx(share, abs=1e-5)
    assert 0 < share < 1
    values = torch.linalg.svdvals(change.double()).square()
    assert said.kept[layer] == pytest.approx(float(values[:2].sum() / values.sum()), abs=1e-5)


def test_convolutions_and_what_has_no_place(tmp_path: Path) -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 8, 3), nn.Flatten())
            self.scale = nn.Parameter(torch.ones(()))

    model, tuned = Net(), Net()
    torch.save(model.state_dict(), tmp_path / "base.pt")
    torch.save(tuned.state_dict() | {"scale": torch.tensor(2.0)}, tmp_path / "tuned.pt")
    said = write_adapter(tmp_path / "tuned.pt", tmp_path / "base.pt", tmp_path / "adapter", rank=8)
    assert said.lost == ("scale",)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    close({"0.weight": tuned[0].weight, "0.bias": tuned[0].bias}, loaded.state_dict())


def test_a_model_that_is_its_base(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    with pytest.raises(StaError, match="no change to write"):
        write_adapter(tmp_path / "base", tmp_path / "base", tmp_path / "adapter", rank=2)
    assert not (tmp_path / "adapter").exists()


def test_a_rank_of_zero(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="rank 0 was asked for"):
        write_adapter(tmp_path, tmp_path, tmp_path / "adapter", rank=0)


def _state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
