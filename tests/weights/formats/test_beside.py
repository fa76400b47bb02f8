"""What lies beside a source and speaks against its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sta_lightning.weights.formats import doubts


def adapter(folder: Path, stated: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": stated}))
    return folder


def model(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("stated", "base"),
    [
        ("org/Llama-7b", "llama-7B"),
        ("org/llama-7b/", "models--org--llama-7b/snapshots/0123"),
        ("runs/base.safetensors", "elsewhere/base.safetensors"),
        ("runs/base", "base/model.safetensors"),
        ("org/llama-3.1", "named"),
        ("", "another"),
        (None, "another"),
    ],
)
def test_an_adapter_of_this_base(stated: object, base: str, tmp_path: Path) -> None:
    own = adapter(tmp_path / "adapter", stated)
    model(tmp_path / "named", config__json={"_name_or_path": "mirror/llama-3.1"})
    assert not list(doubts(own, tmp_path / base))


def test_an_adapter_that_names_another_base(tmp_path: Path) -> None:
    own = adapter(tmp_path / "adapter", "org/llama-3.1-8b")
    base = model(tmp_path / "llama-3", config__json={"_name_or_path": "org/llama-3"})
    (said,) = doubts(own, base)
    assert said.startswith(f"the adapter '{own}' says that it was trained on 'org/llama-3.1-8b'")
    assert f"the base is '{base}'" in said
    assert list(doubts(own / "adapter_model.safetensors", base)) == [said]
    assert not list(doubts(model(tmp_path / "full"), base))


WORDS = {"a": 0, "b": 1, "c": 2}
OTHER = {"a": 0, "c": 1, "<new>": 2}
# One tokenizer in two wordings, and another.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "words": (
        {"tokenizer__json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "c", "id": 2}]}},
        {"tokenizer__json": {"padding": {}, "model": {"vocab": WORDS}}},
        {"tokenizer__json": {"model": {"vocab": OTHER}}},
    ),
    "unigrams": (
        {"tokenizer__json": {"model": {"vocab": [["a", 0.1], ["b", 0.1], ["c", -1]]}}},
        {"tokenizer__json": {"model": {"vocab": [["a", 0.5], ["b", 0.1], ["c", -1]]}}},
        {"tokenizer__json": {"model": {"vocab": [["a", 0.1], ["c", 0.1], ["<new>", -1]]}}},
    ),
    "pairs": (
        {"vocab__json": {"a": 0, "b": 1}, "added_tokens__json": {"c": 2}},
        {"vocab__json": WORDS},
        {"vocab__json": {"a": 0, "c": 1}, "added_tokens__json": {"<new>": 2}},
    ),
    "lines": ({"vocab__txt": "a\nb\nc"}, {"vocab__txt": "a\nb\nc"}, {"vocab__txt": "a\nc\n<new>"}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_differ_are_named(form: str, tmp_path: Path) -> None:
    first, second, third = FORMS[form]
    base = model(tmp_path / "base", **first)
    assert not list(doubts(model(tmp_path / "same", **second), base))
    (said,) = doubts(model(tmp_path / "other", **third), base)
    assert "tokens that differ: 1 more: '<new>', 1 fewer: 'b', 1 of another number: 'c'." in said
    assert "The merged model keeps the base's." in said
    # An adapter's folder may bring one too.
    own = adapter(tmp_path / "adapter", None)
    for name, content in third.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (own / name.replace("__", ".")).write_text(text)
    assert len(list(doubts(own, base))) == 1


def test_where_tokens_cannot_be_told(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tokenizer__model="\1\2", vocab__json=WORDS)
    assert not list(doubts(model(tmp_path / "none"), base))
    assert not list(doubts(base / "model.safetensors", base))
    other = model(tmp_path / "other", tokenizer__model="\1\3")
    assert "(tokenizer.model) is not that of the base" in next(doubts(other, base))
    for number, broken in enumerate(("[", "[1]", {"model": 3}, {"model": {"vocab": [3]}})):
        home = model(tmp_path / f"home{number}", tokenizer__json={"model": {"vocab": WORDS}})
        (said,) = doubts(model(tmp_path / f"broken{number}", tokenizer__json=broken), home)
        assert "cannot be compared" in said
