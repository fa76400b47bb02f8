"""Sums of every sample's gradient against float64 backward passes, and the traps around them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sta_lightning.arithmetic import gradients
from sta_lightning.arithmetic.gradients import gradient_sums
from tests.arithmetic.zoo import CONVOLUTIONS, ENCODERS, IMAGE, NETS, TOKENS, Net, convolution, samples_of
from tests.oracles.gradients import assert_by_definition, by_definition

Samples = tuple[Tensor, Tensor]
LOGGER = "sta_lightning.arithmetic.gradients"
LOOP, CHUNK = 1, 3
WAYS = pytest.mark.parametrize("chunk_size", [LOOP, CHUNK], ids=["loop", "vmap"])
SAMPLES = 5  # a whole chunk and a shorter one


def summed(module: nn.Module, samples: Samples, **settings: Any) -> dict[str, Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return gradient_sums(module, F.cross_entropy, *samples, names=names, **settings)


def check(module: nn.Module, shape: tuple[int, ...], chunk_size: int, power: Literal[1, 2]) -> None:
    samples = samples_of(module, shape, SAMPLES)
    found = summed(module, samples, chunk_size=chunk_size, power=power)
    # A square has twice the relative rounding of its root.
    assert_by_definition(found, by_definition(module, *samples, power), share=power * 1e-5)


def use_of_a_layer(use: Callable[[Any, Tensor], Tensor]) -> Net:
    """Two layers, the first of which is used as a function says."""
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.last(use(m.first, x).relu().mean(1)), first=nn.Linear(16, 8), last=nn.Linear(8, 3)
    )


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 6, 16, generator=generator), torch.arange(SAMPLES) % 3


@pytest.fixture
def module() -> Net:
    return use_of_a_layer(lambda layer, x: layer(x))


@WAYS
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_every_use_of_a_parameter(name: str, power: Literal[1, 2], chunk_size: int) -> None:
    torch.manual_seed(0)
    check(NETS[name](), TOKENS, chunk_size, power)


@WAYS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, chunk_size: int) -> None:
    torch.manual_seed(0)
    check(convolution(2, **CONVOLUTIONS[name]), IMAGE, chunk_size, 1)


@WAYS
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, power: Literal[1, 2], chunk_size: int, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        check(ENCODERS[name](), IMAGE, chunk_size, power)
    assert not caplog.text, "vmap follows every encoder"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_gpu_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = ENCODERS[name]()
    images, targets = samples_of(module, IMAGE, SAMPLES)
    expected = by_definition(module, images, targets)
    found = summed(module.cuda(), (images.cuda(), targets.cuda()))
    assert_by_definition({key: tensor.cpu() for key, tensor in found.items()}, expected)


@WAYS
def test_tied_modules_are_one_parameter(chunk_size: int) -> None:
    torch.manual_seed(0)
    module = Net(lambda m, x: m.b(m.a(x).relu()).mean(1), a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    module.b.weight = module.a.weight
    check(module, TOKENS, chunk_size, 1)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 100])
def test_chunks_agree_to_a_millionth(chunk_size: int, power: Literal[1, 2]) -> None:
    torch.manual_seed(0)
    module = NETS["attention"]()
    samples = samples_of(module, TOKENS, SAMPLES)
    loop = summed(module, samples, power=power)
    for name, tensor in summed(module, samples, power=power, chunk_size=chunk_size).items():
        assert float((loop[name] - tensor).abs().max()) <= 1e-6 * max(float(loop[name].max()), 1e-6)


@WAYS
def test_a_linear_model_by_hand(chunk_size: int) -> None:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    # Sample 1 has logits (1, 1/2): gradient (σ(1/2) - 1, 1 - σ(1/2)) on column 0; sample 2 has (-2,
    # 3) on column 1.
    row = torch.stack([1 - torch.sigmoid(torch.tensor(0.5)), 1 - torch.sigmoid(torch.tensor(5.0))])
    for power in (1, 2):
        found = summed(module, samples, chunk_size=chunk_size, power=power)["weight"]
        torch.testing.assert_close(found, torch.stack([row, row]) ** power)


@pytest.mark.parametrize("power", [1, 2])
def test_the_gradient_of_a_batch_is_another_number(module: Net, samples: Samples, power: int) -> None:
    images, targets = samples
    loss = F.cross_entropy(module(images), targets, reduction="sum")
    wrong = torch.autograd.grad(loss, [module.last.weight])[0].abs() ** power
    right = summed(module, samples, power=power)["last.weight"]
    assert float((right - wrong).abs().sum()) > 0.1 * float(wrong.sum())


@WAYS
def test_parts_of_the_samples_add_up_and_none_are_zero(
    module: Net, samples: Samples, chunk_size: int
) -> None:
    images, targets = samples
    whole = summed(module, samples, chunk_size=chunk_size)
    first, rest, none = (
        summed(module, (images[part], targets[part]), chunk_size=chunk_size)
        for part in (slice(2), slice(2, None), slice(0))
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(first[name] + rest[name], tensor)
        assert not none[name].any()


@WAYS
@pytest.mark.parametrize("power", [1, 2])
def test_it_leaves_no_trace(power: int, chunk_size: int) -> None:
    torch.manual_seed(0)
    module = NETS["transformer layer"]()  # which has dropout
    samples = samples_of(module, TOKENS, SAMPLES)
    module.train()
    module.a.norm1.eval()  # a frozen part in evaluation mode stays in it
    module.o.weight.grad = torch.ones_like(module.o.weight)
    module.a.linear1.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = {name: child.training for name, child in module.named_modules()}
    state = torch.get_rng_state()
    found = summed(module, samples, chunk_size=chunk_size, power=power)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: child.training for name, child in module.named_modules()} == flags
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(module.o.weight.grad, torch.ones_like(module.o.weight))
    assert module.a.linear2.weight.grad is None
    assert not module.a.linear1.weight.requires_grad
    assert float(found["a.linear1.weight"].sum()) > 0, "a frozen parameter is scored all the same"
    assert not any(tensor.requires_grad for tensor in found.values())


@WAYS
def test_flags_come_back_after_an_error(samples: Samples, chunk_size: int) -> None:
    module = use_of_a_layer(lambda layer, x: layer(x)).train()
    with pytest.raises(IndexError):
        summed(module, (samples[0], torch.full((SAMPLES,), 9)), chunk_size=chunk_size)
    assert all(part.training for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


@WAYS
def test_inference_mode_no_grad_and_autocast_change_nothing(
    module: Net, samples: Samples, chunk_size: int
) -> None:
    plain = summed(module, samples, chunk_size=chunk_size)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        # Samples made in inference mode are inference tensors, which autograd refuses.
        inside = summed(module, (samples[0].clone(), samples[1].clone()), chunk_size=chunk_size)
    with torch.no_grad():
        without = summed(module, samples, chunk_size=chunk_size)
    for name, tensor in plain.items():
        assert torch.equal(tensor, inside[name])
        assert torch.equal(tensor, without[name])
        assert not inside[name].is_inference()


def test_a_module_made_in_inference_mode_is_scored(module: Net, samples: Samples) -> None:
    with torch.inference_mode():
        other = use_of_a_layer(lambda layer, x: layer(x))
    plain, found = summed(module, samples), summed(other, samples)
    assert all(torch.equal(tensor, found[name]) for name, tensor in plain.items())


def precisions() -> list[str]:
    kinds: Any = torch.backends
    places = (kinds.cuda.matmul, kinds.cudnn.conv, kinds.mkldnn.matmul, kinds.mkldnn.conv)
    return [place.fp32_precision for place in places]


@pytest.mark.parametrize("allowed", ["highest", "medium"])
def test_products_have_all_digits_of_float32_whatever_the_user_allows(samples: Samples, allowed: str) -> None:
    seen: list[str] = []
    module = use_of_a_layer(lambda layer, x: cast(Tensor, seen.extend(precisions()) or layer(x)))  # type: ignore[func-returns-value]
    torch.set_float32_matmul_precision(allowed)
    before = precisions()
    try:
        summed(module, samples)
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"ieee"}


def test_half_precision_weights_are_scored_in_float32(module: Net, samples: Samples) -> None:
    module.bfloat16()
    found = summed(module, (samples[0].bfloat16(), samples[1]))
    wide = summed(module.float(), (samples[0].bfloat16().float(), samples[1]))
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wide[name])


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
    """As an extension in C++ would use the weight."""
    with torch._C.DisableTorchFunction():
        return F.linear(x, layer.weight, layer.bias)


LOOPED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a function with its own backward pass": (
        lambda layer, x: Product.apply(x, layer.weight),
        "setup_context",
    ),
    "a way that depends on the data": (
        lambda layer, x: layer(x) * 2 if float(x.sum()) > 0 else layer(x),
        ".item()",
    ),
    "activation checkpointing": (lambda layer, x: checkpoint(layer, x, use_reentrant=False), ""),
    "random numbers": (lambda layer, x: layer(x) + 0 * torch.rand(()), "random"),
}
FOLLOWED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a use out of sight": hidden,
    "a use out of sight beside one in view": lambda layer, x: hidden(layer, x) * layer(x),
    "vmap in the module": lambda layer, x: torch.vmap(layer)(x),
    "a gradient in the module": lambda layer, x: torch.func.grad(lambda y: layer(y).square().sum())(x)[..., :8],
}  # fmt: skip


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", LOOPED)
def test_what_vmap_cannot_follow_is_done_sample_by_sample(
    name: str, power: int, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    use, reason = LOOPED[name]
    module = use_of_a_layer(use)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        found = summed(module, samples, chunk_size=CHUNK, power=power)
    assert "sample by sample" in caplog.text
    assert reason in caplog.text
    assert_by_definition(found, by_definition(module, *samples, power), share=power * 1e-5)
    loop = summed(module, samples, power=power)
    assert all(torch.equal(tensor, loop[name]) for name, tensor in found.items())


@WAYS
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_no_hook_on_a_layer_would_see(name: str, samples: Samples, chunk_size: int) -> None:
    module = use_of_a_layer(FOLLOWED[name])
    assert_by_definition(summed(module, samples, chunk_size=chunk_size), by_definition(module, *samples))


@WAYS
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is not supported in Python")
def test_torchscript(module: Net, samples: Samples, chunk_size: int) -> None:
    expected = by_definition(module, *samples)
    module.last = torch.jit.script(module.last)
    names = ["first.weight", "first.bias"]
    found = gradient_sums(module, F.cross_entropy, *samples, names=names, chunk_size=chunk_size)
    assert_by_definition(found, {name: expected[name] for name in names})


@WAYS
def test_a_compiled_part_runs_as_it_was_written(module: Net, samples: Samples, chunk_size: int) -> None:
    expected = by_definition(module, *samples)

    def refuse(*_: Any) -> Any:
        raise AssertionError("something was compiled")

    module.first = torch.compile(module.first, backend=refuse)
    found = summed(module, samples, chunk_size=chunk_size)
    assert_by_definition({name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}, expected)


class Shift(nn.Module):
    """Adds a parameter whose gradient is that of the sum, seen in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(96))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset.view(1, 6, 16)


