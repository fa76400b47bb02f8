"""Scoring on one process: what is written and refused, and that a fit does not notice."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from sta_lightning.callbacks import ImportanceScoring, score, tensor_digest
from sta_lightning.callbacks.scorable import check_strategy
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights, read_metadata
from tests.toys import quiet_trainer

SAMPLES = 5


@pytest.fixture
def data() -> TaskDataModule:
    return TaskDataModule("spots", batch_size=4)


def classifier(pretrained: Path, **settings: Any) -> CLIPClassifier:
    return CLIPClassifier(
        task="spots", pretrained=str(pretrained), **{"learning_rate": 1e-3, "warmup_steps": 1, **settings}
    )


def by_definition(module: CLIPClassifier, data: TaskDataModule, samples: int, seed: int) -> dict[str, Tensor]:
    """Eq. 10 and 11 with one ordinary backward pass per sample."""
    module.eval()
    dataset = data.dataset("train")
    parameters = dict(module.encoder.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for index in data.scoring_samples(samples, seed):
        image, label = dataset[index]
        loss = F.cross_entropy(module(image[None]), torch.tensor([label]))
        for name, gradient in zip(total, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += (parameters[name] * gradient).abs().detach()
    return total


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].max()))


def test_plain_validate_scores_in_spite_of_inference_mode(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    output = tmp_path / "digits" / "importance.safetensors"
    callback = ImportanceScoring(str(output), samples=SAMPLES, seed=4)
    module = classifier(pretrained)
    trainer = quiet_trainer(callbacks=[callback])
    trainer.validate(module, data, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/acc"]) <= 1
    found = load_weights(output)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_close(found, by_definition(module, data, SAMPLES, 4))


def test_the_file_tells_its_origin(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    output = tmp_path / "importance.safetensors"
    module = classifier(pretrained)
    assert score(quiet_trainer(), module, data, output=output, samples=SAMPLES, seed=2) == output
    metadata = read_metadata(output)
    settings = json.loads(metadata["settings"])
    assert settings["indices"] == data.scoring_samples(SAMPLES, 2)
    assert settings["split"] == "train"
    assert (settings["samples"], settings["seed"], settings["measure"]) == (SAMPLES, 2, "lp")
    assert (settings["task"], settings["encoder"]) == ("spots", "miniature")
    assert metadata["measure"] == "lp"
    assert metadata["weights_sha256"] == tensor_digest(module.encoder.state_dict())


def test_scoring_alone_reads_a_checkpoint_and_no_validation_image(
    pretrained: Path, data: TaskDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = tmp_path / "attached.safetensors"
    trainer = quiet_trainer(max_epochs=2, callbacks=[ImportanceScoring(str(attached), samples=SAMPLES)])
    trainer.fit(classifier(pretrained), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    def refuse(*_: Any) -> None:
        raise AssertionError("validation images were read")

    monkeypatch.setattr(TaskDataModule, "val_dataloader", refuse)
    monkeypatch.setattr(CLIPClassifier, "validation_step", refuse)
    later = quiet_trainer()
    output = tmp_path / "later.safetensors"
    score(
        later, classifier(pretrained), data, output=output, samples=SAMPLES, ckpt_path=tmp_path / "last.ckpt"
    )
    assert not later.callback_metrics
    first, second = load_weights(attached), load_weights(output)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert read_metadata(attached) == read_metadata(output)


class Drawing(TaskDataModule):
    """Draws from every global generator whenever it is asked for samples to score."""

    def scoring_samples(self, n: int, seed: int = 0) -> list[int]:
        torch.rand(1), np.random.rand(), random.random()
        return super().scoring_samples(n, seed)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # the frozen encoder, at the second fit
@pytest.mark.parametrize("trainable", ["encoder", "head"])
def test_a_fit_follows_bit_for_bit_the_fit_without(pretrained: Path, tmp_path: Path, trainable: str) -> None:
    data = Drawing("spots", batch_size=4)
    after: list[tuple[dict[str, Tensor], Tensor, Any, dict[str, bool]]] = []
    for callbacks in (
        [],
        [ImportanceScoring(str(tmp_path / "i.safetensors"), samples=SAMPLES)],
    ):
        seed_everything(1)
        module = classifier(pretrained, trainable=trainable)
        trainer = quiet_trainer(max_epochs=1, callbacks=callbacks, gradient_clip_val=1.0)
        trainer.fit(module, data)
        # A second fit starts where the first one, and the scoring after it, have left everything.
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, data)
        flags = {name: child.training for name, child in module.named_modules()}
        after.append(
            (
                module.state_dict(),
                torch.get_rng_state(),
                (random.getstate(), cast(Any, np.random.get_state())[1].tolist()),
                flags,
            )
        )
        assert all(
            not p.requires_grad or p.grad is None or bool(p.grad.isfinite().all())
            for p in module.parameters()
        )
    plain, scored = after
    assert plain[0].keys() == scored[0].keys()
    assert all(torch.equal(tensor, scored[0][name]) for name, tensor in plain[0].items())
    assert torch.equal(plain[1], scored[1])
    assert plain[2] == scored[2]
    assert plain[3] == scored[3]
    assert (tmp_path / "i.safetensors").is_file()


def test_precision_of_the_trainer_does_not_matter(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    found = []
    for precision in ("32-true", "bf16-mixed"):
        output = tmp_path / f"{precision}.safetensors"
        trainer = quiet_trainer(precision=precision)
        score(trainer, classifier(pretrained), data, output=output, samples=SAMPLES)
        found.append(load_weights(output))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_bfloat16_weights_are_scored_in_float32(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    output = tmp_path / "i.safetensors"
    module = classifier(pretrained)
    score(quiet_trainer(precision="bf16-true"), module, data, output=output, samples=SAMPLES)
    assert next(module.encoder.parameters()).dtype == torch.bfloat16
    found = load_weights(output)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_close(found, by_definition(module.float(), data, SAMPLES, 0))


def test_measures(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = classifier(pretrained)
    module.build()
    start = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in module.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    found: dict[str, dict[str, Tensor]] = {}
    for measure in ("lp", "amp", "lp+amp", "delta-lp", "delta-amp", "fisher"):
        output = tmp_path / f"{measure}.safetensors"
        score(quiet_trainer(), module, data, output=output, samples=SAMPLES, measure=measure)
        found[measure] = load_weights(output)
        assert read_metadata(output)["measure"] == measure
        assert ("indices" in json.loads(read_metadata(output)["settings"])) == (
            "amp" not in measure or "lp" in measure
        )
    for name, theta in module.encoder.state_dict().items():
        delta = theta - start[name]
        torch.testing.assert_close(found["amp"][name], theta**2)
        torch.testing.assert_close(found["delta-amp"][name], delta**2)
        torch.testing.assert_close(found["lp+amp"][name], found["lp"][name] * theta**2)
        torch.testing.assert_close(
            found["delta-lp"][name] * theta.abs(), found["lp"][name] * delta.abs(), rtol=1e-4, atol=1e-9
        )


def test_samples_depend_on_the_seed_alone(pretrained: Path, tmp_path: Path) -> None:
    files = []
    for number, (batch, before) in enumerate([(2, 0), (7, 5)]):
        torch.manual_seed(before)
        output = tmp_path / f"{number}.safetensors"
        score(
            quiet_trainer(),
            classifier(pretrained),
            TaskDataModule("spots", batch_size=batch),
            output=output,
            samples=4,
        )
        files.append(hashlib.sha256(output.read_bytes()).hexdigest())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_are_refused(kind: type[Any]) -> None:
    strategy = object.__new__(kind)
    with pytest.raises(StaError, match=rf"{kind.__name__}.*strategy=auto or ddp"):
        check_strategy(cast(Trainer, SimpleNamespace(strategy=strategy)))


def test_a_sharded_trainer_is_refused_before_it_trains(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    callback = ImportanceScoring(str(tmp_path / "i.safetensors"))
    trainer = cast(Trainer, SimpleNamespace(strategy=object.__new__(FSDPStrategy), datamodule=data))
    with pytest.raises(StaError, match="FSDPStrategy"):
        callback.setup(trainer, classifier(pretrained), "fit")


class Headless(LightningModule):
    """Has no encoder and no head."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore:.*(configure_optimizers|validation_step).*")
