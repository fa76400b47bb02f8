"""Every layer's own rule, and what stands in for one, against one float64 backward pass per sample."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sta_lightning.arithmetic.taylor import ledger, taylor_importance
from tests.arithmetic.zoo import (
    CONVOLUTIONS,
    COPIED,
    ENCODERS,
    IMAGE,
    RULED,
    SHARED,
    TOKENS,
    Net,
    convolution,
    samples_of,
)
from tests.oracles.taylor import assert_by_definition, by_definition

SAMPLES, CHUNK = 5, 3  # a whole chunk and a shorter one


def told(
    module: nn.Module, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> tuple[set[str], set[str]]:
    """Check the result; which parameters were copied per sample, and which were used several times, by the log."""
    images, targets = samples_of(module, shape, SAMPLES)
    names = [name for name, _ in module.named_parameters()]
    with caplog.at_level(logging.DEBUG, logger="sta_lightning.arithmetic.taylor"):
        found = taylor_importance(module, F.cross_entropy, images, targets, names=names, chunk_size=CHUNK)
    assert_by_definition(found, by_definition(module, images, targets))
    assert "sample by sample" not in caplog.text
    match = re.search(r"copied per sample: (.*); used several times: (.*)\.", caplog.text)
    assert match is not None
    copied, shared = (set() if part == "none" else set(part.split(", ")) for part in match.groups())
    return copied, shared


@pytest.mark.parametrize("name", RULED)
def test_layers_with_a_rule(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    copied, _ = told(RULED[name](), TOKENS, caplog)
    assert copied == set()


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("views", [1, 2])
def test_convolutions(name: str, views: int, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    assert told(convolution(views, **CONVOLUTIONS[name]), IMAGE, caplog) == (set(), set())


@pytest.mark.parametrize("name", COPIED)
def test_parameters_without_a_rule(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    make, expected = COPIED[name]
    copied, shared = told(make(), TOKENS, caplog)
    assert copied == expected
    assert shared == set()


@pytest.mark.parametrize("name", SHARED)
def test_uses_are_added_before_the_absolute_value(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    make, expected = SHARED[name]
    assert told(make(), TOKENS, caplog)[1] == expected


@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize("name", ["linear over tokens", "attention", "product with a matrix over tokens"])
def test_several_samples_in_one_product(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU."""
    monkeypatch.setattr(ledger, "samples_together", lambda device, entries: together)
    torch.manual_seed(0)
    told(RULED[name](), TOKENS, caplog)
    told(Net(lambda m, x: m.c(x).relu().mean((2, 3)), c=nn.Conv2d(3, 9, 3, groups=3)), IMAGE, caplog)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ["CLIP", "CLIP with attention pooling", "timm", "residual network"])
def test_a_gpu_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = ENCODERS[name][0]().eval()
    images, targets = torch.randn(SAMPLES, *IMAGE), torch.arange(SAMPLES) % 5
    names = [parameter for parameter, _ in module.named_parameters()]
    expected = by_definition(module, images, targets)
    module.cuda()
    found = taylor_importance(
        module, F.cross_entropy, images.cuda(), targets.cuda(), names=names, chunk_size=CHUNK
    )
    assert_by_definition({key: tensor.cpu() for key, tensor in found.items()}, expected)


def test_tied_modules_are_one_parameter(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = Net(lambda m, x: m.b(m.a(x).relu()).mean(1), a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    module.b.weight = module.a.weight
    assert told(module, TOKENS, caplog)[1] == {"a.weight"}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    make, expected = ENCODERS[name]
    copied, shared = told(make(), IMAGE, caplog)
    assert all(re.fullmatch(expected, parameter) for parameter in copied), copied
    assert shared == set()
