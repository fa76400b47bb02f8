"""Fine-tuning: the recipe, what trains, precision, resuming, checkpoints that need nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

from sta_lightning.encoders import build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights, save_weights
from tests.launch import ROOT
from tests.toys import quiet_trainer, write_finetuned


@pytest.fixture
def data() -> TaskDataModule:
    return TaskDataModule("spots", batch_size=8)


def classifier(pretrained: Path, **settings: Any) -> CLIPClassifier:
    return CLIPClassifier(task="spots", pretrained=str(pretrained), **{"learning_rate": 1e-3, **settings})


def snapshot(module: CLIPClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if "." in name}


def test_the_defaults_are_the_papers(pretrained: Path, data: TaskDataModule) -> None:
    module = CLIPClassifier(task="spots", pretrained=str(pretrained))
    trainer = quiet_trainer(max_steps=1200, limit_train_batches=0.0)
    trainer.fit(module, data)
    optimizer = trainer.optimizers[0]
    assert type(optimizer) is AdamW
    (group,) = optimizer.param_groups
    assert group["initial_lr"] == 1e-5
    assert group["weight_decay"] == 0.1
    assert group["lr"] == pytest.approx(1e-5 / 500)
    assert {id(p) for p in group["params"]} == {id(p) for p in module.encoder.parameters()}
    config = trainer.lr_scheduler_configs[0]
    assert config.interval == "step"


def test_the_rate_follows_warm_up_and_cosine_to_zero(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    seen: list[float] = []

    class Watch(CLIPClassifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    module = Watch(task="spots", pretrained=str(pretrained), learning_rate=1.0, warmup_steps=2)
    trainer = quiet_trainer(max_epochs=2, limit_val_batches=0)
    trainer.fit(module, data)
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.8535533, 0.5, 0.1464466])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_a_run_without_end_is_refused(pretrained: Path, data: TaskDataModule) -> None:
    with pytest.raises(StaError, match="max_steps nor max_epochs"):
        quiet_trainer(max_epochs=-1).fit(classifier(pretrained), data)


@pytest.mark.parametrize("trainable", ["encoder", "head", "both"])
def test_what_is_trained_moves_and_the_rest_stays(
    pretrained: Path, data: TaskDataModule, trainable: str
) -> None:
    module = classifier(pretrained, trainable=trainable)
    module.build()
    before = snapshot(module)
    quiet_trainer(max_epochs=1).fit(module, data)
    after = snapshot(module)
    moved = {
        part: any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part))
        for part in ("encoder.", "head.")
    }
    assert moved == {"encoder.": trainable != "head", "head.": trainable != "encoder"}
    assert all(p.requires_grad == (trainable != "head") for p in module.encoder.parameters())
    assert len(list(module.head.parameters())) == (0 if trainable == "encoder" else 1)
    assert all(name.startswith(("encoder.", "head.")) for name in before), "no text tower"
    assert module.encoder.training == (trainable != "head")


def test_it_learns_and_counts_right(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    module = classifier(pretrained)
    trainer = quiet_trainer(max_epochs=4, logger=CSVLogger(tmp_path))
    trainer.fit(module, data)
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= trainer.callback_metrics.keys()
    (results,) = trainer.test(module, data, verbose=False)
    predicted = quiet_trainer().predict(module, data)
    assert predicted is not None
    probabilities = torch.cat([batch for batch in predicted if isinstance(batch, Tensor)])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))
    labels = torch.tensor([label for _, label in data.dataset("test")])  # type: ignore[attr-defined]
    assert results == {
        "test/spots/acc": pytest.approx(float((probabilities.argmax(1) == labels).float().mean()))
    }
    (validated,) = quiet_trainer().validate(module, data, verbose=False)
    pairs = [data.dataset("validation")[index] for index in range(7)]
    images, targets = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    module.eval()
    with torch.no_grad():
        logits = module(images)
    assert validated["val/loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert validated["val/acc"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert validated["val/acc"] > 0.9, "thirds of the width are easy to tell apart"


def test_label_smoothing_is_for_training_alone(pretrained: Path, data: TaskDataModule) -> None:
    losses = []
    for smoothing in (0.0, 0.5):
        module = classifier(pretrained, label_smoothing=smoothing, learning_rate=0.0)
        trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
        trainer.fit(module, data)
        losses.append([float(trainer.callback_metrics[tag]) for tag in ("train/loss", "val/loss")])
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == losses[1][1]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(pretrained: Path, data: TaskDataModule, precision: str) -> None:
    module = classifier(pretrained)
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    trainer.fit(module, data)
    (results,) = trainer.test(module, data, verbose=False)
    assert 0 <= results["test/spots/acc"] <= 1
    assert bool(trainer.callback_metrics["test/spots/acc"].isfinite())


def test_accumulated_batches_are_one_larger_batch(pretrained: Path) -> None:
    states = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = classifier(pretrained, optimizer=lambda parameters: SGD(parameters, lr=0.1), warmup_steps=0)
        data = TaskDataModule("spots", batch_size=batch_size)
        trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=accumulate, limit_val_batches=0)
        trainer.fit(module, data)
        assert trainer.global_step == 3
        states.append(module.state_dict())
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5)


def test_a_resumed_fit_ends_where_the_whole_one_does(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    whole = classifier(pretrained, trainable="both", warmup_steps=2)
    quiet_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saver]).fit(whole, data)
    resumed = classifier(pretrained, trainable="both", warmup_steps=2)
    again = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer = quiet_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[again])
    trainer.fit(resumed, data, ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert all(torch.equal(t, resumed.state_dict()[n]) for n, t in whole.state_dict().items())


def test_a_checkpoint_needs_nothing_else(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    images = torch.stack([image for image, _ in data.dataset("test")])  # type: ignore[attr-defined]
    for trainable in ("encoder", "both"):
        module = classifier(pretrained, trainable=trainable)
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(module, data)
        trainer.save_checkpoint(tmp_path / f"{trainable}.ckpt")
        content = torch.load(tmp_path / f"{trainable}.ckpt", weights_only=True)
        content["hyper_parameters"]["pretrained"] = "/nowhere/pretrained.safetensors"
        torch.save(content, tmp_path / f"{trainable}.ckpt")
        expected = {"images": images, "logits": module.eval()(images).detach()}
        torch.save(expected, tmp_path / f"{trainable}.pt")
    # In a process of its own, where not even the task of the fit exists.
    script = (
        "import sys, torch\n"
        "from sta_lightning.modules import CLIPClassifier\n"
        "for name in ('encoder', 'both'):\n"
        "    expected = torch.load(f'{sys.argv[1]}/{name}.pt', weights_only=True)\n"
        "    module = CLIPClassifier.load_from_checkpoint(f'{sys.argv[1]}/{name}.ckpt').eval()\n"
        "    assert torch.equal(module(expected['images']), expected['logits'])\n"
        "print('same')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip().endswith("same"), done.stderr


def test_a_checkpoint_with_code_in_it_is_not_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'boom')!r}, 'w')",)

    torch.save({"state_dict": {}, "hyper_parameters": {"task": Bomb()}}, tmp_path / "bomb.ckpt")
    with pytest.raises(Exception, match=r"Weights only load failed"):
        CLIPClassifier.load_from_checkpoint(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "boom").exists()


def test_optimiser_and_scheduler_can_be_replaced(pretrained: Path, data: TaskDataModule) -> None:
    module = classifier(
        pretrained,
        optimizer=lambda parameters: SGD(parameters, lr=0.5),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, 0.1),
    )
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0)
    trainer.fit(module, data)
    assert type(trainer.optimizers[0]) is SGD
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


def test_weights_replace_the_encoder_and_not_the_head(pretrained: Path, tmp_path: Path) -> None:
    path = write_finetuned(tmp_path / "finetuned.safetensors", pretrained, seed=5)
    plain, finetuned = classifier(pretrained), classifier(pretrained, weights=str(path))
    plain.build()
    finetuned.build()
    assert torch.equal(plain.head.weight, finetuned.head.weight)
    found = load_weights(path)
    assert all(torch.equal(t, found[f"visual.{n}"]) for n, t in finetuned.encoder.state_dict().items())


def test_a_saved_head_is_used_and_must_fit(pretrained: Path, tmp_path: Path) -> None:
    module = classifier(pretrained)
    module.build()
    module.head.weight += 1
    module.head.save(tmp_path / "head.safetensors")
    again = classifier(pretrained, head=str(tmp_path / "head.safetensors"))
    again.build()
    assert torch.equal(again.head.weight, module.head.weight)
    save_weights(tmp_path / "small.safetensors", {"weight": torch.ones(2, 128)}, {"normalize": "true"})
    with pytest.raises(StaError, match=r"'spots' has 3 classes, the head.*has 2"):
        classifier(pretrained, head=str(tmp_path / "small.safetensors")).build()


def test_an_encoder_without_text_tower_gets_prototypes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "timm/vit_tiny_patch16_224"
    encoder = build_encoder(name, "random", 32)
    path = tmp_path / "timm.safetensors"
    save_weights(path, encoder.state_dict())
    module = CLIPClassifier(name, "spots", pretrained=str(path), image_size=32)
    data = TaskDataModule("spots", encoder=name, image_size=32, batch_size=8)
    quiet_trainer().test(module, data, verbose=False)
    assert module.head.weight.shape == (3, 192)
    assert bool(torch.allclose(module.head.weight.norm(dim=1), torch.tensor(20.0)))
    other = CLIPClassifier(name, "spots", pretrained=str(path), image_size=32)
    with pytest.raises(StaError, match="prototypes"):
        other.build()


def test_module_and_data_of_different_tasks_are_refused(pretrained: Path) -> None:
    with pytest.raises(StaError, match=r"'spots'.*'stripes'"):
        quiet_trainer().validate(classifier(pretrained), TaskDataModule("stripes"), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "all"}, "trainable='all'"),
        ({"learning_rate": -1.0}, "must not be"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        CLIPClassifier(task="spots", **settings)


def test_nothing_can_be_asked_of_a_module_that_is_not_built() -> None:
    with pytest.raises(StaError, match="no encoder yet"):
        CLIPClassifier(task="spots")(torch.zeros(1, 3, 32, 32))