def test_a_module_without_encoder_is_refused_before_training(data: TaskDataModule, tmp_path: Path) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[ImportanceScoring(str(tmp_path / "i.safetensors"))])
    with pytest.raises(StaError, match=r"Headless has no 'encoder'"):
        trainer.fit(Headless(), data)


def test_broken_weights_write_nothing(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    module = classifier(pretrained)
    module.build()
    with torch.no_grad():
        next(module.encoder.parameters()).fill_(float("inf"))
    with pytest.raises(StaError, match="NaN or Inf"):
        score(quiet_trainer(), module, data, output=tmp_path / "i.safetensors", samples=2)
    assert list(tmp_path.iterdir()) == []


def test_more_samples_than_images_is_an_error(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    with pytest.raises(StaError, match="25 samples"):
        score(quiet_trainer(), classifier(pretrained), data, output=tmp_path / "i.safetensors", samples=25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "file"}, "measure='file'"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"report_agreement": True}, "report_agreement compares"),
        ({"report_agreement": True, "precision": "bf16", "measure": "amp"}, "measure='amp'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        ImportanceScoring("i.safetensors", **settings)


def test_samples_of_one_label_are_told(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    images = data.dataset("train")
    label = int(images[0][1])
    same = [index for index in range(len(cast(Any, images))) if int(images[index][1]) == label][:3]
    data.scoring_samples = lambda n, seed=0: same  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=rf"All 3 samples have one label, {label}:"):
        score(quiet_trainer(), classifier(pretrained), data, output=tmp_path / "i.safetensors", samples=3)


@pytest.mark.parametrize(("value", "told"), [(0.0, "0 everywhere"), (2.0, "same number throughout")])
def test_importance_that_tells_nothing_apart_is_told(value: float, told: str) -> None:
    encoder = torch.nn.Linear(3, 2)
    for parameter in encoder.parameters():
        torch.nn.init.constant_(parameter, value)
    scoring = ImportanceScoring("i.safetensors", measure="amp")
    with pytest.warns(UserWarning, match=rf"importance by 'amp' is .*{told}"):
        scoring.result(cast(Any, SimpleNamespace(encoder=encoder)), {})
    torch.nn.init.constant_(encoder.weight[0], value + 1)
    scoring.result(cast(Any, SimpleNamespace(encoder=encoder)), {})
