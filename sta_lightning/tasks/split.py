"""Which images are for validation, and which a limit keeps: decided by numbers alone."""

from __future__ import annotations

import torch

from sta_lightning.errors import StaError

SPLIT_SEED = 0
"""Fixed, and no option: no validation image becomes a training image by another seed."""


def split_indices(
    n: int, *, seed: int = SPLIT_SEED, fraction: float = 0.1, maximum: int = 5000
) -> tuple[list[int], list[int]]:
    """Split a training set into training and validation images by the rule of the paper.

    The validation split takes min(``fraction`` of n, ``maximum``) images, at least one, at random.

    Args:
        n: Images in the published training set.
        seed: Seed of the draw.
        fraction: Share for validation, between 0 and 1.
        maximum: Largest number for validation.

    Returns:
        Indices for training and for validation, each in ascending order.

    Raises:
        StaError: if n < 2 or the fraction lies outside 0..1.
    """
    if n < 2:
        raise StaError(
            f"A training set of {n} images cannot be split into training and validation: it needs 2 or more."
        )
    if not 0 < fraction < 1 or maximum < 1:
        raise StaError(
            f"A validation share of {fraction}, at most {maximum}, was asked for: use 0 < share < 1 and 1 or "
            "more."
        )
    size = max(1, min(int(n * fraction), maximum))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[size:]), sorted(order[:size])


def limited_indices(n: int, limit: int | None, *, seed: int = SPLIT_SEED) -> list[int]:
    """Choose at most ``limit`` of n images at random, the same at every call.

    A smaller limit chooses among the images of a larger one.

    Args:
        n: Images there are.
        limit: Images to keep; all if not given or larger than n.
        seed: Seed of the draw.

    Returns:
        Indices in ascending order.

    Raises:
        StaError: if the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise StaError(f"A limit of {limit} images was asked for: give 1 or more, or none for all images.")
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].tolist())


def drawn_indices(size: int, n: int, seed: int, where: str) -> list[int]:
    """Draw samples for scoring, without replacement, in the order of the draw.

    Args:
        size: Samples there are.
        n: How many.
        seed: Seed of the draw; nothing else decides it.
        where: Whose samples they are, for the message.

    Returns:
        ``n`` indices below ``size``.

    Raises:
        StaError: if there are fewer samples.
    """
    if not 1 <= n <= size:
        raise StaError(
            f"{n} samples for scoring were asked for; {where} has {size} training images here. Ask for fewer, or raise "
            "train_limit."
        )
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:n].tolist()
