"""What a pass over samples needs around it, so that its numbers are those of the weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def check_parameters(module: nn.Module, names: Iterable[str]) -> None:
    """Refuse, by a ValueError, names that are none of a module's floating-point parameters."""
    parameters = dict(module.named_parameters())
    foreign = [n for n in names if n not in parameters or not parameters[n].is_floating_point()]
    if foreign:
        raise ValueError(f"Not floating-point parameters of {type(module).__name__}: {', '.join(foreign)}.")


@contextmanager
def exact(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Float32 without TensorFloat-32, evaluation mode, no autocast, no compiling; then as before.

    Inference mode is left, as its tensors cannot take part in autograd and ``enable_grad`` does not
    end it.
    """
    with (
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
        _eager(),
        _full_precision(),
        _evaluation_mode(module),
    ):
        yield


def plain(tensor: Tensor) -> Tensor:
    """A detached float32 view (integers as they are), also of an inference tensor, for autograd."""
    tensor = tensor.detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in float32: convolutions on a GPU have fewer digits by default."""
    kinds: Any = torch.backends
    places = (kinds.cuda.matmul, kinds.cudnn.conv, kinds.mkldnn.matmul, kinds.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _eager() -> AbstractContextManager[Any]:
    """Run compiled parts as they were written: a compiled graph hides the uses of its weights."""
    # What compiles is slow to import, and nothing is compiled where nobody has imported it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch every submodule to evaluation mode, and each back to what it was."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, flag in training.items():
            child.training = flag
