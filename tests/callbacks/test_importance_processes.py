"""Importance scoring, and what else goes over samples, on 1, 2, 3 and 5 real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sta_lightning.weights import all_bounds, load_weights, read_bounds, read_metadata
from sta_lightning.weights.bounds import KEY
from tests.launch import launch
from tests.toys import write_pretrained

# On a busy machine; a process that hangs is ended, and its test failed, by launch() itself.
pytestmark = pytest.mark.timeout(900)
WORKER = Path(__file__).with_name("scoring_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    write_pretrained(folder / "pretrained.safetensors")
    return folder


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[int, list[str]]:
    """What each process printed, after importances have been written on 1, 2, 3 and 5 processes."""
    return launch(WORKER, [1, 2, 3, 5], folder)


@pytest.fixture(scope="module")
def alone(folder: Path, outputs: dict[int, list[str]]) -> dict[str, Tensor]:
    return load_weights(folder / "on1" / "score.safetensors")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        # As docs/running.md has it: relative to the tensor's largest entry, since an entry whose
        # true value is 0 holds nothing but rounding.
        assert float((tensor - expected[name]).abs().max()) <= 1e-6 * float(expected[name].max()), name
    assert sum(float(tensor.sum()) for tensor in found.values()) > 0


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("measure", ["fisher", "gram"])
def test_fisher_information_and_gram_matrices_do_not_depend_on_the_processes(
    folder: Path, outputs: dict[int, list[str]], measure: str, processes: int
) -> None:
    (expected, about), (found, metadata) = (
        (load_weights(path), read_metadata(path))
        for path in (folder / f"on{count}" / f"{measure}.safetensors" for count in (1, processes))
    )
    assert list(found) == list(expected)
    assert_same(found, expected)
    assert {**metadata, KEY: ""} == {**about, KEY: ""}


def test_a_process_without_samples_takes_part_in_gram_matrices(
    folder: Path, outputs: dict[int, list[str]]
) -> None:
    path = folder / "on5" / "few-gram.safetensors"
    assert list(load_weights(path)) == list(load_weights(folder / "on1" / "gram.safetensors"))
    rows = json.loads(read_metadata(path)["settings"])["rows"]
    whole = json.loads(read_metadata(folder / "on1" / "gram.safetensors")["settings"])["rows"]
    assert {name: 7 * count for name, count in rows.items()} == {n: 2 * count for n, count in whole.items()}


@pytest.mark.parametrize("processes", [3, 5])
def test_more_processes_give_the_same_importance(
    folder: Path, alone: dict[str, Tensor], processes: int
) -> None:
    path = folder / f"on{processes}" / "score.safetensors"
    found, metadata = load_weights(path), read_metadata(path)
    assert_same(found, alone)
    # Each file tells its own tensors' bounds, which differ from each other's as the tensors do, in
    # rounding.
    expected = read_metadata(folder / "on1" / "score.safetensors")
    assert read_bounds(metadata) == all_bounds(found)
    assert {**metadata, KEY: ""} == {**expected, KEY: ""}
    if processes == 5:
        # Two samples: three of the five processes have none.
        assert (folder / "on5" / "few.safetensors").is_file()


def test_two_processes_give_the_same_importance_alone_and_under_validate(
    folder: Path, alone: dict[str, Tensor]
) -> None:
    for name in ("score", "validate"):
        assert_same(load_weights(folder / "on2" / f"{name}.safetensors"), alone)


def test_a_fit_on_two_processes_follows_the_fit_without_scoring(
    folder: Path, outputs: dict[int, list[str]]
) -> None:
    for rank in (0, 1):
        plain: dict[str, Any] = torch.load(folder / "on2" / f"without-{rank}.pt", weights_only=True)
        scored: dict[str, Any] = torch.load(folder / "on2" / f"with-{rank}.pt", weights_only=True)
        assert torch.equal(plain["random"], scored["random"])
        assert plain["weights"].keys() == scored["weights"].keys()
        assert all(torch.equal(tensor, scored["weights"][name]) for name, tensor in plain["weights"].items())
    assert (folder / "on2" / "fit.safetensors").is_file()
    assert (folder / "on2" / "fit-gram.safetensors").is_file()


def test_one_process_failing_ends_all_and_all_say_why(folder: Path, outputs: dict[int, list[str]]) -> None:
    lines = [line for text in outputs[2] for line in text.splitlines() if line.startswith("SAID ")]
    said = [json.loads(line.removeprefix("SAID ")) for line in lines]
    assert len(said) == 2
    for what, rank in (("reading", 1), ("writing", 0)):
        own, other = sorted((one[what] for one in said), key=len)
        assert other == f"process {rank}: {own}"
    assert "image 3 is unreadable" in said[0]["reading"]
    assert "writing.safetensors" in said[0]["writing"]
    assert not (folder / "on2" / "reading.safetensors").exists()
