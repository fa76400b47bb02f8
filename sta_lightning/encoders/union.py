"""Several tasks' heads on one encoder as one classifier, for images of unknown task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.errors import StaError, listed


class Discriminant(NamedTuple):
    """A linear rule from normalised features to tasks.

    Attributes:
        weight: shape ``[T, D]``, one row a task.
        bias: shape ``[T]``.
    """

    weight: Tensor
    bias: Tensor


class UnionHead(nn.Module):
    """The classes of all tasks together: log p(t, c | x) = log p(t | x) + log p(c | x, t).

    The second term is the task's own head, so that within a task the classes keep their order and
    their odds. The first is a discriminant of the tasks (:func:`task_discriminant`), made of the
    features of a few images of each without their labels. Without it the heads' logits stand side
    by side as they are, as if they were of one zero-shot classifier.

    Args:
        heads: by task: its head.

    Attributes:
        places: of every class its task and its label there.
        discriminant: what tells the tasks apart; ``None`` for none.

    Raises:
        StaError: the heads read features of different lengths.
    """

    def __init__(self, heads: Mapping[str, ClassificationHead]) -> None:
        super().__init__()
        widths = {task: head.num_features for task, head in heads.items()}
        if len(set(widths.values())) != 1:
            found = listed(f"{task}: {width}" for task, width in widths.items())
            raise StaError(
                f"The heads read features of different lengths ({found}): they were made for different encoders, and are no one "
                "classifier. Give heads that belong to this model."
            )
        self.num_features = next(iter(widths.values()))
        self.places = tuple(
            (task, label) for task, head in heads.items() for label in range(head.num_classes)
        )
        self.heads = nn.ModuleList(heads.values())
        self.discriminant: Discriminant | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes of all tasks."""
        return len(self.places)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``[B, D]`` into logits ``[B, C]``: log-probabilities, if weighed."""
        logits = [head(features) for head in self.heads]
        if self.discriminant is None:
            return torch.cat(logits, dim=-1)
        weight, bias = (part.to(features.device) for part in self.discriminant)
        tasks = F.linear(F.normalize(features, dim=-1), weight, bias).log_softmax(-1)
        own = [part.log_softmax(-1) + tasks[:, [task]] for task, part in enumerate(logits)]
        return torch.cat(own, dim=-1)


def task_discriminant(features: Mapping[str, Tensor]) -> Discriminant:
    """Tell tasks apart by features of some of their images: linear discriminant analysis.

    Each task is a normal distribution with a mean of its own; they share one covariance and are
    equally likely. With some dozen images a task the covariance is estimated by shrinking that of
    the sample, each row less its task's mean.

    Args:
        features: by task: of its images, ``[n, D]``, n at least 2; they are normalised first.

    Returns:
        float32 weight and bias: the logarithms of the tasks' densities but for a constant.

    Raises:
        StaError: a task has fewer than two images, or those of every task are all alike.
    """
    few = [task for task, rows in features.items() if len(rows) < 2]
    if few:
        raise StaError(f"Tasks are told apart by two images of each or more; {listed(few)} has fewer.")
    groups = [F.normalize(rows.double(), dim=-1) for rows in features.values()]
    means = torch.stack([rows.mean(0) for rows in groups])
    rows = torch.cat([group - mean for group, mean in zip(groups, means, strict=True)])
    if not bool(rows.any()):
        raise StaError("The images that stand for a task are all the same one. Give different ones.")
    # A task's mean takes a degree of freedom.
    covariance = shrunk_covariance(rows * (len(rows) / (len(rows) - len(groups))) ** 0.5)
    weight = torch.linalg.solve(covariance, means.T).T
    return Discriminant(weight.float(), (-0.5 * (weight * means).sum(1)).float())


def shrunk_covariance(rows: Tensor) -> Tensor:
    """The covariance of centred rows, shrunk towards a multiple of the identity.

    Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices (Journal
    of Multivariate Analysis 88, 2004): S* = (b² / d²) m I + (1 - b² / d²) S, with their m, d² and
    b² of section 3.2 (Frobenius norms divided by D).

    Args:
        rows: float64 ``[n, D]``, of mean zero.

    Returns:
        ``[D, D]``, positive definite, unless all rows are equal to zero.
    """
    count, width = rows.shape
    sample = rows.T @ rows / count
    identity = torch.eye(width, dtype=rows.dtype, device=rows.device)
    scale = sample.diagonal().mean()
    distance = (sample - scale * identity).square().sum() / width
    # The sum over rows of |x x' - S|², with |x x'|² = |x|⁴.
    spread = (rows.square().sum(1).square().sum() - count * sample.square().sum()) / (count**2 * width)
    share = (spread.clamp(max=distance) / distance).nan_to_num(1.0)
    return share * scale * identity + (1 - share) * sample
