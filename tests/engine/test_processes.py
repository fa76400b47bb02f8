"""Merging on 1, 2 and 3 processes: the same files, and one message where one of them fails."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from sta_lightning.weights import load_weights, save_weights
from tests.engine.models import command, write_models
from tests.launch import launch

WORKER = Path(__file__).with_name("processes_worker.py")
WORLDS = (1, 2, 3)
GOOD = {
    "sta": ["merge"],
    "block": ["merge", "--model.normalize=block", "--model.p=0.0"],
    "half": ["merge", "--model.dtype=float16", "--model.measure=lp+amp"],
    "random": ["merge", "--model.method=random_mask"],
    "average": ["merge", "--model.method=average"],
    "forget": ["forget"],
}
# The largest tensor falls to the first process, the next one to the second.
OWNED_BY_SECOND = "transformer.resblocks.0.mlp.c_fc.weight"
BAD = ["nan", "missing", "place"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kept_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    models = write_models(folder / "models")
    calls = [
        command(models, Path("{own}") / f"{name}.safetensors", *more, name=words)
        for name, (words, *more) in GOOD.items()
    ]
    broken = write_models(folder / "broken")
    path = str(broken.tasks["task1"].finetuned)
    content = load_weights(path)
    content[f"visual.{OWNED_BY_SECOND}"][-1, -1] = float("nan")
    save_weights(path, content, allow_nonfinite=True)
    calls.append(command(broken, Path("{own}") / "nan.safetensors"))
    models.tasks["task2"].importance = str(folder / "absent.safetensors")
    calls.append(command(models, Path("{own}") / "missing.safetensors"))
    (folder / "file").write_text("")
    calls.append(command(write_models(folder / "models"), folder / "file" / "place.safetensors"))
    (folder / "calls.json").write_text(json.dumps(calls))
    return folder


@pytest.fixture(scope="module")
def said(folder: Path, kept_cache: Path) -> dict[int, list[list[tuple[int, str]]]]:
    """By number of processes, for each process: status and message of every command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(kept_cache))
        outputs = launch(WORKER, WORLDS, folder)
    return {
        world: [
            [
                tuple(json.loads(line.removeprefix("SAID ")))
                for line in text.splitlines()
                if line.startswith("SAID ")
            ]
            for text in texts
        ]
        for world, texts in outputs.items()
    }


@pytest.mark.parametrize("processes", WORLDS)
def test_all_of_them_succeed_on_every_process(
    processes: int, said: dict[int, list[list[tuple[int, str]]]]
) -> None:
    assert len(said[processes]) == processes
    for outcomes in said[processes]:
        assert outcomes[: len(GOOD)] == [(0, "")] * len(GOOD)


@pytest.mark.parametrize("processes", WORLDS[1:])
@pytest.mark.parametrize("name", GOOD)
def test_the_file_is_that_of_one_process(
    name: str, processes: int, folder: Path, said: dict[int, list[list[tuple[int, str]]]]
) -> None:
    alone = (folder / "on1" / f"{name}.safetensors").read_bytes()
    assert (folder / f"on{processes}" / f"{name}.safetensors").read_bytes() == alone


def test_the_files_are_those_that_they_should_be(folder: Path, said: object) -> None:
    found = {name: load_weights(folder / "on1" / f"{name}.safetensors") for name in GOOD}
    assert {tensor.dtype for name, tensor in found["half"].items() if "steps" not in name} == {torch.float16}
    for one, other in itertools.combinations(GOOD, 2):
        assert not torch.equal(found[one]["visual.conv1.weight"], found[other]["visual.conv1.weight"])


@pytest.mark.parametrize("processes", WORLDS)
def test_an_error_of_one_process_ends_all_with_its_message(
    processes: int, said: dict[int, list[list[tuple[int, str]]]], folder: Path
) -> None:
    for rank, outcomes in enumerate(said[processes]):
        for name, (status, err) in zip(BAD, outcomes[len(GOOD) :], strict=True):
            assert status == 2, name
            assert (err.count("\n"), err[:12]) == ((1, "sta: error: ") if rank == 0 else (0, "")), (
                "the first one speaks"
            )
    bad, missing, place = (err for _, err in said[processes][0][len(GOOD) :])
    assert ("process 1: " in bad) == (processes > 1)
    assert f"holds NaN or Inf in tensor '{OWNED_BY_SECOND}'" in bad
    assert "task1.safetensors" in bad
    assert "absent.safetensors" in missing
    assert "place.safetensors" in place
    assert sorted(os.listdir(folder / f"on{processes}")) == sorted(f"{name}.safetensors" for name in GOOD)
