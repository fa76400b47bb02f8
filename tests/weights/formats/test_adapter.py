"""Adapters, compared with what peft itself makes of them."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sta_lightning.arithmetic.sources import whole
from sta_lightning.errors import StaError
from sta_lightning.weights.formats.adapter import is_adapter, open_adapter
from sta_lightning.weights.formats.checkpoint import open_checkpoint

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    # peft reads what this version of transformers calls deprecated,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # and suspects its own biases.
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "init_lora_weights": "gaussian", "bias": "lora_only"},
    "dora": {"use_dora": True, "bias": "all", "modules_to_save": ["classifier"]},
    "patterns": {
        "target_modules": ["query", "value", "dense"],
        "rank_pattern": {"value": 2, "layer.1.output.dense": 6},
        "alpha_pattern": {"^bert.encoder.layer.0.attention.self.query": 24},
    },
    "lora_bias": {"lora_bias": True},
    "parameters": {"target_modules": ["value"], "target_parameters": ["query.weight", "output.dense.weight"]},
    "embedding": {"target_modules": ["word_embeddings", "key"]},
}


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def drawn(module: nn.Module, seed: int) -> None:
    """Draw every parameter that an adapter trains, so that none is at its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1


def saved(base: nn.Module, folder: Path, **settings: Any) -> tuple[Path, Path, dict[str, Tensor]]:
    """A base, an adapter, and what peft makes of them."""
    base.save_pretrained(folder / "base")
    settings = {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 10, **settings}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
    drawn(model, 0)
    model.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", model.merge_and_unload().state_dict()


def opened(base: Path, adapter: Path) -> dict[str, Tensor]:
    with ExitStack() as stack:
        found = open_adapter(adapter, open_checkpoint(base, stack), stack)
        return {name: whole(source) for name, source in found.tensors.items()}


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert set(found) <= set(wanted)
    assert {name for name in found if not torch.equal(found[name], before[name])}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_is_what_peft_merges(settings: dict[str, Any], tmp_path: Path) -> None:
    model = bert()
    base, adapter, wanted = saved(model, tmp_path, **settings)
    assert is_adapter(adapter)
    assert not is_adapter(base)
    agree(opened(base, adapter), wanted, model.state_dict())


@pytest.mark.parametrize("dora", [False, True])
def test_transposed_weights(dora: bool, tmp_path: Path) -> None:
    model = gpt2()
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": dora}
    base, adapter, wanted = saved(model, tmp_path, **settings)
    agree(opened(base, adapter), wanted, model.state_dict())


def test_convolutions(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    tuned = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["0", "1"]))
    drawn(tuned, 1)
    tuned.save_pretrained(tmp_path / "adapter")
    torch.save(model.state_dict(), tmp_path / "base.pt")
    wanted = tuned.merge_and_unload().state_dict()
    agree(opened(tmp_path / "base.pt", tmp_path / "adapter"), wanted, model.state_dict())


def test_a_base_without_the_models_own_prefix(tmp_path: Path) -> None:
    model = gpt2()
    _, adapter, wanted = saved(model, tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    body = {n.removeprefix("transformer."): t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    torch.save(body, tmp_path / "body.pt")
    found = opened(tmp_path / "body.pt", adapter)
    agree({f"transformer.{name}": tensor for name, tensor in found.items()}, wanted, model.state_dict())


def test_any_piece_is_the_same_as_the_whole(tmp_path: Path) -> None:
    base, adapter, _ = saved(gpt2(), tmp_path, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)
    with ExitStack() as stack:
        source = open_adapter(adapter, open_checkpoint(base, stack), stack).tensors[
            "transformer.h.0.attn.c_attn.weight"
        ]
        entries = whole(source).flatten()
        for piece in (slice(0, 1), slice(47, 49), slice(100, 333), slice(767, 768), slice(5, 5)):
            torch.testing.assert_close(source.read(piece, torch.float32), entries[piece], rtol=0, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "of the kind 'IA3'"),
    "beyond its matrices": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "a changed base": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "rank zero": ({"r": 0}, "says rank 0"),
    "another rank": ({"r": 5}, "its matrices have rank 4"),
    "no alpha": ({"lora_alpha": None}, "alpha None"),
    "two of a module": ({"target_parameters": ["query.weight", "query.more"]}, "several parameters of"),
    "an expression": ({"rank_pattern": {"(a+)+": 4}}, "no plain name"),
}


@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_cannot_be_read(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    base, adapter, _ = saved(bert(), tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(StaError, match="adapter") as caught:
        opened(base, adapter)
    assert message in str(caught.value)


def test_an_adapter_without_its_weights(tmp_path: Path) -> None:
    base, adapter, _ = saved(bert(), tmp_path)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(StaError, match="no weights beside its configuration"):
        opened(base, adapter)


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    _, adapter, _ = saved(bert(), tmp_path / "a")
    other, _, _ = saved(gpt2(), tmp_path / "b", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(StaError, match=r"does not have.*trained on"):
        opened(other, adapter)


def test_an_adapter_of_another_width(tmp_path: Path) -> None:
    _, adapter, _ = saved(bert(), tmp_path)
    wide = {n: torch.zeros(*(2 * side for side in t.shape)) for n, t in bert().state_dict().items()}
    torch.save(wide, tmp_path / "wide.pt")
    with pytest.raises(StaError, match=r"does not fit the base.*trained on"):
        opened(tmp_path / "wide.pt", adapter)


def test_an_adapter_that_fits_either_tower(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    alone = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
    base, adapter, _ = saved(alone, tmp_path, target_modules=["q_proj"])
    assert opened(base, adapter)
    text = {**sizes, "vocab_size": 40, "max_position_embeddings": 7}
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(StaError, match=r"fits several parts of the base.*'text_model.*, 'vision_model"):
        opened(tmp_path / "whole", adapter)