@WAYS
def test_gradients_that_share_memory_stay_apart(samples: Samples, chunk_size: int) -> None:
    """A leaf's gradient may be a view of one that is still on its way to earlier layers."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), Shift(), nn.Flatten(), nn.Linear(96, 3))
    assert_by_definition(summed(module, samples, chunk_size=chunk_size), by_definition(module, *samples))


class Twice(nn.Module):
    """One layer in two reentrant segments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = cast(Tensor, checkpoint(self.layer, x, use_reentrant=True))
        return x


@WAYS
def test_reentrant_checkpointing_is_refused(samples: Samples, chunk_size: int) -> None:
    """It runs the forward pass again in the backward pass, with the module's own parameters."""
    module = nn.Sequential(nn.Linear(16, 16), Twice(), nn.Flatten(), nn.Linear(96, 3))
    with pytest.raises(RuntimeError, match="use_reentrant"):
        summed(module, samples, chunk_size=chunk_size)
    assert all(parameter.grad is None for parameter in module.parameters())


@WAYS
def test_some_parameters_alone(module: Net, samples: Samples, chunk_size: int) -> None:
    every = summed(module, samples, chunk_size=chunk_size)
    for names in (["last.bias"], ["first.weight"], ["first.bias", "last.weight"]):
        found = gradient_sums(module, F.cross_entropy, *samples, names=names, chunk_size=chunk_size)
        assert list(found) == names
        for name in names:
            torch.testing.assert_close(found[name], every[name], rtol=1e-5, atol=1e-8)


