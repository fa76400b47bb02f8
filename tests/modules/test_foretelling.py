"""Foretelling: what is compared, and which merge is the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sta_lightning import merge
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.modules.foretelling import Judge, candidates, ranking
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.weights import load_weights
from tests.modules.test_adamerging import NAMES
from tests.modules.test_adamerging import tasks as tasks  # a fixture


def images(count: int) -> dict[str, Tensor]:
    return {
        name: member.dataset("train").batch(member.scoring_samples(count, 0))
        for name, member in MultiTaskDataModule(list(NAMES)).members.items()
    }


def weights(path: str | None) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): tensor for name, tensor in load_weights(str(path)).items()}


@pytest.fixture
def judge(pretrained: Path, tasks: dict[str, TaskSource]) -> Judge:
    finetuned = {name: str(source.finetuned) for name, source in tasks.items()}
    heads = {name: ClassificationHead.load(str(source.head)) for name, source in tasks.items()}
    return Judge(build_encoder("miniature", str(pretrained)).eval(), finetuned, heads, images(6))


def test_it_compares_probabilities_and_classes(
    pretrained: Path, tasks: dict[str, TaskSource], judge: Judge
) -> None:
    encoder = build_encoder("miniature", str(pretrained)).double().eval()

    def probabilities(task: str, state: Mapping[str, Tensor]) -> np.ndarray:
        head = ClassificationHead.load(str(tasks[task].head)).double()
        double = {name: tensor.double() for name, tensor in state.items()}
        with torch.no_grad():
            logits = head(functional_call(encoder, double, (images(6)[task].double(),))).numpy()
        values = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(values / values.sum(-1, keepdims=True))

    other = weights(tasks["spots"].finetuned)
    found = judge.foretell(other)
    p, q = (probabilities("stripes", state) for state in (weights(tasks["stripes"].finetuned), other))
    assert found.divergence["stripes"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert found.agreement["stripes"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert (found.divergence["spots"], found.agreement["spots"]) == (pytest.approx(0, abs=1e-6), 1)
    assert found.mean == pytest.approx(found.divergence["stripes"] / 2, abs=1e-6)


def test_the_nearest_comes_first(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    # The same model twice: its average is that model, and no other candidate is.
    same_twice = {name: TaskSource(tasks["spots"].finetuned) for name in NAMES}
    opened = built_pretrained("miniature", str(pretrained), None)
    head = ClassificationHead.load(str(tasks["spots"].head))
    judge = Judge(
        build_encoder("miniature", str(pretrained)).eval(),
        {name: str(source.finetuned) for name, source in same_twice.items()},
        dict.fromkeys(NAMES, head),
        images(4),
    )
    options = FusionOptions({**same_twice})
    found = ranking(options, opened, judge, ["task_arithmetic", "average"])
    assert [candidate.method for candidate in found] == ["average", *["task_arithmetic"] * 4]
    assert found[0].foretold.mean == pytest.approx(0, abs=1e-6)
    # 0.4 times twice the vector: 1.2 times that is nearly all of it.
    assert [candidate.scale for candidate in found][:2] == [None, pytest.approx(0.48)]
    means = [candidate.foretold.mean for candidate in found]
    assert means == sorted(means)
    assert ranking(options, opened, judge, ["task_arithmetic", "average"]) == found


def test_a_candidate_s_coefficient_multiplies_the_merged_vector() -> None:
    draw = torch.Generator().manual_seed(0)
    base = {
        f"blocks.{block}.{name}": torch.randn(shape, generator=draw)
        for block in range(2)
        for name, shape in (("attn.weight", (8, 6)), ("mlp.weight", (6, 8)), ("ln.bias", (6,)))
    }
    models = {
        name: {key: t + 0.1 * torch.randn(t.shape, generator=draw) for key, t in base.items()}
        for name in ("a", "b", "c")
    }
    grams = {
        name: {key: t.T @ t for key, t in model.items() if t.ndim == 2} for name, model in models.items()
    }
    found = candidates(grams=True)
    assert {"swudi_a", "tsv", "average", "spectral_sta", "regmean"} <= found.keys()
    assert not {"sta", "fisher", "vectors", "random_mask"} & found.keys()
    assert found.keys() - candidates(grams=False).keys() >= {"spectral_sta", "regmean", "esm"}
    for method, scales in found.items():
        if scales == (None,):
            continue
        first, *others = scales
        once = merge(method, base, models, grams=grams, scale=first)
        for scale in others:
            assert first is not None
            assert scale is not None
            moved = merge(method, base, models, grams=grams, scale=scale)
            for name, value in moved.items():
                expected = base[name] + scale / first * (once[name] - base[name])
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=f"{method}: {name}")
