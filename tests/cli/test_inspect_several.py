"""``sta inspect BASE FILE...``: whether they can be merged, and which does not belong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sta_lightning.arithmetic.vectors import sign_conflict
from sta_lightning.cli.main import main
from sta_lightning.weights import provenance, save_weights
from tests.cli.test_any_model import adapters, bert, here, llama, moved, saved  # noqa: F401
from tests.weights.formats.tiny import tiny_clip

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def told(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    """What the comparison says as JSON."""
    assert main(["inspect", "--json", *words]) == status
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert len(content["files"]) == sum(Path(word).exists() for word in words)
    found: dict[str, Any] = content["comparison"]
    return found


def fine_tuned(model: nn.Module, seed: int, scale: float) -> nn.Module:
    """A short way from where it was."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model


def another_bert() -> nn.Module:
    """Of the same architecture, from a start of its own."""
    model = bert()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model


def test_four_files_one_of_which_does_not_belong(capsys: pytest.CaptureFixture[str]) -> None:
    bert().save_pretrained("base")
    for seed, name in enumerate("abc", 1):
        fine_tuned(bert(), seed, 0.002).save_pretrained(name)
    fine_tuned(another_bert(), 4, 0.002).save_pretrained("d")
    assert main(["inspect", "base", "a", "b", "c", "d", "--html", "out.html"]) == 0
    text = capsys.readouterr().out
    assert (
        "can be merged: 4 models with the 41 weights of 'base'. Probably not fine-tuned from it: 'd'." in text
    )
    assert "d: probably not a fine-tuning of this base: the median cosine of its matrices" in text
    assert "Cosine of two task vectors, in percent" in text
    page = Path("out.html").read_text()
    assert page.count("<svg") == 3
    assert "What does not belong" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    found = told(["base", "a", "b", "c", "d"], capsys)
    assert list(found["strangers"]) == ["d"]
    assert list(found["models"]) == ["a", "b", "c", "d"]
    states = {name: fine_tuned(bert(), seed, 0.002).state_dict() for seed, name in enumerate("abc", 1)}
    conflict = sign_conflict(bert().state_dict(), states)
    for one, row in conflict.items():
        assert {two: found["conflict"][one][two] for two in "abc"} == pytest.approx(row, abs=1e-9)
    # Named once, the base is the first; named apart, all others are its fine-tunings.
    assert told(["a", "b", "--pretrained=base"], capsys)["models"].keys() == {"a", "b"}


def test_a_base_that_is_not_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    another_bert().save_pretrained("base")
    for seed, name in enumerate("ab", 1):
        fine_tuned(bert(), seed, 0.002).save_pretrained(name)
    assert "look for another base" in told(["base", "a", "b"], capsys)["verdict"]


def test_a_head_of_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert, "a")
    moved(bert(labels=5), 7).save_pretrained("b")
    words = ["base", "a", "b"]
    assert main(["inspect", *words]) == 1
    out, err = capsys.readouterr()
    assert "of 2 models, 'b' cannot be merged with 'base'." in out
    assert "'b' cannot be merged" in err
    assert "--skip 'classifier.*'" in err
    assert "Task vectors" in out
    refused = told(words, capsys, 1)["refused"]["b"]
    assert sorted(refused["of another shape"], reverse=True) == ["classifier.weight", "classifier.bias"]
    assert (refused["missing"], refused["unknown"]) == ([], [])
    found = told([*words, "--skip", "classifier.*"], capsys)
    assert (found["refused"], found["tensors"]) == ({}, 39)


def test_a_model_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert, "a")
    llama().save_pretrained("d")
    found = told(["base", "d", "a"], capsys, 1)
    assert "'d' has none of the pretrained model's tensors" in found["refused"]["d"]["reason"]
    assert list(found["models"]) == ["a"]
    assert main(["inspect", "base", "d"]) == 1