@WAYS
def test_what_the_output_does_not_depend_on_is_zero(samples: Samples, chunk_size: int) -> None:
    module = use_of_a_layer(lambda layer, x: layer(x).detach())
    module.spare = nn.Parameter(torch.ones(2))
    found = summed(module, samples, chunk_size=chunk_size)
    assert not any(found[name].any() for name in ("first.weight", "first.bias", "spare"))
    alone = gradient_sums(module, F.cross_entropy, *samples, names=["first.bias"], chunk_size=chunk_size)
    assert not alone["first.bias"].any()


@WAYS
def test_a_parameter_of_the_loss_gets_no_gradient(module: Net, samples: Samples, chunk_size: int) -> None:
    temperature = nn.Parameter(torch.tensor(2.0))
    found = gradient_sums(
        module,
        lambda outputs, target: F.cross_entropy(outputs * temperature, target),
        *samples,
        names=[name for name, _ in module.named_parameters()],
        chunk_size=chunk_size,
    )
    assert temperature.grad is None
    head = nn.Parameter(module.last.weight.detach() * 2)
    module.last.weight, module.last.bias = head, nn.Parameter(module.last.bias.detach() * 2)
    expected = by_definition(module, *samples)
    found["last.weight"] /= 2
    found["last.bias"] /= 2
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
    summed(module, samples)
    assert len(held) == 10 * len(samples[0])
    assert max(held) <= 1


