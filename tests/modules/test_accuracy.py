"""Accuracy from whole counts."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from sta_lightning.modules.accuracy import Accuracy


def test_it_is_the_micro_accuracy_of_torchmetrics() -> None:
    torch.manual_seed(0)
    ours, theirs = Accuracy(), MulticlassAccuracy(5, average="micro")
    for size in (4, 1, 7):
        logits, labels = torch.randn(size, 5), torch.randint(0, 5, (size,))
        ours.update(logits, labels)
        theirs.update(logits, labels)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()))
    assert int(ours.total) == 12


def test_an_empty_update_counts_nothing() -> None:
    metric = Accuracy()
    metric.update(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    metric.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert float(metric.compute()) == 0.5
    metric.reset()
    metric.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert bool(metric.compute().isnan())
