"""Macro, top-5 and per-class accuracy and the confusion figure, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier, MultiModelEvaluation, MultiTaskEvaluation
from sta_lightning.modules.measures import Measures
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from tests.toys import quiet_trainer

ALL = ["macro", "top5", "per_class", "confusion"]


class Recorder:
    """Stands in for a module: keeps what is logged."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.trainer: Any = type("Trainer", (), {"loggers": [], "is_global_zero": True})()

    def log(self, tag: str, value: Any, **_: Any) -> None:
        self.logged[tag] = float(value)


def test_the_values_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 8))
    labels = rng.choice(8, size=60, p=np.arange(1, 9) / 36)
    names = [f"class {number}" for number in range(7)] + ["a/b"]
    measures, module = Measures(ALL, names), Recorder()
    for part in (slice(0, 50), slice(50, 50), slice(50, 60)):
        measures.update(torch.tensor(logits[part]), torch.tensor(labels[part]))
    measures.log(module, "test/x")  # type: ignore[arg-type]
    hits = logits.argmax(1) == labels
    recalls = np.array([hits[labels == label].mean() for label in range(8)])
    order = np.argsort(-logits, axis=1)[:, :5]
    assert module.logged["test/x/macro_acc"] == pytest.approx(recalls.mean())
    assert module.logged["test/x/macro_acc"] != pytest.approx(hits.mean())
    assert module.logged["test/x/top5_acc"] == pytest.approx((order == labels[:, None]).any(1).mean())
    found = [module.logged[f"test/x/acc/{name}"] for name in [*names[:7], "a_b"]]
    assert found == pytest.approx(recalls)
    measures.update(torch.eye(8), torch.arange(8))
    measures.log(module, "test/x")  # type: ignore[arg-type]
    assert module.logged["test/x/macro_acc"] == 1, "the counts begin anew"


def test_a_classifier_and_an_evaluation_measure_the_same(pretrained: Path, tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, default_hp_metric=False)
    classifier = CLIPClassifier(task="spots", pretrained=str(pretrained), metrics=ALL)  # type: ignore[arg-type]
    trainer = quiet_trainer(logger=board)
    (one,) = trainer.test(classifier, TaskDataModule("spots", batch_size=4), verbose=False)
    evaluation = MultiTaskEvaluation(pretrained=str(pretrained), metrics=ALL)  # type: ignore[arg-type]
    tables = quiet_trainer().test(evaluation, MultiTaskDataModule(["spots", "stripes"]), verbose=False)
    many = {tag: value for table in tables for tag, value in table.items()}
    tags = {f"test/spots/{tag}" for tag in ("macro_acc", "top5_acc", "acc/left", "acc/middle", "acc/right")}
    assert tags <= one.keys()
    assert {tag: many[tag] for tag in tags} == {tag: one[tag] for tag in tags}
    models = MultiModelEvaluation({"a": str(pretrained)}, pretrained=str(pretrained), metrics=["macro"])
    (several,) = quiet_trainer().test(models, MultiTaskDataModule(["spots"]), verbose=False)
    assert several["test/a/spots/macro_acc"] == one["test/spots/macro_acc"]
    (validated,) = quiet_trainer().validate(classifier, TaskDataModule("spots"), verbose=False)
    assert "val/macro_acc" in validated
    images = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload().Tags()["images"]
    assert images == ["test/spots/confusion"]


def test_a_metric_that_there_is_not_is_refused() -> None:
    with pytest.raises(StaError, match=r"metrics has 'f1'.*'macro'"):
        CLIPClassifier(task="spots", metrics=["f1"])  # type: ignore[list-item]
