"""Which way the pass takes: together where every use of a parameter is in view, else sample by sample, and right either way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sta_lightning.arithmetic.taylor import importance, taylor_importance
from tests.oracles.taylor import assert_by_definition, by_definition

Samples = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Two layers, the first of which is used as a function says."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.last = nn.Linear(8, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.use(self.first, x).relu().mean(1)))


class Product(torch.autograd.Function):
    """x Wᵀ with a backward pass of its own, which gives the gradient of a batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, torch.einsum("bto,bti->oi", gradients[0], x)


def hidden(layer: nn.Linear, x: Tensor) -> Tensor:
    """As an extension in C++ would use the weight: no torch function is called that could be seen."""
    with torch._C.DisableTorchFunction():
        return F.linear(x, layer.weight, layer.bias)


def hidden_once_more(layer: nn.Linear, x: Tensor) -> Tensor:
    return hidden(layer, x) * cast(Tensor, layer(x))


def branching(layer: nn.Linear, x: Tensor) -> Tensor:
    return cast(Tensor, layer(x) * 2 if float(x.sum()) > 0 else layer(x))


def checkpointed(layer: nn.Linear, x: Tensor) -> Tensor:
    return cast(Tensor, checkpoint(layer, x, use_reentrant=False))


def recurrent(layer: nn.Linear, x: Tensor) -> Tensor:
    """torch.vmap inside the module: a dimension that is not that of the samples."""
    return torch.vmap(layer)(x)


def differentiating(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: layer(y).square().sum())(x)[..., :8]


ALONE: dict[str, tuple[Callable[[nn.Linear, Tensor], Tensor], str]] = {
    "a use out of sight": (hidden, "takes part out of sight"),
    "a use out of sight beside one in view": (hidden_once_more, "takes part out of sight"),
    "a function with its own backward pass": (
        lambda layer, x: Product.apply(x, layer.weight),
        "setup_context",
    ),
    "a way that depends on the data": (branching, ".item()"),
    "activation checkpointing": (checkpointed, ""),
    "vmap in the module": (recurrent, ""),
    "a gradient in the module": (differentiating, ""),
    "random numbers": (lambda layer, x: layer(x) + 0 * torch.rand(()), "random"),
}


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, 16, generator=generator), torch.arange(5) % 3


