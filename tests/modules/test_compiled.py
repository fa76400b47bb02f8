"""The encoder under ``torch.compile``, and 16-bit precision, as a configuration asks for them."""

from __future__ import annotations

import pickle
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from sta_lightning.callbacks import score
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier, classifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights
from tests.toys import quiet_trainer

# Lightning's own command line calls jsonargparse by names that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter", "ignore::DeprecationWarning")


def run(folder: Path, pretrained: Path, model: dict[str, Any], trainer: dict[str, Any]) -> LightningCLI:
    """Fit for an epoch of three batches, as a YAML file says."""
    config: dict[str, Any] = {
        "seed_everything": 1,
        "model": {"task": "spots", "pretrained": str(pretrained), "learning_rate": 1e-4, **model},
        "data": {"task": "spots", "batch_size": 8},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "sta_lightning.callbacks.ExportWeights",
                    "init_args": {"directory": str(folder)},
                }
            ],
            **trainer,
        },
    }
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return LightningCLI(
        CLIPClassifier,
        TaskDataModule,
        save_config_callback=None,
        auto_configure_optimizers=False,
        args=["fit", "--config", str(folder / "config.yaml")],
    )


class Small(nn.Module):
    """An encoder that compiles in seconds; the embedded one takes most of a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 32 * 32, 32)
        self.last = nn.Linear(32, 128)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.last(F.gelu(self.first(images.flatten(1)))))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every classifier start from one small encoder."""
    torch.manual_seed(0)
    encoder = Small()
    monkeypatch.setattr(classifier, "start_encoder", lambda *_: (encoder, deepcopy(encoder)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; there is no g++")
@pytest.mark.usefixtures("small")
def test_a_compiled_fit_leaves_what_a_plain_one_does(pretrained: Path, tmp_path: Path) -> None:
    setting = {"dynamic": False, "fullgraph": True}
    compiled = run(tmp_path / "compiled", pretrained, {"compile": setting}, {"limit_val_batches": 0}).model
    plain = run(tmp_path / "plain", pretrained, {}, {"limit_val_batches": 0}).model
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    found, expected = (
        load_weights(tmp_path / name / "encoder.safetensors") for name in ("compiled", "plain")
    )
    assert set(found) == {
        f"visual.{layer}.{part}" for layer in ("first", "last") for part in ("weight", "bias")
    }
    start = classifier.start_encoder("", None, None, None)[0].state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6)
        assert float((tensor - start[name.removeprefix("visual.")]).abs().max()) > 1e-4


@pytest.mark.usefixtures("small")
def test_every_step_runs_the_compiled_forward(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def recorded(function: Any, **keywords: Any) -> Any:
        def call(images: Tensor) -> Tensor:
            calls.append("train" if module.encoder.training else "eval")
            return cast(Tensor, function(images))

        assert keywords == {}
        return call

    monkeypatch.setattr(torch, "compile", recorded)
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), compile=True)
    data = TaskDataModule("spots", batch_size=8)
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    assert calls == ["train"] * 3 + ["eval"]
    quiet_trainer().test(module, data, verbose=False)
    quiet_trainer().predict(module, data)
    assert calls == ["train"] * 3 + ["eval"] * 3
    score(quiet_trainer(), module, data, output=tmp_path / "importance.safetensors", samples=2)
    assert len(calls) == 6, "scoring differentiates the plain encoder"


def test_compiled_code_stays_behind_when_a_module_is_copied_or_saved(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def noted(model: Any, mode: str | None = None) -> Any:
        made.append(model)
        return model

    monkeypatch.setattr(torch, "compile", noted)
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), compile={"mode": "default"})
    data = TaskDataModule("spots", batch_size=8)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, limit_train_batches=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = torch.rand(2, 3, 32, 32)
    expected = module.eval()(images)
    copy = pickle.loads(pickle.dumps(module))
    for parameter in module.encoder.parameters():
        parameter.data.zero_()
    assert torch.equal(copy(images), expected), "a copy has a forward of its own"
    again = CLIPClassifier.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    assert torch.equal(again(images), expected)
    # The one that was loaded is not compiled: a checkpoint does not say what runs.
    assert len(made) == 2


def test_a_compiler_that_fails_is_told(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def broken(function: Any, **_: Any) -> Any:
        def call(images: Tensor) -> Tensor:
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr(torch, "compile", broken)
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), compile=True)
    module.build()
    with pytest.raises(StaError, match=r"could not compile.*C\+\+ compiler.*leave `compile` out"):
        module(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"modus": "max-autotune"}, r"'modus'.*'mode'"), ({"mode": "fastest"}, r"fastest.*compile: true")],
)
def test_settings_that_the_compiler_does_not_know(
    pretrained: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(StaError, match=message):
        CLIPClassifier(task="spots", pretrained=str(pretrained), compile=setting).build()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.filterwarnings("ignore:You passed .Trainer.accelerator='cpu', precision='16-mixed'")
@pytest.mark.usefixtures("small")
def test_16_bit_precision_from_yaml(pretrained: Path, tmp_path: Path, precision: str) -> None:
    half = run(tmp_path / "half", pretrained, {}, {"precision": precision, "gradient_clip_val": 1.0})
    full = run(tmp_path / "full", pretrained, {}, {"gradient_clip_val": 1.0})
    losses = [float(cli.trainer.callback_metrics["train/loss"]) for cli in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    exported = load_weights(tmp_path / "half" / "encoder.safetensors")
    kind = torch.bfloat16 if precision.endswith("true") else torch.float32
    assert {tensor.dtype for tensor in exported.values()} == {kind}
