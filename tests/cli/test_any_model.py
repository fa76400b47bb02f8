"""Models that are no image encoders, in shards, as adapters, and in part: one line each."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sta_lightning
from sta_lightning.arithmetic import merge
from sta_lightning.cli.main import main
from sta_lightning.engine.card import write_card

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# peft reads what this version of transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def bert(labels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50
    )
    config.num_labels = labels
    return transformers.BertForSequenceClassification(config)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=40,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def moved(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def saved(make: Any, names: str = "abc", **options: Any) -> tuple[State, dict[str, State]]:
    """A base and models fine-tuned from it, as folders; their states."""
    make().save_pretrained("base", **options)
    models = {name: moved(make(), seed) for seed, name in enumerate(names, 1)}
    for name, model in models.items():
        model.save_pretrained(name, **options)
    return make().state_dict(), {name: model.state_dict() for name, model in models.items()}


def loaded(kind: str, folder: str) -> State:
    return getattr(transformers, kind).from_pretrained(folder).state_dict()


def close(found: State, wanted: State, tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", ["ties", "average", "tsv", "lines", "swudi_a"])
def test_three_berts(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    base, states = saved(bert)
    assert main(["merge", "base", "a", "b", "c", "-o", "merged", "--method", method]) == 0
    assert "written: merged (a model of 41 tensors" in capsys.readouterr().out
    close(loaded("BertForSequenceClassification", "merged"), merge(method, base, states).weights)


def test_the_card_of_a_merged_model() -> None:
    saved(bert, "ab")
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(
        json.dumps({**config, "_name_or_path": "google-bert/bert-base-uncased"})
    )
    Path("base/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    Path("b/README.md").write_text("---\nlicense: mit\nbase_model: google-bert/bert-base-uncased\n---\n")
    assert main(["merge", "base", "a", "b", "-o", "merged", "--method=ties", "--keep=0.3"]) == 0
    card = huggingface_hub.ModelCard.load("merged/README.md", ignore_metadata_errors=False)
    said = card.data.to_dict()
    assert said == {
        "library_name": "transformers",
        "base_model": ["google-bert/bert-base-uncased"],
        "base_model_relation": "merge",
        "tags": ["merge", "model-merging", "sta_lightning"],
    }
    digest = hashlib.sha256(Path("a/model.safetensors").read_bytes()).hexdigest()
    for part in (
        *("`fused:ties`", "| keep | 0.3 |", f"| finetuned/a | model.safetensors | `{digest}` |"),
        *("| pretrained | apache-2.0 |", "| finetuned/b | mit |", "None is recorded."),
    ):
        assert part in card.text, part
    assert str(Path.cwd()) not in str(card)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)  # the card's own
    close(scope["model"].state_dict(), loaded("BertForSequenceClassification", "merged"))
    # What was measured goes into the same card, with what it was measured of.
    assert write_card("merged", {"spam": 0.75}) == Path("merged/README.md")
    measured = huggingface_hub.ModelCard.load("merged/README.md", ignore_metadata_errors=False)
    (result,) = measured.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("spam", 0.75)
    assert {key: measured.data.to_dict()[key] for key in said} == said
    assert hashlib.sha256(Path("merged/model.safetensors").read_bytes()).hexdigest() in measured.text
    # What it says goes on: merged again, it is one of the sources.
    assert main(["merge", "base", "merged", "a", "-o", "again", "--method=average"]) == 0
    again = huggingface_hub.ModelCard.load("again/README.md").data
    assert again.base_model == ["google-bert/bert-base-uncased"]
    assert again.license == "apache-2.0"


def test_a_head_of_another_size_can_be_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    base, states = saved(bert, "a")
    other = moved(bert(labels=5), 7)
    other.save_pretrained("b")
    words = ["merge", "base", "a", "b", "-o", "merged", "--method=average"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "2 of another shape: " in said
    assert "'classifier.weight (5, 16) for (2, 16)'" in said
    assert "--skip 'classifier.*'" in said
    assert not Path("merged").exists()
    assert main([*words, "--skip", "classifier.*"]) == 0
    found = loaded("BertForSequenceClassification", "merged")
    wanted = merge("average", _body(base), {"a": _body(states["a"]), "b": _body(other.state_dict())})
    close(_body(found), wanted.weights)
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith("classifier."))


def _body(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}


@pytest.mark.parametrize(("name", "head"), [("test_resnet", "fc"), ("test_vit", "head")])
def test_classifiers_of_images_with_heads_of_their_own(
    name: str, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=3).state_dict()
    states = {"base": base}
    for seed, task in enumerate("ab", 1):
        model = moved(timm.create_model(name, num_classes=3 + seed), seed)
        states[task] = {n: t + seed if "running" in n else t for n, t in model.state_dict().items()}
    for task, state in states.items():
        torch.save(state, f"{task}.pt")
    words = ["merge", "base.pt", "a.pt", "b.pt", "-o", "merged.safetensors", "--method=average"]
    if name == "test_resnet":  # of a vision transformer the image encoder is merged, without a head
        assert main(words) == 2
        assert f"--skip '{head}.*'" in capsys.readouterr().err
        assert not Path("merged.safetensors").exists()
    assert main([*words, "--skip", f"{head}.*", "--statistics=average"]) == 0
    found = load_file("merged.safetensors")
    body = {n: t for n, t in base.items() if not n.startswith(f"{head}.")}
    assert found.keys() >= body.keys()
    for key, tensor in base.items():
        if key.startswith(f"{head}.") or not tensor.is_floating_point():
            assert key not in found or torch.equal(found[key], tensor), key
        else:
            mean = (states["a"][key].double() + states["b"][key].double()) / 2
            torch.testing.assert_close(found[key].double(), mean, rtol=0, atol=1e-6, msg=key)
    assert any("running_var" in key for key in found) == (name == "test_resnet")


def test_patterns_given_several_times() -> None:
    base, states = saved(bert)
    words = ["--only", "*.layer.0.*", "--only=*.layer.1.*", "--skip", "*bias", "--skip", "*LayerNorm*"]
    assert main(["merge", "base", "a", "b", "c", "-o", "merged", "--method=average", *words]) == 0
    found = loaded("BertForSequenceClassification", "merged")
    changed = {name for name in base if not torch.equal(found[name], base[name])}
    assert changed == {n for n in base if ".layer." in n and not n.endswith("bias") and "LayerNorm" not in n}
    wanted = merge("average", base, states)
    assert all(torch.allclose(found[name], wanted.weights[name], atol=1e-6) for name in changed)


def test_patterns_that_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert)
    assert main(["merge", "base", "a", "b", "-o", "merged", "--only=nowhere.*"]) == 2
    assert "leave no tensor of the pretrained model to merge" in capsys.readouterr().err


def test_models_of_two_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert)
    llama().save_pretrained("d")
    assert main(["merge", "base", "a", "d", "-o", "merged"]) == 2
    assert "'d' has none of the pretrained model's tensors" in capsys.readouterr().err


def adapters(base: nn.Module) -> dict[str, State]:
    """Three adapters of mixed rank as folders; the models that peft makes of them."""
    found = {}
    for seed, (name, rank) in enumerate({"x": 2, "y": 4, "z": 3}.items(), 1):
        config = peft.LoraConfig(r=rank, lora_alpha=6, target_modules=["q_proj", "down_proj"])
        model = moved(peft.get_peft_model(copy.deepcopy(base), config), seed)
        model.save_pretrained(name)
        found[name] = model.merge_and_unload().state_dict()
    return found


def test_a_sharded_llama_and_three_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    llama().save_pretrained("base", max_shard_size="5KB")
    assert Path("base/model.safetensors.index.json").is_file()
    states = adapters(llama())
    words = ["merge", "base", "x", "y", "z", "-o", "merged", "--method=task_arithmetic", "--scale=0.5"]
    assert main([*words, "--shard_size=4KB"]) == 0
    shards = sorted(path.name for path in Path("merged").glob("model-*.safetensors"))
    assert len(shards) > 3
    table = json.loads(Path("merged/model.safetensors.index.json").read_text())
    assert sorted(set(table["weight_map"].values())) == shards
    wanted = merge("task_arithmetic", llama().state_dict(), states, scale=0.5).weights
    close(loaded("LlamaForCausalLM", "merged"), wanted, 2e-6)
    # Three changes of ranks 2, 4 and 3 add up to one of rank 9 at most.
    assert main(["convert", "merged", "adapter", "--to=lora", "--rank=9", "--pretrained=base"]) == 0
    assert "(100.00% of the whole change's energy" in capsys.readouterr().out
    again = peft.PeftModel.from_pretrained(llama(), "adapter").merge_and_unload().state_dict()
    close(again, wanted, 1e-5)


def test_an_adapter_of_a_clip_is_merged() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 40, "max_position_embeddings": 7},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    base = transformers.CLIPModel(config)
    base.save_pretrained("base")
    states = {}
    for seed, name in enumerate("ab", 1):
        lora = peft.LoraConfig(r=2, target_modules=r"vision_model.*(q_proj|fc1)")
        model = moved(peft.get_peft_model(copy.deepcopy(base), lora), seed)
        model.save_pretrained(name)
        states[name] = model.merge_and_unload().state_dict()
    assert main(["merge", "base", "a", "b", "-o", "merged", "--method=average"]) == 0
    close(loaded("CLIPModel", "merged"), merge("average", base.state_dict(), states).weights)


def test_an_adapter_for_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert)
    adapters(llama())
    assert main(["merge", "base", "x", "y", "-o", "merged"]) == 2
    said = capsys.readouterr().err
    assert "the adapter 'x' changes tensors that the base 'base' does not have" in said
    assert not Path("merged").exists()


@pytest.mark.parametrize("size", ["", "many", "0GB", "-1"])
def test_a_size_that_is_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert)
    assert main(["merge", "base", "a", "b", "-o", "merged", f"--shard_size={size}"]) == 2
    assert "shard_size" in capsys.readouterr().err


def speaking() -> nn.Module:
    """A model whose last layer is its table of embeddings."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50
    )
    return transformers.BertForMaskedLM(config)