def test_an_adapter_is_as_its_rank_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    llama().save_pretrained("base", max_shard_size="5KB")
    adapters(llama())
    assert main(["inspect", "y"]) == 0
    shown = capsys.readouterr().out
    assert "layout        an adapter, as peft saves it" in shown
    assert "r: 4" in shown
    found = told(["base", "x", "y", "z"], capsys)["models"]
    for name, rank in {"x": 2, "y": 4, "z": 3}.items():
        ranks = [value for value in found[name]["ranks"].values() if value]
        assert len(ranks) == 4  # two matrices in each of two layers
        assert 1 <= min(ranks) <= max(ranks) <= rank * (1 + 1e-5)
        assert found[name]["rank"] == pytest.approx(sorted(ranks)[1] / 2 + sorted(ranks)[2] / 2)


def test_images_of_another_size_and_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny_clip().state_dict(), "base.pt")
    state = fine_tuned(tiny_clip(), 1, 0.002).state_dict()
    torch.save(state, "a.pt")
    torch.save({**state, "visual.positional_embedding": torch.zeros(17, 32)}, "b.pt")
    assert main(["inspect", "base.pt", "a.pt", "b.pt"]) == 1
    said = capsys.readouterr().err
    assert "'positional_embedding (17, 32) for (5, 32)'" in said
    assert "--skip 'positional_embedding'" in said
    skip = ["--skip", "positional_embedding"]
    assert not told(["base.pt", "a.pt", "b.pt", *skip], capsys)["refused"]
    merge = ["merge", "base.pt", "a.pt", "b.pt", "-o", "merged.safetensors", "--method=average"]
    assert main(merge) == 2
    assert not Path("merged.safetensors").exists()
    assert main([*merge, *skip]) == 0


def test_a_text_tower_counts_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_clip()
    torch.save(base.state_dict(), "base.pt")
    torch.save(fine_tuned(tiny_clip(), 1, 0.01).state_dict(), "whole.pt")
    torch.save(fine_tuned(tiny_clip(), 1, 0.01).visual.state_dict(), "image.pt")
    found = told(["base.pt", "whole.pt", "image.pt"], capsys)["models"]
    text = {name for name in base.state_dict() if not name.startswith("visual.")}
    assert set(found["image"]["equal"]) == text
    assert found["whole"]["equal"] == []
    squares = {
        name: sum(row["norm"] ** 2 for block, row in model["blocks"].items() if block.startswith("visual"))
        for name, model in found.items()
    }
    assert math.sqrt(squares["image"]) == pytest.approx(found["image"]["norm"])
    assert found["whole"]["norm"] > math.sqrt(squares["whole"])


def test_what_holds_no_weights_of_a_model_or_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"visual.{name}": tensor for name, tensor in tiny_clip().visual.state_dict().items()}
    save_weights("base.safetensors", state)
    save_weights("a.safetensors", state)
    save_weights("b.safetensors", state, provenance("importance:lp", {}, {}))
    torch.save({**state, "visual.ln_post.bias": torch.full((32,), math.nan)}, "c.pt")
    found = told(["base.safetensors", "a.safetensors", "b.safetensors", "c.pt"], capsys, 1)
    assert "holds no weights of a model, but 'importance:lp'" in found["refused"]["b"]["reason"]
    assert "holds NaN or Inf in tensor 'visual.ln_post.bias'" in found["refused"]["c"]["reason"]
    assert list(found["models"]) == ["a"]
    for order in ("base a b", "b a base"):
        files = [f"{name}.safetensors" for name in order.split()]
        assert main(["merge", *files, "-o", "out.safetensors"]) == 2
        assert "importance:lp" in capsys.readouterr().err
        assert not Path("out.safetensors").exists()
    # Of a base that is none the files are described all the same.
    assert main(["inspect", "--json", "b.safetensors", "a.safetensors"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out).keys() == {"files"}
    assert "'b.safetensors' holds no weights of a model" in err


def test_what_a_merge_does_not_read_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tiny_clip().state_dict(), "base.pt")
    for option in ("--state=ema", "--unsafe-pickle"):
        assert main(["inspect", "base.pt", "base.pt", option]) == 2
        assert "sta convert IN OUT.safetensors --to=safetensors" in capsys.readouterr().err
