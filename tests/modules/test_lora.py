"""A fit of adapters: what it leaves is one model, peft's; the base stays as it was."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning import merge
from sta_lightning.arithmetic.sources import whole as made
from sta_lightning.callbacks import ExportWeights, ImportanceScoring
from sta_lightning.callbacks.score import score
from sta_lightning.cli.main import main
from sta_lightning.encoders import build_clip, build_encoder
from sta_lightning.encoders.adapters import Lora, adapted, merged
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights, read_metadata, save_weights
from sta_lightning.weights.formats import image_encoder, open_checkpoint
from tests.command_lines import instantiated, parsed
from tests.launch import launch
from tests.toys import ENCODER, quiet_trainer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# peft reads what this version of transformers calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ADAPTED = ("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class Fit(NamedTuple):
    folder: Path
    module: CLIPClassifier
    base: dict[str, Tensor]


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Fit:
    """Two steps on a task of the embedded suite, from a whole CLIP in a file."""
    folder = tmp_path_factory.mktemp("fit")
    torch.manual_seed(0)
    module = CLIPClassifier(
        ENCODER, "digits", str(pretrained), learning_rate=1e-2, warmup_steps=0, lora=Lora(4, alpha=8)
    )
    exports = ExportWeights(str(folder))
    scoring = ImportanceScoring(str(folder / "importance.safetensors"), samples=4)
    trainer = quiet_trainer(max_steps=2, max_epochs=1, callbacks=[exports, scoring], limit_val_batches=0)
    trainer.fit(module, TaskDataModule("digits", batch_size=8, train_limit=16))
    trainer.save_checkpoint(folder / "last.ckpt")
    return Fit(folder, module, build_encoder(ENCODER, str(pretrained)).state_dict())


def close(found: Any, wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def dense(fit: Fit) -> dict[str, Tensor]:
    state = load_weights(fit.folder / "encoder.safetensors")
    return {name.removeprefix("visual."): tensor for name, tensor in state.items()}


def test_the_base_stays_as_it_was_and_the_export_has_its_names(fit: Fit) -> None:
    own = {
        name.removeprefix("base_model.model.").replace("base_layer.", ""): tensor
        for name, tensor in fit.module.encoder.state_dict().items()
        if "lora_" not in name
    }
    assert own.keys() == fit.base.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in fit.base.items())
    found = dense(fit)
    assert found.keys() == fit.base.keys()
    changed = {name for name in found if not torch.equal(found[name], fit.base[name])}
    assert changed == {name for name in fit.base if name.endswith(ADAPTED)}


def test_the_export_is_the_base_and_the_product_of_the_matrices(fit: Fit) -> None:
    state = load_weights(fit.folder / "adapter" / "adapter_model.safetensors")
    found = dense(fit)
    for name in (name for name in found if name.endswith(ADAPTED)):
        module = f"base_model.model.visual.{name.rpartition('.')[0]}"
        a, b = (state[f"{module}.lora_{part}.weight"].double().numpy() for part in "AB")
        assert a.shape[0] == b.shape[1] == 4
        wanted = fit.base[name].double().numpy() + 8 / 4 * (b @ a)
        np.testing.assert_allclose(found[name].double().numpy(), wanted, rtol=0, atol=1e-6)


def test_the_adapter_stands_for_the_export_in_a_merge(fit: Fit, pretrained: Path) -> None:
    # The file's text tower has tensors of the same names, without the prefix.
    found = merge("task_arithmetic", str(pretrained), {"digits": fit.folder / "adapter"}, scale=1.0)
    wanted = merge(
        "task_arithmetic", str(pretrained), {"digits": fit.folder / "encoder.safetensors"}, scale=1.0
    )
    close(found, dict(wanted))
    close({name: found[f"visual.{name}"] for name in fit.base}, dense(fit))


def test_peft_makes_the_export_of_the_adapter(fit: Fit, pretrained: Path) -> None:
    model = peft.PeftModel.from_pretrained(build_clip(ENCODER, str(pretrained)), str(fit.folder / "adapter"))
    close(model.merge_and_unload().visual.state_dict(), dense(fit))


def test_the_importance_is_that_of_the_exported_model(fit: Fit, pretrained: Path, tmp_path: Path) -> None:
    weights = str(fit.folder / "encoder.safetensors")
    module = CLIPClassifier(ENCODER, "digits", str(pretrained), weights=weights)
    data = TaskDataModule("digits", batch_size=8, train_limit=16)
    output = score(quiet_trainer(), module, data, output=tmp_path / "importance.safetensors", samples=4)
    found = load_weights(fit.folder / "importance.safetensors")
    wanted = load_weights(output)
    assert found.keys() == wanted.keys() == fit.base.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-4 * float(values.max()), msg=name)
    for path in (fit.folder / "importance.safetensors", fit.folder / "adapter" / "adapter_model.safetensors"):
        assert read_metadata(path)["weights_sha256"] == read_metadata(weights)["weights_sha256"]


def test_a_checkpoint_brings_its_adapters_back(fit: Fit) -> None:
    images = torch.randn(2, 3, 32, 32)
    again = CLIPClassifier.load_from_checkpoint(fit.folder / "last.ckpt").eval()
    with torch.no_grad():
        found, wanted = again(images), fit.module.eval()(images)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        # What is exported is the model that was trained.
        torch.testing.assert_close(merged(again.encoder)(images), again.encoder(images), rtol=0, atol=1e-5)
    assert {name for name, value in again.named_parameters() if value.requires_grad} == {
        name for name, _ in again.named_parameters() if "lora_" in name
    }


def test_the_configuration_says_what_stands_where(fit: Fit) -> None:
    config = json.loads((fit.folder / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert all(name.startswith("visual.") for name in config["target_modules"])
    settings = json.loads(read_metadata(fit.folder / "encoder.safetensors")["settings"])
    assert settings["lora"] == {"rank": 4, "alpha": 8}


def test_what_cannot_be_adapted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StaError, match="rank must be at least 1"):
        Lora(0)
    with pytest.raises(StaError, match=r"trainable=head and compile=False were asked for"):
        CLIPClassifier(lora=Lora(), trainable="head")
    with pytest.raises(StaError, match=r"compile=True were asked for"):
        CLIPClassifier(lora=Lora(), compile=True)
    with pytest.raises(StaError, match="Conv2d has no linear layer"):
        adapted(torch.nn.Conv2d(3, 4, 1), Lora())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StaError, match=r"pip install 'sta-lightning\[lora\]'"):
        adapted(torch.nn.Sequential(torch.nn.Linear(2, 2)), Lora())


def test_on_the_command_line() -> None:
    words = [
        "fit",
        "--config",
        "configs/finetune/miniature.yaml",
        "--model.task=digits",
        "--model.lora.rank=4",
    ]
    assert parsed(words)["model"]["init_args"]["lora"] == {"rank": 4, "alpha": None}
    assert instantiated(words).model.hparams["lora"] == {"rank": 4, "alpha": None}


@pytest.mark.parametrize("whole", [True, False])
def test_the_adapter_stands_on_the_model_in_hugging_faces_names(
    fit: Fit, pretrained: Path, tmp_path: Path, whole: bool
) -> None:
    clip = build_clip(ENCODER, str(pretrained)).state_dict()
    names = clip if whole else {name: tensor for name, tensor in clip.items() if name.startswith("visual.")}
    save_weights(tmp_path / "clip.safetensors", names)
    base, output = tmp_path / "base", tmp_path / "merged"
    assert (
        main(
            [
                "convert",
                str(tmp_path / "clip.safetensors"),
                str(base),
                "--to=huggingface",
                f"--encoder={ENCODER}",
            ]
        )
        == 0
    )
    words = ["merge", str(base), f"digits={fit.folder / 'adapter'}", "--method=task_arithmetic", "--scale=1"]
    assert main([*words, "-o", str(output)]) == 0
    config = json.loads((output / "config.json").read_text())
    (kind,) = config["architectures"]
    state = getattr(transformers, kind).from_pretrained(output).state_dict()
    with ExitStack() as stack:
        found = image_encoder(open_checkpoint(output, stack))
        close({name: made(source) for name, source in found.items()}, dense(fit))
    wanted = dense(fit)["transformer.resblocks.0.attn.in_proj_weight"]
    rows = [state[f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    torch.testing.assert_close(torch.cat(rows), wanted, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*says that it was trained on:sta_lightning.errors.StaWarning")
def test_an_adapter_in_hugging_faces_names_stands_on_an_open_clip_file(
    pretrained: Path, tmp_path: Path
) -> None:
    words = ["convert", str(pretrained), str(tmp_path / "base"), "--to=huggingface", f"--encoder={ENCODER}"]
    assert main(words) == 0
    model = transformers.CLIPModel.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, use_dora=True, target_modules=r"vision_model.*(q_proj|fc1)")
    adapter = peft.get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge_and_unload().save_pretrained(tmp_path / "dense")
    found, wanted = (
        merge("task_arithmetic", str(pretrained), {"x": tmp_path / name}, scale=1.0)
        for name in ("adapter", "dense")
    )
    close(found, dict(wanted))
    base = load_weights(pretrained)
    assert {name for name in base if not torch.equal(base[name], found[name])} == {
        name
        for name in base
        if name.startswith("visual.") and name.endswith(("in_proj_weight", "c_fc.weight"))
    }


@pytest.mark.timeout(900)
def test_two_processes_leave_the_adapter_of_one(pretrained: Path, tmp_path: Path) -> None:
    shutil.copy(pretrained, tmp_path / "pretrained.safetensors")
    launch(Path(__file__).with_name("lora_worker.py"), (1, 2), tmp_path)
    alone, both = (tmp_path / f"fit-{world}" for world in (1, 2))
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert sorted(path.relative_to(both) for path in both.rglob("*") if path.is_file()) == files
    assert [str(path) for path in files] == [
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("encoder.safetensors", "head.safetensors"),
    ]
    assert (both / files[0]).read_text() == (alone / files[0]).read_text()
    for file in files[1:]:
        found, wanted = load_weights(both / file), load_weights(alone / file)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=f"{file} {name}")
    changes = [tensor for name, tensor in load_weights(both / files[1]).items() if "lora_B" in name]
    assert all(tensor.any() for tensor in changes)
    assert max(float(tensor.abs().max()) for tensor in changes) > 1e-3, "steps are large beside the tolerance"
    # It stands for the encoder that was exported beside it.
    ours = {
        name: merge("average", str(pretrained), {"spots": both / name})
        for name in ("adapter", "encoder.safetensors")
    }
    close(ours["adapter"], dict(ours["encoder.safetensors"]))