def test_too_little_memory_halves_the_chunk(
    module: Net, samples: Samples, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    together = gradients.vmap

    def small(function: Any, **settings: Any) -> Any:
        def call(parameters: Any, images: Tensor, targets: Tensor) -> Any:
            tried.append(len(images))
            if len(images) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return together(function, **settings)(parameters, images, targets)

        return call

    monkeypatch.setattr(gradients, "vmap", small)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        found = summed(module, samples, chunk_size=9)
    assert tried == [5, 2, 2, 1]
    assert "2 samples at a time instead" in caplog.text
    assert_by_definition(found, by_definition(module, *samples))


@WAYS
@pytest.mark.parametrize("power", [1, 2])
def test_bf16_is_near_and_added_up_in_float32(
    module: Net, samples: Samples, power: int, chunk_size: int
) -> None:
    exact = summed(module, samples, power=power)
    found = summed(module, samples, precision="bf16", chunk_size=chunk_size, power=power)
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, exact[name])
        atol = power * 0.03 * float(exact[name].max())
        torch.testing.assert_close(tensor, exact[name], rtol=power * 0.1, atol=atol)


def test_bf16_does_not_depend_on_the_chunks(module: Net, samples: Samples) -> None:
    one, several = (summed(module, samples, precision="bf16", chunk_size=size) for size in (1, 5))
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, rtol=0.02, atol=0.01 * float(tensor.max()))


def test_wrong_arguments_are_refused(module: Net, samples: Samples) -> None:
    with pytest.raises(ValueError, match=r"Not floating-point parameters of Net: blocks\.0\.weight"):
        gradient_sums(module, F.cross_entropy, *samples, names=["blocks.0.weight"])
    with pytest.raises(ValueError, match="at least 1"):
        summed(module, samples, chunk_size=0)
    with pytest.raises(ValueError, match=r"precision must be 'float32' or 'bf16', not 'fp16'"):
        summed(module, samples, precision="fp16")
