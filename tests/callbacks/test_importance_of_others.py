"""Scoring modules and data of others: any datamodule, any encoder and head, any loss."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from sta_lightning.callbacks import ExportWeights, ImportanceScoring, score
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import load_weights
from tests.toys import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]
WORDS, LENGTH, WIDTH = 11, 6, 8


class Texts(Dataset[dict[str, Tensor]]):
    """Sequences of different lengths, each with a label."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, WORDS, (3 + index % 4,), generator=generator)
        return {"tokens": tokens, "label": torch.tensor(index % 2)}


def padded(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    tokens = nn.utils.rnn.pad_sequence([s["tokens"] for s in samples], batch_first=True, padding_value=-1)
    return {"tokens": tokens, "label": torch.stack([s["label"] for s in samples])}


class TextData(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Texts(), batch_size=3, shuffle=True, collate_fn=padded)


class Layers(nn.Module):
    """Embeddings and one layer of a transformer, with dropout."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) / 3)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.3, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        values = self.words(tokens.clamp(min=0)) + self.places[:length]
        return self.layer(values, src_mask=mask, src_key_padding_mask=None if self.causal else tokens < 0)


class Trained(LightningModule):
    """What the two have in common: a step on the mean of the samples' losses."""

    steps = 0

    @abstractmethod
    def sample_losses(self, batch: Any) -> Tensor:
        """The loss of every sample, ``[B]``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return self.sample_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TinyBert(Trained):
    """A classifier of texts: the mean of the states of all words, and a layer on it."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Layers(causal=False)
        self.classifier = nn.Linear(WIDTH, 2)

    def sample_losses(self, batch: Any) -> Tensor:
        there = (batch["tokens"] >= 0)[..., None]
        pooled = (self.bert(batch["tokens"]) * there).sum(1) / there.sum(1)
        return F.cross_entropy(self.classifier(pooled), batch["label"], reduction="none")


class TinyGPT(Trained):
    """Predicts the next word; what it predicts with is what it embeds with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Layers(causal=True)
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.body.words.weight

    def sample_losses(self, batch: Any) -> Tensor:
        return token_losses(self, batch).sum(1)


def token_losses(module: Any, batch: Any) -> Tensor:
    """One loss for every word but the first, [B, T - 1]; 0 where there is none."""
    tokens = batch["tokens"]
    logits = module.out(module.body(tokens[:, :-1]))
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=-1, reduction="none")


def by_definition(module: Trained, part: nn.Module, power: int) -> dict[str, Tensor]:
    """Σ|θ·g| or Σg² with an ordinary backward pass per sample, on the samples that seed 3 draws."""
    module.eval()
    weights = dict(part.named_parameters())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for index in torch.randperm(9, generator=torch.Generator().manual_seed(3))[:5].tolist():
        loss = module.sample_losses(padded([Texts()[index]])).sum()
        found = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            total[name] += ((weight * gradient).abs() if power == 1 else gradient**2).detach()
    return total


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].max()))


def test_a_classifier_of_texts_is_scored_by_its_own_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, output = TinyBert(), tmp_path / "bert.safetensors"
    scoring = ImportanceScoring(str(output), samples=5, seed=3, encoder="bert", loss="sample_losses")
    quiet_trainer(max_epochs=1, callbacks=[scoring]).fit(module, TextData())
    assert module.steps == 3
    assert_close(load_weights(output), by_definition(module, module.bert, 1))


def test_the_losses_of_a_sequences_words_are_summed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, output = TinyGPT(), tmp_path / "gpt.safetensors"
    asked: dict[str, Any] = {"samples": 5, "seed": 3, "encoder": "", "loss": token_losses}
    score(quiet_trainer(), module, TextData(), output=output, measure="fisher", **asked)
    found = load_weights(output)
    expected = by_definition(module, module, 2)
    expected["out.weight"] = expected["body.words.weight"]  # one tensor of two names
    assert_close(found, expected)


def test_a_fit_with_the_scoring_follows_the_one_without(tmp_path: Path) -> None:
    states = []
    for scored in (True, False):
        torch.manual_seed(0)
        module = TinyBert()
        scoring = ImportanceScoring(
            str(tmp_path / "b.safetensors"), samples=5, encoder="bert", loss="sample_losses"
        )
        trainer = quiet_trainer(max_epochs=2, callbacks=[scoring] if scored else [])
        torch.manual_seed(1)
        trainer.fit(module, TextData())
        states.append(module.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_other_names_than_encoder_and_head(tmp_path: Path, pretrained: Path) -> None:
    class Other(Trained):
        def __init__(self) -> None:
            super().__init__()
            source = CLIPClassifier(task="spots", pretrained=str(pretrained))
            source.build()
            self.backbone = nn.Sequential(source.encoder)
            self.top = source.head

        def sample_losses(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.top(self.backbone(batch[0])), batch[1], reduction="none")

    data = TaskDataModule("spots", batch_size=8)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    score(quiet_trainer(), Other(), data, output=files[0], samples=3, encoder="backbone.0", head="top")
    plain = CLIPClassifier(task="spots", pretrained=str(pretrained))
    score(quiet_trainer(), plain, data, output=files[1], samples=3)
    found, expected = load_weights(files[0]), load_weights(files[1])
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    by_loss = tmp_path / "c.safetensors"
    score(
        quiet_trainer(), Other(), data, output=by_loss, samples=3, encoder="backbone.0", loss="sample_losses"
    )
    assert_close(load_weights(by_loss), expected)


class Pictures(Dataset[tuple[Tensor, int]]):
    """A data set of the form of torchvision's: a transform that may be random."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return self.transform(image), index % 3


def noisy(image: Tensor) -> Tensor:
    return image + torch.rand(()) + torch.rand_like(image)


def halved(image: Tensor) -> Tensor:
    return image / 2


class PictureData(LightningDataModule):
    def __init__(self, train: Any, validation: Any = None) -> None:
        super().__init__()
        self.sets = train, validation

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets[0], batch_size=4)

    def val_dataloader(self) -> Any:
        return [] if self.sets[1] is None else DataLoader(self.sets[1], batch_size=4)


