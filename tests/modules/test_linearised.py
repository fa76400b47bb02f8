"""Linearised fits: the first-order model itself, a fit of it, what it leaves, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from sta_lightning.callbacks import ExportWeights
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.adapters import Lora
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.linearised import linearised_features
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights
from tests.toys import ENCODER, quiet_trainer

RATE = 0.5


def changed(encoder: nn.Module, amount: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (tensor + amount * torch.randn(tensor.shape, generator=generator)).detach().requires_grad_()
        for name, tensor in encoder.named_parameters()
    }


def test_a_network_of_two_layers_is_that_of_the_derivative_by_hand() -> None:
    torch.manual_seed(0)
    origin = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    weights, x = changed(origin, 0.5), torch.randn(6, 5).double()
    (w1, b1, w2, _), (v1, c1, v2, c2) = (
        [tensor.detach().numpy() for tensor in state.values()]
        for state in (dict(origin.named_parameters()), weights)
    )
    inside = np.tanh(x.numpy() @ w1.T + b1)
    slope = (1 - inside**2) * (x.numpy() @ (v1 - w1).T + (c1 - b1))
    wanted = inside @ v2.T + c2 + slope @ w2.T
    found = linearised_features(origin, weights, x)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=1e-12)
    pull = np.random.default_rng(0).standard_normal(wanted.shape)
    (found * torch.from_numpy(pull)).sum().backward()
    back = (pull @ w2) * (1 - inside**2)
    by_hand = back.T @ x.numpy(), back.sum(0), pull.T @ inside, pull.sum(0)
    for tensor, gradient in zip(weights.values(), by_hand, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=0, atol=1e-12)
    assert all(tensor.grad is None for tensor in origin.parameters())


def test_a_transformer_is_that_of_finite_differences_and_itself_at_its_start(pretrained: Path) -> None:
    origin = build_encoder(ENCODER, str(pretrained)).double().eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    start = {name: tensor.detach() for name, tensor in origin.named_parameters()}
    with torch.inference_mode():
        torch.testing.assert_close(linearised_features(origin, start, x), origin(x), rtol=0, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()
    weights, step = changed(origin, 0.02), 1e-5
    with torch.no_grad():
        ahead, behind = (
            functional_call(origin, {n: t + sign * step * (weights[n] - t) for n, t in start.items()}, (x,))
            for sign in (1, -1)
        )
        wanted = origin(x) + (ahead - behind) / (2 * step)
        found = linearised_features(origin, weights, x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
        assert float((found - functional_call(origin, weights, (x,))).abs().max()) > 1e-3


def own() -> nn.Module:
    """Means of patches, two layers and a dropout, which a linearised fit leaves off."""
    torch.manual_seed(0)
    layers = nn.Linear(3 * 16, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), *layers)


@pytest.fixture
def head(tmp_path: Path) -> str:
    file = tmp_path / "head.safetensors"
    ClassificationHead(torch.randn(3, 4, generator=torch.Generator().manual_seed(2))).save(file)
    return str(file)


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=RATE)


def constant(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)


def fitted(make: Callable[[], CLIPClassifier], epochs: int, **more: Any) -> Any:
    trainer = quiet_trainer(max_epochs=epochs, callbacks=more.pop("callbacks", []), **more.pop("trainer", {}))
    module = make()
    trainer.fit(module, TaskDataModule("spots", batch_size=24), weights_only=True, **more)
    return trainer, module


@pytest.fixture
def make(head: str) -> Callable[[], CLIPClassifier]:
    def module() -> CLIPClassifier:
        return CLIPClassifier(
            own(), "spots", head=head, optimizer=sgd, lr_scheduler=constant, linearised=True
        )

    return module


def test_a_fit_is_that_of_a_linear_model_by_the_jacobian(
    make: Callable[[], CLIPClassifier], head: str, tmp_path: Path
) -> None:
    module = fitted(make, 3, callbacks=[ExportWeights(str(tmp_path))])[1]
    data = TaskDataModule("spots", batch_size=24)
    images, labels = (
        torch.stack([torch.as_tensor(pair[n]) for pair in data.dataset("train")]) for n in (0, 1)
    )
    origin = own().double().eval()
    start = {name: tensor.detach() for name, tensor in origin.named_parameters()}
    jacobian = torch.func.jacrev(lambda state: functional_call(origin, state, (images.double(),)))(start)
    jacobian = torch.cat([rows.flatten(2) for rows in jacobian.values()], dim=2)  # [B, D, P]
    value, change = origin(images.double()).detach(), torch.zeros(jacobian.shape[2]).double()
    rows = load_weights(head)["weight"].double()
    for _ in range(3):
        moving = change.clone().requires_grad_()
        logits = F.normalize(value + jacobian @ moving, dim=-1) @ rows.T
        F.cross_entropy(logits, labels).backward()
        assert moving.grad is not None
        change -= RATE * moving.grad
    wanted = torch.cat([tensor.flatten() for tensor in start.values()]) + change
    found = torch.cat([tensor.detach().flatten() for tensor in module.encoder.parameters()])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert float(change.abs().max()) > 1e-2
    # What is exported is the encoder, under its own names.
    exported = load_weights(tmp_path / "encoder.safetensors")
    assert exported.keys() == own().state_dict().keys()
    assert all(torch.equal(exported[name], t) for name, t in module.encoder.state_dict().items())
    assert all(torch.equal(t, own().state_dict()[name]) for name, t in module.origin.state_dict().items())


def test_a_fit_that_goes_on_and_a_checkpoint_keep_the_start(
    make: Callable[[], CLIPClassifier], head: str, tmp_path: Path
) -> None:
    _, whole = fitted(make, 4)
    fitted(make, 2)[0].save_checkpoint(tmp_path / "half.ckpt")
    trainer, again = fitted(make, 4, ckpt_path=str(tmp_path / "half.ckpt"))
    assert all(
        torch.equal(again.state_dict()[n], t) for n, t in whole.encoder.state_dict(prefix="encoder.").items()
    )
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = own().requires_grad_(False)
    nn.init.zeros_(other[2].weight)  # the start is the checkpoint's, not this one's
    loaded = CLIPClassifier.load_from_checkpoint(tmp_path / "last.ckpt", encoder=other).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(x), again.eval()(x))
    ordinary = partial(CLIPClassifier, own(), "spots", head=head, optimizer=sgd, lr_scheduler=constant)
    with pytest.raises(StaError, match=r"checkpoint is of a linearised fit, but linearised=False"):
        fitted(ordinary, 4, ckpt_path=str(tmp_path / "half.ckpt"))
    fitted(ordinary, 1)[0].save_checkpoint(tmp_path / "ordinary.ckpt")
    with pytest.raises(StaError, match=r"checkpoint is of an ordinary fit, but linearised=True"):
        fitted(make, 4, ckpt_path=str(tmp_path / "ordinary.ckpt"))


def test_it_is_validated_by_the_linearisation_and_trained_in_mixed_precision(pretrained: Path) -> None:
    make = partial(
        CLIPClassifier, ENCODER, "spots", str(pretrained), learning_rate=1e-2, warmup_steps=0, linearised=True
    )
    for precision in ("32-true", "bf16-mixed"):
        trainer, module = fitted(make, 3, trainer={"precision": precision})
        module.eval()
        data = TaskDataModule("spots").dataset("validation")
        images, labels = (torch.stack([torch.as_tensor(pair[n]) for pair in data]) for n in (0, 1))
        with torch.no_grad():
            both = module(images), module.head(module.encoder(images))
        assert float((both[0] - both[1]).abs().max()) > 1e-2
        losses = [float(F.cross_entropy(logits, labels)) for logits in both]
        assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(losses[0], abs=0.02)


def test_what_has_no_tangent_space_here_is_refused(head: str) -> None:
    for more in ({"trainable": "head"}, {"compile": True}, {"lora": Lora(2)}):
        with pytest.raises(StaError, match=r"linearised trains an encoder's own weights"):
            CLIPClassifier(ENCODER, "spots", linearised=True, **more)  # type: ignore[arg-type]

    class Encoder(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)[:, None, None]
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0].flatten(1)  # type: ignore[no-any-return]

    module = CLIPClassifier(Encoder(nn.Flatten(), nn.Linear(3072, 4)), "spots", head=head, linearised=True)
    module.build()
    with pytest.raises(StaError, match=r"forward-mode derivatives of Encoder, and PyTorch says: .*Leave lin"):
        module(torch.zeros(2, 3, 32, 32))
