"""Small models for the tests of the arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

State = dict[str, Tensor]

SHAPES = {"conv.weight": (4, 3, 2), "blocks.0.w": (5, 6), "blocks.0.b": (6,), "scale": (), "empty": (0, 3)}


@dataclass
class Suite:
    """A pretrained model, its fine-tuned descendants and their importances."""

    pretrained: State
    finetuned: dict[str, State]
    importance: dict[str, State]

    def numpy(self, state: State) -> dict[str, "object"]:
        """The floating-point tensors in float64."""
        return {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}


@pytest.fixture
def suite() -> Callable[..., Suite]:
    """Builds a suite of ``tasks`` tasks from a seed."""

    def build(tasks: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Suite:
        generator = torch.Generator().manual_seed(seed)

        def state(spread: float, around: State | None = None) -> State:
            drawn = {
                name: spread * torch.randn(shape, generator=generator, dtype=torch.float64)
                for name, shape in SHAPES.items()
            }
            if around is not None:
                drawn = {name: value + around[name].double() for name, value in drawn.items()}
            return {name: value.to(dtype) for name, value in drawn.items()}

        pretrained = state(1.0)
        names = [f"task{index}" for index in range(tasks)]
        finetuned = {name: state(0.05, pretrained) for name in names}
        importance = {name: {key: value.float().abs() for key, value in state(1.0).items()} for name in names}
        for model in (pretrained, *finetuned.values()):
            model["steps"] = torch.tensor(7)
        return Suite(pretrained, finetuned, importance)

    return build
