"""RegMean++ against NumPy in float64, a block after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sta_lightning.arithmetic import merge
from sta_lightning.arithmetic.baselines.regmean_plus_plus import merged_input_grams
from sta_lightning.errors import StaError

RATIO = 0.8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(self.embed(x))
        return found


def drawn() -> tuple[Net, dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    net = Net()
    state = {name: 0.5 * torch.randn(t.shape, generator=draw) for name, t in net.state_dict().items()}
    net.load_state_dict(state)
    finetuned = {
        task: {name: t + 0.3 * torch.randn(t.shape, generator=draw) for name, t in state.items()}
        for task in ("a", "b", "c")
    }
    # As many rows for every task: a mean of rows is what a sum of them is.
    images = {task: torch.randn(40, 5, generator=draw) for task in finetuned}
    return net, finetuned, images


def test_every_block_meets_what_the_merged_ones_below_put_out() -> None:
    net, finetuned, images = drawn()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    grams = merged_input_grams(net, finetuned, images, ratio=RATIO)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    found = merge("regmean", before, finetuned, grams=grams, settings={"ratio": RATIO}).weights

    models = {task: {n: t.double().numpy() for n, t in model.items()} for task, model in finetuned.items()}
    expected = {name: np.mean([model[name] for model in models.values()], axis=0) for name in before}
    inputs = {
        task: batch.double().numpy() @ expected["embed.weight"].T + expected["embed.bias"]
        for task, batch in images.items()
    }

    def solved(name: str, rows: dict[str, np.ndarray]) -> np.ndarray:
        each = {task: x.T @ x / len(x) for task, x in rows.items()}
        each = {task: RATIO * g + (1 - RATIO) * np.diag(np.diag(g)) for task, g in each.items()}
        weighted = sum(models[task][name] @ gram for task, gram in each.items())
        return np.asarray(weighted @ np.linalg.inv(sum(each.values())))

    for number in range(3):
        up, down = f"blocks.{number}.up", f"blocks.{number}.down"
        hidden = {
            task: np.maximum(x @ models[task][f"{up}.weight"].T + models[task][f"{up}.bias"], 0)
            for task, x in inputs.items()
        }
        expected[f"{up}.weight"] = solved(f"{up}.weight", inputs)
        expected[f"{down}.weight"] = solved(f"{down}.weight", hidden)
        for task, x in inputs.items():
            put_out = np.maximum(x @ expected[f"{up}.weight"].T + expected[f"{up}.bias"], 0)
            inputs[task] = x + put_out @ expected[f"{down}.weight"].T + expected[f"{down}.bias"]

    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # The fine-tuned models' own inputs give another merge.
    plain = merge("regmean", before, finetuned, grams=_own_grams(net, finetuned, images)).weights
    assert not np.allclose(plain["blocks.2.up.weight"].numpy(), expected["blocks.2.up.weight"], atol=1e-3)


def _own_grams(
    net: Net, finetuned: dict[str, dict[str, Tensor]], images: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    from sta_lightning.arithmetic.gram import input_grams

    found = {}
    for task, model in finetuned.items():
        net.load_state_dict(model)
        names = [name for name in model if name.startswith("blocks") and name.endswith("weight")]
        found[task] = input_grams(net, images[task], names=names)
    return found


def test_an_encoder_without_blocks_of_linear_layers_is_refused() -> None:
    net = nn.Linear(3, 2)
    state = dict(net.state_dict())
    with pytest.raises(StaError, match="numbered blocks"):
        merged_input_grams(net, {"a": state, "b": state}, dict.fromkeys("ab", torch.ones(4, 3)))
