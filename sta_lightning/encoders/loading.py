"""What every loader of encoder weights needs: read, and fit strictly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from sta_lightning.arithmetic.checks import compare_names
from sta_lightning.weights.formats import load_state


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint of any known layout; floating-point tensors become float32."""
    return {name: t.float() if t.is_floating_point() else t for name, t in load_state(path).items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``module``; every name and shape must fit.

    Raises:
        StaError: that names what is missing, superfluous or of another shape.
    """
    own = module.state_dict()
    compare_names(own, state, reference_name="this encoder", other_name=str(path), kinds=False)
    module.load_state_dict(state)


@contextmanager
def unlogged(phrase: str) -> Iterator[None]:
    """Keep the root logger's messages with that phrase from being shown.

    open_clip warns of random weights, which are either what was asked for or overwritten at once.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return phrase not in record.getMessage()

    logging.getLogger().addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_other)
