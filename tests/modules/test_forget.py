"""Forgetting as a module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sta_lightning import forget
from sta_lightning.callbacks.board import RESULTS
from sta_lightning.encoders import build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import ForgetModule
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.weights import load_weights, read_metadata
from tests.toys import entered, quiet_trainer, write_finetuned, write_importance


@pytest.fixture(scope="module")
def files(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "finetuned": write_finetuned(folder / "spots.safetensors", pretrained, 1),
        "importance": write_importance(folder / "importance.safetensors", pretrained, 1),
        "model": write_finetuned(folder / "model.safetensors", pretrained, 2),
    }


def module(pretrained: Path, files: dict[str, Path], **settings: Any) -> ForgetModule:
    return ForgetModule(
        "spots",
        **{
            "finetuned": str(files["finetuned"]),
            "importance": str(files["importance"]),
            "pretrained": str(pretrained),
            **settings,
        },
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix("visual."): tensor for name, tensor in load_weights(path).items()}


@pytest.mark.parametrize("given", [False, True])
def test_it_forgets_what_the_library_forgets(pretrained: Path, files: dict[str, Path], given: bool) -> None:
    base = build_encoder("miniature", str(pretrained)).state_dict()
    model = weights(files["model"]) if given else base
    expected = forget(model, base, weights(files["finetuned"]), weights(files["importance"]), p=0.6)
    found = module(pretrained, files, p=0.6, model=str(files["model"]) if given else None).merge().weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_target_and_control_are_logged(pretrained: Path, files: dict[str, Path], tmp_path: Path) -> None:
    forgetting = module(pretrained, files, control="watch")
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    trainer = quiet_trainer(logger=logger)
    trainer.test(forgetting, MultiTaskDataModule(["spots"], control="watch"), verbose=False)
    tags = {"test/target/acc", "test/control/acc", "accuracy/target", "accuracy/control"}
    assert trainer.callback_metrics.keys() == tags
    events = EventAccumulator(logger.log_dir).Reload()
    assert tags <= set(events.Tags()["scalars"])
    assert forgetting.merge().kept["proj"]["spots"] == pytest.approx(0.3, abs=1e-3)
    settings, results = entered(events)
    assert settings.items() >= {"method": "sta", "measure": "lp", "p": 0.7}.items()
    assert "target = spots" in str(settings["settings"])
    assert results == RESULTS, "the same columns as every other run: TensorBoard shows those of the first"


def test_the_file_tells_its_origin(pretrained: Path, files: dict[str, Path], tmp_path: Path) -> None:
    path = module(pretrained, files, method="task_arithmetic", model=str(files["model"])).save(
        tmp_path / "f.safetensors"
    )
    metadata = read_metadata(path)
    assert metadata["kind"] == "forgotten:task_arithmetic"
    settings = json.loads(metadata["settings"])
    assert settings["scale"] == 1.0
    assert settings["target"] == "spots"
    assert "p" not in settings
    assert json.loads(metadata["sources"]).keys() == {"pretrained", "finetuned/spots", "model"}


def test_data_that_is_not_the_target_is_refused(pretrained: Path, files: dict[str, Path]) -> None:
    with pytest.raises(StaError, match=r"'stripes'.*'spots'"):
        quiet_trainer().test(module(pretrained, files), MultiTaskDataModule(["stripes"]), verbose=False)
    data = MultiTaskDataModule(["spots"], control="stripes")
    with pytest.raises(StaError, match=r"control is 'watch'.*'stripes'"):
        quiet_trainer().test(module(pretrained, files, control="watch"), data, verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "average"}, "forgetting method 'average' is unknown"),
        ({"p": -0.1}, "-0.1"),
        ({"scale": 2.0}, "no coefficient"),
    ],
)
def test_wrong_settings(
    pretrained: Path, files: dict[str, Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StaError, match=message):
        module(pretrained, files, **settings)
