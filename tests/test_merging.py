"""The front door in Python: paths, state dicts and modules, mixed; the same as the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

import sta_lightning
from sta_lightning import StaError, arithmetic, forget, fuse, merge
from sta_lightning.cli.main import main
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.weights.formats.tiny import NAMES, registered, tiny_clip

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def clips(text: bool = True) -> dict[str, nn.Module]:
    """A CLIP, two fine-tuned from it; in files too."""
    models = {"base": tiny_clip(), "a": tiny_clip(), "b": tiny_clip()}
    for seed, (name, model) in enumerate(models.items()):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name != "base" and (text or key.startswith("visual.")):
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        save_weights(f"{name}.safetensors", model.state_dict())
    return models


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted) or found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


METHODS: list[tuple[str | None, dict[str, Any]]] = [
    ("ties", {"keep": 0.3}),
    ("average", {}),
    ("task_arithmetic", {"scale": 0.3}),
    ("random_mask", {"p": 0.4, "seed": 3}),
    ("sta", {"measure": "delta-amp", "p": 0.2}),
    (None, {}),
]


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_it_is_what_the_command_line_writes(method: str | None, settings: dict[str, Any], text: bool) -> None:
    models = clips(text)
    words = [f"--{key}={value}" for key, value in ({"method": method} if method else {} | settings).items()]
    words = [] if method is None else [f"--method={method}"]
    words += [f"--{key}={value}" for key, value in settings.items()]
    files = ["base.safetensors", "a.safetensors", "b.safetensors"]
    assert main(["merge", *files, "-o", "out.safetensors", *words]) == 0
    wanted = load_weights("out.safetensors")
    paths = {"a": "a.safetensors", "b": Path("b.safetensors")}
    mixed = {"a": models["a"], "b": load_weights("b.safetensors")}
    for base in ("base.safetensors", models["base"], models["base"].state_dict()):
        for tasks in (paths, mixed, {**mixed, "b": "b.safetensors"}, list(paths.values())):
            found = merge(method, base, tasks, **settings)  # type: ignore[arg-type]
            same(found, wanted)
    models["base"].load_state_dict(found)
    merge(method, "base.safetensors", paths, **settings).save("saved.safetensors")  # type: ignore[arg-type]
    assert Path("saved.safetensors").read_bytes() == Path("out.safetensors").read_bytes()


def test_what_is_in_memory_is_said_to_be_of_no_file() -> None:
    models = clips()
    merged = merge("ties", "base.safetensors", {"cars": "a.safetensors", "dogs": models["b"]}, keep=0.3)
    merged.save("merged.safetensors")
    metadata = read_metadata("merged.safetensors")
    assert set(json.loads(metadata["sources"])) == {"pretrained", "finetuned/cars"}
    told = json.loads(metadata["settings"])
    assert (told["method"], told["keep"], told["tasks"]) == ("ties", 0.3, ["cars", "dogs"])
    assert merged.metadata == metadata
    with pytest.raises(StaError, match=r"ends in \.safetensors"):
        merged.save("merged")


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel"])
def test_hugging_faces_modules_keep_their_names(kind: str) -> None:
    from tests.weights.formats.theirs import theirs

    models = [theirs(kind, "quick_gelu", seed) for seed in (1, 2, 3)]
    for name, model in zip("abc", models, strict=True):
        model.save_pretrained(name)
    merged = merge("average", models[0], models[1:])
    models[0].load_state_dict(merged)
    others = [model.state_dict() for model in models[1:]]
    for name, value in merged.items():
        if value.is_floating_point():
            wanted = (others[0][name].double() + others[1][name].double()) / 2
            torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-6)
    assert merge("average", "a", ["b", "c"]).save("out") == Path("out")
    found = type(models[0]).from_pretrained("out").state_dict()
    same({n: t for n, t in found.items() if n in merged}, dict(merged))


@pytest.mark.filterwarnings("ignore:.* is the pretrained model", "ignore:Nothing is changed")
def test_a_module_takes_tasks_from_files_of_another_layout() -> None:
    from tests.weights.formats.theirs import theirs

    module = theirs("CLIPModel", "gelu", 1)
    module.save_pretrained("own")
    assert main(["convert", "own", "own.safetensors", "--to", "open_clip"]) == 0
    merged = merge("average", module, ["own.safetensors", "own"])
    for name, value in module.state_dict().items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=1e-6)


def test_fuse_and_forget_are_the_arithmetics() -> None:
    generator = torch.Generator().manual_seed(0)
    base, a, b = ({"w": torch.randn(40, generator=generator), "n": torch.tensor(3)} for _ in range(3))
    tasks = {"a": a, "b": b}
    scores = {name: {"w": state["w"].abs()} for name, state in tasks.items()}
    fused = fuse(base, tasks, scores, p=0.4)
    same(fused, arithmetic.fuse(base, tasks, scores, p=0.4))
    assert fused.kept["w"].keys() == {"a", "b"}
    less = forget(fused, base, a, scores["a"], p=0.4)
    same(less, arithmetic.forget(dict(fused), base, a, scores["a"], p=0.4))
    assert less.kept["w"]["target"] == pytest.approx(0.6)
    same(forget(b, base, a, method=None), arithmetic.negate(b, base, a, scale=1.0))
    assert isinstance(fused, Mapping)
    assert repr(fused) == "MergedModel(2 tensors)"


def test_importance_of_a_whole_model_goes_for_its_text_tower_too() -> None:
    models = {name: model.state_dict() for name, model in clips().items()}
    base = models.pop("base")
    scores = {name: {n: t.abs() for n, t in state.items()} for name, state in models.items()}
    same(fuse(base, models, scores), arithmetic.fuse(base, models, scores))


def test_forgetting_is_what_the_command_line_writes() -> None:
    models = clips()
    words = ["a.safetensors", "--base", "base.safetensors", "--finetuned", "b.safetensors", "--scale", "0.5"]
    assert main(["forget", *words, "-o", "out.safetensors"]) == 0
    wanted = load_weights("out.safetensors")
    same(forget("a.safetensors", "base.safetensors", "b.safetensors", method=None, scale=0.5), wanted)
    same(forget(models["a"], "base.safetensors", models["b"], method=None, scale=0.5), wanted)
    same(forget(models["a"], models["base"], "b.safetensors", method=None, scale=0.5), wanted)


def test_forgetting_takes_gram_matrices_of_target_and_control() -> None:
    models = clips(text=False)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    drawn = torch.randn(2, 9, models["base"].state_dict()[name].shape[1])
    grams = {key: {name: x.mT @ x} for key, x in zip(("b-gram", "control"), drawn, strict=True)}
    for key, gram in grams.items():
        bare = {n.removeprefix("visual."): tensor for n, tensor in gram.items()}
        save_weights(f"{key}.safetensors", bare, {"measure": "gram"})
    words = ["a.safetensors", "--base", "base.safetensors", "--finetuned", "b.safetensors"]
    words += ["--control_gram", "control.safetensors", "--method", "spared", "--mu", "2"]
    assert main(["forget", *words, "-o", "out.safetensors"]) == 0
    how: dict[str, Any] = {"method": "spared", "mu": 2.0, "control_gram": grams["control"]}
    found = forget(models["a"], models["base"], models["b"], gram=grams["b-gram"], **how)
    same(found, load_weights("out.safetensors"))
    assert not torch.equal(
        found[name], forget("a.safetensors", "base.safetensors", "b.safetensors", method=None)[name]
    )


@pytest.mark.parametrize("dtype", [torch.float16, "float16", torch.float64])
def test_types(dtype: Any) -> None:
    models = clips()
    found = merge("average", models["base"], [models["a"], models["b"]], dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {tensor.dtype for tensor in found.values()} == {wanted}


def test_it_loads_in_open_clip(tmp_path: Path) -> None:
    models = clips()
    merge("tsv", models["base"], [models["a"], models["b"]]).save("merged.safetensors")
    with registered(tmp_path):
        open_clip.create_model(NAMES["gelu"], pretrained="merged.safetensors")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda base, a: merge("tis", base, [a]), "'tis' is unknown"),
        (lambda base, a: merge("ties", base, [a], p=0.3), "no setting 'p'"),
        (lambda base, a: merge("ties", base, a), "mapping from task names, or a list"),
        (lambda base, a: merge("ties", base, {"a": 3}), "given as int"),
        (lambda base, a: merge("sta", base, {"a": a, "b": a}, {"c": a}), "given for 'c'"),
        (lambda base, a: merge("sta", base, {"a": a, "b": a}), "no importance"),
        (lambda base, a: merge("average", base, []), "nothing to merge"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    base, a = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    with pytest.raises(StaError, match=message):
        call(base, a)


def test_a_missing_file_is_a_file_not_found() -> None:
    clips()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        merge("average", "base.safetensors", ["nowhere.safetensors"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        merge("average", "nowhere.safetensors", ["base.safetensors"])
    with pytest.raises(ValueError, match="nowhere"):
        merge("average", "base.safetensors", ["nowhere.safetensors"])


def test_public_names_alone_are_shown() -> None:
    assert dir(sta_lightning) == sorted(sta_lightning.__all__)
