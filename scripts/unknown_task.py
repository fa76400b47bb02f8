"""Accuracy of one classifier out of several heads, by ways to weigh them against each other.

    python -m scripts.unknown_task runs/merge/miniature/fused.safetensors

Every model is a merged encoder whose tasks the package knows, as those of the embedded suite. What
is told: the share of images classified rightly by the head of their task, and by the union of all
classes, where task and class must be right; on validation images, by which a way is chosen, and on
test images. The means are over tasks, then over models.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sta_lightning.cli.predict import find_task, own_examples
from sta_lightning.encoders.predictor import AUTO, Predictor, open_predictor
from sta_lightning.encoders.union import UnionHead, task_discriminant
from sta_lightning.tasks import TaskDataModule

SPLITS = ("validation", "test")
DISCRIMINANT = "discriminant of the tasks, then the task's head (chosen)"


def ways(head: UnionHead, examples: Mapping[str, Tensor], features: Tensor) -> dict[str, list[Tensor]]:
    """By way: the scores of every task's classes, ``[B, C]`` each, of features ``[B, D]``.

    ``examples`` are the features of images of each task.
    """
    rows = [F.normalize(found, dim=-1) for found in examples.values()]
    logits = [own(features) for own in head.heads]
    seen = [own(torch.cat(rows)) for own in head.heads]
    own = [own(found) for own, found in zip(head.heads, rows, strict=True)]
    shares = [part.log_softmax(-1) for part in logits]
    pairs = list(zip(logits, seen, own, strict=True))
    means = torch.stack([found.mean(0) for found in rows])
    variance = torch.cat([found - mean for found, mean in zip(rows, means, strict=True)]).square().mean()
    near = -torch.cdist(F.normalize(features, dim=-1), means).square() / (2 * variance)
    union = UnionHead(dict(zip(examples, head.heads, strict=True)))
    union.discriminant = task_discriminant(examples)
    return {
        "logits side by side": logits,
        "each head's own probabilities": shares,
        "z-scores of a head, its own images": [(part - x.mean()) / x.std() for part, _, x in pairs],
        "z-scores of a head, all images": [(part - x.mean()) / x.std() for part, x, _ in pairs],
        "each class less its mean, all images": [part - x.mean(0) for part, x, _ in pairs],
        "nearest mean of the tasks, then the task's head": [
            part + near.log_softmax(-1)[:, [task]] for task, part in enumerate(shares)
        ],
        DISCRIMINANT: list(union(features).split([part.shape[1] for part in logits], dim=1)),
    }


@torch.no_grad()
def measure(predictor: Predictor, limit: int | None) -> dict[str, dict[str, float]]:
    """Accuracies in percent by way: ``SPLIT``, ``SPLIT known``, and ``SPLIT task`` alone."""
    head = predictor.head
    assert isinstance(head, UnionHead)
    tasks = predictor.tasks
    examples = {task: predictor.features(own_examples(spec, predictor.spec)) for task, spec in tasks.items()}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for split in SPLITS:
        for number, spec in enumerate(tasks.values()):
            data = TaskDataModule(spec, validation_limit=limit, test_limit=limit).evaluation_loader(split)
            batches = [(predictor.features(images), labels) for images, labels in data]
            features, labels = (torch.cat(part) for part in zip(*batches, strict=True))
            for way, scores in ways(head, examples, features).items():
                place = torch.cat(scores, 1).argmax(1)
                first = sum(part.shape[1] for part in scores[:number])
                inside = (place >= first) & (place < first + scores[number].shape[1])
                known = scores[number].argmax(1) == labels
                for what, right in (
                    (f"{split} known", known),
                    (split, place == first + labels),
                    (f"{split} task", inside),
                ):
                    found[way][what].append(100 * right.double().mean().item())
    return {
        way: {what: statistics.mean(row) for what, row in columns.items()} for way, columns in found.items()
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, help="images of each task and split; all by default")
    arguments = parser.parse_args()
    found = [
        measure(open_predictor(path, task=AUTO, find_task=find_task), arguments.limit)
        for path in arguments.models
    ]
    columns = ("validation known", "validation", "test known", "test", "test task")
    print(f"| heads | {' | '.join(columns)} |\n| -- |{' -: |' * len(columns)}")
    for way in found[0]:
        cells = []
        for column in columns:
            numbers = [model[way][column] for model in found]
            spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
            cells.append(f"{statistics.mean(numbers):.1f}{spread}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
