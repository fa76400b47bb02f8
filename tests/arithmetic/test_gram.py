"""Gram matrices of linear layers' inputs against hooks and attention by hand, and the traps."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.arithmetic.gram import input_gram_sums, input_grams
from sta_lightning.encoders import build_encoder
from tests.arithmetic.zoo import ENCODERS, IMAGE, TOKENS, Net, attention, weight
from tests.oracles.gram import attention as attention_by_hand
from tests.oracles.gram import mean_outer

SAMPLES = 5


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def every(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def grams(module: nn.Module, images: Tensor, **settings: Any) -> dict[str, Tensor]:
    return input_grams(module, images, **{"names": every(module), "chunk_size": 2, **settings})


def by_hooks(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The mean of x xᵀ over what goes into every ``nn.Linear``, in float64."""
    module = module.double().eval()
    rows: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        return lambda _, args: rows.setdefault(name, []).append(args[0].detach().flatten(0, -2))

    hooks = [
        part.register_forward_pre_hook(note(f"{name}.weight".lstrip(".")))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    with torch.no_grad():
        module(images.double())
    for hook in hooks:
        hook.remove()
    module.float()
    return {name: torch.from_numpy(mean_outer(torch.cat(parts).numpy())) for name, parts in rows.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gram in found.items():
        assert gram.dtype == torch.float32
        assert torch.equal(gram, gram.T)
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gram.double(), expected[name], rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100, None])
def test_linear_layers_against_hooks(chunk_size: int | None) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 12, bias=False), nn.LayerNorm(12), nn.Linear(12, 3)
    )
    images = inputs(SAMPLES, *TOKENS)
    found = grams(module, images, chunk_size=chunk_size)
    assert_same(found, by_hooks(module, images))
    assert input_gram_sums(module, images, names=every(module)).rows == dict.fromkeys(found, SAMPLES * 6)


def test_by_hand() -> None:
    found = grams(nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    assert found["weight"].tolist() == [[5.0, -5.0], [-5.0, 10.0]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_against_numpy(masked: bool, need_weights: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    mask = torch.full((6, 6), -torch.inf).triu(1) if masked else None

    def forward(module: Any, x: Tensor) -> Tensor:
        x = x if batch_first else x.transpose(0, 1)
        mixed, weights = module.a(x, x, x, need_weights=need_weights, attn_mask=mask)
        assert (weights is not None) == need_weights
        return cast(Tensor, module.o(mixed if batch_first else mixed.transpose(0, 1)))

    module = Net(forward, **attention(batch_first=batch_first))
    nn.init.normal_(module.get_parameter("a.in_proj_bias"))
    images = inputs(SAMPLES, *TOKENS)
    found = grams(module, images)
    weights, bias = (
        module.get_parameter(f"a.in_proj_{p}").detach().double().numpy() for p in ("weight", "bias")
    )
    x = images.double().numpy()
    mixed = attention_by_hand(x, weights, bias, 4, None if mask is None else mask.double().numpy())
    out, shift = (
        module.get_parameter(f"a.out_proj.{p}").detach().double().numpy() for p in ("weight", "bias")
    )
    expected = {"a.in_proj_weight": x, "a.out_proj.weight": mixed, "o.weight": mixed @ out.T + shift}
    assert_same(found, {name: torch.from_numpy(mean_outer(rows)) for name, rows in expected.items()})


@pytest.mark.parametrize(
    "settings", [{"kdim": 8, "vdim": 4}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}]
)
def test_other_kinds_of_attention(settings: dict[str, Any]) -> None:
    """The module behind tells that the attention computes what it would without being watched."""
    torch.manual_seed(0)
    widths = settings.get("kdim", 16), settings.get("vdim", 16)
    module = Net(
        lambda m, x: (
            m.o(m.a(x, x[..., : widths[0]], x[..., : widths[1]])[0])
            if "kdim" in settings
            else m.o(m.a(x, x, x)[0])
        ),
        **attention(**settings),
    )
    images = inputs(SAMPLES, *TOKENS)
    found = grams(module, images)
    expected = by_hooks(module, images)
    torch.testing.assert_close(found["o.weight"].double(), expected["o.weight"], rtol=1e-4, atol=1e-6)
    assert "a.out_proj.weight" in found
    if "kdim" in settings:
        for name, width in (("q", 16), ("k", 8), ("v", 4)):
            rows = images[..., :width].double().numpy()
            gram = found[f"a.{name}_proj_weight"].double()
            torch.testing.assert_close(gram, torch.from_numpy(mean_outer(rows)), rtol=1e-4, atol=1e-5)
    else:
        assert "a.in_proj_weight" in found


def test_packed_weights_that_meet_different_inputs_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    module = Net(lambda m, x: m.o(m.a(x, x.flip(1), x)[0]), **attention())
    with caplog.at_level(logging.INFO, logger="sta_lightning.arithmetic.gram"):
        found = grams(module, inputs(SAMPLES, *TOKENS))
    assert set(found) == {"a.out_proj.weight", "o.weight"}
    assert "no Gram matrix: a.in_proj_weight" in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_the_fast_path_hides_nothing_and_comes_back(fast: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2), nn.Linear(16, 3)
    ).eval()
    images = inputs(SAMPLES, *TOKENS)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        found = grams(module, images)
        assert torch.backends.mha.get_fastpath_enabled() == fast
        with pytest.raises((RuntimeError, AssertionError)):
            grams(module, inputs(SAMPLES, 6, 15))
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    ends = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert set(found) == {"1.weight", *(f"0.layers.{i}.{end}" for i in range(2) for end in ends)}
    torch.testing.assert_close(
        found["1.weight"].double(), by_hooks(module, images)["1.weight"], rtol=1e-4, atol=1e-5
    )


def test_a_weight_used_in_several_places_has_the_rows_of_all() -> None:
    torch.manual_seed(0)
    module = Net(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    images = inputs(SAMPLES, *TOKENS)
    module.b.weight = module.a.weight
    sums = input_gram_sums(module, images, names=["a.weight"])
    assert sums.rows == {"a.weight": 2 * SAMPLES * 6}
    hidden = F.relu(module.get_submodule("a")(images)).detach()
    both = torch.cat([images, hidden]).double().numpy()
    assert_same(sums.means(), {"a.weight": torch.from_numpy(mean_outer(both))})


def test_what_is_no_linear_layer_is_left_out() -> None:
    module = Net(
        lambda m, x: m.o(m.c(x.mT).mT @ m.w) @ m.o.weight[:2].T,
        c=nn.Conv1d(16, 16, 1), w=weight(16, 8), o=nn.Linear(8, 8), unused=nn.Linear(3, 3),
    )  # fmt: skip
    assert set(grams(module, inputs(SAMPLES, *TOKENS))) == {"o.weight"}


def test_only_the_names_asked_for() -> None:
    module = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))
    assert set(grams(module, inputs(SAMPLES, *TOKENS), names=["1.weight"])) == {"1.weight"}


