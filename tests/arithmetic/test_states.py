"""What is asked of tensors wherever they are, and how often a GPU would be waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sta_lightning.arithmetic import fuse
from sta_lightning.arithmetic.states import bounds, is_finite, moved

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


class Waits(TorchFunctionMode):
    """Notes what reads a tensor's numbers on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "item", "__float__", "__bool__", "__int__", "__index__", "cpu", "numpy"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_whether_all_entries_are_finite(bad: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    tensors = [torch.randn(5, 3, generator=generator).to(kind) for kind in kinds]
    tensors.append(torch.empty(0))
    tensors.append(torch.full((4,), 1e300, dtype=torch.float64))  # more than a float32 holds
    if bad is not None:
        tensors[1][2, 1] = bad
    wanted = all(np.isfinite(tensor.double().numpy()).all() for tensor in tensors)
    with Waits() as waits:
        assert is_finite(*tensors) is wanted
    assert waits.seen == ["tolist"]
    assert is_finite()
    assert is_finite(torch.empty(0))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_the_bounds_are_read_at_once(kind: torch.dtype) -> None:
    values = (100 * torch.randn(50, generator=torch.Generator().manual_seed(1))).to(kind)
    with Waits() as waits:
        found = bounds(values)
    assert waits.seen == ["tolist"]
    numbers = values.double().numpy()
    assert found == (numbers.min(), numbers.max())
    assert all(type(bound) is float for bound in found)


class Somewhere:
    """A tensor of which nothing but its way is known."""

    def __init__(self, kind: str, *way: str) -> None:
        self.device, self.way = torch.device(kind), way

    def pin_memory(self) -> Somewhere:
        return Somewhere("cpu", *self.way, "pinned")

    def to(self, device: torch.device, non_blocking: bool = False) -> Somewhere:
        return Somewhere(device.type, *self.way, f"to {device}{' at once' if non_blocking else ''}")


def test_a_copy_to_a_gpu_is_waited_for_by_nobody() -> None:
    for start, end, way in (
        ("cpu", "cuda:1", ("pinned", "to cuda:1 at once")),
        ("cuda", "cuda:1", ("to cuda:1",)),
        ("cuda", "cpu", ("to cpu",)),
        ("cpu", "cpu", ("to cpu",)),
        ("cpu", "mps", ("to mps",)),
    ):
        values: Any = Somewhere(start)
        found: Any = moved(values, torch.device(end))
        assert found.way == way


State = Mapping[str, Tensor]


def models(device: str) -> tuple[State, dict[str, State], dict[str, State]]:
    generator = torch.Generator().manual_seed(2)

    def one(scale: float = 1.0) -> State:
        return {"w": (scale * torch.randn(700, 30, generator=generator)).to(device)}

    base = one()
    finetuned = {name: {"w": base["w"] + one(0.01)["w"]} for name in "abc"}
    return base, finetuned, {name: {"w": one()["w"].abs()} for name in "abc"}


@GPU
def test_a_gpu_merges_to_the_same() -> None:
    torch.testing.assert_close(fuse(*models("cuda"))["w"].cpu(), fuse(*models("cpu"))["w"])
    values = torch.randn(1000)
    assert torch.equal(moved(values, torch.device("cuda")).cpu(), values)
