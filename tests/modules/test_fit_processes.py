"""A fit on 1 and 2 real processes: the same batches in order, the same weights to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sta_lightning.encoders import build_encoder
from tests.launch import launch
from tests.modules.fit_worker import SIZES
from tests.toys import write_finetuned, write_pretrained

# On a busy machine; a process that hangs is ended, and its test failed, by launch() itself.
pytestmark = pytest.mark.timeout(900)
WORKER = Path(__file__).with_name("fit_worker.py")
WORLDS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each process found, by number of processes."""
    pretrained = write_pretrained(folder / "pretrained.safetensors")
    for seed, name in enumerate(("spots", "stripes")):
        write_finetuned(folder / f"{name}.safetensors", pretrained, seed, amount=0.05)
    found: dict[int, list[dict[str, Any]]] = {}
    for world, outputs in launch(WORKER, WORLDS, folder).items():
        lines = [line for text in outputs for line in text.splitlines() if line.startswith("SAID ")]
        found[world] = [json.loads(line.removeprefix("SAID ")) for line in lines]
        assert len(found[world]) == world
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_batches_of_all_processes_together_are_those_of_one(
    said: dict[int, list[dict[str, Any]]], world: int, size: int
) -> None:
    (alone,) = (found[f"seen-{size}"] for found in said[1])
    shares = [found[f"seen-{size}"] for found in said[world]]
    together = [sorted(number for part in parts for number in part) for parts in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in alone], "images, their crops and their order"
    assert [len(batch) for batch in alone] == ([6, 6, 6, size - 18] * 2)
    assert alone[:4] != alone[4:]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_weights_are_those_of_one_process(
    said: dict[int, list[dict[str, Any]]], folder: Path, world: int, size: int
) -> None:
    alone = torch.load(folder / f"fitted-{size}-1-0.pt", weights_only=True)
    for rank in range(world):
        found = torch.load(folder / f"fitted-{size}-{world}-{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6)
    start = build_encoder("miniature", str(folder / "pretrained.safetensors")).state_dict()
    moved = max(float((alone[f"encoder.{name}"] - tensor).abs().max()) for name, tensor in start.items())
    assert moved > 1e-3, "steps are large beside the tolerance"
    assert {found[f"steps-{size}"] for found in said[world]} == {8}
    # Sums of whole numbers, over the samples of all processes.
    assert {found[f"train-{size}"] for found in said[world]} == {said[1][0][f"train-{size}"]}


@pytest.mark.parametrize("world", WORLDS[1:])
def test_after_adamw_what_has_a_gradient_is_nearly_that_of_one_process(
    said: dict[int, list[dict[str, Any]]], folder: Path, world: int
) -> None:
    alone = torch.load(folder / "adam-1-0.pt", weights_only=True)
    found = torch.load(folder / f"adam-{world}-0.pt", weights_only=True)
    for name, tensor in alone.items():
        differences = (found[name] - tensor).abs()
        if name.endswith("attn.in_proj_bias"):
            # The true gradient of a key's bias is 0: AdamW scales its rounding up to whole steps.
            query, key, value = differences.chunk(3)
            assert float(key.max()) <= 10 * 1e-3, "as far as ten steps of the learning rate go"
            differences = torch.cat([query, value])
        assert float(differences.max()) <= 2e-3 * float(tensor.abs().max()), name


@pytest.mark.parametrize("world", WORLDS[1:])
def test_evaluations_are_the_same(said: dict[int, list[dict[str, Any]]], world: int) -> None:
    (alone,) = said[1]
    assert "test/spots/acc" in alone["test"]
    assert set(alone["many"]["spots"]) == {"spots", "stripes", "watch"}
    for found in said[world]:
        assert found["test"] == alone["test"]
        assert found["many"] == alone["many"]


def test_a_batch_that_cannot_be_shared_out_is_refused(said: dict[int, list[dict[str, Any]]]) -> None:
    for found in said[2]:
        assert "batch of 5 images cannot be shared out among 2 processes" in found["odd"]