TABLE = "bert.embeddings.word_embeddings.weight"
LAST = "cls.predictions.decoder.weight"


def pickled(model: nn.Module, folder: str, state: State | None = None) -> State:
    """Save it as older versions of transformers do, with all names."""
    model.save_pretrained(folder)
    Path(folder, "model.safetensors").unlink()
    torch.save(state or model.state_dict(), Path(folder, "pytorch_model.bin"))
    return model.state_dict()


def test_a_tensor_of_two_names_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    base = pickled(speaking(), "base")
    assert base[LAST].data_ptr() == base[TABLE].data_ptr()
    tuned = moved(speaking(), 1)
    tuned.save_pretrained("a")  # which leaves the second name out
    states = {"a": tuned.state_dict(), "b": pickled(moved(speaking(), 2), "b")}
    wanted = merge("random_mask", _once(base), {task: _once(state) for task, state in states.items()}).weights
    words = ["merge", "base", "a", "b", "--method=random_mask"]

    assert main([*words, "-o", "merged"]) == 0
    assert {LAST, "cls.predictions.decoder.bias"}.isdisjoint(load_file("merged/model.safetensors"))
    found = transformers.BertForMaskedLM.from_pretrained("merged").state_dict()
    assert found[LAST].data_ptr() == found[TABLE].data_ptr()
    close(_once(found), wanted)
    # What loads a file need not know that they are one.
    assert main([*words, "-o", "merged.safetensors"]) == 0
    found = load_file("merged.safetensors")
    speaking().load_state_dict(found, strict=True)
    assert torch.equal(found[LAST], found[TABLE])
    close(_once(found), wanted)
    # And so a model from Python.
    made = sta_lightning.merge("random_mask", "base", {"a": "a", "b": "b"})
    assert made[LAST] is made[TABLE]
    speaking().load_state_dict(dict(made), strict=True)
    made.save("again")
    assert (
        Path("again/model.safetensors").stat().st_size < 1.1 * Path("merged/model.safetensors").stat().st_size
    )
    close(loaded("BertForMaskedLM", "again"), loaded("BertForMaskedLM", "merged"))
    # A base of one name takes tasks of two.
    speaking().save_pretrained("plain")
    assert main(["merge", "plain", "a", "b", "--method=random_mask", "-o", "of_plain"]) == 0
    close(loaded("BertForMaskedLM", "of_plain"), loaded("BertForMaskedLM", "merged"))
    capsys.readouterr()


