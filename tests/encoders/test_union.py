"""Several heads as one classifier, against the same in NumPy and float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from sta_lightning.encoders import ClassificationHead
from sta_lightning.encoders.union import UnionHead, shrunk_covariance, task_discriminant
from sta_lightning.errors import StaError

Array = npt.NDArray[np.float64]
TASKS = {"digits": 3, "cars": 2, "signs": 4}
WIDTH = 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads() -> dict[str, ClassificationHead]:
    return {
        task: ClassificationHead(5 * drawn(classes, WIDTH, seed=classes), drawn(classes, seed=9))
        for task, classes in TASKS.items()
    }


def examples(count: int = 8) -> dict[str, Tensor]:
    """Features around a mean of each task's own."""
    return {
        task: drawn(WIDTH, seed=20 + seed) + 0.5 * drawn(count + seed, WIDTH, seed=seed)
        for seed, task in enumerate(TASKS)
    }


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def ledoit_wolf(rows: Array) -> Array:
    """Section 3.2 as it reads: a sum over observations, norms divided by the dimension."""
    count, width = rows.shape
    sample = sum(np.outer(x, x) for x in rows) / count
    m = np.trace(sample) / width
    d2 = np.linalg.norm(sample - m * np.eye(width)) ** 2 / width
    b2 = sum(np.linalg.norm(np.outer(x, x) - sample) ** 2 / width for x in rows) / count**2
    b2 = min(b2, d2)
    return np.asarray(b2 / d2 * m * np.eye(width) + (d2 - b2) / d2 * sample)


def normalised(rows: Tensor) -> Array:
    found = rows.double().numpy()
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("count", [2, 5, 300])
def test_the_shrunk_covariance_is_ledoit_and_wolfs(count: int) -> None:
    rows = drawn(count, WIDTH).double() * torch.arange(1, WIDTH + 1)
    np.testing.assert_allclose(shrunk_covariance(rows), ledoit_wolf(rows.numpy()), rtol=1e-10)


def test_rows_that_are_all_equal_give_no_nan() -> None:
    assert torch.equal(shrunk_covariance(torch.zeros(3, 2).double()), torch.zeros(2, 2).double())


def test_the_classes_of_all_tasks() -> None:
    union, features = UnionHead(heads()), drawn(7, WIDTH, seed=3)
    union.discriminant = task_discriminant(examples())
    groups = [normalised(rows) for rows in examples().values()]
    means = np.stack([group.mean(0) for group in groups])
    rows = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
    inverse = np.linalg.inv(ledoit_wolf(rows * np.sqrt(len(rows) / (len(rows) - len(means)))))
    x = normalised(features)
    # The logarithms of the densities, but for what all tasks share.
    away = x[:, None] - means
    tasks = log_softmax(-0.5 * np.einsum("btd,de,bte->bt", away, inverse, away))
    own = [log_softmax(head(features).double().numpy()) for head in heads().values()]
    wanted = np.concatenate([tasks[:, [task]] + part for task, part in enumerate(own)], 1)
    np.testing.assert_allclose(union(features).double(), wanted, atol=2e-4)
    np.testing.assert_allclose(union(features).exp().sum(1), 1, atol=1e-5)
    assert union.places[:4] == (("digits", 0), ("digits", 1), ("digits", 2), ("cars", 0))
    assert union.num_classes == sum(TASKS.values())


def test_within_a_task_the_odds_stay_those_of_its_head() -> None:
    union, features = UnionHead(heads()), drawn(7, WIDTH, seed=4)
    for discriminant in (None, task_discriminant(examples())):
        union.discriminant = discriminant
        parts = union(features).split(list(TASKS.values()), dim=1)
        for part, head in zip(parts, heads().values(), strict=True):
            torch.testing.assert_close(part.log_softmax(1), head(features).log_softmax(1))


def test_without_examples_the_logits_stand_side_by_side() -> None:
    features = drawn(7, WIDTH, seed=5)
    wanted = torch.cat([head(features) for head in heads().values()], 1)
    assert torch.equal(UnionHead(heads())(features), wanted)


def test_images_of_a_task_are_told_to_be_of_it() -> None:
    union, more = UnionHead(heads()), examples(200)
    union.discriminant = task_discriminant(examples(32))
    for task, rows in more.items():
        found = [union.places[int(place)][0] for place in union(rows).argmax(1)]
        assert found.count(task) > 0.9 * len(found)


def test_what_is_no_one_classifier() -> None:
    with pytest.raises(StaError, match=r"'digits: 6', 'other: 5'.*no one classifier"):
        UnionHead({"digits": heads()["digits"], "other": ClassificationHead(drawn(2, 5))})
    with pytest.raises(StaError, match="'cars' has fewer"):
        task_discriminant({**examples(), "cars": drawn(1, WIDTH)})
    with pytest.raises(StaError, match="all the same one"):
        task_discriminant({task: torch.ones(3, WIDTH) for task in TASKS})
