"""A fit that spares a control: the loss with its penalty written out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sta_lightning.arithmetic.gram import input_grams
from sta_lightning.callbacks import SpareControl
from sta_lightning.errors import StaError
from sta_lightning.weights import save_weights

RATE, LAYERS = 0.2, ("0.weight", "2.weight")


class Small(LightningModule):
    """Two layers under a head, by SGD."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=RATE)


def drawn(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 6)


@pytest.fixture
def control(tmp_path: Path) -> str:
    grams = input_grams(Small().encoder, drawn(20, 7), names=LAYERS)
    save_weights(tmp_path / "control.safetensors", grams, {"measure": "gram"})
    return str(tmp_path / "control.safetensors")


def fit(module: LightningModule, *callbacks: SpareControl, epochs: int = 4, **more: str) -> Trainer:
    batch = TensorDataset(drawn(8, 1), torch.tensor([0, 1] * 4))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader(batch, batch_size=8), **more)  # type: ignore[arg-type]
    return trainer


def penalty(encoder: nn.Sequential, start: nn.Sequential) -> Tensor:
    """By the inputs: how much the outputs of every layer change on them, against what they are."""
    x, found = drawn(20, 7).double(), []
    for layer, old in zip(encoder, start, strict=True):
        if isinstance(layer, nn.Linear) and isinstance(old, nn.Linear):
            found.append(
                (x @ (layer.weight - old.weight).T).square().sum() / (x @ old.weight.T).square().sum()
            )
        x = old(x).detach()
    return torch.stack(found).sum()


def test_a_fit_is_that_of_the_loss_with_the_penalty(control: str) -> None:
    module = Small()
    trainer = fit(module, SpareControl(control, 3.0))
    wanted, start = Small().double(), Small().double()
    x, y = drawn(8, 1).double(), torch.tensor([0, 1] * 4)
    for _ in range(4):
        wanted.zero_grad()
        before = penalty(wanted.encoder, start.encoder)
        (F.cross_entropy(wanted.head(wanted.encoder(x)), y) + 3.0 * before).backward()
        nn.utils.clip_grad_norm_(wanted.parameters(), 1.0)
        with torch.no_grad():
            for parameter in wanted.parameters():
                parameter -= RATE * parameter.grad  # type: ignore[operator]
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name].double(), tensor, rtol=0, atol=1e-6)
    assert float(trainer.callback_metrics["train/spared"]) == pytest.approx(float(before.detach()), rel=1e-4)


def test_the_more_it_weighs_the_less_the_control_s_outputs_change(control: str) -> None:
    found = []
    for weight in (1e-9, 1.0, 100.0):
        module = Small()
        fit(module, SpareControl(control, weight), epochs=10)
        found.append(float(penalty(module.double().encoder, Small().double().encoder).detach()))
    assert found[0] > found[1] > found[2]


def test_a_fit_that_goes_on_keeps_to_its_own_start(control: str, tmp_path: Path) -> None:
    whole, half = Small(), Small()
    fit(whole, SpareControl(control, 3.0), epochs=4)
    fit(half, SpareControl(control, 3.0), epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    again = Small()
    fit(again, SpareControl(control, 3.0), epochs=4, ckpt_path=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(again.state_dict()[n], tensor) for n, tensor in whole.state_dict().items())


def test_what_cannot_be_spared_is_refused_before_the_fit(control: str, tmp_path: Path) -> None:
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(StaError, match=r"weight, that of the penalty, must be a number in \(0, inf\)"):
            SpareControl(control, weight)
    still = Small()
    still.encoder.requires_grad_(False)
    with pytest.raises(StaError, match=r"none of the layers of .*control.safetensors' is trained"):
        fit(still, SpareControl(control))
    bare = Small()
    bare.encoder = None  # type: ignore[assignment]
    with pytest.raises(StaError, match="Small has no encoder"):
        fit(bare, SpareControl(control))
    other = tmp_path / "other.safetensors"
    save_weights(other, {"0.weight": torch.eye(4)}, {"measure": "gram"})
    with pytest.raises(StaError, match=r"the control: .*does not hold the Gram matrices of this encoder"):
        fit(Small(), SpareControl(str(other)))
    save_weights(other, {"0.weight": torch.zeros(4, 5)}, {"measure": "lp"})
    with pytest.raises(StaError, match=r"the control: .*holds the importance by measure 'lp'"):
        fit(Small(), SpareControl(str(other)))