def linear_weights(module: nn.Module) -> set[str]:
    """The weights of all linear layers, the packed projections of attention among them."""
    found = {
        f"{name}.weight"
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)  # also the output projection of nn.MultiheadAttention
    }
    return found | {name for name, _ in module.named_parameters() if name.endswith("in_proj_weight")}


def test_the_miniature_encoder() -> None:
    module = build_encoder("miniature", "random")
    images = inputs(3, *IMAGE)
    found = grams(module, images)
    assert set(found) == linear_weights(module)
    assert {"transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight"} < set(
        found
    )
    assert "proj" in dict(module.named_parameters())
    assert "proj" not in found
    expected = by_hooks(module, images)
    for name, gram in expected.items():
        torch.testing.assert_close(found[name].double(), gram, rtol=1e-4, atol=1e-5 * float(gram.abs().max()))


def test_a_timm_encoder() -> None:
    torch.manual_seed(0)
    module = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    images = inputs(3, *IMAGE)
    found = grams(module, images)
    assert set(found) == linear_weights(module)
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight"} < set(found)
    assert_same(found, by_hooks(module, images))


@pytest.mark.parametrize("name", ["CLIP", "timm", "residual network"])
def test_encoders_have_one_for_every_linear_layer(name: str) -> None:
    torch.manual_seed(0)
    module = ENCODERS[name]()
    assert set(grams(module, inputs(3, *IMAGE))) == linear_weights(module)


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(8, 3))
    module[3].eval()
    images = inputs(SAMPLES, *TOKENS)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = {name: part.training for name, part in module.named_modules()}
    state = torch.get_rng_state()
    plain = grams(module, images)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = grams(module, images.clone())
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    for name, gram in plain.items():
        assert torch.equal(gram, inside[name])
        assert not gram.requires_grad
        assert not inside[name].is_inference()


def test_half_precision_weights_run_in_float32() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3)).bfloat16()
    images = inputs(SAMPLES, *TOKENS).bfloat16()
    found = grams(module, images)
    assert module[0].weight.dtype == torch.bfloat16
    assert_same(found, by_hooks(module.float(), images.float()))


def test_parts_of_the_samples_add_up_and_none_have_no_rows() -> None:
    torch.manual_seed(0)
    module = nn.Linear(16, 3)
    images = inputs(SAMPLES, *TOKENS)
    whole = input_gram_sums(module, images, names=["weight"])
    parts = [input_gram_sums(module, part, names=["weight"]) for part in (images[:2], images[2:])]
    assert whole.sums["weight"].dtype == torch.float64
    torch.testing.assert_close(
        parts[0].sums["weight"] + parts[1].sums["weight"], whole.sums["weight"], rtol=1e-5, atol=1e-5
    )
    assert whole.rows["weight"] == sum(part.rows["weight"] for part in parts)
    assert grams(module, images[:0]) == {}


def test_many_rows_lose_no_digits() -> None:
    """In float32 alone the last of many equal addends would be rounded away."""
    rows = torch.full((4096, 4, 1), 1.1)
    found = grams(nn.Linear(1, 1), rows, chunk_size=1)["weight"]
    assert float(found) == pytest.approx(np.float32(1.1) ** 2, rel=2e-7)


def test_a_compiled_part_runs_as_it_was_written() -> None:
    module = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3))

    def refuse(*_: Any) -> Any:
        raise AssertionError("something was compiled")

    module[0] = cast(nn.Module, torch.compile(module[0], backend=refuse))
    assert set(grams(module, inputs(SAMPLES, *TOKENS))) == {"0._orig_mod.weight", "1.weight"}


def test_wrong_arguments_are_refused() -> None:
    module, images = nn.Linear(16, 3), inputs(SAMPLES, *TOKENS)
    with pytest.raises(ValueError, match="at least 1"):
        grams(module, images, chunk_size=0)
    with pytest.raises(ValueError, match=r"Not floating-point parameters of Linear: other\.weight"):
        grams(module, images, names=["other.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ["CLIP", "timm", "residual network"])
def test_a_gpu_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    module, images = ENCODERS[name](), inputs(SAMPLES, *IMAGE)
    expected = grams(module, images)
    found = grams(module.cuda(), images.cuda())
    assert found.keys() == expected.keys()
    for key, gram in found.items():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(gram.cpu(), expected[key], rtol=1e-4, atol=1e-5 * scale)
