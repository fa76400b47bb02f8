"""The diagonal Fisher information against one float64 backward pass per sample, on every way through the pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.arithmetic.taylor import fisher_information, ledger, taylor_importance
from tests.arithmetic.zoo import (
    CONVOLUTIONS,
    COPIED,
    ENCODERS,
    IMAGE,
    RULED,
    SHARED,
    TOKENS,
    Net,
    convolution,
    samples_of,
)
from tests.oracles.taylor import assert_by_definition, fisher_by_definition

SAMPLES, CHUNK = 5, 3  # a whole chunk and a shorter one
WAYS: dict[str, Callable[[], Net]] = {
    **RULED,
    **{name: make for name, (make, _) in COPIED.items()},
    **{name: make for name, (make, _) in SHARED.items()},
}


def information(module: nn.Module, samples: tuple[Tensor, Tensor], **settings: Any) -> dict[str, Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return fisher_information(
        module, F.cross_entropy, *samples, names=names, **{"chunk_size": CHUNK, **settings}
    )


def check(module: nn.Module, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    samples = samples_of(module, shape, SAMPLES)
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        found = information(module, samples)
    assert "sample by sample" not in caplog.text
    expected = fisher_by_definition(module, *samples)
    # A bias that attention is invariant to has no gradient, but for rounding.
    largest = max(float(tensor.max()) for tensor in expected.values())
    for name in [name for name, tensor in expected.items() if float(tensor.max()) < 1e-15 * largest]:
        assert float(found.pop(name).max()) < 1e-12 * largest
        expected.pop(name)
    # A square has twice the relative rounding of its root.
    assert_by_definition(found, expected, share=2e-5)


@pytest.mark.parametrize("name", WAYS)
def test_layers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    check(WAYS[name](), TOKENS, caplog)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    check(convolution(2, **CONVOLUTIONS[name]), IMAGE, caplog)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    check(ENCODERS[name][0](), IMAGE, caplog)


@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize("name", ["linear over tokens", "attention", "product with a matrix over tokens"])
def test_several_samples_in_one_product(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU."""
    monkeypatch.setattr(ledger, "samples_together", lambda device, entries: together)
    torch.manual_seed(0)
    check(RULED[name](), TOKENS, caplog)


def test_parameters_too_large_to_add_for_all_samples_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger, "_SMALL", 1)
    torch.manual_seed(0)
    check(WAYS["broadcasting"](), TOKENS, caplog)


def branching(module: Any, x: Tensor) -> Tensor:
    y = module.o(module.a(module.a(x).relu()).mean(1))
    return cast(Tensor, y * 2 if float(x.sum()) > 0 else y)


def test_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that is used twice, in a module that cannot be followed."""
    torch.manual_seed(0)
    module = Net(branching, a=nn.Linear(16, 16), o=nn.Linear(16, 3))
    samples = samples_of(module, TOKENS, SAMPLES)
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        found = information(module, samples)
    assert "sample by sample" in caplog.text
    assert_by_definition(found, fisher_by_definition(module, *samples), share=2e-5)


def test_a_linear_model_by_hand() -> None:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    images, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    # Sample 1 has logits (1, 1/2): gradient (σ(1/2) - 1, 1 - σ(1/2)) on column 0; sample 2 has (-2,
    # 3) on column 1.
    first, second = 1 - torch.sigmoid(torch.tensor(0.5)), 1 - torch.sigmoid(torch.tensor(5.0))
    for chunk_size in (1, 2):
        found = information(module, (images, targets), chunk_size=chunk_size)
        torch.testing.assert_close(found["weight"], torch.stack([torch.stack([first, second]) ** 2] * 2))


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 100])
def test_the_chunks_change_rounding_only(chunk_size: int) -> None:
    torch.manual_seed(0)
    module = RULED["attention"]()
    samples = samples_of(module, TOKENS, 7)
    expected = information(module, samples)
    for name, tensor in information(module, samples, chunk_size=chunk_size).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6 * float(tensor.max()))


def test_parts_of_the_samples_add_up_and_none_are_zero() -> None:
    torch.manual_seed(0)
    module = RULED["linear over tokens"]()
    images, targets = samples_of(module, TOKENS, 7)
    whole = information(module, (images, targets))
    first, rest = (information(module, (images[part], targets[part])) for part in (slice(3), slice(3, None)))
    nothing = information(module, (images[:0], targets[:0]))
    for name, tensor in whole.items():
        torch.testing.assert_close(first[name] + rest[name], tensor)
        assert not nothing[name].any()


def test_one_sample_is_the_square_of_its_taylor_term() -> None:
    torch.manual_seed(0)
    module = RULED["attention"]()
    samples = samples_of(module, TOKENS, 1)
    names = [name for name, _ in module.named_parameters()]
    ones = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    taylor = taylor_importance(module, F.cross_entropy, *samples, names=names, direction=ones)
    for name, tensor in information(module, samples).items():
        torch.testing.assert_close(tensor, taylor[name] ** 2)


def test_the_square_of_a_batch_s_gradient_is_another_number() -> None:
    torch.manual_seed(0)
    module = RULED["linear over tokens"]()
    images, targets = samples_of(module, TOKENS, SAMPLES)
    weight = module.get_parameter("a.weight")
    (gradient,) = torch.autograd.grad(F.cross_entropy(module(images), targets, reduction="sum"), [weight])
    found = information(module, (images, targets))["a.weight"]
    assert not torch.allclose(found, gradient**2, rtol=0.2)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_it_leaves_no_trace(chunk_size: int) -> None:
    torch.manual_seed(0)
    module = RULED["transformer layer"]().train()
    samples = samples_of(module, TOKENS, SAMPLES)
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = information(module, samples, chunk_size=chunk_size)
    assert all(part.training for part in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in found.values())


@pytest.mark.parametrize("name", ["linear over tokens", "linear over one token", "broadcasting"])
def test_bf16_is_near_and_added_up_in_float32(name: str) -> None:
    torch.manual_seed(0)
    module = WAYS[name]()
    samples = samples_of(module, TOKENS, SAMPLES)
    exact, found = information(module, samples), information(module, samples, precision="bf16")
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, exact[key], rtol=0.2, atol=0.06 * float(exact[key].max()))


def test_wrong_arguments_are_refused() -> None:
    module = RULED["linear over tokens"]()
    samples = samples_of(module, TOKENS, 2)
    with pytest.raises(ValueError, match="at least 1"):
        information(module, samples, chunk_size=0)
    with pytest.raises(ValueError, match="precision must be"):
        information(module, samples, precision="fp16")
    with pytest.raises(ValueError, match=r"Not floating-point parameters of Net: b\.weight"):
        fisher_information(module, F.cross_entropy, *samples, names=["b.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ["CLIP", "timm", "residual network"])
def test_a_gpu_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = ENCODERS[name][0]()
    images, targets = samples_of(module, IMAGE, SAMPLES)
    expected = fisher_by_definition(module, images, targets)
    found = information(module.cuda(), (images.cuda(), targets.cuda()))
    assert_by_definition({key: tensor.cpu() for key, tensor in found.items()}, expected, share=2e-5)
