"""The contrastive loss against CLIP's own and against NumPy; a short training from end to end."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.special import logsumexp

from sta_lightning.errors import StaError
from sta_lightning.modules.contrastive import ContrastivePretraining, contrastive_loss
from sta_lightning.tasks.miniature.datamodule import CorpusDataModule
from sta_lightning.weights import read_metadata
from tests.toys import quiet_trainer


def features(rows: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 5), dim=1)


def test_distinct_captions_give_clips_loss() -> None:
    torch.manual_seed(0)
    images, texts = features(7), features(7)
    order = torch.randperm(7)
    logits = 3 * images @ texts[order].T
    target = torch.arange(7)
    clip = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, order, torch.tensor(3.0)), clip)


def test_shared_captions_against_numpy() -> None:
    torch.manual_seed(1)
    images, texts, caption = features(6), features(3), torch.tensor([0, 1, 0, 2, 0, 1])
    logits = 4 * images.double().numpy() @ texts.double().numpy().T
    rows = [logsumexp(logits[i]) - logits[i, c] for i, c in enumerate(caption.tolist())]
    columns = []
    for c in caption.tolist():
        bearers = np.flatnonzero(caption.numpy() == c)
        columns.append(np.mean([logsumexp(logits[:, c]) - logits[i, c] for i in bearers]))
    expected = (np.mean(rows) + np.mean(columns)) / 2
    assert abs(contrastive_loss(images, texts, caption, torch.tensor(4.0)).item() - expected) < 1e-5


def test_a_short_training_learns_and_writes(tmp_path: Path) -> None:
    L.seed_everything(0)
    output = tmp_path / "clip.safetensors"
    module = ContrastivePretraining(warmup_steps=2, output=str(output), record={"command": "a test"})
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, CorpusDataModule(size=96, batch_size=32, validation_size=12))
    assert 0 <= trainer.callback_metrics["val/objects/acc"] <= 1
    tensors = load_file(output)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert set(tensors) == set(module.clip.state_dict())
    assert read_metadata(output)["steps"] == "3"
    assert read_metadata(output)["command"] == "a test"


def test_there_is_nothing_to_test() -> None:
    with pytest.raises(StaError, match=r"ContrastivePretraining has nothing to test.*MultiTaskEvaluation"):
        quiet_trainer().test(ContrastivePretraining(), CorpusDataModule())
