"""What comes out is what went in: loaded by the library that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from sta_lightning.arithmetic import average, merge
from sta_lightning.cli.main import main
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.weights.formats.tiny import CONFIGS, NAMES, moved, registered, tiny_clip

Some = dict[str, Tensor]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def finetuned(clip: nn.Module, seed: int, text: bool = False) -> Some:
    """A state whose image encoder, and text tower if asked, differs from that of a CLIP."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        if text or name.startswith("visual.")
        else value.clone()
        for name, value in clip.state_dict().items()
    }


def write_clips(text: bool, suffix: str = ".safetensors") -> tuple[Some, dict[str, Some]]:
    clip = tiny_clip()
    states = {name: finetuned(clip, seed, text) for seed, name in enumerate("ab", 1)}
    for name, state in {"base": clip.state_dict(), **states}.items():
        file = Path(f"{name}{suffix}")
        save_weights(file, state) if suffix == ".safetensors" else torch.save(state, file)
    return clip.state_dict(), states


def tower(state: Some, image: bool) -> Some:
    return {n: t for n, t in state.items() if n.startswith("visual.") == image}


def close(found: Some, wanted: Some) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_whole_clip_with_an_equal_text_tower(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, states = write_clips(text=False, suffix=suffix)
    words = [f"{name}{suffix}" for name in ("base", "a", "b")]
    assert main(["merge", *words, "--method", "average", "-o", "out.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "text tower: equal in all models, copied\n" in out
    assert "written: out.safetensors (a whole CLIP, " in out
    with registered(tmp_path):
        found = open_clip.create_model(NAMES["gelu"], pretrained="out.safetensors").state_dict()
    images = {name: tower(state, True) for name, state in states.items()}
    close(found, {**base, **average(tower(base, True), images)})
    for name, value in tower(base, False).items():
        assert torch.equal(found[name], value), name


def test_text_towers_that_differ_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, states = write_clips(text=True)
    words = [
        "base.safetensors",
        "a.safetensors",
        "b.safetensors",
        "--method",
        "ties",
        "-o",
        "out.safetensors",
    ]
    assert main(["merge", *words]) == 0
    assert "text tower: it differs, merged: ties\n" in capsys.readouterr().out
    with registered(tmp_path):
        found = open_clip.create_model(NAMES["gelu"], pretrained="out.safetensors").state_dict()
    for image in (True, False):
        towers = {name: tower(state, image) for name, state in states.items()}
        close(tower(found, image), dict(merge("ties", tower(base, image), towers).weights))


def test_importance_of_image_encoders_says_nothing_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    base, states = write_clips(text=True)
    for name, state in states.items():
        scores = {n.removeprefix("visual."): t.abs() for n, t in tower(state, True).items()}
        save_weights(f"{name}-importance.safetensors", scores, {"measure": "lp"})
    assert main(["merge", "base.safetensors", "a.safetensors", "b.safetensors", "-o", "out.safetensors"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("method: STA (")
    assert "text tower: it differs, merged: swudi_a\n" in out
    towers = {name: tower(state, False) for name, state in states.items()}
    wanted = dict(merge("swudi_a", tower(base, False), towers).weights)
    close(tower(load_weights("out.safetensors"), False), wanted)


def test_one_text_tower_that_differs_counts_beside_those_that_do_not() -> None:
    base, states = write_clips(text=True)
    b = {**base, **tower(states["b"], True)}
    save_weights("b.safetensors", {n.removeprefix("visual."): t for n, t in tower(b, True).items()})
    words = [
        "base.safetensors",
        "a.safetensors",
        "b.safetensors",
        "--method",
        "average",
        "-o",
        "out.safetensors",
    ]
    assert main(["merge", *words]) == 0
    close(load_weights("out.safetensors"), average(base, {"a": states["a"], "b": b}))


def test_a_text_tower_saved_in_half_precision_is_the_same() -> None:
    _, states = write_clips(text=False)
    save_weights("a.safetensors", {n: t.half() for n, t in states["a"].items()})
    assert main(["merge", "base.safetensors", "a.safetensors", "b.safetensors", "-o", "out.safetensors"]) == 0
    assert json.loads(read_metadata("out.safetensors")["settings"])["text_tower"] == "copied"


def test_a_whole_clip_forgets(tmp_path: Path) -> None:
    base, states = write_clips(text=True)
    words = [
        "a.safetensors",
        "--base",
        "base.safetensors",
        "--finetuned",
        "b.safetensors",
        "-o",
        "out.safetensors",
    ]
    assert main(["forget", *words]) == 0
    wanted = {n: states["a"][n] - (states["b"][n] - base[n]) for n in base}
    with registered(tmp_path):
        close(open_clip.create_model(NAMES["gelu"], pretrained="out.safetensors").state_dict(), wanted)


def test_an_image_encoder_gives_an_image_encoder_named_as_it_was() -> None:
    clip = tiny_clip()
    for name in ("base", "a", "c"):
        state = moved(tiny_clip(), ord(name[0])).state_dict()
        save_weights(
            f"{name}.safetensors", {n.removeprefix("visual."): t for n, t in tower(state, True).items()}
        )
    assert main(["merge", "base.safetensors", "a.safetensors", "c.safetensors", "-o", "out.safetensors"]) == 0
    clip.visual.load_state_dict(load_weights("out.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_is_that_of_the_pretrained_model(dtype: torch.dtype) -> None:
    base, _ = write_clips(text=False)
    save_weights("base.safetensors", {n: t.to(dtype) for n, t in base.items()})
    words = ["base.safetensors", "a.safetensors", "b.safetensors", "-o"]
    assert main(["merge", *words, "out.safetensors"]) == 0
    assert {t.dtype for t in load_weights("out.safetensors").values()} == {dtype}
    assert main(["merge", *words, "wide.safetensors", "--dtype", "float32"]) == 0
    assert {t.dtype for t in load_weights("wide.safetensors").values()} == {torch.float32}


def hugging_face(kind: str, names: tuple[str, ...] = ("base", "a", "b")) -> dict[str, Any]:
    """Small random models of one of Hugging Face's classes in folders, with what lies beside."""
    from tests.weights.formats.theirs import save, theirs

    models: dict[str, Any] = {}
    for seed, name in enumerate(names):
        models[name] = theirs(kind, "quick_gelu", seed=1)
        generator = torch.Generator().manual_seed(seed)
        if name != "base":
            with torch.no_grad():
                for parameter in models[name].parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        save(models[name], Path(name), "safetensors")
        for beside in ("tokenizer.json", "vocab.json", "merges.txt"):
            Path(name, beside).write_text("{}")
        Path(name, "preprocessor_config.json").write_text(f'{{"of": "{name}"}}')
        Path(name, "modeling_own.py").write_text("raise SystemExit")
    return models


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel"])
def test_a_hugging_face_folder_gives_one(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.weights.formats.theirs import transformers

    models = hugging_face(kind)
    assert main(["merge", "base", "a", "b", "-o", "out", "--method", "average"]) == 0
    assert "written: out (" in capsys.readouterr().out
    found, told = getattr(transformers, kind).from_pretrained("out", output_loading_info=True)
    assert not any(told.values()), told
    states = {name: model.state_dict() for name, model in models.items()}
    base = {n: t for n, t in states["base"].items() if t.is_floating_point()}
    tasks = {name: {n: states[name][n] for n in base} for name in ("a", "b")}
    close({n: t for n, t in found.state_dict().items() if n in base}, average(base, tasks))
    beside = {"preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"}
    assert {p.name for p in Path("out").iterdir()} == beside | {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert Path("out/preprocessor_config.json").read_text() == '{"of": "base"}'
    assert json.loads(read_metadata("out/model.safetensors")["settings"])["method"] == "average"


def test_a_hugging_face_folder_tells_its_type() -> None:
    from tests.weights.formats.theirs import transformers

    hugging_face("CLIPModel")
    assert main(["merge", "base", "a", "b", "-o", "out", "--dtype", "float16"]) == 0
    config = json.loads(Path("out/config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float16"
    assert transformers.CLIPModel.from_pretrained("out", dtype="auto").dtype == torch.float16


def test_a_folder_into_a_file_is_open_clips(tmp_path: Path) -> None:
    hugging_face("CLIPModel")
    assert main(["merge", "base", "a", "b", "-o", "out.safetensors"]) == 0
    with registered(tmp_path):
        open_clip.create_model(NAMES["quick_gelu"], pretrained="out.safetensors")


def test_a_folder_in_open_clips_layout() -> None:
    write_clips(text=False)
    Path("hub").mkdir()
    Path("base.safetensors").rename("hub/open_clip_model.safetensors")
    Path("hub/open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS[NAMES["gelu"]]}))
    assert main(["merge", "hub", "a.safetensors", "b.safetensors", "-o", "out"]) == 0
    beside = {"open_clip_config.json", "README.md"}
    assert {p.name for p in Path("out").iterdir()} == {"open_clip_model.safetensors", *beside}
    open_clip.create_model("local-dir:out")
    card = Path("out/README.md").read_text()
    assert "library_name: open_clip\n" in card
    assert "create_model('local-dir:out')" in card


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["base.safetensors", "a.safetensors", "b.safetensors", "-o", "out"],
            "a folder is made only of a folder",
        ),
        (["base.safetensors", "a.safetensors", "b.safetensors", "-o", "full"], "is a folder"),
        (["hub", "a.safetensors", "b.safetensors", "-o", "full"], "something at 'full' already"),
    ],
)
def test_where_it_cannot_go(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(text=False)
    Path("hub").mkdir()
    Path("hub/open_clip_model.safetensors").write_bytes(Path("base.safetensors").read_bytes())
    Path("full").mkdir()
    Path("full/kept.txt").write_text("kept")
    assert main(["merge", *words]) == 2
    assert expected in capsys.readouterr().err
    assert [p.name for p in Path("full").iterdir()] == ["kept.txt"]


def test_a_merge_that_fails_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face("CLIPModel")
    state = load_weights("b/model.safetensors")
    name = "text_model.final_layer_norm.weight"
    state[name] = torch.full_like(state[name], float("nan"))
    save_weights("b/model.safetensors", state, {"format": "pt"}, allow_nonfinite=True)
    assert main(["merge", "base", "a", "b", "-o", "out"]) == 2
    assert "ln_final.weight" in capsys.readouterr().err
    assert sorted(p.name for p in Path().iterdir() if p.name != "cache") == ["a", "b", "base"]


def test_positions_of_another_resolution_are_resampled_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    base, states = write_clips(text=False)
    name = "visual.positional_embedding"
    states["b"][name] = torch.randn(17, 32, generator=torch.Generator().manual_seed(3))  # 4×4 patches
    save_weights("b.safetensors", states["b"])
    words = ["merge", "base.safetensors", "a.safetensors", "b.safetensors", "--method=average"]
    assert main([*words, "-o", "out.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "'positional_embedding (17, 32) for (5, 32)'" in said
    assert (
        "--skip 'positional_embedding'. `sta merge --resample` resamples positions of another resolution"
        in said
    )
    assert not Path("out.safetensors").exists()
    assert main([*words, "--resample", "-o", "out.safetensors"]) == 0
    assert (
        "resampled: the positions of task 'b' (positional_embedding, 4×4 to 2×2)\n" in capsys.readouterr().out
    )
    open_clip.model.resize_pos_embed(states["b"], tiny_clip())
    wanted = average(tower(base, True), {task: tower(state, True) for task, state in states.items()})
    close(tower(load_weights("out.safetensors"), True), wanted)
    settings = json.loads(read_metadata("out.safetensors")["settings"])
    assert settings["resampled"] == {"b": "positional_embedding, 4×4 to 2×2"}
