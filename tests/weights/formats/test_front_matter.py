"""What the cards of sources say, and the table of one's own card as the hub's client reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from sta_lightning.weights.formats.card import model_card
from sta_lightning.weights.formats.front_matter import measured, origin_of, origins_entry

KEYS = ("license", "license_name", "license_link")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(name: str, card: str | None = None, **config: Any) -> Path:
    """A folder with a card and a configuration."""
    folder = Path(name)
    folder.mkdir(parents=True)
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def card(metadata: dict[str, str], **more: Any) -> ModelCard:
    """The card as the hub's client reads it; it refuses a model index that the hub would."""
    text = model_card("merged", "a model", metadata, "...", library="transformers", **more)
    return ModelCard(text, ignore_metadata_errors=False)


def merged(roles: dict[str, Path], **entries: Any) -> dict[str, str]:
    more = {key: json.dumps(value) for key, value in entries.items()}
    return {"kind": "fused:ties", "package": "sta_lightning", **origins_entry(roles), **more}


def test_a_cards_fields_are_what_the_hub_reads() -> None:
    base = source("base", "license: mit", _name_or_path="google-bert/bert-base-uncased")
    cars = source("cars", "base_model: [google-bert/bert-base-uncased, me/other]\nlicense: mit")
    found = card(merged({"pretrained": base, "finetuned/cars": cars}), tags=("clip",)).data
    assert found.base_model == ["google-bert/bert-base-uncased", "me/other"]
    for name in found.base_model:
        validate_repo_id(name)
    said = found.to_dict()
    assert said["base_model_relation"] == "merge"
    assert (said["library_name"], said["license"]) == ("transformers", "mit")
    assert said["tags"] == ["merge", "model-merging", "sta_lightning", "clip"]
    assert found.eval_results is None


@pytest.mark.parametrize(
    "name",
    [
        *("/home/me/bert", "./bert", "../bert", "runs/x/bert", "~/bert", "C:\\\\models", "a--b/c", "x.", ""),
        *("there", "in/there"),
    ],
)
def test_a_place_is_no_repository(name: str) -> None:
    Path("there").mkdir()
    Path("in/there").mkdir(parents=True)
    assert "models" not in origin_of(source("base", _name_or_path=name))
    assert "base_model" not in card(merged({"pretrained": Path("base")})).data.to_dict()


def test_names_that_are_repositories() -> None:
    for place, name in (("a", "gpt2"), ("b", "openai/clip-vit-base-patch16"), ("c", "x/y_z.1")):
        assert origin_of(source(place, _name_or_path=name)) == {"models": [name]}
        validate_repo_id(name)
    # In the hub's cache it has a name of its own, which is the closer one.
    cached = source("hub/models--org--name.v2/snapshots/abc", "base_model: far/away", _name_or_path="x/y")
    assert origin_of(cached) == {"models": ["org/name.v2"]}
    (cached / "open_clip_model.safetensors").touch()
    assert origin_of(cached / "open_clip_model.safetensors") == {"models": ["org/name.v2"]}
    adapter = source("adapter")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/llama"}')
    assert origin_of(adapter) == {"models": ["meta/llama"]}


def test_a_loose_file_has_the_card_beside_it_alone() -> None:
    folder = source("many", "license: mit", _name_or_path="org/name")
    (folder / "cars.safetensors").touch()
    assert origin_of(folder / "cars.safetensors") == {}
    (folder / "cars-card.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert origin_of(folder / "cars.safetensors") == {"license": "apache-2.0"}


@pytest.mark.parametrize(
    ("base", "cars", "chosen"),
    [
        ("license: mit", None, "mit"),
        ("license: mit", "license: mit", "mit"),
        ("license: mit", "license: cc-by-nc-4.0", None),
        (None, "license: mit", None),
        (
            "license: other\nlicense_name: own\nlicense_link: x/LICENSE",
            "license: other\nlicense_name: own\nlicense_link: x/LICENSE",
            "other",
        ),
        ("license: other\nlicense_name: own", "license: other\nlicense_name: another", None),
        (None, None, None),
    ],
)
def test_licences_that_differ_are_listed_and_none_is_chosen(
    base: str | None, cars: str | None, chosen: str | None
) -> None:
    roles = {"pretrained": source("base", base), "finetuned/cars": source("cars", cars)}
    made = card(merged(roles))
    said = made.data.to_dict()
    assert said.get("license") == chosen
    if chosen == "other":
        assert (said["license_name"], said["license_link"]) == ("own", "x/LICENSE")
    for role, text in (("pretrained", base), ("finetuned/cars", cars)):
        row = f"| {role} | {', '.join(line.split(': ')[1] for line in (text or '').splitlines())} |"
        assert (row in made.text) == (text is not None)
    assert ("None is chosen" in made.text) == (chosen is None and bool(base or cars))


def test_a_table_that_is_none_is_told_and_left() -> None:
    base = source("base", "license: [mit", _name_or_path="org/name")
    with pytest.warns(UserWarning, match=r"'base/README\.md' begins with a table .* not readable as YAML"):
        assert origin_of(base) == {"models": ["org/name"]}
    for text in ("license: mit", "- a\n- b", "license: 3\nbase_model: {a: 1}"):
        (base / "README.md").write_text(f"---\n{text}\n---\n" if text != "license: mit" else text)
        assert origin_of(base) == {"models": ["org/name"]}


def test_accuracies_come_back_from_the_card_of_the_same_files_alone() -> None:
    shares = {"digits": 0.875, "street numbers: ü": 1 / 3, "objects (control)": 1.0}
    digest = "ab" * 32
    made = card(merged({}, accuracy=shares), files={"model.safetensors": digest})
    results = made.data.eval_results
    assert results is not None
    assert {result.dataset_name: result.metric_value for result in results} == shares
    assert {(r.task_type, r.metric_type) for r in results} == {("image-classification", "accuracy")}
    assert "| digits | 87.50% |" in made.text
    assert f"| model.safetensors | {digest} |" in made.text
    Path("out").mkdir()
    Path("out/README.md").write_text(str(made))
    assert measured("out", [digest]) == shares
    assert measured("out", [digest, "cd" * 32]) == {}
    assert measured(".", [digest]) == {}
    Path("out/README.md").write_text(str(made).replace("metrics:", "others:"))
    with pytest.warns(UserWarning, match="not as this package wrote them"):
        assert measured("out", [digest]) == {}


def test_no_place_on_a_machine_is_in_a_card() -> None:
    roles = {"pretrained": source("base", _name_or_path="/data/me/bert")}
    settings = {"method": "/home/me/own methods/mine.py:largest", "pretrained": "laion2b_e16", "scale": 0.5}
    metadata = merged(roles, settings=settings) | {"kind": "fused:/home/me/own methods/mine.py:largest"}
    text = str(card(metadata))
    assert "/home" not in text
    assert "/data" not in text
    assert "`fused:mine.py:largest`" in text
    assert '| method | "mine.py:largest" |' in text
    assert '| pretrained | "laion2b_e16" |' in text