def _once(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("cls.predictions.decoder.")}


def test_adapters_of_a_model_with_a_tensor_of_two_names() -> None:
    pickled(speaking(), "base")
    states = {}
    for seed, name in enumerate("ab", 1):
        lora = peft.LoraConfig(r=2, target_modules=["query"])
        model = moved(peft.get_peft_model(speaking(), lora), seed)
        model.save_pretrained(name)
        states[name] = _once(model.merge_and_unload().state_dict())
    assert main(["merge", "base", "a", "b", "-o", "merged", "--method=average"]) == 0
    wanted = merge("average", _once(speaking().state_dict()), states).weights
    close(_once(loaded("BertForMaskedLM", "merged")), wanted)
    assert main(["convert", "merged", "adapter", "--to=lora", "--rank=4", "--pretrained=base"]) == 0
    again = peft.PeftModel.from_pretrained(speaking(), "adapter").merge_and_unload().state_dict()
    close(_once(again), wanted, 1e-5)


def test_a_model_that_has_parted_what_the_base_shares(capsys: pytest.CaptureFixture[str]) -> None:
    pickled(speaking(), "base")
    pickled(moved(speaking(), 2), "a")
    parted = {name: tensor.clone() for name, tensor in moved(speaking(), 1).state_dict().items()}
    pickled(speaking(), "b", parted)
    words = ["merge", "base", "a", "b", "-o", "merged", "--method=average"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"2 unknown: '{LAST}'" in said
    assert "--skip 'cls.predictions.decoder.*'" in said
    assert not Path("merged").exists()
    assert main([*words, "--skip", "cls.predictions.decoder.*"]) == 0
