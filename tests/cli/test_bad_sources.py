"""Sources that cannot be merged, or that one should know of: one message, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sta_lightning.cli.main import main
from tests.cli.test_any_model import adapters, bert, here, llama, loaded, saved  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TABLE = "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def config(file: str, **changed: object) -> None:
    path = Path(file)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def places(change: Callable[[dict[str, str]], None], folder: str = "b") -> None:
    table = json.loads(Path(folder, TABLE).read_text())
    change(table["weight_map"])
    Path(folder, TABLE).write_text(json.dumps(table))


def outside(where: str) -> Callable[[], None]:
    def change(names: dict[str, str]) -> None:
        names[next(iter(names))] = where

    return lambda: places(change)


def named_twice() -> None:
    text = Path("b", TABLE).read_text()
    line = next(line for line in text.splitlines() if '"model.norm.weight"' in line)
    Path("b", TABLE).write_text(text.replace('"weight_map": {', '"weight_map": {' + line.rstrip(",") + ","))


def in_two_shards() -> None:
    one, two = sorted(Path("b").glob("model-*.safetensors"))[:2]
    tensors = load_file(one)
    save_file({**load_file(two), next(iter(tensors)): next(iter(tensors.values()))}, two)


def cut_short() -> None:
    shard = sorted(Path("b").glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])


def cut_short_pickle() -> None:
    state = llama().state_dict()
    for file in Path("b").iterdir():
        file.unlink()
    half = len(state) // 2
    shards = {"pytorch_model-00001-of-00002.bin": list(state)[:half]}
    shards["pytorch_model-00002-of-00002.bin"] = list(state)[half:]
    for name, names in shards.items():
        torch.save({key: state[key] for key in names}, Path("b", name))
    where = {key: name for name, names in shards.items() for key in names}
    Path("b", "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    shard = Path("b", "pytorch_model-00002-of-00002.bin")
    shard.write_bytes(shard.read_bytes()[:-200])


def packed(*names: str) -> Callable[[], None]:
    def pack() -> None:
        for shard in Path("b").glob("model*"):
            shard.unlink()
        save_file({name: torch.zeros(2, 2, dtype=torch.int32) for name in names}, "b/model.safetensors")

    return pack


def rank_zero() -> None:
    state = load_file("x/adapter_model.safetensors")
    none = {n: t[:0] if "lora_A" in n else t[:, :0].contiguous() for n, t in state.items()}
    save_file(none, "x/adapter_model.safetensors")
    config("x/adapter_config.json", r=0)


def nan_in_it() -> None:
    state = load_file("x/adapter_model.safetensors")
    state[next(iter(state))][0, 0] = torch.nan
    save_file(state, "x/adapter_model.safetensors")


BROKEN: dict[str, tuple[str, Callable[[], None], str]] = {
    "tensor twice": ("b", named_twice, "'model.norm.weight' is named twice"),
    "above the folder": ("b", outside("../base/model.safetensors"), "a file beside it"),
    "an absolute path": ("b", outside("/etc/passwd"), "a file beside it"),
    "a folder below": ("b", outside("more/model.safetensors"), "a file beside it"),
    "the folder above": ("b", outside(".."), "1 are missing: '..'"),
    "in two shards": ("b", in_two_shards, "has tensors in two shards"),
    "a shard cut short": ("b", cut_short, "-00002-of-"),
    "a pickled shard cut short": ("b", cut_short_pickle, "pytorch_model-00002-of-00002.bin"),
    "GPTQ": ("b", packed("h.0.qweight", "h.0.qzeros", "h.0.scales"), "quantised by GPTQ or AWQ"),
    "bitsandbytes": ("b", packed("h.weight", "h.weight.absmax"), "quantised by bitsandbytes"),
    "another way to quantise": (
        "b",
        lambda: config("b/config.json", quantization_config={"quant_method": "fp8"}),
        "a model quantised by fp8, as its config.json says",
    ),
    "rank zero": ("x", rank_zero, "says rank 0"),
    "NaN in an adapter": ("x", nan_in_it, "holds NaN or Inf in tensor 'model.layers.0."),
    "alpha that is none": (
        "x",
        lambda: config("x/adapter_config.json", lora_alpha=float("nan")),
        "alpha nan",
    ),
}


@pytest.mark.parametrize(("source", "spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_one_message_and_nothing_written(
    source: str, spoil: Callable[[], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(llama, "ab", max_shard_size="5KB")
    adapters(llama())
    spoil()
    before = sorted(Path().rglob("*"))
    words = ["merge", "base", "a", source, "-o", "merged", "--method=task_arithmetic"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("sta: error:") == 1
    assert message in said
    assert f"{source}" in said
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before


def test_a_quantised_base(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert, "a")
    config("base/config.json", quantization_config={"quant_method": "fp8"})
    assert main(["merge", "base", "a", "-o", "merged"]) == 2
    assert "'base' holds a model quantised by fp8" in capsys.readouterr().err
    assert not Path("merged").exists()


@pytest.mark.filterwarnings("always::sta_lightning.errors.StaWarning")
def test_what_one_should_know_of_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    saved(llama, "a")
    adapters(llama())
    for folder, words in {"base": {"a": 0, "b": 1}, "a": {"a": 0, "<new>": 1}}.items():
        Path(folder, "vocab.json").write_text(json.dumps(words))
    config("x/adapter_config.json", base_model_name_or_path="org/another")
    words = ["base", "a", "x"]
    for command in (["merge", *words, "-o", "merged", "--method=average"], ["inspect", *words]):
        assert main(command) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sta: ")]
        tokens, name = (line.removeprefix("sta: warning: ") for line in said)
        assert tokens.startswith("task 'a': the tokenizer of 'a' (vocab.json) is not that of the base 'base'")
        assert "1 more: '<new>', 1 fewer: 'b'" in tokens
        assert name.startswith("task 'x': the adapter 'x' says that it was trained on 'org/another'")
    assert json.loads(Path("merged/vocab.json").read_text()) == {"a": 0, "b": 1}


def test_types_of_all_sorts_are_merged_in_the_widest(capsys: pytest.CaptureFixture[str]) -> None:
    base, states = bert().state_dict(), {}
    for seed, (name, dtype) in enumerate(
        {"a": torch.bfloat16, "b": torch.float16, "c": torch.float32}.items()
    ):
        torch.manual_seed(seed)
        states[name] = {n: (t + 0.1 * torch.randn(t.shape)).to(dtype) for n, t in base.items()}
    # Norms wider than the rest, as many checkpoints have it.
    base = {n: t if "LayerNorm" in n else t.bfloat16() for n, t in base.items()}
    states["a"] |= {n: t.float() for n, t in states["a"].items() if "LayerNorm" in n}
    for name, state in {"base": base, **states}.items():
        bert().save_pretrained(name)
        save_file(state, Path(name, "model.safetensors"), {"format": "pt"})
    assert main(["merge", "base", "a", "b", "c", "-o", "merged", "--method=average"]) == 0
    assert "sta: warning" not in capsys.readouterr().err
    found = load_file("merged/model.safetensors")
    for name, tensor in base.items():
        wanted = torch.stack([states[task][name].double() for task in "abc"]).mean(0)
        assert found[name].dtype == tensor.dtype
        tolerance = 2**-8 if tensor.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found[name].double(), wanted, rtol=tolerance, atol=1e-6)
    assert loaded("BertForSequenceClassification", "merged")