def scored(module: nn.Module, samples: Samples, **settings: Any) -> dict[str, Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return taylor_importance(module, F.cross_entropy, *samples, names=names, **{"chunk_size": 3, **settings})


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_followed_is_done_sample_by_sample(
    name: str, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    use, reason = ALONE[name]
    module = Net(use)
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        found = scored(module, samples)
    assert "sample by sample" in caplog.text
    assert reason in caplog.text
    assert_by_definition(found, by_definition(module, *samples))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is not supported in Python")
def test_torchscript_is_done_sample_by_sample(samples: Samples, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    plain = Net(lambda layer, x: layer(x))
    expected = by_definition(plain, *samples)
    plain.last = torch.jit.script(plain.last)
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        found = taylor_importance(
            plain, F.cross_entropy, *samples, names=["first.weight", "first.bias"], chunk_size=3
        )
    assert "'last' is TorchScript" in caplog.text
    assert_by_definition(found, {name: expected[name] for name in found})


def test_a_compiled_part_runs_as_it_was_written(samples: Samples, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = Net(lambda layer, x: layer(x))
    expected = by_definition(module, *samples)

    def refuse(*_: Any) -> Any:
        raise AssertionError("something was compiled")

    module.first = cast(nn.Linear, torch.compile(module.first, backend=refuse))
    with caplog.at_level(logging.DEBUG, logger="sta_lightning.arithmetic.taylor"):
        found = scored(module, samples)
    assert "sample by sample" not in caplog.text
    assert_by_definition({name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}, expected)


def test_gradients_that_share_memory_stay_apart(samples: Samples) -> None:
    """A gradient that a leaf receives may be a view of one that is still on its way to earlier layers."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), Shift(), nn.Flatten(), nn.Linear(96, 3))
    expected = by_definition(module, *samples)
    for chunk_size in (1, 3):
        assert_by_definition(scored(module, samples, chunk_size=chunk_size), expected)


class Shift(nn.Module):
    """Adds a parameter whose gradient is that of the sum, seen in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(96))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset.view(1, 6, 16)


def test_reentrant_checkpointing_is_refused(samples: Samples) -> None:
    """It runs the forward pass again in the backward pass, with the module's own parameters."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), Twice(), nn.Flatten(), nn.Linear(96, 3))
    with pytest.raises(RuntimeError, match="use_reentrant"):
        scored(module, samples)
    assert all(parameter.grad is None for parameter in module.parameters())


class Twice(nn.Module):
    """One layer in two reentrant segments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = cast(Tensor, checkpoint(self.layer, x, use_reentrant=True))
        return x


def test_some_parameters_alone(samples: Samples) -> None:
    torch.manual_seed(0)
    module = Net(lambda layer, x: layer(x))
    every = scored(module, samples)
    for names in (["last.bias"], ["first.weight"], ["first.bias", "last.weight"]):
        found = taylor_importance(module, F.cross_entropy, *samples, names=names, chunk_size=5)
        assert list(found) == names
        for name in names:
            torch.testing.assert_close(found[name], every[name], rtol=1e-5, atol=1e-8)


def test_what_the_output_does_not_depend_on_is_zero(samples: Samples) -> None:
    module = Net(lambda layer, x: layer(x).detach())
    found = scored(module, samples)
    assert float(found["first.weight"].sum()) == float(found["first.bias"].sum()) == 0
    nothing = taylor_importance(module, F.cross_entropy, *samples, names=["first.bias"], chunk_size=3)
    assert float(nothing["first.bias"].sum()) == 0


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_a_parameter_of_the_loss_gets_no_gradient(samples: Samples, chunk_size: int) -> None:
    module, temperature = Net(lambda layer, x: layer(x)), nn.Parameter(torch.tensor(2.0))
    names = [name for name, _ in module.named_parameters()]
    found = taylor_importance(
        module,
        lambda outputs, target: F.cross_entropy(outputs * temperature, target),
        *samples,
        names=names,
        chunk_size=chunk_size,
    )
    assert temperature.grad is None
    module.last.weight.data *= 2
    module.last.bias.data *= 2
    expected = by_definition(module, *samples)
    assert_by_definition(found, expected)


def test_the_loop_holds_one_gradient_at_a_time(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)], nn.Flatten(), nn.Linear(96, 3))
    held: list[int] = []
    backward = torch.autograd.backward

    def watched(value: Tensor, inputs: list[Tensor]) -> None:
        def count(_: Tensor) -> None:
            held.append(sum(leaf.grad is not None for leaf in inputs))

        hooks: list[Any] = [leaf.register_post_accumulate_grad_hook(count) for leaf in inputs]
        backward(value, inputs=inputs)
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(torch.autograd, "backward", watched)
    scored(module, samples, chunk_size=1)
    assert len(held) == 10 * len(samples[0])
    assert max(held) <= 1


def test_too_little_memory_halves_the_chunk(
    samples: Samples, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = Net(lambda layer, x: layer(x))
    together = importance.chunk_by_chunk
    tried: list[int] = []

    def small(loss: Any, ledger: Any, images: Tensor, targets: Tensor, chunk_size: int) -> None:
        tried.append(chunk_size)
        together(loss, ledger, images, targets, chunk_size)
        if chunk_size > 2:  # after the sums have been changed
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(importance, "chunk_by_chunk", small)
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.taylor"):
        found = scored(module, samples, chunk_size=9)
    assert tried == [5, 2]
    assert "2 samples at a time instead" in caplog.text
    assert_by_definition(found, by_definition(module, *samples))


def test_the_size_of_a_chunk_is_the_device_s_by_default(
    samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    many = samples[0].repeat(2, 1, 1), samples[1].repeat(2)
    with caplog.at_level(logging.DEBUG, logger="sta_lightning.arithmetic.taylor"):
        scored(Net(lambda layer, x: layer(x)), many, chunk_size=None)
    assert "10 samples, 8 at a time" in caplog.text


@pytest.mark.parametrize("use", [lambda layer, x: layer(x), branching], ids=["together", "alone"])
def test_bf16_is_near_and_added_up_in_float32(use: Any, samples: Samples) -> None:
    torch.manual_seed(0)
    module = Net(use)
    exact, found = scored(module, samples), scored(module, samples, precision="bf16")
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, exact[name])
        torch.testing.assert_close(tensor, exact[name], rtol=0.1, atol=0.03 * float(exact[name].max()))


def test_bf16_does_not_depend_on_the_chunks(samples: Samples) -> None:
    torch.manual_seed(0)
    module = Net(lambda layer, x: layer(x))
    one, several = (scored(module, samples, precision="bf16", chunk_size=size) for size in (1, 5))
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=0.02, atol=0.01 * float(tensor.max()))


def test_an_unknown_precision_is_refused(samples: Samples) -> None:
    with pytest.raises(ValueError, match=r"precision must be 'float32' or 'bf16', not 'fp16'"):
        scored(Net(lambda layer, x: layer(x)), samples, precision="fp16")
