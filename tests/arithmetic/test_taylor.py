"""The per-sample Taylor term against a loop of backward passes, and the traps around it."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.arithmetic.taylor import taylor_importance
from tests.oracles.taylor import by_definition


class Attention(nn.Module):
    """A small transformer with everything that a ViT has: convolution, attention, layer norm, an own parameter, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.position = nn.Parameter(torch.randn(4, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return cast(Tensor, self.out(self.drop(x).mean(1)))


class Branching(nn.Module):
    """Takes a way that depends on the data, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.linear(images.flatten(1))
        return cast(Tensor, x * 2 if float(images.sum()) > 0 else x)


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 8, 8, generator=generator), torch.randint(0, 3, (7,), generator=generator)


@pytest.fixture
def module() -> Attention:
    torch.manual_seed(0)
    return Attention()


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def scored(module: nn.Module, samples: tuple[Tensor, Tensor], chunk_size: int = 8) -> dict[str, Tensor]:
    return taylor_importance(module, F.cross_entropy, *samples, names=names(module), chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("kind", [Attention, Branching])
def test_every_chunk_size_gives_the_sum_of_absolute_products(
    kind: type[nn.Module], samples: tuple[Tensor, Tensor], chunk_size: int
) -> None:
    torch.manual_seed(0)
    module = kind()
    found = scored(module, samples, chunk_size=chunk_size)
    expected = by_definition(module, *samples)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        scale = float(expected[name].max())
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6 * scale)


def test_chunk_sizes_agree_to_a_millionth(module: Attention, samples: tuple[Tensor, Tensor]) -> None:
    loop, batched = scored(module, samples, chunk_size=1), scored(module, samples, chunk_size=4)
    for name in loop:
        assert float((loop[name] - batched[name]).abs().max()) <= 1e-6 * float(loop[name].max())


def test_a_linear_model_by_hand() -> None:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    images, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    found = taylor_importance(module, F.cross_entropy, images, targets, names=["weight"], chunk_size=1)
    # Sample 1 has logits (1, 1/2): gradient (σ(1/2) - 1, 1 - σ(1/2)) on column 0; sample 2 has (-2,
    # 3) on column 1.
    first, second = 1 - torch.sigmoid(torch.tensor(0.5)), 1 - torch.sigmoid(torch.tensor(5.0))
    torch.testing.assert_close(
        found["weight"],
        torch.stack([torch.stack([first, 2 * second]), torch.stack([0.5 * first, 3 * second])]),
    )


def test_the_gradient_of_a_batch_is_another_number(module: Attention, samples: tuple[Tensor, Tensor]) -> None:
    images, targets = samples
    module.eval()
    loss = F.cross_entropy(module(images), targets, reduction="sum")
    gradient = torch.autograd.grad(loss, [module.out.weight])[0]
    wrong = (module.out.weight * gradient).abs().detach()
    right = scored(module, samples)["out.weight"]
    assert bool((right >= wrong - 1e-6).all())
    assert float(right.sum()) > 1.2 * float(wrong.sum())


def test_a_direction_takes_the_weights_place(module: Attention, samples: tuple[Tensor, Tensor]) -> None:
    direction = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    ordinary = scored(module, samples)
    along = taylor_importance(
        module, F.cross_entropy, *samples, names=["out.weight"], direction=direction, chunk_size=1
    )
    expected = ordinary["out.weight"] / module.out.weight.abs() * direction["out.weight"].abs()
    torch.testing.assert_close(along["out.weight"], expected.detach(), rtol=1e-4, atol=1e-7)
    assert list(along) == ["out.weight"]


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_it_leaves_no_trace(module: Attention, samples: tuple[Tensor, Tensor], chunk_size: int) -> None:
    module.train()
    module.norm.eval()  # a frozen part in evaluation mode stays in it
    module.out.weight.grad = torch.ones_like(module.out.weight)
    module.patch.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = {name: child.training for name, child in module.named_modules()}
    state = torch.get_rng_state()
    found = scored(module, samples, chunk_size=chunk_size)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: child.training for name, child in module.named_modules()} == flags
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(module.out.weight.grad, torch.ones_like(module.out.weight))
    assert module.position.grad is None
    assert not module.patch.weight.requires_grad
    assert float(found["patch.weight"].sum()) > 0, "a frozen parameter is scored all the same"
    assert not any(tensor.requires_grad for tensor in found.values())


def test_flags_come_back_after_an_error(module: Attention, samples: tuple[Tensor, Tensor]) -> None:
    module.train()
    with pytest.raises(IndexError):
        scored(module, (samples[0], torch.full((7,), 9)), chunk_size=1)
    assert module.training
    assert module.drop.training


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_inference_mode_no_grad_and_autocast_change_nothing(
    module: Attention, samples: tuple[Tensor, Tensor], chunk_size: int
) -> None:
    plain = scored(module, samples, chunk_size=chunk_size)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        # Samples made in inference mode are inference tensors, which autograd refuses.
        inside = scored(module, (samples[0].clone(), samples[1].clone()), chunk_size=chunk_size)
    with torch.no_grad():
        without = scored(module, samples, chunk_size=chunk_size)
    for name, tensor in plain.items():
        assert torch.equal(tensor, inside[name])
        assert torch.equal(tensor, without[name])
        assert not inside[name].is_inference()


def test_a_module_made_in_inference_mode_is_scored(samples: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    plain = Branching()
    with torch.inference_mode():
        torch.manual_seed(0)
        other = Branching()
    assert torch.equal(scored(plain, samples)["linear.weight"], scored(other, samples)["linear.weight"])


def precisions() -> list[str]:
    kinds: Any = torch.backends
    places = (kinds.cuda.matmul, kinds.cudnn.conv, kinds.mkldnn.matmul, kinds.mkldnn.conv)
    return [place.fp32_precision for place in places]


class Precision(nn.Module):
    """Notes in what precision products of float32 numbers are computed when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 3)
        self.seen: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += precisions()
        return cast(Tensor, self.linear(images.flatten(1)))


@pytest.mark.parametrize("allowed", ["highest", "medium"])
def test_products_have_all_digits_of_float32_whatever_the_user_allows(
    samples: tuple[Tensor, Tensor], allowed: str
) -> None:
    module = Precision()
    torch.set_float32_matmul_precision(allowed)
    before = precisions()
    try:
        scored(module, samples, chunk_size=1)
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(module.seen) == {"ieee"}


def test_half_precision_weights_are_scored_in_float32(
    module: Attention, samples: tuple[Tensor, Tensor]
) -> None:
    module.bfloat16()
    found = scored(module, (samples[0].bfloat16(), samples[1]))
    wide = scored(module.float(), (samples[0].bfloat16().float(), samples[1]))
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wide[name])


def test_what_vmap_cannot_do_is_done_in_a_loop_and_said(
    samples: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    module = Branching()
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        batched = scored(module, samples, chunk_size=4)
    assert "sample by sample" in caplog.text
    loop = scored(module, samples, chunk_size=1)
    assert all(torch.equal(loop[name], batched[name]) for name in loop)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_no_samples_and_unused_parameters_give_zeros(
    module: Attention, samples: tuple[Tensor, Tensor], chunk_size: int
) -> None:
    module.spare = nn.Parameter(torch.ones(2))
    none = scored(module, (samples[0][:0], samples[1][:0]), chunk_size=chunk_size)
    assert all(float(tensor.abs().sum()) == 0 for tensor in none.values())
    some = scored(module, samples, chunk_size=chunk_size)
    assert torch.equal(some["spare"], torch.zeros(2))


def test_wrong_names_and_chunk_sizes_are_refused(module: Attention, samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.weight"):
        taylor_importance(module, F.cross_entropy, *samples, names=["blocks.0.weight"])
    with pytest.raises(ValueError, match="at least 1"):
        scored(module, samples, chunk_size=0)
