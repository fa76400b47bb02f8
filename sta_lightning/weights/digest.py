"""A digest of weights as such, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of the names, types, shapes and bytes of tensors, in the names' order.

    Two files with the same tensors have the same digest though their bytes differ (order, metadata,
    format).

    Args:
        state: Tensors by name, on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
