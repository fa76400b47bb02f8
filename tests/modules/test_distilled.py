"""The distilled merge as a module: where it starts, what it makes smaller, what it looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sta_lightning import merge
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import DistilledMerging, TaskSource
from sta_lightning.modules.learned import learn
from sta_lightning.tasks import UnlabelledDataModule
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.modules.test_adamerging import NAMES, Poisoned, same
from tests.modules.test_adamerging import tasks as tasks  # a fixture
from tests.toys import ToyDataset, quiet_trainer

SIZE = 8


def data(**settings: Any) -> UnlabelledDataModule:
    return UnlabelledDataModule(
        list(NAMES), **{"split": "train", "limit": SIZE, "batch_size": SIZE, **settings}
    )


@pytest.fixture
def build(pretrained: Path, tasks: dict[str, TaskSource]) -> Any:
    return lambda **settings: DistilledMerging(tasks, **{"pretrained": str(pretrained), **settings})


@pytest.fixture(scope="module")
def states(pretrained: Path, tasks: dict[str, TaskSource]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The pretrained encoder and the fine-tuned ones."""
    found = {name: load_weights(str(source.finetuned)) for name, source in tasks.items()}
    finetuned = {
        name: {n.removeprefix("visual."): t for n, t in state.items()} for name, state in found.items()
    }
    return build_encoder("miniature", str(pretrained)).state_dict(), finetuned


def test_it_starts_as_the_closed_form(build: Any, states: Any) -> None:
    base, finetuned = states
    for settings, expected in (
        ({}, merge("swudi_a", base, finetuned, scale=1.2)),
        ({"merges": ["tsv"], "init": 1.0}, merge("tsv", base, finetuned)),
    ):
        found = build(**settings).merged_weights()
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    rows = build().mean_coefficients()
    zeros = dict.fromkeys(["merge/tsv", *NAMES], 0.0)
    assert rows == pytest.approx({"merge/swudi_a": 1.2, **zeros})


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_the_loss_and_its_gradient_are_those_of_float64(
    build: Any, states: Any, tasks: dict[str, TaskSource], granularity: str
) -> None:
    base, finetuned = states
    module = build(granularity=granularity)
    module.build()
    (batch,) = [next(iter(data().train_dataloader()))]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        module.coefficients += 0.1 * torch.randn(module.coefficients.shape, generator=generator)
    module._trainer = quiet_trainer()
    module.trainer.log_every_n_steps = 0
    loss = module.training_step(batch, 1)
    (gradient,) = torch.autograd.grad(loss, module.coefficients)

    # The same once more: in float64, from the models themselves, along one direction.
    vectors = [
        {name: merged[name].double() - base[name].double() for name in base}
        for merged in (merge("swudi_a", base, finetuned), merge("tsv", base, finetuned))
    ]
    vectors += [{n: model[n].double() - base[n].double() for n in base} for model in finetuned.values()]
    encoder = build_encoder("miniature", str(module._pretrained)).double().eval()

    def logits(task: str, weights: dict[str, Tensor]) -> Tensor:
        head = ClassificationHead.load(str(tasks[task].head)).double()
        found: Tensor = head(functional_call(encoder, weights, (batch[task].double(),)))
        return found

    def expected(grid: Tensor) -> Tensor:
        weights, column = {}, 0
        for name, value in base.items():
            weights[name] = value.double().clone()
            for part in range(len(value)) if granularity == "row" else [slice(None)]:
                for k, v in enumerate(vectors):
                    weights[name][part] += grid[k, column] * v[name][part]
                column += 1
        total = torch.zeros((), dtype=torch.float64)
        for task in NAMES:
            p = logits(task, {n: t.double() for n, t in finetuned[task].items()}).softmax(-1)
            q = logits(task, weights).softmax(-1)
            total += (p * (p / q).log()).sum(-1).mean()
        return total

    grid = module.coefficients.detach().double()
    direction = torch.randn(grid.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assert loss.item() == pytest.approx(float(expected(grid)), rel=1e-4)
        step = 1e-5
        slope = (expected(grid + step * direction) - expected(grid - step * direction)) / (2 * step)
    assert float((gradient.double() * direction).sum()) == pytest.approx(float(slope), rel=2e-3)


def test_the_divergence_falls_and_the_bits_are_the_same_again(build: Any) -> None:
    (batch,) = [next(iter(data().train_dataloader()))]

    def left(module: DistilledMerging) -> float:
        heads = module._frozen.heads  # type: ignore[union-attr]
        with torch.no_grad():
            return sum(float(module.loss(n, x, heads[n](module(x)))) for n, x in batch.items())

    module = build()
    module.build()
    before = left(module)
    first = learn(module, data(), steps=6, seed=3)
    assert left(module) < 0.95 * before
    assert same(learn(build(), data(), steps=6, seed=3), first)
    assert same(learn(module, data(), steps=6, seed=3), first), "the same module starts anew"


def test_it_looks_at_training_images_and_at_no_label(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(build(), data(), steps=2)
    plain, opened = ToyDataset.__getitem__, ToyDataset.__init__
    monkeypatch.setattr(ToyDataset, "__getitem__", lambda self, index: (plain(self, index)[0], Poisoned()))

    def training_alone(self: ToyDataset, task: str, split: Any) -> None:
        assert split == "train"
        opened(self, task, split)

    monkeypatch.setattr(ToyDataset, "__init__", training_alone)
    assert same(learn(build(), data(), steps=2), expected)


def test_gram_matrices_bring_in_spectral_sta(
    tasks: dict[str, TaskSource], states: Any, pretrained: Path, tmp_path: Path
) -> None:
    base, finetuned = states
    grams = {
        task: {name: t.T @ t for name, t in model.items() if t.ndim == 2 and name.endswith("weight")}
        for task, model in finetuned.items()
    }
    given = {}
    for task, source in tasks.items():
        file = tmp_path / f"{task}.safetensors"
        save_weights(file, grams[task], {"measure": "gram"})
        given[task] = TaskSource(source.finetuned, head=source.head, gram=str(file))
    output = tmp_path / "fused.safetensors"
    module = DistilledMerging(given, pretrained=str(pretrained), output=str(output))
    module.build()
    expected = merge("spectral_sta", base, finetuned, grams=grams)
    for name, value in module._frozen.vectors["merge/spectral_sta"].items():  # type: ignore[union-attr]
        torch.testing.assert_close(base[name] + value, expected[name], rtol=1e-5, atol=1e-6)
    learn(module, data(), steps=1)
    metadata = read_metadata(output)
    assert metadata["kind"] == "fused:distilled"
    settings = json.loads(metadata["settings"])
    assert (settings["merges"], settings["init"]) == (["swudi_a", "spectral_sta"], 1.2)
    assert settings["images"] == {
        **{"split": "train", "limit": SIZE, "batch_size": SIZE},
        **{"seed": 0, "crops": False},
    }
    assert settings["granularity"] == "row"
    assert settings["coefficients"].keys() == {"merge/swudi_a", "merge/spectral_sta", *NAMES}
    assert {role for role in json.loads(metadata["sources"]) if role.startswith("gram/")} == {
        f"gram/{name}" for name in NAMES
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merges": []}, "one method or more"),
        ({"merges": ["tsv", "tsv"]}, "each once"),
        ({"merges": ["tvs"]}, "'tvs' is unknown"),
        ({"granularity": "layer"}, "granularity='layer'"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
    ],
)
def test_wrong_settings(build: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        build(**settings)
