"""Several encoders in one pass over the images: the numbers of one at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.encoders import build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import MultiModelEvaluation, MultiTaskEvaluation, evaluate_many
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from sta_lightning.weights import encoder_weights
from tests.toys import ToyDataset, quiet_trainer, write_finetuned

TASKS = ("spots", "stripes", "watch")


@pytest.fixture(scope="module")
def files(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("several")
    return {
        name: str(write_finetuned(folder / f"{name}.safetensors", pretrained, seed, amount=0.2))
        for seed, name in enumerate(("first", "second.one", "third"))
    }


@pytest.fixture(scope="module")
def alone(pretrained: Path, files: dict[str, str]) -> dict[str, dict[str, float]]:
    """Accuracy of each model by itself, and their average."""
    found: dict[str, dict[str, float]] = {}
    for name, file in files.items():
        trainer = quiet_trainer()
        trainer.test(
            MultiTaskEvaluation(pretrained=str(pretrained), weights=file), datamodule=data(), verbose=False
        )
        found[name] = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    assert len({tuple(numbers.values()) for numbers in found.values()}) == 3, "the models differ"
    return found


def data() -> MultiTaskDataModule:
    return MultiTaskDataModule(["spots", "stripes"], control="watch", batch_size=4)


def by_task(numbers: dict[str, float]) -> dict[str, float]:
    return {
        name: numbers[f"test/control/{name}/acc" if name == "watch" else f"test/{name}/acc"] for name in TASKS
    }


@pytest.mark.parametrize("group", [None, 1, 2])
def test_the_numbers_of_one_at_a_time(
    pretrained: Path, files: dict[str, str], alone: dict[str, dict[str, float]], group: int | None
) -> None:
    found = evaluate_many(files, data(), pretrained=str(pretrained), group=group, trainer=quiet_trainer())
    assert list(found) == list(files)
    assert found == {name: by_task(numbers) for name, numbers in alone.items()}


def test_it_logs_every_model(
    pretrained: Path, files: dict[str, str], alone: dict[str, dict[str, float]]
) -> None:
    trainer = quiet_trainer()
    module = MultiModelEvaluation(files, pretrained=str(pretrained))
    trainer.test(module, datamodule=data(), verbose=False)
    expected = {
        tag.replace("test/", f"test/{name}/"): value
        for name, numbers in alone.items()
        for tag, value in numbers.items()
        if tag.startswith("test/")
    }
    assert {tag: float(value) for tag, value in trainer.callback_metrics.items()} == expected


@pytest.mark.parametrize(("group", "passes"), [(None, 1), (2, 2)])
def test_an_image_is_read_once_for_a_group(
    pretrained: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, group: int | None, passes: int
) -> None:
    read: list[int] = []
    original = ToyDataset.__getitem__

    def counted(self: ToyDataset, index: int) -> tuple[Tensor, int]:
        read.append(self.start + index)
        return original(self, index)

    monkeypatch.setattr(ToyDataset, "__getitem__", counted)
    evaluate_many(files, TaskDataModule("spots"), pretrained=str(pretrained), group=group)
    # The first is looked at once more: it tells whether the images have to be decoded.
    looked_at = min(read)
    assert Counter(read) == {index: passes * (2 if index == looked_at else 1) for index in set(read)}
    assert len(set(read)) == 7


def test_tensors_in_place_of_files_are_neither_copied_nor_changed(
    pretrained: Path, files: dict[str, str]
) -> None:
    reference = build_encoder("miniature", str(pretrained)).state_dict()
    states = {name: encoder_weights(Path(file), names=reference) for name, file in files.items()}
    before = {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in states.items()}
    module = MultiModelEvaluation(states, pretrained=str(pretrained))
    quiet_trainer().validate(module, datamodule=data(), verbose=False)
    expected = evaluate_many(files, data(), pretrained=str(pretrained), split="validation")
    assert module.accuracy == expected
    for (name, state), encoder in zip(states.items(), module.encoders.values(), strict=True):
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in state.items())
        assert {tensor.data_ptr() for tensor in encoder.parameters()} <= {
            tensor.data_ptr() for tensor in state.values()
        }


def test_features_have_one_row_a_model(pretrained: Path, files: dict[str, str]) -> None:
    module = MultiModelEvaluation(files, pretrained=str(pretrained))
    quiet_trainer().test(module, datamodule=TaskDataModule("spots"), verbose=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = module(images)
        for row, encoder in zip(features, module.encoders.values(), strict=True):
            assert torch.equal(row, encoder(images))
    assert features.shape == (3, 2, 128)


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ({}, {}, "0 models"),
        ({"a/b": "x.safetensors"}, {}, "without slashes"),
        ({"a": "nowhere.safetensors"}, {}, "model 'a'.*nowhere"),
        ({"a": {"w": torch.zeros(1)}}, {}, "model 'a'"),
        ({"a": "x"}, {"group": 0}, "groups of 0"),
        ({"a": "x"}, {"split": "train"}, "split='train'"),
    ],
)
def test_mistakes(pretrained: Path, models: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        evaluate_many(models, TaskDataModule("spots"), pretrained=str(pretrained), **settings)
    with pytest.raises(StaError, match="nothing to evaluate"):
        MultiModelEvaluation({})
