"""Which images a model classifies rightly: every number of a benchmark comes from these bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sta_lightning.benchmark.settings import ModelSettings
from sta_lightning.benchmark.statistics import Bits
from sta_lightning.encoders import ClassificationHead, empty_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules.linearised import linearised_features
from sta_lightning.modules.parts import Weights, encoder_with


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's name for an accelerator stands for: ``cpu``, ``gpu`` or ``auto``.

    Raises:
        StaError: if a GPU is asked for and PyTorch sees none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StaError(f"accelerator: {accelerator!r} was asked for, and PyTorch sees no GPU. Use cpu.")
    return torch.device("cuda")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def classified(
    models: Sequence[Weights],
    images: Mapping[str, Dataset[tuple[Tensor, int]]],
    heads: Mapping[str, Path],
    settings: ModelSettings,
    origin: Weights | None = None,
) -> list[dict[str, Bits]]:
    """Evaluate several encoders of one architecture; every batch goes through all of them.

    Args:
        models: encoders, all in memory at once.
        images: set -> images ``(float32 [3, S, S], label)``.
        heads: set -> file of its head.
        settings: architecture, batch size and device.
        origin: evaluate every encoder by its linearisation at these weights, the pretrained ones.

    Returns:
        Of each model, set -> whether each image was classified rightly, in the order of the images.

    Raises:
        StaError: if weights or a head cannot be read, or do not fit.
    """
    device = device_of(settings.accelerator)
    empty = empty_encoder(settings.encoder, settings.pretrained, settings.image_size)
    encoders: list[Callable[[Tensor], Tensor]] = [
        encoder_with(empty, weights, f"model {n}").to(device) for n, weights in enumerate(models)
    ]
    if origin is not None:
        start = encoder_with(empty, origin, "the pretrained encoder").to(device)
        changed = [dict(cast(nn.Module, encoder).named_parameters()) for encoder in encoders]
        encoders = [partial(linearised_features, start, weights) for weights in changed]
    found: list[dict[str, Bits]] = [{} for _ in models]
    for name, data in images.items():
        head = ClassificationHead.load(heads[name]).to(device).eval()
        right: list[list[Tensor]] = [[] for _ in models]
        for batch, labels in DataLoader(data, batch_size=settings.evaluation_batch_size):
            moved, wanted = batch.to(device), labels.to(device)
            for encoder, parts in zip(encoders, right, strict=True):
                logits = head(encoder(moved)).float()
                parts.append((logits.argmax(dim=-1) == wanted).cpu())
        for bits, parts in zip(found, right, strict=True):
            bits[name] = torch.cat(parts).numpy()
    return found


def accuracy(bits: Bits) -> float:
    """Share of truth in percent, rounded to float32 as the modules' own metric is."""
    return 100 * float(np.float32(bits.sum()) / np.float32(len(bits)))


def pack(bits: Bits) -> str:
    """Truth values as ``count:hexadecimal``, eight of them in two digits."""
    return f"{len(bits)}:{np.packbits(bits).tobytes().hex()}"


def unpack(text: str) -> Bits:
    """What :func:`pack` packed."""
    count, digits = text.split(":")
    packed = np.frombuffer(bytes.fromhex(digits), dtype=np.uint8)
    return np.unpackbits(packed, count=int(count)).astype(bool)
