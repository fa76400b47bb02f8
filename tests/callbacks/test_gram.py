"""Gram matrices on one process: what is written and refused, and that a fit does not notice."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from sta_lightning.arithmetic.gradients import gradient_sums
from sta_lightning.arithmetic.gram import input_grams
from sta_lightning.callbacks import GramCollection, score, tensor_digest
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


def samples(data: TaskDataModule, seed: int) -> tuple[Tensor, Tensor]:
    dataset = data.dataset("train")
    drawn = [dataset[index] for index in data.scoring_samples(SAMPLES, seed)]
    return torch.stack([image for image, _ in drawn]), torch.tensor([label for _, label in drawn])


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6 * scale)


def test_plain_validate_collects(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    output = tmp_path / "digits" / "gram.safetensors"
    module = classifier(pretrained)
    trainer = quiet_trainer(callbacks=[GramCollection(str(output), SAMPLES, 4)])
    trainer.validate(module, data, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/acc"]) <= 1
    names = [name for name, _ in module.encoder.named_parameters()]
    found = load_weights(output)
    assert_close(found, input_grams(module.encoder, samples(data, 4)[0], names=names))
    assert "transformer.resblocks.0.attn.in_proj_weight" in found
    assert "proj" not in found


def test_the_file_tells_its_origin(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    output = tmp_path / "gram.safetensors"
    module = classifier(pretrained)
    settings: dict[str, Any] = {"samples": SAMPLES, "seed": 2, "measure": "gram"}
    assert score(quiet_trainer(), module, data, output=output, **settings) == output
    metadata = read_metadata(output)
    recorded = json.loads(metadata["settings"])
    assert {**recorded, **settings, "task": "spots", "encoder": "miniature", "split": "train"} == recorded
    assert recorded["indices"] == data.scoring_samples(SAMPLES, 2)
    assert recorded["rows"].keys() == load_weights(output).keys()
    assert all(count > 0 and count % SAMPLES == 0 for count in recorded["rows"].values())
    assert (metadata["measure"], metadata["kind"]) == ("gram", "gram")
    assert metadata["weights_sha256"] == tensor_digest(module.encoder.state_dict())


def test_the_fisher_information_is_that_of_the_samples(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    output = tmp_path / "fisher.safetensors"
    module = classifier(pretrained)
    score(quiet_trainer(), module, data, output=output, samples=SAMPLES, measure="fisher")
    names = [f"encoder.{name}" for name, _ in module.encoder.named_parameters()]
    logits = nn.Sequential(OrderedDict(encoder=module.encoder, head=module.head))
    expected = gradient_sums(logits, nn.functional.cross_entropy, *samples(data, 0), names=names, power=2)
    assert_close(load_weights(output), {n.removeprefix("encoder."): t for n, t in expected.items()})
    assert read_metadata(output)["measure"] == "fisher"


def test_a_fit_follows_bit_for_bit_the_fit_without(pretrained: Path, tmp_path: Path) -> None:
    data = TaskDataModule("spots", batch_size=4)
    after: list[tuple[dict[str, Tensor], Tensor, dict[str, bool]]] = []
    for callbacks in ([], [GramCollection(str(tmp_path / "g.safetensors"), SAMPLES)]):
        seed_everything(1)
        module = classifier(pretrained)
        trainer = quiet_trainer(max_epochs=1, callbacks=callbacks, gradient_clip_val=1.0)
        trainer.fit(module, data)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, data)
        flags = {name: child.training for name, child in module.named_modules()}
        after.append((module.state_dict(), torch.get_rng_state(), flags))
    plain, watched = after
    assert all(torch.equal(tensor, watched[0][name]) for name, tensor in plain[0].items())
    assert torch.equal(plain[1], watched[1])
    assert plain[2] == watched[2]
    assert (tmp_path / "g.safetensors").is_file()


def test_neither_the_trainer_s_precision_nor_its_batches_matter(pretrained: Path, tmp_path: Path) -> None:
    found = []
    for precision, batch in (("32-true", 2), ("bf16-mixed", 7)):
        output = tmp_path / f"{precision}.safetensors"
        data = TaskDataModule("spots", batch_size=batch)
        trainer = quiet_trainer(precision=precision)
        score(trainer, classifier(pretrained), data, output=output, samples=SAMPLES, measure="gram")
        found.append(output.read_bytes())
    assert found[0] == found[1]


def test_a_sharded_trainer_and_wrong_settings_are_refused(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    callback: Any = GramCollection(str(tmp_path / "g.safetensors"))
    strategy = object.__new__(FSDPStrategy)
    trainer = cast(Trainer, type("Sharded", (), {"strategy": strategy, "datamodule": data})())
    with pytest.raises(StaError, match=r"FSDPStrategy.*strategy=auto or ddp"):
        callback.setup(trainer, classifier(pretrained), "fit")
    with pytest.raises(StaError, match="samples must be at least 1"):
        GramCollection("g.safetensors", samples=0)
    for settings in ({"precision": "bf16"}, {"report_agreement": True}):
        with pytest.raises(StaError, match=r"Gram matrices are collected in float32"):
            score(
                quiet_trainer(),
                classifier(pretrained),
                data,
                output=tmp_path / "g.safetensors",
                measure="gram",
                **cast(Any, settings),
            )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_measure_is_told_which_there_are(pretrained: Path, data: TaskDataModule) -> None:
    with pytest.raises(StaError, match=r"measure='grams' was asked for; choose one of 'lp'.*, 'gram'\."):
        score(quiet_trainer(), classifier(pretrained), data, output="g.safetensors", measure="grams")


def test_an_encoder_without_linear_layers_is_refused(
    pretrained: Path, data: TaskDataModule, tmp_path: Path
) -> None:
    module = classifier(pretrained)
    module.build()
    module.encoder = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(StaError, match="no linear layer"):
        score(quiet_trainer(), module, data, output=tmp_path / "g.safetensors", samples=2, measure="gram")
    assert list(tmp_path.iterdir()) == []


class Convolution(LightningModule):
    """Has 2-D weights, and no linear layer in its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.encoder.register_parameter("proj", nn.Parameter(torch.ones(2, 2)))
        self.head = nn.Linear(4, 3)
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_before_a_fit_it_is_refused_before_the_training(data: TaskDataModule, tmp_path: Path) -> None:
    module = Convolution()
    collection = GramCollection(str(tmp_path / "g.safetensors"), SAMPLES)
    with pytest.raises(StaError, match="the encoder of Convolution has no linear layer"):
        quiet_trainer(max_epochs=1, callbacks=[collection]).fit(module, data)
    assert module.steps == 0
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_write_nothing(pretrained: Path, data: TaskDataModule, tmp_path: Path) -> None:
    module = classifier(pretrained)
    module.build()
    with torch.no_grad():
        next(module.encoder.parameters()).fill_(float("inf"))
    with pytest.raises(StaError, match=r"Gram matrices.*NaN or Inf"):
        score(quiet_trainer(), module, data, output=tmp_path / "g.safetensors", samples=2, measure="gram")
    assert list(tmp_path.iterdir()) == []
