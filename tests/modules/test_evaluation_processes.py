"""Evaluation on 1, 2 and 3 real processes: the same numbers, no sample counted twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch import ROOT, launch
from tests.toys import SIZES, write_finetuned, write_importance, write_pretrained

# On a busy machine; a process that hangs is ended, and its test failed, by launch() itself.
pytestmark = pytest.mark.timeout(900)
WORKER = Path(__file__).with_name("evaluation_worker.py")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each process found, by number of processes."""
    folder = tmp_path_factory.mktemp("evaluation")
    pretrained = write_pretrained(folder / "pretrained.safetensors")
    for seed, name in enumerate(("spots", "stripes")):
        write_finetuned(folder / f"{name}.safetensors", pretrained, seed, amount=0.05)
        write_importance(folder / f"{name}-importance.safetensors", pretrained, seed)
    found: dict[int, list[dict[str, Any]]] = {}
    for world, outputs in launch(WORKER, [1, 2, 3], folder).items():
        lines = [line for text in outputs for line in text.splitlines() if line.startswith("SAID ")]
        found[world] = [json.loads(line.removeprefix("SAID ")) for line in lines]
        assert len(found[world]) == world
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_a_merge_scores_the_same_on_every_number_of_processes(
    said: dict[int, list[dict[str, Any]]], world: int
) -> None:
    (alone,) = said[1]
    assert {"test/spots/acc", "test/stripes/acc", "test/control/watch/acc", "test/avg_acc"} <= alone[
        "merge"
    ].keys()
    assert {"test/spots/macro_acc", "test/control/watch/acc/left"} <= alone["merge"].keys()
    for found in said[world]:
        assert found["merge"] == alone["merge"]
        assert found["digest"] == alone["digest"]
        assert found["file"] == alone["file"]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_sample_is_counted_twice(said: dict[int, list[dict[str, Any]]], world: int) -> None:
    shares = [found["counted"] for found in said[world]]
    assert [sum(share) for share in zip(*shares, strict=True)] == [
        SIZES[name]["test"] for name in ("spots", "stripes", "watch")
    ]


def test_every_process_chooses_the_same_merge(said: dict[int, list[dict[str, Any]]]) -> None:
    everyone = [found for world in said.values() for found in world]
    assert len(everyone[0]["chosen"]) == 6
    assert all(found["chosen"] == everyone[0]["chosen"] for found in everyone)
    assert len({found["chosen_file"] for found in everyone}) == 1


@pytest.mark.parametrize("world", [2, 3])
def test_a_classifier_validates_the_same(said: dict[int, list[dict[str, Any]]], world: int) -> None:
    (alone,) = said[1]
    for found in said[world]:
        assert found["classifier"]["val/acc"] == alone["classifier"]["val/acc"]
        assert found["classifier"]["val/loss"] == pytest.approx(alone["classifier"]["val/loss"], rel=1e-5)


def test_forgetting_on_two_and_three_processes_agrees(said: dict[int, list[dict[str, Any]]]) -> None:
    results = [found["forget"] for world in (2, 3) for found in said[world]]
    assert results[0].keys() >= {"test/target/acc", "test/control/acc"}
    assert all(result == results[0] for result in results)


def test_merges_in_memory_are_made_by_one_process_for_all(said: dict[int, list[dict[str, Any]]]) -> None:
    found = [process for world in (2, 3) for process in said[world]]
    assert said[1][0]["made"] == 4, "two candidates of a choice, and once what all fits begin with"
    assert [process["made"] for process in found] == [5, 0, 5, 0, 0], "and what forgets"
    assert all(process["forgot"] == found[0]["forgot"] for process in found)
    assert all(process["change"] == found[0]["change"] for process in found)
    assert found[0]["change"]["norm"] > 0


def test_a_script_that_saves_before_its_trainer_launches_merges_once(tmp_path: Path) -> None:
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    for seed, name in enumerate(("spots", "stripes")):
        write_finetuned(tmp_path / f"{name}.safetensors", pretrained, seed, amount=0.05)
    script = Path(__file__).with_name("saving_script.py")
    plain = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"average-{rank}.txt").read_text().split() for rank in (0, 1))
    assert (first[0], second[0]) == ("1", "0")
    assert first[1] == second[1]
    # What is saved after the launch has been made by nobody before.
    assert [(tmp_path / f"tsv-{rank}.txt").read_text().split()[0] for rank in (0, 1)] == ["2", "1"]


def test_a_head_trained_on_two_processes_stays_one_head(said: dict[int, list[dict[str, Any]]]) -> None:
    first, second = said[2]
    assert first["moved"]
    assert first["head"] == second["head"]
