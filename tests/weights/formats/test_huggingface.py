"""Between Hugging Face's classes and open_clip's, the same images give the same features."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sta_lightning.errors import StaError
from sta_lightning.weights.formats import Target, convert
from tests.weights.formats.theirs import (
    CLASSES,
    save,
    their_features,
    their_text_features,
    theirs,
    transformers,
)
from tests.weights.formats.tiny import (
    ACTIVATIONS,
    CONFIGS,
    NAMES,
    close,
    features,
    read,
    registered,
    texts,
    tiny_clip,
    to_open_clip,
)


def filled(activation: str, state: dict[str, Tensor]) -> nn.Module:
    """open_clip's encoder with exactly these weights."""
    visual = tiny_clip(activation, seed=9).visual
    visual.load_state_dict(state, strict=True)
    encoder: nn.Module = visual
    return encoder


def test_the_activations_are_far_enough_apart_to_be_told() -> None:
    one, two = (features(tiny_clip(activation).visual) for activation in ACTIVATIONS)
    assert float((one - two).abs().max()) > 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("saved", ["safetensors", "shards", "bin", "shards of bin", "file"])
def test_a_clip_model_comes_in(saved: str, activation: str, tmp_path: Path) -> None:
    model = theirs("CLIPModel", activation)
    folder = tmp_path / "theirs"
    save(model, folder, saved)
    path = folder / "model.safetensors" if saved == "file" else folder
    with registered(tmp_path):
        import open_clip

        out = tmp_path / "out.safetensors"
        convert(path, out, "open_clip", configs=CONFIGS)
        clip = open_clip.create_model(NAMES[activation], pretrained=str(out)).eval()
    close(features(clip.visual), their_features(model, "CLIPModel"))
    with torch.no_grad():
        close(clip.encode_text(texts()), their_text_features(model))
    assert torch.equal(clip.logit_scale, model.logit_scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_gives_its_features(kind: str, activation: str) -> None:
    model = theirs(kind, activation)
    state = to_open_clip(model.state_dict())
    if kind == "CLIPModel":
        state = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
    if kind == "CLIPVisionModel":
        assert "proj" not in state
        state["proj"] = torch.eye(32)[:, :12]  # the features are then the first of the pooled output
        close(features(filled(activation, state)), their_features(model, kind)[:, :12])
    else:
        close(features(filled(activation, state)), their_features(model, kind))


def test_names_of_older_versions(tmp_path: Path) -> None:
    # CLIPVisionModel, as FusionBench's models are saved: a prefix, and a counter among the tensors.
    state = theirs("CLIPVisionModel", "gelu").state_dict()
    plain = {name.removeprefix("vision_model."): value for name, value in state.items()}
    old = {f"vision_model.{name}": value for name, value in plain.items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(5).expand((1, -1))
    assert to_open_clip(old).keys() == to_open_clip(plain).keys() == to_open_clip(state).keys()
    for name, value in to_open_clip(old).items():
        assert torch.equal(value, to_open_clip(plain)[name])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_clip_of_open_clip_goes_out(kind: str, activation: str, tmp_path: Path) -> None:
    clip = tiny_clip(activation)
    torch.save(clip.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out", "huggingface", configs=CONFIGS, encoder=NAMES[activation])
    model, report = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    if kind == "CLIPVisionModel":
        close(their_features(model, kind) @ clip.visual.proj.detach(), features(clip.visual))
    else:
        close(their_features(model.eval(), kind), features(clip.visual))
    if kind == "CLIPModel":
        with torch.no_grad():
            close(their_text_features(model), clip.encode_text(texts()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", CLASSES[1:])
def test_an_encoder_alone_goes_out(kind: str, activation: str, tmp_path: Path) -> None:
    visual = tiny_clip(activation).visual
    torch.save({f"visual.{n}": v for n, v in visual.state_dict().items()}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out", "huggingface", configs=CONFIGS, encoder=NAMES[activation])
    model, report = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    found = their_features(model.eval(), kind)
    close(found @ visual.proj.detach() if kind == "CLIPVisionModel" else found, features(visual))


@pytest.mark.parametrize("kind", CLASSES)
def test_there_and_back_changes_no_bit(kind: str, tmp_path: Path) -> None:
    model = theirs(kind, "quick_gelu")
    model.save_pretrained(tmp_path / "theirs")
    way: list[tuple[str, Target]] = [("b", "huggingface")]
    if kind == "CLIPModel":
        way = [("a.safetensors", "open_clip"), ("b", "huggingface")]
    elif kind == "CLIPVisionModelWithProjection":
        way = [("a.safetensors", "safetensors"), ("b", "huggingface")]
    place = tmp_path / "theirs"
    for name, to in way:
        # What the first step learnt of the activation, the second finds in the file.
        convert(place, tmp_path / name, to, configs=CONFIGS)
        place = tmp_path / name
    back = getattr(transformers, kind).from_pretrained(place).state_dict()
    assert back.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name


def test_the_folder_is_one_that_a_hub_takes(tmp_path: Path) -> None:
    torch.save(tiny_clip().visual.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out", "huggingface", configs=CONFIGS, encoder=NAMES["gelu"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "CLIPVisionModelWithProjection.from_pretrained('out')" in card
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.crop_size == {"height": 16, "width": 16} or processor.crop_size["height"] == 16
    assert processor.image_mean[0] == pytest.approx(0.48145466)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_act"] == "gelu"


def test_the_sources_own_preprocessing_is_kept(tmp_path: Path) -> None:
    theirs("CLIPModel", "gelu").save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    convert(tmp_path / "theirs", tmp_path / "out", "huggingface", configs=CONFIGS)
    found = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert found == {"image_mean": [0.1, 0.2, 0.3]}


def test_without_a_projection_the_pretrained_models_is_taken(tmp_path: Path) -> None:
    finetuned = theirs("CLIPVisionModel", "gelu")
    finetuned.save_pretrained(tmp_path / "finetuned")
    out = tmp_path / "out.safetensors"
    with pytest.raises(StaError, match=r"finetuned' has no projection .* --pretrained"):
        convert(tmp_path / "finetuned", out, "safetensors", configs=CONFIGS)
    with pytest.raises(StaError, match=r"finetuned' holds an image encoder alone.*--pretrained"):
        convert(tmp_path / "finetuned", out, "open_clip", configs=CONFIGS)
    assert not out.exists()

    base = tiny_clip(seed=4)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    for to in ("safetensors", "open_clip"):
        convert(tmp_path / "finetuned", out, to, configs=CONFIGS, pretrained=tmp_path / "base.pt")
        state = {n.removeprefix("visual."): v for n, v in read(out).items() if n.startswith("visual.")}
        found = features(filled("gelu", state))
        close(found, their_features(finetuned, "CLIPVisionModel") @ base.visual.proj.detach())
    assert torch.equal(read(out)["token_embedding.weight"], base.token_embedding.weight)