def scored(pretrained: Path, data: Any, output: Path) -> dict[str, Tensor]:
    module = CLIPClassifier(task="spots", pretrained=str(pretrained), learning_rate=0.0)
    scoring = ImportanceScoring(str(output), samples=4)
    quiet_trainer(max_epochs=1, callbacks=[scoring]).fit(module, data)
    return load_weights(output)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_datamodule_of_others_is_scored_under_the_validations_transform(
    pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, part = tmp_path / "i.safetensors", list(range(2, 12))
    plain = scored(pretrained, PictureData(Subset(Pictures(halved), part)), output)
    with caplog.at_level("INFO"):
        known = PictureData(Subset(Pictures(noisy), part), Pictures(halved))
        assert same(scored(pretrained, known, output), plain)
        assert "10 samples of the training loader, under the validation's transform" in caplog.text
        drawn = scored(pretrained, PictureData(Pictures(noisy)), output)
        assert "under the training's own transform" in caplog.text
    assert same(scored(pretrained, PictureData(Pictures(noisy)), output), drawn), "seed and sample decide"
    assert not same(drawn, plain)


def test_a_loader_without_a_datamodule_is_enough(pretrained: Path, tmp_path: Path) -> None:
    data = TaskDataModule("spots")
    found = scored(pretrained, DataLoader(data.dataset("train"), batch_size=4), tmp_path / "a.safetensors")
    assert same(found, scored(pretrained, data, tmp_path / "b.safetensors"))


class Endless(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        return iter([Texts()[0]] * 3)


@pytest.mark.parametrize(
    ("settings", "loader", "message"),
    [
        ({}, None, r"TinyBert has no 'encoder' to score.*loss"),
        ({"encoder": "bert", "loss": "losses"}, None, r"loss='losses'.*no such method"),
        ({"encoder": "bert", "loss": "sample_losses", "samples": 10}, None, r"10 samples.*has 9"),
        (
            {"encoder": "bert", "loss": "sample_losses", "measure": "delta-lp"},
            None,
            r"does not tell its encoder",
        ),
        ({"encoder": "bert", "head": "classifier"}, None, r"images and labels, and this is a dict"),
        ({"encoder": "bert", "loss": lambda module, batch: {"loss": 1}}, None, "returned a dict"),
        (
            {"encoder": "bert", "loss": "sample_losses", "samples": 2},
            DataLoader(Endless(), batch_size=None),
            r"a DataLoader of Endless",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_training(
    tmp_path: Path, settings: dict[str, Any], loader: Any, message: str
) -> None:
    module = TinyBert()
    scoring = ImportanceScoring(str(tmp_path / "i.safetensors"), **{"samples": 5, **settings})
    trainer = quiet_trainer(max_epochs=1, callbacks=[scoring])
    with pytest.raises(StaError, match=message):
        trainer.fit(module, TextData() if loader is None else loader)
    assert module.steps == 0


def test_a_file_that_cannot_be_and_an_export_of_others_are_refused_before(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name, message in (("i.pt", "not named as a safetensors file"), ("folder.safetensors", "is a folder")):
        with pytest.raises(StaError, match=message):
            ImportanceScoring(str(tmp_path / name))
    module = TinyBert()
    trainer = quiet_trainer(max_epochs=1, callbacks=[ExportWeights(str(tmp_path))])
    with pytest.raises(StaError, match="TinyBert has no encoder, head and task to export"):
        trainer.fit(module, TextData())
    assert module.steps == 0


def test_batches_and_losses_of_another_kind_are_told(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"output": tmp_path / "i.safetensors", "samples": 2, "encoder": "bert"}
    with pytest.raises(
        StaError, match=r"images and labels, and this is a dict\. Give ImportanceScoring a loss"
    ):
        score(quiet_trainer(), TinyBert(), TextData(), head="classifier", **asked)
    with pytest.raises(StaError, match="returned a dict"):
        score(quiet_trainer(), TinyBert(), TextData(), loss=lambda module, batch: {"loss": 1}, **asked)
    assert not (tmp_path / "i.safetensors").exists()
