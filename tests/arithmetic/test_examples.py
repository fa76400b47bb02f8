"""The examples in the docstrings run."""

import doctest
from types import ModuleType

import pytest
import torch

from sta_lightning import arithmetic
from sta_lightning.arithmetic import forgetting, fusion, masks, normalization
from sta_lightning.weights import atomic


@pytest.mark.parametrize("module", [forgetting, fusion, masks, normalization, atomic])
def test_the_examples_of_a_module(module: ModuleType, tmp_path: object) -> None:
    names = {
        "torch": torch,
        "tmp": tmp_path,
        **{name: getattr(arithmetic, name) for name in arithmetic.__all__},
    }
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
